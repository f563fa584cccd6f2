"""Downloading from the Hugging Face hub, against a server on this machine that answers as the hub does."""

import os
import shutil
import subprocess
import sys

import pytest
from helpers.hub import COMMIT, hub_server
from helpers.models import random_gpt
from helpers.scripts import assert_friendly_error, run_script

from lm.checkpoint import save_pretrained
from lm.tokenizer import CharTokenizer, train_bpe


@pytest.fixture
def hub(tmp_path):
    """Serve the model someone/fake; yields its folder and the environment that points there, and stops on request."""
    folder = tmp_path / 'served' / 'someone' / 'fake'
    tokenizer = train_bpe(['Once upon a time there was a cat.'] * 9, 270)
    save_pretrained(random_gpt(vocab_size=tokenizer.vocab_size), folder, tokenizer)
    (folder / 'README.md').write_text('not wanted')
    with hub_server(tmp_path / 'served', tmp_path / 'cache') as (server, env):
        yield folder, env, server


@pytest.mark.slow
@pytest.mark.parametrize('file', ['model.safetensors', pytest.param('pytorch_model.bin', marks=pytest.mark.slow)])
def test_a_model_is_fetched_once_and_then_needs_no_network(hub, tmp_path, file):
    import torch
    from safetensors.torch import load_file

    folder, env, server = hub
    if file == 'pytorch_model.bin':
        torch.save(load_file(folder / 'model.safetensors'), folder / file)
        (folder / 'model.safetensors').unlink()
    command = ('sample.py', '--init_from=someone/fake', '--start=a cat', '--max_new_tokens=5', '--device=cpu')
    first = run_script(*command, cwd=tmp_path, env=env)
    assert first.returncode == 0, first.stderr
    assert not list((tmp_path / 'cache').rglob('README.md'))
    server.shutdown()
    server.server_close()
    second = run_script(*command, cwd=tmp_path, env=env)
    assert (second.returncode, second.stdout) == (0, first.stdout)


@pytest.mark.slow
def test_a_name_that_the_hub_does_not_know(hub, tmp_path):
    process = run_script('sample.py', '--init_from=someone/else', cwd=tmp_path, env=hub[1])
    assert_friendly_error(process, "'someone/else'", 'no model of that name on the hub')


@pytest.mark.slow
def test_characters_that_another_program_fetched_are_characters(hub, tmp_path):
    """What is on the hub has one description of its tokenizer, which `transformers` fetches, too."""
    folder, env, _ = hub
    letters = CharTokenizer('\n abcdefghijklmnopqrstuvwxyz')
    save_pretrained(random_gpt(vocab_size=letters.vocab_size), folder, letters)
    fetch = "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; n = 'someone/fake'; "
    fetch += 'print(M.from_pretrained(n).config.vocab_size, T.from_pretrained(n)("a cat")["input_ids"])'
    theirs = subprocess.run([sys.executable, '-c', fetch], env={**os.environ, **env}, capture_output=True, text=True)
    assert theirs.stdout == f'{letters.vocab_size} {letters.encode("a cat")}\n', theirs.stderr
    command = ('sample.py', '--init_from=someone/fake', '--start=a cat', '--max_new_tokens=5', '--device=cpu')
    process = run_script(*command, cwd=tmp_path, env=env)
    assert process.returncode == 0 and process.stdout.startswith('a cat'), process.stderr


@pytest.mark.slow
def test_a_cache_that_another_program_filled_in_part_is_completed(hub, tmp_path):
    """transformers' AutoModel fetches no tokenizer; the one that the model has must not be guessed."""
    folder, env, _ = hub
    snapshot = tmp_path / 'cache' / 'hub' / 'models--someone--fake' / 'snapshots' / COMMIT
    snapshot.mkdir(parents=True)
    for file in ('config.json', 'model.safetensors'):
        shutil.copy(folder / file, snapshot / file)
    (snapshot.parent.parent / 'refs').mkdir()
    (snapshot.parent.parent / 'refs' / 'main').write_text(COMMIT)
    process = run_script('sample.py', '--init_from=someone/fake', '--start=a cat', cwd=tmp_path, env=env)
    assert process.returncode == 0, process.stderr
    assert (snapshot / 'tokenizer.json').exists()
