"""Bar charts, by what they show."""

import math
import time

import numpy as np
import pytest
import torch
from helpers.pictures import slow
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from lm.alternatives import Alternative, TokenRecord, record_tokens
from lm.tokenizer import CharTokenizer
from pictures.bars import Chart, draw_bars, make_charts, save_bar_charts
from pictures.style import BAR, CHOSEN

PIECES = ['·time', '·day', '⏎', '·$5', '·_x_', '‹e2 80›', '·a', '·the', '·frac{1}{2}', '·princess']
SAMPLER = [0.4, 0.2, 0.1, 0.08, 0.06, 0.05, 0.04, 0.03, 0.02, 0.0]
MODEL = [0.3, 0.22, 0.12, 0.09, 0.07, 0.05, 0.04, 0.03, 0.02, 0.01]
ELEVEN = {'sampler': [*SAMPLER, 0.0004], 'model': [*MODEL, 0.0007]}


def logarithm(prob):
    return math.log(prob) if prob else -math.inf


def a_chart(chosen=2, pieces=PIECES, sampler=SAMPLER, model=MODEL, rank=None, context='Once upon a'):
    """Return a Chart whose tokens have these pieces and probabilities; only the first ten are alternatives."""
    others = [
        Alternative(id, logarithm(of_model), logarithm(of_sampler))
        for id, (of_model, of_sampler) in enumerate(zip(model, sampler, strict=True))
    ]
    token = others[chosen]
    record = TokenRecord(chosen, token.model_logprob, token.sampler_logprob, rank or chosen + 1, 1.0, others[:10])
    return Chart(record, pieces, context, 'temperature 0.8, top_k 200')


def an_unlikely_choice():
    """Return a Chart in which the 1,234th likeliest token was chosen, so it is the eleventh that the chart shows."""
    return a_chart(10, pieces=[*PIECES, '·zebra'], rank=1234, **ELEVEN)


def drawn(chart, **options):
    """Draw a chart as matplotlib would draw it into a file; return its axes."""
    figure = Figure()
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    draw_bars(axes, chart, **options)
    canvas.draw()
    return axes


def labels_of(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


@pytest.mark.parametrize('chart', [a_chart(0), a_chart(9), an_unlikely_choice()], ids=['likeliest', 'tenth', 'far off'])
def test_bars_are_the_sampler_probabilities_the_likeliest_on_top(chart):
    axes = drawn(chart)
    bars = sorted(axes.patches, key=lambda bar: -axes.transData.transform((0, bar.get_y()))[1])  # from the top down
    others = chart.record.alternatives_and_token
    sampler, model = (
        [math.exp(getattr(other, f'{name}_logprob')) for other in others] for name in ('sampler', 'model')
    )
    assert [bar.get_width() for bar in bars] == sampler
    assert sampler == pytest.approx(ELEVEN['sampler'][: len(sampler)])
    assert [bar.get_x() for bar in bars] == [0] * len(bars)
    assert axes.yaxis_inverted()
    left, right = axes.get_xlim()
    assert left == 0 and right > max(sampler + model)


def test_labels_are_the_pieces_each_beside_its_bar():
    axes = drawn(a_chart())
    assert labels_of(axes) == PIECES
    for bar, tick in zip(axes.patches, axes.get_yticks(), strict=True):
        assert bar.get_y() + bar.get_height() / 2 == pytest.approx(tick)


def test_marks_are_at_the_model_probabilities():
    axes = drawn(a_chart())
    (marks,) = [line for line in axes.lines if line.get_marker() == '|']
    assert list(marks.get_xdata()) == pytest.approx(MODEL)
    assert list(marks.get_ydata()) == list(axes.get_yticks())
    assert marks.get_linestyle() == 'None'


def test_numbers_beside_the_bars_are_the_sampler_probabilities():
    axes = drawn(a_chart(sampler=[0.4, 0.2, 0.1, 0.08, 0.06, 0.05, 0.04, 0.03, 0.00002, 0.0]))
    numbers = [text.get_text() for text in axes.texts]
    assert numbers == ['0.400', '0.200', '0.100', '0.080', '0.060', '0.050', '0.040', '0.030', '2e-05', '0.000']


@pytest.mark.parametrize('chosen', [0, *slow(*range(1, 9)), 9])
def test_the_chosen_bar_alone_has_the_chosen_colour(chosen):
    axes = drawn(a_chart(chosen))
    colours = [bar.get_facecolor() for bar in axes.patches]
    assert colours.count(colours[chosen]) == 1
    assert len(set(colours)) == 2
    labels = [label.get_color() for label in axes.get_yticklabels()]
    assert labels.count(labels[chosen]) == 1


def test_the_two_colours_differ_in_grey_too():
    grey = [np.dot(to_rgb(colour), [0.2126, 0.7152, 0.0722]) for colour in (BAR, CHOSEN)]
    assert abs(grey[0] - grey[1]) > 0.05


def test_a_choice_that_is_not_among_the_likeliest_comes_last_with_its_rank():
    axes = drawn(an_unlikely_choice())
    *others, last = labels_of(axes)
    assert others == PIECES
    assert last.startswith('·zebra') and '1,234' in last
    bars = axes.patches
    assert bars[10].get_facecolor() not in [bar.get_facecolor() for bar in bars[:10]]
    # A line separates it from the others.
    (line,) = [line for line in axes.lines if line.get_marker() != '|']
    assert 9 < line.get_ydata()[0] < 10


@pytest.mark.slow
def test_a_choice_among_the_likeliest_has_no_rank_beside_it():
    assert not any('rank' in label for chosen in range(10) for label in labels_of(drawn(a_chart(chosen))))


@pytest.mark.parametrize(
    'text',
    [
        '$x_1$',
        '$\\frac{',
        '\\$',
        *slow('a$b$c', '\\alpha', '_a_', '^', '%', '{', '$$', '&', '#'),
    ],
)
def test_dollars_and_underscores_are_shown_as_they_are(text, tmp_path):
    axes = drawn(a_chart(pieces=[text, *PIECES[1:]], chosen=0, context=f'It cost {text}'))
    axes.figure.savefig(tmp_path / 'chart.png')  # an invalid formula would raise
    assert labels_of(axes)[0] == text
    assert f'It cost {text}' in axes.get_title(loc='left')
    assert not axes.get_yticklabels()[0].get_parse_math()
    assert not axes._left_title.get_parse_math()


@pytest.mark.parametrize(
    'text',
    [
        '\x00',
        '\r\n',
        '🙂',
        *slow('\x1b[0m', '\u2028', '\t', '\ufffd', '中文', 'עברית', '\u0301'),
    ],
)
@pytest.mark.filterwarnings('ignore:.*Glyph:UserWarning')
@pytest.mark.filterwarnings('ignore:.*Matplotlib currently does not support:UserWarning')
def test_any_character_can_be_in_a_title(text, tmp_path):
    axes = drawn(a_chart(context=f'Once {text} a'))
    axes.figure.savefig(tmp_path / 'chart.png')
    assert len(axes.get_title(loc='left').split('\n')) == 2


def test_title_has_the_end_of_the_context_and_the_temperature():
    axes = drawn(a_chart(context='Once upon a'))
    first, second = axes.get_title(loc='left').split('\n')
    assert first.startswith('Once upon a')
    assert second == 'temperature 0.8, top_k 200'

    context = ' '.join(f'word{number}' for number in range(100))
    title = drawn(a_chart(context=context), in_sheet=True).get_title(loc='right')
    shown = title.removesuffix(' ▁').removeprefix('… ')
    assert title.startswith('… word') and context.endswith(f' {shown}') and 10 < len(shown) <= 19


def test_line_breaks_in_the_context_are_shown_in_one_line():
    first, second = drawn(a_chart(context='The end.\n\n\nOnce')).get_title(loc='left').split('\n')
    assert 'The end. ⏎ Once' in first and second.startswith('temperature')


@pytest.mark.parametrize('n', [1, 2, 10])
def test_vocabularies_smaller_than_ten_and_certain_choices_can_be_drawn(n):
    axes = drawn(a_chart(0, pieces=PIECES[:n], sampler=[1.0] + [0.0] * (n - 1), model=[0.0] * n))
    assert [bar.get_width() for bar in axes.patches] == [1.0] + [0.0] * (n - 1)
    axes = drawn(a_chart(0, pieces=PIECES[:n], sampler=[0.0] * n, model=[0.0] * n))
    assert axes.get_xlim()[1] > 0


# From records to charts -----------------------------------------------------------------------------------------------

TOKENIZER = CharTokenizer('abcdefghijklmnopqrstuvwxyz \n\t')
V = TOKENIZER.vocab_size


def charts_of(logits, ids, prompt='ab', **sampler):
    """Return the Charts of the first tokens of a response. logits: (N, V)."""
    records = record_tokens(torch.as_tensor(logits, dtype=torch.float32), torch.tensor(ids), **sampler)
    return make_charts(records, TOKENIZER.encode(prompt), TOKENIZER, 'temperature 0.8')


@pytest.mark.parametrize('rank', [1, 2, 10, 11, 29])
def test_a_chart_has_the_ten_likeliest_and_the_chosen_token(rank):
    logits = np.random.default_rng(2).normal(0, 2, V)
    order = np.argsort(-logits).tolist()
    chosen = order[rank - 1]
    (chart,) = charts_of(logits[None], [chosen], temperature=0.8, top_k=12)
    shown = order[:10] if rank <= 10 else [*order[:10], chosen]
    assert chart.pieces == TOKENIZER.pieces(shown)
    assert [other.id for other in chart.record.alternatives_and_token] == shown
    assert chart.record.rank == rank
    assert chart.sampler == 'temperature 0.8'
    axes = drawn(chart)
    kept = np.where(np.isin(range(V), order[:12]), np.exp(logits / 0.8), 0)
    assert [bar.get_width() for bar in axes.patches] == pytest.approx((kept / kept.sum())[shown].tolist(), rel=1e-4)
    (marks,) = [line for line in axes.lines if line.get_marker() == '|']
    model = np.exp(logits) / np.exp(logits).sum()
    assert list(marks.get_xdata()) == pytest.approx(model[shown].tolist(), rel=1e-4)


def test_padding_ids_are_never_shown():
    """Ids that the tokenizer does not have come with logits of minus infinity."""
    records = record_tokens(torch.tensor([[0.5, 0.1, 2.0] + [-torch.inf] * 61]), torch.tensor([1]))
    (chart,) = make_charts(records, [0], CharTokenizer('abc'), 'temperature 1')
    assert chart.pieces == ['c', 'a', 'b']
    assert labels_of(drawn(chart)) == ['c', 'a', 'b']


def test_contexts_grow_by_the_chosen_tokens_and_only_recorded_steps_are_drawn():
    made = charts_of(np.zeros((3, V)), TOKENIZER.encode('onc'), prompt='ab ')
    assert [chart.context for chart in made] == ['ab ', 'ab o', 'ab on']
    chosen = [[other.id for other in chart.record.alternatives_and_token].index(chart.record.id) for chart in made]
    assert [chart.pieces[place] for chart, place in zip(made, chosen)] == ['o', 'n', 'c']


# Files ----------------------------------------------------------------------------------------------------------------


def how_much(path, colour):
    """How many pixels of a PNG have a colour."""
    pixels = imread(path)[..., :3]
    return (np.abs(pixels - to_rgb(colour)).max(axis=-1) < 0.02).sum()


@pytest.mark.parametrize('n', [1, *slow(3, 7)])
def test_each_step_and_the_sheet_are_pictures_with_bars_in_them(tmp_path, n):
    before = pyplot.get_fignums()
    paths = save_bar_charts([an_unlikely_choice() if step % 3 == 2 else a_chart(step) for step in range(n)], tmp_path)
    assert [path.name for path in paths] == [f'step_{step:02d}.png' for step in range(1, n + 1)] + ['sheet.png']
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    for path in paths:
        assert path.read_bytes().startswith(b'\x89PNG\r\n\x1a\n')
        height, width, _ = imread(path).shape
        assert height >= 300 and width >= 300
        assert how_much(path, BAR) > 500
    assert how_much(paths[0], CHOSEN) > 500
    assert pyplot.get_fignums() == before  # no figure is left open


@pytest.mark.slow
def test_sheet_shows_every_step(tmp_path):
    """A bar's area on the sheet is the same wherever it stands, so eight equal steps are eight times the orange."""
    one, eight = tmp_path / 'one', tmp_path / 'eight'
    one.mkdir()
    eight.mkdir()
    *_, sheet = save_bar_charts([a_chart(0)] * 5, one)
    *_, larger = save_bar_charts([a_chart(0)] * 10, eight)
    assert how_much(larger, CHOSEN) == pytest.approx(2 * how_much(sheet, CHOSEN), rel=0.25)
    assert imread(larger).shape[0] > 1.5 * imread(sheet).shape[0]


def outside(figure):
    """The texts of a figure that reach beyond its edge, where they are cut off."""
    figure.canvas.draw()
    found = []
    for axes in figure.axes:
        texts = [*axes.get_yticklabels(), axes._left_title, *axes.texts, axes.xaxis.label] if axes.axison else []
        for text in texts:
            place = text.get_window_extent()
            if place.x0 < 0 or place.y0 < 0 or place.x1 > figure.bbox.width or place.y1 > figure.bbox.height:
                found.append(text.get_text())
    return found


@pytest.mark.parametrize(
    'changes',
    [
        pytest.param({}, id='short', marks=pytest.mark.slow),
        pytest.param(
            {'context': 'And then the old miller said to the grey cat: ' * 5}, id='long context', marks=pytest.mark.slow
        ),
        pytest.param({'context': 'AND THEN THE MILLER SHOUTED: WHAT A WONDERFUL MOON! ' * 5}, id='wide context'),
        pytest.param({'pieces': [*PIECES, '·disproportionately']}, id='long word', marks=pytest.mark.slow),
        # the longest of GPT-2's tokens in ordinary text
        pytest.param({'pieces': ['-' * 64, *PIECES[1:], '·zebra']}, id='very long token', marks=pytest.mark.slow),
    ],
)
def test_no_text_is_cut_off_at_the_edge_of_a_picture(tmp_path, monkeypatch, changes):
    cut_off = {}
    monkeypatch.setattr(Figure, 'savefig', lambda figure, path, **_: cut_off.update({path.name: outside(figure)}))
    chart = a_chart(10, **({'pieces': [*PIECES, '·zebra'], 'rank': 12_345} | changes), **ELEVEN)
    save_bar_charts([chart] * 5, tmp_path)
    assert {name: texts for name, texts in cut_off.items() if texts} == {}
    assert len(cut_off) == 6


@pytest.mark.slow
def test_step_pictures_do_not_keep_what_an_earlier_step_drew(tmp_path):
    alone, after = tmp_path / 'alone', tmp_path / 'after'
    alone.mkdir()
    after.mkdir()
    save_bar_charts([a_chart(3)], alone)
    save_bar_charts([an_unlikely_choice(), a_chart(3)], after)
    assert np.array_equal(imread(alone / 'step_01.png'), imread(after / 'step_02.png'))


@pytest.mark.slow
def test_twenty_charts_take_less_than_15_seconds(tmp_path):
    start = time.process_time()  # not the wall clock: other programs may be busy too
    paths = save_bar_charts([a_chart(step % 10) for step in range(20)], tmp_path)
    assert time.process_time() - start < 15
    assert len(paths) == 21
