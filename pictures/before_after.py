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

    allow_missing_glyphs()
    before, after = ([logprob / math.log(10) for logprob in logprobs] for logprobs in (before, after))
    order = sorted(range(len(labels)), key=lambda place: after[place] - before[place])  # the largest increase on top
    figure = pyplot.figure(figsize=(11, 1.3 + 0.2 * len(labels)), layout='constrained')
    axes = figure.subplots()
    for y, place in enumerate(order):
        draw_change(axes, before[place], after[place], y)
    axes.set_yticks(range(len(order)), [shorten(labels[place], 75) for place in order], fontsize=7, parse_math=False)
    axes.set_ylim(-0.8, len(order) - 0.2)
    axes.xaxis.set_major_locator(pyplot.MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(lambda exponent, _: f'$10^{{{exponent:g}}}$')
    style_axes(axes)
    axes.set_xlabel(f'model probability {unit}, log axis')
    draw_legend(figure, *names)
    save_figure(figure, path)
    pyplot.close(figure)


def draw_kinds(path, kinds):
    """Write a smaller picture of the same, without texts: the responses of each kind together, with their mean change.

    kinds: {kind: [(before, after)]}, logprobs of whole responses.
    """
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(9.5, 1 + 0.55 * len(kinds)), layout='constrained')
    axes = figure.subplots()
    y, middles, labels = 0, [], []
    for kind, pairs in kinds.items():
        middles.append(y + (len(pairs) - 1) / 2)
        gains = [after - before for before, after in pairs]
        labels.append(f'{kind}, {sum(gains) / len(gains):+.1f}'.replace('-', '−'))
        for before, after in sorted(pairs, key=lambda pair: pair[0] - pair[1]):  # the largest increase on top
            draw_change(axes, before, after, y)
            y += 1
        y += 1.5
    axes.set_yticks(middles, labels, fontsize=10)
    axes.set_ylim(y - 1, -1)
    style_axes(axes)
    axes.set_xlabel('logprob of the whole response, in nats; beside each kind: the mean change')
    draw_legend(figure, 'before', 'after')
    save_figure(figure, path, dpi=150)
    pyplot.close(figure)


def draw_change(axes, before, after, y):
    """Draw a line at height y from one value to the other: blue if it rose, orange if it fell."""
    colour = BLUE if after > before else ORANGE if after < before else '#999999'
    axes.plot([before, after], [y, y], color=colour, linewidth=1.8, solid_capstyle='butt')
    axes.plot(before, y, marker='o', markersize=4.5, color='white', markeredgecolor='#555555')
    axes.plot(after, y, marker='o', markersize=4.5, color=colour)


def style_axes(axes):
    """Draw vertical grid lines, and only the lower border line."""
    axes.grid(axis='x', color='#dddddd', linewidth=0.6)
    axes.set_axisbelow(True)
    hide_spines(axes, 'top', 'right', 'left')
    axes.tick_params(axis='y', length=0)


def draw_legend(figure, before, after):
    """Say what the colours mean; before, after: names of the two models."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle='none', marker='o', color='white', markeredgecolor='#555555', label=before),
        Line2D([], [], marker='o', color=BLUE, label=f'{after}, likelier'),
        Line2D([], [], marker='o', color=ORANGE, label=f'{after}, less likely'),
    ]
    figure.legend(handles=handles, loc='outside upper right', ncols=3, frameon=False, fontsize=8)
