"""A small dataset for the tests of training."""

import contextlib
import shutil

import pytest
from helpers.training import TEXT

import prepare_bin


@pytest.fixture(scope='session')
def rhymes(tmp_path_factory):
    """A folder with a small text and the dataset made from it."""
    folder = tmp_path_factory.mktemp('rhymes')
    (folder / 'rhymes.txt').write_text(TEXT)
    with contextlib.chdir(folder):
        prepare_bin.main(prepare_bin.Settings(input='rhymes.txt', dataset='rhymes', train_bpe=290))
    return folder


@pytest.fixture
def dataset(rhymes, tmp_path, monkeypatch):
    """A copy of that for one test, which becomes the current folder."""
    shutil.copytree(rhymes, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
