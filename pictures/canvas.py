"""Figures whose parts are placed in inches, for the pictures of visualize.py.

Positions are measured from the upper left corner, so that a picture grows with the number of tokens while its letters
keep their size. Figures are drawn without a display.
"""

import contextlib
import math
from pathlib import Path

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from common.errors import UserError
from common.files import create_run_folder, expand_path
from common.folders import lock_folder, remove_leftovers
from common.strings import shorten
from pictures.style import allow_missing_glyphs, save_figure

BLUES, HEAT = colormaps['Blues'], colormaps['plasma']
TEXT_GREY = '#777777'
AXIS_LABEL_LENGTH = 14  # characters of a piece that are shown beside an axis
LETTER_WIDTH, BOLD_WIDTH = 0.075, 0.101  # approximate inches of a letter in a label and in a title
MAX_INCHES = 60  # for the sides of a picture


def make_figure(width, height, title):
    """Return an empty figure of a size in inches, with a title in its upper left corner."""
    allow_missing_glyphs()
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    place_text(figure, 0.2, 0.32, title, fontsize=12, weight='bold', va='center')
    return figure


def place_text(figure, left, top, text, **style):
    """Write a text at a position in inches. A dollar sign in it does not start a formula."""
    width, height = figure.get_size_inches()
    return figure.text(left / width, 1 - top / height, text, parse_math=False, **style)


def place_axes(figure, left, top, width, height, **options):
    """Return new axes at a position in inches."""
    figure_width, figure_height = figure.get_size_inches()
    box = (left / figure_width, 1 - (top + height) / figure_height, width / figure_width, height / figure_height)
    return figure.add_axes(box, **options)


def label_axis(axes, side, pieces, inches, fontsize=8):
    """Label the x or y axis, `inches` long, with pieces; if space is short, only every second one, or fewer.

    Returns a note that says which of them are labelled, or '' if all are.
    """
    every = math.ceil(len(pieces) * fontsize * 1.25 / 72 / inches)
    places = range(0, len(pieces), every)
    labels = [shorten(pieces[place], AXIS_LABEL_LENGTH) for place in places]
    if side == 'x':
        axes.set_xticks(places, labels, rotation=90, fontsize=fontsize, parse_math=False)
    else:
        axes.set_yticks(places, labels, fontsize=fontsize, parse_math=False)
    axes.tick_params(length=2)
    notes = {1: '', 2: 'every second token is labelled', 3: 'every third token is labelled'}
    return notes.get(every, f'every {every}th token is labelled')


def axis_label_inches(pieces, fontsize=8):
    """Return how many inches the longest of some pieces takes up beside an axis."""
    longest = max(len(shorten(piece, AXIS_LABEL_LENGTH)) for piece in pieces)
    return 0.15 + max(longest, 4) * LETTER_WIDTH * fontsize / 8


def place_colour_bar(figure, left, top, height, colours, meaning, **options):
    """Draw a vertical colour bar, `height` inches tall, labelled with what its colours mean."""
    axes = place_axes(figure, left, top, 0.16, height)
    bar = figure.colorbar(colours, cax=axes, **options)
    bar.ax.tick_params(labelsize=7)
    bar.set_label(meaning, fontsize=8)
    return bar


def check_save_path(save):
    """Raise UserError if --save cannot be the path of a picture."""
    if save is None:
        return
    if Path(save).suffix.lower() != '.png':  # this also refuses '.png', which has no suffix
        raise UserError(f'--save={save}: pictures are PNG files; give a name that ends in .png')
    if Path(save).is_dir():
        raise UserError(f'--save={save} is a folder; give the name of a file in it')


def save_pictures(figures, settings, picture, about):
    """Save figures, {name: figure}, where the settings ask for it, and print their paths.

    picture: the name of the figure that gets the path in --save; the others get that path with their name added.
    about: the model and the text, for the name of the new folder that is used without --save.
    """
    with contextlib.ExitStack() as stack:
        if settings.save is None:
            folder = create_run_folder(settings.plot_dir, f'{picture}-{about}')
            paths = {name: folder / f'{name}.png' for name in figures}
        else:
            chosen = expand_path(settings.save)
            paths = {name: chosen if name == picture else chosen.with_stem(f'{chosen.stem}-{name}') for name in figures}
            stack.enter_context(lock_folder(chosen.parent, 'choose another --save', chosen.name))
            remove_leftovers(chosen.parent, *(path.name for path in paths.values()))
        for name, figure in figures.items():
            save_figure(figure, paths[name])
            print(f'{name}: {paths[name]}')
