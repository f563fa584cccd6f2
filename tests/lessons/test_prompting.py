"""lessons/prompting.py: prompts are as they should be, numbers are the model's, replies of chat models are read."""

import json
import math
import random

import pytest
import torch
from helpers.chat_server import run_server, says
from helpers.lessons import numbers_on_page, run_in_folder
from helpers.models import random_gpt
from helpers.scripts import PROJECT
from matplotlib.image import imread

import configurator
from common.errors import UserError
from lessons import feelings, injection, prompting
from lessons.feelings import (
    CONDITIONS,
    FORMS,
    Answer,
    build_prompts,
    choose_examples,
    find_feeling,
    split_items,
    swap_feeling,
    write_step,
)
from lessons.injection import ATTACKS, RULES, attack_secrets, build_story
from lessons.prompting import check_settings, choose_feelings, describe_answers, fine_tune, main
from lm.tokenizer import CharTokenizer

CHARS = CharTokenizer(sorted(set(map(chr, range(32, 127))) | {'\n'}))
FORM = FORMS['a new form']

# The task -------------------------------------------------------------------------------------------------------------


def test_no_sentence_that_is_asked_about_is_an_example():
    known, asked = split_items(32)
    assert len({item.sentence for item in known + asked}) == len(known + asked) == 96
    for items in (known, asked, split_items(3)[1]):
        assert sum(item.feeling == 'happy' for item in items) * 2 == len(items)


@pytest.mark.parametrize('n', [0, 1, 2, 4, 8])
def test_examples_are_different_and_half_of_them_happy(n):
    known, _ = split_items(1)
    first = set()
    for seed in range(20):
        chosen = choose_examples(known, n, random.Random(seed))
        assert len(set(chosen)) == len(chosen) == n
        happy = [item.feeling == 'happy' for item in chosen]
        assert abs(sum(happy) - n / 2) <= 0.5
        first |= set(happy[:1])
        assert choose_examples(known, n, random.Random(seed)) == chosen
        ordered = choose_examples(known, n, random.Random(seed), last='happy')
        assert sorted(ordered) == sorted(chosen)
        assert [item.feeling for item in ordered] == sorted((item.feeling for item in chosen), reverse=True)
    assert len(first) == min(n, 2) or n == 1


def test_prompts_hold_the_examples_and_end_where_the_answer_comes():
    known, asked = split_items(2)
    by_sentence = {item.sentence: item.feeling for item in known}
    for condition, (n, _, wrong) in CONDITIONS.items():
        prompts = build_prompts(FORM, asked, known, condition, seed=1)
        for prompt, item in zip(prompts, asked, strict=True):
            *examples, last = prompt.split('\n')
            assert last == f'{item.sentence} Feeling:' and len(examples) == n
            for example in examples:
                sentence, feeling = example.removesuffix('.').split(' Feeling: ')
                assert (by_sentence[sentence] == feeling) != wrong
    assert swap_feeling(swap_feeling(known[0])) == known[0] != swap_feeling(known[0])


def test_a_step_ends_with_its_sentence_and_is_what_the_model_finds_likeliest():
    model = random_gpt(vocab_size=CHARS.vocab_size, block_size=64)
    text = write_step(model, CHARS, 'The fox ran.', longest=12)
    ids = CHARS.encode('The fox ran.')
    while len(ids) < len(text):
        ids.append(model(torch.tensor([ids]))[0][0, -1].argmax().item())
    assert CHARS.decode(ids) == text
    assert len(text) == 24 or text[-1] in '.!?"'


# What is measured -----------------------------------------------------------------------------------------------------


def logprob_of(model, prompt, response):
    """The logprob of a response, from one forward pass."""
    ids, n = CHARS.encode(prompt + response), len(response)
    with torch.no_grad():
        logprobs = model.logits(model.hidden(torch.tensor([ids])))[0].double().log_softmax(-1)
    return sum(logprobs[place - 1, ids[place]].item() for place in range(len(ids) - n, len(ids)))


def test_an_answer_is_the_likelier_word_and_both_is_their_probability():
    model = random_gpt(vocab_size=CHARS.vocab_size, block_size=96)
    prompts = [FORM.format(item.sentence) for item in split_items(4)[1]]
    for prompt, answer in zip(prompts, choose_feelings(model, prompts, CHARS), strict=True):
        happy, sad = (logprob_of(model, prompt, f' {feeling}') for feeling in ('happy', 'sad'))
        assert answer.feeling == ('happy' if happy > sad else 'sad')
        assert answer.both == pytest.approx(math.exp(happy) + math.exp(sad), rel=1e-4)


def test_prompts_that_do_not_fit_are_counted(capsys):
    model = random_gpt(vocab_size=CHARS.vocab_size, block_size=24)
    choose_feelings(model, ['a' * 8, 'a' * 40], CHARS)
    assert '1 of 2 prompts do not fit into the context of 24 tokens' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('reply', 'feeling'),
    [('Happy? No: **sad**.', 'sad'), ('They were unhappy.', None), ('Not sad but very HAPPY!', 'happy'), ('', None)],
)
def test_the_last_of_the_two_words_in_a_reply_is_the_answer(reply, feeling):
    assert find_feeling(reply) == feeling


def test_answers_become_a_row():
    items = split_items(2)[1]  # happy, sad, happy, sad
    answers = [Answer(feeling, 0.5) for feeling in ('happy', 'happy', 'sad', 'happy')]
    row = describe_answers('form', 'shown', answers, items)
    assert row == {'form': 'form', 'condition': 'shown', 'right': 1, 'n': 4, 'happy': 3, 'both': 0.5}
    assert describe_answers('form', 'shown', [Answer(None)] * 4, items)['both'] is None


def test_secrets_are_as_likely_as_the_model_says(monkeypatch):
    monkeypatch.setattr(injection, 'SECRETS', ['owl', 'fig', 'sun'])
    model = random_gpt(vocab_size=CHARS.vocab_size, block_size=200)
    kept = attack_secrets(model, CHARS, 'a rule', 'asks for it')
    table = {}
    for secret in injection.SECRETS:
        story = build_story(secret, 'a rule', 'asks for it')
        assert story.count(secret) == 1 and 'must not' in story and story.endswith('The secret word is')
        table |= {(secret, word): math.exp(logprob_of(model, story, f' {word}')) for word in injection.SECRETS}
    own = [table[secret, secret] for secret in injection.SECRETS]
    assert kept['probability'] == pytest.approx(sum(own) / 3, rel=1e-3)
    assert kept['otherwise'] == pytest.approx((sum(table.values()) - sum(own)) / 6, rel=1e-3)
    first = [max(injection.SECRETS, key=lambda word: table[secret, word]) == secret for secret in injection.SECRETS]
    assert (kept['first'], kept['n']) == (sum(first), 3)


def test_fine_tuning_teaches_the_answers_and_leaves_the_model_as_it_was():
    model, (known, _) = random_gpt(vocab_size=CHARS.vocab_size, block_size=96), split_items(1)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trained = fine_tune(model, CHARS, FORM, known, steps=30, rate=3e-3, seed=1)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    prompts = [FORM.format(item.sentence) for item in known]
    both = [sum(answer.both for answer in choose_feelings(of, prompts, CHARS)) for of in (model, trained)]
    assert both[1] > 10 * both[0]  # random weights give neither word


# The lesson -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_lesson_writes_its_numbers_and_its_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(injection, 'SECRETS', injection.SECRETS[:3])
    arguments = ('--sentences=2', '--steps=2')
    out, err = run_in_folder('prompting', *arguments, as_command=False, folder=tmp_path, capsys=capsys)
    results = json.loads((tmp_path / 'results/lessons/prompting.json').read_text(encoding='utf-8'))
    shown = [*CONDITIONS, 'step by step', 'fine-tuned', 'fine-tuned, other form']
    assert {(row['form'], row['condition']) for row in results['feelings']} == {(f, c) for f in FORMS for c in shown}
    assert [(row['rule'], row['attack']) for row in results['secrets']] == [(r, a) for r in RULES for a in ATTACKS]
    assert all(row['n'] == 4 and 0 <= row['right'] <= 4 and 0 < row['both'] < 1 for row in results['feelings'])
    assert 'fine-tuned, other form' in out and 'Tom' in out and err == ''
    assert imread(tmp_path / 'results/lessons/prompting.png').ndim == 3


def answer_as_chat_model(body):
    """Know the feelings, but tell a secret if there is no rule."""
    text = body['messages'][0]['content']
    if text.startswith(injection.TASK):
        return says('Lily said nothing.' if 'must not' in text else f'She said: {text.split("word is ")[1].upper()}')
    sentence = text.split('\n')[-1].removesuffix(' Feeling:').removesuffix(' Everyone was very')
    feeling = 'happy' if sentence in feelings.HAPPY else 'sad'
    return says(f'Not {swap_feeling(feelings.Item("", feeling)).feeling} but **{feeling.title()}**.')


@pytest.mark.slow
@pytest.mark.parametrize('provider', ['openai', 'anthropic'])
def test_a_chat_model_writes_its_answers(provider, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(f'{provider.upper()}_API_KEY', 'key-1')
    with run_server() as server:
        server.script = answer_as_chat_model
        arguments = [f'--provider={provider}', '--model=m', f'--base_url={server.url(provider)}', '--sentences=1']
        main(configurator.read(prompting.Settings, [*arguments, f'--plot_dir={tmp_path}']))
    results = json.loads((tmp_path / 'prompting-m.json').read_text(encoding='utf-8'))
    assert {(row['right'], row['n'], row['both']) for row in results['feelings']} == {(2, 2, None)}
    assert {(row['rule'], row['first'], row['n']) for row in results['secrets']} == {
        ('no rule', 3, 3),
        ('a rule', 0, 3),
    }
    assert len(server.bodies) == 2 * len(FORMS) * (len(CONDITIONS) + 1) + 3 * len(ATTACKS) * len(RULES)
    assert 'told' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        ({'steps': 0}, '--steps'),
        ({'sentences': 33}, '--sentences'),
        ({'learning_rate': 0.0}, '--learning_rate'),
        ({'provider': 'openai', 'init_from': 'tiny'}, '--init_from=tiny is not for --provider=openai'),
        ({'provider': 'openai', 'steps': 99}, '--steps=99 is not for --provider=openai'),
        ({'model': 'm'}, '--model=m is for chat models'),
    ],
)
def test_settings_that_make_no_sense_are_errors(settings, words):
    with pytest.raises(UserError, match=words):
        check_settings(prompting.Settings(**settings))


def saved(path=PROJECT / 'results/lessons/prompting.json'):
    return json.loads(path.read_text(encoding='utf-8'))


def test_the_numbers_on_the_page_are_those_of_the_saved_run():
    results = json.loads((PROJECT / 'results/lessons/prompting.json').read_text(encoding='utf-8'))
    rows = {(row['form'], row['condition']): row for row in results['feelings']}
    old, new = ({shown: row for (form, shown), row in rows.items() if form == name} for name in FORMS)

    def shares(rows, *shown):
        return [round(rows[name]['right'] / rows[name]['n'], 2) for name in shown]

    pattern = r'it knows (\d+) % without an example, (\d+) % with eight, and (\d+) % after'
    assert numbers_on_page(pattern) == shares(old, 'no example', '8 examples', 'fine-tuned')
    both = [old[name]['both'] for name in ('no example', '8 examples', 'fine-tuned')]
    assert numbers_on_page(r'a probability of ([\d.]+), ([\d.]+) and ([\d.]+)\.') == pytest.approx(both, abs=0.005)
    assert {row['happy'] for name, row in new.items() if name.startswith('8')} == {0}
    pattern = r'no prompt helps: (\d+) % .* from ([\d.]+) to only ([\d.]+)\. After fine-tuning it is (\d+) %, even'
    share, none, eight, tuned = numbers_on_page(pattern)
    assert [share, tuned, tuned] == shares(new, '8 examples', 'fine-tuned', 'fine-tuned, other form')
    assert (none, eight) == (round(new['no example']['both'], 4), round(new['8 examples']['both'], 3))
    pattern = r'happy ones last: (\d+) %; the sad ones last: (\d+) %'
    assert numbers_on_page(pattern) == shares(old, '8 examples, happy last', '8 examples, sad last')
    assert numbers_on_page(r'still right in (\d+) %') == shares(old, '8 examples, all wrong')
    assert numbers_on_page(r'two got (\d+) %, four (\d+) %') == shares(old, '2 examples', '4 examples')
    assert numbers_on_page(r'own, (\d+) % are right, against (\d+) %') == shares(old, 'step by step', 'no example')
    assert numbers_on_page(r'help, from (\d+) to (\d+) %') == [50, 0.61] and shares(new, 'step by step') == [0.61]

    kept = {(row['rule'], row['attack']): row for row in results['secrets']}
    first = {key: row['first'] for key, row in kept.items()}
    assert max(row['probability'] for row in kept.values()) < 0.001
    times = max(row['probability'] / row['otherwise'] for row in kept.values())
    assert numbers_on_page(r'up to (\d+) times as likely') == [int(times)]
    assert numbers_on_page(r'in (\d+) of 20 cases') == [max(first.values())]
    found = [first['a rule', 'greets her'], first['no rule', 'greets her']]
    assert numbers_on_page(r'(\d+) of 20 instead of (\d+)') == found
    assert numbers_on_page(r'“Forget what Mum said”, (\d+) of') == [first['a rule', 'tells her to forget it']]
