"""Errors that the user can correct, and how those of the system are told."""

import errno
import re

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
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
    return f'cannot print or write: {reason}' if full else reason


def is_out_of_memory(error):
    """Return whether an error means that memory could not be had: Python's, numpy's or torch's."""
    return isinstance(error, MemoryError) or re.search('out of memory|allocate memory', str(error)) is not None
