"""The commands of a newcomer, as typed: train.py without a config or a dataset, then eval.py and sample.py."""

import dataclasses
import re

import pytest
from helpers.models import needs_gpt2_vocabulary, random_gpt
from helpers.scripts import PROJECT, assert_friendly_error, run_script
from helpers.training import run
from helpers.world import call

import configurator
import prepare_bin
import train
from common import notes
from common.errors import UserError
from lm.checkpoint import save_pretrained
from lm.tokenizer import GPT2Tokenizer
from training.setup import choose_configs

CONFIG = 'config/finetune_stories.py'
TINY = ('--max_iters=2', '--eval_interval=1', '--eval_iters=1', '--batch_size=1', '--gradient_accumulation_steps=1')


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder as the current one, in which no note has been printed."""
    monkeypatch.chdir(tmp_path)
    notes.forget_notes()
    return tmp_path


@pytest.fixture
def small_gpt2(folder):
    """A small model with GPT-2's vocabulary, in the folder gpt2-small."""
    save_pretrained(random_gpt(vocab_size=50257, block_size=512, n_embd=8), 'gpt2-small', GPT2Tokenizer())


def read(*typed):
    return configurator.read(train.Settings, typed, choose_configs)


@pytest.mark.parametrize('typed', [[], ['--device=cpu'], ['--init_from=tiny', '--max_iters=3']])
def test_without_config_and_dataset_it_trains_on_the_shipped_stories(folder, capsys, typed):
    assert read(*typed) == configurator.read(train.Settings, [CONFIG, *typed])
    err = capsys.readouterr().err
    assert err.startswith('note: ')
    assert err.count('\n') == 1
    for path in (PROJECT / 'config').glob('*.py'):
        assert f'config/{path.name}' in err


def test_nanogpts_behaviour_returns_with_a_dataset_a_config_or_its_data(folder, capsys):
    default = train.Settings()
    assert read('--dataset=mine') == dataclasses.replace(default, dataset='mine')
    assert read('--dataset=openwebtext') == default
    (folder / 'own.py').write_text('batch_size = 2')
    assert read('own.py') == dataclasses.replace(default, batch_size=2)
    (folder / 'data' / 'openwebtext').mkdir(parents=True)
    assert read('--device=cpu') == dataclasses.replace(default, device='cpu')
    assert capsys.readouterr().err == ''


@pytest.mark.slow
def test_typed_in_an_empty_folder_without_a_network_it_says_how_to_begin(folder):
    env = {'HF_HUB_OFFLINE': '1', 'HF_HOME': str(folder / 'cache'), 'HF_HUB_CACHE': str(folder / 'cache')}
    process = run_script('train.py', '--device=cpu', cwd=folder, env=env)
    assert process.returncode == 2
    note, error = process.stderr.strip().splitlines()
    assert note.startswith('note: neither a config file nor a --dataset')
    text = PROJECT / 'data' / 'childrens_stories' / 'childrens_stories.txt'
    prepare = ['prepare_bin.py', f'--input={text}', '--dataset=my_stories', '--tokenizer=tiny']
    start = ['train.py', 'config/finetune_own_text.py', '--init_from=tiny', '--dataset=my_stories', '--out_dir=out']
    for script, *arguments in (prepare, [*start, '--device=cpu']):
        assert f'python {script} {" ".join(arguments)}' in error
        call(script, *arguments, *(TINY if script == 'train.py' else ()))  # and these commands work
    call('sample.py', '--init_from=resume', '--max_new_tokens=3', '--device=cpu')


@pytest.mark.slow
@needs_gpt2_vocabulary
def test_training_evaluating_and_sampling_work_one_after_the_other(small_gpt2, capsys):
    call('train.py', CONFIG, '--init_from=gpt2-small', *TINY, '--learning_rate=1e-2', '--device=cpu')
    call('eval.py', '--init_from=resume', '--resamples=10', '--device=cpu')
    call('sample.py', '--init_from=resume', '--max_new_tokens=3', '--device=cpu')
    out = capsys.readouterr().out
    assert 'sample from it with: python sample.py --out_dir=out' in out
    assert 'All together have logprob' in out
    assert out.rstrip().endswith('(3 tokens)')


@pytest.mark.usefixtures('dataset')
def test_a_home_folder_in_paths(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'pairs.json').write_text('[["The cat went", " up"]]')
    paths = {'out_dir': '~/runs', 'eval_file': '~/pairs.json', 'dataset': '~/data/rhymes'}
    run(max_iters=1, **paths)
    run(max_iters=1, init_from='~/runs', out_dir='tuned')
    assert (tmp_path / 'runs' / 'ckpt.pt').exists()
    assert (tmp_path / 'tuned' / 'ckpt.pt').exists()
    assert not (tmp_path / '~').exists()
    assert '1 pairs of' in capsys.readouterr().out


@pytest.mark.usefixtures('dataset')
def test_a_dataset_named_with_its_folder(tmp_path):
    run(max_iters=1, dataset='data/rhymes/')
    assert (tmp_path / 'out' / 'ckpt.pt').exists()


@pytest.mark.usefixtures('dataset')
@pytest.mark.parametrize(
    ('val_fraction', 'block_size', 'short', 'advice'),
    [
        (0.9, 300, 'train', 'prepare more text, or a smaller --val_fraction'),
        (0.1, 300, 'val', 'prepare more text, or a larger --val_fraction'),
        (0.1, 100_000, 'train', 'prepare more text'),
    ],
)
def test_a_part_that_is_too_short_gets_the_advice_that_helps(val_fraction, block_size, short, advice):
    more = {'input': 'rhymes.txt', 'tokenizer': 'data/rhymes', 'val_fraction': val_fraction}
    prepare_bin.main(prepare_bin.Settings(dataset='parts', **more))
    with pytest.raises(UserError) as caught:
        run(dataset='parts', block_size=block_size)
    message = str(caught.value)
    assert message.startswith(f'data/parts/{short}.bin has ')
    assert message.endswith(advice)
    longest = int(re.search(r'--block_size=(\d+) or less', message)[1])
    if short == 'val':
        run(dataset='parts', block_size=longest, max_iters=1)


@pytest.mark.slow
def test_compiling_without_a_compiler_deletes_nothing(folder):
    (folder / 'out').mkdir()
    (folder / 'out' / 'ckpt.pt').write_bytes(b'an earlier run')
    (folder / 'no-programs').mkdir()
    typed = ('--init_from=scratch', '--compile=True', '--overwrite=True', '--device=cpu')
    env = {'PATH': str(folder / 'no-programs')}
    process = run_script('train.py', CONFIG, *typed, cwd=folder, env=env)
    assert_friendly_error(process, '--compile=True', 'C++ compiler', 'leave --compile out')
    assert (folder / 'out' / 'ckpt.pt').read_bytes() == b'an earlier run'
