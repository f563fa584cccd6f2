"""The numbers and the drawing of the temperature picture."""

import math
import re

import numpy as np
import pytest
import torch
from helpers.pictures import TEN, assert_picture, call

from lm import checkpoint, internals
from lm.alternatives import entropy
from model import logits_to_logprobs
from pictures.temperature import Panel, cut_lines, draw_temperature, effective_choices


def test_the_printed_temperatures_are_those_of_the_model(here, capsys):
    call('temperature', f'--start={TEN}', '--temperatures=0,1', '--save=t.png')
    model, tokenizer, _ = checkpoint.load_model('tiny-stories', device='cpu')
    with torch.no_grad():
        logprobs = logits_to_logprobs(model(torch.tensor([tokenizer.encode(TEN)]))[0][0, -1])
    nats = entropy(logprobs).item()
    greedy, plain = [line for line in capsys.readouterr().out.splitlines() if re.match(r'│\s+[01] │', line)]
    assert f'{nats:.3f}' in plain and f'{math.exp(nats):,.1f}' in plain
    assert f'{logprobs.max().exp().item():.3f}' in plain
    assert '0.000' in greedy and '1 (100.0%)' in greedy


@pytest.mark.parametrize(
    'cuts',
    [
        pytest.param(('None', 'None'), marks=pytest.mark.slow),
        pytest.param(('100000', '1.0'), marks=pytest.mark.slow),
        pytest.param(('1', '0.0001'), marks=pytest.mark.slow),
        ('3', 'None'),
    ],
    ids=str,
)
def test_any_cuts_or_none(cuts, here, capsys):
    call('temperature', f'--start={TEN}', f'--top_k={cuts[0]}', f'--top_p={cuts[1]}', '--save=t.png')
    assert_picture(here / 't.png')
    head, uncut = capsys.readouterr().out, [cut == 'None' for cut in cuts]
    assert ['top-k keeps' in head, 'top-p keeps' in head] == [not is_uncut for is_uncut in uncut]
    assert ('both, k then p' in head, 'entropy after' in head) == (not any(uncut), not all(uncut))


@pytest.mark.parametrize(
    ('left', 'top_k', 'top_p', 'lines'),
    [
        (3, None, 3, {3: ['top-p']}),
        (3, 4, 5, {3: ['both'], 4: ['top-k alone'], 5: ['top-p alone']}),
        (4, 4, 19, {4: ['both', 'top-k alone']}),
        (1, 1, 1, {1: ['both', 'top-k alone', 'top-p alone']}),
        (9, None, None, {}),
    ],
)
def test_a_solid_line_marks_where_both_cuts_end(left, top_k, top_p, lines):
    probs = np.full(20, 0.05)
    panel = Panel(1.0, probs, math.log(20), top_k, top_p, left, [])
    assert cut_lines(panel, 12) == lines
    figure = draw_temperature('a title', list('abcdefghijkl'), [panel], top_k, top_p, ([0, 1], [1, 20]))
    axes = figure.axes[0]
    solid = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == '-']
    assert solid == ([left - 0.5] if lines else [])
    assert sorted(line.get_ydata()[0] for line in axes.lines) == [tokens - 0.5 for tokens in sorted(lines)]
    if lines:
        pale = [bar.get_facecolor()[3] < 1 for bar in axes.patches[:12]]
        assert pale == [place >= left for place in range(12)]


@pytest.mark.parametrize('temperatures', [[0.0], [0.3, 1.5], [0.0, 1e30], [1e-30, 40.0]])
def test_every_temperature_is_on_the_curve(temperatures):
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 3
    points, choices = effective_choices(logits, temperatures)
    assert set(temperatures) <= set(points) and points == sorted(points)
    assert all(map(math.isfinite, [*points, *choices]))
    for one in temperatures:
        assert choices[points.index(one)] == pytest.approx(math.exp(internals.temper_distribution(logits, one).entropy))
