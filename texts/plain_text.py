"""Read a .txt file and split it into documents.

However large the file, only a few megabytes of it are in memory. A document of more than LONGEST characters becomes
several.
"""

import codecs
import io
import re
from itertools import chain

from common.errors import UserError

CHUNK = 2**16  # bytes read at once; larger chunks fragment the memory
LONGEST = 2**22  # characters of the longest document: about eight novels


def read_text(path):
    """Yield a UTF-8 file in chunks of text, with \\n as line ending.

    Raises UserError if the file is not UTF-8, with the position of the bad byte.
    """
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder('utf-8-sig')(), translate=True)
    with open(path, 'rb') as file:
        final = False
        while not final:
            data = file.read(CHUNK)
            final = not data
            try:
                yield decoder.decode(data, final)
            except UnicodeDecodeError as error:
                at = file.tell() - len(error.object) + error.start  # error.object: the last bytes read
                raise UserError(
                    f'{path} is not UTF-8 text (byte {at}); convert it, for example with iconv -t UTF-8'
                ) from error


def split_documents(chunks, separator):
    """Yield the documents of a text that arrives in chunks, without the empty lines around them."""
    text = ''
    for lines in whole_lines(chunks):
        *documents, text = (text + empty_blank_lines(lines)).split(separator)
        while len(text) > LONGEST + len(separator):  # never cuts a separator of which only a part has arrived
            at = find_cut(text, 0)
            documents.append(text[:at])
            text = text[at:]
        yield from filter(None, chain.from_iterable(map(cut_long, documents)))
    yield from filter(None, cut_long(text))


def whole_lines(chunks):
    """Yield the text of chunks cut at line ends, except inside a line of more than LONGEST characters."""
    rest = ''
    for chunk in chunks:
        lines, newline, rest = (rest + chunk).rpartition('\n')
        yield lines + newline
        if len(rest) > LONGEST:
            yield rest
            rest = ''
    yield rest


def empty_blank_lines(text):
    """Empty the lines that contain only spaces and tabs."""
    return re.sub(r'\n[ \t]+(?=\n)', '\n', f'\n{text}\n')[1:-1]  # faster than a pattern that begins with ^


def cut_long(text):
    """Yield a text in parts of at most LONGEST characters, without the empty lines around them."""
    start = 0
    while len(text) - start > LONGEST:
        end = find_cut(text, start)
        yield text[start:end].strip('\n')
        start = end
    yield text[start:].strip('\n')


def find_cut(text, start):
    """Return where to end the part of a long text that begins at `start`: after a line, else a word, else anywhere."""
    least, most = start + LONGEST // 2, start + LONGEST
    return next((end for mark in '\n ' if (end := text.rfind(mark, least, most) + 1)), most)
