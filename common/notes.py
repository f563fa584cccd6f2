"""Notes to the person: what unusual input was taken for, said once on stderr."""

import os
import sys

from common.strings import show_invisible

_printed = set()


def forget_notes():
    """Let every note be printed once more: in a notebook a script may run several times in one process."""
    _printed.clear()


def note(text):
    """Print `note: text` on stderr, unless it has been printed before; of several processes, the first one does."""
    if text not in _printed and os.environ.get('RANK', '0') == '0':
        _printed.add(text)
        print(f'note: {show_invisible(text)}', file=sys.stderr)
