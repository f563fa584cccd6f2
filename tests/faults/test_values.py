"""Counts, names and inputs that no machine can satisfy: one line, exit code 2, nothing written."""

import os

import pytest

from faults.harness import assert_one_line, run

TRAIN = ('config/train_tiny.py', '--dataset=childrens_stories', '--device=cpu', '--max_iters=1')
PREPARE = ('--input=a.txt', '--dataset=a', '--tokenizer=tiny')
TINY = ('--init_from=tiny', '--device=cpu', '--max_new_tokens=2')
LONG = 'n' * 300
HUGE = str(10**30)


@pytest.fixture
def here(tmp_path):
    """A folder with a text, pairs, a pipe that nobody writes to, and a config file."""
    (tmp_path / 'a.txt').write_text('One.\n\n\nTwo.\n\n\nThree.')
    (tmp_path / 'data').mkdir()
    for path in (tmp_path / 'pairs.json', tmp_path / 'data' / 'pairs.json'):  # the second: no folder for a dataset
        path.write_text('[["Once", " upon"]]')
    os.mkfifo(tmp_path / 'pipe')
    return tmp_path


def assert_refused(script, arguments, words, here):
    """Run a script; it must end soon with one line, and leave the folder as it was."""
    before = sorted(here.rglob('*'))
    outcome = run(script, *arguments, cwd=here, seconds=10)
    assert_one_line(outcome, *words)
    assert sorted(here.rglob('*')) == before


COUNTS = [
    ('sample.py', (*TINY, '--num_samples=1000000000'), ['--num_samples=', 'GB are free', 'would fit']),
    ('sample.py', (*TINY, '--num_samples=1000000000', '--max_new_tokens=1000000000'), ['would fit']),
    ('sample.py', (*TINY, '--beam_width=1000000000', '--max_new_tokens=100'), ['--beam_width=', 'would fit']),
    ('sample.py', (*TINY, '--beam_width=1000000000', '--max_new_tokens=1000000000'), ['would fit']),
    ('eval.py', (*TINY, '--eval_data=pairs.json', '--num_samples=1000000000'), ['--num_samples=', 'would fit']),
    (
        'eval.py',
        (*TINY, '--eval_data=pairs.json', '--beam_width=1000000000', '--max_new_tokens=50'),
        ['--beam_width=', 'fit'],
    ),
    *(
        ('sample.py', (*TINY, f'--{name}={HUGE}'), [f'--{name}=', 'at most'])
        for name in ('top_k', 'seed', 'plot_steps')
    ),
    *(
        ('sample.py', (*TINY, f'--{name}={HUGE}'), ['at most'])
        for name in ('num_samples', 'beam_width', 'most_probable')
    ),
    *(('eval.py', (*TINY, f'--{name}={HUGE}'), ['at most']) for name in ('show', 'resamples', 'stride')),
    ('train.py', (*TRAIN, '--batch_size=1000000000'), ['--batch_size=', 'would fit']),
    ('train.py', (*TRAIN, '--n_layer=100000000'), ['--n_layer=', 'would fit']),
    ('train.py', (*TRAIN, '--n_embd=120000000', '--n_head=12'), ['--n_embd=', 'would fit']),
    ('train.py', (*TRAIN, '--block_size=10000000000'), ['--block_size=', 'would fit']),
    ('train.py', (*TRAIN, '--epochs=1e308'), ['--epochs=']),
    ('train.py', (*TRAIN, '--n_head=1000000000'), ['n_head=1000000000']),
    ('train.py', (*TRAIN, '--freeze=1000000000'), ['--freeze=1000000000']),
    *(('train.py', (*TRAIN, f'--{name}={HUGE}'), ['at most']) for name in ('max_iters', 'eval_iters', 'lora_rank')),
    *(('train.py', (*TRAIN, f'--{name}={HUGE}'), ['at most']) for name in ('eval_interval', 'patience', 'batch_size')),
    *(('prepare_bin.py', (*PREPARE, f'--{name}={HUGE}'), ['at most']) for name in ('max_documents', 'num_workers')),
    *(('prepare_bin.py', (*PREPARE, f'--{name}={HUGE}'), ['at most']) for name in ('train_bpe', 'seed')),
    *(('visualize.py', ('embeddings', '--init_from=tiny', f'--{name}={HUGE}'), []) for name in ('neighbours', 'seed')),
    *(('visualize.py', (kind, '--init_from=tiny', f'--layer={HUGE}'), []) for kind in ('attention', 'trace')),
]


@pytest.mark.situation('a count that no machine has memory for')
@pytest.mark.parametrize(('script', 'arguments', 'words'), COUNTS)
def test_a_count_that_no_machine_has_memory_for(here, script, arguments, words):
    assert_refused(script, arguments, words, here)


READ = [  # the script, its arguments, and the setting that names a file to read
    ('sample.py', TINY, '--start=FILE:{}'),
    ('sample.py', TINY, '{}.py'),
    ('eval.py', TINY, '--eval_data={}'),
    ('eval.py', TINY, '--text={}'),
    ('eval.py', TINY, '--compare_to={}.pt'),
    ('train.py', TRAIN, '--dataset={}'),
    ('prepare_bin.py', PREPARE, '--input={}.txt'),
    ('prepare_bin.py', PREPARE, '--input={}.csv'),
    ('prepare_bin.py', PREPARE, '--input={}.parquet'),
    ('prepare_bin.py', PREPARE, '--tokenizer={}.json'),
]
WRITTEN = [  # and to write
    ('sample.py', (*TINY, '--show_probs=True'), '--plot_dir={}'),
    ('eval.py', (*TINY, '--eval_data=pairs.json'), '--save={}/x'),
    ('train.py', TRAIN, '--out_dir={}'),
    ('prepare_bin.py', PREPARE, '--dataset={}'),
    ('export.py', ('--init_from=tiny',), '--folder={}'),
    ('visualize.py', ('layers', '--init_from=tiny'), '--save={}/x.png'),
]


@pytest.mark.situation('a name of 300 characters')
@pytest.mark.parametrize(('script', 'arguments', 'setting'), READ + WRITTEN)
def test_a_name_of_300_characters(here, script, arguments, setting):
    assert_refused(script, (*arguments, setting.format(LONG)), [], here)


@pytest.mark.situation('a file in place of a folder')
@pytest.mark.parametrize(('script', 'arguments', 'setting'), READ + WRITTEN)
def test_a_path_through_a_file(here, script, arguments, setting):
    assert_refused(script, (*arguments, setting.format('pairs.json/x')), [], here)


@pytest.mark.situation('a folder that cannot be written to')
@pytest.mark.parametrize(('script', 'arguments', 'setting'), WRITTEN)
def test_a_folder_that_cannot_be_written_to(here, script, arguments, setting):
    """Nobody may make files in /proc, not even root, for whom permissions do not count."""
    assert_refused(script, (*arguments, setting.format('/proc/none')), ['/proc/none'], here)


@pytest.mark.situation('a pipe or a device as an input')
@pytest.mark.parametrize(('script', 'arguments', 'setting'), READ)
@pytest.mark.parametrize('target', ['pipe', '/dev/zero'])
def test_a_pipe_or_a_device_as_an_input(here, script, arguments, setting, target):
    """Reading it would never end."""
    name = setting.format('link').partition('=')[2].removeprefix('FILE:') or 'link.py'
    (here / name).symlink_to(target)
    assert_refused(script, (*arguments, setting.format('link')), [], here)
