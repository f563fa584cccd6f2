"""A JSON file that cannot be read gives one line with the true cause; so does anything that is no regular file."""

import os

import pytest

from common.errors import UserError
from common.files import check_regular, is_there, open_regular
from common.json_files import parse_json, read_json, read_json_object


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
    path = tmp_path / 'a.json'
    path.write_text('{"a": [1, null, "é"]}', encoding='utf-8-sig')
    assert read_json(path) == read_json_object(path) == {'a': [1, None, 'é']}
    assert check_regular(path) == path.stat().st_size


DAMAGED = {
    'nested': (b'[' * 200_000, 'nested too deeply'),
    'half': (b'{"a": 1', 'is not JSON'),
    'empty': (b'', 'is not JSON'),
    'latin-1': (b'{"a": "\xe9"}', 'not UTF-8 text .byte 7 is 0xe9'),
    'digits': (b'1' * 5000, 'is not JSON'),
    'list': (b'[1]', 'it holds a list, not a JSON object'),
    'number': (b'1', 'it holds a number, not a JSON object'),
}


@pytest.mark.parametrize('kind', DAMAGED)
def test_damaged_json_is_named_with_what_is_wrong(tmp_path, kind):
    data, words = DAMAGED[kind]
    path = tmp_path / 'a.json'
    path.write_bytes(data)
    with pytest.raises(UserError, match=words) as caught:
        read_json_object(path)
    assert str(path) in str(caught.value)


def test_a_file_too_large_to_be_json_is_not_read_into_memory(tmp_path):
    path = tmp_path / 'a.json'
    with open(path, 'wb') as file:
        file.truncate(2**40)  # a hole, which takes no room
    with pytest.raises(UserError, match='more than 512 MiB'):
        read_json(path)


def test_a_text_in_a_checkpoint_is_parsed_alike():
    assert parse_json('[1]') == [1]
    with pytest.raises(ValueError, match='nested too deeply'):
        parse_json('{"a":' * 100_000)


def test_only_regular_files_are_opened(tmp_path, monkeypatch):
    file, pipe, broken, loop = (tmp_path / name for name in ('file', 'pipe', 'broken', 'loop'))
    file.write_text('x')
    os.mkfifo(pipe)
    broken.symlink_to(tmp_path / 'nowhere')
    loop.symlink_to(loop)
    reasons = {
        tmp_path: 'it is a folder',
        pipe: 'it is a pipe, socket or device',
        tmp_path / 'none': 'No such file',
        broken: 'a link to .*nowhere, which does not exist',
        loop: 'Too many levels of symbolic links',
        tmp_path / ('x' * 300): 'File name too long',
    }
    for path, reason in reasons.items():
        with pytest.raises(UserError, match=f'cannot read .*: .*{reason}'):
            open_regular(path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'link').symlink_to('file')
    with open_regular('link') as opened:
        assert opened.read() == b'x'


def test_a_file_without_permission_is_not_called_damaged(tmp_path, monkeypatch):
    path = tmp_path / 'a.json'
    path.write_text('{}')

    def refuse(*_):  # as for anybody but root, who may read everything
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr('builtins.open', refuse)
    with pytest.raises(UserError, match=r'cannot read .*a\.json: Permission denied'):
        read_json(path)


def test_a_broken_link_is_there(tmp_path):
    (tmp_path / 'broken').symlink_to(tmp_path / 'nowhere')
    (tmp_path / 'file').write_text('x')
    assert is_there(tmp_path / 'broken')
    assert not is_there(tmp_path / 'none')
    assert not is_there(tmp_path / 'file' / 'none')
    for name in ('x' * 300, 'a\0b'):
        with pytest.raises(UserError, match='cannot read'):
            is_there(tmp_path / name)
