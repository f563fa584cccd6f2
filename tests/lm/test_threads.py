"""Beside another busy program fewer threads compute; on a quiet machine nothing is tried."""

import os
import subprocess
import sys
import time

import pytest
import torch
from helpers.models import random_gpt

from lm import threads
from lm.threads import Pace, keep_pace


@pytest.fixture(autouse=True)
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


class Machine:
    """A machine of two cores with a clock of its own: how long a step takes depends on the threads and the others."""

    def __init__(self):
        self.now, self.losses, self.busy, self.used = 0.0, 0, False, []

    def step(self, idx, cache=None):
        used = torch.get_num_threads()
        quick = {1: 0.015, 2: 0.010}[used]
        self.now += 0.040 if self.busy and used == 2 else quick
        self.losses += 8 if self.busy and used == 2 else 0
        self.used.append(used)
        return idx


def generate(pace, machine, steps, tokens=1):
    idx = torch.zeros(1, tokens, dtype=torch.int64)
    machine.used = []
    for _ in range(steps):
        assert pace.run(machine.step, idx) is idx
    return machine.used


def test_fewer_threads_compute_while_another_program_is_busy():
    machine = Machine()
    pace = Pace(lambda: machine.now, lambda: machine.losses)
    assert set(generate(pace, machine, 200)) == {2}  # quiet: nothing is tried
    machine.busy = True
    used = generate(pace, machine, 1000)
    assert used.count(2) < 40  # noticed at once, and tested rarely
    begin = machine.now
    generate(pace, machine, 1000)
    assert (machine.now - begin) / 1000 < 0.0165  # against 0.040 with both
    machine.busy = False
    used = generate(pace, machine, 1500)
    assert set(used[-500:]) == {2}
    begin = machine.now
    assert set(generate(pace, machine, 1000)) == {2}
    assert machine.now - begin == pytest.approx(10)


def test_long_passes_are_computed_by_all():
    machine = Machine()
    pace = Pace(lambda: machine.now, lambda: machine.losses)
    machine.busy = True
    generate(pace, machine, 100)
    assert pace.threads == 1
    assert set(generate(pace, machine, 3, tokens=100)) == {2}
    assert pace.threads == torch.get_num_threads() == 1


def test_cores_that_are_lost_to_something_that_fewer_threads_do_not_help_change_nothing(monkeypatch):
    machine = Machine()
    pace = Pace(lambda: machine.now, lambda: 100 * len(machine.used))
    machine.losses = 0
    used = generate(pace, machine, 3000)
    assert used.count(1) < 60


def test_with_one_thread_there_is_nothing_to_choose():
    torch.set_num_threads(1)
    machine = Machine()
    pace = Pace(lambda: machine.now, lambda: 1000 * len(machine.used))
    assert set(generate(pace, machine, 50)) == {1}


def test_the_number_of_threads_that_a_person_chose_is_the_most():
    machine = Machine()
    pace = Pace(lambda: machine.now, lambda: machine.losses)
    generate(pace, machine, 20)
    torch.set_num_threads(1)
    machine.busy = True
    assert set(generate(pace, machine, 500)) == {1}


def test_a_model_computes_the_same_at_any_pace():
    model, paced = random_gpt(), random_gpt()
    machine = Machine()
    pace = Pace(lambda: machine.now, lambda: machine.losses)
    machine.busy = True
    hidden = paced.hidden

    def compute(idx, cache=None):
        machine.step(idx)
        return hidden(idx, cache)

    paced.hidden = compute
    keep_pace(paced, pace)
    idx = torch.randint(model.n_ids, (1, 4))
    expected, got = (m.generate(idx, 12, seed=1, temperature=0.9) for m in (model, paced))
    assert torch.equal(expected[0], got[0])
    assert got[1] == pytest.approx(expected[1], rel=1e-5)
    assert {1, 2} == set(machine.used)


@pytest.mark.skipif(threads.resource is None or (os.cpu_count() or 1) < 2, reason='needs two cores that are counted')
@pytest.mark.slow
def test_cores_are_lost_beside_a_busy_program():
    def work():
        x, end = torch.randn(400, 400), time.perf_counter() + 1
        while time.perf_counter() < end:
            x @ x

    busy = [subprocess.Popen([sys.executable, '-c', 'while True: pass']) for _ in range(os.cpu_count())]
    try:
        time.sleep(0.3)
        before = threads.count_lost_cores()
        work()
        assert threads.count_lost_cores() - before > 10
    finally:
        for process in busy:
            process.kill()
            process.wait()
