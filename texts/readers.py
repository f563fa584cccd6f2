"""Find the input files and read their documents: one reader for each kind of file, chosen by its ending."""

import glob
from pathlib import Path

from common.errors import UserError
from common.files import expand_path, resolve_path
from common.notes import note
from common.text_files import read_text_chunks
from texts.csv_rows import is_common_name
from texts.plain_text import split_documents
from texts.tables import TABLES, row_documents

KINDS = ('.txt', *TABLES)  # the endings that read_files knows
WAYS_OUT = {  # other endings, and what to do about them
    '.xlsx .xls .xlsm .ods .numbers': 'save the sheet as CSV: File, Save As (or Download), CSV UTF-8',
    '.docx .doc .odt .rtf .pages .pdf .epub .html .htm': 'save it as plain text, UTF-8, with the ending .txt',
    '.gz .bz2 .xz .zst .zip .tar .tgz .7z .rar': 'unpack it first',
    '.md .text .tex .log': 'rename it to .txt if it is plain text',
    '.ndjson': 'rename it to .jsonl',
    '.tab .psv .dat': 'rename it to .csv',
    '.pkl .pickle .npy .npz .pt .h5': 'save its texts as .jsonl or .csv',
    '.arrow .feather .orc .db .sqlite': 'save its table as .parquet or .csv',
}


def input_paths(text):
    """Return the files named by a comma-separated list of files, folders and patterns such as 'books/*.txt'.

    A folder stands for all readable files in it and its subfolders, sorted by path, without hidden ones. Raises
    UserError if a file does not exist or is of an unknown kind.
    """
    paths = []
    for name in [text] if text and resolve_path(text).exists() else filter(None, map(str.strip, text.split(','))):
        found = sorted(glob.glob(str(expand_path(name)), recursive=True))
        for path in map(Path, found or [resolve_path(name)]):
            paths += files_below(path) if path.is_dir() else [path]
    for path in paths:
        if not path.exists():
            raise UserError(f'{path} cannot be read: No such file or directory')
        kind = path.suffix.lower()
        if kind not in KINDS:
            way_out = next((way for kinds, way in WAYS_OUT.items() if kind and kind in kinds.split()), None)
            raise UserError(
                f'{path} cannot be read: its name must end in one of {", ".join(KINDS)}'
                + (f'; {way_out}' if way_out else '')
            )
    return list({path.resolve(): path for path in paths}.values())  # each once, or train and val could share documents


def files_below(folder):
    """Return the readable files in a folder and its subfolders, sorted by path, without hidden ones."""
    found = {path.relative_to(folder): path for path in folder.rglob('*') if path.suffix.lower() in KINDS}
    names = [name for name in found if found[name].is_file() and not any(part.startswith('.') for part in name.parts)]
    if not names:
        raise UserError(f'the folder {folder} contains no {", ".join(KINDS)} files')
    return [found[name] for name in sorted(names, key=Path.as_posix)]


def read_files(paths, separator, column=''):
    """Yield the documents of files as strings, in order; '' for a table row without text.

    separator: what separates the documents of a text file. column: the column of a table that contains the text; '' if
    it is clear which one; see `texts.tables.row_documents`. Raises UserError if something cannot be read, with the file
    and the position in it.
    """
    shown = set()
    for path in paths:
        kind = path.suffix.lower()
        try:
            if kind in TABLES:
                yield from row_documents(TABLES[kind](path, column), column, path, shown)
            else:
                yield from split_documents(with_notes(read_text_chunks(path), path), separator)
        except OSError as error:
            raise UserError(f'{path} cannot be read: {error.strerror or error}') from error


def with_notes(chunks, path):
    """Yield the chunks of a text file; a note says so if its beginning is not plain text but a table or a web page."""
    for number, chunk in enumerate(chunks):
        if number == 0 and (kind := kind_of_lines([line for line in chunk.split('\n')[:20] if line.strip()])):
            note(f'{path} is read as plain text, but it looks like {kind}')
        yield chunk


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
