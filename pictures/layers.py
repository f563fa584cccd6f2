"""Draws what each layer would predict after every token: the logit lens."""

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from rich.text import Text

from common.strings import shorten
from lm import internals
from lm.wording import format_three_digits
from pictures.canvas import (
    BLUES,
    BOLD_WIDTH,
    TEXT_GREY,
    make_figure,
    place_axes,
    place_colour_bar,
    place_text,
    save_pictures,
)
from pictures.inputs import TextSettings, load_subject, pieces_of_ids, to_numpy
from pictures.style import BAR, CHOSEN, hide_spines, text_colour
from pictures.terminal import new_table, print_parts

COLUMNS = 16  # positions side by side; the next ones go below
MAX_POSITIONS = 192  # of a longer text only the end is drawn
CELL_WIDTH, CELL_HEIGHT = 0.86, 0.36  # inches
NEXT_COLOUR = '#b34700'  # of the tokens that came next


@dataclass
class LayersSettings(TextSettings):
    """What each layer would predict after every token: the logit lens."""


# What is computed and printed -----------------------------------------------------------------------------------------


def show_layers(settings):
    """Print and draw what each layer would predict after every token."""
    subject = load_subject(settings)
    name, pieces = subject.name, subject.pieces
    lens = internals.logit_lens(subject.model, subject.idx)
    tops = [pieces_of_ids(subject.tokenizer, row) for row in lens.ids[:, 0].tolist()]
    probs = lens.logprobs[:, 0].exp()  # (L + 1, T)
    ranks, next_logprobs = lens.next_ranks[:, 0], lens.next_logprobs[:, 0].double()  # (L + 1, T - 1)

    title = f'{name}: what each layer would predict after “{shorten(subject.text, 50, from_end=True)}”'
    print_parts(layers_table(title, tops, probs, ranks, next_logprobs))
    T = len(pieces)
    end = f', the last {MAX_POSITIONS} of {T:,} tokens' if T > MAX_POSITIONS else ''
    title = f'{name}: what each layer would predict (logit lens){end}'
    figure = draw_layers(title, pieces, tops, to_numpy(probs), ranks.cpu().numpy(), next_logprobs.cpu().numpy())
    save_pictures({'layers': figure}, settings, 'layers', f'{name}-{subject.text}')


def layers_table(title, tops, probs, ranks, next_logprobs):
    """Return a table with a row for each layer: its prediction at the end, and how it did on the tokens before.

    The arguments are those of `draw_layers`, but tensors.
    """
    table = new_table(
        f'{title}; probability read out at this layer, which for the last layer is the model probability',
        'after',
        'likeliest next',
        '>probability',
        '>rank of the actual token: median',
        '>its probability: geometric mean',
        '>guessed',
    )
    names = ['embedding', *(f'layer {layer}' for layer in range(len(tops) - 1))]
    for layer, name in enumerate(names):
        actual = ['—'] * 3
        if ranks.size(1):
            guessed = (ranks[layer] == 1).sum().item()
            actual = [
                f'{ranks[layer].double().quantile(0.5).item():,g}',
                format_three_digits(next_logprobs[layer].mean().item()),
                f'{guessed} of {ranks.size(1)}',
            ]
        table.add_row(name, Text(tops[layer][-1]), f'{probs[layer, -1]:.3f}', *actual)
    return table


# The figure -----------------------------------------------------------------------------------------------------------


def draw_layers(title, pieces, tops, probs, ranks, next_logprobs):
    """Return a figure of the logit lens: rows are layers, with the last one on top, columns are positions.

    pieces: of the T tokens; only the last MAX_POSITIONS are drawn. tops: for each layer the T pieces of its likeliest
    next tokens; probs: their probabilities, (L + 1, T). ranks, next_logprobs: rank and logprob of the token that came
    next, (L + 1, T - 1).
    """
    L, T = len(tops), len(pieces)
    begin = max(0, T - MAX_POSITIONS)
    per_block = min(COLUMNS, T)
    blocks = math.ceil((T - begin) / per_block)
    left, block_height, summary_height = 1.2, L * CELL_HEIGHT + 0.95, 2.6 if T > 1 else 0
    width = max(left + per_block * CELL_WIDTH + 1.15, BOLD_WIDTH * len(title) + 0.4, 10)
    figure = make_figure(width, 0.95 + blocks * block_height + summary_height + 0.1, title)
    colours = ScalarMappable(Normalize(0, 1), BLUES)
    note = (
        'each cell: likeliest next token, framed if it came next; below it, the rank of the token that did; '
        'colour: probability read out at this layer, in the top row the model probability'
    )
    place_text(figure, 0.2, 0.66, note, fontsize=8, color=TEXT_GREY)
    for block in range(blocks):
        first, end = begin + block * per_block, min(T, begin + (block + 1) * per_block)
        y = 1.2 + block * block_height
        axes = place_axes(figure, left, y, (end - first) * CELL_WIDTH, L * CELL_HEIGHT)
        axes.set_xlim(first - 0.5, end - 0.5)
        axes.set_ylim(-0.5, L - 0.5)
        for layer in range(L):
            for position in range(first, end):
                rank = ranks[layer][position] if position < T - 1 else None
                colour = colours.to_rgba(probs[layer][position])
                draw_cell(axes, position, layer, tops[layer][position], colour, rank)
        label_block(axes, pieces, first, end, L)
        place_text(figure, left - 0.08, y - 0.1, 'came next:', fontsize=8, color=NEXT_COLOUR, ha='right', va='center')
        y += L * CELL_HEIGHT + 0.13
        place_text(figure, left - 0.08, y, 'after reading', fontsize=8, color=TEXT_GREY, ha='right', va='center')
    x, height = left + per_block * CELL_WIDTH + 0.15, min(L * CELL_HEIGHT, 2.6)
    place_colour_bar(figure, x, 1.2, height, colours, 'probability read out')
    if summary_height:
        draw_summary(figure, left, 0.95 + blocks * block_height, ranks, next_logprobs)
    return figure


def draw_cell(axes, position, layer, piece, colour, rank):
    """Draw one cell: a piece on the colour of its probability, framed if it came next.

    rank: of the token that came next; None for the last position.
    """
    came = rank == 1
    edge = {'edgecolor': CHOSEN, 'linewidth': 2, 'zorder': 3} if came else {'edgecolor': 'white', 'linewidth': 1}
    inset = 0.04 if came else 0
    corner, side = (position - 0.5 + inset, layer - 0.5 + inset), 1 - 2 * inset
    axes.add_patch(Rectangle(corner, side, side, facecolor=colour, **edge))
    text, ink = shorten(piece, 10), text_colour(colour)
    style = {'ha': 'center', 'va': 'center'}
    fontsize = 8 if len(text) <= 8 else 7
    axes.text(position, layer + 0.1, text, fontsize=fontsize, color=ink, zorder=4, parse_math=False, **style)
    if rank is not None:
        grey = 'white' if ink == 'white' else '#3d3d3d'
        axes.text(position, layer - 0.27, f'{rank:,}', fontsize=5.8, color=grey, **style)


def label_block(axes, pieces, first, end, L):
    """Label the layers, the tokens that were read below the cells, and the tokens that came next above them."""
    names = ['embedding', *(f'layer {layer}' for layer in range(L - 2)), f'layer {L - 2} = model']
    axes.set_yticks(range(L), names, fontsize=8)
    texts = [*(shorten(piece, 12) for piece in pieces), '?']
    axes.set_xticks(range(first, end), texts[first:end], fontsize=8.5, parse_math=False)
    style = {'ha': 'center', 'va': 'bottom', 'fontsize': 8, 'color': NEXT_COLOUR, 'parse_math': False}
    for position in range(first, end):
        axes.text(position, L - 0.42, texts[position + 1], **style)
    hide_spines(axes, 'top', 'right', 'left', 'bottom')
    axes.tick_params(length=0)


def draw_summary(figure, left, top, ranks, next_logprobs):
    """Draw how rank and probability of the token that came next change from layer to layer, over all positions."""
    L = len(ranks)
    gap = 0.95
    width = (figure.get_size_inches()[0] - left - 0.5 - gap) / 2
    logprobs, medians = next_logprobs.mean(1), np.median(ranks, 1)
    panels = (  # as powers of ten, since a probability itself may be too small for a float
        ('probability, geometric mean', logprobs / math.log(10), [format_three_digits(value) for value in logprobs]),
        ('rank, median', np.log10(medians), [f'{median:,g}' for median in medians]),
    )
    for number, (name, values, texts) in enumerate(panels):
        axes = place_axes(figure, left + number * (width + gap), top + 0.45, width, 1.6)
        axes.plot(range(L), values, color=TEXT_GREY, linewidth=1.2, zorder=1)
        axes.scatter(range(L), values, color=[BAR] * (L - 1) + [CHOSEN], s=36, zorder=2)  # the model itself in orange
        lowest, highest = min(values), max(values)
        spread = max(highest - lowest, 0.2)
        axes.set_ylim(lowest - spread * 0.3, highest + spread * 0.3)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_formatter(lambda exponent, _: f'$10^{{{exponent:g}}}$')
        for x, (value, text) in enumerate(zip(values, texts)):
            offset = -13 if x == 0 and values[1] > value else 6  # on the side where the line does not cross the number
            axes.annotate(text, (x, value), (0, offset), textcoords='offset points', ha='center', fontsize=7.5)
        axes.set_xlim(-0.6, L - 0.5)
        axes.set_xticks(range(L), ['emb.', *map(str, range(L - 1))], fontsize=8)
        axes.set_xlabel('layer', fontsize=8)
        axes.set_ylabel(name, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.set_title('the token that came next', fontsize=9, loc='left')
        hide_spines(axes, 'top', 'right')
