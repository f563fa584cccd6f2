"""TODO."""

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
from pictures.canvas import BLUES, BOLD, GREY, draw_colour_scale, new_sheet, place_axes, write_text
from pictures.reading import PromptSettings, read_text, save_pictures, to_numpy, visible_pieces
from pictures.style import BAR, CHOSEN, hide_spines, text_colour
from pictures.terminal import new_table, print_parts

# Layer by layer -------------------------------------------------------------------------------------------------------

COLUMNS, POSITIONS = 16, 192  # positions side by side, the next ones below; of a longer text the last so many


def draw_layers(title, pieces, tops, probs, ranks, next_logprobs):
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
    figure = new_sheet(width, 0.95 + lines * block + chart + 0.1, title)
    colours = ScalarMappable(Normalize(0, 1), BLUES)
    note = (
        'in each cell: likeliest next token, framed if it came next; below it: rank of the one that did; '
        'colour: probability read out at this layer, in the top row the model probability'
    )
    write_text(figure, 0.2, 0.66, note, fontsize=8, color=GREY)
    for line in range(lines):
        first, last = begin + line * per_row, min(T, begin + (line + 1) * per_row)
        y = 1.2 + line * block
        axes = place_axes(figure, left, y, (last - first) * wide, L * high)
        axes.set_xlim(first - 0.5, last - 0.5)
        axes.set_ylim(-0.5, L - 0.5)
        for layer in range(L):
            for position in range(first, last):
                came = position < T - 1 and ranks[layer][position] == 1
                lens_cell(axes, position, layer, tops[layer][position], colours.to_rgba(probs[layer][position]), came)
                if position < T - 1:
                    rank = f'{ranks[layer][position]:,}'
                    dark = text_colour(colours.to_rgba(probs[layer][position])) == 'white'
                    grey = 'white' if dark else '#3d3d3d'
                    axes.text(position, layer - 0.27, rank, ha='center', va='center', fontsize=5.8, color=grey)
        names = ['embedding', *(f'layer {layer}' for layer in range(L - 2)), f'layer {L - 2} = model']
        axes.set_yticks(range(L), names, fontsize=8)
        came_next = [*(shorten(piece, 12) for piece in pieces[1:]), '?']
        axes.set_xticks(
            range(first, last), [shorten(piece, 12) for piece in pieces[first:last]], fontsize=8.5, parse_math=False
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
        write_text(figure, left - 0.08, y - 0.1, 'came next:', fontsize=8, color='#b34700', ha='right', va='center')
        write_text(
            figure, left - 0.08, y + L * high + 0.13, 'after reading', fontsize=8, color=GREY, ha='right', va='center'
        )
        hide_spines(axes, 'top', 'right', 'left', 'bottom')
        axes.tick_params(length=0)
    draw_colour_scale(figure, left + per_row * wide + 0.15, 1.2, min(L * high, 2.6), colours, 'probability read out')
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
    text = shorten(piece, 10)
    fontsize = 8 if len(text) <= 8 else 7
    axes.text(
        position,
        layer + 0.1,
        text,
        ha='center',
        va='center',
        fontsize=fontsize,
        color=text_colour(colour),
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
        (
            'probability, geometric mean',
            logprobs / math.log(10),
            [format_three_digits(logprob) for logprob in logprobs],
        ),
        ('rank, median', np.log10(medians), [f'{median:,g}' for median in medians]),
    )
    for number, (name, values, texts) in enumerate(panels):
        axes = place_axes(figure, left + number * (width + gap), top + 0.45, width, 1.6)
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
        hide_spines(axes, 'top', 'right')


@dataclass
class LayersSettings(PromptSettings):
    """What each layer would have said next after every token: the logit lens."""


# Layer by layer -------------------------------------------------------------------------------------------------------


def show_layers(settings):
    """Draw what each layer would have said after every token."""
    scene = read_text(settings)
    lens = internals.logit_lens(scene.model, scene.idx)
    tops = [visible_pieces(scene.tokenizer, row) for row in lens.ids[:, 0].tolist()]
    probs = lens.logprobs[:, 0].exp()  # (L + 1, T)
    ranks, next_logprobs = lens.next_ranks[:, 0], lens.next_logprobs[:, 0].double()  # (L + 1, T - 1)

    rows = new_table(
        f'{scene.name}: what each layer would have said after “{shorten(scene.text, 50, from_end=True)}”; '
        'probability read out at this layer; of the last it is the model probability',
        'after',
        'likeliest next',
        '>probability',
        '>rank of what came: median',
        '>its probability: geometric mean',
        '>guessed',
    )
    names = ['embedding', *(f'layer {layer}' for layer in range(len(tops) - 1))]
    for layer, name in enumerate(names):
        came = ['—'] * 3
        if len(scene.pieces) > 1:
            guessed = (ranks[layer] == 1).sum().item()
            median = ranks[layer].double().quantile(0.5).item()
            came = [
                f'{median:,g}',
                format_three_digits(next_logprobs[layer].mean().item()),
                f'{guessed} of {ranks.size(1)}',
            ]
        rows.add_row(name, Text(tops[layer][-1]), f'{probs[layer, -1]:.3f}', *came)
    print_parts(rows)
    from pictures.layers import POSITIONS, draw_layers

    T = len(scene.pieces)
    end = f', the last {POSITIONS} of {T:,} tokens' if T > POSITIONS else ''
    title = f'{scene.name}: what each layer would say next (logit lens){end}'
    figure = draw_layers(title, scene.pieces, tops, to_numpy(probs), ranks.cpu().numpy(), next_logprobs.cpu().numpy())
    save_pictures({'layers': figure}, settings, 'layers', f'{scene.name}-{scene.text}')
