"""Numbers to matplotlib figures. Nothing here knows where the numbers came from."""

import warnings

from common.files import atomic_write

BAR, CHOSEN, MARK = '#8fb3d9', '#e8743b', '#1b1b1b'  # told apart in grey and by colour-blind people too
ROSE, FELL = '#2b6ca3', '#d1602a'
GIVEN_UP = '#b0b0b0'
MISSING_GLYPHS = r'Glyph .* missing from (current )?font'  # such a character is drawn as a box, which says enough


def allow_missing_glyphs():
    """Let a character that the font lacks be drawn as a box without a warning."""
    warnings.filterwarnings('ignore', message=MISSING_GLYPHS)


def hide_spines(axes, *sides):
    """Take away the lines on some sides of axes."""
    for side in sides:
        axes.spines[side].set_visible(False)


def text_colour(colour):
    """Return white or black, whichever can be read on a colour, (red, green, blue, ...) from 0 to 1."""
    red, green, blue = colour[:3]
    return 'white' if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else 'black'


def save_figure(figure, path):
    """Write a figure as a PNG, whole or not at all."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=100, format='png')


def short_probability(probability):
    return f'{probability:.3f}' if probability >= 0.001 or probability == 0 else f'{probability:.0e}'
