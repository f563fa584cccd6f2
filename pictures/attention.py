"""TODO."""

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
    BLUES,
    BOLD,
    FUTURE,
    GREY,
    LONGEST,
    PIECE,
    draw_colour_scale,
    label_axis,
    label_room,
    new_sheet,
    place_axes,
    write_text,
)
from pictures.reading import PromptSettings, check_index, read_text, save_pictures, to_numpy
from pictures.style import text_colour
from pictures.terminal import format_weighted, new_table, print_parts

# Attention ------------------------------------------------------------------------------------------------------------


WEIGHT = 'attention weight, each row sums to 1 (root scale)'
ROOT = 0.5  # the exponent of all attention colours: small weights, of which there are most, stay apart


def draw_attention(title, weights, layers, heads, pieces):
    """Draw attention matrices: rows of layers and columns of heads; those of one layer larger; one with its numbers.

    weights: (layers, heads, T, T), rows take from columns. layers, heads: their numbers. pieces: of the tokens.
    """
    if weights.shape[:2] == (1, 1):
        return draw_matrix(title, weights[0, 0], pieces, WEIGHT)
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
    left, below = label_room(pieces, fontsize) + (0.65 if is_grid else 0.2), label_room(pieces, fontsize)
    width = max(left + columns * (side + across) + 0.95, BOLD * len(title) + 0.4)
    figure = new_sheet(width, 1.05 + rows * (side + above) + below + 0.15, title)
    colours = ScalarMappable(PowerNorm(ROOT, 0, 1), BLUES)
    for number, (matrix, name) in enumerate(zip(matrices, titles, strict=True)):
        row, column = divmod(number, columns)
        y = 1.05 + row * (side + above)
        axes = place_axes(figure, left + column * (side + across), y, side, side)
        show_matrix(axes, matrix, colours)
        if not is_grid:
            numbers_in_cells(axes, matrix, colours, side / T, np.triu(np.ones_like(matrix, dtype=bool), 1))
        axes.set_title(name, fontsize=10, pad=5)
        axes.set_xticks([])
        axes.set_yticks([])
        if column == 0:
            which = label_axis(axes, 'y', pieces, side, fontsize)
        if number + columns >= len(matrices):  # nothing stands below it
            label_axis(axes, 'x', pieces, side, fontsize)
        if is_grid and column == 0:
            style = {'rotation': 90, 'ha': 'center', 'va': 'center'}
            write_text(figure, 0.32, y + side / 2, f'layer {layers[row]}', fontsize=10, **style)
    x = left + columns * (side + across)
    draw_colour_scale(figure, x + 0.02, 1.05, min(3.2, rows * side), colours, WEIGHT)
    note = 'rows: the token that looks; columns: what it looks at' + (which and f'; {which}')
    write_text(figure, 0.2, 0.6, note, fontsize=8.5, color=GREY)
    return figure


def show_matrix(axes, matrix, colours):
    """Draw one matrix of (T, T) whose upper right, the future, is out of reach."""
    hidden = np.triu(np.ones_like(matrix, dtype=bool), 1)
    image = np.ma.masked_where(hidden, matrix)
    axes.set_facecolor(FUTURE)
    axes.imshow(image, cmap=colours.cmap, norm=colours.norm, aspect='auto', interpolation='nearest')
    for spine in axes.spines.values():
        spine.set_color('#bbbbbb')


def draw_matrix(title, matrix, pieces, meaning, strip=None):
    """Draw one (T, T) matrix with pieces on both axes, and numbers in the cells while there is room.

    strip: (title, (rows, T) numbers, labels of the rows), drawn above it on the same columns.
    """
    T = len(pieces)
    cell = min(0.36 if T <= 30 else 0.2, LONGEST / T)
    side, left = max(cell * T, 2.2), label_room(pieces) + 0.5
    cell = side / T
    strip_high = 0 if strip is None else min(0.26, LONGEST / 3 / len(strip[2])) * len(strip[2]) + 0.65
    width = max(left + side + 1.1, BOLD * len(title) + 0.4)
    figure = new_sheet(width, 0.75 + strip_high + side + label_room(pieces) + 0.4, title)
    top = max(abs(matrix).max(), 0 if strip is None else strip[1].max())
    colours = ScalarMappable(PowerNorm(ROOT, 0, max(1e-6, top)), BLUES)
    if strip is not None:
        name, rows, names = strip
        axes = place_axes(figure, left, 0.95, side, strip_high - 0.65)
        axes.imshow(rows, cmap=BLUES, norm=colours.norm, aspect='auto', interpolation='nearest')
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_xticks([])
        axes.tick_params(length=2)
        write_text(figure, left, 0.87, name, fontsize=9)
        numbers_in_cells(axes, rows, colours, cell, np.zeros_like(rows, dtype=bool))
        write_text(figure, left, 0.75 + strip_high + 0.12, 'every token, after all layers', fontsize=9)
    y = 0.75 + strip_high + (0.2 if strip is not None else 0)
    axes = place_axes(figure, left, y, side, side)
    show_matrix(axes, matrix, colours)
    label_axis(axes, 'x', pieces, side)
    label_axis(axes, 'y', pieces, side)
    axes.set_ylabel('the token that looks', fontsize=9)
    axes.set_xlabel('what it looks at', fontsize=9)
    numbers_in_cells(axes, matrix, colours, cell, np.triu(np.ones_like(matrix, dtype=bool), 1))
    draw_colour_scale(figure, left + side + 0.15, y, min(side, 3.5), colours, meaning)
    return figure


def numbers_in_cells(axes, matrix, colours, inches, hidden):
    """Write each number of a matrix that is worth it into its cell, if the cells, so many inches wide, can hold it."""
    if inches < 0.3:
        return
    for (row, column), value in np.ndenumerate(matrix):
        if not hidden[row, column] and value >= 0.005:
            text = f'{value:.2f}'.removeprefix('0')
            axes.text(
                column, row, text, ha='center', va='center', fontsize=7, color=text_colour(colours.to_rgba(value))
            )


def draw_rollout(title, shares, pieces):
    """Draw attention rollout: (L, T, T) shares; the last token's layer by layer, and every token's after all."""
    names = [f'after layer {layer}' for layer in range(len(shares))]
    strip = (f'the last token, {shorten(pieces[-1], PIECE)}, layer by layer', shares[::-1, -1], names[::-1])
    figure = draw_matrix(title, shares[-1], pieces, 'share of what it holds (root scale)', strip)
    axes = figure.axes[1]
    axes.set_ylabel('the token that holds it')
    axes.set_xlabel('where it comes from')
    return figure


@dataclass
class AttentionSettings(PromptSettings):
    """Which token looks at which: attention weights of every head, and attention rollout."""

    layer: int | None = None  # this layer only, the first is 0; None for all
    head: int | None = None  # this head only, the first is 0; None for all
    save: str | None = None  # the PNG to write, X.png, and a second one beside it, X-rollout.png; None as in plot_dir


# Attention ------------------------------------------------------------------------------------------------------------


def show_attention(settings):
    """Draw the attention weights of all heads, one layer's or one head's, and attention rollout."""
    scene = read_text(settings)
    config, pieces = scene.model.config, scene.pieces
    check_index('layer', settings.layer, config.n_layer, scene.name)
    check_index('head', settings.head, config.n_head, scene.name)
    layers = range(config.n_layer) if settings.layer is None else [settings.layer]
    heads = range(config.n_head) if settings.head is None else [settings.head]
    drawn, means = [], []
    for layer, weights in enumerate(internals.layer_attentions(scene.model, scene.idx)):  # (1, nh, T, T)
        means.append(weights.mean(1))
        if layer in layers:
            drawn.append(weights[0, list(heads)])
    shown = torch.stack(drawn)  # (layers, heads, T, T)
    shares = internals.attention_rollout(means)[:, 0]  # (L, T, T)

    print_parts(attention_table(scene, shown, layers, heads))
    last = shares[-1, -1].tolist()
    print_parts(
        Text(f'rollout: what the last token, {pieces[-1]}, holds comes from {format_weighted(pieces, last, 5)}')
    )
    from pictures.attention import draw_attention, draw_rollout

    if settings.layer is None and settings.head is None:
        which = 'every head of every layer'
    else:
        places = {'layer': settings.layer, 'head': settings.head}
        which = ', '.join(f'every {name}' if number is None else f'{name} {number}' for name, number in places.items())
    figures = {
        'attention': draw_attention(f'{scene.name}: attention, {which}', to_numpy(shown), layers, heads, pieces),
        'rollout': draw_rollout(f'{scene.name}: attention rollout', to_numpy(shares), pieces),
    }
    save_pictures(figures, settings, 'attention', f'{scene.name}-{scene.text}')


def attention_table(scene, weights, layers, heads):
    """Return a table of what is looked at: by every token for one head, else by the last token in every head."""
    pieces = scene.pieces
    if weights.shape[:2] == (1, 1):
        rows = new_table(
            f'{scene.name}, layer {layers[0]}, head {heads[0]}: attention weights', '>', 'token', 'looks at'
        )
        for place, piece in enumerate(pieces):
            seen = weights[0, 0, place, : place + 1].tolist()
            rows.add_row(str(place), Text(piece), Text(format_weighted(pieces[: place + 1], seen, 4)))
        return rows
    if len(layers) > 1:
        title = f'{scene.name}: what the last token, {pieces[-1]}, looks at most'
        rows = new_table(title, '>layer', *(f'head {head}' for head in heads))
        for layer, of in zip(layers, weights[:, :, -1].tolist()):
            rows.add_row(str(layer), *(Text(format_weighted(pieces, row, 1)) for row in of))
        return rows
    rows = new_table(
        f'{scene.name}, layer {layers[0]}: attention weights, the first four as means over all tokens',
        '>head',
        '>itself',
        '>the one before',
        '>the first',
        '>tokens back',
        'the last token looks at',
    )
    for head, of in zip(heads, weights[0]):
        back = torch.arange(len(of)).to(of)
        mean_back = (of * (back[:, None] - back)).sum(-1).mean()
        before = of.diagonal(-1).mean() if len(of) > 1 else torch.tensor(0.0)
        means = [of.diagonal().mean(), before, of[:, 0].mean()]
        last = Text(format_weighted(pieces, of[-1].tolist(), 3))
        rows.add_row(str(head), *(f'{mean.item():.2f}' for mean in means), f'{mean_back.item():.1f}', last)
    return rows
