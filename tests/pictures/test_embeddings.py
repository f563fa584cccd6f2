"""The words and the drawing of the embeddings picture."""

import itertools
import sys

import numpy as np
import pytest
from helpers.pictures import assert_picture, call, drawn_texts, refused

from common.errors import UserError
from lm import checkpoint
from lm.tokenizer import CharTokenizer
from pictures.embeddings import WORDS, draw_embeddings, read_words


@pytest.mark.parametrize(('method', 'module'), [('tsne', 'sklearn.manifold'), ('umap', 'umap')])
def test_a_missing_package_is_named(method, module, here, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # importing it raises ImportError
    assert 'pip install' in refused('embeddings', f'--method={method}')
    assert list(here.iterdir()) == []


@pytest.mark.slow
def test_tsne_is_drawn_if_scikit_learn_is_installed(here, capsys):
    pytest.importorskip('sklearn')
    call('embeddings', '--method=tsne', '--words=king,queen,dog,cat', '--save=words.png')
    assert_picture(here / 'words.png')


def test_a_word_is_the_token_of_running_text_if_there_is_one():
    _, tokenizer, _ = checkpoint.load_model('tiny-stories', device='cpu')
    king, queen, endoftext = read_words('king, queen ,<|endoftext|>', tokenizer)
    assert tokenizer.pieces([king, queen, endoftext]) == ['·king', '·queen', '<|endoftext|>']
    assert read_words(WORDS, tokenizer)
    characters = CharTokenizer('abc')  # without a space
    assert read_words('c,a,b', characters) == [2, 0, 1]
    with pytest.raises(UserError, match='unknown characters'):
        read_words('c,a,b,z', characters)
    with pytest.raises(UserError, match='three'):
        read_words(WORDS, characters)


@pytest.mark.slow
def test_no_two_words_overlap(monkeypatch):
    points = np.random.default_rng(0).normal(size=(230, 2))
    points[30:] = 4 + points[30:] / 20  # the grey ones in a crowd
    labels, others = ([f'{name}{number}' for number in range(count)] for name, count in (('·word', 30), ('·grey', 200)))
    axis_labels = ('first', 'second')
    figure = draw_embeddings('a title', points[:30], labels, points[30:], others, axis_labels)
    drawn = [(text, box) for text, box in drawn_texts(figure, monkeypatch) if text.get_text()[0] == '·']
    said = [text.get_text() for text, _ in drawn]
    assert set(labels) <= set(said) and 30 < len(said) < 230  # grey ones without space are left out
    for (text, box), (other, other_box) in itertools.combinations(drawn, 2):
        assert not box.overlaps(other_box), (text.get_text(), other.get_text())
