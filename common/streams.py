"""stdout and stderr as they may be: closed, full, without a reader, in an encoding that lacks characters."""

import os
import sys

from common.notes import note


def prepare_streams():
    """Make stdout and stderr fit to print to."""
    for number, name in ((2, 'stderr'), (1, 'stdout')):
        stream = getattr(sys, name)
        if stream is None:  # closed, as by >&-; the next file to be opened would take its number
            _discard(number)
            setattr(sys, name, open(number, 'w', encoding='utf-8'))  # noqa: SIM115
            note(f'{name} is closed, so what would be printed there is lost')
        elif hasattr(stream, 'reconfigure'):  # a notebook's streams cannot, and need not
            stream.reconfigure(errors='replace')  # a Windows pipe cannot encode ⏎; print ? rather than fail


def flush_stdout():
    """Print what stdout still holds; if that is not possible, discard it."""
    try:
        sys.stdout.flush()
    except OSError:
        discard_stdout()


def discard_stdout():
    """Let what stdout still holds go nowhere, or Python complains again when it exits."""
    _discard(sys.stdout.fileno())


def print_error(text):
    """Print a line on stderr, if that is possible."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:  # full, or without a reader
        _discard(sys.stderr.fileno())


def _discard(number):
    """Let a stream go nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)
