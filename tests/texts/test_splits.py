"""Each document goes to one split, and each split gets its share of the text."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from texts.corpus import gather_documents, read_documents
from texts.splits import assign_splits, find_split_point, hold_out

sizes_of_documents = st.lists(st.integers(1, 400), min_size=2, max_size=60).map(np.array)


def held(chars, val, test=0.0, seed=1337):
    return hold_out(chars, [round(1 - val - test, 9), val, test], seed)


@settings(deadline=None, max_examples=300)
@given(chars=sizes_of_documents, val=st.floats(0, 1), test=st.floats(0, 1), seed=st.integers(0, 5))
def test_shares_are_as_close_as_whole_documents_allow(chars, val, test, seed):
    val, test = (val, test) if val + test <= 1 else (1 - val, 1 - test)
    split = held(chars, val, test, seed)
    shares = [round(1 - val - test, 9), val, test]
    for number, share in list(enumerate(shares))[1:]:
        mine = chars[split == number]
        assert share == 0 or len(mine) or len(chars) < sum(share > 0 for share in shares)
        off = abs(mine.sum() - share * chars.sum())
        few = (split == 0).sum() <= 1 or len(mine) <= 1
        assert off <= chars.max() / 2 + 1e-6 or few
    assert (split == 0).any() == (shares[0] > 0)


def test_a_test_split_does_not_change_val():
    chars = 100 + np.arange(400) % 300
    assert ((held(chars, 0.1) == 1) == (held(chars, 0.1, 0.2) == 1)).all()


def test_shares_of_many_documents_are_close_to_the_settings():
    chars = 100 + np.arange(400) % 300
    split = held(chars, 0.1, 0.05)
    assert chars[split == 1].sum() / chars.sum() == pytest.approx(0.1, abs=0.003)
    assert chars[split == 2].sum() / chars.sum() == pytest.approx(0.05, abs=0.003)


def test_val_is_drawn_from_everywhere():
    numbers = np.flatnonzero(held(np.full(1000, 50), 0.1) == 1)
    assert np.mean(numbers) == pytest.approx(499.5, abs=4 * 288.7 / 100**0.5)  # four standard errors


def test_the_seed_decides_the_split():
    chars = np.full(100, 50)
    assert (held(chars, 0.3, seed=1) == held(chars, 0.3, seed=1)).all()
    assert (held(chars, 0.3, seed=1) != held(chars, 0.3, seed=2)).any()


@pytest.mark.parametrize(
    ('text', 'fraction', 'expected'),
    [
        # after a paragraph, though a line ends closer to the goal
        ('aaaa aaaa\naaaa\n\nbb bb\nbb', 0.6, 'aaaa aaaa\naaaa\n\n'),
        ('aa\n\nbb\n\ncc\n\ndd', 0.5, 'aa\n\nbb\n\n'),
        ('aa\n\nbb\n\ncc\n\ndd', 0.8, 'aa\n\nbb\n\ncc\n\n'),
        ('aa aa\nbb bb\ncc cc', 0.4, 'aa aa\n'),
        ('aa aa bb bb cc cc', 0.5, 'aa aa bb '),
        ('aaaaaaaaaa', 0.7, 'aaaaaaa'),
        ('中文中文中文', 0.5, '中文中'),
    ],
)
def test_one_text_is_cut_after_a_paragraph_else_a_line_else_a_word_else_anywhere(text, fraction, expected):
    assert text[: find_split_point(text, fraction)] == expected


def test_one_text_of_a_title_and_one_long_paragraph_is_not_cut_after_the_title():
    text = 'The Title\n\n' + 'word ' * 2000
    assert find_split_point(text, 0.9) / len(text) == pytest.approx(0.9, abs=0.05)


def corpus_of(*texts):
    corpus, _ = gather_documents(texts, Path('gathered'), keep_duplicates=True)
    return corpus


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.sampled_from('ab é\n'), min_size=20), val=st.floats(0.2, 0.4), test=st.floats(0.2, 0.4))
def test_one_document_is_cut_into_all_splits_without_loss(tmp_path_factory, text, val, test):
    path = tmp_path_factory.getbasetemp() / 'one'
    corpus, _ = gather_documents([text], path, keep_duplicates=True)
    split = assign_splits(corpus, [1 - val - test, val, test], seed=1)
    assert split.tolist() == [0, 1, 2]
    assert ''.join(read_documents(path, corpus.starts, corpus.ends)) == text


@pytest.mark.parametrize(
    ('texts', 'shares', 'words'),
    [
        (['x'], [0.9, 0.1, 0], '1 document: not enough for train, val; nothing is left for val'),
        (['one', 'two'], [0.8, 0.1, 0.1], '2 documents: not enough for train, val, test; nothing is left for val'),
    ],
)
def test_too_few_documents_for_all_splits_are_an_error(texts, shares, words):
    with pytest.raises(UserError, match=words):
        assign_splits(corpus_of(*texts), shares, seed=1)
