"""Statistics of texts: words, sentences, speech, and keywords, compared with the formula of the paper."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.text_statistics import describe_text, dialogue_share, keywords, sentences_of, words_of


def test_words_keep_their_apostrophes():
    assert words_of("Don't! The dragon’s 3 old_eggs - it's") == ["don't", 'the', "dragon's", 'old', 'eggs', "it's"]


@pytest.mark.parametrize(
    'text, sentences',
    [
        ('One came. Two went! Who?', ['One came.', 'Two went!', 'Who?']),
        ('Mr. Fox met Mrs. Hen. They ate.', ['Mr. Fox met Mrs. Hen.', 'They ate.']),
        ('“Come!” She came. "Go," he said.', ['“Come!', 'She came.', '"Go," he said.']),
        ('"Stay. " The door fell', ['"Stay.', 'The door fell']),
        ('A heading\n\nIt begins', ['A heading', 'It begins']),
        ('about 3.5 miles e. g. to the east', ['about 3.5 miles e. g. to the east']),
        ('... !', []),
        ('', []),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text, sentences):
    assert sentences_of(text) == sentences


@pytest.mark.parametrize(
    'text, share',
    [
        ('"Two words," she said.', 2 / 4),
        ('“Two words,” she said.', 2 / 4),
        ("'Two words,' she said.", 2 / 4),
        ("It's the dogs' own house, isn't it", 0),  # apostrophes
        ('She said: "Two words. " Then she left.', 2 / 7),
        ('"One mark that nobody closed. And then "two words" more', 2 / 10),
        ('', 0),
    ],
)
def test_speech_is_between_quotation_marks(text, share):
    assert dialogue_share(text) == pytest.approx(share)


def test_the_statistics_of_a_text():
    figures = describe_text('The fox ran. "The fox," she said, "is a fox." ' * 3, sample=5)
    assert figures['words'] == 3 * 10
    assert figures['sentences'] == 3 * 2
    assert figures['words_per_sentence'] == 5
    assert figures['median_words_per_sentence'] == 7
    assert figures['dialogue_share'] == pytest.approx(5 / 10)
    assert figures['distinct_words'] == (3 + 5) / 2  # of five words each: "the fox ran the fox" ...
    assert describe_text('short')['distinct_words'] is None


def test_keywords_follow_the_formula():
    here, there = 'a a a b', 'a b b b b c'
    found = {word: z for word, z, _, _ in keywords(here, there, prior=0.5)}
    y, n, x, m, alpha, alpha_0 = 3, 4, 1, 6, 0.5 * 4, 0.5 * 10  # of the word a
    odds_here, odds_there = (y + alpha) / (n + alpha_0 - y - alpha), (x + alpha) / (m + alpha_0 - x - alpha)
    z = (math.log(odds_here) - math.log(odds_there)) / math.sqrt(1 / (y + alpha) + 1 / (x + alpha))
    assert found['a'] == pytest.approx(z)
    assert list(found) == ['a', 'c', 'b']
    word, _, per_million, per_million_there = keywords(here, there, count=1)[0]
    assert (word, per_million, per_million_there) == ('a', 0.75e6, pytest.approx(1e6 / 6))


TEXTS = st.lists(st.sampled_from(['king', 'fox', 'the', 'and']), max_size=20).map(' '.join)


@given(TEXTS, TEXTS)
def test_swapping_the_texts_changes_the_sign(here, there):
    one = {word: z for word, z, _, _ in keywords(here, there, count=None)}
    other = {word: z for word, z, _, _ in keywords(there, here, count=None)}
    assert one == {word: pytest.approx(-z) for word, z in other.items()}
