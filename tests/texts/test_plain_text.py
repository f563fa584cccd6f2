"""Text files become the same documents, however they arrive in chunks and however large they are."""

import itertools
import re
import tracemalloc
from pathlib import Path

import pytest
from helpers.documents import split_at_once, texts_in, write_table
from hypothesis import given, settings
from hypothesis import strategies as st

from texts import plain_text
from texts.plain_text import cut_long, split_documents
from texts.readers import read_files


@settings(deadline=None, max_examples=500)
@given(
    text=st.text(st.sampled_from('ab \t\n-'), max_size=60),
    separator=st.sampled_from(['\n\n\n', '\n', '--', '-\n-', ' ', 'ab']),
    cuts=st.lists(st.integers(0, 60), max_size=6),
)
def test_documents_do_not_depend_on_the_chunks(text, separator, cuts):
    ends = [0, *sorted(cuts), len(text)]
    chunks = [text[start:end] for start, end in itertools.pairwise(ends)]
    assert list(split_documents(chunks, separator)) == split_at_once(text, separator)


def test_lines_of_white_space_count_as_empty():
    text = 'One\n \nmore\n  \n\t\t\nTwo\n\n\n\n\n \nThree\n   '
    assert list(split_documents([text], '\n\n\n')) == ['One\n\nmore', 'Two', 'Three']


def test_empty_lines_around_documents_are_removed_and_indents_kept():
    text = '\n\n\n\n  One\n\n\n\n\n\n\n  Two\n two\n\n\n\n'
    assert list(split_documents([text], '\n\n\n')) == ['  One', '  Two\n two']


# Long documents ------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(text=st.text(st.sampled_from('ab \n'), max_size=200), chunk=st.integers(1, 50))
def test_a_long_document_is_cut_and_loses_nothing_but_empty_lines(text, chunk):
    chunks = [text[start : start + chunk] for start in range(0, len(text), chunk)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_text, 'LONGEST', 10)
        for parts in (list(cut_long(text)), list(split_documents(chunks, 'no such separator'))):
            assert all(len(part) <= 10 for part in parts)
            assert ''.join(parts).replace('\n', '').rstrip(' ') == re.sub(r'(?m)^ +$', '', text).replace(
                '\n', ''
            ).rstrip(' ') or any(line.isspace() for line in text.split('\n'))


@pytest.mark.parametrize(
    ('text', 'parts'),
    [
        ('aaa bbb\nccc ddd', ['aaa bbb', 'ccc ddd']),  # after a line, though a word ends later
        ('aaa bbb ccc ddd', ['aaa bbb ', 'ccc ddd']),
        ('a\nbbbbbbbbbbbbb', ['a\nbbbbbbbb', 'bbbbb']),  # the line ends too close to the start
        ('aaaaaaaaaabbbbbbbbbbc', ['aaaaaaaaaa', 'bbbbbbbbbb', 'c']),
        ('aaaaaaaaaa', ['aaaaaaaaaa']),
    ],
)
def test_a_long_document_is_cut_after_a_line_else_a_word_else_anywhere(monkeypatch, text, parts):
    monkeypatch.setattr(plain_text, 'LONGEST', 10)
    assert list(cut_long(text)) == parts
    assert list(split_documents([text], '\n\n\n')) == parts
    write_table('rows.jsonl', [{'text': text}])
    assert texts_in('rows.jsonl') == parts


def test_a_separator_is_found_however_long_the_documents(monkeypatch):
    """Even if only half of it has arrived when a long document is cut."""
    monkeypatch.setattr(plain_text, 'LONGEST', 10)
    for length in range(5, 40):
        text = 'a' * length + '<| end |>' + 'b' * length
        for chunk in (1, 4, 7):
            found = ''.join(split_documents([text[at : at + chunk] for at in range(0, len(text), chunk)], '<| end |>'))
            assert found == 'a' * length + 'b' * length


@pytest.mark.parametrize(
    'text',
    [
        pytest.param('word ' * 2_000_000, id='one line'),
        pytest.param('x' * 10_000_000, id='one word'),
        pytest.param('word\n\n\n' * 1_200_000, id='short documents', marks=pytest.mark.slow),
    ],
)
def test_a_file_is_never_in_memory_as_a_whole(monkeypatch, text):
    monkeypatch.setattr(plain_text, 'LONGEST', 2**17)
    Path('long.txt').write_text(text)
    tracemalloc.start()
    try:
        for _ in read_files([Path('long.txt')], '\n\n\n'):
            pass
        assert tracemalloc.get_traced_memory()[1] < 2_000_000  # bytes at the peak, of ten million
    finally:
        tracemalloc.stop()
