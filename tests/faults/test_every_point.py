"""Every script that writes, killed at every change to a file, and with a disk that is full from there on.

After each, what is on disk is all old or all new, and doing it again gives what an undisturbed run gives.
"""

import shutil
import signal

import pytest

from faults.harness import Fault, assert_one_line, assert_went_well, run
from faults.jobs import JOBS, state_of

# How many changes each makes; a test fails if there are more or fewer, so that the table of counts stays true.
POINTS = {
    'Prepare': 35,
    'Train': 30,
    'Evaluate': 33,
    'ResumeEvaluation': 31,
    'Export': 46,
    'Charts': 10,
    'Page': 6,
    'Picture': 11,
}


KINDS = {'kill': 'killed at a change to a file', 'full': 'disk full from a change on'}
CASES = [
    pytest.param(
        *(name, mode), id=f'{name}-{mode}', marks=pytest.mark.situation(f'{kind}: {JOBS[name].script}', points)
    )
    for mode, kind in KINDS.items()
    for name, points in POINTS.items()
]


@pytest.mark.parametrize(('name', 'mode'), CASES)
def test_at_every_change_to_a_file(world, tmp_path, name, mode):
    job, base = JOBS[name](), shutil.copytree(world.folder, tmp_path / 'base')
    job.set_up(base)
    here = shutil.copytree(base, tmp_path / 'here')
    whole = run(job.script, *job.arguments, cwd=here, fault=Fault('count'))
    assert_went_well(whole)
    result = job.result(here)
    assert len(whole.points) == POINTS[name], '\n'.join(whole.points)
    seen = {state_of(base)}
    for point in range(1, len(whole.points) + 1):
        shutil.rmtree(here)
        shutil.copytree(base, here)
        outcome = run(job.script, *job.arguments, cwd=here, fault=Fault(mode, point))
        where = f'{mode} at {point}: {whole.points[point - 1]}'
        if mode == 'kill':
            assert outcome.code == -signal.SIGKILL, (where, outcome)
        elif outcome.code:
            assert_one_line(outcome, 'No space left on device')
        state = state_of(here)
        if state not in seen:
            seen.add(state)
            job.check(here)
            job.do_again(here)
            assert job.result(here) == result, where
            left = [name for name, _ in state_of(here) if name.endswith('.partial') or '.complete' in name]
            assert not left or name in ('Charts', 'Page'), (where, left)
