"""Small datasets for the tests of training."""

import contextlib
import json
import shutil

import pytest
from helpers.training import PAIRS, TEXT

import prepare_bin


@pytest.fixture(scope='session')
def rhymes(tmp_path_factory):
    """A folder with a small text, pairs, and the datasets made from them: rhymes and questions."""
    folder = tmp_path_factory.mktemp('rhymes')
    (folder / 'rhymes.txt').write_text(TEXT)
    with contextlib.chdir(folder):
        prepare_bin.main(prepare_bin.Settings(input='rhymes.txt', dataset='rhymes', train_bpe=290))
        (folder / 'pairs.json').write_text(json.dumps(PAIRS))
        prepare_bin.main(prepare_bin.Settings(pairs='pairs.json', dataset='questions', tokenizer='data/rhymes'))
    return folder


@pytest.fixture
def dataset(rhymes, tmp_path, monkeypatch):
    """A copy of that for one test, which becomes the current folder."""
    shutil.copytree(rhymes, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
