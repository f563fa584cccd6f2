"""Look inside a model while it reads: five pictures, each with its main numbers in the terminal.

    python visualize.py temperature --start='The old king had a'     what temperature, top-k and top-p do
    python visualize.py attention --start='...' --layer=2 --head=1   which token looks at which
    python visualize.py embeddings --words=king,queen,dog,cat        which tokens are similar
    python visualize.py layers --start='...'                         what each layer would predict
    python visualize.py trace --start='...'                          every step of one forward pass

`python visualize.py --help` lists the pictures, `python visualize.py attention --help` the settings of one.
"""

if __name__ == '__main__':
    from common.interrupts import exit_on_interrupt

    exit_on_interrupt()  # Ctrl-C while the rest is imported, which takes seconds

import difflib
import importlib
import sys
from dataclasses import dataclass

import configurator
from common.errors import UserError
from pictures.style import drop_unknown_backend

PICTURES = ('temperature', 'attention', 'embeddings', 'layers', 'trace')


@dataclass
class NoSettings:
    """The settings when no picture is named: none."""


def load_picture(name):
    """Return the function that makes a picture, and the class of its settings: show_X and XSettings of pictures.X."""
    drop_unknown_backend()
    module = importlib.import_module(f'pictures.{name}')  # imported only now, since matplotlib is slow to import
    return getattr(module, f'show_{name}'), getattr(module, f'{name.capitalize()}Settings')


def choose_picture(argv):
    """Return what `load_picture` returns for the picture that argv names, and remove its name from argv.

    If argv names none, the function that is returned prints the help or raises UserError.
    """
    name = argv[1].lower() if len(argv) > 1 else ''
    if name in PICTURES:
        argv[:2] = [f'{argv[0]} {name}']  # one word, so that --help shows how the script is called
        return load_picture(name)
    del argv[1:]
    if name in ('-h', '--help', 'help'):
        return print_help, NoSettings
    return lambda _: refuse_name(name), NoSettings


def print_help(_):
    """Print what the pictures are."""
    print('usage: python visualize.py PICTURE [--key=value ...]\n')
    for name in PICTURES:
        print(f'  {name:12} {load_picture(name)[1].__doc__}')
    print('\npython visualize.py PICTURE --help lists the settings of one.')


def refuse_name(name):
    """Raise the UserError for a name that is not a picture's."""
    names = ', '.join(PICTURES)
    if not name or name.startswith('-'):
        raise UserError(f'name a picture first: one of {names}; for example: python visualize.py attention')
    similar = difflib.get_close_matches(name, PICTURES, n=1, cutoff=0.5)
    hint = f'did you mean {similar[0]}?' if similar else f'choose one of {names}'
    raise UserError(f'unknown picture {name!r}; {hint}')


if __name__ == '__main__':
    configurator.run(*choose_picture(sys.argv))
