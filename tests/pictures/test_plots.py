"""Charts, by what they show; and the numbers that go into them, against the formulas in numpy."""

import concurrent.futures
import datetime
import time
import types

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from common import files
from common.errors import UserError
from common.files import create_run_folder
from common.strings import shorten
from pictures.bars import Chart, draw_bars, save_bar_charts
from pictures.beams import Branch, draw_beams
from pictures.before_after import draw_before_after
from pictures.reliability import draw_reliability
from pictures.style import BAR, CHOSEN, FELL, GIVEN_UP, ROSE
from pictures.token_sheet import draw_token_sheet

matplotlib.use('Agg')

PIECES = ['·time', '·day', '⏎', '·$5', '·_x_', '‹e2 80›', '·a', '·the', '·frac{1}{2}', '·princess']
SAMPLER = [0.4, 0.2, 0.1, 0.08, 0.06, 0.05, 0.04, 0.03, 0.02, 0.0]
MODEL = [0.3, 0.22, 0.12, 0.09, 0.07, 0.05, 0.04, 0.03, 0.02, 0.01]

ELEVEN = {'sampler': [*SAMPLER, 0.0004], 'model': [*MODEL, 0.0007]}


def a_chart(chosen=2, **changes):
    values = {
        'pieces': PIECES,
        'sampler': SAMPLER,
        'model': MODEL,
        'chosen': chosen,
        'rank': chosen + 1,
        'context': 'Once upon a',
        'sampler_name': 'temperature 0.8, top_k 200',
    }
    return Chart(**(values | changes))


def an_unlikely_choice():
    """Chosen was the 1,234th likeliest, so it is the eleventh that the chart shows."""
    return a_chart(10, pieces=[*PIECES, '·zebra'], rank=1234, **ELEVEN)


def drawn(chart, **options):
    """Draw a chart as matplotlib would into a file; return its axes."""
    figure = Figure()
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    draw_bars(axes, chart, **options)
    canvas.draw()
    return axes


def labels_of(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


# One chart ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('chart', [a_chart(0), a_chart(9), an_unlikely_choice()], ids=['likeliest', 'tenth', 'far off'])
def test_bars_are_the_sampler_probabilities_the_likeliest_on_top(chart):
    axes = drawn(chart)
    bars = sorted(axes.patches, key=lambda bar: -axes.transData.transform((0, bar.get_y()))[1])  # from the top down
    assert [bar.get_width() for bar in bars] == chart.sampler
    assert [bar.get_x() for bar in bars] == [0] * len(bars)
    assert axes.yaxis_inverted()
    left, right = axes.get_xlim()
    assert left == 0 and right > max(chart.sampler + chart.model)


def test_labels_are_the_pieces_each_beside_its_bar():
    axes = drawn(a_chart())
    assert labels_of(axes) == PIECES
    for bar, tick in zip(axes.patches, axes.get_yticks(), strict=True):
        assert bar.get_y() + bar.get_height() / 2 == pytest.approx(tick)


def test_marks_stand_at_the_model_probabilities():
    axes = drawn(a_chart())
    (marks,) = [line for line in axes.lines if line.get_marker() == '|']
    assert list(marks.get_xdata()) == MODEL
    assert list(marks.get_ydata()) == list(axes.get_yticks())
    assert marks.get_linestyle() == 'None'


def test_numbers_beside_the_bars_are_the_sampler_probabilities():
    axes = drawn(a_chart(sampler=[0.4, 0.2, 0.1, 0.08, 0.06, 0.05, 0.04, 0.03, 0.00002, 0.0]))
    numbers = [text.get_text() for text in axes.texts]
    assert numbers == ['0.400', '0.200', '0.100', '0.080', '0.060', '0.050', '0.040', '0.030', '2e-05', '0.000']


@pytest.mark.parametrize('chosen', range(10))
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


def test_a_choice_that_is_not_among_the_likeliest_stands_last_with_its_rank():
    axes = drawn(an_unlikely_choice())
    *others, last = labels_of(axes)
    assert others == PIECES
    assert last.startswith('·zebra') and '1,234' in last
    bars = axes.patches
    assert bars[10].get_facecolor() not in [bar.get_facecolor() for bar in bars[:10]]
    # A line sets it off from the others.
    (line,) = [line for line in axes.lines if line.get_marker() != '|']
    assert 9 < line.get_ydata()[0] < 10


def test_a_choice_among_the_likeliest_has_no_rank_beside_it():
    assert not any('rank' in label for chosen in range(10) for label in labels_of(drawn(a_chart(chosen))))


@pytest.mark.parametrize('text', ['$x_1$', '$\\frac{', 'a$b$c', '\\alpha', '_a_', '^', '%', '{', '\\$', '$$', '&', '#'])
def test_dollars_and_underscores_are_shown_as_they_are(text, tmp_path):
    axes = drawn(a_chart(pieces=[text, *PIECES[1:]], chosen=0, context=f'It cost {text}'))
    axes.figure.savefig(tmp_path / 'chart.png')  # a formula that is none would raise
    assert labels_of(axes)[0] == text
    assert f'It cost {text}' in axes.get_title(loc='left')
    assert not axes.get_yticklabels()[0].get_parse_math()
    assert not axes._left_title.get_parse_math()


@pytest.mark.parametrize('text', ['\x00', '\x1b[0m', '\u2028', '\r\n', '\t', '\ufffd', '🙂', '中文', 'עברית', '\u0301'])
@pytest.mark.filterwarnings('ignore:.*Glyph:UserWarning')
@pytest.mark.filterwarnings('ignore:.*Matplotlib currently does not support:UserWarning')
def test_any_character_can_stand_in_a_title(text, tmp_path):
    axes = drawn(a_chart(context=f'Once {text} a'))
    axes.figure.savefig(tmp_path / 'chart.png')
    assert len(axes.get_title(loc='left').split('\n')) == 2


def test_title_has_the_end_of_the_context_and_the_temperature():
    axes = drawn(a_chart(context='Once upon a'))
    first, second = axes.get_title(loc='left').split('\n')
    assert first.startswith('Once upon a')
    assert second == 'temperature 0.8, top_k 200'

    context = ' '.join(f'word{number}' for number in range(100))
    title = drawn(a_chart(context=context), title_width=30).get_title(loc='left')
    shown = title.split(' ▁')[0].removeprefix('… ')
    assert title.startswith('… word') and context.endswith(f' {shown}') and 20 < len(shown) <= 30


def test_line_breaks_in_the_context_are_shown_in_one_line():
    first, second = drawn(a_chart(context='The end.\n\n\nOnce')).get_title(loc='left').split('\n')
    assert 'The end. ⏎ Once' in first and second.startswith('temperature')


@pytest.mark.parametrize('n', [1, 2, 10])
def test_vocabularies_smaller_than_ten_and_certain_choices_can_be_drawn(n):
    axes = drawn(a_chart(0, pieces=PIECES[:n], sampler=[1.0] + [0.0] * (n - 1), model=[0.0] * n))
    assert [bar.get_width() for bar in axes.patches] == [1.0] + [0.0] * (n - 1)
    axes = drawn(a_chart(0, pieces=PIECES[:n], sampler=[0.0] * n, model=[0.0] * n))
    assert axes.get_xlim()[1] > 0


# Files ----------------------------------------------------------------------------------------------------------------


def how_much(path, colour):
    """How many pixels of a PNG have a colour."""
    pixels = imread(path)[..., :3]
    return (np.abs(pixels - to_rgb(colour)).max(axis=-1) < 0.02).sum()


@pytest.mark.parametrize('n', [1, 3, 7])
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
    assert pyplot.get_fignums() == before  # none is left open


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
        {},
        {'context': 'And then the old miller said to the grey cat: ' * 5},
        {'context': 'AND THEN THE MILLER SHOUTED: WHAT A WONDERFUL MOON! ' * 5},
        {'pieces': [*PIECES, '·disproportionately']},
        {'pieces': ['-' * 64, *PIECES[1:], '·zebra']},  # the longest of GPT-2's tokens in ordinary text
    ],
    ids=['short', 'long context', 'wide context', 'long word', 'very long token'],
)
def test_no_text_is_cut_off_at_the_edge_of_a_picture(tmp_path, monkeypatch, changes):
    cut_off = {}
    monkeypatch.setattr(Figure, 'savefig', lambda figure, path, **_: cut_off.update({path.name: outside(figure)}))
    chart = a_chart(10, **({'pieces': [*PIECES, '·zebra'], 'rank': 12_345} | changes), **ELEVEN)
    save_bar_charts([chart] * 5, tmp_path)
    assert {name: texts for name, texts in cut_off.items() if texts} == {}
    assert len(cut_off) == 6


def test_step_pictures_do_not_keep_what_an_earlier_step_drew(tmp_path):
    alone, after = tmp_path / 'alone', tmp_path / 'after'
    alone.mkdir()
    after.mkdir()
    save_bar_charts([a_chart(3)], alone)
    save_bar_charts([an_unlikely_choice(), a_chart(3)], after)
    assert np.array_equal(imread(alone / 'step_01.png'), imread(after / 'step_02.png'))


def test_twenty_charts_take_less_than_15_seconds(tmp_path):
    start = time.process_time()  # not the clock on the wall: other programs may be busy too
    paths = save_bar_charts([a_chart(step % 10) for step in range(20)], tmp_path)
    assert time.process_time() - start < 15
    assert len(paths) == 21


class Frozen(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2025, 11, 20, 9, 30, 0)


def test_new_folder_is_new_each_time_even_within_a_second(tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'datetime', types.SimpleNamespace(datetime=Frozen))
    with concurrent.futures.ThreadPoolExecutor(8) as several:
        folders = list(
            several.map(lambda _: create_run_folder(tmp_path / 'results', 'gpt2-Once upon a time'), range(40))
        )
    assert len(set(folders)) == 40
    assert all(folder.is_dir() and not any(folder.iterdir()) for folder in folders)
    assert all(folder.parent == tmp_path / 'results' for folder in folders)


@pytest.mark.parametrize(
    'name', ['gpt2-Once upon a time', '../../etc/passwd', 'a/b\\c:d*?"<>|\n', 'x' * 1000, '中文', '🙂', '', '---', '.']
)
def test_new_folder_has_a_name_that_every_file_system_takes(tmp_path, name):
    folder = create_run_folder(tmp_path, name)
    assert folder.is_dir() and folder.parent == tmp_path
    assert len(folder.name) < 100
    assert set(folder.name) <= set('abcdefghijklmnopqrstuvwxyz0123456789-')


def test_new_folder_says_what_it_is_of(tmp_path):
    assert create_run_folder(tmp_path, 'gpt2-Once upon a time').name.startswith('gpt2-once-upon-a-time-20')


@pytest.mark.parametrize('parent', ['results', 'results/deeper'])
def test_a_file_where_the_folder_should_be_is_an_error(tmp_path, parent):
    (tmp_path / 'results').write_text('mine')
    with pytest.raises(UserError, match='results'):
        create_run_folder(tmp_path / parent, 'gpt2')
    assert (tmp_path / 'results').read_text() == 'mine'


# Pictures of evaluations --------------------------------------------------------------------------------------------


@pytest.fixture
def kept(monkeypatch):
    """Keep figures open, so that a test sees what was drawn; return a function that gives the last one."""
    close = pyplot.close
    monkeypatch.setattr(pyplot, 'close', lambda figure: None)
    yield pyplot.gcf
    close('all')


def colour_of(line):
    return to_rgb(line.get_color())


def test_before_and_after_stand_at_their_powers_of_ten_sorted_by_the_change(tmp_path, kept):
    before, after = [-2.0, -900.0, -5.0], [-4.0, -850.0, -4.0]
    labels = ['fell $x_1$', 'rose most', 'rose\nlittle']
    draw_before_after(tmp_path / 'chart.png', labels, before, after, ['old', 'new'], 'of the response')
    assert imread(tmp_path / 'chart.png').shape[1] > 800
    axes = kept().axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ['fell $x_1$', 'rose ⏎ little', 'rose most']
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) == 2]
    expected = [(before[n] / np.log(10), after[n] / np.log(10)) for n in (0, 2, 1)]
    assert [tuple(line.get_xdata()) for line in lines] == [pytest.approx(pair) for pair in expected]
    assert [colour_of(line) for line in lines] == [to_rgb(FELL), to_rgb(ROSE), to_rgb(ROSE)]
    assert axes.xaxis.get_major_formatter()(-12, 0) == '$10^{-12}$'
    assert 'log' in axes.get_xlabel()


@pytest.mark.parametrize(
    ('scale', 'values'),
    [('around 0', [3.0, -3.0, 0.0]), ('below 0', [-0.1, -5.0, -2.0]), ('above 0', [0.1, 5.0, 2.0])],
)
def test_each_token_stands_on_the_colour_of_its_value(tmp_path, kept, scale, values):
    lines = [('The fox', ['·ran', '·$away$', '⏎'], values), ('x' * 200, ['·word'] * 60, [values[1]] * 60)]
    draw_token_sheet(tmp_path / 'sheet.png', lines, 'change', scale)
    axes = kept().axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert texts[:4] == ['The fox', '·ran', '·$away$', '⏎']
    assert texts.count('·word') == 60
    width = axes.get_xlim()[1]
    patches = axes.patches
    assert len(patches) == 63
    assert all(patch.get_x() + patch.get_width() <= width for patch in patches)  # long responses go on below
    assert len({patch.get_y() for patch in patches[3:]}) > 3
    red, _, blue = zip(*(patch.get_facecolor()[:3] for patch in patches[:2]))
    if scale == 'around 0':
        assert blue[0] > red[0]  # likelier
        assert red[1] > blue[1]  # less likely
        assert min(patches[2].get_facecolor()[:3]) > 0.9  # no change is almost white
    else:
        assert sum(patches[0].get_facecolor()[:3]) > sum(patches[1].get_facecolor()[:3])  # far from 0 is dark
    for text, patch in zip(axes.texts[1:4], patches, strict=False):
        brightness = np.dot([0.299, 0.587, 0.114], patch.get_facecolor()[:3])
        assert text.get_color() == ('white' if brightness < 0.5 else 'black')


def test_a_sheet_without_tokens_is_a_sheet(tmp_path):
    draw_token_sheet(tmp_path / 'sheet.png', [('The fox', [], [])], 'logprob', 'below 0')
    assert (tmp_path / 'sheet.png').exists()


def test_a_reliability_diagram_shows_every_bin_of_both_models(tmp_path, kept):
    tables = {'before': [(0.1, 0.2, 40), (0.9, 0.5, 3)], 'after': [(0.5, 0.6, 7)]}
    draw_reliability(tmp_path / 'reliability.png', tables)
    curve, counts = kept().axes
    drawn = {line.get_label(): np.column_stack(line.get_data()).tolist() for line in curve.get_lines()}
    assert drawn['before'] == [[0.1, 0.2], [0.9, 0.5]]
    assert drawn['after'] == [[0.5, 0.6]]
    assert drawn['perfectly calibrated'] == [[0, 0], [1, 1]]
    assert counts.get_lines()[0].get_ydata().tolist() == [40, 3]


@pytest.mark.parametrize(
    ('text', 'length', 'from_end', 'short'),
    [
        ('a fox', 5, False, 'a fox'),
        ('a little fox', 8, False, 'a littl…'),
        ('the little old fox', 10, True, '… old fox'),
        ('abcdefghij', 5, True, '…ghij'),
        ('one \n\n two', 20, True, 'one ⏎ two'),
    ],
)
def test_shortened_texts(text, length, from_end, short):
    assert shorten(text, length, from_end) == short
    assert len(short) <= length


# A search as a tree -------------------------------------------------------------------------------------------------


def test_a_tree_has_every_beam_with_its_probability(tmp_path, kept):
    levels = [
        [Branch('·a', 0, 0.5, -0.69, True, True), Branch('$x$', 0, 0.25, -1.39, False, False)],
        [Branch('·fox', 0, 0.125, -2.77, True, True), Branch('⏎', 0, 0.0004, -8.5, False, True)],
    ]
    draw_beams(tmp_path / 'beams.png', levels, 'Once ▁ $')
    assert imread(tmp_path / 'beams.png').shape[1] > 300
    axes = kept().axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert {'·a', '$x$', '·fox', '⏎', '0.500', '0.250', '0.125', '4e-04', '-0.69', '-8.50'} <= set(texts)
    colours = [to_rgb(patch.get_edgecolor()) for patch in axes.patches]
    expected = [CHOSEN, GIVEN_UP, CHOSEN, ROSE]
    assert colours == [to_rgb(colour) for colour in expected]
    ends = [(patch.get_path().vertices[0].tolist(), patch.get_path().vertices[-1].tolist()) for patch in axes.patches]
    assert ends == [([0, 0], [1, 0]), ([0, 0], [1, 1]), ([1, 0], [2, 0]), ([1, 0], [2, 1])]
