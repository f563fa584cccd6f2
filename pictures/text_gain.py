"""Draws how much likelier texts are than the tokens that they are usually cut into."""

import math

from common.strings import shorten
from pictures.style import BLUE, allow_missing_glyphs, hide_spines, save_figure


def draw_text_gain(path, labels, tokens, lower, upper):
    """Write a picture with a line for each label: its text's probability, from bound to bound, over that of its tokens.

    tokens, lower, upper: natural logarithms of the probability of the usual tokens, and of the text's bounds.
    """
    from matplotlib import pyplot

    allow_missing_glyphs()
    gains = [
        [(bound - usual) / math.log(10) for bound in bounds]
        for usual, *bounds in zip(tokens, lower, upper, strict=True)
    ]
    order = sorted(range(len(labels)), key=lambda place: gains[place][0])  # the largest gain on top
    figure = pyplot.figure(figsize=(11, 1.3 + 0.2 * len(labels)), layout='constrained')
    axes = figure.subplots()
    axes.axvline(0, color='#999999', linewidth=0.8)
    for y, place in enumerate(order):
        low, high = gains[place]
        axes.plot([0, low], [y, y], color='#cccccc', linewidth=1)
        axes.plot([low, high], [y, y], color=BLUE, linewidth=3, solid_capstyle='butt')
        axes.plot(low, y, marker='o', markersize=4.5, color=BLUE)
    axes.set_yticks(range(len(order)), [shorten(labels[place], 75) for place in order], fontsize=7, parse_math=False)
    axes.set_ylim(-0.8, len(order) - 0.2)
    axes.xaxis.set_major_formatter(lambda exponent, _: f'{10**exponent:.4g}')
    axes.grid(axis='x', color='#dddddd', linewidth=0.6)
    axes.set_axisbelow(True)
    hide_spines(axes, 'top', 'right', 'left')
    axes.tick_params(axis='y', length=0)
    axes.set_xlabel('times as likely as its usual tokens, log axis: lower bound (dot) to upper bound')
    save_figure(figure, path)
    pyplot.close(figure)
