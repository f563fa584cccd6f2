"""Find the input files and read their documents: one reader for each kind of file, chosen by its ending."""

import glob
from pathlib import Path

from common.errors import UserError
from common.files import resolve_path
from texts.plain_text import read_text, split_documents
from texts.tables import TABLES, row_documents

KINDS = ('.txt', *TABLES)  # the endings that read_files knows


def input_paths(text):
    """Return the files named by a comma-separated list of files, folders and patterns such as 'books/*.txt'.

    A folder stands for all readable files in it and its subfolders, sorted by path, without hidden ones. Raises
    UserError if a file does not exist or is of an unknown kind.
    """
    paths = []
    for name in [text] if text and resolve_path(text).exists() else filter(None, text.split(',')):
        for path in map(Path, sorted(glob.glob(name, recursive=True)) or [resolve_path(name)]):
            paths += files_below(path) if path.is_dir() else [path]
    for path in paths:
        if not path.exists():
            raise UserError(f'{path} cannot be read: No such file or directory')
        if path.suffix.lower() not in KINDS:
            raise UserError(f'{path} cannot be read: its name must end in one of {", ".join(KINDS)}')
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

    separator: what separates the documents of a text file. column: the column of a table that contains the text; ''
    if there is only one. Raises UserError if something cannot be read, with the file and the position in it.
    """
    for path in paths:
        kind = path.suffix.lower()
        try:
            if kind in TABLES:
                rows = TABLES[kind](path, column)
                yield from row_documents(rows, column, path)
            else:
                yield from split_documents(read_text(path), separator)
        except OSError as error:
            raise UserError(f'{path} cannot be read: {error.strerror or error}') from error
