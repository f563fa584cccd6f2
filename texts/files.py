"""TODO."""

import glob
from pathlib import Path

from common.errors import UserError
from common.files import resolve_path
from texts.documents import read_text, split_documents
from texts.tables import TABLES, row_documents


def input_paths(text):
    """Return the files that a comma-separated list of names, folders and patterns such as 'books/*.txt' means.

    Of a folder, all files below it that can be read, sorted by path; hidden ones stay out. Raises UserError for a file
    that is not there or of a kind that is not read.
    """
    paths = []
    for name in [text] if text and resolve_path(text).exists() else filter(None, text.split(',')):
        for path in map(Path, sorted(glob.glob(name, recursive=True)) or [resolve_path(name)]):
            paths += files_below(path) if path.is_dir() else [path]
    for path in paths:
        if not path.exists():
            raise UserError(f'{path} cannot be read: No such file or directory')
        if path.suffix.lower() not in KINDS:
            raise UserError(f'{path} is of a kind that is not read; those that are: {", ".join(KINDS)}')
    return list({path.resolve(): path for path in paths}.values())  # once each, or val would hold what train holds


def files_below(folder):
    """Return the files in a folder and its folders that can be read, sorted by path, without hidden ones."""
    found = {path.relative_to(folder): path for path in folder.rglob('*') if path.suffix.lower() in KINDS}
    names = [name for name in found if found[name].is_file() and not any(part.startswith('.') for part in name.parts)]
    if not names:
        raise UserError(f'there is nothing to read in the folder {folder}: no {", ".join(KINDS)}')
    return [found[name] for name in sorted(names, key=Path.as_posix)]


def read_files(paths, separator, column=''):
    """Yield the documents of files, in order, as text; '' for a row of a table that has none.

    column: the one that holds the text, where the file is a table; '' for the only one that there is.
    Raises UserError for what cannot be read, with the file and the place in it.
    """
    for path in paths:
        try:
            if path.suffix.lower() == '.txt':
                yield from split_documents(read_text(path), separator)
            else:
                read = TABLES[path.suffix.lower()]
                yield from row_documents(read(path, column), column, path)
        except OSError as error:
            raise UserError(f'{path} cannot be read: {error.strerror or error}') from error


KINDS = ('.txt', *TABLES)
