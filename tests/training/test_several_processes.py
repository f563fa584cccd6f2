"""Training in several processes computes what one process computes, and they stop together."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import types

import pytest
from helpers.scripts import PROJECT
from helpers.training import SMALL, assert_same_run, checkpoint, evaluations, losses, run

import train
from common.errors import UserError

pytestmark = pytest.mark.usefixtures('dataset')


def test_gradients_are_exchanged_only_at_the_last_batch_of_a_step(monkeypatch):
    exchanged = []

    class Wrapper:
        """Takes the place of DistributedDataParallel, and records after which batches it would exchange gradients."""

        def __init__(self, module):
            self.module, self.silent = module, False

        @contextlib.contextmanager
        def no_sync(self):
            self.silent = True
            yield
            self.silent = False

        def __call__(self, *arguments, **more):
            exchanged.append(not self.silent)
            return self.module(*arguments, **more)

    prepare = train.Run.prepare

    def prepare_wrapped(self):
        prepare(self)
        self.loss_fn = Wrapper(self.raw_loss_fn)

    run(out_dir='plain', gradient_accumulation_steps=3, max_iters=4)
    monkeypatch.setattr(train.Run, 'prepare', prepare_wrapped)
    run(gradient_accumulation_steps=3, max_iters=4)
    assert exchanged == [False, False, True] * 4
    assert_same_run('plain', 'out')


def test_accumulation_that_cannot_be_shared_equally_is_refused(monkeypatch):
    two = types.SimpleNamespace(count=2, rank=0, first=True, device=None)
    monkeypatch.setattr(train, 'Processes', lambda device, backend: two)
    with pytest.raises(UserError, match='gradient_accumulation_steps=3 cannot be shared equally among 2 processes'):
        run(gradient_accumulation_steps=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    'more',
    [{}, {'dropout': 0.2, 'dataset': 'questions'}, {'lora_rank': 2, 'gradient_checkpointing': True}],
    ids=['plain', 'dropout, pairs', 'LoRA, gradient checkpointing'],
)
def test_two_processes_compute_the_losses_of_one(more):
    settings = SMALL | more | {'max_iters': 50, 'lr_decay_iters': 50, 'gradient_accumulation_steps': 4}
    settings |= {'eval_iters': 30, 'eval_interval': 25}
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    command += [str(PROJECT / 'train.py'), *(f'--{name}={value}' for name, value in settings.items()), '--out_dir=two']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count('sample from it') == 1
    run(**settings, out_dir='one')
    one, two = losses('one'), losses('two')
    assert list(two) == list(range(1, 51))
    assert list(two.values()) == pytest.approx(list(one.values()), abs=1e-5)
    for a, b in zip(evaluations('one').values(), evaluations('two').values(), strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    assert checkpoint('two')['iter_num'] == 50


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(tmp_path):
    settings = SMALL | {'max_iters': 5000, 'lr_decay_iters': 5000, 'eval_interval': 5000}
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    command += [str(PROJECT / 'train.py'), *(f'--{name}={value}' for name, value in settings.items())]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / 'out' / 'metrics.jsonl'
    while not metrics.exists() or metrics.read_text().count('"loss"') < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    workers = subprocess.run(['pgrep', '-P', str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(workers[-1]), signal.SIGTERM)
    stdout, _ = process.communicate(timeout=60)
    last = checkpoint('out')
    assert 0 < last['iter_num'] == max(losses('out')) < 5000
    assert f'stopped by SIGTERM after iteration {last["iter_num"]}; resume with: torchrun --nproc_per_node=2' in stdout
