"""Draws one forward pass step by step, and prints it with the lines of model.py, shapes and a few values."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.patches import FancyBboxPatch
from rich.table import Table
from rich.text import Text

from lm import internals
from lm.gpt2_files import require_gpt
from pictures.canvas import (
    MAX_INCHES,
    axis_label_inches,
    label_axis,
    make_figure,
    place_axes,
    place_colour_bar,
    place_text,
    save_pictures,
)
from pictures.inputs import TextSettings, check_index, load_subject, pieces_of_ids, to_numpy
from pictures.style import BAR, format_bar_value, text_colour
from pictures.terminal import print_parts

MODEL_PROBABILITY = 'model probability (softmax of the raw logits)'


@dataclass
class TraceSettings(TextSettings):
    """Every step of one forward pass, with the lines of model.py, shapes and a few values."""

    layer: int = 0  # the block to show in full


# What is computed and printed -----------------------------------------------------------------------------------------


def show_trace(settings):
    """Print every step of one forward pass, and draw how the data flows."""
    subject = load_subject(settings)
    require_gpt(subject.model, subject.name, 'trace goes through model.py line by line, so it draws')
    config, pieces, name = subject.model.config, subject.pieces, subject.name
    check_index('layer', settings.layer, config.n_layer, name)
    steps = internals.trace_forward(subject.model, subject.idx)
    print_parts(*trace_lines(subject, steps, settings.layer))

    logprobs = steps[-1].value[0, -1]  # (V,) after the last token
    best = logprobs.topk(min(5, subject.model.n_ids))
    likeliest = zip(best.values.exp().tolist(), pieces_of_ids(subject.tokenizer, best.indices.tolist()))
    answer = [f'{format_bar_value(prob)}  {piece}' for prob, piece in likeliest]
    print_parts(Text(f'\nnext: {", ".join(answer)}   {MODEL_PROBABILITY}'))

    shown = [step for step in steps if step.layer in (None, settings.layer)]
    boxes = {step.name: (format_shape(step.value), f'line {step.line}') for step in shown}
    stops = ['wte + wpe', *(f'h[{layer}] + {part}' for layer in range(config.n_layer) for part in ('attn', 'mlp'))]
    stream = [step.value[0] for step in steps if step.name == 'x']
    norms = torch.stack([x.float().norm(dim=-1) for x in stream])  # (2 L + 1, T)
    flow = Flow(boxes, settings.layer, config.n_layer, ['next, model probability:', *answer])
    title = f'{name}: one forward pass over {len(pieces)} token{"s" * (len(pieces) > 1)}'
    figure = draw_trace(title, flow, stops, to_numpy(norms), pieces)
    save_pictures({'trace': figure}, settings, 'trace', f'{name}-{subject.text}')


def trace_lines(subject, steps, full_layer):
    """Return the texts to print: sizes and tokens, then every line of model.py with what it computes.

    Of all layers but full_layer, only the residual stream is shown, with the numbers of its lines.
    """
    parts, layer, function, line = [trace_heading(subject)], None, None, None
    for step in steps:
        in_full = step.layer in (None, full_layer)
        if not in_full and step.name != 'x':
            continue
        if step.layer != layer and step.layer is not None:
            hint = '' if step.layer == full_layer else f', in short: --layer={step.layer} shows it in full'
            parts.append(Text(f'\ntransformer.h[{step.layer}]{hint}', style='bold'))
            function = None
        if in_full and step.function != function:
            parts.append(Text(f'model.py, {step.function}', style='cyan'))
        if in_full and (step.function, step.line) != (function, line):
            parts.append(Text(f'{step.line:5}  {step.code}', style='green'))
        layer, function, line = step.layer, step.function, step.line
        shape = f'({step.letters}) = {format_shape(step.value)}'
        row = Table.grid(padding=(0, 1))
        for width in (8, 22, 35, 36, 34):
            row.add_column(width=width)
        row.add_row(
            '' if in_full else f'{step.line:5}',
            Text(step.name, style='bold'),
            Text(step.meaning),
            shape,
            format_excerpt(step.value),
        )
        parts.append(row)
    return parts


def trace_heading(subject):
    """Return what stands above the steps: the tokens, and what the letters in shapes mean."""
    config, pieces = subject.model.config, subject.pieces
    sizes = {
        'B': 1,
        'T': len(pieces),
        'C': config.n_embd,
        'nh': config.n_head,
        'hs': config.n_embd // config.n_head,
        'V': config.vocab_size,
    }
    heading = Text(f'{subject.name} reads ')
    heading.append(' │ '.join(pieces), style='bold')
    heading.append(f'\n{", ".join(f"{letter} = {size:,}" for letter, size in sizes.items())}; ')
    heading.append(f'values: the last six ids, and the first four numbers of the last token, {pieces[-1]}, in head 0')
    return heading


def format_shape(value):
    """Return the shape of a tensor as text."""
    return str(tuple(value.shape)).replace(',)', ')')


def format_excerpt(value):
    """Return the last six ids, or the first four numbers of the last token in the first head, as text."""
    if not value.is_floating_point():
        return '… ' * (value.size(-1) > 6) + ' '.join(map(str, value.flatten()[-6:].tolist()))
    row = value.reshape(-1, *value.shape[-2:])[0, -1]
    return ' '.join(f'{number:7.3f}' for number in row[:4].tolist()) + ' …' * (len(row) > 4)


# The figure -----------------------------------------------------------------------------------------------------------

BOX_TITLES = {  # if not the name of the step
    'q = qkv[0]': 'q, k, v',
    'softmax(q kᵀ / √hs)': 'softmax\n(q kᵀ / √hs)',
    'y': 'y =\nweights · v',
    'gelu(c_fc(x))': 'gelu\n(c_fc(x))',
    'c_proj(gelu(...))': 'c_proj',
    'wpe(positions)': '+ wpe\n(positions)',
}
READS, ADDS = '#e8eef5', '#f6d9c8'  # colours of boxes that read the residual stream, and of boxes that add to it
SMALL, MEDIUM = 9.5, 10.5  # font sizes: in print the picture shrinks to two thirds
FLOW_WIDTH, FLOW_HEIGHT = 10, 5.35  # inches
STREAM_X, FIRST_X = 0.55, 1.2  # of the residual stream, and of the first box of each row
BOX_STEP, BOX_WIDTH, BOX_HEIGHT = 1.46, 1.24, 0.86
ROWS = {  # of boxes: y, steps
    'embedding': (0.5, ['idx', 'wte(idx)', 'wpe(positions)']),
    'attention': (1.91, ['ln_1(x)', 'c_attn(x)', 'q = qkv[0]', 'softmax(q kᵀ / √hs)', 'y', 'c_proj(y)']),
    'mlp': (3.07, ['ln_2(x)', 'c_fc(x)', 'gelu(c_fc(x))', 'c_proj(gelu(...))']),
    'head': (4.8, ['ln_f(x)', 'lm_head(x)', 'logprobs']),
}
OTHER_BLOCKS_Y = 4.05


class Flow(NamedTuple):
    """What the boxes of the picture show."""

    boxes: dict[str, tuple[str, str]]  # name of a step in internals.trace_forward -> its shape, its line in model.py
    block: int  # the block that is shown in full
    n_layer: int
    answer: list[str]  # lines with the likeliest next tokens


def draw_trace(title, flow, stops, norms, pieces):
    """Return a figure of how data flows through the model, and of how long the vectors in the residual stream are.

    stops: names of the places along the stream, norms: (stops, T) lengths of the vectors there. pieces: of the tokens.
    """
    T = len(pieces)
    cell = min(max(0.2, min(0.8, (FLOW_WIDTH - 2.4) / T)), MAX_INCHES / T)
    width, height = cell * T, min(0.21 * len(stops), MAX_INCHES / 2)
    left, top = axis_label_inches(stops, SMALL) + 0.3, FLOW_HEIGHT + 0.85
    figure_height = top + 0.05 + height + axis_label_inches(pieces, SMALL) + 0.1
    figure = make_figure(max(FLOW_WIDTH, left + width + 1.1), figure_height, title)
    axes = place_axes(figure, 0, 0.5, FLOW_WIDTH, FLOW_HEIGHT, xlim=(0, FLOW_WIDTH), ylim=(FLOW_HEIGHT, 0))
    axes.set_axis_off()
    draw_flow(axes, flow)

    axes = place_axes(figure, left, top, width, height)
    colours = ScalarMappable(LogNorm(max(norms.min(), 1e-6), max(norms.max(), 2e-6)), colormaps['viridis'])
    axes.imshow(norms, cmap=colours.cmap, norm=colours.norm, aspect='auto', interpolation='nearest')
    every = math.ceil(len(stops) * 0.16 / height)
    axes.set_yticks(range(0, len(stops), every), stops[::every], fontsize=SMALL)
    which = label_axis(axes, 'x', pieces, width, SMALL)
    note = 'length of each token’s vector on its way down the residual stream (L2 norm)' + (which and f'; {which}')
    place_text(figure, left, top - 0.12, note, fontsize=MEDIUM)
    if cell >= 0.45:
        for (row, column), value in np.ndenumerate(norms):
            text, ink = f'{value:.1f}' if value < 100 else f'{value:,.0f}', text_colour(colours.to_rgba(value))
            axes.text(column, row, text, ha='center', va='center', fontsize=SMALL, color=ink)
    draw_norm_scale(figure, left + width + 0.15, top, min(height, 3), colours)
    return figure


def draw_norm_scale(figure, left, top, height, colours):
    """Draw the logarithmic colour bar of the norms, with round numbers beside it."""
    lowest, highest = colours.norm.vmin, colours.norm.vmax
    ticks = [digit * 10.0**power for power in range(-6, 7) for digit in (1, 2, 5)]
    ticks = [tick for tick in ticks if lowest <= tick <= highest]
    bar = place_colour_bar(figure, left, top, height, colours, 'L2 norm (log colours)', ticks=ticks)
    bar.minorticks_off()
    bar.ax.tick_params(labelsize=SMALL)
    bar.set_label('L2 norm (log colours)', fontsize=SMALL)
    bar.ax.yaxis.set_major_formatter(lambda value, _: f'{value:g}')


def draw_flow(axes, flow):
    """Draw the boxes of one forward pass, with the residual stream on their left from top to bottom."""
    draw_stream(axes, flow.boxes['x'][0])
    draw_block_frame(axes, f'Block {flow.block}: transformer.h[{flow.block}]')
    for name, (y, steps) in ROWS.items():
        if name != 'embedding':
            draw_arrow(axes, (STREAM_X, y), (FIRST_X, y))
        for column, step in enumerate(steps):
            x = FIRST_X + column * BOX_STEP
            adds = name in ('attention', 'mlp') and column == len(steps) - 1
            draw_box(axes, x, y, step, flow.boxes[step], ADDS if adds else READS)
            if column:
                draw_arrow(axes, (x - BOX_STEP + BOX_WIDTH, y), (x, y))
        if name != 'head':
            draw_return(axes, x, y, 'begins' if name == 'embedding' else '+')
    if flow.n_layer > 1:
        y, text = OTHER_BLOCKS_Y, describe_other_blocks(flow.block, flow.n_layer)
        axes.text(FIRST_X, y, text, fontsize=MEDIUM, style='italic', color='#555555', va='center')
        axes.plot([STREAM_X, FIRST_X - 0.1], [y, y], color='#9a9a9a', linestyle=':', linewidth=1.2)
    y, steps = ROWS['head']
    x = FIRST_X + len(steps) * BOX_STEP
    draw_arrow(axes, (x - BOX_STEP + BOX_WIDTH, y), (x, y))
    axes.text(x + 0.08, y, '\n'.join(flow.answer), fontsize=MEDIUM, va='center', parse_math=False)


def draw_stream(axes, shape):
    """Draw the residual stream, a thick line from the embedding to the head."""
    y = [ROWS['embedding'][0], ROWS['head'][0]]
    axes.plot([STREAM_X, STREAM_X], y, color=BAR, linewidth=9, solid_capstyle='round', zorder=0)
    style = {'rotation': 90, 'fontsize': SMALL, 'color': '#4a6d8c', 'ha': 'center', 'va': 'center'}
    axes.text(STREAM_X - 0.28, 2.7, f'the residual stream  x {shape}', **style)


def draw_block_frame(axes, title):
    """Draw a dashed frame around the boxes of the block that is shown in full."""
    left, top = FIRST_X - 0.16, ROWS['attention'][0] - BOX_HEIGHT / 2 - 0.24
    height = ROWS['mlp'][0] + BOX_HEIGHT / 2 + 0.25 - top
    width = 5 * BOX_STEP + BOX_WIDTH + 0.3
    style = {'facecolor': 'none', 'edgecolor': '#9a9a9a', 'linestyle': '--'}
    axes.add_patch(FancyBboxPatch((left, top), width, height, boxstyle='round,pad=0,rounding_size=0.12', **style))
    axes.text(left + 0.13, top + 0.13, title, fontsize=SMALL, color='#555555', va='center')


def describe_other_blocks(block, n_layer):
    """Return a sentence about the blocks before and after the one that is shown."""
    spans = []
    for begin, end, where in ((0, block - 1, 'before it'), (block + 1, n_layer - 1, 'after it')):
        if begin <= end:
            names = {0: f'h[{begin}]', 1: f'h[{begin}] and h[{end}]'}.get(end - begin, f'h[{begin}] to h[{end}]')
            spans.append(f'{names} {where}')
    verb, whose = ('does', 'its') if n_layer == 2 else ('do', 'their')
    return f'{", and ".join(spans)} {verb} the same with {whose} own weights'


def draw_box(axes, x, y, step, lines, colour):
    """Draw a box with the title of a step and two small lines; x is its left side, y its middle."""
    corner, style = (x, y - BOX_HEIGHT / 2), {'facecolor': colour, 'edgecolor': '#8a8a8a', 'linewidth': 0.9}
    boxstyle = 'round,pad=0,rounding_size=0.07'
    axes.add_patch(FancyBboxPatch(corner, BOX_WIDTH, BOX_HEIGHT, boxstyle=boxstyle, **style))
    title, x, style = BOX_TITLES.get(step, step), x + BOX_WIDTH / 2, {'ha': 'center', 'va': 'center'}
    axes.text(x, y - 0.2, title, fontsize=MEDIUM, weight='bold', linespacing=1, **style)
    axes.text(x, y + 0.1, lines[0], fontsize=MEDIUM, color='#333333', **style)
    axes.text(x, y + 0.3, lines[1], fontsize=SMALL, color='#666666', **style)


def draw_arrow(axes, start, end):
    """Draw a short arrow."""
    axes.annotate('', end, start, arrowprops={'arrowstyle': '-|>', 'color': '#666666', 'linewidth': 1.1})


def draw_return(axes, x, y, sign):
    """Draw the line from the box at (x, y) back to the residual stream, to which its content is added."""
    bottom, colour = y + BOX_HEIGHT / 2, '#c07a52'
    low, middle = bottom + 0.17, x + BOX_WIDTH / 2
    axes.plot([middle, middle, STREAM_X + 0.2], [bottom, low, low], color=colour, linewidth=1.3)
    draw_arrow(axes, (STREAM_X + 0.25, low), (STREAM_X + 0.04, low))
    axes.text(STREAM_X + 0.32, low - 0.02, sign, fontsize=SMALL if len(sign) > 1 else 14, color=colour, va='bottom')
