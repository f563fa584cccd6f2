"""The pictures of visualize.py: numbers to matplotlib figures, without a display. Nothing here knows of models.

Sizes are in inches and everything is placed by hand from the upper left, so that a picture grows with the number of
tokens and its letters keep their size.
"""

import math

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from common.strings import shorten
from pictures.style import allow_missing_glyphs

BLUES, HEAT = colormaps['Blues'], colormaps['plasma']
FUTURE = '#ececec'  # what no token can see
GREY = '#777777'
PIECE = 14  # letters of a piece that stand beside an axis
LETTER, BOLD = 0.075, 0.101  # inches that a letter of a label and of a title are about wide
LONGEST = 60  # inches that a picture's side may grow to


# What several pictures need -------------------------------------------------------------------------------------------


def new_sheet(width, height, title):
    """Return an empty figure of so many inches with a title in its upper left corner."""
    allow_missing_glyphs()
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    write_text(figure, 0.2, 0.32, title, fontsize=12, weight='bold', va='center')
    return figure


def write_text(figure, left, top, text, **style):
    """Write a text at a place in inches from the upper left. A token may hold a dollar sign, which is no formula."""
    width, height = figure.get_size_inches()
    return figure.text(left / width, 1 - top / height, text, parse_math=False, **style)


def place_axes(figure, left, top, width, height, **options):
    """Return axes at a place in inches from the upper left."""
    whole_width, whole_height = figure.get_size_inches()
    box = (left / whole_width, 1 - (top + height) / whole_height, width / whole_width, height / whole_height)
    return figure.add_axes(box, **options)


def label_axis(axes, side, pieces, inches, fontsize=8):
    """Put pieces along the x or y side of axes, so many inches long; where room is short, every second only, say.

    Returns what to write beside the axes: which of them are named, '' where all are.
    """
    every = math.ceil(len(pieces) * fontsize * 1.25 / 72 / inches)
    places = range(0, len(pieces), every)
    texts = [shorten(pieces[place], PIECE) for place in places]
    if side == 'x':
        axes.set_xticks(places, texts, rotation=90, fontsize=fontsize, parse_math=False)
    else:
        axes.set_yticks(places, texts, fontsize=fontsize, parse_math=False)
    axes.tick_params(length=2)
    ordinals = {1: '', 2: 'every second token is named', 3: 'every third token is named'}
    return ordinals.get(every, f'every {every}th token is named')


def label_room(pieces, fontsize=8):
    """Return the inches that the longest of some pieces needs beside an axis."""
    longest = max(len(shorten(piece, PIECE)) for piece in pieces)
    return 0.15 + max(longest, 4) * LETTER * fontsize / 8


def draw_colour_scale(figure, left, top, height, colours, meaning, **options):
    """Draw an upright colour bar, so high, and say what its colours mean."""
    axes = place_axes(figure, left, top, 0.16, height)
    bar = figure.colorbar(colours, cax=axes, **options)
    bar.ax.tick_params(labelsize=7)
    bar.set_label(meaning, fontsize=8)
    return bar
