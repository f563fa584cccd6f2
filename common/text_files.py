"""Text files as people have them: UTF-8 with or without a byte-order mark, UTF-16 from Windows, any line endings.

They may be compressed: story.txt.gz is read like story.txt.
"""

import bz2
import codecs
import gzip
import io
import lzma
import zipfile
import zlib

from common.errors import UserError
from common.files import check_regular, expand_path, open_regular

CHUNK = 2**16  # bytes read at a time; with more, freed memory is too fragmented to be reused
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
OTHER_KINDS = {  # how files begin that are no text files, whatever their names
    b'PK\3\4': 'a zip archive or an Office document; unpack it, or save it as text or CSV',
    b'\xd0\xcf\x11\xe0': 'an old Office document; save it as text or CSV',
    b'%PDF': 'a PDF; save or copy its text into a text file',
    b'{\\rtf': 'an RTF document; save it as plain text (in TextEdit: Format, Make Plain Text)',
    b'\x1f\x8b': 'compressed with gzip; its name must end in .gz, as in story.txt.gz',
    b'BZh91AY&': 'compressed with bzip2; its name must end in .bz2, as in story.txt.bz2',
    b'\xfd7zXZ\0': 'compressed with xz; its name must end in .xz, as in story.txt.xz',
    b'\x28\xb5\x2f\xfd': 'compressed with Zstandard; unpack it first',
    b'7z\xbc\xaf': 'a 7z archive; unpack it first',
    b'Rar!': 'a RAR archive; unpack it first',
    b'PAR1': 'a Parquet table, which is read only from a name that ends in .parquet, and not as plain text',
    b'ARROW1\0': 'an Arrow table, which is read only from a name that ends in .arrow, and not as plain text',
    b'\xff\xff\xff\xff': 'an Arrow table, which is read only from a name that ends in .arrow, and not as plain text',
    b'SQLite f': 'a database; export its table as CSV',
    b'\x93NUMPY': 'a NumPy array; save its texts as .jsonl or .csv',
    b'\x89HDF': 'an HDF5 file; save its texts as .jsonl or .csv',
    b'\x80\4\x95': 'a pickle of Python; save its texts as .jsonl or .csv',
    b'\x80\5\x95': 'a pickle of Python; save its texts as .jsonl or .csv',
    b'\x89PNG': 'a picture',
    b'\xff\xd8\xff': 'a picture',
}
UTF32_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)  # one of them begins like a mark of UTF-16
PACKED = {'.gz': gzip.open, '.bz2': bz2.open, '.xz': lzma.open, '.zip': None}  # see open_packed


def text_kind(path):
    """Return the ending that tells what is in a file, in lower case: .csv for books.CSV, and for books.csv.gz."""
    kind = path.suffix.lower()
    return path.with_suffix('').suffix.lower() if kind in PACKED else kind


def read_text(path):
    """Return the text of a file, without its byte-order mark, line endings as \\n.

    Raises UserError, which names the byte and a way out, if the file is neither UTF-8 nor UTF-16 with a byte-order
    mark, or cannot be read.
    """
    return ''.join(read_text_chunks(path))


def read_text_chunks(path):
    """Yield the text of a file in chunks, so that a large one need not fit in memory; see `read_text`."""
    path = expand_path(path)
    try:
        with open_packed(path) as file:
            yield from decode_chunks(file, path)
    except OSError as error:  # while reading: a folder on the network that went away, a damaged disk
        raise UserError(f'cannot read {path}: {error.strerror or error}') from error
    except (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError) as error:  # the last: a password
        raise UserError(f'cannot unpack {path}: {error}') from error


def open_packed(path):
    """Open a file to read its bytes, unpacked if its name ends like that of a compressed file."""
    kind = path.suffix.lower()
    if kind not in PACKED:
        return open_regular(path)
    check_regular(path)
    return open_zipped(path) if kind == '.zip' else PACKED[kind](path)


def open_zipped(path):
    """Open the only file in a zip archive. Raises UserError if there are several; macOS adds some in __MACOSX."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.startswith('__MACOSX/')]
        if len(names) != 1:
            raise UserError(f'{path} contains {len(names)} files; unpack it first')
        return archive.open(names[0])  # stays open after its archive is closed


def decode_chunks(file, path):
    """Yield the decoded chunks of an open file."""
    start = file.read(8)
    file.seek(0)
    for mark, kind in OTHER_KINDS.items():
        if start.startswith(mark):
            raise UserError(f'{path} is not text: it is {kind}')
    if start.startswith(UTF32_MARKS):
        raise UserError(f'{path} is UTF-32 text; convert it to UTF-8: iconv -f UTF-32 -t UTF-8')
    is_utf16 = start.startswith(UTF16_MARKS)
    decoder = codecs.getincrementaldecoder('utf-16' if is_utf16 else 'utf-8-sig')()
    decoder = io.IncrementalNewlineDecoder(decoder, translate=True)
    place, final = 0, False
    while not final:
        data = file.read(CHUNK)
        final = not data
        if not is_utf16 and (nul := data.find(b'\0')) >= 0:
            hint = '; it is like UTF-16 without a byte-order mark: convert it to UTF-8: iconv -f UTF-16LE -t UTF-8'
            is_like_utf16 = data.count(b'\0') > len(data) / 4
            raise UserError(f'{path} is not text: byte {place + nul} is NUL{hint if is_like_utf16 else ""}')
        try:
            text = decoder.decode(data, final)
        except UnicodeDecodeError as error:
            byte = place + len(data) - len(error.object) + error.start  # the object is the end of what was read
            raise UserError(describe_bad_byte(path, byte, error)) from error
        place += len(data)
        yield text


def describe_bad_byte(path, byte, error):
    """Return a message about the first byte that cannot be decoded."""
    if error.encoding.startswith('utf-16'):
        return f'{path} is damaged UTF-16 text (byte {byte})'
    value = error.object[error.start]
    excel = ' (in Excel: CSV UTF-8)' if text_kind(path) == '.csv' else ''
    return (
        f'{path} is not UTF-8 text (byte {byte} is 0x{value:02x}); save it as UTF-8{excel}, or convert it, for example '
        'from the encoding of older Windows programs: iconv -f WINDOWS-1252 -t UTF-8'
    )
