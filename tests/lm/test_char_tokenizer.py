"""Character tokenizers: one id a character; nanoGPT's meta.pkl, of which nothing is executed."""

import os
import pickle
from pathlib import Path

import pytest
from helpers.tokenizers import CHARS, char_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.errors import UserError
from lm.tokenizer import CharTokenizer, tokenizer_from_folder

# Characters -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(st.text())
def test_characters_come_back_one_id_each(text):
    tokenizer = CharTokenizer(sorted(set(text)))
    ids = tokenizer.encode(text)
    assert ids == [sorted(set(text)).index(char) for char in text]
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text, '']) == [ids, []]


def test_characters_that_are_unknown_are_named_with_their_code_points():
    with pytest.raises(UserError) as error:
        CharTokenizer('abc').encode('ab\n🙂é')
    for named in ("'\\n' (U+000A)", "'é' (U+00E9)", "'🙂' (U+1F642)"):
        assert named in str(error.value)
    assert "'a'" not in str(error.value)


def test_saved_characters_come_back_from_the_folder(tmp_path):
    char_tokenizer().save(tmp_path)
    assert tokenizer_from_folder(tmp_path).contents == char_tokenizer().contents


def nanogpt_meta(chars):
    """What nanoGPT's data/shakespeare_char/prepare.py keeps."""
    return {
        'vocab_size': len(chars),
        'itos': dict(enumerate(chars)),
        'stoi': {char: id for id, char in enumerate(chars)},
    }


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_meta_pkl_of_nanogpt_is_read(tmp_path, protocol):
    (tmp_path / 'meta.pkl').write_bytes(pickle.dumps(nanogpt_meta(CHARS), protocol))
    tokenizer = tokenizer_from_folder(tmp_path)
    text = ''.join(reversed(CHARS))
    assert tokenizer.vocab_size == len(CHARS)
    assert tokenizer.encode(text) == list(reversed(range(len(CHARS))))
    assert tokenizer.decode(tokenizer.encode(text)) == text


class Intruder:
    """Pickles as a call that leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize('where', ['beside', 'inside', 'instead'])
@pytest.mark.parametrize('what', ['call', 'class', 'callable'])
def test_meta_pkl_with_code_in_it_is_refused_and_nothing_runs(tmp_path, what, where):
    trace = tmp_path / 'it-ran'
    bad = {'call': Intruder(trace), 'class': Path, 'callable': os.system}[what]
    meta = nanogpt_meta('abc')
    content = {'beside': meta | {'more': bad}, 'inside': meta | {'itos': {0: bad}}, 'instead': bad}[where]
    (tmp_path / 'meta.pkl').write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r'meta\.pkl.*only plain data'):
        CharTokenizer.from_meta_pkl(tmp_path / 'meta.pkl')
    assert not trace.exists()
    pickle.loads(pickle.dumps(Intruder(trace)))
    assert trace.exists()  # so it would have run


def test_meta_pkl_cut_short_anywhere_is_an_error(tmp_path):
    whole = pickle.dumps(nanogpt_meta('ab\né'))
    for length in range(len(whole)):
        (tmp_path / 'meta.pkl').write_bytes(whole[:length])
        with pytest.raises(UserError, match=r'meta\.pkl'):
            CharTokenizer.from_meta_pkl(tmp_path / 'meta.pkl')


@pytest.mark.parametrize(
    'content',
    [
        None,
        [],
        'itos',
        5,
        {},
        {'itos': None},
        {'itos': {1: 'a'}},
        {'itos': {0: 97, 1: 98}},
        {'itos': {0: 'ab', 1: 'c'}},
        {'itos': {0: ['a']}},
    ],
    ids=repr,
)
def test_meta_pkl_of_something_else_is_an_error(tmp_path, content):
    (tmp_path / 'meta.pkl').write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r'meta\.pkl'):
        CharTokenizer.from_meta_pkl(tmp_path / 'meta.pkl')


# Not LONG_BINPUT, 'r': Python's unpickler makes room for as many memos as that says, gigabytes of them.
bytes_but_r = st.integers(0, 255).filter(lambda byte: byte != ord('r'))


@pytest.mark.slow
@settings(deadline=None, max_examples=500)
@given(changes=st.lists(st.tuples(st.integers(0, 60), bytes_but_r), min_size=1, max_size=3))
@example(changes=[(10, 128)])  # a length of 2 ** 63
@example(changes=[(11, ord('N')), (12, ord('N')), (13, ord('a'))])  # None.append(None)
@example(changes=[(11, ord('P')), (13, ord('\n'))])  # the message about this one has two lines
def test_meta_pkl_with_damaged_bytes_is_read_or_an_error_but_never_a_crash(tmp_path_factory, changes):
    damaged = bytearray(pickle.dumps(nanogpt_meta('ab')))
    for place, byte in changes:
        damaged[place % len(damaged)] = byte
    path = tmp_path_factory.getbasetemp() / 'damaged.pkl'
    path.write_bytes(damaged)
    try:
        CharTokenizer.from_meta_pkl(path)
    except UserError as error:
        assert 'damaged.pkl' in str(error) and '\n' not in str(error)
