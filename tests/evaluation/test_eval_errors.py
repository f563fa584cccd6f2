"""Mistakes in settings and files: eval.py says in one line what is wrong."""

import re
import subprocess
import sys

import pytest
from helpers.evaluation import evaluate, rows_in, summary_in
from helpers.scripts import PROJECT, assert_friendly_error, run_script

import configurator
import eval as eval_script
from common.errors import UserError

REFUSED = [
    (['--boundary=apart'], ['--boundary=apart', 'joint', 'separate']),
    (['--resume_eval=True'], ['--save']),
    (['--resume_eval=True', '--save=./new'], ['new', 'no evaluation']),
    (['--resamples=0'], ['--resamples=0']),
    (['--show=-1'], ['--show=-1']),
    (['--text=nothing'], ['--text=nothing', 'neither']),
    (['--text=pairs.jsonl', '--fixed_response=a'], ['--text', '--fixed_response']),
    (['--text=pairs.jsonl', '--stride=0'], ['--stride=0', '1 to 48']),
    (['--compare_to=nowhere/at/all'], ['nowhere/at/all']),
    (['--save=pairs.jsonl/x'], ['--save', 'pairs.jsonl/x']),
]


@pytest.mark.parametrize(('arguments', 'words'), REFUSED, ids=[' '.join(arguments) for arguments, _ in REFUSED])
def test_invalid_settings_are_refused(here, arguments, words):
    basis = ['--init_from=one', '--device=cpu', '--eval_data=pairs.jsonl']
    with pytest.raises(UserError) as error:
        eval_script.eval(configurator.read(eval_script.Settings, [*basis, *arguments]))
    for word in words:
        assert word in str(error.value)


@pytest.mark.slow
def test_a_bad_pair_in_the_middle_is_found_before_anything_is_scored(here, capsys):
    with open('pairs.jsonl', 'a') as file:
        file.write('{"prompt": "Once"}\n')
    arguments = ('--init_from=one', '--device=cpu', '--eval_data=pairs.jsonl')
    process = run_script('eval.py', *arguments, cwd=here)
    assert_friendly_error(process, 'pairs.jsonl: pair 90 has none of the keys response', '--skip_bad=True')
    evaluate(init_from='one', eval_data='pairs.jsonl', skip_bad=True)
    out, err = capsys.readouterr()
    assert re.match(r'pairs\.jsonl: pair 90 has none of the keys response.*; left out\n', err)
    assert 'over 90 responses' in out


def test_what_was_left_out_is_printed_and_written_down(here, without_pictures):
    (here / 'few.jsonl').write_text('["The", " fox"]\n["The"]\n{"no\n["The", " bear"]\n')
    _, summary = evaluate(init_from='one', eval_data='few.jsonl', skip_bad=True, save='./few')
    assert (summary['rows'], summary['data']['left_out']) == (2, 2)
    assert '2 of 4 pairs were invalid and are left out' in (here / 'few' / 'report.md').read_text()
    (here / 'none.jsonl').write_text('["The"]\n')
    with pytest.raises(UserError, match='nothing is left'):
        evaluate(init_from='one', eval_data='none.jsonl', skip_bad=True)


def test_skip_bad_is_not_offered_if_all_pairs_are_bad(here):
    (here / 'none.jsonl').write_text('{"title": "a"}\n' * 3)
    with pytest.raises(UserError, match=r'its keys are title.*none of its 3 items is a pair') as error:
        evaluate(init_from='one', eval_data='none.jsonl')
    assert 'skip_bad' not in str(error.value)
    with pytest.raises(UserError) as error:
        evaluate(init_from='chars', fixed_response='')
    assert 'skip_bad' not in str(error.value)


@pytest.mark.slow
def test_a_closed_pipe_does_not_leave_it_unfinished(here):
    script = f'{sys.executable} {PROJECT}/eval.py --init_from=one --device=cpu --eval_data=pairs.jsonl --save=./kept'
    process = subprocess.run(['bash', '-o', 'pipefail', '-c', f'{script} | head -2'], cwd=here, capture_output=True)
    assert process.returncode == 0, process.stderr
    assert all(line.startswith(b'note: ') for line in process.stderr.splitlines())
    assert summary_in(here / 'kept')['complete'] is True
    assert len(rows_in(here / 'kept')) == 90
