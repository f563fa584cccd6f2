"""Draws one next-token distribution at several temperatures, and where top-k and top-p cut it.

min-p and the repetition penalty are left out; the page of serve.py has a slider for min-p.
"""

import math
from dataclasses import dataclass
from itertools import compress

import numpy as np
import torch
from matplotlib.ticker import LogLocator, MaxNLocator
from rich.text import Text

from common.errors import UserError
from common.strings import shorten
from lm import internals
from lm.alternatives import entropy
from model import logits_to_logprobs
from pictures.canvas import HEAT, TEXT_GREY, axis_label_inches, make_figure, place_axes, place_text, save_pictures
from pictures.inputs import TextSettings, load_subject, pieces_of_ids, to_numpy
from pictures.style import MARK, format_bar_value, hide_spines
from pictures.terminal import new_table, print_parts

BARS = 12  # how many of the likeliest tokens have a bar
MAX_PANELS = 8
MAX_TEMPERATURE = 1e30  # not far below the largest float32


@dataclass
class TemperatureSettings(TextSettings):
    """What temperature, top-k and top-p do to one distribution over the next token; no min-p, no penalty."""

    temperatures: str = '0.2,0.7,1.0,1.5'  # to compare, separated by commas; 0 is greedy
    top_k: int | None = 10  # mark where this many of the likeliest tokens end; None for no mark
    top_p: float | None = 0.9  # mark where they reach this probability; with both, top-k cuts first, then top-p


# What is computed and printed -----------------------------------------------------------------------------------------


def show_temperature(settings):
    """Print and draw one distribution at several temperatures."""
    temperatures = read_temperatures(settings.temperatures)
    try:
        logits_to_logprobs(torch.zeros(1), 1.0, settings.top_k, settings.top_p)  # checks both before the model loads
    except ValueError as error:
        raise UserError(f'--{error}') from error
    subject = load_subject(settings)
    model, name = subject.model, subject.name
    with torch.no_grad():
        logits = model(subject.idx)[0][0, -1].float().cpu()  # (V,)
    order = logits.argsort(descending=True, stable=True)[: model.n_ids]
    pieces = pieces_of_ids(subject.tokenizer, order[:BARS].tolist())
    distributions = [
        internals.temper_distribution(logits, temperature, settings.top_k, settings.top_p)
        for temperature in temperatures
    ]
    title = f'what comes after “{shorten(subject.text, 50, from_end=True)}”'
    likeliest = [f'{pieces[0]} {format_bar_value(distribution.probs[order[0]])}' for distribution in distributions]
    print_parts(temperature_table(f'{title}: {name}', distributions, settings, likeliest))

    panels = [make_panel(distribution, order, settings) for distribution in distributions]
    curve = effective_choices(logits, temperatures)
    figure = draw_temperature(f'{name}: {title}', pieces, panels, settings.top_k, settings.top_p, curve)
    save_pictures({'temperature': figure}, settings, 'temperature', f'{name}-{subject.text}')


def read_temperatures(text):
    """Return the numbers in --temperatures; raise UserError if they are not temperatures."""
    numbers = []
    for part in text.split(','):
        try:
            number = float(part)
        except ValueError:
            raise UserError(f'--temperatures={text}: {part.strip()!r} is not a number; write 0.5,1,2') from None
        if not 0 <= number < math.inf:
            raise UserError(f'--temperatures={text}: {part.strip()} is neither 0 (greedy) nor a positive number')
        if number > MAX_TEMPERATURE:
            raise UserError(f'--temperatures={text}: {part.strip()} is too high; the highest is {MAX_TEMPERATURE:g}')
        numbers.append(number)
    if len(numbers) > MAX_PANELS:
        raise UserError(f'--temperatures={text}: {len(numbers)} do not fit in one picture; give at most {MAX_PANELS}')
    return numbers


def temperature_table(title, distributions, settings, likeliest):
    """Return a table with a row for each distribution; a cut that is not set has no column.

    likeliest: the likeliest token of each distribution, with its probability.
    """
    uses_k, uses_p = settings.top_k is not None, settings.top_p is not None
    is_shown = [uses_k, uses_p, uses_k and uses_p]
    cut_columns = ['>top-k keeps', '>top-p keeps', '>both, k then p']
    table = new_table(
        f'{title}, sampler probability before any cut',
        '>temperature',
        '>entropy, nats',
        '>bits',
        '>effective choices',
        'likeliest',
        *compress(cut_columns, is_shown),
        *(['>entropy after'] if uses_k or uses_p else []),
    )
    for distribution, token in zip(distributions, likeliest):
        cuts = [distribution.by_top_k, distribution.by_top_p, distribution.by_both]
        table.add_row(
            f'{distribution.temperature:g}',
            f'{distribution.entropy:.3f}',
            f'{distribution.entropy / math.log(2):.3f}',
            f'{math.exp(distribution.entropy):,.1f}',
            Text(token),
            *(f'{cut.tokens:,} ({cut.share:.1%})' for cut in compress(cuts, is_shown)),
            *([f'{distribution.entropy_of_both:.3f}'] if uses_k or uses_p else []),
        )
    return table


def effective_choices(logits, temperatures):
    """Return temperatures from 0 on, including the given ones, and the effective number of choices at each."""
    highest = max(2.0, *temperatures)
    steps = [highest / 60 * (number + 1) for number in range(60)]
    if highest > 10:  # drawn on a logarithmic axis
        steps = [number / 20 for number in range(20)] + [highest ** (number / 60) for number in range(61)]
    points = sorted({0.0, *temperatures, *steps})
    return points, [math.exp(entropy(logits_to_logprobs(logits, point)).item()) for point in points]


# The figure -----------------------------------------------------------------------------------------------------------


@dataclass
class Panel:
    """One distribution at one temperature, and where top-k and top-p cut it."""

    temperature: float
    probs: np.ndarray  # (V,) sampler probabilities before any cut, in descending order
    entropy: float  # of them, in nats
    top_k: int | None  # how many tokens top-k alone keeps; None if it is not set
    top_p: int | None  # how many top-p alone keeps
    kept: int  # how many both keep: first top-k, then top-p of what remains
    notes: list[str]  # what the cuts keep, in words


def make_panel(distribution, order, settings):
    """Return the Panel of a distribution. order: token ids, likeliest first."""
    return Panel(
        temperature=distribution.temperature,
        probs=to_numpy(distribution.probs[order]),
        entropy=distribution.entropy,
        top_k=None if settings.top_k is None else distribution.by_top_k.tokens,
        top_p=None if settings.top_p is None else distribution.by_top_p.tokens,
        kept=distribution.by_both.tokens,
        notes=cut_notes(distribution, settings),
    )


def cut_notes(distribution, settings):
    """Return what top-k, top-p and both keep, a line each."""

    def kept(cut):
        return f'{cut.tokens:,} token{"s" * (cut.tokens > 1)}, {cut.share:.1%}'

    both = settings.top_k is not None and settings.top_p is not None
    alone = ' alone' if both else ''
    notes = []
    if settings.top_k is not None:
        notes.append(f'top-k {settings.top_k:,}{alone}: {kept(distribution.by_top_k)}')
    if settings.top_p is not None:
        notes.append(f'top-p {settings.top_p:g}{alone}: {kept(distribution.by_top_p)}')
    if both:
        notes.append(f'both, k then p: {kept(distribution.by_both)}')
    if notes:
        notes.append(f'entropy after cuts: {distribution.entropy_of_both:.2f} nats')
    return notes


def draw_temperature(title, pieces, panels, top_k, top_p, curve):
    """Return a figure of one distribution at several temperatures, a Panel each.

    pieces: of the tokens that have a bar, likeliest first. curve: (temperatures, effective numbers of choices).
    """
    labels = [*pieces, 'all others']
    left, gap, height = axis_label_inches(labels, 9) + 0.15, 0.22, 0.27 * len(labels)
    panel_width = max(2.1, min(2.9, 8.8 / len(panels)), (9 - left) / len(panels) - gap)
    width = max(left + len(panels) * (panel_width + gap), 9) + 0.1
    legend = legend_lines(top_k, top_p)
    below = 0.18 * max(len(panel.notes) for panel in panels) + 2.08 + height  # the bars and the notes under them
    lower = below + 0.17 * len(legend) + 0.5
    figure = make_figure(width, lower + 2.85, title)
    colours = [HEAT(0.05 + 0.68 * number / max(1, len(panels) - 1)) for number in range(len(panels))]
    lengths = [[*panel.probs[: len(pieces)], max(0.0, 1 - panel.probs[: len(pieces)].sum())] for panel in panels]
    right = max(bar_axis_end(bars, panel, panel_width) for bars, panel in zip(lengths, panels))
    for number, (panel, bars, colour) in enumerate(zip(panels, lengths, colours)):
        x = left + number * (panel_width + gap)
        place_text(figure, x, 0.82, f'temperature {panel.temperature:g}', fontsize=12, weight='bold', color=colour)
        nats, choices = panel.entropy, math.exp(panel.entropy)
        place_text(figure, x, 1.06, f'entropy {nats:.2f} nats = {nats / math.log(2):.2f} bits', fontsize=8.5)
        place_text(figure, x, 1.26, f'effective number of choices {format_choices(choices)}', fontsize=8.5)
        axes = place_axes(figure, x, 1.45, panel_width, height, xlim=(0, right), ylim=(len(labels) - 0.4, -0.6))
        draw_panel(axes, bars, panel, colour)
        axes.set_yticks(range(len(labels)), labels if number == 0 else [''] * len(labels), fontsize=9, parse_math=False)
        for line, note in enumerate(panel.notes):
            place_text(figure, x, 2.08 + height + 0.18 * line, note, fontsize=8, color='#444444')
    for line, note in enumerate(legend):
        place_text(figure, left, below + 0.05 + 0.17 * line, note, fontsize=8, color=TEXT_GREY)

    half = width / 2 - 1.1
    draw_cumulative(place_axes(figure, 0.75, lower, half + 0.4, 2.25), panels, colours, top_k, top_p)
    draw_choices(place_axes(figure, half + 2.5, lower, half - 1.05, 2.25), panels, colours, curve)
    for axes in figure.axes[-2:]:
        axes.grid(color='#e2e2e2', linewidth=0.6)
        axes.tick_params(labelsize=8)
        hide_spines(axes, 'top', 'right')
    return figure


def legend_lines(top_k, top_p):
    """Return what the bars and lines of the panels mean, a line each."""
    lines = ['bars: sampler probability at this temperature, before any cut']
    if top_k is not None and top_p is not None:
        lines.append(
            'solid line: both cut here, first top-k, then top-p of what remains; dashed: one alone; pale: cut off'
        )
    elif top_k is not None or top_p is not None:
        lines.append('pale: cut off')
    return lines


CUT_LABELS = {  # of lines at which some cuts fall together; any other is labelled with their names
    ('top-k',): 'top-k cuts here',
    ('top-p',): 'top-p cuts here',
    ('both',): 'both cut here',
    ('top-k alone', 'top-p alone'): 'each alone',
    ('both', 'top-k alone', 'top-p alone'): 'both, and each alone',
}


def cut_lines(panel, shown):
    """Return the cuts that fall among the first `shown` tokens: {tokens kept: names of the cuts}, both cuts first."""
    cuts = [('top-k', panel.top_k), ('top-p', panel.top_p)]
    cuts = [(name, tokens) for name, tokens in cuts if tokens is not None]
    if len(cuts) == 2:
        cuts = [('both', panel.kept), *((f'{name} alone', tokens) for name, tokens in cuts)]
    lines = {}
    for name, tokens in cuts:
        if tokens <= shown:
            lines.setdefault(tokens, []).append(name)
    return lines


def bar_axis_end(bars, panel, inches):
    """Return where the axis of the bars, `inches` long, must end so that numbers and cut labels fit beside the bars."""
    label = 1.25 + 0.45  # inches of the longest cut label, and of the number before it
    lines = cut_lines(panel, len(bars) - 1)
    return max([max(bars) * 1.25, *(bars[tokens] * inches / max(inches - label, 0.4) for tokens in lines)])


def draw_panel(axes, bars, panel, colour):
    """Draw the bars of one temperature, the last for all other tokens, and where top-k and top-p cut.

    A solid line is where both together cut; a dashed one is where either would cut alone.
    """
    shown, right = len(bars) - 1, axes.get_xlim()[1]
    opacities = [1.0 if place < panel.kept else 0.35 for place in range(shown)]
    axes.barh(range(len(bars)), bars, color=[*((colour, opacity) for opacity in opacities), '#c4c4c4'], height=0.78)
    for place, value in enumerate(bars):
        axes.text(value + right * 0.016, place, format_percent(value), va='center', fontsize=8)
    for tokens, names in cut_lines(panel, shown).items():
        is_effective = tokens == panel.kept
        style = {'linestyle': '-', 'linewidth': 1.5} if is_effective else {'linestyle': '--', 'linewidth': 0.7}
        axes.axhline(tokens - 0.5, color=MARK, **style)
        label, ink = CUT_LABELS.get(tuple(names), ' = '.join(names)), MARK if is_effective else '#555555'
        axes.text(right, tokens - 0.44, label, ha='right', va='top', fontsize=8, color=ink)
    axes.tick_params(axis='y', length=0)
    axes.tick_params(axis='x', labelsize=8)
    axes.set_xlabel('sampler probability', fontsize=8, labelpad=2)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.xaxis.set_major_formatter(lambda value, _: f'{value:.0%}')
    hide_spines(axes, 'top', 'right')


def draw_cumulative(axes, panels, colours, top_k, top_p):
    """Draw how much probability the likeliest tokens have together, and where the cuts fall."""
    V = len(panels[0].probs)
    axes.set_title('the likeliest tokens together', fontsize=9, loc='left')
    for panel, colour in zip(panels, colours):
        sums = panel.probs.cumsum()
        axes.plot(range(1, V + 1), sums, color=colour, linewidth=1.8, label=f'{panel.temperature:g}')
        if panel.top_p is not None:
            dot = {'color': colour, 'markeredgecolor': 'white', 'markersize': 8, 'clip_on': False, 'zorder': 3}
            axes.plot(panel.top_p, sums[panel.top_p - 1], 'o', **dot)
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
    dots = '; dot: where top-p alone cuts' if top_p is not None else ''
    axes.set_xlabel(f'number of likeliest tokens (log axis{dots})', fontsize=8)
    axes.set_ylabel('total sampler probability', fontsize=8)
    axes.legend(title='temperature', title_fontsize=8, fontsize=8, framealpha=0.85, edgecolor='none', loc='lower right')


def draw_choices(axes, panels, colours, curve):
    """Draw how the effective number of choices grows with the temperature."""
    axes.set_title('how open the choice is', fontsize=9, loc='left')
    axes.plot(*curve, color=TEXT_GREY, linewidth=1.5)
    for panel, colour in zip(panels, colours):
        choices = math.exp(panel.entropy)
        axes.plot(panel.temperature, choices, 'o', color=colour, markersize=8, clip_on=False, zorder=3)
    axes.set_yscale('log')
    axes.yaxis.set_major_locator(LogLocator(10))
    axes.yaxis.set_major_formatter(lambda value, _: f'{value:,.0f}')
    axes.set_xlabel('temperature', fontsize=8)
    highest = curve[0][-1]
    if highest > 10:
        axes.set_xscale('symlog', linthresh=1)
        powers = int(math.log10(highest))
        first_ticks = [0, 1] if powers < 10 else [0]
        further_ticks = [10.0**power for power in range(0, powers + 1, math.ceil(powers / 4)) if power]
        axes.set_xticks([*first_ticks, *further_ticks])
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(lambda value, _: f'{value:g}')
        axes.set_xlabel('temperature (log axis from 1)', fontsize=8)
    axes.set_xlim(left=-0.02 * highest if highest <= 10 else -0.05)
    axes.set_ylabel('effective choices, exp(entropy)', fontsize=8)


def format_percent(share):
    """Return a share as a percentage of at most five characters."""
    return f'{share:.1%}' if share >= 0.0005 or share == 0 else '<0.1%'


def format_choices(number):
    """Return a number with three significant digits, or whole with commas from 100 on."""
    return f'{number:,.0f}' if number >= 100 else f'{number:.3g}'
