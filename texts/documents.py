"""Documents: read from text files, tables (.jsonl, .csv, .parquet) or the Hugging Face hub, and shared out to splits.

A text file holds documents with a separator between them; in a table every row is one. However large the source, only
a few megabytes of it are in memory: a document longer than LONGEST characters is cut into several.
"""

import codecs
import io
import re
from itertools import chain

from common.errors import UserError

CHUNK = 2**16  # bytes that are read at once; with more, freed memory lies in pieces that are hard to use again
LONGEST = 2**22  # characters of the longest document: about eight novels


# Text files ----------------------------------------------------------------------------------------------------------


def read_text(path):
    """Yield a UTF-8 file in chunks of text, its line ends made \\n. Raises UserError if it is none, with the byte."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder('utf-8-sig')(), translate=True)
    with open(path, 'rb') as file:
        final = False
        while not final:
            data = file.read(CHUNK)
            final = not data
            try:
                yield decoder.decode(data, final)
            except UnicodeDecodeError as error:
                at = file.tell() - len(error.object) + error.start  # the object is the end of what has been read
                raise UserError(
                    f'{path} is not UTF-8 text (byte {at}); convert it, for example with iconv -t UTF-8'
                ) from error


def split_documents(chunks, separator):
    """Yield the documents of a text that comes in chunks, without the empty lines around them."""
    text = ''
    for lines in whole_lines(chunks):
        *documents, text = (text + empty_blank_lines(lines)).split(separator)
        while len(text) > LONGEST + len(separator):  # so that a separator that has only half arrived is not cut
            at = place_to_cut(text, 0)
            documents.append(text[:at])
            text = text[at:]
        yield from filter(None, chain.from_iterable(map(cut_long, documents)))
    yield from filter(None, cut_long(text))


def whole_lines(chunks):
    """Yield the text of chunks cut at the ends of lines, unless a line is too long to wait for its end."""
    rest = ''
    for chunk in chunks:
        lines, newline, rest = (rest + chunk).rpartition('\n')
        yield lines + newline
        if len(rest) > LONGEST:
            yield rest
            rest = ''
    yield rest


def empty_blank_lines(text):
    """Make lines that hold nothing but white space empty."""
    return re.sub(r'\n[ \t]+(?=\n)', '\n', f'\n{text}\n')[1:-1]  # a pattern that begins with a letter is a fast one


def cut_long(text):
    """Yield the parts of a text, LONGEST characters at the most, without the empty lines around them."""
    start = 0
    while len(text) - start > LONGEST:
        end = place_to_cut(text, start)
        yield text[start:end].strip('\n')
        start = end
    yield text[start:].strip('\n')


def place_to_cut(text, start):
    """Return where the part of a long text that begins at `start` ends: after a line, else a word, else anywhere."""
    least, most = start + LONGEST // 2, start + LONGEST
    return next((end for mark in '\n ' if (end := text.rfind(mark, least, most) + 1)), most)
