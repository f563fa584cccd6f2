"""Text made fit for one line, for a terminal, and for UTF-8."""

import pytest

from common.strings import replace_surrogates, separator_between, shorten, show_control_characters


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
def test_shorten_keeps_the_beginning_or_the_end(text, length, from_end, short):
    assert shorten(text, length, from_end) == short
    assert len(short) <= length


@pytest.mark.parametrize(
    ('text', 'visible'),
    [('a\nb', 'a⏎b'), ('\x1b[31mred', '‹U+001B›[31mred'), ('\u202eleft', '‹U+202E›left'), ('Möwe 🐌', 'Möwe 🐌')],
)
def test_control_characters_are_made_visible(text, visible):
    assert show_control_characters(text) == visible


@pytest.mark.parametrize(
    ('text', 'replaced'),
    [('\ud800', '\ufffd'), ('a\udcffb', 'a\ufffdb'), ('\ud83d\udc0c', '🐌'), ('Möwe 🐌', 'Möwe 🐌')],
)
def test_lone_surrogates_are_replaced(text, replaced):
    assert replace_surrogates(text) == replaced
    assert replaced.encode()


@pytest.mark.parametrize(
    ('prompt', 'response', 'separator'),
    [
        ('I live in', 'a shoe', ' '),
        ('What is 2 + 2?', '4', ' '),
        ('I live in ', 'a shoe', ''),
        ('I live in', ' a shoe', ''),
        ('The end', '.', ''),
        ('f(', 'x', ''),
        ('', 'a shoe', ''),
        ('I live in', '', ''),
    ],
)
def test_a_space_goes_between_words_that_would_run_together(prompt, response, separator):
    assert separator_between(prompt, response) == separator
    assert separator_between(prompt, response, '') == ''
