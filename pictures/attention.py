"""Draws which token attends to which: attention weights of every head, and attention rollout."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from rich.text import Text

from common.strings import shorten
from lm import internals
from pictures.canvas import (
    AXIS_LABEL_LENGTH,
    BLUES,
    BOLD_WIDTH,
    MAX_INCHES,
    TEXT_GREY,
    axis_label_inches,
    label_axis,
    make_figure,
    place_axes,
    place_colour_bar,
    place_text,
    save_pictures,
)
from pictures.inputs import TextSettings, check_index, load_subject, to_numpy
from pictures.style import text_colour
from pictures.terminal import format_largest, new_table, print_parts

FUTURE = '#ececec'  # the colour of what no token can see
WEIGHT = 'attention weight, each row sums to 1 (root scale)'
ROOT = 0.5  # exponent of the colour scale, so that small weights, the most frequent, can be told apart


@dataclass
class AttentionSettings(TextSettings):
    """Which token looks at which: attention weights of every head, and attention rollout."""

    layer: int | None = None  # this layer only, the first is 0; None for all
    head: int | None = None  # this head only, the first is 0; None for all
    save: str | None = None  # the PNG to write, X.png, with X-rollout.png beside it; None for a new folder in plot_dir


# What is computed and printed -----------------------------------------------------------------------------------------


def show_attention(settings):
    """Print and draw attention weights, of all heads, one layer or one head, and attention rollout."""
    subject = load_subject(settings)
    pieces, name = subject.pieces, subject.name
    n_layer, n_head = internals.count_layers_and_heads(subject.model)
    check_index('layer', settings.layer, n_layer, name)
    check_index('head', settings.head, n_head, name)
    layers = range(n_layer) if settings.layer is None else [settings.layer]
    heads = range(n_head) if settings.head is None else [settings.head]
    chosen, means = [], []
    for layer, weights in enumerate(internals.layer_attentions(subject.model, subject.idx)):  # (1, nh, T, T)
        means.append(weights.mean(1))
        if layer in layers:
            chosen.append(weights[0, list(heads)])
    weights = torch.stack(chosen)  # (layers, heads, T, T)
    rollout = internals.attention_rollout(means)[:, 0]  # (L, T, T)

    print_parts(attention_table(name, pieces, weights, layers, heads))
    sources = format_largest(pieces, rollout[-1, -1].tolist(), 5)
    print_parts(Text(f'rollout: where the content of the last token, {pieces[-1]}, comes from: {sources}'))
    if settings.layer is None and settings.head is None:
        which = 'every head of every layer'
    else:
        parts = {'layer': settings.layer, 'head': settings.head}
        which = ', '.join(f'every {part}' if number is None else f'{part} {number}' for part, number in parts.items())
    figures = {
        'attention': draw_attention(f'{name}: attention, {which}', to_numpy(weights), layers, heads, pieces),
        'rollout': draw_rollout(f'{name}: attention rollout', to_numpy(rollout), pieces),
    }
    save_pictures(figures, settings, 'attention', f'{name}-{subject.text}')


def attention_table(name, pieces, weights, layers, heads):
    """Return a table of what tokens look at: each token in one head, each head of one layer, or all layers and heads.

    weights: (layers, heads, T, T).
    """
    if weights.shape[:2] == (1, 1):
        return one_head_table(f'{name}, layer {layers[0]}, head {heads[0]}: attention weights', pieces, weights[0, 0])
    if len(layers) == 1:
        return one_layer_table(f'{name}, layer {layers[0]}: attention weights', pieces, weights[0], heads)
    title = f'{name}: what the last token, {pieces[-1]}, looks at most'
    table = new_table(title, '>layer', *(f'head {head}' for head in heads))
    for layer, rows in zip(layers, weights[:, :, -1].tolist()):
        table.add_row(str(layer), *(Text(format_largest(pieces, row, 1)) for row in rows))
    return table


def one_head_table(title, pieces, weights):
    """Return a table of what each token looks at most. weights: (T, T)."""
    table = new_table(title, '>', 'token', 'looks at')
    for place, piece in enumerate(pieces):
        seen = weights[place, : place + 1].tolist()
        table.add_row(str(place), Text(piece), Text(format_largest(pieces[: place + 1], seen, 4)))
    return table


def one_layer_table(title, pieces, weights, heads):
    """Return a table of how each head of a layer distributes its weights. weights: (heads, T, T)."""
    table = new_table(
        f'{title}, the first four as means over all tokens',
        '>head',
        '>itself',
        '>the one before',
        '>the first',
        '>tokens back',
        'the last token looks at',
    )
    for head, matrix in zip(heads, weights):
        places = torch.arange(len(matrix)).to(matrix)
        distance = (matrix * (places[:, None] - places)).sum(-1).mean()
        previous = matrix.diagonal(-1).mean() if len(matrix) > 1 else torch.tensor(0.0)
        means = [matrix.diagonal().mean(), previous, matrix[:, 0].mean()]
        last = Text(format_largest(pieces, matrix[-1].tolist(), 3))
        table.add_row(str(head), *(f'{mean.item():.2f}' for mean in means), f'{distance.item():.1f}', last)
    return table


# The figures ----------------------------------------------------------------------------------------------------------


def draw_attention(title, weights, layers, heads, pieces):
    """Return a figure of attention matrices: a grid of layers and heads, or larger those of one layer or one head.

    weights: (layers, heads, T, T), rows look at columns. layers, heads: their numbers. pieces: of the tokens.
    """
    if weights.shape[:2] == (1, 1):
        return draw_matrix(title, weights[0, 0], pieces, WEIGHT)
    is_grid, T = len(layers) > 1 < len(heads), len(pieces)
    if is_grid:
        side, columns, fontsize = min(max(1.7, 0.122 * T), 3.6), len(heads), 7
        side = min(side, MAX_INCHES / max(len(layers), len(heads)) - 0.3)
        names = [f'head {head}' for head in heads] + [''] * (len(layers) - 1) * len(heads)
    else:
        side, fontsize = min(max(3.0, 0.131 * T), MAX_INCHES / 3), 7.5
        columns = max(1, min(int(20 / side), len(layers) * len(heads)))
        names = [f'head {head}' for head in heads] if len(heads) > 1 else [f'layer {layer}' for layer in layers]
    matrices = weights.reshape(-1, T, T)
    rows = math.ceil(len(matrices) / columns)
    row_gap, column_gap = (0.12, 0.12) if is_grid else (0.4, 0.2)
    labels = axis_label_inches(pieces, fontsize)
    left = labels + (0.65 if is_grid else 0.2)
    width = max(left + columns * (side + column_gap) + 0.95, BOLD_WIDTH * len(title) + 0.4)
    figure = make_figure(width, 1.05 + rows * (side + row_gap) + labels + 0.15, title)
    colours = ScalarMappable(PowerNorm(ROOT, 0, 1), BLUES)
    for number, (matrix, name) in enumerate(zip(matrices, names, strict=True)):
        row, column = divmod(number, columns)
        y = 1.05 + row * (side + row_gap)
        axes = place_axes(figure, left + column * (side + column_gap), y, side, side)
        draw_weights(axes, matrix, colours)
        if not is_grid:
            write_cell_values(axes, matrix, colours, side / T, future_of(matrix))
        axes.set_title(name, fontsize=10, pad=5)
        axes.set_xticks([])
        axes.set_yticks([])
        if column == 0:
            note = label_axis(axes, 'y', pieces, side, fontsize)
        if number + columns >= len(matrices):  # nothing is below it
            label_axis(axes, 'x', pieces, side, fontsize)
        if is_grid and column == 0:
            style = {'rotation': 90, 'ha': 'center', 'va': 'center'}
            place_text(figure, 0.32, y + side / 2, f'layer {layers[row]}', fontsize=10, **style)
    x = left + columns * (side + column_gap)
    place_colour_bar(figure, x + 0.02, 1.05, min(3.2, rows * side), colours, WEIGHT)
    note = 'rows: the token that looks; columns: what it looks at' + (note and f'; {note}')
    place_text(figure, 0.2, 0.6, note, fontsize=8.5, color=TEXT_GREY)
    return figure


def draw_rollout(title, rollout, pieces):
    """Return a figure of attention rollout, (L, T, T): the last token after each layer, and every token after all."""
    names = [f'after layer {layer}' for layer in range(len(rollout))]
    last = shorten(pieces[-1], AXIS_LABEL_LENGTH)
    strip = (f'the last token, {last}, layer by layer', rollout[::-1, -1], names[::-1])
    figure = draw_matrix(title, rollout[-1], pieces, 'share of its content (root scale)', strip)
    axes = figure.axes[1]
    axes.set_ylabel('the token')
    axes.set_xlabel('where its content comes from')
    return figure


def draw_matrix(title, matrix, pieces, meaning, strip=None):
    """Return a figure of one (T, T) matrix with pieces on both axes, and numbers in the cells if they fit.

    strip: (title, (rows, T) numbers, row labels), drawn above the matrix with the same columns.
    """
    T = len(pieces)
    cell = min(0.36 if T <= 30 else 0.2, MAX_INCHES / T)
    side, left = max(cell * T, 2.2), axis_label_inches(pieces) + 0.5
    cell = side / T
    strip_height = 0 if strip is None else min(0.26, MAX_INCHES / 3 / len(strip[2])) * len(strip[2]) + 0.65
    width = max(left + side + 1.1, BOLD_WIDTH * len(title) + 0.4)
    figure = make_figure(width, 0.75 + strip_height + side + axis_label_inches(pieces) + 0.4, title)
    largest = max(abs(matrix).max(), 0 if strip is None else strip[1].max())
    colours = ScalarMappable(PowerNorm(ROOT, 0, max(1e-6, largest)), BLUES)
    if strip is not None:
        strip_title, rows, names = strip
        axes = place_axes(figure, left, 0.95, side, strip_height - 0.65)
        axes.imshow(rows, cmap=BLUES, norm=colours.norm, aspect='auto', interpolation='nearest')
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_xticks([])
        axes.tick_params(length=2)
        place_text(figure, left, 0.87, strip_title, fontsize=9)
        write_cell_values(axes, rows, colours, cell, np.zeros_like(rows, dtype=bool))
        place_text(figure, left, 0.75 + strip_height + 0.12, 'every token, after all layers', fontsize=9)
    y = 0.75 + strip_height + (0.2 if strip is not None else 0)
    axes = place_axes(figure, left, y, side, side)
    draw_weights(axes, matrix, colours)
    label_axis(axes, 'x', pieces, side)
    label_axis(axes, 'y', pieces, side)
    axes.set_ylabel('the token that looks', fontsize=9)
    axes.set_xlabel('what it looks at', fontsize=9)
    write_cell_values(axes, matrix, colours, cell, future_of(matrix))
    place_colour_bar(figure, left + side + 0.15, y, min(side, 3.5), colours, meaning)
    return figure


def future_of(matrix):
    """Return a mask, (T, T), of what tokens cannot see: all that comes after them."""
    return np.triu(np.ones_like(matrix, dtype=bool), 1)


def draw_weights(axes, matrix, colours):
    """Draw one (T, T) matrix, with the future in grey."""
    axes.set_facecolor(FUTURE)
    image = np.ma.masked_where(future_of(matrix), matrix)
    axes.imshow(image, cmap=colours.cmap, norm=colours.norm, aspect='auto', interpolation='nearest')
    for spine in axes.spines.values():
        spine.set_color('#bbbbbb')


def write_cell_values(axes, matrix, colours, inches, hidden):
    """Write the numbers of a matrix into its cells, except tiny and hidden ones, if cells are wide enough."""
    if inches < 0.3:
        return
    for (row, column), value in np.ndenumerate(matrix):
        if not hidden[row, column] and value >= 0.005:
            style = {'ha': 'center', 'va': 'center', 'fontsize': 7, 'color': text_colour(colours.to_rgba(value))}
            axes.text(column, row, f'{value:.2f}'.removeprefix('0'), **style)
