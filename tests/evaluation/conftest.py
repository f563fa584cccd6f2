"""What tests of evaluations have: a folder with small models and pairs."""

import shutil

import pytest
from helpers.evaluation import write_pairs
from helpers.models import random_gpt
from helpers.scripts import PROJECT

from evaluation import markdown
from lm import checkpoint
from lm.tokenizer import tokenizer_from_folder, train_bpe


@pytest.fixture(scope='session')
def small_models(tmp_path_factory):
    """A folder with two small random models of one tokenizer, one and two, and one of another tokenizer, other."""
    folder = tmp_path_factory.mktemp('small_models')
    shared = tokenizer_from_folder(PROJECT / 'models' / 'tiny')
    other = train_bpe([(PROJECT / 'eval_data.json').read_text()], 400)
    for name, tokenizer, seed in [('one', shared, 1), ('two', shared, 2), ('other', other, 3)]:
        model = random_gpt(vocab_size=tokenizer.vocab_size, block_size=48, n_embd=16, seed=seed)
        for parameter in model.parameters():
            parameter.data *= 0.5
        checkpoint.save_pretrained(model, folder / name, tokenizer)
    return folder


@pytest.fixture
def here(small_models, tmp_path, monkeypatch):
    """The current folder: it has the small models and 90 pairs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MPLBACKEND', 'Agg')
    for name in ('one', 'two', 'other'):
        shutil.copytree(small_models / name, tmp_path / name)
    write_pairs('pairs.jsonl', 90)
    return tmp_path


@pytest.fixture
def without_pictures(monkeypatch):
    """Leave out the report's pictures, which take most of the time of a small evaluation."""
    for name in ('draw_before_after', 'draw_token_sheet', 'draw_reliability'):
        monkeypatch.setattr(markdown, name, lambda *arguments: None)
