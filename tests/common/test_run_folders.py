"""A new folder for the results of each run."""

import concurrent.futures
import datetime
import types

import pytest

from common import files
from common.errors import UserError
from common.files import create_run_folder


class Frozen(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2025, 11, 20, 9, 30, 0)


def test_each_run_gets_a_new_folder_even_within_a_second(tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'datetime', types.SimpleNamespace(datetime=Frozen))
    with concurrent.futures.ThreadPoolExecutor(8) as several:
        folders = list(
            several.map(lambda _: create_run_folder(tmp_path / 'results', 'gpt2-Once upon a time'), range(40))
        )
    assert len(set(folders)) == 40
    assert all(folder.is_dir() and not any(folder.iterdir()) for folder in folders)
    assert all(folder.parent == tmp_path / 'results' for folder in folders)


@pytest.mark.parametrize(
    'name', ['gpt2-Once upon a time', '../../etc/passwd', 'a/b\\c:d*?"<>|\n', 'x' * 1000, '中文', '🙂', '', '---', '.']
)
def test_the_name_suits_every_file_system(tmp_path, name):
    folder = create_run_folder(tmp_path, name)
    assert folder.is_dir() and folder.parent == tmp_path
    assert len(folder.name) < 100
    assert set(folder.name) <= set('abcdefghijklmnopqrstuvwxyz0123456789-')


def test_the_name_contains_the_run_and_the_date(tmp_path):
    assert create_run_folder(tmp_path, 'gpt2-Once upon a time').name.startswith('gpt2-once-upon-a-time-20')


@pytest.mark.parametrize('parent', ['results', 'results/deeper'])
def test_a_file_in_place_of_the_parent_is_an_error(tmp_path, parent):
    (tmp_path / 'results').write_text('mine')
    with pytest.raises(UserError, match='results'):
        create_run_folder(tmp_path / parent, 'gpt2')
    assert (tmp_path / 'results').read_text() == 'mine'
