"""The numbers and the drawing of the logit lens."""

import math
import re

import numpy as np
import pytest
import torch
from helpers.pictures import TEN, figures_of

from lm import checkpoint, internals
from lm.wording import format_three_digits
from pictures.layers import MAX_POSITIONS, draw_layers


def test_table_and_picture_of_layers_have_the_same_numbers(here, monkeypatch, capsys):
    ((_, figure),) = figures_of(monkeypatch, 'layers', f'--start={TEN}').items()
    out = capsys.readouterr().out
    model, tokenizer, _ = checkpoint.load_model('tiny-stories', device='cpu')
    lens = internals.logit_lens(model, torch.tensor([tokenizer.encode(TEN)]))
    probs, ranks = ([text.get_text() for text in axes.texts] for axes in figure.axes[-2:])
    for layer in range(model.config.n_layer + 1):
        mean = math.exp(lens.next_logprobs[layer, 0].double().mean())
        assert float(probs[layer]) == pytest.approx(mean, rel=0.006)
        assert float(ranks[layer].replace(',', '')) == np.median(lens.next_ranks[layer, 0])
        assert f' {probs[layer]} │' in out and f' {ranks[layer]} │' in out


def test_a_probability_too_small_for_a_float_is_written_and_drawn():
    assert format_three_digits(math.log(0.00125)) == '0.00125'
    assert re.fullmatch(r'\d\.\d\de-435', format_three_digits(-1000.0))
    ranks, logprobs = np.full((2, 3), 1.5), np.array([[-2000.0, -1000, 0], [-1, -2, -3]])
    figure = draw_layers('a title', list('abcd'), [list('abcd')] * 2, np.ones((2, 4)), ranks, logprobs)
    probs, of_ranks = figure.axes[-2:]
    np.testing.assert_allclose(probs.lines[0].get_ydata(), np.array([-1000, -2]) / math.log(10))
    assert [text.get_text() for text in of_ranks.texts] == ['1.5', '1.5']


def test_the_lens_frames_the_token_that_came_next():
    tops = [['x', 'b', 'c'], ['b', 'x', 'c']]
    figure = draw_layers(
        'a title',
        ['·a', '·b', '·c'],
        tops,
        np.full((2, 3), 0.4),
        np.array([[5, 7], [1, 2]]),
        np.log(np.full((2, 2), 0.1)),
    )
    axes = figure.axes[0]
    framed = [bool(np.allclose(patch.get_edgecolor()[:3], (0.91, 0.455, 0.231), atol=0.01)) for patch in axes.patches]
    assert framed == [False, False, False, True, False, False]  # layer by layer
    said = [text.get_text() for text in axes.texts]
    assert said[-3:] == ['·b', '·c', '?']
    assert {'5', '7', '1', '2'} <= set(said)


@pytest.mark.slow
def test_the_lens_draws_the_end_of_a_long_text_but_counts_all():
    T = MAX_POSITIONS + 9
    pieces = [f'·w{place}' for place in range(T)]
    ranks = np.full((2, T - 1), 3)
    ranks[1, :9] = 5  # in the part that is not drawn
    figure = draw_layers('a title', pieces, [pieces] * 2, np.full((2, T), 0.4), ranks, np.full((2, T - 1), -2.3))
    *blocks, _, _, of_ranks = figure.axes
    drawn = [label.get_text() for axes in blocks for label in axes.get_xticklabels()]
    assert drawn == pieces[9:]
    assert of_ranks.lines[0].get_ydata() == pytest.approx([math.log10(3)] * 2)
