"""Numbers to matplotlib figures. Nothing here knows where the numbers came from."""

import datetime
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from common import UserError

BAR, CHOSEN, MARK = '#8fb3d9', '#e8743b', '#1b1b1b'  # told apart in grey and by colour-blind people too
MISSING_GLYPHS = r'Glyph .* missing from (current )?font'  # such a character is drawn as a box, which says enough


@dataclass
class Chart:
    """The likeliest tokens of one step, likeliest first; a chosen one that is not among them stands last."""

    pieces: list[str]
    sampler: list[float]  # probability of each under the sampler
    model: list[float]  # and under the model
    chosen: int  # which of them was said
    rank: int  # its rank among all tokens, from 1
    context: str  # the text before it
    sampler_name: str  # temperature and top-k


def draw_chart(axes, chart, title_width=50, title_size=10):
    """Draw one step: a bar of sampler probability for each token, and a thin mark where the model probability is."""
    places = range(len(chart.pieces))
    colours = [CHOSEN if place == chart.chosen else BAR for place in places]
    axes.barh(places, chart.sampler, color=colours, height=0.8)
    axes.plot(chart.model, places, linestyle='none', marker='|', markersize=12, markeredgewidth=1.5, color=MARK)
    labels = [piece if len(piece) <= 24 else piece[:23] + '…' for piece in chart.pieces]
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
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)
    context = re.sub(r'\s*\n\s*', ' ⏎ ', chart.context)
    if len(context) > title_width:
        _, space, words = context[-title_width:].partition(' ')  # from the first whole word on
        context = '…' + (space + words if words else context[-title_width:])
    axes.set_title(f'{context} ▁\n{chart.sampler_name}', loc='left', fontsize=title_size, parse_math=False)


def save_charts(charts, folder, keep_open=False):
    """Write step_01.png, step_02.png, ... and sheet.png, with all steps side by side, into a folder.

    Returns the paths, the sheet last. keep_open: the sheet waits for show_sheets() where there is a screen.
    """
    from matplotlib import pyplot  # here: who draws no charts need not wait for it

    warnings.filterwarnings('ignore', message=MISSING_GLYPHS)
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


def _short(probability):
    return f'{probability:.3f}' if probability >= 0.001 or probability == 0 else f'{probability:.0e}'
