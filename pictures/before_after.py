"""Draws how the probability of each response changed from one model to another."""

import math

from common.strings import shorten
from pictures.style import BLUE, ORANGE, allow_missing_glyphs, hide_spines, save_figure


def draw_before_after(path, labels, before, after, names, unit):
    """Write a picture with a line for each label, from its probability before to its probability after, on a log axis.

    before, after: natural logarithms, drawn as powers of ten, since a probability itself may be too small for a float.
    names: of the two models. unit: what has these probabilities, such as 'of the response'.
    """
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    allow_missing_glyphs()
    before, after = ([logprob / math.log(10) for logprob in logprobs] for logprobs in (before, after))
    order = sorted(range(len(labels)), key=lambda place: after[place] - before[place])  # the largest increase on top
    figure = pyplot.figure(figsize=(11, 1.3 + 0.2 * len(labels)), layout='constrained')
    axes = figure.subplots()
    for y, place in enumerate(order):
        colour = BLUE if after[place] > before[place] else ORANGE if after[place] < before[place] else '#999999'
        axes.plot([before[place], after[place]], [y, y], color=colour, linewidth=1.8, solid_capstyle='butt')
        axes.plot(before[place], y, marker='o', markersize=4.5, color='white', markeredgecolor='#555555')
        axes.plot(after[place], y, marker='o', markersize=4.5, color=colour)
    axes.set_yticks(range(len(order)), [shorten(labels[place], 75) for place in order], fontsize=7, parse_math=False)
    axes.set_ylim(-0.8, len(order) - 0.2)
    axes.xaxis.set_major_locator(pyplot.MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(lambda exponent, _: f'$10^{{{exponent:g}}}$')
    axes.grid(axis='x', color='#dddddd', linewidth=0.6)
    axes.set_axisbelow(True)
    hide_spines(axes, 'top', 'right', 'left')
    axes.tick_params(axis='y', length=0)
    axes.set_xlabel(f'model probability {unit}, log axis')
    handles = [
        Line2D([], [], linestyle='none', marker='o', color='white', markeredgecolor='#555555', label=names[0]),
        Line2D([], [], marker='o', color=BLUE, label=f'{names[1]}, likelier'),
        Line2D([], [], marker='o', color=ORANGE, label=f'{names[1]}, less likely'),
    ]
    figure.legend(handles=handles, loc='outside upper right', ncols=3, frameon=False, fontsize=8)
    save_figure(figure, path)
    pyplot.close(figure)
