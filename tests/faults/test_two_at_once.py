"""Two runs in one folder: one of them does its work as if it were alone, the other is refused in one line."""

import os
import shutil
import signal
import time

import numpy as np
import pytest

from common.folders import LOCK, lock_folder
from faults.harness import assert_one_line, assert_went_well, run, start
from faults.jobs import JOBS, state_of

FOLDERS = {'Prepare': 'data/a', 'Train': 'out', 'Evaluate': 'kept', 'ResumeEvaluation': 'kept', 'Export': 'out-export'}


@pytest.fixture
def base(world, tmp_path):
    return shutil.copytree(world.folder, tmp_path / 'base')


@pytest.mark.situation('two at once in one folder', 2)
@pytest.mark.parametrize('name', [*FOLDERS, 'Picture'])
def test_the_second_is_refused_and_changes_nothing(base, name):
    job = JOBS[name]()
    job.set_up(base)
    folder, file = (base / 'drawn' / 'a', 'one.png') if name == 'Picture' else (base / FOLDERS[name], None)
    with lock_folder(folder, '', file):
        before = state_of(base)
        refused = run(job.script, *job.arguments, cwd=base)
        assert_one_line(refused, 'is in use by process', str(os.getpid()), 'choose another')
        assert state_of(base) == before
    lock = folder / (f'.{file}{LOCK}' if file else LOCK)
    folder.mkdir(exist_ok=True)
    lock.write_bytes(b'\0{"pid": 1, "host": "elsewhere"}\n')  # of a process that was killed
    assert_went_well(run(job.script, *job.arguments, cwd=base))
    assert not lock.exists()


@pytest.mark.situation('two at once in one folder')
@pytest.mark.parametrize('name', JOBS)
def test_two_that_start_together(base, tmp_path, name):
    job = JOBS[name]()
    job.set_up(base)
    alone = shutil.copytree(base, tmp_path / 'alone')
    assert_went_well(run(job.script, *job.arguments, cwd=alone))
    both = [start(job.script, *job.arguments, cwd=base) for _ in range(2)]
    outcomes = sorted((running.wait() for running in both), key=lambda outcome: outcome.code)
    assert_went_well(outcomes[0])
    if outcomes[1].code:
        assert_one_line(outcomes[1], 'is in use by')
    assert job.result(base) == job.result(alone)


@pytest.mark.situation('train.bin cut short while it is read')
@pytest.mark.parametrize('size', [0, 100, 2000])
def test_a_token_file_that_is_cut_short_in_place(base, size):
    settings = ('config/small.py', '--out_dir=o', '--max_iters=100000', '--eval_interval=20', '--eval_iters=1')
    running = start('train.py', *settings, cwd=base)
    while not (base / 'o' / 'ckpt.pt').exists():
        time.sleep(0.02)
    os.truncate(base / 'data' / 'stories' / 'train.bin', size)
    assert_one_line(running.wait(), 'data/stories/train.bin', 'became shorter')
    assert_went_well(run('sample.py', '--out_dir=o', '--device=cpu', '--max_new_tokens=3', cwd=base))


@pytest.mark.situation('stopped by a signal: train.py')
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_training_leaves_no_lock(base, number):
    running = start('train.py', 'config/small.py', '--out_dir=o', '--max_iters=100000', cwd=base)
    while not (base / 'o' / 'ckpt.pt').exists():
        time.sleep(0.02)
    refused = run('train.py', 'config/small.py', '--out_dir=o', '--init_from=resume', cwd=base)
    assert_one_line(refused, f'o is in use by process {running.pid} (train.py config/small.py')
    running.send_signal(number)
    assert running.wait().code == 128 + number
    assert not (base / 'o' / LOCK).exists()


@pytest.mark.situation('files of two datasets, or of two models, mixed', 5)
def test_a_mixture_of_datasets_is_refused_by_name(base):
    for tokenizer in ('char', 'tiny'):
        arguments = ('--input=stories.txt', f'--dataset={tokenizer}', f'--tokenizer={tokenizer}', '--test_fraction=0.1')
        assert_went_well(run('prepare_bin.py', *arguments, cwd=base))
    train = ('config/small.py', '--out_dir=o', '--dataset=mixed', '--max_iters=1')
    for name in ('train.bin', 'val.bin', 'meta.json'):
        shutil.rmtree(base / 'data' / 'mixed', ignore_errors=True)
        shutil.copytree(base / 'data' / 'char', base / 'data' / 'mixed')
        shutil.copy(base / 'data' / 'tiny' / name, base / 'data' / 'mixed' / name)
        wrong = 'train.bin' if name == 'meta.json' else name
        assert_one_line(run('train.py', *train, cwd=base), f'data/mixed/{wrong} is not the file', 'meta.json')
    tokens = np.fromfile(base / 'data' / 'char' / 'train.bin', np.uint16)
    shutil.copytree(base / 'data' / 'char', base / 'data' / 'mixed', dirs_exist_ok=True)
    tokens[::-1].tofile(base / 'data' / 'mixed' / 'train.bin')  # of the same size
    assert_one_line(run('train.py', *train, cwd=base), 'data/mixed/train.bin is not the file')
    shutil.copy(base / 'data' / 'stories' / 'train.bin', base / 'data' / 'stories' / 'test.bin')  # of nowhere
    text = run('eval.py', '--text=stories/test', '--init_from=folder', '--device=cpu', cwd=base)
    assert_one_line(text, 'data/stories/test.bin does not belong to the meta.json')


@pytest.mark.situation('a file where a folder is written, or a folder where a file is', 4)
def test_a_file_in_the_place_of_a_folder(base):
    (base / 'taken').write_text('mine')
    assert_one_line(run('train.py', 'config/small.py', '--out_dir=taken', cwd=base), 'taken is a file', '--out_dir')
    kept = ('--init_from=folder', '--device=cpu', '--eval_data=pairs.json', '--save=./taken')
    assert_one_line(run('eval.py', *kept, cwd=base), 'taken is a file', '--save')
    assert_one_line(run('export.py', '--init_from=folder', '--folder=taken', cwd=base), 'taken is a file')
    assert (base / 'taken').read_text() == 'mine'
    assert_went_well(run('export.py', '--init_from=folder', cwd=base))
    tokenizer = base / 'out-export' / 'tokenizer.json'
    tokenizer.unlink()
    tokenizer.mkdir()
    before = state_of(base)
    refused = run('export.py', '--init_from=folder', '--overwrite', cwd=base)
    assert_one_line(refused, 'out-export/tokenizer.json is a folder')
    assert state_of(base) == before
