"""Find the input files and read their documents: one reader for each kind of file, chosen by its ending."""

import glob
import os
import re
from collections import Counter
from pathlib import Path

from common.errors import UserError
from common.files import expand_path, resolve_path
from common.notes import note
from common.text_files import read_text_chunks, text_kind
from texts.csv_rows import is_common_name
from texts.plain_text import split_documents
from texts.tables import TABLES, row_documents

KINDS = ('.txt', *TABLES)  # the endings that read_files knows, also with .gz, .bz2, .xz or .zip after them
PLAIN = ('.md', '.markdown', '.text', '.log', '.tex', '.rst')  # read like .txt, but only if they are named
WAYS_OUT = {  # other endings, and what to do about them
    '.xlsx .xls .xlsm .ods .numbers': 'save the sheet as CSV: File, Save As (or Download), CSV UTF-8',
    '.docx .doc .odt .rtf .pages .pdf .epub .html .htm .xml': 'save it as plain text, UTF-8, with the ending .txt',
    '.gz .bz2 .xz .zst .zip .tar .tgz .7z .rar': 'unpack it first',
    '.ndjson': 'rename it to .jsonl',
    '.tab .psv .dat': 'rename it to .csv',
    '.pkl .pickle .npy .npz .pt .h5': 'save its texts as .jsonl or .csv',
    '.orc .db .sqlite': 'save its table as .parquet or .csv',
    '.yaml .yml': 'save it as .json',
    '.ipynb': 'save the notebook as Markdown: File, Save and Export Notebook As',
}
SAVED_DATASET = ('dataset_info.json', 'state.json', 'dataset_dict.json')  # what save_to_disk of `datasets` adds


def input_paths(text):
    """Return the files named by a comma-separated list of files, folders and patterns such as 'books/*.txt'.

    A folder stands for all readable files in it and its subfolders, sorted by path, without hidden ones; a note names
    them. Raises UserError if a file does not exist or is of an unknown kind.
    """
    paths = []
    for name in [text] if text and resolve_path(text).exists() else filter(None, map(str.strip, text.split(','))):
        here = resolve_path(name)  # a file whose name has a [1] in it is no pattern
        found = [] if here.exists() else sorted(glob.glob(str(expand_path(name)), recursive=True))
        for path in map(Path, found or [here]):
            paths += files_below(path) if path.is_dir() else [path]
    for path in paths:
        if not path.exists():
            hint = '; it is an address: download the file first' if re.match('https?:/', str(path)) else ''
            raise UserError(f'{path} cannot be read: No such file or directory{hint}')
        if text_kind(path) not in (*KINDS, *PLAIN):
            raise UserError(
                f'{path} cannot be read: its name must end in one of {", ".join(KINDS)}; {way_out(path.suffix)}'
            )
    return list({path.resolve(): path for path in paths}.values())  # each once, or train and val could share documents


def way_out(ending):
    """Return what to do about a file that has an unknown ending."""
    found = [way for endings, way in WAYS_OUT.items() if ending.lower() in endings.split()]
    return found[0] if found else 'if it is plain text, rename it to .txt'


def files_below(folder):
    """Return the readable files in a folder and its subfolders, sorted by path, without hidden ones.

    A note names them, and the endings of the others. Raises UserError if there are none.
    """
    visible = [path.relative_to(folder) for path in _walk(folder) if path.is_file()]
    visible = [name for name in visible if not any(part.startswith(('.', '~$')) for part in name.parts)]  # ~$: Word's
    names = sorted((name for name in visible if is_text_of_folder(folder / name)), key=Path.as_posix)
    others = Counter(name.suffix for name in set(visible) - set(names)).most_common()
    if not names:
        named = next((ending for ending, _ in others if ending.lower() in PLAIN), None)
        hint = '' if not others else f', but {others[0][0] or "some without an ending"}; {way_out(others[0][0])}'
        hint = f', but {named}; name them to have them read: --input="{folder}/**/*{named}"' if named else hint
        raise UserError(f'the folder {folder} contains no {", ".join(KINDS)} files{hint}')
    left_out = ', '.join(f'{count} {ending or "without an ending"}' for ending, count in others[:5])
    listed = ', '.join(map(str, names[:5])) + (', ...' if len(names) > 5 else '')
    note(
        f'{folder}: {len(names):,} file{"s are" if len(names) > 1 else " is"} read ({listed})'
        + (f'; others are left out ({left_out}{", ..." if len(others) > 5 else ""})' if left_out else '')
    )
    return [folder / name for name in names]


def _walk(folder):
    """Yield the files in a folder and its subfolders. Raises UserError for one that may not be read: rglob skips it."""

    def refuse(error):
        raise UserError(f'cannot read {error.filename}: {error.strerror}') from error

    for path, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(path) / name for name in names)


def is_text_of_folder(path):
    """Return whether a file is read if its folder is named."""
    is_about_others = path.name in SAVED_DATASET and next(path.parent.rglob('*.arrow'), None) is not None
    return text_kind(path) in KINDS and not is_about_others


def read_files(paths, separator, column=''):
    """Yield the documents of files as strings, in order; '' for a table row without text.

    separator: what separates the documents of a text file. column: the column of a table that contains the text; '' if
    it is clear which one; see `texts.tables.row_documents`. Raises UserError if something cannot be read, with the file
    and the position in it.
    """
    shown = set()
    for path in paths:
        kind = text_kind(path)
        try:
            if kind in TABLES:
                yield from row_documents(TABLES[kind](path, column), column, path, shown)
            else:
                yield from split_documents(with_notes(read_text_chunks(path), path, separator), separator)
        except OSError as error:
            raise UserError(f'{path} cannot be read: {error.strerror or error}') from error


def with_notes(chunks, path, separator):
    """Yield the chunks of a text file; notes say what its beginning looks like if it is not only prose."""
    for number, chunk in enumerate(chunks):
        if number == 0 and (kind := kind_of_text(chunk, separator)):
            note(f'{path} is read as plain text, but it {kind}')
        yield chunk


def kind_of_text(text, separator):
    """Return what the beginning of a text file is besides prose, as the end of a sentence; None if it is nothing else.

    The file is read unchanged, marks and headers included, so the user is told.
    """
    lines = [line for line in text.split('\n')[:20] if line.strip()]
    if '<|endoftext|>' in text and '<|endoftext|>' not in separator:
        return "contains <|endoftext|>; if that is between its documents, add --separator='<|endoftext|>'"
    if 'Project Gutenberg' in ''.join(lines):
        return 'begins with the header of Project Gutenberg, and may end with its licence; delete what is not the book'
    if '\x1b[' in text:
        return f'contains the colour codes of a terminal, such as {text[text.index(chr(27)) :][:5]!r}'
    if any(re.fullmatch(r'[\d:.,]+ --> [\d:.,]+.*', line) for line in lines):
        return 'looks like subtitles, with their numbers and times'
    kind = kind_of_lines(lines)
    return f'looks like {kind}' if kind else None


def kind_of_lines(lines):
    """Return what the first lines of a text file look like if it is not plain text."""
    if lines and lines[0].lstrip().lower().startswith(('<!doctype html', '<html')):
        return 'a web page'
    has_names = bool(lines) and '\t' in lines[0] and is_common_name(*lines[0].split('\t'))
    if has_names or (len(lines) > 2 and len(tabs := {line.count('\t') for line in lines[:-1]}) == 1 and tabs != {0}):
        return 'a table with tabs; if it is one, rename it to .tsv'
    if lines and all(line[0] == '{' and line[-1] == '}' and '":' in line for line in lines[:-1] or lines):
        return 'JSON Lines; if it is, rename it to .jsonl'
    return None
