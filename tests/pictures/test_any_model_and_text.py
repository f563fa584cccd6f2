"""Pictures of any model and any text."""

import contextlib

import pytest
from helpers.models import random_gpt
from helpers.pictures import (
    SIXTY,
    assert_picture,
    call,
    refused,
)

from lm import checkpoint
from lm.tokenizer import CharTokenizer
from visualize import PICTURES

pytestmark = pytest.mark.slow  # test_visualize.py draws each picture once

OF_A_TEXT = [name for name in PICTURES if name != 'embeddings']
CHARS = 'abcdefghijklmnopqrstuvwxyz .$_\n'


@pytest.fixture(scope='module')
def odd(tmp_path_factory):
    """A folder where somebody has trained a model as nanoGPT does: no biases, exact GELU, characters, padded ids."""
    folder = tmp_path_factory.mktemp('odd')
    model = random_gpt(64, 24, n_layer=2, n_head=2, bias=False, gelu='none', n_ids=len(CHARS))
    (folder / 'out').mkdir()
    checkpoint.save_checkpoint(folder / 'out' / 'ckpt.pt', model, CharTokenizer(CHARS), config={})
    one = random_gpt(len(CHARS), 8, n_layer=1, n_head=1, n_embd=4)
    (folder / 'one').mkdir()
    checkpoint.save_checkpoint(folder / 'one' / 'ckpt.pt', one, CharTokenizer(CHARS), config={})
    return folder


@pytest.mark.parametrize('picture', PICTURES)
def test_a_character_model_trained_as_in_nanogpt(picture, odd, here, capsys):
    about = ['--words=a,b,c, ,$'] if picture == 'embeddings' else ['--start=a $b_c$\nthe king']
    with contextlib.chdir(odd):
        call(picture, '--out_dir=out', *about, f'--save={here / "picture.png"}')
    assert_picture(here / 'picture.png')
    assert 'out' in capsys.readouterr().out


@pytest.mark.parametrize('picture', OF_A_TEXT)
@pytest.mark.parametrize(
    'start',
    [pytest.param('a', id='one token'), pytest.param('abcdefgh', id='as many as fit')],
)
def test_a_model_of_one_layer_and_one_head(picture, start, odd, here, capsys):
    with contextlib.chdir(odd):
        call(picture, '--out_dir=one', f'--start={start}', f'--save={here / "picture.png"}')
        assert 'at most 8' in refused(picture, '--out_dir=one', '--start=abcdefghi')
    assert_picture(here / 'picture.png', at_least=250)


@pytest.mark.parametrize('picture', OF_A_TEXT)
@pytest.mark.parametrize(
    'start',
    [
        pytest.param('', id='empty'),
        pytest.param('naïve 日本 🦊 $x_1$', id='unicode'),
        pytest.param(SIXTY, id='sixty tokens'),
    ],
)
def test_any_text(picture, start, here, capsys):
    call(picture, f'--start={start}', '--save=picture.png')
    assert_picture(here / 'picture.png')
    if not start:
        assert '<|endoftext|>' in capsys.readouterr().out


def test_a_text_without_tokens_needs_an_end_of_text(odd, here):
    with contextlib.chdir(odd):
        assert 'prompt is empty' in refused('layers', '--out_dir=out', '--start=')
