"""Ctrl-C while a script still imports, which may take seconds: it ends at once, without a traceback.

A script calls `exit_on_interrupt` before its other imports, which may be of slow libraries. KeyboardInterrupt would not
do: a library may turn it into another error, or ignore it. Nothing has begun by then that would have to be finished.
"""

import os
import signal

from common.notebook import in_notebook

INTERRUPTED = 130  # the exit code that a shell gives a program that Ctrl-C has ended


def exit_on_interrupt():
    """Let Ctrl-C end this process without running any more of its code, unless it is handled otherwise already."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler and not in_notebook():
        signal.signal(signal.SIGINT, _exit)


def raise_interrupts():
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _exit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _exit(number, frame):
    try:
        os.write(2, b'\ninterrupted\n')
    finally:
        os._exit(INTERRUPTED)
