"""The harness itself: a script ends as it does for a person, and faults strike where they should."""

import os
import shutil
import signal
import time

import pytest
from helpers.scripts import PROJECT, run_script

from faults.harness import Fault, assert_one_line, assert_went_well, run, start

pytestmark = pytest.mark.situation('none: the tests themselves', 0)
SAMPLE = ('--init_from=tiny', '--device=cpu', '--max_new_tokens=5')


def test_a_forked_script_says_what_a_new_interpreter_says(tmp_path):
    for arguments in (SAMPLE, ('--init_from=tiny', '--top_k=0')):
        forked, fresh = (run('sample.py', *arguments, cwd=tmp_path, fresh=new) for new in (False, True))
        alone = run_script('sample.py', *arguments, cwd=tmp_path, fresh=True)
        for outcome in (forked, fresh):
            assert (outcome.code, outcome.out, outcome.err) == (alone.returncode, alone.stdout, alone.stderr)
        assert forked.peak_bytes > 10**8


def test_the_page_shows_how_many_situations_there_are():
    """If this fails: python -m tests.faults.count --write."""
    counted = run_script('tests.faults.count', cwd=PROJECT)
    assert counted.returncode == 0, counted.stderr
    page = (PROJECT / 'docs' / 'what_survives.md').read_text(encoding='utf-8')
    assert page.endswith(f'\n{counted.stdout}')


def test_limits_of_time_and_memory(tmp_path):
    assert run('sample.py', *SAMPLE, cwd=tmp_path, seconds=0.05).killed_for == 'time'
    assert run('sample.py', *SAMPLE, cwd=tmp_path, memory=2 * 10**8).killed_for == 'memory'
    os.mkfifo(tmp_path / 'pipe')
    assert run('sample.py', '--init_from=pipe', cwd=tmp_path, seconds=3).killed_for in ('', 'time')


def test_streams_and_signals(tmp_path):
    assert_went_well(run('sample.py', *SAMPLE, cwd=tmp_path, stderr='closed'))
    assert run('sample.py', *SAMPLE, cwd=tmp_path, stdout='broken').code == 0
    running = start('sample.py', '--init_from=tiny', '--device=cpu', '--max_new_tokens=100000', cwd=tmp_path)
    time.sleep(1)
    running.send_signal(signal.SIGINT)
    outcome = running.wait()
    assert outcome.code == 130
    assert outcome.lines == ['interrupted']


def test_points_of_the_file_layer(tmp_path):
    (tmp_path / 'a.txt').write_text('one\n\n\ntwo\n\n\nthree')
    prepare = ('prepare_bin.py', '--input=a.txt', '--dataset=a', '--tokenizer=tiny')
    points = run(*prepare, cwd=tmp_path, fault=Fault('count')).points
    assert any(point.startswith('write ') and 'train.bin' in point for point in points)
    assert any(point.startswith('rename ') for point in points)
    first_write = next(n for n, point in enumerate(points, 1) if point.startswith('write '))
    for fault in (Fault('kill', len(points)), Fault('kill', len(points) + 1), Fault('full', first_write)):
        shutil.rmtree(tmp_path / 'data')
        outcome = run(*prepare, cwd=tmp_path, fault=fault)
        if fault.mode == 'full':
            assert_one_line(outcome, 'No space left')
        elif fault.point > len(points):
            assert_went_well(outcome)
        else:
            assert outcome.code == -signal.SIGKILL
