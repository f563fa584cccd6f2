"""Draws the likeliest tokens at each step of a response as bars: a picture for each step, and a sheet of all."""

import math
from dataclasses import dataclass

from common.strings import shorten
from lm.alternatives import TokenRecord
from pictures.style import BAR, CHOSEN, MARK, allow_missing_glyphs, format_bar_value, hide_spines, save_figure

LABEL_LETTER = 0.09  # inches of a letter in a label of the sheet, about


@dataclass
class Chart:
    """What the bar chart of one step shows."""

    record: TokenRecord
    pieces: list[str]  # of the record's alternatives_and_token
    context: str  # the text before this token
    sampler: str  # its settings, as `lm.wording.describe_sampler` names them


def make_charts(records, prompt_ids, tokenizer, sampler):
    """Return a Chart for each TokenRecord; they are the first tokens of a response to a prompt."""
    ids = [record.id for record in records]
    return [
        Chart(
            record=record,
            pieces=tokenizer.pieces([other.id for other in record.alternatives_and_token]),
            context=tokenizer.decode([*prompt_ids, *ids[:number]]),
            sampler=sampler,
        )
        for number, record in enumerate(records)
    ]


def draw_bars(axes, chart, in_sheet=False):
    """Draw one step: a bar of sampler probability for each token, and a thin mark at its model probability.

    The chosen token is orange. If it is not among the likeliest, it comes last, with its rank. in_sheet: draw one of
    many narrow charts, with shorter labels; what the sampler is, the sheet says once.
    """
    record, others = chart.record, chart.record.alternatives_and_token
    sampler = [math.exp(other.sampler_logprob) for other in others]
    model = [math.exp(other.model_logprob) for other in others]
    chosen = [other.id for other in others].index(record.id)
    places = range(len(others))
    axes.barh(places, sampler, color=[CHOSEN if place == chosen else BAR for place in places], height=0.8)
    axes.plot(model, places, linestyle='none', marker='|', markersize=12, markeredgewidth=1.5, color=MARK)
    labels = [shorten(piece, 12 if in_sheet else 24) for piece in chart.pieces]
    if record.rank > chosen + 1:
        labels[chosen] += f'  (rank {record.rank:,})'
        axes.axhline(chosen - 0.5, color='grey', linewidth=0.8, linestyle=':')  # sets it apart from the likeliest
    # A token may contain a dollar sign, which must not start a formula.
    axes.set_yticks(places, labels, parse_math=False)
    axes.get_yticklabels()[chosen].set_color('#b34700')
    axes.invert_yaxis()  # the likeliest on top
    largest = max(*sampler, *model)
    axes.set_xlim(0, largest * 1.22 or 1)
    axes.locator_params(axis='x', nbins=4)
    for place, of_sampler, of_model in zip(places, sampler, model):
        x = max(of_sampler, of_model) + largest * 0.025
        axes.text(x, place, format_bar_value(of_sampler), va='center', fontsize='small')
    hide_spines(axes, 'top', 'right')
    context = shorten(chart.context, 19 if in_sheet else 50, from_end=True)
    if in_sheet:  # it ends at the right, since there is room above the labels on the left
        axes.set_title(f'{context} ▁', loc='right', fontsize=9, parse_math=False)
    else:
        axes.set_title(f'{context} ▁\n{chart.sampler}', loc='left', fontsize=10, parse_math=False)


def save_bar_charts(charts, folder, keep_open=False):
    """Write step_01.png, step_02.png, ... and sheet.png, which has all steps side by side, into a folder.

    Returns the paths, the sheet last. keep_open: if there is a screen, keep the sheet open for show_sheets().
    """
    allow_missing_glyphs()
    return [*save_steps(charts, folder), save_sheet(charts, folder, keep_open)]


def save_steps(charts, folder):
    """Write step_01.png, step_02.png, ... into a folder; return the paths."""
    from matplotlib import pyplot  # imported only now, so that scripts start fast

    paths = []
    figure = pyplot.figure(figsize=(7, 4.2), layout='constrained')
    for number, chart in enumerate(charts, 1):
        figure.clear()
        axes = figure.subplots()
        draw_bars(axes, chart)
        axes.set_xlabel('probability (bar and number: sampler, mark: model)')
        paths.append(folder / f'step_{number:02d}.png')
        save_figure(figure, paths[-1], dpi=110)
    pyplot.close(figure)
    return paths


def save_sheet(charts, folder, keep_open):
    """Write sheet.png, with all steps side by side, into a folder; return its path."""
    from matplotlib import pyplot

    columns = min(5, len(charts))
    rows = math.ceil(len(charts) / columns)
    figure = pyplot.figure(figsize=(5, 2.6 * rows + 0.6), layout='constrained')
    for chart, axes in zip(charts, figure.subplots(rows, columns, squeeze=False).flat):
        draw_bars(axes, chart, in_sheet=True)
    for axes in figure.axes[len(charts) :]:
        axes.set_axis_off()
    longest = max(len(label.get_text()) for axes in figure.axes for label in axes.get_yticklabels())
    figure.set_figwidth(max(columns * max(2.3, 0.8 + LABEL_LETTER * longest), 5))  # so that bars keep their room
    bar = f'bar and number: probability of the sampler ({charts[0].sampler})'
    figure.supxlabel(f'{bar}; mark: of the model; orange: the chosen token', fontsize=10)
    path = folder / 'sheet.png'
    save_figure(figure, path, dpi=150)
    if not (keep_open and has_screen()):
        pyplot.close(figure)
    return path


def show_sheets():
    """Show all open sheets until the person closes them; does nothing without a screen."""
    from matplotlib import pyplot

    if has_screen():
        pyplot.show()


def has_screen():
    """Return whether matplotlib can show windows."""
    import matplotlib
    from matplotlib.backends import BackendFilter, backend_registry

    return matplotlib.get_backend().lower() in backend_registry.list_builtin(BackendFilter.INTERACTIVE)
