"""The pictures of visualize.py: numbers to matplotlib figures, without a display. Nothing here knows of models.

Sizes are in inches and everything is placed by hand from the upper left, so that a picture grows with the number of
tokens and its letters keep their size.
"""

import math
import warnings

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from plots import BAR, CHOSEN, MARK, MISSING_GLYPHS, shortened

BLUES, HEAT = colormaps['Blues'], colormaps['plasma']
FUTURE = '#ececec'  # what no token can see
GREY = '#777777'
PIECE = 14  # letters of a piece that stand beside an axis
LETTER, BOLD = 0.075, 0.101  # inches that a letter of a label and of a title are about wide
LONGEST = 60  # inches that a picture's side may grow to


# What several pictures need -------------------------------------------------------------------------------------------


def sheet(width, height, title):
    """Return an empty figure of so many inches with a title in its upper left corner."""
    warnings.filterwarnings('ignore', message=MISSING_GLYPHS)
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
    """Put pieces along the x or y side of axes, so many inches long, as many of them as there is room for."""
    every = math.ceil(len(pieces) * fontsize * 1.25 / 72 / inches)
    places = range(0, len(pieces), every)
    texts = [shortened(pieces[place], PIECE) for place in places]
    if side == 'x':
        axes.set_xticks(places, texts, rotation=90, fontsize=fontsize, parse_math=False)
    else:
        axes.set_yticks(places, texts, fontsize=fontsize, parse_math=False)
    axes.tick_params(length=2)


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


def ink(colour):
    """Return white or black, whichever can be read on a colour."""
    red, green, blue, _ = colour
    return 'white' if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else 'black'


def bare(axes, *sides):
    """Take away the lines on some sides of axes."""
    for side in sides:
        axes.spines[side].set_visible(False)


# Temperature ----------------------------------------------------------------------------------------------------------


def temperature_figure(title, pieces, panels, top_k, top_p, curve):
    """Draw one distribution at several temperatures.

    pieces: of the tokens shown, likeliest first. panels: a dict for each temperature with `temperature`, `probs` (V,),
    likeliest first, `entropy` in nats, how many tokens `top_k` and `top_p` keep (None without such a cut), how many are
    `left` by both, and lines of text `cuts`. curve: (temperatures, effective numbers of choices).
    """
    names = [*pieces, 'all others']
    left, gap, high = room(names, 9) + 0.15, 0.22, 0.27 * len(names)
    panel = max(2.1, min(2.9, 12 / len(panels)), (9 - left) / len(panels) - gap)
    width = max(left + len(panels) * (panel + gap), 9) + 0.1
    figure = sheet(width, high + 6.2, title)
    colours = [HEAT(0.05 + 0.68 * number / max(1, len(panels) - 1)) for number in range(len(panels))]
    heights = [[*of['probs'][: len(pieces)], max(0.0, 1 - of['probs'][: len(pieces)].sum())] for of in panels]
    right = max(map(max, heights)) * 1.25
    for number, (of, bars, colour) in enumerate(zip(panels, heights, colours)):
        x = left + number * (panel + gap)
        write(figure, x, 0.82, f'temperature {of["temperature"]:g}', fontsize=12, weight='bold', color=colour)
        nats, choices = of['entropy'], math.exp(of['entropy'])
        write(figure, x, 1.06, f'entropy {nats:.2f} nats = {nats / math.log(2):.2f} bits', fontsize=8.5)
        write(figure, x, 1.26, f'effective number of choices {number_text(choices)}', fontsize=8.5)
        axes = place(figure, x, 1.45, panel, high, xlim=(0, right), ylim=(len(names) - 0.4, -0.6))
        draw_bars(axes, bars, of, colour)
        axes.set_yticks(range(len(names)), names if number == 0 else [''] * len(names), fontsize=9, parse_math=False)
        for line, text in enumerate(of['cuts']):
            write(figure, x, 1.95 + high + 0.18 * line, text, fontsize=8, color='#444444')
    note = 'bars: sampler probability at this temperature, before any cut; pale: what a cut takes away'
    write(figure, left, 2.69 + high, note, fontsize=8, color=GREY)

    half = width / 2 - 1.1
    draw_sums(place(figure, 0.75, high + 3.35, half + 0.4, 2.25), panels, colours, top_k, top_p)
    draw_openness(place(figure, half + 2.5, high + 3.35, half - 1.05, 2.25), panels, colours, curve)
    for axes in figure.axes[-2:]:
        axes.grid(color='#e2e2e2', linewidth=0.6)
        axes.tick_params(labelsize=8)
        bare(axes, 'top', 'right')
    return figure


def draw_bars(axes, bars, of, colour):
    """Draw the bars of one temperature, the last for all other tokens, and where top-k and top-p cut."""
    shown, right = len(bars) - 1, axes.get_xlim()[1]
    fates = [1.0 if y < of['left'] else 0.35 for y in range(shown)]  # what a cut takes away is pale
    axes.barh(range(len(bars)), bars, color=[*((colour, fate) for fate in fates), '#c4c4c4'], height=0.78)
    for y, value in enumerate(bars):
        axes.text(value + right * 0.016, y, percent(value), va='center', fontsize=8)
    cuts = [('top-k cuts', of['top_k'], '--'), ('top-p cuts', of['top_p'], ':')]
    if of['top_k'] == of['top_p']:
        cuts = [('top-k and top-p cut', of['top_k'], '--')]
    for name, tokens, style in cuts:
        if tokens is None:
            continue
        above = name == 'top-k cuts' and tokens > 1  # so that the texts of two cuts that are near keep apart
        if tokens <= shown:
            axes.axhline(tokens - 0.5, color=MARK, linestyle=style, linewidth=1.2)
            text = f'{name} here'
            y, side = (tokens - 0.54, 'bottom') if above else (tokens - 0.44, 'top')
        else:
            text = f'{name} after {tokens:,} ↓'
            y, side = shown - (1.15 if above else 0.45), 'bottom'
        axes.text(right, y, text, ha='right', va=side, fontsize=8, color=MARK)
    axes.tick_params(axis='y', length=0)
    axes.tick_params(axis='x', labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.xaxis.set_major_formatter(lambda value, _: f'{value:.0%}')
    bare(axes, 'top', 'right')


def draw_sums(axes, panels, colours, top_k, top_p):
    """Draw how much probability the likeliest tokens have together, and where the cuts meet it."""
    V = len(panels[0]['probs'])
    axes.set_title('the likeliest tokens, taken together', fontsize=9, loc='left')
    for of, colour in zip(panels, colours):
        sums = of['probs'].cumsum()
        axes.plot(range(1, V + 1), sums, color=colour, linewidth=1.8, label=f'{of["temperature"]:g}')
        if of['top_p'] is not None:
            axes.plot(of['top_p'], sums[of['top_p'] - 1], 'o', color=colour, markeredgecolor='white', markersize=8)
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
    axes.set_xlabel('so many of the likeliest tokens (log axis; dot: where top-p cuts)', fontsize=8)
    axes.set_ylabel('sampler probability together', fontsize=8)
    axes.legend(title='temperature', title_fontsize=8, fontsize=8, frameon=False, loc='lower right')


def draw_openness(axes, panels, colours, curve):
    """Draw how the effective number of choices grows with the temperature."""
    axes.set_title('how open the choice is', fontsize=9, loc='left')
    axes.plot(*curve, color=GREY, linewidth=1.5)
    for of, colour in zip(panels, colours):
        axes.plot(of['temperature'], math.exp(of['entropy']), 'o', color=colour, markersize=8)
    axes.set_yscale('log')
    axes.yaxis.set_major_locator(LogLocator(10))
    axes.yaxis.set_major_formatter(lambda value, _: f'{value:,.0f}')
    axes.set_xlim(left=0)
    axes.set_xlabel('temperature', fontsize=8)
    axes.set_ylabel('effective choices, exp(entropy)', fontsize=8)


def percent(share):
    """Write a share in per cent, so that small ones keep a digit and none is longer than five letters."""
    return f'{share:.1%}' if share >= 0.0005 or share == 0 else '<0.1%'


def number_text(number):
    """Write a number with three digits, and thousands with a comma."""
    return f'{number:,.0f}' if number >= 100 else f'{number:.3g}'


# Attention ------------------------------------------------------------------------------------------------------------


def attention_figure(title, weights, layers, heads, pieces):
    """Draw attention matrices: rows of layers and columns of heads; those of one layer larger; one with its numbers.

    weights: (layers, heads, T, T), rows take from columns. layers, heads: their numbers. pieces: of the tokens.
    """
    if weights.shape[:2] == (1, 1):
        return matrix_figure(title, weights[0, 0], pieces, 'attention weight (each row sums to 1)')
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
    write(figure, 0.2, 0.6, 'rows: the token that looks; columns: what it looks at', fontsize=8.5, color=GREY)
    colours = ScalarMappable(PowerNorm(0.5, 0, 1), BLUES)
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
            label(axes, 'y', pieces, side, fontsize)
        if number + columns >= len(matrices):  # nothing stands below it
            label(axes, 'x', pieces, side, fontsize)
        if is_grid and column == 0:
            style = {'rotation': 90, 'ha': 'center', 'va': 'center'}
            write(figure, 0.32, y + side / 2, f'layer {layers[row]}', fontsize=10, **style)
    x = left + columns * (side + across)
    scale(figure, x + 0.02, 1.05, min(3.2, rows * side), colours, 'attention weight (each row sums to 1)')
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
    colours = ScalarMappable(PowerNorm(0.6 if T <= 30 else 0.4, 0, max(1e-6, top)), BLUES)
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
    figure = matrix_figure(title, shares[-1], pieces, 'share of what it holds', strip)
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
    for reach in (off, off + 9, off + 20):
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)):
            x = dot[0] + dx * reach - (width if dx < 0 else width / 2 if dx == 0 else 0)
            y = dot[1] + dy * reach - (height if dy < 0 else height / 2 if dy == 0 else 0)
            covers = sum(
                max(0, min(x + width, right) - max(x, left)) * max(0, min(y + height, top) - max(y, bottom))
                for left, bottom, right, top in taken
            )
            outside = x < inside.x0 or x + width > inside.x1 or y < inside.y0 or y + height > inside.y1
            cost = covers + 1e4 * outside + reach
            if best is None or cost < best[0]:
                best = (cost, x, y)
    cost, x, y = best
    if optional and cost > 200:
        written.remove()
        return
    written.set_position((x, y))
    written.xyann = (x, y)
    written.set_verticalalignment('bottom')
    taken.append((x, y, x + width, y + height))


# Layer by layer -------------------------------------------------------------------------------------------------------

COLUMNS, POSITIONS = 16, 192  # positions side by side, the next ones below; of a longer text the last so many


def layers_figure(title, pieces, tops, probs, ranks, next_probs):
    """Draw the logit lens: rows are layers, the last on top, columns are positions.

    pieces: of the T tokens; of very many, the last POSITIONS are drawn. tops: a list of T pieces for each layer, its
    likeliest next tokens; probs: their probabilities, (L + 1, T). ranks, next_probs: rank and probability of the token
    that really came, (L + 1, T - 1).
    """
    L, T = len(tops), len(pieces)
    begin = max(0, T - POSITIONS)
    per_row = min(COLUMNS, T)
    lines = math.ceil((T - begin) / per_row)
    wide, high, left = 0.86, 0.36, 1.2
    block = L * high + 0.95
    chart = 2.6 if T > 1 else 0
    width = max(left + per_row * wide + 1.15, BOLD * len(title) + 0.4, 8)
    figure = sheet(width, 0.95 + lines * block + chart + 0.1, title)
    colours = ScalarMappable(Normalize(0, 1), BLUES)
    note = (
        'in each cell: the likeliest next token, framed if it came next, and below it the rank of the one that did; '
        'the top row is the model itself (model probability)'
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
    scale(figure, left + per_row * wide + 0.15, 1.2, min(L * high, 2.6), colours, 'its probability')
    if chart:
        summary_of_layers(figure, left, 0.95 + lines * block, ranks, next_probs)
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


def summary_of_layers(figure, left, top, ranks, next_probs):
    """Draw how rank and probability of the token that really came change from layer to layer, over all positions."""
    L = len(ranks)
    width = (figure.get_size_inches()[0] - left - 0.6 - 1.0) / 2
    names = ['emb.', *map(str, range(L - 1))]
    panels = (
        (np.exp(np.log(np.maximum(next_probs, 1e-30)).mean(1)), 'its probability, geometric mean', colours_of(L)),
        (np.median(ranks, 1), 'its rank, median', colours_of(L)),
    )
    for number, (values, name, colours) in enumerate(panels):
        axes = place(figure, left + number * (width + 1.0), top + 0.45, width, 1.6)
        axes.plot(range(L), values, color=GREY, linewidth=1.2, zorder=1)
        axes.scatter(range(L), values, color=colours, s=36, zorder=2)
        least, most = min(values), max(values)
        spread = max(most / least, 1.5)
        axes.set_ylim(least / spread**0.3, most * spread**0.3)
        axes.set_yscale('log')
        axes.yaxis.set_minor_locator(NullLocator())
        for x, value in enumerate(values):
            text = f'{value:,.0f}' if number else f'{value:.2g}' if value >= 0.001 else f'{value:.0e}'
            off = -13 if x == 0 and values[1] > value else 6  # where the line does not cross it
            axes.annotate(text, (x, value), (0, off), textcoords='offset points', ha='center', fontsize=7.5)
        axes.set_xticks(range(L), names, fontsize=8)
        axes.set_xlabel('layer', fontsize=8)
        axes.tick_params(labelsize=8)
        axes.set_title(f'the token that really came: {name}', fontsize=9, loc='left')
        bare(axes, 'top', 'right')


def colours_of(L):
    """Return a colour for each layer: what is only on the way is pale, the model's own is full."""
    return [BAR] * (L - 1) + [CHOSEN]


# Trace ----------------------------------------------------------------------------------------------------------------

TITLES = {
    'q = qkv[0]': 'q, k, v',
    'y': 'y = weights · v',
    'c_proj(gelu(...))': 'c_proj',
    'wpe(positions)': '+ wpe(positions)',
}
READS, ADDS = '#e8eef5', '#f6d9c8'  # boxes that read the stream, and boxes that add to it


def trace_figure(title, boxes, layers, stops, norms, pieces, answer):
    """Draw how data flows through the model, with shapes, and how long the stream's vectors grow on the way.

    boxes: {name: (shape, line of model.py)} of what is computed, by inside.trace's names. layers: how many blocks.
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
    draw_flow(flow, boxes, layers, answer)

    top = flow_high + 1.1
    write(
        figure,
        names,
        top - 0.12,
        'how long the vector of each token is on its way down the stream (L2 norm)',
        fontsize=9,
    )
    axes = place(figure, names, top, heat_wide, heat_high)
    colours = ScalarMappable(LogNorm(max(norms.min(), 1e-6), max(norms.max(), 2e-6)), colormaps['viridis'])
    axes.imshow(norms, cmap=colours.cmap, norm=colours.norm, aspect='auto', interpolation='nearest')
    every = math.ceil(len(stops) * 0.14 / heat_high)
    axes.set_yticks(range(0, len(stops), every), stops[::every], fontsize=8)
    label(axes, 'x', pieces, heat_wide)
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


def draw_flow(axes, boxes, layers, answer):
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
    axes.text(first - 0.15, rows['attn'] - 0.52, 'Block 0: transformer.h[0]', fontsize=9, color='#555555', va='center')

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
        which = 'h[1] does' if layers == 2 else f'h[1] to h[{layers - 1}] do'
        axes.text(
            first,
            rows['rest'],
            f'{which} the same with weights of {"its" if layers == 2 else "their"} own',
            fontsize=10,
            style='italic',
            color='#555555',
            va='center',
        )
        axes.plot([stream, first - 0.1], [rows['rest']] * 2, color='#9a9a9a', linestyle=':', linewidth=1.2)
    arrow(axes, (stream, rows['head']), (first, rows['head']))
    for column, name in enumerate(['ln_f(x)', 'lm_head(x)', 'logprobs']):
        x = first + column * step
        flow_box(axes, x, rows['head'], tall, name, boxes[name], READS)
        if column:
            arrow(axes, (x - step + 1.46, rows['head']), (x, rows['head']))
    arrow(axes, (first + 2 * step + 1.46, rows['head']), (first + 3 * step, rows['head']))
    axes.text(first + 3 * step + 0.08, rows['head'], '\n'.join(answer), fontsize=9, va='center', parse_math=False)


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
