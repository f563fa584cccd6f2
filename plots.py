"""Numbers to matplotlib figures. Nothing here knows where the numbers came from."""

import datetime
import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from common import UserError, written_whole

BAR, CHOSEN, MARK = '#8fb3d9', '#e8743b', '#1b1b1b'  # told apart in grey and by colour-blind people too
ROSE, FELL = '#2b6ca3', '#d1602a'
GIVEN_UP = '#b0b0b0'
MISSING_GLYPHS = r'Glyph .* missing from (current )?font'  # such a character is drawn as a box, which says enough


def allow_missing_glyphs():
    """Let a character that the font lacks be drawn as a box without a warning."""
    warnings.filterwarnings('ignore', message=MISSING_GLYPHS)


def bare(axes, *sides):
    """Take away the lines on some sides of axes."""
    for side in sides:
        axes.spines[side].set_visible(False)


def ink(colour):
    """Return white or black, whichever can be read on a colour, (red, green, blue, ...) from 0 to 1."""
    red, green, blue = colour[:3]
    return 'white' if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else 'black'


@dataclass
class Chart:
    """The likeliest tokens of one step, likeliest first; a chosen one that is not among them stands last."""

    pieces: list[str]
    sampler: list[float]  # probability of each under the sampler
    model: list[float]  # and under the model
    chosen: int  # which of them was said
    rank: int  # its rank among all tokens, from 1
    context: str  # the text before it
    sampler_name: str  # temperature, top-k and top-p


def draw_chart(axes, chart, title_width=50, title_size=10):
    """Draw one step: a bar of sampler probability for each token, and a thin mark where the model probability is."""
    places = range(len(chart.pieces))
    colours = [CHOSEN if place == chart.chosen else BAR for place in places]
    axes.barh(places, chart.sampler, color=colours, height=0.8)
    axes.plot(chart.model, places, linestyle='none', marker='|', markersize=12, markeredgewidth=1.5, color=MARK)
    labels = [shortened(piece, 24) for piece in chart.pieces]
    if chart.rank > chart.chosen + 1:
        labels[chart.chosen] += f'  (rank {chart.rank:,})'
        axes.axhline(chart.chosen - 0.5, color='grey', linewidth=0.8, linestyle=':')  # it is not one of the likeliest
    # A token may hold a dollar sign, which must not start a formula.
    axes.set_yticks(places, labels, parse_math=False)
    axes.get_yticklabels()[chart.chosen].set_color('#b34700')
    axes.invert_yaxis()  # the likeliest on top
    largest = max(*chart.sampler, *chart.model)
    axes.set_xlim(0, largest * 1.22 or 1)
    axes.locator_params(axis='x', nbins=4)
    for place, sampler, model in zip(places, chart.sampler, chart.model):
        axes.text(max(sampler, model) + largest * 0.025, place, _short(sampler), va='center', fontsize='small')
    bare(axes, 'top', 'right')
    context = shortened(chart.context, title_width, from_end=True)
    axes.set_title(f'{context} ▁\n{chart.sampler_name}', loc='left', fontsize=title_size, parse_math=False)


def save_charts(charts, folder, keep_open=False):
    """Write step_01.png, step_02.png, ... and sheet.png, with all steps side by side, into a folder.

    Returns the paths, the sheet last. keep_open: the sheet waits for show_sheets() where there is a screen.
    """
    from matplotlib import pyplot  # here: who draws no charts need not wait for it

    allow_missing_glyphs()
    paths = []
    figure = pyplot.figure(figsize=(7, 4.2), layout='constrained')
    for number, chart in enumerate(charts, 1):
        figure.clear()
        axes = figure.subplots()
        draw_chart(axes, chart)
        axes.set_xlabel('probability (bar and number: sampler, mark: model)')
        paths.append(folder / f'step_{number:02d}.png')
        figure.savefig(paths[-1], dpi=110)
    pyplot.close(figure)

    columns = min(5, len(charts))
    rows = -(-len(charts) // columns)
    figure = pyplot.figure(figsize=(4.6 * columns, 3.2 * rows + 0.4), layout='constrained')
    for chart, axes in zip(charts, figure.subplots(rows, columns, squeeze=False).flat):
        draw_chart(axes, chart, title_width=26, title_size=9)
    for axes in figure.axes[len(charts) :]:
        axes.set_axis_off()
    figure.supxlabel('probability (bar and number: sampler, mark: model); the chosen token in orange')
    paths.append(folder / 'sheet.png')
    figure.savefig(paths[-1], dpi=90)
    if not (keep_open and _has_screen()):
        pyplot.close(figure)
    return paths


def show_sheets():
    """Show the sheets that are open, all at once, until the person closes them; without a screen there are none."""
    from matplotlib import pyplot

    if _has_screen():
        pyplot.show()


def _has_screen():
    import matplotlib
    from matplotlib.backends import BackendFilter, backend_registry

    return matplotlib.get_backend().lower() in backend_registry.list_builtin(BackendFilter.INTERACTIVE)


@dataclass
class Branch:
    """A beam after one step of a search."""

    piece: str  # its last token
    parent: int  # the place, one step before, of the beam that it goes on from
    prob: float  # model probability of the token there
    total: float  # logprob of the whole continuation so far
    best: bool  # the best beam in the end goes through it
    kept: bool  # one of the beams in the end does


def draw_beams(path, levels, title):
    """Write a beam search as a tree that grows to the right: a list of Branch for each step, likeliest on top.

    The number at an edge is the model probability of the token that it leads to; the wider the edge, the likelier. The
    number below a token is the logprob of all so far. What the best beam went through is orange, what another one at
    the end did is blue, and what was given up is grey. Beams that have ended stand below those that go on.
    """
    from matplotlib import pyplot
    from matplotlib.lines import Line2D
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    allow_missing_glyphs()
    most = max(map(len, levels))
    figure = pyplot.figure(figsize=(1.9 * len(levels) + 0.8, max(2.4, 0.62 * most + 1.3)), layout='constrained')
    axes = figure.subplots()
    axes.plot(0, 0, marker='o', color=MARK)  # the prompt
    for step, level in enumerate(levels, 1):
        for y, branch in enumerate(level):
            colour = CHOSEN if branch.best else ROSE if branch.kept else GIVEN_UP
            start, middle = (0, 0) if step == 1 else (step - 1, branch.parent), step - 0.6
            # A curve that leaves and arrives level, from centre to centre: the pieces stand before its ends.
            curve = Curve([start, (middle, start[1]), (middle, y), (step, y)], [Curve.MOVETO] + 3 * [Curve.CURVE4])
            width, height = 0.6 + 3.4 * branch.prob, 1 + branch.kept + branch.best
            axes.add_patch(PathPatch(curve, facecolor='none', edgecolor=colour, linewidth=width, zorder=height))
            piece = shortened(branch.piece, 13)
            box = {'boxstyle': 'round,pad=0.25', 'facecolor': 'white', 'edgecolor': colour, 'linewidth': 1.4}
            text = axes.text(step, y, piece, fontsize=8.5, parse_math=False, bbox=box, zorder=6)
            text.set(ha='center', va='center')
            total = axes.text(step, y + 0.27, f'{branch.total:.2f}', fontsize=6, color='#777777', zorder=6)
            total.set(ha='center', va='center')
            before_it = step - 0.07 - 0.021 * len(piece)
            axes.text(before_it, y - 0.08, _short(branch.prob), fontsize=7, ha='right', va='bottom', zorder=5)
    axes.set_xlim(-0.2, len(levels) + 0.5)
    axes.set_ylim(most - 0.4, -0.7)
    axes.set_xticks(range(1, len(levels) + 1))
    axes.set_yticks([])
    axes.set_xlabel('step (at an edge: model probability of its token; below a token: logprob of all so far)')
    bare(axes, 'top', 'right', 'left')
    axes.set_title(shortened(title, 40 + 18 * len(levels)), loc='left', fontsize=9, parse_math=False)
    colours = {'best beam': CHOSEN, 'other beams at the end': ROSE, 'given up': GIVEN_UP}
    handles = [Line2D([], [], color=colour, linewidth=2.5, label=label) for label, colour in colours.items()]
    figure.legend(handles=handles, loc='outside lower right', ncols=3, frameon=False, fontsize=8)
    save(figure, path)
    pyplot.close(figure)


def draw_before_after(path, labels, before, after, names, unit):
    """Write a chart of what changed: a line for each label from its logprob before to that after, on a log axis.

    before, after: natural logarithms, drawn as powers of ten, since a probability itself may be too small for a float.
    names: of the two models. unit: what the probabilities are of.
    """
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    allow_missing_glyphs()
    before, after = ([logprob / math.log(10) for logprob in logprobs] for logprobs in (before, after))
    order = sorted(range(len(labels)), key=lambda place: after[place] - before[place])  # what rose most is on top
    figure = pyplot.figure(figsize=(11, 1.3 + 0.2 * len(labels)), layout='constrained')
    axes = figure.subplots()
    for y, place in enumerate(order):
        colour = ROSE if after[place] > before[place] else FELL if after[place] < before[place] else '#999999'
        axes.plot([before[place], after[place]], [y, y], color=colour, linewidth=1.8, solid_capstyle='butt')
        axes.plot(before[place], y, marker='o', markersize=4.5, color='white', markeredgecolor='#555555')
        axes.plot(after[place], y, marker='o', markersize=4.5, color=colour)
    axes.set_yticks(range(len(order)), [shortened(labels[place], 75) for place in order], fontsize=7, parse_math=False)
    axes.set_ylim(-0.8, len(order) - 0.2)
    axes.xaxis.set_major_locator(pyplot.MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(lambda exponent, _: f'$10^{{{exponent:g}}}$')
    axes.grid(axis='x', color='#dddddd', linewidth=0.6)
    axes.set_axisbelow(True)
    bare(axes, 'top', 'right', 'left')
    axes.tick_params(axis='y', length=0)
    axes.set_xlabel(f'model probability {unit}, log axis')
    handles = [
        Line2D([], [], linestyle='none', marker='o', color='white', markeredgecolor='#555555', label=names[0]),
        Line2D([], [], marker='o', color=ROSE, label=f'{names[1]}, likelier'),
        Line2D([], [], marker='o', color=FELL, label=f'{names[1]}, less likely'),
    ]
    figure.legend(handles=handles, loc='outside upper right', ncols=3, frameon=False, fontsize=8)
    save(figure, path)
    pyplot.close(figure)


SCALES = {  # where values lie -> their colours, the lowest and the highest as multiples of the largest, open ends
    'around 0': ('RdBu', -1, 1, 'both'),  # red below, blue above
    'below 0': ('YlOrRd_r', -1, 0, 'min'),  # dark red is the lowest
    'above 0': ('Blues', 0, 1, 'max'),  # dark blue is the highest
}


def draw_token_sheet(path, lines, meaning, scale):
    """Write a sheet of texts in which every token stands on the colour of its value.

    lines: (what stands before, pieces, a value for each piece). meaning: what the values are, for the colour bar.
    scale: one of SCALES.
    """
    from matplotlib import colormaps, pyplot
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    allow_missing_glyphs()
    width = 118  # characters in a line
    margin = 44 if any(before for before, _, _ in lines) else 0  # of them for what stands before
    sizes = sorted(abs(value) for _, _, values in lines for value in values)
    largest = max(sizes[int(0.97 * (len(sizes) - 1))] if sizes else 0, 0.1)  # a single extreme would pale all others
    colour_map, low, high, open_ends = SCALES[scale]
    colours = ScalarMappable(Normalize(low * largest, high * largest), colormaps[colour_map])

    placed, y = [], 0  # (x, y, text, value), in characters and lines
    for before, pieces, values in lines:
        placed.append((0, y, shortened(before, margin - 2, from_end=True), None))
        x = margin
        for piece, value in zip(pieces, values, strict=True):
            piece = piece[: width - margin]
            if x + len(piece) > width:
                x, y = margin, y + 1
            placed.append((x, y, piece, value))
            x += len(piece)
        y += 1.4
    size = 8  # points; a character of DejaVu Sans Mono is 0.602 of that wide
    top = 5  # lines for the colour bar
    inches = (width * size * 0.602 / 72, (y + top) * size * 1.5 / 72)
    figure = pyplot.figure(figsize=inches)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(y, -top))
    axes.set_axis_off()
    for x, y, text, value in placed:
        colour, background = '#666666', None
        if value is not None:
            background = colours.to_rgba(value)
            colour = ink(background)
            axes.add_patch(
                Rectangle((x, y - 0.5), len(text), 1, facecolor=background, edgecolor='white', linewidth=0.6)
            )
        axes.text(x, y, text, color=colour, fontsize=size, family='monospace', va='center', parse_math=False)
    bar = figure.add_axes((0.5, 1 - 1.3 / (inches[1] * 72 / size), 0.45, 0.6 / (inches[1] * 72 / size)))
    figure.colorbar(colours, cax=bar, orientation='horizontal', extend=open_ends)
    bar.tick_params(labelsize=7)
    bar.set_xlabel(meaning, fontsize=8)
    save(figure, path)
    pyplot.close(figure)


def draw_reliability(path, tables):
    """Write a reliability diagram: how often the likeliest token came, against how sure the model was.

    tables: name -> [(mean confidence, share that came, tokens) of each bin].
    """
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(6, 5.4), layout='constrained')
    curve, counts = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    curve.plot([0, 1], [0, 1], color='#999999', linestyle='--', linewidth=1, label='perfectly calibrated')
    for (name, table), colour, marker in zip(tables.items(), (ROSE, FELL), 'os'):
        confidence, share, count = zip(*table)
        curve.plot(confidence, share, marker=marker, markersize=5, color=colour, label=name)
        counts.plot(confidence, count, marker=marker, markersize=4, color=colour)
    curve.set_ylabel('share of them that came')
    curve.legend(frameon=False, fontsize=9)
    curve.set_ylim(0, 1)
    counts.set_yscale('log')
    counts.set_ylabel('tokens')
    counts.set_xlabel('model probability of the likeliest token, mean of each bin')
    counts.set_xlim(0, 1)
    for axes in (curve, counts):
        axes.grid(color='#dddddd', linewidth=0.6)
        bare(axes, 'top', 'right')
    save(figure, path)
    pyplot.close(figure)


def save(figure, path):
    """Write a figure as a PNG, whole or not at all."""
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=100, format='png')


def draw_losses(path, curves):
    """Write the losses of a training run. curves: name -> [(iteration, loss in nats per token)]."""
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(7, 4.2), layout='constrained')
    axes = figure.subplots()
    styles = ({'color': BAR, 'linewidth': 0.8}, {'color': ROSE, 'marker': 'o'}, {'color': FELL, 'marker': 's'})
    for (name, points), style in zip(curves.items(), styles):
        if points:
            axes.plot(*zip(*points), label=name, markersize=4, **style)
    axes.set_xlabel('iteration')
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel('loss, nats per token')
    axes.grid(color='#dddddd', linewidth=0.6)
    if any(curves.values()):
        axes.legend(frameon=False)
    bare(axes, 'top', 'right')
    save(figure, path)
    pyplot.close(figure)


def draw_growth(path, decode, score):
    """Write how time and memory grow: decode's with the context, score's with the number of pairs (bench.py's rows)."""
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(11, 4), layout='constrained')
    panels = (
        (decode, 'context', 'milliseconds', 'tokens in the context', 'milliseconds a token'),
        (decode, 'context', 'cache_mib', 'tokens in the context', 'cache, MiB (by its shape)'),
        (score, 'pairs', 'seconds', 'pairs scored', 'seconds'),
        (score, 'pairs', 'peak_memory_mib', 'pairs scored', 'peak memory, MiB'),
    )
    for axes, (rows, x, y, x_label, y_label) in zip(figure.subplots(1, 4), panels, strict=True):
        axes.plot([row[x] for row in rows], [row[y] for row in rows], color=BAR, marker='o', markersize=3)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.set_ylim(bottom=0)
        axes.grid(color='#dddddd', linewidth=0.6)
        bare(axes, 'top', 'right')
    save(figure, path)
    pyplot.close(figure)


def shortened(text, length, from_end=False):
    """Return a text on one line, cut to a length where it is longer: its beginning, or its end."""
    text = re.sub(r'\s*\n\s*', ' ⏎ ', text)
    if len(text) <= length:
        return text
    if not from_end:
        return text[: length - 1] + '…'
    _, space, words = text[1 - length :].partition(' ')  # from the first whole word on
    return '…' + (space + words if words else text[1 - length :])


def new_folder(parent, name):
    """Make and return a folder in `parent` that no run has used: its name, then the time, then a number if need be."""
    words = re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')[:50].strip('-')
    stem = f'{words}-{datetime.datetime.now():%Y%m%d-%H%M%S}'
    number = 1
    while True:
        folder = Path(parent) / (stem if number == 1 else f'{stem}-{number}')
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if not Path(parent).is_dir():
                raise UserError(f'{parent} is a file, and pictures need a folder') from None
            number += 1
        except OSError as error:
            raise UserError(f'cannot make the folder {folder}: {error.strerror}') from error


def in_three_digits(logprob):
    """Write the probability of a logprob, also where it is too small for a float."""
    if logprob > -690:  # a float ends near e^-708
        return f'{math.exp(logprob):.3g}'
    exponent = math.floor(logprob / math.log(10))
    return f'{10 ** (logprob / math.log(10) - exponent):.2f}e{exponent}'


def _short(probability):
    return f'{probability:.3f}' if probability >= 0.001 or probability == 0 else f'{probability:.0e}'
