"""See what a model does while it reads: five pictures, each with its main numbers in the terminal.

    python visualize.py temperature --start='The old king had a'     what temperature, top-k and top-p do
    python visualize.py attention --start='...' --layer=2 --head=1   which token looks at which
    python visualize.py embeddings --words=king,queen,dog,cat        which tokens are near which
    python visualize.py layers --start='...'                         what each layer would have said
    python visualize.py trace --start='...'                          every step of one forward pass

`python visualize.py --help` lists the pictures, `python visualize.py attention --help` the settings of one.
"""

import difflib
import sys
from dataclasses import dataclass

import configurator
from common.errors import UserError
from pictures.attention import AttentionSettings, show_attention
from pictures.embeddings import EmbeddingsSettings, show_embeddings
from pictures.layers import LayersSettings, show_layers
from pictures.temperature import TemperatureSettings, show_temperature
from pictures.trace import TraceSettings, show_trace

# The command line -----------------------------------------------------------------------------------------------------


PICTURES = {
    'temperature': (show_temperature, TemperatureSettings),
    'attention': (show_attention, AttentionSettings),
    'embeddings': (show_embeddings, EmbeddingsSettings),
    'layers': (show_layers, LayersSettings),
    'trace': (show_trace, TraceSettings),
}


@dataclass
class NoSettings:
    """Where no picture is named, there is nothing to set."""


def chosen(argv):
    """Return what draws the picture that the command line names, and its settings; take the name out of argv.

    Where it names none, what is returned prints the help or raises UserError.
    """
    name = argv[1].lower() if len(argv) > 1 else ''
    if name in PICTURES:
        argv[:2] = [f'{argv[0]} {name}']  # one word, so that --help shows how it is called
        return PICTURES[name]
    del argv[1:]

    def no_picture(_):
        if name in ('-h', '--help', 'help'):
            print('usage: python visualize.py PICTURE [--key=value ...]\n')
            for picture, (_, settings_class) in PICTURES.items():
                print(f'  {picture:12} {settings_class.__doc__}')
            print('\npython visualize.py PICTURE --help lists the settings of one.')
            return
        there_are = f'there are {", ".join(PICTURES)}'
        if not name or name.startswith('-'):
            raise UserError(f'name a picture first: {there_are}; for example: python visualize.py attention')
        near = difflib.get_close_matches(name, PICTURES, n=1, cutoff=0.5)
        raise UserError(f'there is no picture {name!r}; {f"did you mean {near[0]}?" if near else there_are}')

    return no_picture, NoSettings


if __name__ == '__main__':
    configurator.run(*chosen(sys.argv))
