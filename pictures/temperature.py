"""TODO."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.ticker import LogLocator, MaxNLocator
from rich.text import Text

from common.errors import UserError
from common.strings import shorten
from lm import internals
from lm.alternatives import entropy
from model import logits_to_logprobs
from pictures.canvas import GREY, HEAT, label_room, new_sheet, place_axes, write_text
from pictures.reading import PromptSettings, read_text, save_pictures, to_numpy, visible_pieces
from pictures.style import MARK, hide_spines
from pictures.terminal import new_table, print_parts

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


def draw_temperature(title, pieces, panels, top_k, top_p, curve):
    """Draw one distribution at several temperatures.

    pieces: of the tokens shown, likeliest first. panels: a Panel for each temperature. curve: (temperatures, effective
    numbers of choices).
    """
    names = [*pieces, 'all others']
    left, gap, high = label_room(names, 9) + 0.15, 0.22, 0.27 * len(names)
    panel = max(2.1, min(2.9, 12 / len(panels)), (9 - left) / len(panels) - gap)
    width = max(left + len(panels) * (panel + gap), 9) + 0.1
    figure = new_sheet(width, high + 6.45, title)
    colours = [HEAT(0.05 + 0.68 * number / max(1, len(panels) - 1)) for number in range(len(panels))]
    heights = [[*of.probs[: len(pieces)], max(0.0, 1 - of.probs[: len(pieces)].sum())] for of in panels]
    right = max(room_to_name_cuts(bars, of, panel) for bars, of in zip(heights, panels))
    for number, (of, bars, colour) in enumerate(zip(panels, heights, colours)):
        x = left + number * (panel + gap)
        write_text(figure, x, 0.82, f'temperature {of.temperature:g}', fontsize=12, weight='bold', color=colour)
        nats, choices = of.entropy, math.exp(of.entropy)
        write_text(figure, x, 1.06, f'entropy {nats:.2f} nats = {nats / math.log(2):.2f} bits', fontsize=8.5)
        write_text(figure, x, 1.26, f'effective number of choices {number_text(choices)}', fontsize=8.5)
        axes = place_axes(figure, x, 1.45, panel, high, xlim=(0, right), ylim=(len(names) - 0.4, -0.6))
        draw_panel_bars(axes, bars, of, colour)
        axes.set_yticks(range(len(names)), names if number == 0 else [''] * len(names), fontsize=9, parse_math=False)
        for line, text in enumerate(of.cuts):
            write_text(figure, x, 2.08 + high + 0.18 * line, text, fontsize=8, color='#444444')
    notes = ['bars: sampler probability at this temperature, before any cut']
    if top_k is not None and top_p is not None:
        notes.append(
            'solid line, pale bars: both cut here, top-k first, then top-p of what it leaves; dashed: one cut alone'
        )
    elif top_k is not None or top_p is not None:
        notes.append('pale: what the cut takes away')
    for line, note in enumerate(notes):
        write_text(figure, left, 2.85 + high + 0.17 * line, note, fontsize=8, color=GREY)

    half = width / 2 - 1.1
    draw_sums(place_axes(figure, 0.75, high + 3.6, half + 0.4, 2.25), panels, colours, top_k, top_p)
    draw_openness(place_axes(figure, half + 2.5, high + 3.6, half - 1.05, 2.25), panels, colours, curve)
    for axes in figure.axes[-2:]:
        axes.grid(color='#e2e2e2', linewidth=0.6)
        axes.tick_params(labelsize=8)
        hide_spines(axes, 'top', 'right')
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


def draw_panel_bars(axes, bars, of, colour):
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
    hide_spines(axes, 'top', 'right')


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


ALTERNATIVES = 12  # tokens whose bars the temperature picture shows
HOTTEST = 1e30  # temperatures above it, hardly less than the largest float32, are refused


@dataclass
class TemperatureSettings(PromptSettings):
    """What temperature, top-k and top-p do to one distribution over the next token."""

    temperatures: str = '0.2,0.7,1.0,1.5'  # to compare, with commas between; 0 is greedy
    top_k: int | None = 10  # show where this many of the likeliest tokens end; None for no such cut
    top_p: float | None = (
        0.9  # show where the likeliest reach this probability; with both, top-k cuts first, then top-p
    )


# Temperature ----------------------------------------------------------------------------------------------------------


def show_temperature(settings):
    """Draw one distribution at several temperatures."""
    temperatures = read_temperatures(settings.temperatures)
    try:
        logits_to_logprobs(torch.zeros(1), 1.0, settings.top_k, settings.top_p)  # before the model is waited for
    except ValueError as error:
        raise UserError(f'--{error}') from error
    scene = read_text(settings)
    model, tokenizer = scene.model, scene.tokenizer
    with torch.no_grad():
        logits = model(scene.idx)[0][0, -1].float().cpu()  # (V,)
    order = logits.argsort(descending=True, stable=True)[: model.n_ids]
    pieces = visible_pieces(tokenizer, order[:ALTERNATIVES].tolist())
    all_of = [internals.temper_distribution(logits, one, settings.top_k, settings.top_p) for one in temperatures]

    about = shorten(scene.text, 50, from_end=True)
    rows = new_table(
        f'what comes after “{about}”: {scene.name}, sampler probability before any cut',
        '>temperature',
        '>entropy, nats',
        '>bits',
        '>effective choices',
        'likeliest',
        '>top-k keeps',
        '>top-p keeps',
        '>both, k then p',
        '>entropy then',
    )
    for of in all_of:
        rows.add_row(*temperature_row(of, settings, f'{pieces[0]} {of.probs[order[0]]:.3f}'))
    print_parts(rows)
    from pictures.temperature import Panel, draw_temperature

    panels = [
        Panel(
            of.temperature,
            to_numpy(of.probs[order]),
            of.entropy,
            None if settings.top_k is None else of.by_top_k.tokens,
            None if settings.top_p is None else of.by_top_p.tokens,
            of.by_both.tokens,
            cut_texts(settings, of),
        )
        for of in all_of
    ]
    curve = openness(logits, temperatures)
    title = f'{scene.name}: what comes after “{about}”'
    figure = draw_temperature(title, pieces, panels, settings.top_k, settings.top_p, curve)
    save_pictures({'temperature': figure}, settings, 'temperature', f'{scene.name}-{scene.text}')


def temperature_row(of, settings, likeliest):
    """Return the cells of one row of the table: what an inside.Tempered says, — for a cut that was not asked for."""
    asked = [settings.top_k is not None, settings.top_p is not None, True]
    cuts = [of.by_top_k, of.by_top_p, of.by_both]
    return [
        f'{of.temperature:g}',
        f'{of.entropy:.3f}',
        f'{of.entropy / math.log(2):.3f}',
        f'{math.exp(of.entropy):,.1f}',
        Text(likeliest),
        *(f'{cut.tokens:,} ({cut.share:.1%})' if is_asked else '—' for is_asked, cut in zip(asked, cuts)),
        f'{of.entropy_of_both:.3f}',
    ]


def openness(logits, temperatures):
    """Return temperatures from 0 on, those asked for among them, and the effective number of choices at each."""
    highest = max(2.0, *temperatures)
    steps = [highest / 60 * (number + 1) for number in range(60)]
    if highest > 10:  # drawn on a logarithmic axis
        steps = [number / 20 for number in range(20)] + [highest ** (number / 60) for number in range(61)]
    points = sorted({0.0, *temperatures, *steps})
    return points, [math.exp(entropy(logits_to_logprobs(logits, point)).item()) for point in points]


def read_temperatures(text):
    """Return the numbers of --temperatures."""
    numbers = []
    for part in text.split(','):
        try:
            number = float(part)
        except ValueError:
            raise UserError(f'--temperatures={text}: {part.strip()!r} is no number; write 0.5,1,2') from None
        if not 0 <= number < math.inf:
            raise UserError(f'--temperatures={text}: {part.strip()} is neither 0 (greedy) nor a positive number')
        if number > HOTTEST:
            raise UserError(f'--temperatures={text}: {part.strip()} is too hot; the highest is {HOTTEST:g}')
        numbers.append(number)
    if len(numbers) > 8:
        raise UserError(f'--temperatures={text}: {len(numbers)} are too many for one picture; give at most 8')
    return numbers


def cut_texts(settings, of):
    """Say what top-k, top-p and both would leave, a line each."""
    both = settings.top_k is not None and settings.top_p is not None
    alone = ' alone' if both else ''
    texts = []
    if settings.top_k is not None:
        texts.append(f'top-k {settings.top_k:,}{alone}: {kept_text(of.by_top_k)}')
    if settings.top_p is not None:
        texts.append(f'top-p {settings.top_p:g}{alone}: {kept_text(of.by_top_p)}')
    if both:
        texts.append(f'both, k then p: {kept_text(of.by_both)}')
    if texts:
        texts.append(f'entropy of what is left: {of.entropy_of_both:.2f} nats')
    return texts


def kept_text(cut):
    """Write what a cut leaves: '12 tokens, 90.3%'."""
    return f'{cut.tokens:,} token{"s" * (cut.tokens > 1)}, {cut.share:.1%}'
