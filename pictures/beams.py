"""Draws a beam search as a tree of tokens."""

from dataclasses import dataclass

from common.strings import shorten
from pictures.style import (
    BLUE,
    CHOSEN,
    GREY,
    MARK,
    allow_missing_glyphs,
    format_bar_value,
    hide_spines,
    save_figure,
)


@dataclass
class Branch:
    """A beam after one step of a search."""

    piece: str  # its last token
    parent: int  # the place in the level before of the beam that it extends
    prob: float  # model probability of its last token
    total: float  # logprob of the whole continuation so far
    best: bool  # the best beam at the end contains it
    kept: bool  # some beam at the end contains it


def draw_beams(path, levels, title):
    """Write a picture of a beam search as a tree that grows to the right.

    levels: a list of Branch for each step, the likeliest first, finished beams last. The number at an edge is the model
    probability of the token that it leads to; likelier tokens have wider edges. The number below a token is the logprob
    of the continuation so far. The best beam at the end is orange, others at the end are blue, abandoned ones are grey.
    """
    from matplotlib import pyplot
    from matplotlib.lines import Line2D
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve
    from matplotlib.patheffects import withStroke

    allow_missing_glyphs()
    most = max(map(len, levels))
    figure = pyplot.figure(figsize=(1.6 * len(levels) + 0.8, max(2.4, 0.62 * most + 1.3)), layout='constrained')
    axes = figure.subplots()
    axes.plot(0, 0, marker='o', color=MARK)  # the prompt
    for step, level in enumerate(levels, 1):
        for y, branch in enumerate(level):
            colour = CHOSEN if branch.best else BLUE if branch.kept else GREY
            start, middle = (0, 0) if step == 1 else (step - 1, branch.parent), step - 0.6
            # The curve is horizontal at both ends and goes from centre to centre; the pieces cover its ends.
            curve = Curve([start, (middle, start[1]), (middle, y), (step, y)], [Curve.MOVETO] + 3 * [Curve.CURVE4])
            width, height = 0.6 + 3.4 * branch.prob, 1 + branch.kept + branch.best
            axes.add_patch(PathPatch(curve, facecolor='none', edgecolor=colour, linewidth=width, zorder=height))
            piece = shorten(branch.piece, 13)
            box = {'boxstyle': 'round,pad=0.25', 'facecolor': 'white', 'edgecolor': colour, 'linewidth': 1.4}
            text = axes.text(step, y, piece, fontsize=9, parse_math=False, bbox=box, zorder=6)
            text.set(ha='center', va='center')
            total = axes.text(step, y + 0.27, f'{branch.total:.2f}', fontsize=7.5, color='#555555', zorder=6)
            total.set(ha='center', va='center')
            x, prob = step - 0.08 - 0.026 * len(piece), format_bar_value(branch.prob)
            edge = axes.text(x, y - 0.08, prob, fontsize=8, ha='right', va='bottom', zorder=5)
            edge.set_path_effects([withStroke(linewidth=2, foreground='white')])  # so that no line runs through it
    axes.set_xlim(-0.2, len(levels) + 0.5)
    axes.set_ylim(most - 0.4, -0.7)
    axes.set_xticks(range(1, len(levels) + 1))
    axes.set_yticks([])
    axes.set_xlabel('step (at an edge: model probability of its token; below it: logprob of the continuation so far)')
    hide_spines(axes, 'top', 'right', 'left')
    axes.set_title(shorten(title, 40 + 18 * len(levels)), loc='left', fontsize=9, parse_math=False)
    colours = {'best beam': CHOSEN, 'other beams at the end': BLUE, 'abandoned': GREY}
    handles = [Line2D([], [], color=colour, linewidth=2.5, label=label) for label, colour in colours.items()]
    figure.legend(handles=handles, loc='outside lower right', ncols=3, frameon=False, fontsize=8)
    save_figure(figure, path)
    pyplot.close(figure)
