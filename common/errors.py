"""Errors that the user can correct, and how those of the system are told."""

import errno
import os
import re
from pathlib import Path

from common.strings import show_invisible


class UserError(ValueError):
    """A mistake that the user can correct; scripts print it as one line on stderr and exit with code 2."""

    def _render_traceback_(self):  # what IPython shows: one line here, too
        return [f'error: {on_one_line(self)}']


def on_one_line(error):
    """Return the message of an error on one line. What it quotes from a file cannot reach the terminal raw."""
    return show_invisible(' '.join(str(error).split()))


def describe_os_error(error):
    """Return what an OSError says: the file, if it names one, and what the operating system reports."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is not None:
        return f'{error.filename}: {reason}'
    if error.errno == errno.EIO:  # also of a terminal that is gone
        return f'cannot read, print or write: {reason}'
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EBADF)
    return f'cannot print or write: {reason}' if full else reason


def explain_write_error(error, path):
    """Return the message of an OSError that came while `path` was being written; it may be about what was read."""
    path = Path(path)
    about = path if error.filename is None else Path(os.fsdecode(error.filename))
    if about.is_relative_to(path) or (about.parent == path.parent and path.name in about.name):  # also a temporary one
        return f'cannot write {path}: {error.strerror or error}; nothing was overwritten'
    return f'{describe_os_error(error)}; {path} was not written'


def reraise_if_of_system(error, path):
    """Raise an error again if it says nothing about the contents of the file that was being read.

    That is lack of memory or, as a UserError, a disk or network that could not deliver the file. But a damaged pickle
    may ask for any amount of memory, or for a place before the file's beginning (EINVAL).
    """
    asked = re.search(r'allocate (\d+) bytes', str(error))
    asks_too_much = asked is not None and int(asked[1]) > 2 * Path(path).stat().st_size
    if is_out_of_memory(error) and not isinstance(error, MemoryError) and not asks_too_much:
        raise error
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        raise UserError(f'cannot read {path}: {error.strerror}') from error
    if found := re.search(r'([^:]+) \(os error \d+\)', str(error)):  # as libraries in Rust say it
        raise UserError(f'cannot read {path}: {found[1].strip()}') from error


def is_out_of_memory(error):
    """Return whether an error means that memory could not be had: Python's, numpy's or torch's."""
    return isinstance(error, MemoryError) or re.search('out of memory|allocate memory', str(error)) is not None
