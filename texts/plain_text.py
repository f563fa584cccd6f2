"""Split the text of a .txt file into documents.

However large the file, only a few megabytes of it are in memory. A document of more than LONGEST characters becomes
several.
"""

import re
from itertools import chain

LONGEST = 2**22  # characters of the longest document: about eight novels


def split_documents(chunks, separator):
    """Yield the documents of a text that arrives in chunks, without the empty lines around them."""
    text, end = '', '\n'
    for lines in whole_lines(chunks):
        *documents, text = (text + empty_blank_lines(lines, end)).split(separator)
        end = lines[-1:] or end
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


def empty_blank_lines(text, before='\n'):
    """Empty the lines that contain only spaces and tabs. before: the character before the text."""
    return re.sub(r'\n[ \t]+(?=\n)', '\n', f'{before}{text}\n')[1:-1]  # faster than a pattern that begins with ^


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
