"""Text files as people have them are read alike; anything else is refused with the place and a way out."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import text_files
from common.errors import UserError
from common.text_files import read_text, read_text_chunks

TEXT = 'The fox ran.\nDie Füchsin 🦊, “schnell”.\n\n  Ende'


@pytest.mark.parametrize('ending', ['\n', '\r\n', '\r'])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_what_notepad_and_powershell_write_is_the_same_text(tmp_path, encoding, ending):
    path = tmp_path / 'text.txt'
    path.write_bytes(TEXT.replace('\n', ending).encode(encoding))
    assert read_text(path) == TEXT


def test_big_endian_utf16_is_read(tmp_path):
    (tmp_path / 'text.txt').write_bytes(b'\xfe\xff' + TEXT.encode('utf-16-be'))
    assert read_text(tmp_path / 'text.txt') == TEXT


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.sampled_from('aé🐌\r\n \ufeff')), chunk=st.integers(1, 7), utf16=st.booleans())
def test_a_file_is_decoded_as_by_python_whatever_the_chunks(tmp_path_factory, text, chunk, utf16):
    path = tmp_path_factory.getbasetemp() / 'decoded.txt'
    path.write_bytes(text.encode('utf-16' if utf16 else 'utf-8'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, 'CHUNK', chunk)
        assert ''.join(read_text_chunks(path)) == path.read_text(encoding='utf-16' if utf16 else 'utf-8-sig')


@pytest.mark.parametrize('chunk', [1, 3, 64, 2**20])
@pytest.mark.parametrize('bad', [b'\xff', b'\xc3', b'\xf0\x9f\x90'])
def test_the_error_names_the_first_byte_that_is_not_utf8(tmp_path, monkeypatch, chunk, bad):
    monkeypatch.setattr(text_files, 'CHUNK', chunk)
    good = '\ufeffé🐌\r\n'.encode() * 5
    for after in (b'', b'more'):
        (tmp_path / 'bad.txt').write_bytes(good + bad + after)
        with pytest.raises(
            UserError, match=rf'bad\.txt is not UTF-8 text \(byte {len(good)} is 0x{bad[0]:x}\); save it as UTF-8'
        ):
            read_text(tmp_path / 'bad.txt')


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ('Fräulein Fuchs'.encode('utf-16-le'), r'UTF-16 without a byte-order mark.*iconv -f UTF-16LE'),
        ('Fuchs'.encode('utf-32'), r'UTF-32.*iconv -f UTF-32'),
        (TEXT.encode('utf-16')[:-1], r'damaged UTF-16 text \(byte \d+\)'),
        (b'PK\3\4\x14\0\x06\0', r'Office document.*CSV'),
        (b'{\\rtf1\\ansi The fox ran.}', r'RTF.*plain text'),
        (b'%PDF-1.7', 'PDF'),
        (b'\x1f\x8b\x08\0', r'gzip; its name must end in \.gz'),
    ],
)
def test_a_file_that_is_not_text_is_refused_with_a_way_out(tmp_path, content, words):
    (tmp_path / 'text.txt').write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_text(tmp_path / 'text.txt')


@pytest.mark.parametrize('name', ['.', 'missing.txt'])
def test_a_folder_or_a_missing_file_is_an_error(tmp_path, name):
    with pytest.raises(UserError, match='cannot read'):
        read_text(tmp_path / name)


def test_a_path_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'text.txt').write_text(TEXT, encoding='utf-8')
    assert read_text('~/text.txt') == TEXT
