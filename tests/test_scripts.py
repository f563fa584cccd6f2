"""The scripts as a person meets them: what eval.py, prepare_bin.py and train.py make and print, help, pipes."""

import contextlib
import dataclasses
import hashlib
import inspect
import io
import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.scripts import PROJECT, run_script
from helpers.world import (
    FOLDER,
    MAIN,
    PAIRS,
    RESUME,
    STORIES,
    call,
    call_well,
    logprob_by_transformers,
    number_after,
    rows_in,
    run_well,
)

import configurator
import sample

# eval.py ------------------------------------------------------------------------------------------------------------


def test_eval_prints_what_transformers_computes_and_totals_that_add_up(here):
    out = run_well('eval.py', *FOLDER, '--eval_data=pairs.json', cwd=here)
    rows = rows_in(out)
    assert len(rows) == len(PAIRS)
    for (_, logprob, prob), pair in zip(rows, PAIRS, strict=True):
        assert logprob == pytest.approx(logprob_by_transformers(here / 'folder', **pair), abs=1e-4)
        assert prob == pytest.approx(math.exp(logprob), rel=1e-3)
    n, total = sum(tokens for tokens, _, _ in rows), sum(logprob for _, logprob, _ in rows)
    assert re.search(rf'over {len(rows)} responses, {n} tokens, \d+ bytes: model probability', out)
    assert number_after('have logprob', out) == pytest.approx(total, abs=2e-4)
    assert number_after('sum of probabilities +│', out) == pytest.approx(sum(prob for *_, prob in rows), rel=1e-3)
    assert number_after('perplexity per token +│', out) == pytest.approx(math.exp(-total / n), rel=1e-3)


def test_eval_takes_the_values_that_sample_has_for_every_setting(here, capsys):
    values = {field.name: field.default for field in dataclasses.fields(sample.Settings)}
    values |= {'init_from': 'resume', 'device': 'cpu', 'max_new_tokens': 3, 'show_probs': True, 'plot_steps': 1}
    arguments = [f'--{name}={value}' for name, value in values.items()]
    out = call_well(capsys, 'eval.py', *arguments, '--eval_data=pairs.json')
    assert 'Sampler values are at temperature 0.8' in out
    assert out.count('sample: ') == len(PAIRS)
    (folder,) = (here / 'results').iterdir()
    assert {path.name for path in folder.iterdir()} == {'pair_01', 'pair_02', 'pair_03'}
    assert {path.name for path in (folder / 'pair_03').iterdir()} == {'step_01.png', 'sheet.png'}


def test_eval_scores_a_single_pair(here, capsys):
    pair = PAIRS[1]
    (row,), _ = call('eval.py', *FOLDER, f'--start={pair["prompt"]}', f'--fixed_response={pair["response"]}')
    reference = logprob_by_transformers(here / 'folder', **pair)
    assert row['logprob'] == pytest.approx(reference, abs=1e-4)
    ((tokens, logprob, _),) = rows_in(capsys.readouterr().out)
    assert (tokens, logprob) == (row['tokens'], pytest.approx(reference, abs=1e-4))


def test_eval_shows_names_and_texts_as_they_are(here, capsys):
    (here / 'folder').rename(here / 'model [old] :smile:')
    call('eval.py', '--init_from=model [old] :smile:', '--eval_data=pairs.json', '--device=cpu')
    out = capsys.readouterr().out
    assert 'model [old] :smile:' in out
    assert '[loudly]' in out.replace('│', '')


def test_prepare_bin_records_in_meta_json_what_it_made(world):
    folder = world.folder / 'data' / 'stories'
    meta = json.loads((folder / 'meta.json').read_text())
    assert meta['tokenizer']['kind'] == 'bpe'
    assert (meta['vocab_size'], meta['dtype']) == (300, 'uint16')
    sha256 = hashlib.sha256(STORIES.encode()).hexdigest()
    assert meta['sources'] == [{'name': 'stories.txt', 'bytes': len(STORIES), 'sha256': sha256}]
    assert meta['train']['documents'] + meta['val']['documents'] == 40
    for split in ('train', 'val'):
        ids = np.fromfile(folder / f'{split}.bin', dtype=np.uint16)
        assert meta[split]['tokens'] == len(ids)
        assert meta[split]['sha256'] == hashlib.sha256((folder / f'{split}.bin').read_bytes()).hexdigest()
        assert f'{len(ids):,} tokens' in world.prepared.stdout
    assert 'python train.py config/train_tiny.py --dataset=stories' in world.prepared.stdout


def test_train_takes_a_config_file_and_the_command_line_overrides_it(world):
    ckpt = torch.load(world.folder / 'out' / 'ckpt.pt', weights_only=True)
    assert ckpt['iter_num'] == 6
    assert ckpt['config']['max_iters'] == 6
    assert ckpt['config']['lr_decay_iters'] == 100
    assert ckpt['model_args']['n_embd'] == 32
    metrics = [json.loads(line) for line in (world.folder / 'out' / 'metrics.jsonl').read_text().splitlines()]
    assert [line['iter'] for line in metrics if 'val_loss' in line] == [0, 3, 6]
    assert [line['iter'] for line in metrics if 'lr' in line] == [1, 2, 3, 4, 5, 6]
    assert metrics[-1]['val_loss'] < metrics[0]['val_loss']
    assert 'python sample.py --out_dir=out' in world.trained.stdout


@pytest.mark.slow
def test_training_resumes_where_it_stopped(here):
    before = (here / 'out' / 'metrics.jsonl').read_text()
    run_well('train.py', 'config/small.py', '--init_from=resume', '--max_iters=8', cwd=here)
    assert torch.load(here / 'out' / 'ckpt.pt', weights_only=True)['iter_num'] == 8
    after = (here / 'out' / 'metrics.jsonl').read_text()
    assert after.startswith(before)
    metrics = [json.loads(line) for line in after.splitlines()]
    call('train.py', 'config/small.py', '--max_iters=8', '--out_dir=at-once')
    at_once = [json.loads(line) for line in (here / 'at-once' / 'metrics.jsonl').read_text().splitlines()]
    assert metrics[-1]['val_loss'] == pytest.approx(at_once[-1]['val_loss'], abs=1e-5)
    assert [line['iter'] for line in metrics if 'val_loss' in line] == [0, 3, 6, 8]
    assert [line['iter'] for line in metrics if 'lr' in line] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_training_resumes_where_the_log_was_cut_short(here):
    with open(here / 'out' / 'metrics.jsonl', 'a') as file:
        file.write('{"iter": 7, "lo')
    call('train.py', 'config/small.py', '--init_from=resume', '--max_iters=8')
    metrics = [json.loads(line) for line in (here / 'out' / 'metrics.jsonl').read_text().splitlines()]
    assert [line['iter'] for line in metrics if 'lr' in line] == [1, 2, 3, 4, 5, 6, 7, 8]


def comments_in(settings_class):
    """Return {setting: the comment after it in the source}, those of base classes included."""
    lines = [line for base in reversed(settings_class.__mro__[:-1]) for line in inspect.getsource(base).splitlines()]
    comments = dict(re.findall(r'^ {4}(\w+): .*?  # (.+)$', '\n'.join(lines), re.MULTILINE))
    assert comments.keys() == settings_class.__dataclass_fields__.keys()
    return comments


@pytest.mark.parametrize('script', MAIN)
def test_help_has_the_comment_of_every_setting(script, monkeypatch):
    """A comment that a formatter moves to another line would be lost."""
    monkeypatch.setenv('COLUMNS', '100')
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit):
        configurator.read(MAIN[script][1], ['--help'])
    text = ' '.join(re.sub('[│╭╮╰╯─]', ' ', out.getvalue()).split())
    for name, comment in comments_in(MAIN[script][1]).items():
        assert re.search(rf'--{name} \S+ {re.escape(comment)} \(', text), name


def test_help_is_printed(tmp_path):
    out = run_well('sample.py', '--help', cwd=tmp_path, env={'COLUMNS': '100'})
    assert '--temperature FLOAT' in out


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == 'win32', reason='Windows has other pipes')
@pytest.mark.parametrize(
    'arguments',
    [
        ('sample.py', *RESUME, '--max_new_tokens=3'),
        pytest.param(('sample.py', *RESUME, '--max_new_tokens=3', '--num_samples=2'), marks=pytest.mark.slow),
        pytest.param(('eval.py', *FOLDER, '--eval_data=pairs.json'), marks=pytest.mark.slow),
        ('prepare_bin.py', '--help'),
    ],
    ids=['stream', 'batch', 'table', 'help'],
)
def test_a_reader_that_stops_early_is_no_error(here, arguments):
    script, *rest = arguments
    read_end, write_end = os.pipe()
    os.close(read_end)  # like `| head` after it has read enough, without a race
    try:
        process = subprocess.run(
            [sys.executable, PROJECT / script, *rest],
            cwd=here,
            env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONUNBUFFERED': ''},
            stdout=write_end,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    finally:
        os.close(write_end)
    assert 'Traceback' not in process.stderr
    assert 'BrokenPipe' not in process.stderr
    assert process.returncode in (0, 1)


@pytest.mark.parametrize(
    'arguments',
    [
        pytest.param(('eval.py', *FOLDER, '--eval_data=pairs.json'), marks=pytest.mark.slow),
        ('prepare_bin.py', '--help'),
    ],
    ids=['table', 'help'],
)
def test_output_survives_an_encoding_that_lacks_characters(here, arguments):
    """Redirected to a file on Windows, output has an encoding without ⏎."""
    script, *rest = arguments
    process = run_script(script, *rest, cwd=here, env={'PYTHONIOENCODING': 'ascii'}, fresh=True)
    assert process.returncode == 0, process.stderr
