"""Colours and small drawing helpers that all pictures share.

matplotlib takes a second to import, so nothing here imports it.
"""

import os
import sys
import warnings

from common.files import atomic_write
from common.notes import note

BAR, CHOSEN, MARK = '#8fb3d9', '#e8743b', '#1b1b1b'  # distinct in grey and for colour-blind readers
BLUE, ORANGE = '#2b6ca3', '#d1602a'
GREY = '#b0b0b0'
MISSING_GLYPHS = r'Glyph .* missing from (current )?font'


def drop_unknown_backend():
    """Remove the environment variable MPLBACKEND if it names no backend: matplotlib could not even be imported."""
    name = os.environ.get('MPLBACKEND')
    if not name or name.lower() == 'agg' or name.startswith('module://'):
        return  # nearly always; so nobody waits for the import
    try:
        import matplotlib  # noqa: F401
    except ValueError:
        del os.environ['MPLBACKEND']
        for module in [module for module in sys.modules if module.partition('.')[0] == 'matplotlib']:
            del sys.modules[module]  # half imported
        note(f'MPLBACKEND={name} is no backend of matplotlib; pictures are drawn without it')


def allow_missing_glyphs():
    """Let matplotlib draw a box for a character that the font lacks, without a warning."""
    warnings.filterwarnings('ignore', message=MISSING_GLYPHS)


def hide_spines(axes, *sides):
    """Hide the border lines of axes on the given sides."""
    for side in sides:
        axes.spines[side].set_visible(False)


def text_colour(colour):
    """Return 'white' or 'black', whichever is readable on a colour, (red, green, blue, ...) from 0 to 1."""
    red, green, blue = colour[:3]
    return 'white' if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else 'black'


def save_figure(figure, path, dpi=100):
    """Write a figure as a PNG, atomically."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format='png')


def format_bar_value(probability):
    """Return a probability as text that fits beside a bar: three decimals, or a power of ten if it is too small."""
    return f'{probability:.3f}' if probability >= 0.001 or probability == 0 else f'{probability:.0e}'
