"""The numbers and the drawing of the attention picture."""

import numpy as np
import pytest
import torch
from helpers.pictures import TEN, call, texts_of

from lm import checkpoint, internals
from pictures.attention import draw_attention, draw_matrix


def test_attention_of_one_head_says_where_each_token_looks(here, capsys):
    call('attention', f'--start={TEN}', '--layer=2', '--head=1', '--save=head.png')
    out = capsys.readouterr().out
    model, tokenizer, _ = checkpoint.load_model('tiny-stories', device='cpu')
    ids = tokenizer.encode(TEN)
    weights = list(internals.layer_attentions(model, torch.tensor([ids])))[2][0, 1]
    for place, piece in enumerate(tokenizer.pieces(ids)):
        best = weights[place].argmax().item()
        assert f'{piece}' in out and f'{tokenizer.pieces([ids[best]])[0]} {weights[place, best].item():.2f}' in out
    assert {path.name for path in here.glob('*.png')} == {'head.png', 'head-rollout.png'}


@pytest.mark.parametrize('T', [1, 10, 60, 250])
def test_matrices_have_pieces_on_both_sides_and_grow(T):
    pieces = [f'·w{place}' for place in range(T)]
    matrix = np.tril(np.random.default_rng(0).random((T, T)))
    figure = draw_matrix('a title', matrix, pieces, 'weight')
    axes = figure.axes[0]
    for ticks, labels in ((axes.get_xticks(), axes.get_xticklabels()), (axes.get_yticks(), axes.get_yticklabels())):
        assert [label.get_text() for label in labels] == [pieces[int(tick)] for tick in ticks]
    if T <= 60:
        assert len(axes.get_xticks()) == T
    numbers = [text.get_text() for text in axes.texts]
    if 1 < T <= 30:
        worth = matrix[matrix >= 0.005]
        assert sorted(numbers) == sorted(f'{value:.2f}'.removeprefix('0') for value in worth)
    assert max(figure.get_size_inches()) < 65


def test_the_grid_has_a_row_for_each_layer_and_a_column_for_each_head():
    weights = np.tril(np.random.default_rng(0).random((3, 2, 5, 5)))
    figure = draw_attention('a title', weights, range(3), range(2), list('abcde'))
    drawn = [axes for axes in figure.axes if axes.images]
    for axes, matrix in zip(drawn, weights.reshape(6, 5, 5), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array().filled(0), matrix)
    assert {'layer 0', 'layer 1', 'layer 2'} <= set(texts_of(figure))
    assert [axes.get_title() for axes in drawn[:2]] == ['head 0', 'head 1']
