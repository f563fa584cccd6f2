"""Saving and resuming: an interrupted run continues bit for bit, and nothing is lost or overwritten by mistake."""

import dataclasses
import json
import multiprocessing.forkserver
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.scripts import PROJECT, assert_friendly_error, run_script
from helpers.training import SMALL, assert_same_run, checkpoint, losses, run, run_in_child, weights

import configurator
import train
from common.errors import UserError
from common.files import file_sha256
from texts.token_files import tokens_sha256
from train import Settings
from training import log

pytestmark = pytest.mark.usefixtures('dataset')


@pytest.mark.parametrize(
    'more', [{}, {'dropout': 0.3}, {'lora_rank': 2, 'dropout': 0.3}], ids=['plain', 'dropout', 'LoRA']
)
def test_a_resumed_run_equals_an_uninterrupted_one(more):
    run(out_dir='whole', **more)
    run(out_dir='halved', max_iters=4, **more)
    run(out_dir='halved', init_from='resume', **more)
    assert max(losses('halved')) == 8
    assert_same_run('whole', 'halved')


@pytest.mark.slow
def test_resuming_in_float16_restores_the_scaler():
    run(dtype='float16', out_dir='whole')
    run(dtype='float16', out_dir='halved', max_iters=4)
    assert checkpoint('halved')['scaler']['scale'] > 1
    run(dtype='float16', out_dir='halved', init_from='resume')
    assert_same_run('whole', 'halved')


@pytest.mark.slow
def test_a_float32_run_resumes_in_float16():
    run(max_iters=4)
    run(init_from='resume', dtype='float16')
    assert max(losses('out')) == 8


def test_a_checkpoint_of_nanogpt_is_resumed(tmp_path):
    run(max_iters=4, out_dir='ours')
    ckpt = checkpoint('ours', 'ckpt.pt')
    names = ('model', 'optimizer', 'model_args', 'iter_num', 'best_val_loss')
    config = {name: value for name, value in ckpt['config'].items() if name in ('n_layer', 'n_embd', 'dataset', 'bias')}
    (tmp_path / 'out').mkdir()
    torch.save({name: ckpt[name] for name in names} | {'config': config}, 'out/ckpt.pt')
    with pytest.raises(UserError, match=r'ckpt\.pt is from a run with lora_rank=0, but the settings say 2'):
        run(init_from='resume', lora_rank=2)
    run(init_from='resume')
    assert max(losses('out')) == 8


def test_last_pt_records_what_made_it():
    run(save_interval=3)
    last = checkpoint('out')
    assert last['versions']['torch'] == torch.__version__
    assert last['config']['learning_rate'] == SMALL['learning_rate']
    assert last['tokenizer']['kind'] == 'bpe'
    tokens = {split: np.fromfile(f'data/rhymes/{split}.bin', np.uint16) for split in ('train', 'val')}
    assert last['data_sha256'] == {split: tokens_sha256(ids) for split, ids in tokens.items()}
    assert {'optimizer', 'scaler', 'iter_num', 'best_val_loss'} <= last.keys()


def test_last_pt_is_saved_at_each_interval_and_after_save_minutes(monkeypatch):
    saved = []
    monkeypatch.setattr(train, 'save_run', lambda run, file, *_, **__: saved.append((file, run.iter_num)))
    run(save_minutes=0, eval_interval=100, max_iters=5)
    assert [iteration for file, iteration in saved if file == 'last.pt'] == [0, 1, 2, 3, 4, 5]
    saved.clear()
    run(save_interval=2, max_iters=5)
    assert [iteration for file, iteration in saved if file == 'last.pt'] == [0, 2, 4, 5]


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'change', [{'n_layer': 3}, {'n_embd': 16}, {'block_size': 8}, {'lora_rank': 2}, {'freeze': 1}, {'bias': True}]
)
def test_resuming_with_another_shape_is_refused(change):
    run(max_iters=4)
    ((name, value),) = change.items()
    with pytest.raises(UserError, match=rf'last\.pt is from a run with {name}=.*, but the settings say {value}'):
        run(init_from='resume', **change)


def test_resuming_on_other_data_is_refused():
    run(max_iters=4)
    tokens = np.fromfile('data/rhymes/train.bin', np.uint16)
    tokens[7] ^= 1
    tokens.tofile('data/rhymes/train.bin')
    with pytest.raises(UserError, match=r'train\.bin is not the file that the meta\.json beside it describes'):
        run(init_from='resume')
    meta = json.loads(Path('data/rhymes/meta.json').read_text())
    meta['train']['sha256'] = file_sha256('data/rhymes/train.bin')
    Path('data/rhymes/meta.json').write_text(json.dumps(meta))
    with pytest.raises(UserError, match='data/rhymes is not the data that the run in out started with'):
        run(init_from='resume')


def test_another_order_of_the_data_is_reported(capsys):
    run(max_iters=4)
    run(init_from='resume', batch_size=4)
    assert 'note: the run started with batch_size=8, now it is 4' in capsys.readouterr().err


def test_a_run_is_overwritten_only_on_request_and_then_leaves_nothing(monkeypatch):
    run()
    with pytest.raises(UserError, match=r'out holds last\.pt and ckpt\.pt of an earlier run.*--overwrite=True'):
        run(overwrite=False)

    def killed(self, batches):
        raise KeyboardInterrupt

    monkeypatch.setattr(train.Run, 'step', killed)
    with pytest.raises(KeyboardInterrupt):
        run(overwrite=True)
    assert checkpoint('out')['iter_num'] == 0


def test_overwriting_deletes_the_old_run_only_after_all_checks(tmp_path):
    run()
    with pytest.raises(UserError, match=r'nowhere\.json'):
        run(eval_file='nowhere.json')
    assert len(losses('out')) == 8
    assert (tmp_path / 'out' / 'ckpt.pt').exists()
    (tmp_path / 'out' / '.last.pt.abc.partial').write_bytes(b'half')
    run(max_iters=2, always_save_checkpoint=False, learning_rate=3.0, min_lr=3.0, warmup_iters=0)
    assert not (tmp_path / 'out' / 'ckpt.pt').exists()  # this run has written none
    assert not (tmp_path / 'out' / '.last.pt.abc.partial').exists()


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_is_a_friendly_error(tmp_path):
    run(max_iters=1)
    arguments = [f'--{name}={value}' for name, value in SMALL.items()]
    assert_friendly_error(
        run_script('train.py', *arguments, cwd=tmp_path), 'out holds', '--init_from=resume', '--overwrite'
    )


# Interruptions --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_run_after_a_step_and_prints_how_to_resume(tmp_path, number, code):
    settings = SMALL | {'max_iters': 3000, 'lr_decay_iters': 3000, 'eval_interval': 1000, 'log_interval': 1}
    arguments = [f'--{name}={value}' for name, value in settings.items()]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, str(PROJECT / 'train.py'), *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / 'out' / 'metrics.jsonl'
    while not metrics.exists() or metrics.read_text().count('"loss"') < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    last = checkpoint('out')
    stopped_at = last['iter_num']
    assert max(losses('out')) == stopped_at < 3000
    assert f'stopped by {number.name} after iteration {stopped_at}; resume with: python train.py' in stdout
    assert stdout.strip().endswith('--init_from=resume')
    assert 'Traceback' not in stderr
    run(out_dir='whole', **{name: settings[name] for name in ('lr_decay_iters', 'eval_interval')}, max_iters=stopped_at)
    assert losses('whole') == losses('out')
    for name, tensor in weights('whole', 'last.pt').items():
        assert torch.equal(tensor, last['model'][name])


def run_like(settings):
    """Return what the resume command needs to know of a run in one process."""
    return SimpleNamespace(settings=settings, processes=SimpleNamespace(count=1))


@pytest.mark.parametrize(
    'typed',
    [
        ['config/x.py', '--init_from=gpt2', '--batch_size=2', '--overwrite'],
        ['config/x.py', '--init_from', 'gpt2', '--batch-size=2', '--overwrite', 'True'],
        ['config/x.py', '--init_from=resume', '--batch_size=2'],
        ['config/x.py', '--overwrite', '--batch_size=2'],
    ],
)
def test_the_resume_command_means_the_same_run_resumed(monkeypatch, tmp_path, typed):
    (tmp_path / 'config').mkdir()
    (tmp_path / 'config' / 'x.py').write_text("dataset = 'rhymes'\nout_dir = 'elsewhere'")
    monkeypatch.setattr(sys, 'argv', ['train.py', *typed])
    python, script, *arguments = shlex.split(log.resume_command(run_like(Settings())))
    assert (python, script) == ('python', 'train.py')
    assert arguments.count('--init_from=resume') == 1
    settings = configurator.read(Settings, arguments)
    found = (settings.init_from, settings.batch_size, settings.dataset, settings.out_dir)
    assert found == ('resume', 2, 'rhymes', 'elsewhere')


def test_the_resume_command_of_a_run_started_in_a_notebook_names_its_settings(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['ipykernel_launcher.py', '-f', 'kernel.json'])
    started = Settings(init_from='tiny', dataset='openwebtext', out_dir='my runs', batch_size=2, overwrite=True)
    python, script, *arguments = shlex.split(log.resume_command(run_like(started)))
    assert (python, script) == ('python', 'train.py')
    assert '--dataset=openwebtext' in arguments  # or else train.py would choose another
    assert configurator.read(Settings, arguments) == dataclasses.replace(started, init_from='resume')


def test_a_failed_write_leaves_the_old_checkpoint(monkeypatch, tmp_path):
    run(out_dir='whole', save_interval=1)
    torch_save, calls = torch.save, []

    def full_disk(value, file):
        calls.append(file)
        if len(calls) == 7:
            file.write(b'half a checkpoint')
            raise OSError(28, 'No space left on device')
        torch_save(value, file)

    monkeypatch.setattr(torch, 'save', full_disk)
    with pytest.raises(UserError, match=r'cannot write .*No space left on device'):
        run(save_interval=1)
    monkeypatch.setattr(torch, 'save', torch_save)
    assert 0 < checkpoint('out')['iter_num'] < 8
    assert not list((tmp_path / 'out').glob('.*'))
    run(save_interval=1, init_from='resume')
    assert_same_run('whole', 'out')


@pytest.fixture(scope='module')
def children():
    """A way to start processes that find torch imported already."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['helpers.training', 'torch._dynamo', 'matplotlib.pyplot'])
    before = os.environ.get('PYTHONPATH')
    os.environ['PYTHONPATH'] = f'{PROJECT}{os.pathsep}{PROJECT / "tests"}'  # for the process that preloads
    multiprocessing.forkserver.ensure_running()
    if before is None:
        del os.environ['PYTHONPATH']
    else:
        os.environ['PYTHONPATH'] = before
    return context


VARIANTS = {
    'float32': {'dtype': 'float32', 'dropout': 0.1},
    'bfloat16, pairs': {'dtype': 'bfloat16', 'dropout': 0.1, 'dataset': 'questions'},
    'float32, LoRA': {'dtype': 'float32', 'lora_rank': 4, 'dropout': 0.1},
    'bfloat16, LoRA': {'dtype': 'bfloat16', 'lora_rank': 4},
}


@pytest.mark.slow
@pytest.mark.parametrize('variant', VARIANTS)
def test_a_run_killed_ten_times_equals_an_uninterrupted_one(children, tmp_path, variant):
    settings = VARIANTS[variant] | {'max_iters': 60, 'lr_decay_iters': 60, 'save_interval': 3, 'eval_interval': 20}

    def start(out_dir, **more):
        child = children.Process(target=run_in_child, args=(tmp_path, settings | {'out_dir': out_dir} | more))
        child.start()
        return child

    start('first', max_iters=1).join()  # the first process waits for torch
    started = time.monotonic()
    whole = start('whole')
    whole.join()
    duration = time.monotonic() - started
    assert whole.exitcode == 0
    rng = random.Random(variant)
    resumed_from = []
    for _ in range(10):
        resume = (tmp_path / 'killed' / 'last.pt').exists()
        child = start('killed', **({'init_from': 'resume'} if resume else {}))
        child.join(rng.uniform(0, 0.8) * duration)
        child.kill()
        child.join()
        if (tmp_path / 'killed' / 'last.pt').exists():
            resumed_from.append(checkpoint('killed')['iter_num'])
            if resumed_from[-1] == 60:
                (tmp_path / 'killed').rename(f'done{len(resumed_from)}')  # it had finished: start again
                assert_same_run('whole', f'done{len(resumed_from)}')
    resume = (tmp_path / 'killed' / 'last.pt').exists()
    last = start('killed', **({'init_from': 'resume'} if resume else {}))
    last.join()
    assert last.exitcode == 0
    assert any(0 < iteration < 60 for iteration in resumed_from)
    assert_same_run('whole', 'killed')
