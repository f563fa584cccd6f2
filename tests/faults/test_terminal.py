"""What reaches the terminal: closed, full and broken streams, escape sequences in files, Ctrl-C at the start."""

import json
import re
import signal
import time
from pathlib import Path

import pytest
import torch

from faults.harness import assert_one_line, assert_went_well, run, start

TINY = ('--init_from=tiny', '--device=cpu', '--max_new_tokens=2')
SCRIPTS = [
    ('sample.py', TINY),
    ('sample.py', (*TINY, '--num_samples=2')),
    ('sample.py', (*TINY, '--beam_width=2')),
    ('eval.py', (*TINY, '--fixed_response=upon')),
    ('prepare_bin.py', ('--input=a.txt', '--dataset=a', '--tokenizer=tiny')),
    ('export.py', ('--init_from=tiny', '--overwrite=True')),
    ('visualize.py', ('layers', '--init_from=tiny')),
    ('train.py', ('--help',)),
]


@pytest.fixture
def here(tmp_path):
    (tmp_path / 'a.txt').write_text('One.\n\n\nTwo.\n\n\nThree.')
    return tmp_path


@pytest.mark.situation('stdout or stderr is closed, full or without a reader')
@pytest.mark.parametrize(('script', 'arguments'), SCRIPTS)
def test_stdout_is_full(here, script, arguments):
    assert_one_line(run(script, *arguments, cwd=here, stdout='full'), 'No space left')


@pytest.mark.situation('stdout or stderr is closed, full or without a reader')
@pytest.mark.parametrize('streams', [{'stdout': 'closed'}, {'stdout': 'broken'}, {'stderr': 'closed'}], ids=str)
@pytest.mark.parametrize(('script', 'arguments'), SCRIPTS)
def test_a_stream_is_closed_or_has_no_reader(here, script, arguments, streams):
    outcome = run(script, *arguments, cwd=here, **streams)
    assert_went_well(outcome)
    assert not outcome.lines
    if 'closed' in streams.values() and 'stdout' in streams:
        assert 'note: stdout is closed' in outcome.err


@pytest.mark.situation('stdout or stderr is closed, full or without a reader')
def test_all_streams_are_closed_at_once(here):
    outcome = run('sample.py', *TINY, cwd=here, stdin='closed', stdout='closed', stderr='closed', fresh=True)
    assert outcome.code == 0


@pytest.mark.situation('MPLBACKEND names no backend')
@pytest.mark.parametrize(
    ('script', 'arguments'), [('sample.py', (*TINY, '--show_probs=True')), ('visualize.py', ('layers', *TINY[:2]))]
)
def test_mplbackend_names_no_backend(here, script, arguments):
    outcome = run(script, *arguments, cwd=here, env={'MPLBACKEND': 'bogus'}, fresh=True)
    assert_went_well(outcome)
    assert outcome.err.count('note: MPLBACKEND=bogus') == 1
    assert list(here.rglob('*.png'))


@pytest.mark.situation('Ctrl-C while Python imports')
@pytest.mark.parametrize('script', ['sample.py', 'eval.py', 'train.py', 'prepare_bin.py', 'export.py', 'visualize.py'])
def test_ctrl_c_while_python_imports(here, script):
    running = start(script, 'layers' if script == 'visualize.py' else '--seed=1', cwd=here, fresh=True)
    maps = Path(f'/proc/{running.pid}/maps')
    while 'site-packages' not in maps.read_text(errors='replace'):  # the first library of the many that are imported
        time.sleep(0.002)
    running.send_signal(signal.SIGINT)
    outcome = running.wait()
    assert (outcome.code, outcome.lines) == (130, ['interrupted'])


ESCAPE = '\x1b]0;owned\x07\x1b[2J\x9b31m\u202eleft\b\r'
RAW = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]')


def assert_nothing_raw(outcome):
    """Check that no control character but newline and tab was printed."""
    assert 'Traceback' not in outcome.err
    for text in (outcome.out, outcome.err):
        assert not RAW.search(text), ascii(text)
    assert 'U+001B' in outcome.out + outcome.err


@pytest.mark.situation('escape sequences in a file')
@pytest.mark.parametrize('more', [(), ('--num_samples=2',), ('--beam_width=2',), ('--most_probable=1',)], ids=str)
def test_escape_sequences_in_a_prompt(here, more):
    (here / 'prompt.txt').write_text(f'Once {ESCAPE}x')
    assert_nothing_raw(run('sample.py', *TINY, '--start=FILE:prompt.txt', *more, cwd=here))


@pytest.mark.situation('escape sequences in a file')
@pytest.mark.parametrize('more', [(), ('--num_samples=1',), ('--beam_width=2',), ('--save=s',)], ids=str)
def test_escape_sequences_in_pairs(here, more):
    pairs = [{'id': f'{n}{ESCAPE}', 'prompt': f'Once {ESCAPE}', 'response': f'upon {ESCAPE}'} for n in range(2)]
    (here / 'pairs.json').write_text(json.dumps(pairs))
    assert_nothing_raw(run('eval.py', *TINY, '--eval_data=pairs.json', *more, cwd=here))
    if more == ('--save=s',):  # what is written stays exact
        rows = (here / 'results' / 's' / 'pairs.jsonl').read_text(encoding='utf-8').splitlines()
        assert [json.loads(row)['response'] for row in rows] == [pair['response'] for pair in pairs]


@pytest.mark.situation('escape sequences in a file')
@pytest.mark.parametrize(
    'pairs',
    [
        [{'id': ESCAPE, 'prompt': 'a', 'response': 'b'}] * 2,
        [{f'key{ESCAPE}': 'a', 'response': 'b'}],
        [{'prompt': 'a', 'response': 'b', f'{ESCAPE}': 1}, {f'x{ESCAPE}': 1}],
    ],
    ids=['id', 'key', 'keys'],
)
def test_escape_sequences_in_pairs_that_are_refused(here, pairs):
    (here / 'pairs.json').write_text(json.dumps(pairs))
    outcome = run('eval.py', *TINY, '--eval_data=pairs.json', cwd=here)
    assert_one_line(outcome)
    assert not RAW.search(outcome.err.rstrip('\n'))


@pytest.mark.situation('escape sequences in a file')
def test_escape_sequences_in_names_of_weights_and_columns(here):
    torch.save({'model': {f'name{ESCAPE}': torch.zeros(2)}, 'model_args': {'n_layer': 1}}, here / 'x.pt')
    (here / 'a.csv').write_text(f'text{ESCAPE},"more{ESCAPE}"\nabc def ghi,xyz def ghi\nabc xyz ghi,one two three\n')
    for script, *arguments in (
        ('sample.py', '--init_from=x.pt'),
        ('prepare_bin.py', '--input=a.csv', '--dataset=a', '--tokenizer=tiny'),
    ):
        outcome = run(script, *arguments, cwd=here)
        assert_one_line(outcome)
        assert not RAW.search(outcome.err), ascii(outcome.err)
