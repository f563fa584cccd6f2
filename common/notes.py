"""Notes to the person: what unusual input was taken for, said once on stderr."""

import sys

_printed = set()


def note(text):
    """Print `note: text` on stderr, unless it has been printed before."""
    if text not in _printed:
        _printed.add(text)
        print(f'note: {text}', file=sys.stderr)
