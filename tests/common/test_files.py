"""Finding files, hashing them, and writing them completely or not at all."""

import hashlib
import os
import stat
from pathlib import Path

import pytest

from common.errors import UserError
from common.files import PROJECT, atomic_write, create_run_folder, expand_path, file_sha256, resolve_path


def names_in(folder):
    return {path.name for path in folder.iterdir()}


def test_a_written_file_replaces_the_old_one_when_complete(tmp_path):
    path = tmp_path / 'new' / 'folder' / 'file.txt'
    for text in ('first', 'second'):
        with atomic_write(path) as temporary:
            temporary.write_text(text)
            assert temporary.parent == path.parent  # the same file system, or it could not be renamed
            assert not path.exists() or path.read_text() == 'first'
        assert path.read_text() == text
        assert names_in(path.parent) == {'file.txt'}


@pytest.mark.parametrize('error', [ValueError('wrong'), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, error):
    path = tmp_path / 'file.txt'
    path.write_text('old')
    with pytest.raises(type(error)), atomic_write(path) as temporary:
        temporary.write_text('half of it')
        raise error
    assert path.read_text() == 'old'
    assert names_in(tmp_path) == {'file.txt'}


def test_a_full_disk_is_an_error_of_one_line(tmp_path):
    path = tmp_path / 'file.txt'
    with pytest.raises(UserError, match=r'cannot write .*file\.txt: No space left'), atomic_write(path):
        raise OSError(28, 'No space left on device')
    assert names_in(tmp_path) == set()


def test_a_file_in_place_of_a_folder_is_an_error(tmp_path):
    (tmp_path / 'out').write_text('a file')
    with pytest.raises(UserError, match='cannot write'), atomic_write(tmp_path / 'out' / 'ckpt.pt'):
        pass
    assert (tmp_path / 'out').read_text() == 'a file'


@pytest.mark.skipif(os.name == 'nt', reason='Windows has other permissions')
def test_a_written_file_has_ordinary_permissions(tmp_path):
    ordinary = tmp_path / 'ordinary'
    ordinary.write_text('')
    with atomic_write(tmp_path / 'file') as temporary:
        temporary.write_text('')
    assert stat.S_IMODE((tmp_path / 'file').stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


def test_a_path_is_found_here_first_and_then_in_the_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_path('model.py') == PROJECT / 'model.py'
    (tmp_path / 'model.py').write_text('mine')
    assert resolve_path('model.py').read_text() == 'mine'
    assert str(resolve_path('no/such/file')) == str(Path('no/such/file'))


def test_the_sha256_of_a_file(tmp_path):
    content = bytes(range(256)) * 1000
    (tmp_path / 'file').write_bytes(content)
    assert file_sha256(tmp_path / 'file') == hashlib.sha256(content).hexdigest()


@pytest.mark.skipif(os.name == 'nt', reason='Windows has no HOME')
def test_a_tilde_is_the_home_folder_in_every_path(tmp_path, monkeypatch):
    """Otherwise --out_dir=~/x makes a folder called ~, and who removes it with rm -r ~ loses everything."""
    home, here = tmp_path / 'home', tmp_path / 'here'
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv('HOME', str(home))
    monkeypatch.chdir(here)
    assert expand_path('~/x') == home / 'x'
    assert expand_path('x/~') == Path('x/~')
    assert expand_path('~nobody-of-that-name/x') == Path('~nobody-of-that-name/x')
    with atomic_write('~/out/file.txt') as temporary:
        temporary.write_text('new')
    assert resolve_path('~/out/file.txt').read_text() == 'new'
    assert create_run_folder('~/results', 'run').parent == home / 'results'
    assert names_in(here) == set()
