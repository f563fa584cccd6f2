"""What stands before a text: a BOS, a chat template, or nothing; against transformers' own logprobs."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers.chat_templates import STYLES, apply_template, save_chat_model
from helpers.networks import random_network
from helpers.piece_tokenizers import save_llama_tokenizer
from helpers.tokenizers import CODE, PROSE
from helpers.world import call, number_after, samples_in
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.errors import UserError
from common.notes import forget_notes
from common.strings import show_invisible
from pictures.inputs import TextSettings, load_subject

SMALL = {'hidden_size': 64, 'max_position_embeddings': 64, 'num_hidden_layers': 2}
TALK = [{'role': 'user', 'content': 'Who made the fog?'}, {'role': 'assistant', 'content': 'An old woman'}]
TEXT = 'The fog had a boat.\n' * 30

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MPLBACKEND', 'Agg')
    forget_notes()
    return tmp_path


def save_llama():
    """Write a Llama whose tokenizer puts <s> before each text."""
    n_ids = save_llama_tokenizer(Path('llama'))
    random_network('llama', vocab_size=n_ids, **SMALL).save_pretrained('llama')


def save_plain():
    """Write a Llama whose tokenizer has no special token at all; return transformers' tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=350, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([PROSE, CODE], trainer)
    roles = {'bos_token_id': None, 'eos_token_id': None, 'pad_token_id': None}
    random_network('llama', vocab_size=tokenizer.get_vocab_size(), **SMALL, **roles).save_pretrained('plain')
    tokenizer.save('plain/tokenizer.json')
    with open('plain/tokenizer_config.json', 'w') as file:
        json.dump({'tokenizer_class': 'PreTrainedTokenizerFast'}, file)
    return AutoTokenizer.from_pretrained('plain')


def logprobs_of(name, ids):
    """Return transformers' logprob of each id after the first, in float64."""
    network = AutoModelForCausalLM.from_pretrained(name)
    with torch.no_grad():
        logprobs = network(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [logprobs[place, id].item() for place, id in enumerate(ids[1:])]


def logprob_printed(capsys):
    """Return the model's logprob that sample.py printed."""
    (_, _, model), *_ = samples_in(capsys.readouterr().out)
    return number_after('logprob', model)


def summary_and_rows(name):
    """Return what eval.py --save wrote."""
    with open(f'results/{name}/summary.json') as summary, open(f'results/{name}/pairs.jsonl') as rows:
        return json.load(summary), [json.loads(line) for line in rows]


@pytest.mark.parametrize('bos', [None, True, False])
def test_a_bos_is_kept_put_or_left_out_as_in_transformers(capsys, bos):
    save_llama()
    pair = ('--start=The fog', '--fixed_response= had a boat', '--temperature=1')
    call('sample.py', '--init_from=llama', f'--bos={bos}', *pair)
    ids = AutoTokenizer.from_pretrained('llama').encode('The fog had a boat', add_special_tokens=bos is not False)
    expected = math.fsum(logprobs_of('llama', ids)[-4:])
    printed = capsys.readouterr()
    (_, _, model), *_ = samples_in(printed.out)
    assert '(4 tokens)' in model
    assert number_after('logprob', model) == pytest.approx(expected, rel=1e-5)
    assert ('<s> is left out' if bos is False else 'puts <s> before each text') in printed.err


def test_a_bos_that_the_tokenizer_does_not_put_itself(capsys):
    save_chat_model_here('chatml')
    call('sample.py', '--init_from=chatml', '--bos=True', '--start=The fog', '--fixed_response= was', '--temperature=1')
    theirs = AutoTokenizer.from_pretrained('chatml')
    ids = theirs.encode('<|endoftext|>The fog was')
    n = len(theirs.encode(' was'))
    assert ids[0] == theirs.eos_token_id
    assert logprob_printed(capsys) == pytest.approx(math.fsum(logprobs_of('chatml', ids)[-n:]), rel=1e-5)


def save_chat_model_here(style, **settings):
    save_chat_model(Path(style), style, **settings)


def test_a_bos_in_results_pictures_and_resumed_evaluations():
    save_llama()
    with open('pairs.json', 'w') as file:
        json.dump([['The fog', ' had a boat'], ['', 'The fog']], file)
    arguments = ('--init_from=llama', '--eval_data=pairs.json', '--save=here')
    call('eval.py', *arguments, '--bos=False')
    summary, rows = summary_and_rows('here')
    ids = AutoTokenizer.from_pretrained('llama').encode('The fog had a boat', add_special_tokens=False)
    assert rows[0]['logprob'] == pytest.approx(math.fsum(logprobs_of('llama', ids)[-rows[0]['tokens'] :]), rel=1e-5)
    assert summary['settings']['bos'] is False
    assert (summary['model']['front'], summary['model']['start']) == (None, '<s>')  # before an empty prompt
    with pytest.raises(UserError, match='started with another bos'):
        call('eval.py', *arguments, '--bos=True', '--resume_eval')
    for bos in (False, None):
        subject = load_subject(TextSettings(init_from='llama', bos=bos, start='The fog'))
        assert subject.pieces == ['<s>'] * (bos is None) + ['·The', '·fog']


def test_a_bos_that_there_is_not_is_refused():
    save_plain()
    with pytest.raises(UserError, match='no token that begins a text'):
        call('sample.py', '--init_from=plain', '--bos=True')


def test_without_bos_and_eos_a_text_is_scored_from_its_second_token(capsys):
    theirs = save_plain()
    with open('text.txt', 'w') as file:
        file.write(TEXT)
    save_llama()
    call('eval.py', '--init_from=plain', '--text=text.txt', '--stride=64', '--save=text', '--compare_to=llama')
    summary, rows = summary_and_rows('text')
    ids = theirs.encode(TEXT)
    first = len(theirs.decode(ids[:1]))
    assert summary['tokens'] == sum(row['tokens'] for row in rows) == len(ids) - 1
    assert summary['bytes'] == len(TEXT) - first
    assert sum(row['before']['bytes'] for row in rows) == len(TEXT)  # Llama's are scored after <s>
    ends = [*range(64, len(ids), 64), len(ids)]
    parts = [logprobs_of('plain', ids[:64])]  # the first segment has no token before it
    for start, end in pairwise(ends):  # the others see as much as fits
        parts.append(logprobs_of('plain', ids[end - 65 : end])[start - end :])
    assert [row['logprob'] for row in rows] == pytest.approx(list(map(math.fsum, parts)), rel=1e-5)
    total = math.fsum(map(math.fsum, parts))
    bits = summary['measures']['model']['bits_per_byte']['value']
    assert bits == pytest.approx(-total / math.log(2) / (len(TEXT) - first), rel=1e-5)
    assert 'first token has no probability' in capsys.readouterr().err
    with open('results/text/report.md') as report:
        assert 'The first token of the text has no probability' in report.read()


def test_without_bos_and_eos_a_response_without_prompt_is_scored_from_its_second_token(capsys):
    theirs = save_plain()
    ids = theirs.encode('The fog had a boat')
    call('sample.py', '--init_from=plain', '--start=', '--fixed_response=The fog had a boat', '--temperature=1')
    printed = capsys.readouterr()
    (text, _, model), *_ = samples_in(printed.out)
    assert text == 'The fog had a boat'
    assert f'({len(ids) - 1} tokens)' in model
    assert number_after('logprob', model) == pytest.approx(math.fsum(logprobs_of('plain', ids)), rel=1e-5)
    assert 'has no probability and is not counted' in printed.err
    call('eval.py', '--init_from=plain', '--fixed_response=The fog had a boat', '--save=one')
    _, (row,) = summary_and_rows('one')
    assert (row['tokens'], row['boundary']) == (len(ids) - 1, 'first')
    assert row['bytes'] == len('The fog had a boat') - len(theirs.decode(ids[:1]))
    with pytest.raises(UserError, match='the prompt is empty'):
        call('sample.py', '--init_from=plain', '--start=')
    for quantity in ('start', 'ratio'):
        with pytest.raises(UserError, match='so a whole text has no probability'):
            call('sample.py', '--init_from=plain', '--fixed_response=The fog', f'--whole_text={quantity}')
    capsys.readouterr()
    call('eval.py', '--init_from=plain', '--fixed_response=The fog', '--whole_text=True')
    assert 'over all ways to cut' in capsys.readouterr().out


# Chat templates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('score_end', [False, True])
@pytest.mark.parametrize('style', ['chatml', 'llama3', 'gemma'])
def test_a_response_in_a_chat_has_transformers_logprob(capsys, style, score_end):
    save_chat_model_here(style)
    with open('talks.jsonl', 'w') as file:
        for row in ({'messages': TALK}, {'prompt': 'Who?', 'response': 'An old woman'}):
            file.write(json.dumps(row) + '\n')
    arguments = (f'--init_from={style}', '--chat=True', f'--score_end={score_end}')
    call('eval.py', *arguments, '--eval_data=talks.jsonl', '--save=chat')
    summary, rows = summary_and_rows('chat')
    for row, messages in zip(rows, (TALK, [{'role': 'user', 'content': 'Who?'}, TALK[-1]]), strict=True):
        whole = apply_template(style, messages, add_generation_prompt=False)
        n = len(apply_template(style, messages[:-1]))
        end = AutoTokenizer.from_pretrained(style).convert_tokens_to_ids(STYLES[style][2])
        last = len(whole) - whole[::-1].index(end) - (not score_end)
        assert row['token_logprobs'] == pytest.approx(logprobs_of(style, whole)[n - 1 : last - 1], rel=1e-4)
        assert row['bytes'] == len('An old woman')
        assert len(row['prompt_pieces']) == n
    with open('results/chat/report.md') as report, open('results/chat/page.html') as page:
        assert 'went through the chat template' in report.read()
        assert STYLES[style][1][0].strip('<>') in page.read()
    assert rows[0]['prompt'] == 'user: Who made the fog?'
    assert summary['settings']['chat'] is True
    capsys.readouterr()
    call('sample.py', *arguments, '--start=Who?', '--fixed_response=An old woman', '--temperature=1')
    assert logprob_printed(capsys) == pytest.approx(rows[1]['logprob'], abs=1e-3)


def test_a_chat_with_a_gpt2_as_in_transformers(capsys):
    save_chat_model_here('chatml', kind='gpt2')
    call('sample.py', '--init_from=chatml', '--chat=True', '--system=Be brief.', '--start=Who?', '--fixed_response=An')
    assert 'Be brief.<|im_end|>' in capsys.readouterr().out
    call('eval.py', '--init_from=chatml', '--chat=True', '--start=Who?', '--fixed_response=An old woman', '--save=x')
    _, (row,) = summary_and_rows('x')
    ids = apply_template('chatml', [{'role': 'user', 'content': 'Who?'}])
    ids += AutoTokenizer.from_pretrained('chatml').encode('An old woman')
    assert row['logprob'] == pytest.approx(math.fsum(logprobs_of('chatml', ids)[-row['tokens'] :]), rel=1e-5)


def test_a_chat_stops_where_the_turn_ends_unless_told_otherwise(capsys):
    save_chat_model_here('chatml')
    theirs, network = AutoTokenizer.from_pretrained('chatml'), AutoModelForCausalLM.from_pretrained('chatml')
    prompt = apply_template('chatml', [{'role': 'user', 'content': 'Who?'}])
    settings = {'max_new_tokens': 30, 'do_sample': False, 'pad_token_id': 0, 'eos_token_id': None}
    answer = network.generate(torch.tensor([prompt]), **settings)[0, len(prompt) :].tolist()
    end = answer[8]  # let this token end a turn
    with open('chatml/generation_config.json', 'w') as file:
        json.dump({'eos_token_id': [theirs.convert_tokens_to_ids('<|im_end|>'), end]}, file)
    arguments = ('--init_from=chatml', '--start=Who?', '--max_new_tokens=30', '--temperature=0')
    for more, n in (((), answer.index(end) + 1), (('--stop_at_eot=False',), 30)):
        capsys.readouterr()
        call('sample.py', *arguments, '--chat=True', *more)
        (text, _, model), *_ = samples_in(capsys.readouterr().out)
        assert f'({n} token' in model
        assert text.endswith(show_invisible(theirs.decode(answer[:n])))


def test_another_chat_is_not_resumed():
    save_chat_model_here('chatml')
    with open('talks.jsonl', 'w') as file:
        file.write(json.dumps({'messages': TALK}))
    arguments = ('--init_from=chatml', '--eval_data=talks.jsonl', '--save=chat', '--chat=True')
    call('eval.py', *arguments)
    call('eval.py', *arguments, '--resume_eval')
    for more, words in (('--system=Be brief.', 'another system'), ('--score_end=True', 'another score_end')):
        with pytest.raises(UserError, match=words):
            call('eval.py', *arguments, more, '--resume_eval')
    with open('chatml/chat_template.jinja', 'a') as file:
        file.write(' ')
    with pytest.raises(UserError, match='another model'):
        call('eval.py', *arguments, '--resume_eval')


def test_what_needs_a_chat_says_so():
    with open('talks.jsonl', 'w') as file:
        file.write(json.dumps({'messages': TALK}) + '\n')
    refused = {
        ('eval.py', '--eval_data=talks.jsonl'): 'eval.py --chat=True scores',
        ('eval.py', '--text=talks.jsonl', '--chat=True'): '--text and --chat',
        ('sample.py', '--system=Be brief.'): '--system needs --chat',
        ('sample.py', '--score_end=True'): '--score_end needs --chat',
        ('sample.py', '--chat=True'): 'tiny-stories has no chat template',
        ('eval.py', '--chat=True', '--whole_text=start'): 'special tokens of a chat template are no text',
        ('eval.py', '--chat=True', '--whole_text=True', '--score_end=True'): '--score_end and --chat',
    }
    for arguments, words in refused.items():
        with pytest.raises(UserError, match=words):
            call(*arguments)
