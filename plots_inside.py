"""The pictures of visualize.py: numbers to matplotlib figures, without a display. Nothing here knows of models.

Sizes are in inches and everything is placed by hand from the upper left, so that a picture grows with the number of
tokens and its letters keep their size.
"""

import math
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator

from plots import BAR, CHOSEN, MARK, allow_missing_glyphs, bare, in_three_digits, ink, shortened

BLUES, HEAT = colormaps['Blues'], colormaps['plasma']
FUTURE = '#ececec'  # what no token can see
GREY = '#777777'
PIECE = 14  # letters of a piece that stand beside an axis
LETTER, BOLD = 0.075, 0.101  # inches that a letter of a label and of a title are about wide
LONGEST = 60  # inches that a picture's side may grow to


# What several pictures need -------------------------------------------------------------------------------------------


def sheet(width, height, title):
    """Return an empty figure of so many inches with a title in its upper left corner."""
    allow_missing_glyphs()
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    write(figure, 0.2, 0.32, title, fontsize=12, weight='bold', va='center')
    return figure


def write(figure, left, top, text, **style):
    """Write a text at a place in inches from the upper left. A token may hold a dollar sign, which is no formula."""
    width, height = figure.get_size_inches()
    return figure.text(left / width, 1 - top / height, text, parse_math=False, **style)


def place(figure, left, top, width, height, **options):
    """Return axes at a place in inches from the upper left."""
    whole_width, whole_height = figure.get_size_inches()
    box = (left / whole_width, 1 - (top + height) / whole_height, width / whole_width, height / whole_height)
    return figure.add_axes(box, **options)


def label(axes, side, pieces, inches, fontsize=8):
    """Put pieces along the x or y side of axes, so many inches long; where room is short, every second only, say.

    Returns what to write beside the axes: which of them are named, '' where all are.
    """
    every = math.ceil(len(pieces) * fontsize * 1.25 / 72 / inches)
    places = range(0, len(pieces), every)
    texts = [shortened(pieces[place], PIECE) for place in places]
    if side == 'x':
        axes.set_xticks(places, texts, rotation=90, fontsize=fontsize, parse_math=False)
    else:
        axes.set_yticks(places, texts, fontsize=fontsize, parse_math=False)
    axes.tick_params(length=2)
    ordinals = {1: '', 2: 'every second token is named', 3: 'every third token is named'}
    return ordinals.get(every, f'every {every}th token is named')


def room(pieces, fontsize=8):
    """Return the inches that the longest of some pieces needs beside an axis."""
    longest = max(len(shortened(piece, PIECE)) for piece in pieces)
    return 0.15 + max(longest, 4) * LETTER * fontsize / 8


def scale(figure, left, top, height, colours, meaning, **options):
    """Draw an upright colour bar, so high, and say what its colours mean."""
    axes = place(figure, left, top, 0.16, height)
    bar = figure.colorbar(colours, cax=axes, **options)
    bar.ax.tick_params(labelsize=7)
    bar.set_label(meaning, fontsize=8)
    return bar


# Temperature ----------------------------------------------------------------------------------------------------------


@dataclass
class Panel:
    """One distribution at one temperature, and where top-k and top-p cut it."""

    temperature: float
    probs: np.ndarray  # (V,) sampler probabilities before any cut, likeliest first
    entropy: float  # of them, nats
    top_k: int | None  # how many tokens top-k alone keeps; None without such a cut
    top_p: int | None  # and top-p alone
    left: int  # how many both keep: top-k first, then top-p of what it leaves
    cuts: list[str]  # lines that say so


def temperature_figure(title, pieces, panels, top_k, top_p, curve):
    """Draw one distribution at several temperatures.

    pieces: of the tokens shown, likeliest first. panels: a Panel for each temperature. curve: (temperatures, effective
    numbers of choices).
    """
    names = [*pieces, 'all others']
    left, gap, high = room(names, 9) + 0.15, 0.22, 0.27 * len(names)
    panel = max(2.1, min(2.9, 12 / len(panels)), (9 - left) / len(panels) - gap)
    width = max(left + len(panels) * (panel + gap), 9) + 0.1
    figure = sheet(width, high + 6.45, title)
    colours = [HEAT(0.05 + 0.68 * number / max(1, len(panels) - 1)) for number in range(len(panels))]
    heights = [[*of.probs[: len(pieces)], max(0.0, 1 - of.probs[: len(pieces)].sum())] for of in panels]
    right = max(room_to_name_cuts(bars, of, panel) for bars, of in zip(heights, panels))
    for number, (of, bars, colour) in enumerate(zip(panels, heights, colours)):
        x = left + number * (panel + gap)
        write(figure, x, 0.82, f'temperature {of.temperature:g}', fontsize=12, weight='bold', color=colour)
        nats, choices = of.entropy, math.exp(of.entropy)
        write(figure, x, 1.06, f'entropy {nats:.2f} nats = {nats / math.log(2):.2f} bits', fontsize=8.5)
        write(figure, x, 1.26, f'effective number of choices {number_text(choices)}', fontsize=8.5)
        axes = place(figure, x, 1.45, panel, high, xlim=(0, right), ylim=(len(names) - 0.4, -0.6))
        draw_bars(axes, bars, of, colour)
        axes.set_yticks(range(len(names)), names if number == 0 else [''] * len(names), fontsize=9, parse_math=False)
        for line, text in enumerate(of.cuts):
            write(figure, x, 2.08 + high + 0.18 * line, text, fontsize=8, color='#444444')
    notes = ['bars: sampler probability at this temperature, before any cut']
    if top_k is not None and top_p is not None:
        notes.append(
            'solid line, pale bars: both cut here, top-k first, then top-p of what it leaves; dashed: one cut alone'
        )
    elif top_k is not None or top_p is not None:
        notes.append('pale: what the cut takes away')
    for line, note in enumerate(notes):
        write(figure, left, 2.85 + high + 0.17 * line, note, fontsize=8, color=GREY)

    half = width / 2 - 1.1
    draw_sums(place(figure, 0.75, high + 3.6, half + 0.4, 2.25), panels, colours, top_k, top_p)
    draw_openness(place(figure, half + 2.5, high + 3.6, half - 1.05, 2.25), panels, colours, curve)
    for axes in figure.axes[-2:]:
        axes.grid(color='#e2e2e2', linewidth=0.6)
        axes.tick_params(labelsize=8)
        bare(axes, 'top', 'right')
    return figure


CUTS = {  # how the lines of some cuts are named; others by their names alone
    ('top-k',): 'top-k cuts here',
    ('top-p',): 'top-p cuts here',
    ('both',): 'both cut here',
    ('top-k alone', 'top-p alone'): 'each alone',
    ('both', 'top-k alone', 'top-p alone'): 'both, and each alone',
}


def cut_lines(of, shown):
    """Return where cuts are drawn, {tokens kept: names}, the cut that counts first; one below the bars has no line."""
    cuts = [('top-k', of.top_k), ('top-p', of.top_p)]
    cuts = [(name, tokens) for name, tokens in cuts if tokens is not None]
    if len(cuts) == 2:
        cuts = [('both', of.left), *((f'{name} alone', tokens) for name, tokens in cuts)]
    lines = {}
    for name, tokens in cuts:
        if tokens <= shown:
            lines.setdefault(tokens, []).append(name)
    return lines


def room_to_name_cuts(bars, of, inches):
    """Return where the axis of the bars must end, so many inches from 0, for their numbers and the names of cuts."""
    name = 1.25 + 0.45  # inches of the longest name, and of the number before it
    lines = cut_lines(of, len(bars) - 1)
    return max([max(bars) * 1.25, *(bars[tokens] * inches / max(inches - name, 0.4) for tokens in lines)])


def draw_bars(axes, bars, of, colour):
    """Draw the bars of one temperature, the last for all other tokens, and where top-k and top-p cut.

    What counts is a solid line; where either cut would be without the other, a thin one.
    """
    shown, right = len(bars) - 1, axes.get_xlim()[1]
    fates = [1.0 if y < of.left else 0.35 for y in range(shown)]  # what is cut away is pale
    axes.barh(range(len(bars)), bars, color=[*((colour, fate) for fate in fates), '#c4c4c4'], height=0.78)
    for y, value in enumerate(bars):
        axes.text(value + right * 0.016, y, percent(value), va='center', fontsize=8)
    for tokens, names in cut_lines(of, shown).items():
        counts = tokens == of.left
        style = {'linestyle': '-', 'linewidth': 1.5} if counts else {'linestyle': '--', 'linewidth': 0.7}
        axes.axhline(tokens - 0.5, color=MARK, **style)
        text = CUTS.get(tuple(names), ' = '.join(names))
        axes.text(right, tokens - 0.44, text, ha='right', va='top', fontsize=8, color=MARK if counts else '#555555')
    axes.tick_params(axis='y', length=0)
    axes.tick_params(axis='x', labelsize=8)
    axes.set_xlabel('sampler probability', fontsize=8, labelpad=2)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.xaxis.set_major_formatter(lambda value, _: f'{value:.0%}')
    bare(axes, 'top', 'right')


def draw_sums(axes, panels, colours, top_k, top_p):
    """Draw how much probability the likeliest tokens have together, and where the cuts meet it."""
    V = len(panels[0].probs)
    axes.set_title('the likeliest tokens, taken together', fontsize=9, loc='left')
    for of, colour in zip(panels, colours):
        sums = of.probs.cumsum()
        axes.plot(range(1, V + 1), sums, color=colour, linewidth=1.8, label=f'{of.temperature:g}')
        if of.top_p is not None:
            dot = {'color': colour, 'markeredgecolor': 'white', 'markersize': 8, 'clip_on': False, 'zorder': 3}
            axes.plot(of.top_p, sums[of.top_p - 1], 'o', **dot)
    if top_p is not None:
        axes.axhline(top_p, color=MARK, linestyle=':', linewidth=1)
        axes.text(V, top_p, f' top-p {top_p:g}', va='center', fontsize=8)
    if top_k is not None:
        axes.axvline(top_k, color=MARK, linestyle='--', linewidth=1)
        axes.text(top_k, 0.02, f' top-k {top_k:,}', fontsize=8, clip_on=True)
    axes.set_xscale('log')
    axes.set_xlim(1, V)
    axes.set_ylim(0, 1.03)
    axes.xaxis.set_major_formatter(lambda value, _: f'{value:,.0f}')
    axes.yaxis.set_major_formatter(lambda value, _: f'{value:.0%}')
    axes.set_xlabel('so many of the likeliest tokens (log axis; dot: where top-p alone cuts)', fontsize=8)
    axes.set_ylabel('sampler probability together', fontsize=8)
    axes.legend(title='temperature', title_fontsize=8, fontsize=8, framealpha=0.85, edgecolor='none', loc='lower right')


def draw_openness(axes, panels, colours, curve):
    """Draw how the effective number of choices grows with the temperature."""
    axes.set_title('how open the choice is', fontsize=9, loc='left')
    axes.plot(*curve, color=GREY, linewidth=1.5)
    for of, colour in zip(panels, colours):
        axes.plot(of.temperature, math.exp(of.entropy), 'o', color=colour, markersize=8, clip_on=False, zorder=3)
    axes.set_yscale('log')
    axes.yaxis.set_major_locator(LogLocator(10))
    axes.yaxis.set_major_formatter(lambda value, _: f'{value:,.0f}')
    axes.set_xlabel('temperature', fontsize=8)
    if curve[0][-1] > 10:
        axes.set_xscale('symlog', linthresh=1)
        powers = int(math.log10(curve[0][-1]))
        near = [0, 1] if powers < 10 else [0]
        axes.set_xticks([*near, *(10.0**power for power in range(0, powers + 1, math.ceil(powers / 4)) if power)])
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(lambda value, _: f'{value:g}')
        axes.set_xlabel('temperature (log axis from 1 on)', fontsize=8)
    axes.set_xlim(left=-0.02 * curve[0][-1] if curve[0][-1] <= 10 else -0.05)
    axes.set_ylabel('effective choices, exp(entropy)', fontsize=8)


def percent(share):
    """Write a share in per cent, so that small ones keep a digit and none is longer than five letters."""
    return f'{share:.1%}' if share >= 0.0005 or share == 0 else '<0.1%'


def number_text(number):
    """Write a number with three digits, and thousands with a comma."""
    return f'{number:,.0f}' if number >= 100 else f'{number:.3g}'


# Attention ------------------------------------------------------------------------------------------------------------


WEIGHT = 'attention weight, each row sums to 1 (root scale)'
ROOT = 0.5  # the exponent of all attention colours: small weights, of which there are most, stay apart


def attention_figure(title, weights, layers, heads, pieces):
    """Draw attention matrices: rows of layers and columns of heads; those of one layer larger; one with its numbers.

    weights: (layers, heads, T, T), rows take from columns. layers, heads: their numbers. pieces: of the tokens.
    """
    if weights.shape[:2] == (1, 1):
        return matrix_figure(title, weights[0, 0], pieces, WEIGHT)
    is_grid, T = len(layers) > 1 < len(heads), len(pieces)
    if is_grid:
        side, columns, fontsize = min(max(1.7, 0.122 * T), 3.6), len(heads), 7
        side = min(side, LONGEST / max(len(layers), len(heads)) - 0.3)
        titles = [f'head {head}' for head in heads] + [''] * (len(layers) - 1) * len(heads)
    else:
        side, fontsize = min(max(3.0, 0.131 * T), LONGEST / 3), 7.5
        columns = max(1, min(int(20 / side), len(layers) * len(heads)))
        titles = [f'head {head}' for head in heads] if len(heads) > 1 else [f'layer {layer}' for layer in layers]
    matrices = weights.reshape(-1, T, T)
    rows = math.ceil(len(matrices) / columns)
    above, across = (0.12, 0.12) if is_grid else (0.4, 0.2)
    left, below = room(pieces, fontsize) + (0.65 if is_grid else 0.2), room(pieces, fontsize)
    width = max(left + columns * (side + across) + 0.95, BOLD * len(title) + 0.4)
    figure = sheet(width, 1.05 + rows * (side + above) + below + 0.15, title)
    colours = ScalarMappable(PowerNorm(ROOT, 0, 1), BLUES)
    for number, (matrix, name) in enumerate(zip(matrices, titles, strict=True)):
        row, column = divmod(number, columns)
        y = 1.05 + row * (side + above)
        axes = place(figure, left + column * (side + across), y, side, side)
        show_matrix(axes, matrix, colours)
        if not is_grid:
            numbers_in_cells(axes, matrix, colours, side / T, np.triu(np.ones_like(matrix, dtype=bool), 1))
        axes.set_title(name, fontsize=10, pad=5)
        axes.set_xticks([])
        axes.set_yticks([])
        if column == 0:
            which = label(axes, 'y', pieces, side, fontsize)
        if number + columns >= len(matrices):  # nothing stands below it
            label(axes, 'x', pieces, side, fontsize)
        if is_grid and column == 0:
            style = {'rotation': 90, 'ha': 'center', 'va': 'center'}
            write(figure, 0.32, y + side / 2, f'layer {layers[row]}', fontsize=10, **style)
    x = left + columns * (side + across)
    scale(figure, x + 0.02, 1.05, min(3.2, rows * side), colours, WEIGHT)
    note = 'rows: the token that looks; columns: what it looks at' + (which and f'; {which}')
    write(figure, 0.2, 0.6, note, fontsize=8.5, color=GREY)
    return figure


def show_matrix(axes, matrix, colours):
    """Draw one matrix of (T, T) whose upper right, the future, is out of reach."""
    hidden = np.triu(np.ones_like(matrix, dtype=bool), 1)
    image = np.ma.masked_where(hidden, matrix)
    axes.set_facecolor(FUTURE)
    axes.imshow(image, cmap=colours.cmap, norm=colours.norm, aspect='auto', interpolation='nearest')
    for spine in axes.spines.values():
        spine.set_color('#bbbbbb')


def matrix_figure(title, matrix, pieces, meaning, strip=None):
    """Draw one (T, T) matrix with pieces on both axes, and numbers in the cells while there is room.

    strip: (title, (rows, T) numbers, labels of the rows), drawn above it on the same columns.
    """
    T = len(pieces)
    cell = min(0.36 if T <= 30 else 0.2, LONGEST / T)
    side, left = max(cell * T, 2.2), room(pieces) + 0.5
    cell = side / T
    strip_high = 0 if strip is None else min(0.26, LONGEST / 3 / len(strip[2])) * len(strip[2]) + 0.65
    width = max(left + side + 1.1, BOLD * len(title) + 0.4)
    figure = sheet(width, 0.75 + strip_high + side + room(pieces) + 0.4, title)
    top = max(abs(matrix).max(), 0 if strip is None else strip[1].max())
    colours = ScalarMappable(PowerNorm(ROOT, 0, max(1e-6, top)), BLUES)
    if strip is not None:
        name, rows, names = strip
        axes = place(figure, left, 0.95, side, strip_high - 0.65)
        axes.imshow(rows, cmap=BLUES, norm=colours.norm, aspect='auto', interpolation='nearest')
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_xticks([])
        axes.tick_params(length=2)
        write(figure, left, 0.87, name, fontsize=9)
        numbers_in_cells(axes, rows, colours, cell, np.zeros_like(rows, dtype=bool))
        write(figure, left, 0.75 + strip_high + 0.12, 'every token, after all layers', fontsize=9)
    y = 0.75 + strip_high + (0.2 if strip is not None else 0)
    axes = place(figure, left, y, side, side)
    show_matrix(axes, matrix, colours)
    label(axes, 'x', pieces, side)
    label(axes, 'y', pieces, side)
    axes.set_ylabel('the token that looks', fontsize=9)
    axes.set_xlabel('what it looks at', fontsize=9)
    numbers_in_cells(axes, matrix, colours, cell, np.triu(np.ones_like(matrix, dtype=bool), 1))
    scale(figure, left + side + 0.15, y, min(side, 3.5), colours, meaning)
    return figure


def numbers_in_cells(axes, matrix, colours, inches, hidden):
    """Write each number of a matrix that is worth it into its cell, if the cells, so many inches wide, can hold it."""
    if inches < 0.3:
        return
    for (row, column), value in np.ndenumerate(matrix):
        if not hidden[row, column] and value >= 0.005:
            text = f'{value:.2f}'.removeprefix('0')
            axes.text(column, row, text, ha='center', va='center', fontsize=7, color=ink(colours.to_rgba(value)))


def rollout_figure(title, shares, pieces):
    """Draw attention rollout: (L, T, T) shares; the last token's layer by layer, and every token's after all."""
    names = [f'after layer {layer}' for layer in range(len(shares))]
    strip = (f'the last token, {shortened(pieces[-1], PIECE)}, layer by layer', shares[::-1, -1], names[::-1])
    figure = matrix_figure(title, shares[-1], pieces, 'share of what it holds (root scale)', strip)
    axes = figure.axes[1]
    axes.set_ylabel('the token that holds it')
    axes.set_xlabel('where it comes from')
    return figure


# Embeddings -----------------------------------------------------------------------------------------------------------


def embeddings_figure(title, points, labels, others, other_labels, axis_labels):
    """Draw words as points of a plane, (N, 2), and others, (M, 2), in grey, their labels beside one another.

    axis_labels: what its two directions are; None where neither they nor distances mean anything.
    """
    size = min(12, 5.5 + len(points) / 14)
    figure = sheet(size * 1.25, size + 0.4, title)
    axes = place(figure, 0.75, 0.75, size * 1.25 - 1.0, size - 1.0)
    if len(others):
        axes.scatter(*others.T, s=12, color='#bdbdbd', zorder=1)
    axes.scatter(*points.T, s=34, color=CHOSEN, edgecolor='white', zorder=3)
    axes.margins(0.09)
    if axis_labels is None:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel('directions and distances mean nothing here, only which tokens are near', fontsize=9)
    else:
        axes.axhline(0, color='#e4e4e4', linewidth=0.8, zorder=0)
        axes.axvline(0, color='#e4e4e4', linewidth=0.8, zorder=0)
        axes.set_xlabel(axis_labels[0], fontsize=9)
        axes.set_ylabel(axis_labels[1], fontsize=9)
        axes.tick_params(labelsize=8)
        bare(axes, 'top', 'right')
    figure.canvas.draw()
    everything = np.concatenate([points, others]) if len(others) else points
    dots = axes.transData.transform(everything)
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in dots]
    for number, text in enumerate([*labels, *other_labels]):
        named = number < len(labels)
        style = {'fontsize': 10.5, 'color': 'black', 'zorder': 4} if named else {'fontsize': 7.5, 'color': '#8a8a8a'}
        put_label(axes, dots[number], shortened(text, 20), taken, optional=not named, **style)
    return figure


def put_label(axes, dot, text, taken, optional, **style):
    """Write a label beside a dot where it covers least of what is taken; if optional, only where it fits."""
    written = axes.annotate(text, (0, 0), xycoords='figure pixels', parse_math=False, **style)
    box = written.get_window_extent()
    width, height, off = box.width, box.height, 6
    inside = axes.get_window_extent()
    best = None
    for reach in (off, off + 9, off + 20, off + 30):
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)):
            x = dot[0] + dx * reach - (width if dx < 0 else width / 2 if dx == 0 else 0)
            y = dot[1] + dy * reach - (height if dy < 0 else height / 2 if dy == 0 else 0)
            covers = sum(
                max(0, min(x + width, right) - max(x, left)) * max(0, min(y + height, top) - max(y, bottom))
                for left, bottom, right, top in taken
            )
            outside = x < inside.x0 or x + width > inside.x1 or y < inside.y0 or y + height > inside.y1
            cost = 20 * covers + 1e5 * outside + reach  # rather a little further off than on anything
            if best is None or cost < best[0]:
                best = (cost, x, y, covers, outside)
    cost, x, y, covers, outside = best
    if optional and (covers > 0 or outside):
        written.remove()
        return
    written.set_position((x, y))
    written.xyann = (x, y)
    written.set_verticalalignment('bottom')
    taken.append((x, y, x + width, y + height))


# Layer by layer -------------------------------------------------------------------------------------------------------

COLUMNS, POSITIONS = 16, 192  # positions side by side, the next ones below; of a longer text the last so many


def layers_figure(title, pieces, tops, probs, ranks, next_logprobs):
    """Draw the logit lens: rows are layers, the last on top, columns are positions.

    pieces: of the T tokens; of very many, the last POSITIONS are drawn. tops: a list of T pieces for each layer, its
    likeliest next tokens; probs: their probabilities, (L + 1, T). ranks, next_logprobs: rank and logprob of the token
    that really came, (L + 1, T - 1).
    """
    L, T = len(tops), len(pieces)
    begin = max(0, T - POSITIONS)
    per_row = min(COLUMNS, T)
    lines = math.ceil((T - begin) / per_row)
    wide, high, left = 0.86, 0.36, 1.2
    block = L * high + 0.95
    chart = 2.6 if T > 1 else 0
    width = max(left + per_row * wide + 1.15, BOLD * len(title) + 0.4, 10)
    figure = sheet(width, 0.95 + lines * block + chart + 0.1, title)
    colours = ScalarMappable(Normalize(0, 1), BLUES)
    note = (
        'in each cell: likeliest next token, framed if it came next; below it: rank of the one that did; '
        'colour: probability read out at this layer, in the top row the model probability'
    )
    write(figure, 0.2, 0.66, note, fontsize=8, color=GREY)
    for line in range(lines):
        first, last = begin + line * per_row, min(T, begin + (line + 1) * per_row)
        y = 1.2 + line * block
        axes = place(figure, left, y, (last - first) * wide, L * high)
        axes.set_xlim(first - 0.5, last - 0.5)
        axes.set_ylim(-0.5, L - 0.5)
        for layer in range(L):
            for position in range(first, last):
                came = position < T - 1 and ranks[layer][position] == 1
                lens_cell(axes, position, layer, tops[layer][position], colours.to_rgba(probs[layer][position]), came)
                if position < T - 1:
                    rank = f'{ranks[layer][position]:,}'
                    dark = ink(colours.to_rgba(probs[layer][position])) == 'white'
                    grey = 'white' if dark else '#3d3d3d'
                    axes.text(position, layer - 0.27, rank, ha='center', va='center', fontsize=5.8, color=grey)
        names = ['embedding', *(f'layer {layer}' for layer in range(L - 2)), f'layer {L - 2} = model']
        axes.set_yticks(range(L), names, fontsize=8)
        came_next = [*(shortened(piece, 12) for piece in pieces[1:]), '?']
        axes.set_xticks(
            range(first, last), [shortened(piece, 12) for piece in pieces[first:last]], fontsize=8.5, parse_math=False
        )
        for position in range(first, last):
            axes.text(
                position,
                L - 0.42,
                came_next[position],
                ha='center',
                va='bottom',
                fontsize=8,
                color='#b34700',
                parse_math=False,
            )
        write(figure, left - 0.08, y - 0.1, 'came next:', fontsize=8, color='#b34700', ha='right', va='center')
        write(
            figure, left - 0.08, y + L * high + 0.13, 'after reading', fontsize=8, color=GREY, ha='right', va='center'
        )
        bare(axes, 'top', 'right', 'left', 'bottom')
        axes.tick_params(length=0)
    scale(figure, left + per_row * wide + 0.15, 1.2, min(L * high, 2.6), colours, 'probability read out')
    if chart:
        summary_of_layers(figure, left, 0.95 + lines * block, ranks, next_logprobs)
    return figure


def lens_cell(axes, position, layer, piece, colour, came):
    """Draw one cell: the piece on the colour of its probability, framed if it is the token that really came."""
    edge = {'edgecolor': CHOSEN, 'linewidth': 2, 'zorder': 3} if came else {'edgecolor': 'white', 'linewidth': 1}
    inset = 0.04 if came else 0
    axes.add_patch(
        Rectangle((position - 0.5 + inset, layer - 0.5 + inset), 1 - 2 * inset, 1 - 2 * inset, facecolor=colour, **edge)
    )
    text = shortened(piece, 10)
    fontsize = 8 if len(text) <= 8 else 7
    axes.text(
        position,
        layer + 0.1,
        text,
        ha='center',
        va='center',
        fontsize=fontsize,
        color=ink(colour),
        zorder=4,
        parse_math=False,
    )


def summary_of_layers(figure, left, top, ranks, next_logprobs):
    """Draw how rank and probability of the token that really came change from layer to layer, over all positions."""
    L = len(ranks)
    gap = 0.95
    width = (figure.get_size_inches()[0] - left - 0.5 - gap) / 2
    names = ['emb.', *map(str, range(L - 1))]
    logprobs, medians = next_logprobs.mean(1), np.median(ranks, 1)
    panels = (  # powers of ten are drawn, since a probability itself may be too small for a float
        ('probability, geometric mean', logprobs / math.log(10), [in_three_digits(logprob) for logprob in logprobs]),
        ('rank, median', np.log10(medians), [f'{median:,g}' for median in medians]),
    )
    for number, (name, values, texts) in enumerate(panels):
        axes = place(figure, left + number * (width + gap), top + 0.45, width, 1.6)
        axes.plot(range(L), values, color=GREY, linewidth=1.2, zorder=1)
        axes.scatter(range(L), values, color=[BAR] * (L - 1) + [CHOSEN], s=36, zorder=2)  # the model's own in full
        least, most = min(values), max(values)
        spread = max(most - least, 0.2)
        axes.set_ylim(least - spread * 0.3, most + spread * 0.3)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_formatter(lambda exponent, _: f'$10^{{{exponent:g}}}$')
        for x, (value, text) in enumerate(zip(values, texts)):
            off = -13 if x == 0 and values[1] > value else 6  # where the line does not cross it
            axes.annotate(text, (x, value), (0, off), textcoords='offset points', ha='center', fontsize=7.5)
        axes.set_xlim(-0.6, L - 0.5)
        axes.set_xticks(range(L), names, fontsize=8)
        axes.set_xlabel('layer', fontsize=8)
        axes.set_ylabel(name, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.set_title('the token that really came', fontsize=9, loc='left')
        bare(axes, 'top', 'right')


# Trace ----------------------------------------------------------------------------------------------------------------

TITLES = {
    'q = qkv[0]': 'q, k, v',
    'y': 'y = weights · v',
    'c_proj(gelu(...))': 'c_proj',
    'wpe(positions)': '+ wpe(positions)',
}
READS, ADDS = '#e8eef5', '#f6d9c8'  # boxes that read the stream, and boxes that add to it


def trace_figure(title, boxes, block, layers, stops, norms, pieces, answer):
    """Draw how data flows through the model, with shapes, and how long the stream's vectors grow on the way.

    boxes: {name: (shape, line of model.py)} of what is computed, by inside.trace's names. block: the one that is shown,
    layers: how many there are.
    stops: names of the places along the stream, norms: (stops, T) lengths of its vectors there. pieces: of the tokens.
    answer: lines of text.
    """
    T, wide = len(pieces), 12.4
    cell = min(max(0.2, min(0.8, (wide - 2.4) / T)), LONGEST / T)
    heat_wide, heat_high = cell * T, min(0.27 * len(stops), LONGEST / 2)
    names = room(stops) + 0.3
    flow_high = 6.1
    width = max(wide, names + heat_wide + 1.1)
    figure = sheet(width, flow_high + 1.15 + heat_high + room(pieces) + 0.35, title)
    flow = place(figure, 0, 0.5, wide, flow_high, xlim=(0, wide), ylim=(flow_high, 0))
    flow.set_axis_off()
    draw_flow(flow, boxes, block, layers, answer)

    top = flow_high + 1.1
    axes = place(figure, names, top, heat_wide, heat_high)
    colours = ScalarMappable(LogNorm(max(norms.min(), 1e-6), max(norms.max(), 2e-6)), colormaps['viridis'])
    axes.imshow(norms, cmap=colours.cmap, norm=colours.norm, aspect='auto', interpolation='nearest')
    every = math.ceil(len(stops) * 0.14 / heat_high)
    axes.set_yticks(range(0, len(stops), every), stops[::every], fontsize=8)
    which = label(axes, 'x', pieces, heat_wide)
    note = 'how long the vector of each token is on its way down the stream (L2 norm)' + (which and f'; {which}')
    write(figure, names, top - 0.12, note, fontsize=9)
    if cell >= 0.34:
        for (row, column), value in np.ndenumerate(norms):
            text = f'{value:.1f}' if value < 100 else f'{value:,.0f}'
            axes.text(column, row, text, ha='center', va='center', fontsize=7, color=ink(colours.to_rgba(value)))
    lowest, highest = colours.norm.vmin, colours.norm.vmax
    ticks = [digit * 10.0**power for power in range(-6, 7) for digit in (1, 2, 5)]
    ticks = [tick for tick in ticks if lowest <= tick <= highest]
    bar = scale(figure, names + heat_wide + 0.15, top, min(heat_high, 3), colours, 'L2 norm (log colours)', ticks=ticks)
    bar.minorticks_off()
    bar.ax.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
    return figure


def draw_flow(axes, boxes, block, layers, answer):
    """Draw the boxes of one forward pass along the residual stream, which runs down the left."""
    stream, first, step, tall = 0.75, 1.75, 1.72, 0.72
    attention = ['ln_1(x)', 'c_attn(x)', 'q = qkv[0]', 'softmax(q kᵀ / √hs)', 'y', 'c_proj(y)']
    mlp = ['ln_2(x)', 'c_fc(x)', 'gelu(c_fc(x))', 'c_proj(gelu(...))']
    rows = {'embed': 0.45, 'attn': 1.75, 'mlp': 3.0, 'rest': 4.15, 'head': 5.2}
    axes.plot([stream, stream], [rows['embed'], rows['head']], color=BAR, linewidth=9, solid_capstyle='round', zorder=0)
    axes.text(
        stream - 0.32,
        3.1,
        f'the residual stream  x {boxes["x"][0]}',
        rotation=90,
        fontsize=9,
        color='#4a6d8c',
        ha='center',
        va='center',
    )
    axes.add_patch(
        FancyBboxPatch(
            (first - 0.28, rows['attn'] - 0.68),
            10.7,
            2.5,
            boxstyle='round,pad=0,rounding_size=0.12',
            facecolor='none',
            edgecolor='#9a9a9a',
            linestyle='--',
        )
    )
    axes.text(
        first - 0.15,
        rows['attn'] - 0.52,
        f'Block {block}: transformer.h[{block}]',
        fontsize=9,
        color='#555555',
        va='center',
    )

    for column, name in enumerate(['idx', 'wte(idx)', 'wpe(positions)']):
        flow_box(axes, first + column * step, rows['embed'], tall, name, boxes[name], READS)
        if column:
            arrow(axes, (first + column * step - step + 1.46, rows['embed']), (first + column * step, rows['embed']))
    back(axes, first + 2 * step, rows['embed'], stream, tall, 'begins')
    for row, names in (('attn', attention), ('mlp', mlp)):
        y = rows[row]
        arrow(axes, (stream, y), (first, y))
        for column, name in enumerate(names):
            x = first + column * step
            flow_box(axes, x, y, tall, name, boxes[name], ADDS if column == len(names) - 1 else READS)
            if column:
                arrow(axes, (x - step + 1.46, y), (x, y))
        back(axes, first + (len(names) - 1) * step, y, stream, tall, '+')
    if layers > 1:
        text = other_blocks(block, layers)
        axes.text(first, rows['rest'], text, fontsize=10, style='italic', color='#555555', va='center')
        axes.plot([stream, first - 0.1], [rows['rest']] * 2, color='#9a9a9a', linestyle=':', linewidth=1.2)
    arrow(axes, (stream, rows['head']), (first, rows['head']))
    for column, name in enumerate(['ln_f(x)', 'lm_head(x)', 'logprobs']):
        x = first + column * step
        flow_box(axes, x, rows['head'], tall, name, boxes[name], READS)
        if column:
            arrow(axes, (x - step + 1.46, rows['head']), (x, rows['head']))
    arrow(axes, (first + 2 * step + 1.46, rows['head']), (first + 3 * step, rows['head']))
    axes.text(first + 3 * step + 0.08, rows['head'], '\n'.join(answer), fontsize=9, va='center', parse_math=False)


def other_blocks(block, layers):
    """Say which blocks, before and after the one that is shown, do the same."""
    spans = []
    for begin, end, where in ((0, block - 1, 'before it'), (block + 1, layers - 1, 'after it')):
        if begin <= end:
            between = {0: f'h[{begin}]', 1: f'h[{begin}] and h[{end}]'}.get(end - begin, f'h[{begin}] to h[{end}]')
            spans.append(f'{between} {where}')
    do, whose = ('does', 'its') if layers == 2 else ('do', 'their')
    return f'{", and ".join(spans)} {do} the same with weights of {whose} own'


def flow_box(axes, x, y, tall, name, lines, colour):
    """Draw a box with a name and two small lines, its left side at x, its middle at y."""
    axes.add_patch(
        FancyBboxPatch(
            (x, y - tall / 2),
            1.46,
            tall,
            boxstyle='round,pad=0,rounding_size=0.07',
            facecolor=colour,
            edgecolor='#8a8a8a',
            linewidth=0.9,
        )
    )
    name = TITLES.get(name, name)
    small = 9 if len(name) <= 14 else 8
    axes.text(x + 0.73, y - 0.17, name, ha='center', va='center', fontsize=small, weight='bold')
    axes.text(x + 0.73, y + 0.05, lines[0], ha='center', va='center', fontsize=7.5, color='#333333')
    axes.text(x + 0.73, y + 0.23, lines[1], ha='center', va='center', fontsize=6.5, color='#8a8a8a')


def arrow(axes, start, end):
    """Draw a short arrow."""
    axes.annotate('', end, start, arrowprops={'arrowstyle': '-|>', 'color': '#666666', 'linewidth': 1.1})


def back(axes, x, y, stream, tall, sign):
    """Draw the way from the box at x back to the stream, where its content is added."""
    low = y + tall / 2 + 0.17
    axes.plot([x + 0.73, x + 0.73, stream + 0.2], [y + tall / 2, low, low], color='#c07a52', linewidth=1.3)
    arrow(axes, (stream + 0.25, low), (stream + 0.04, low))
    axes.text(stream + 0.32, low - 0.02, sign, fontsize=9 if len(sign) > 1 else 13, color='#c07a52', va='bottom')
