"""eval.py takes every setting of sample.py: it does for each pair what makes sense, and a note names the others."""

import ast
import dataclasses
import math
import re

import pytest
from helpers.evaluation import evaluate, page_of, rows_in, summary_in
from helpers.scripts import PROJECT

import eval as eval_script
import sample
import serve
from common.errors import UserError
from common.notes import forget_notes
from lm import checkpoint
from lm.settings import parse_budget, settings_of_models
from pictures.search_results import print_most_probable


@pytest.fixture(autouse=True)
def fresh_notes():
    """Let every note be printed once more."""
    forget_notes()


@pytest.fixture
def two_pairs(here):
    """A file of two pairs that fit into the context."""
    (here / 'two.json').write_text('[["The fox", " ran"], ["Once upon", " a time"]]')
    return {'init_from': 'one', 'eval_data': 'two.json', 'max_new_tokens': 2}


def test_eval_has_every_setting_of_sample_with_the_same_type():
    ours = {field.name: field.type for field in dataclasses.fields(eval_script.Settings)}
    theirs = {field.name: field.type for field in dataclasses.fields(sample.Settings)}
    assert theirs.items() <= ours.items()


def test_eval_uses_every_setting_of_sample_or_notes_that_it_does_not():
    """A setting that sample.py gains must be thought of here too: used, or named in a note."""
    shared = [PROJECT / 'lm' / f'{name}.py' for name in ('settings', 'responses', 'wording')]
    known = set()
    for path in [PROJECT / 'eval.py', *(PROJECT / 'evaluation').glob('*.py'), *shared]:
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            known |= {node.attr} if isinstance(node, ast.Attribute) else set()
            known |= {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()
    assert {field.name for field in dataclasses.fields(sample.Settings)} <= known


def test_beams_and_most_probable_continuations_are_printed_beside_each_response(two_pairs, capsys):
    two_pairs['max_new_tokens'] = 1
    rows, _ = evaluate(**two_pairs, beam_width=3, most_probable=2, num_samples=1, show_beams=True, plot_steps=2)
    out = capsys.readouterr().out
    model, tokenizer, _ = checkpoint.load_model('one', device='cpu')
    parts = out.split('\n  fixed: ')[1:]
    assert len(parts) == 2
    for part, row in zip(parts, rows, strict=True):
        assert f'logprob {row["logprob"]:.4f}' in part.splitlines()[0]
        assert part.count('  sample: ') == 1
        assert 'the best of 3 beams' in part
        assert 'the 2 most probable continuations' in part
        assert re.search(r'exact: [\d,]+ prefix', part)
        (picture,) = re.findall(r'the search as a tree: (\S+)', part)
        assert picture.endswith('beams.png')
        print_most_probable(
            model,
            tokenizer,
            eval_script.Settings(max_new_tokens=1, most_probable=2),
            tokenizer.encode_prompt(row['prompt']),
            None,
            parse_budget('None'),
        )
        alone = re.findall(r'^     logprob (\S+),', capsys.readouterr().out, re.MULTILINE)
        assert alone == re.findall(r'^     logprob (\S+),', part, re.MULTILINE)[-2:]


def test_html_writes_the_page_of_every_token_in_a_new_folder(two_pairs, here, capsys):
    rows, _ = evaluate(**two_pairs, html=True)
    (page,) = (here / 'results').glob('eval-one-*/page.html')
    assert str(page.relative_to(here)) in capsys.readouterr().out
    texts = page_of(page.parent)['texts']
    assert [text['sides'][0]['logprob'] for text in texts] == pytest.approx([row['logprob'] for row in rows], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    'settings',
    [
        {'start': 'The fox'},
        {'show_beams': True},
        {'length_penalty': 1.0},
        {'budget': '5s'},
        {'stop_at_eot': True},
        {'top_p': 0.5},
        {'stride': 7},
        {'text': 'two.json', 'beam_width': 2},
        {'text': 'two.json', 'most_probable': 2},
        {'text': 'two.json', 'separator': ''},
        {'text': 'two.json', 'boundary': 'separate'},
    ],
    ids=lambda settings: list(settings)[-1],
)
def test_a_setting_without_effect_is_a_note_and_not_an_error(two_pairs, capsys, settings):
    evaluate(**two_pairs | settings)
    assert f'note: --{list(settings)[-1]} has no effect here' in capsys.readouterr().err


@pytest.mark.slow
def test_with_words_every_setting_that_does_nothing_is_noted_and_no_other(here, capsys):
    (here / 'items.csv').write_text('text\nThe fox ran.\n')
    words = {'init_from': 'one', 'words': True, 'items': 'items.csv'}
    used = {'stride': 7, 'punctuation': 'apart', 'show': 2, 'save': 'kept', 'bos': True, 'compare_to': 'two'}
    evaluate(**words, **used)
    assert 'no effect' not in capsys.readouterr().err
    unused = {'start': 'The', 'temperature': 0.5, 'num_samples': 2, 'html': True, 'boundary': 'separate', 'seed': 5}
    evaluate(**words, **unused)
    said = re.findall('note: --(.*) has no effect here$', capsys.readouterr().err, re.MULTILINE)
    assert sorted(said) == sorted(unused)


@pytest.mark.parametrize('scored', [{'text': 'two.json'}, {'words': True, 'items': 'items.csv'}])
@pytest.mark.parametrize('other', [{'chat': True}, {'whole_text': 'True'}, {'fixed_response': ' ran'}])
def test_what_is_about_responses_is_refused_where_there_are_none(scored, other):
    with pytest.raises(UserError, match=f'--{list(scored)[-1]} and --{next(iter(other))} cannot be combined'):
        evaluate(init_from='one', **scored, **other)


@pytest.mark.parametrize('script', [eval_script, serve])
def test_resume_is_the_run_in_out_dir_also_where_it_is_compared_to(script):
    settings = settings_of_models(script.Settings(init_from='tiny', compare_to='resume', out_dir='mine'))
    assert [(each.init_from, each.out_dir) for each in settings] == [('tiny', 'mine'), ('resume', 'mine')]


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        ({'beam_width': 0}, '--beam_width=0'),
        ({'most_probable': -1}, '--most_probable=-1'),
        ({'budget': 'an hour'}, '--budget=an hour'),
        ({'length_penalty': 99.0}, '--length_penalty=99'),
        ({'beam_width': 50, 'show_beams': True}, 'draws at most'),
    ],
)
def test_invalid_values_are_refused_as_in_sample(two_pairs, settings, words):
    with pytest.raises(UserError, match=words):
        evaluate(**two_pairs | settings)


# What is unusual about a pair ----------------------------------------------------------------------------------------


def test_a_prompt_that_ends_inside_a_word_is_scored_whole_and_said_everywhere(here, capsys, without_pictures):
    (here / 'inside.json').write_text('[["The fox", " ran"], ["The little fores", "t in the house"]]')
    rows, summary = evaluate(init_from='one', eval_data='inside.json', separator='', save='./kept')
    assert [row.get('boundary') for row in rows] == [None, 'split']
    tokenizer = checkpoint.load_model('one', device='cpu')[1]
    prompt_ids, response_ids = tokenizer.encode_pair('The little fores', 't in the house')
    assert tokenizer.decode([*prompt_ids, *response_ids]) == 'The little forest in the house'
    assert rows[1]['pieces'] == tokenizer.pieces(response_ids)
    assert rows_in(here / 'kept')[1]['boundary_note'].startswith('prompt and response meet inside a token')
    assert summary['unusual']['model']['split']['pairs'] == 1
    out, err = capsys.readouterr()
    assert 'note: pair 1: prompt and response meet inside a token; they were encoded separately' in err
    assert 'separately)' in out
    page = (here / 'kept' / 'report.md').read_text()
    assert 'Pair 1: prompt and response meet inside a token' in page
    assert '(encoded separately)' in page.split('## Each response')[1]


def test_a_prompt_that_is_cut_is_reported_with_its_tokens(here, capsys, without_pictures):
    (here / 'long.json').write_text('[["The fox", " ran"], ["' + 'fox ' * 646 + '", "ran"]]')
    rows, _ = evaluate(init_from='one', eval_data='long.json', save='./kept')
    tokenizer = checkpoint.load_model('one', device='cpu')[1]
    n = sum(map(len, tokenizer.encode_pair('fox ' * 646, 'ran')))
    assert [row.get('prompt_tokens_cut') for row in rows] == [None, n - 1 - 48]
    said = f'the prompt does not fit into the context of 48 tokens, and {n - 49:,} tokens at its beginning are cut off'
    assert f'note: pair 1: {said}' in capsys.readouterr().err
    assert f'Pair 1: {said}' in (here / 'kept' / 'report.md').read_text()
    assert summary_in(here / 'kept')['unusual']['model']['prompt_cut']['most'] == n - 49


def test_a_space_between_prompt_and_response_is_said_and_can_be_turned_off(here, capsys):
    single = {'init_from': 'one', 'start': 'I live in', 'fixed_response': 'a shoe'}
    (with_space,), _ = evaluate(**single)
    assert 'note: a space was put between prompt and response' in capsys.readouterr().err
    (without,), _ = evaluate(**single, separator='')
    assert 'a space was put' not in capsys.readouterr().err
    assert ''.join(with_space['pieces']) == '·a·shoe'
    assert ''.join(without['pieces']) == 'a·shoe'
    (spaced,), _ = evaluate(**single | {'fixed_response': ' a shoe'}, separator='')
    assert math.isclose(spaced['logprob'], with_space['logprob'], abs_tol=1e-6)


def test_the_prompt_from_a_file_of_windows_is_the_same_prompt(here, capsys):
    (here / 'prompt.txt').write_bytes('\ufeffI live in\r\n'.encode())
    rows = [
        evaluate(init_from='one', start=start, fixed_response=' a shoe')[0][0]
        for start in ('I live in', 'FILE:prompt.txt')
    ]
    assert rows[0] == rows[1]
