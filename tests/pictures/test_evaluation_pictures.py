"""Pictures of evaluations: before and after, token sheets, reliability."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from pictures.before_after import draw_before_after, draw_kinds
from pictures.reliability import draw_reliability
from pictures.style import BLUE, ORANGE
from pictures.token_sheet import draw_token_sheet


def colour_of(line):
    return to_rgb(line.get_color())


def test_before_and_after_are_powers_of_ten_sorted_by_the_change(tmp_path, last_figure):
    before, after = [-2.0, -900.0, -5.0], [-4.0, -850.0, -4.0]
    labels = ['fell $x_1$', 'rose most', 'rose\nlittle']
    draw_before_after(tmp_path / 'chart.png', labels, before, after, ['old', 'new'], 'of the response')
    assert imread(tmp_path / 'chart.png').shape[1] > 800
    axes = last_figure().axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ['fell $x_1$', 'rose ⏎ little', 'rose most']
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) == 2]
    expected = [(before[n] / np.log(10), after[n] / np.log(10)) for n in (0, 2, 1)]
    assert [tuple(line.get_xdata()) for line in lines] == [pytest.approx(pair) for pair in expected]
    assert [colour_of(line) for line in lines] == [to_rgb(ORANGE), to_rgb(BLUE), to_rgb(BLUE)]
    assert axes.xaxis.get_major_formatter()(-12, 0) == '$10^{-12}$'
    assert 'log' in axes.get_xlabel()


def test_the_responses_of_a_kind_are_together_with_their_mean_change(tmp_path, last_figure):
    draw_kinds(tmp_path / 'kinds.png', {'opening': [(-9.0, -8.0), (-7.0, -3.0)], 'plain prose': [(-5.0, -6.5)]})
    axes = last_figure().axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ['opening, +2.5', 'plain prose, −1.5']
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) == 2]
    assert [tuple(line.get_xdata()) for line in lines] == [(-7.0, -3.0), (-9.0, -8.0), (-5.0, -6.5)]
    assert [colour_of(line) for line in lines] == [to_rgb(BLUE), to_rgb(BLUE), to_rgb(ORANGE)]


@pytest.mark.parametrize(
    ('scale', 'values'),
    [('around 0', [3.0, -3.0, 0.0]), ('below 0', [-0.1, -5.0, -2.0]), ('above 0', [0.1, 5.0, 2.0])],
)
def test_each_token_has_the_colour_of_its_value(tmp_path, last_figure, scale, values):
    lines = [('The fox', ['·ran', '·$away$', '⏎'], values), ('x' * 200, ['·word'] * 60, [values[1]] * 60)]
    draw_token_sheet(tmp_path / 'sheet.png', lines, 'change', scale)
    axes = last_figure().axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert texts[:4] == ['The fox', '·ran', '·$away$', '⏎']
    assert texts.count('·word') == 60
    width = axes.get_xlim()[1]
    patches = axes.patches
    assert len(patches) == 63
    assert all(patch.get_x() + patch.get_width() <= width for patch in patches)  # long responses continue below
    assert len({patch.get_y() for patch in patches[3:]}) > 3
    red, _, blue = zip(*(patch.get_facecolor()[:3] for patch in patches[:2]))
    if scale == 'around 0':
        assert blue[0] > red[0]  # likelier
        assert red[1] > blue[1]  # less likely
        assert min(patches[2].get_facecolor()[:3]) > 0.9  # no change is nearly white
    else:
        assert sum(patches[0].get_facecolor()[:3]) > sum(patches[1].get_facecolor()[:3])  # far from 0 is dark
    for text, patch in zip(axes.texts[1:4], patches, strict=False):
        brightness = np.dot([0.299, 0.587, 0.114], patch.get_facecolor()[:3])
        assert text.get_color() == ('white' if brightness < 0.5 else 'black')


def test_a_sheet_without_tokens_is_a_sheet(tmp_path):
    draw_token_sheet(tmp_path / 'sheet.png', [('The fox', [], [])], 'logprob', 'below 0')
    assert (tmp_path / 'sheet.png').exists()


def test_a_reliability_diagram_shows_every_bin_of_both_models(tmp_path, last_figure):
    tables = {'before': [(0.1, 0.2, 40), (0.9, 0.5, 3)], 'after': [(0.5, 0.6, 7)]}
    draw_reliability(tmp_path / 'reliability.png', tables)
    curve, counts = last_figure().axes
    drawn = {line.get_label(): np.column_stack(line.get_data()).tolist() for line in curve.get_lines()}
    assert drawn['before'] == [[0.1, 0.2], [0.9, 0.5]]
    assert drawn['after'] == [[0.5, 0.6]]
    assert drawn['perfectly calibrated'] == [[0, 0], [1, 1]]
    assert counts.get_lines()[0].get_ydata().tolist() == [40, 3]
