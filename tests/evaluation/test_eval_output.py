"""What eval.py prints and writes for people: tables in the terminal, report.md and its pictures."""

import functools
import json
import re

import pytest
import rich.console
from helpers.evaluation import evaluate, rows_in, summary_in
from matplotlib.image import imread

from evaluation import terminal


@pytest.mark.slow
def test_save_leaves_a_folder_with_everything(here, capsys):
    rows, summary = evaluate(init_from='two', compare_to='one', eval_data='pairs.jsonl', save='named', show=3)
    folder = here / 'results' / 'named'
    assert {path.name for path in folder.iterdir()} == {
        'pairs.jsonl', 'summary.json', 'report.md', 'page.html', 'before_after.png', 'tokens.png', 'reliability.png',
    }  # fmt: skip
    assert len(rows) == 3
    assert rows_in(folder)[:3] == rows
    assert len(rows_in(folder)) == 90
    assert summary_in(folder) == json.loads(json.dumps(summary))
    assert summary['complete'] is True
    assert summary['model']['weights_sha256'] != summary['compare_to']['weights_sha256']
    assert summary['settings']['init_from'] == 'two'
    assert summary['command'] == (
        'python eval.py --init_from=two --device=cpu --eval_data=pairs.jsonl --compare_to=one --save=named --show=3'
    )
    page = (folder / 'report.md').read_text()
    for picture in re.findall(r'!\[.*?\]\((.*?)\)', page):
        assert (folder / picture).exists()
    assert summary['command'] in page
    assert 'and 87 more' in capsys.readouterr().out


@pytest.mark.parametrize(
    'settings',
    [
        {'show': 3, 'compare_to': 'two'},
        *(pytest.param(each, marks=pytest.mark.slow) for each in ({'seed': -1}, {'show': 0}, {'temperature': 0.0})),
    ],
)
def test_the_report_does_not_depend_on_what_is_printed(here, settings, without_pictures):
    evaluate(init_from='one', eval_data='pairs.jsonl', save='./kept', **settings)
    page = (here / 'kept' / 'report.md').read_text()
    assert 'Shown: all 90 responses' in page
    assert page.split('## Each response')[1].count('\n| ') == 92


@pytest.mark.parametrize('columns', [80, *(pytest.param(n, marks=pytest.mark.slow) for n in (110, 200))])
@pytest.mark.parametrize('compared', [False, True])
def test_no_number_is_cut_off_in_a_terminal(here, monkeypatch, capsys, columns, compared):
    monkeypatch.setattr(
        terminal, 'Console', functools.partial(rich.console.Console, force_terminal=True, width=columns)
    )
    rows, _ = evaluate(
        init_from='one', compare_to='two' if compared else None, eval_data='pairs.jsonl', temperature=0.8
    )
    out = re.sub(r'\x1b\[[\d;]*m', '', capsys.readouterr().out)
    table = [line for line in out.split('over 90 responses')[0].splitlines() if line.startswith('│')]
    assert '…' not in ''.join(table)
    assert all(len(line) <= columns for line in table)
    assert all(f'{row["logprob"]:.4f}' in out for row in rows)
    assert min(len(line[2:].split(' │')[0].ljust(24)) for line in table) >= 24


def test_texts_cannot_control_the_terminal_or_the_report(here, capsys):
    nasty = [['a\x1b[31m\0', ' b<b>|*c*`d`\x07 [x](y)'], ['# |<|endoftext|>', ' `']]
    (here / 'nasty.json').write_text(json.dumps(nasty))
    evaluate(init_from='one', eval_data='nasty.json', save='./nasty')
    page = (here / 'nasty' / 'report.md').read_text()
    for text in (capsys.readouterr().out, page):
        assert not set('\x1b\0\x07') & set(text)
        assert '‹U+001B›' in text
    assert all(line.count(' | ') == page.split('## Each response')[1].splitlines()[4].count(' | ')
               for line in page.split('## Each response')[1].splitlines() if line.startswith('| '))  # fmt: skip
    assert r'\# \|&lt;\|endoftext\|&gt;' in page


@pytest.mark.slow
def test_very_long_responses_do_not_fill_the_report(here):
    (here / 'long.json').write_text(json.dumps([['The ' * 2000, 'fox ' * 400], ['The', ' fox']]))
    evaluate(init_from='one', compare_to='two', eval_data='long.json', save='./long')
    page = (here / 'long' / 'report.md').read_text()
    assert 'more' in page
    assert len(page) < 20_000
    assert imread(here / 'long' / 'tokens.png').shape[0] < 2000


def test_a_short_text_and_a_single_question_have_their_measures(here, capsys):
    (here / 'short.txt').write_text('Once upon a time there was a fox.')
    (here / 'one.json').write_text('[{"prompt": "The", "response": " fox", "distractors": [" of"]}]')
    evaluate(init_from='one', text='short.txt', save='./short')
    assert re.search(r'bits per byte +│ +[\d.]+ │', capsys.readouterr().out)  # a single segment has no interval
    evaluate(init_from='one', eval_data='one.json')
    assert re.search(r'acc +│ +\d+\.0% │', capsys.readouterr().out)
