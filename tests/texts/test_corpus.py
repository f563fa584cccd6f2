"""Gathered documents come back whole, and pieces for the tokenizer have the tokens of the whole text."""

from pathlib import Path

import pytest
from helpers.models import needs_gpt2_vocabulary
from helpers.scripts import PROJECT
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.tokenizer import BPETokenizer, GPT2Tokenizer
from texts import corpus
from texts.corpus import Corpus, cut_for_tokenizer, gather_documents


@settings(deadline=None, max_examples=100)
@given(texts=st.lists(st.text(st.sampled_from('aé🐌\n'), max_size=3), max_size=30), keep=st.booleans())
def test_gathering_keeps_the_first_of_equal_documents(tmp_path_factory, texts, keep):
    path = tmp_path_factory.getbasetemp() / 'gathered'
    corpus, counts = gather_documents(iter(texts), path, keep)
    full = [text for text in texts if text]
    expected = full if keep else list(dict.fromkeys(full))
    assert list(corpus.texts(slice(None))) == expected
    assert corpus.chars.tolist() == [len(text) for text in expected]
    assert counts == {'duplicates_dropped': len(full) - len(expected), 'empty_skipped': len(texts) - len(full)}


def test_a_document_takes_20_bytes_of_memory():
    texts = [f'Tale {number}' for number in range(1000)]
    corpus, _ = gather_documents(texts, Path('gathered'), keep_duplicates=True)
    assert isinstance(corpus, Corpus)
    assert sum(array.nbytes for array in (corpus.starts, corpus.ends, corpus.chars)) == 20 * 1000


both_tokenizers = pytest.mark.parametrize(
    'tokenizer',
    [
        pytest.param(GPT2Tokenizer(), id='gpt2', marks=needs_gpt2_vocabulary),
        pytest.param(BPETokenizer.from_file(PROJECT / 'models' / 'tiny' / 'tokenizer.json'), id='tiny'),
    ],
)


@both_tokenizers
@settings(deadline=None, max_examples=200)
@given(words=st.lists(st.text(st.sampled_from("ab1'!.é🐌\u00a0\u2003 \n\t\x1c"), min_size=1, max_size=12), max_size=20))
def test_pieces_have_the_tokens_of_the_whole_text(tokenizer, words):
    text = 'a b'.join(words)  # the smallest piece below is longer than any run without a place to cut
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, 'PIECE', 30)
        parts = list(cut_for_tokenizer(text))
    assert ''.join(parts) == text
    assert all(len(part) <= 30 for part in parts)
    assert [id for part in parts for id in tokenizer.encode(part)] == tokenizer.encode(text)
