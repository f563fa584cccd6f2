"""TODO."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.patches import FancyBboxPatch
from rich.table import Table
from rich.text import Text

from lm import internals
from pictures.canvas import LONGEST, draw_colour_scale, label_axis, label_room, new_sheet, place_axes, write_text
from pictures.reading import PromptSettings, check_index, read_text, save_pictures, to_numpy, visible_pieces
from pictures.style import BAR, text_colour
from pictures.terminal import print_parts

# Trace ----------------------------------------------------------------------------------------------------------------

TITLES = {
    'q = qkv[0]': 'q, k, v',
    'y': 'y = weights · v',
    'c_proj(gelu(...))': 'c_proj',
    'wpe(positions)': '+ wpe(positions)',
}
READS, ADDS = '#e8eef5', '#f6d9c8'  # boxes that read the stream, and boxes that add to it


def draw_trace(title, boxes, block, layers, stops, norms, pieces, answer):
    """Draw how data flows through the model, with shapes, and how long the stream's vectors grow on the way.

    boxes: {name: (shape, line of model.py)} of what is computed, by inside.trace's names. block: the one that is shown,
    layers: how many there are.
    stops: names of the places along the stream, norms: (stops, T) lengths of its vectors there. pieces: of the tokens.
    answer: lines of text.
    """
    T, wide = len(pieces), 12.4
    cell = min(max(0.2, min(0.8, (wide - 2.4) / T)), LONGEST / T)
    heat_wide, heat_high = cell * T, min(0.27 * len(stops), LONGEST / 2)
    names = label_room(stops) + 0.3
    flow_high = 6.1
    width = max(wide, names + heat_wide + 1.1)
    figure = new_sheet(width, flow_high + 1.15 + heat_high + label_room(pieces) + 0.35, title)
    flow = place_axes(figure, 0, 0.5, wide, flow_high, xlim=(0, wide), ylim=(flow_high, 0))
    flow.set_axis_off()
    draw_flow(flow, boxes, block, layers, answer)

    top = flow_high + 1.1
    axes = place_axes(figure, names, top, heat_wide, heat_high)
    colours = ScalarMappable(LogNorm(max(norms.min(), 1e-6), max(norms.max(), 2e-6)), colormaps['viridis'])
    axes.imshow(norms, cmap=colours.cmap, norm=colours.norm, aspect='auto', interpolation='nearest')
    every = math.ceil(len(stops) * 0.14 / heat_high)
    axes.set_yticks(range(0, len(stops), every), stops[::every], fontsize=8)
    which = label_axis(axes, 'x', pieces, heat_wide)
    note = 'how long the vector of each token is on its way down the stream (L2 norm)' + (which and f'; {which}')
    write_text(figure, names, top - 0.12, note, fontsize=9)
    if cell >= 0.34:
        for (row, column), value in np.ndenumerate(norms):
            text = f'{value:.1f}' if value < 100 else f'{value:,.0f}'
            axes.text(
                column, row, text, ha='center', va='center', fontsize=7, color=text_colour(colours.to_rgba(value))
            )
    lowest, highest = colours.norm.vmin, colours.norm.vmax
    ticks = [digit * 10.0**power for power in range(-6, 7) for digit in (1, 2, 5)]
    ticks = [tick for tick in ticks if lowest <= tick <= highest]
    bar = draw_colour_scale(
        figure, names + heat_wide + 0.15, top, min(heat_high, 3), colours, 'L2 norm (log colours)', ticks=ticks
    )
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


MODEL_PROBABILITY = 'model probability (softmax of the raw logits)'


@dataclass
class TraceSettings(PromptSettings):
    """Every step of one forward pass, with the lines of model.py, shapes and a few values."""

    layer: int = 0  # the block that is shown in full


# Trace ----------------------------------------------------------------------------------------------------------------


def show_trace(settings):
    """Print every step of one forward pass, and draw how the data flows."""
    scene = read_text(settings)
    config = scene.model.config
    check_index('layer', settings.layer, config.n_layer, scene.name)
    steps = internals.trace_forward(scene.model, scene.idx)
    print_parts(*trace_lines(scene, steps, settings.layer))

    *_, logprobs = steps
    best = logprobs.value[0, -1].topk(min(5, scene.model.n_ids))
    pieces = visible_pieces(scene.tokenizer, best.indices.tolist())
    probs = best.values.exp().tolist()
    answer = [f'{prob:.3f}  {piece}' for piece, prob in zip(pieces, probs)]
    print_parts(Text(f'\nnext: {", ".join(answer)}   {MODEL_PROBABILITY}'))
    from pictures.trace import draw_trace

    in_boxes = [one for one in steps if one.layer in (None, settings.layer)]
    boxes = {one.name: (shape_text(one.value), f'line {one.line}') for one in in_boxes}
    stream = [one for one in steps if one.name == 'x']
    stops = ['wte + wpe', *(f'h[{layer}] + {what}' for layer in range(config.n_layer) for what in ('attn', 'mlp'))]
    norms = torch.stack([one.value[0].float().norm(dim=-1) for one in stream])  # (2 L + 1, T)
    title = f'{scene.name}: one forward pass over {len(scene.pieces)} token{"s" * (len(scene.pieces) > 1)}'
    figure = draw_trace(
        title,
        boxes,
        settings.layer,
        config.n_layer,
        stops,
        to_numpy(norms),
        scene.pieces,
        ['next, model probability:', *answer],
    )
    save_pictures({'trace': figure}, settings, 'trace', f'{scene.name}-{scene.text}')


def trace_lines(scene, steps, unfolded):
    """Return what to print of a trace: sizes and tokens, then every line of model.py with what it computes."""
    config, pieces = scene.model.config, scene.pieces
    sizes = {
        'B': 1,
        'T': len(pieces),
        'C': config.n_embd,
        'nh': config.n_head,
        'hs': config.n_embd // config.n_head,
        'V': config.vocab_size,
    }
    head = Text(f'{scene.name} reads ')
    head.append(' │ '.join(pieces), style='bold')
    head.append(f'\n{", ".join(f"{letter} = {size:,}" for letter, size in sizes.items())}; ')
    head.append(f'values: the last six ids, and the first four numbers of the last token, {pieces[-1]}, in head 0')
    parts, layer, function, line = [head], None, None, None
    for step in steps:
        if step.layer not in (None, unfolded) and step.name != 'x':
            continue
        if step.layer != layer and step.layer is not None:
            more = '' if step.layer == unfolded else f', in short: --layer={step.layer} unfolds it'
            parts.append(Text(f'\ntransformer.h[{step.layer}]{more}', style='bold'))
            function = None
        if step.function != function:
            parts.append(Text(f'model.py, {step.function}', style='cyan'))
        if (step.function, step.line) != (function, line):
            parts.append(Text(f'{step.line:5}  {step.code}', style='green'))
        layer, function, line = step.layer, step.function, step.line
        shape = f'({step.letters}) = {shape_text(step.value)}'
        row = Table.grid(padding=(0, 1))
        for width in (8, 22, 35, 36, 34):
            row.add_column(width=width)
        row.add_row('', Text(step.name, style='bold'), Text(step.meaning), shape, few(step.value))
        parts.append(row)
    return parts


def shape_text(value):
    """Write the shape of a tensor."""
    return str(tuple(value.shape)).replace(',)', ')')


def few(value):
    """Write the last few ids, or the first few numbers of the last token."""
    if not value.is_floating_point():
        return '… ' * (value.size(-1) > 6) + ' '.join(map(str, value.flatten()[-6:].tolist()))
    row = value.reshape(-1, *value.shape[-2:])[0, -1]
    return ' '.join(f'{number:7.3f}' for number in row[:4].tolist()) + ' …' * (len(row) > 4)
