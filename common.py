"""What every other file may need: the error a person can put right, finding files, hashing them, writing them whole."""

import hashlib
import os
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

PROJECT = Path(__file__).resolve().parent


class UserError(ValueError):
    """Something the person can put right; scripts print it as one line on stderr and exit with code 2."""


def find(path):
    """Return `path` where the person stands or, failing that, the one of that name that the project ships.

    A path that is in neither place comes back as it was named, so that an error about it names what was asked for.
    """
    here, shipped = Path(path), PROJECT / path
    return shipped if shipped.exists() and not here.exists() else here


def sha256(path):
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


@contextmanager
def written_whole(path):
    """Yield a temporary path beside `path` that becomes `path` if the block succeeds and vanishes if it does not.

    A reader therefore meets the old file or the new one, never half of one, whatever happens during the write.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror}') from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, 'r+b') as file:  # Windows flushes only what is open for writing
            os.fsync(file.fileno())  # on disk before the old file's name is given to it
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's files are private, an ordinary file is not
        temporary.replace(path)
        with suppress(OSError):  # Windows cannot, and need not
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)  # the new name, too
            os.close(folder)
    except OSError as error:  # a full disk, most likely
        raise UserError(
            f'cannot write {path}: {error.strerror or error}; what was there before is still there'
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
