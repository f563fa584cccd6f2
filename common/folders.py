"""Folders that one run at a time writes to, and files in them that are replaced together."""

import contextlib
import datetime
import errno
import json
import os
import platform
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from common.errors import UserError, explain_write_error
from common.files import PARTIAL, expand_path, flush_to_disk, make_folder
from common.notes import note

CANNOT_WRITE = (errno.ENOSPC, errno.EROFS, getattr(errno, 'EDQUOT', None))  # Windows has no EDQUOT
LOCK = '.lock'  # the file in a folder that its run holds locked
# In a folder whose files are being replaced: all new files, as long as old ones are still there, and after that.
COMPLETE, MOVING = '.complete', '.moving'
REPLACES = '.replaces'  # in COMPLETE: the names of the old files that they replace


# One run at a time ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def lock_folder(folder, way_out, file=None):
    """Keep other runs from writing to a folder, which is made if it is missing, while the block runs.

    The system forgets the lock of a process that has ended, however it ended. A folder that the block leaves empty is
    removed if it is new. way_out: what to do if another process holds the lock, for the UserError that is then raised.
    file: lock only the file of this name in it.
    """
    from filelock import FileLock, Timeout  # takes a while to import

    folder = expand_path(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / (LOCK if file is None else f'.{file}{LOCK}')
    try:
        make_folder(folder)
        lock = FileLock(path.resolve(), timeout=0)
        _acquire(lock, folder)
    except UserError as error:
        raise UserError(f'{error}; {way_out}') from error
    except Timeout:
        raise UserError(
            f'{folder / (file or "")} is in use by {_read_holder(path)}: wait until it ends, or {way_out}'
        ) from None
    except PermissionError as error:
        raise UserError(f'cannot write to the folder {folder}: {error.strerror}') from error
    except (OSError, NotImplementedError) as error:
        if not os.access(folder, os.W_OK) or getattr(error, 'errno', 0) in CANNOT_WRITE:
            _remove_empty(missing)
            raise UserError(f'cannot write {path}: {getattr(error, "strerror", None) or error}') from error
        # Some network file systems cannot lock.
        note(f'{folder} cannot be locked ({error}): make sure that no other run writes to it')
    try:
        _write_holder(path)
        yield
    finally:
        if lock.is_locked:
            # Removed before it is released: a process that opened it meanwhile finds it gone, and makes a new one.
            with contextlib.suppress(OSError):  # Windows removes it only after it is released, and does so by itself
                path.unlink()
            lock.release()
        _remove_empty(missing)


def _acquire(lock, folder, tries=10):
    """Acquire a lock in a folder, which another process may remove before that, if it leaves it empty."""
    for left in reversed(range(tries)):
        try:
            lock.acquire()
            return
        except FileNotFoundError:
            if not left:
                raise
            make_folder(folder)


def _write_holder(path):
    """Write who holds the lock into its file, after the first byte: Windows lets only its own handle use that."""
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200]
    now = f'{datetime.datetime.now():%H:%M}'
    about = {'pid': os.getpid(), 'host': platform.node(), 'command': command, 'since': now}
    with contextlib.suppress(OSError), open(path, 'r+b', buffering=0) as file:
        file.seek(1)
        file.write(json.dumps(about).encode() + b'\n')


def _read_holder(path):
    """Return who holds a lock, as text."""
    try:
        with open(path, 'rb', buffering=0) as file:
            file.seek(1)
            about = json.loads(file.read(4096).partition(b'\n')[0])
        here = '' if about['host'] == platform.node() else f' on {about["host"]}'
        return f'process {about["pid"]}{here} ({about["command"]}, since {about["since"]})'
    except (OSError, ValueError, KeyError, TypeError):  # it is just being written
        return 'another process'


def _remove_empty(folders):
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def remove_leftovers(folder, *names):
    """Delete what runs that were killed left behind of these files; the caller holds the folder's lock."""
    for name in names:
        for path in Path(folder).glob(f'.{name}.*{PARTIAL}'):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


# Files that belong together -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def replace_together(folder, names):
    """Yield a new folder to write files into; then they replace the files in `folder` that have any of these names.

    If the block fails or the process is killed in it, the old files remain, all of them. Once all new files are
    complete, one rename makes them count; whatever happens from then on, `finish_replacing` puts them in place. The
    caller holds the folder's lock. names: those of all files that belong together, in the order to put them in place.
    """
    finish_replacing(folder, names, is_locked=True)
    for name in names:
        if (folder / name).is_dir():
            raise UserError(f'{folder / name} is a folder, where a file is to be written; nothing was overwritten')
    temporary = None
    try:
        temporary = Path(tempfile.mkdtemp(prefix='.new.', suffix=PARTIAL, dir=folder))
        yield temporary
        (temporary / REPLACES).write_text('\n'.join(names), encoding='utf-8')
        for path in temporary.iterdir():
            flush_to_disk(path)
        flush_to_disk(temporary)
        temporary.rename(folder / COMPLETE)
        flush_to_disk(folder)
    except OSError as error:  # most likely a full disk
        raise UserError(explain_write_error(error, folder)) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    finish_replacing(folder, names, is_locked=True)


def finish_replacing(folder, names, is_locked=False):
    """Put the files of `replace_together` in place, if a process was killed before it had done so.

    The old ones are removed before the first new one is there, so that no program finds some of either. names: all that
    `replace_together` may have been called with; whatever else the folder says, no other file is touched.
    """
    folder = Path(folder)
    complete, moving = folder / COMPLETE, folder / MOVING
    if not any(path.is_dir() and not path.is_symlink() for path in (complete, moving)):
        return
    with contextlib.nullcontext() if is_locked else lock_folder(folder, 'try again later'):
        try:
            if complete.is_dir():
                replaced = (complete / REPLACES).read_text(encoding='utf-8').split('\n')
                for name in names:
                    if name in replaced:
                        (folder / name).unlink(missing_ok=True)
                complete.rename(moving)
            for name in names:
                if (moving / name).is_file():
                    (moving / name).replace(folder / name)
            if moving.is_dir():  # otherwise another process has done it meanwhile
                shutil.rmtree(moving)
            flush_to_disk(folder)
        except OSError as error:
            raise UserError(
                f'{folder}: its files are being replaced, which fails: {error.strerror}; close programs that use them, '
                f'and try again. The new files are in {complete if complete.is_dir() else moving}'
            ) from error
