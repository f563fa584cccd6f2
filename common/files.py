"""Find files, hash them, write them atomically, and make a new folder for the results of a run."""

import datetime
import hashlib
import os
import re
import stat
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

from common.errors import UserError, explain_write_error

PROJECT = Path(__file__).resolve().parent.parent
PARTIAL = '.partial'  # how the names of files end that are not complete yet


def expand_path(text):
    """Return a path that a person named, with `~` or `~name` at its start replaced by that home folder.

    A shell replaces it only at the start of a word, so the one in --out_dir=~/run arrives here. As in a shell, the name
    of a user who does not exist stays as it is. Raises UserError for a text that is too long to be a name.
    """
    path = Path(text)
    if any(len(os.fsencode(part)) > 255 for part in path.parts):  # asking the system for it would fail
        raise UserError(f'cannot read {str(path)[:40]}...: File name too long')
    try:
        return path.expanduser()
    except RuntimeError as error:
        if path.parts[0] != '~':
            return path
        raise UserError(f'{path}: there is no home folder for ~') from error


def resolve_path(path):
    """Return `path` in the current folder or, if it is not there, the file of that name that the project ships.

    A `~` at its start is the home folder. A path in neither place is returned as given, so that an error message names
    what was asked for.
    """
    here = expand_path(path)
    shipped = PROJECT / here
    return shipped if shipped.exists() and not here.exists() else here


def check_regular(path):
    """Raise UserError, with the reason, unless a path is a regular file that may be read; return its size in bytes.

    To open a pipe would wait for a writer, and a device may never end. Libraries that open a file themselves are called
    after this; whatever reads a file here uses `open_regular`.
    """
    path = expand_path(path)
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            kind = 'a folder' if stat.S_ISDIR(found.st_mode) else 'a pipe, socket or device, not a regular file'
            raise UserError(f'cannot read {path}: it is {kind}')
        open(path, 'rb').close()  # whether it may be read
    except OSError as error:
        reason = error.strerror or error
        if isinstance(error, FileNotFoundError) and path.is_symlink():
            reason = f'it is a link to {path.readlink()}, which does not exist'
        raise UserError(f'cannot read {path}: {reason}') from error
    return found.st_size


def open_regular(path):
    """Open a file to read its bytes. Raises UserError, with the reason, for anything but a readable regular file."""
    check_regular(path)
    return open(expand_path(path), 'rb')


def is_there(path):
    """Return whether a path exists, if only as a link to nothing, which is then reported as such.

    Raises UserError if that cannot be found out: the folder may not be searched, or the name is too long.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f'cannot read {path}: {getattr(error, "strerror", None) or error}') from error
    return True


def names_file(text):
    """Return whether a text is the name of a file; it may be any text, too long for a name or with NULs in it."""
    try:
        return expand_path(text).is_file()
    except (OSError, ValueError, UserError):
        return False


def file_sha256(path):
    """Return the SHA-256 of a file in hexadecimal."""
    with open_regular(path) as file:
        try:
            return hashlib.file_digest(file, 'sha256').hexdigest()
        except OSError as error:
            raise UserError(f'cannot read {path}: {error.strerror}') from error


def make_folder(folder):
    """Make a folder and those above it, if they are missing. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        for path in (folder, *folder.parents):
            if path.exists() and not path.is_dir():
                raise UserError(f'cannot write to the folder {folder}: {path} is a file') from error
        raise UserError(f'cannot create the folder {folder}: {error.strerror}') from error


def flush_to_disk(path):
    """Wait until a file is on the disk, or the names in a folder are, as far as the system can tell."""
    if path.is_dir():
        with suppress(OSError):  # Windows cannot do this, and need not
            folder = os.open(path, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
    else:
        with open(path, 'r+b') as file:  # Windows can only flush a file opened for writing
            os.fsync(file.fileno())


@contextmanager
def atomic_write(path):
    """Yield a temporary path, which is renamed to `path` if the block succeeds and deleted if it fails.

    A reader sees either the old file or the new one, never half of one. Raises UserError if writing fails.
    """
    path = expand_path(path)
    make_folder(path.parent)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.', suffix=PARTIAL)
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror}') from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        flush_to_disk(temporary)  # before the rename
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files private
        temporary.replace(path)
        flush_to_disk(path.parent)  # the rename, too
    except OSError as error:  # most likely a full disk
        raise UserError(explain_write_error(error, path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def create_run_folder(parent, name):
    """Make a new folder in `parent` and return its path: <name>-<date>-<time>, with a number if that name is taken."""
    words = re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')[:50].strip('-')
    parent = expand_path(parent)
    make_folder(parent)
    stem = f'{words}-{datetime.datetime.now():%Y%m%d-%H%M%S}'
    number = 1
    while True:
        folder = parent / (stem if number == 1 else f'{stem}-{number}')
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise UserError(f'cannot create the folder {folder}: {error.strerror}') from error
