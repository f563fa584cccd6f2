"""Tokenizers against tiktoken, transformers and rules written out here; round trips; where a response begins."""

import functools
import hashlib
import itertools
import json
import os
import pickle
import re
import string
from pathlib import Path

import pytest
import regex
import tiktoken
import torch
from helpers.models import needs_gpt2_vocabulary
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.errors import UserError
from lm.tokenizer import (
    EOT,
    BPETokenizer,
    CharTokenizer,
    GPT2Tokenizer,
    tokenizer_from_contents,
    tokenizer_from_folder,
    tokenizer_from_name,
    train_bpe,
)

PROSE = """\
The lighthouse keeper's daughter counted the boats each evening, and each evening there was one too many. "It's the
fog," said her father, who didn't look up from his soup. "Fog can't count." But she'd seen it: a little grey boat that
cast no shadow, tied to the third post where nobody ever tied anything.

On Thursday she took a lantern and went down. The boat was there. In it sat an old woman, knitting something long and
grey that trailed over the side, into the water, and on, and out, and up.

"So you're making it," the girl said. "The fog."

"Somebody has to, dear," said the old woman. "Hold this end, would you? We'll be done by morning."
"""
CODE = 'def f(x, *, n=10):\n    if x >= n:\n\t\treturn [x**2 for _ in range(0x1F)]  # TODO: why?\n\n\nprint(f(3)!=4)\n'
VARIED = [
    PROSE,
    CODE,
    '',
    ' ',
    'a',
    '1234567890 3.14159 1,000,000 ½ ² ٣ 2024-02-29T12:00Z',
    'naïve café Ærøskøbing Łódź ÑANDÚ e\u0301 ﬁ ß ẞ',
    '日本語のテキスト 中文，标点。 한국어 עברית العربية ไทย हिन्दी',
    '🙂 👩‍👩‍👧‍👦 🏳️‍🌈 \U0001f1f3\U0001f1f1 \U0001d54f',
    '   leading, trailing   ',
    'runs  of   white    space\t\t\ttabs\n\n\n\nlines \n \n\r\n\r\n\u00a0\u2003\u3000\u2028x',
    "don't DON'T we'll WE'LL 'tis it''s 's",
    '\x00\x01\x1b[0m\x7f\x85\ufeff\ufffd\u200b\u202e',
    f'one{EOT}two {EOT} {EOT}{EOT}',
    '<|endoftext <|endoftext|',
]
# Pieces of text that merge with each other, or stand where white space and merges make a boundary hard.
FRAGMENTS = [
    *' \n\t\r.,\'"-abehinorstuwIT0129éö中文🙂\x1f\x85\u00a0\u2003\u2028\u3000\u200d\u0301',
    *('the', ' the', 'The', 'ing', ' on', 'er', 'un', 'ther', "n't", "'s", ' in', '  ', '    ', '\n\n', ' \n', '\r\n'),
    *('fog', ' lighthouse', 'keeper', 'there', ' Thursday', '👩\u200d👧', EOT),
]
fragments = st.lists(st.sampled_from(FRAGMENTS), max_size=8).map(''.join)
any_text = st.text() | fragments
# Words that have quite other tokens when their ends are cut off, and some prose: to be cut in two anywhere.
WORDS = f'Accordingly the Colonel heard absolute ANSWERS; hunger, eight Eastern armours absently. {PROSE}'
places = st.tuples(*[st.integers(0, len(WORDS))] * 3).map(sorted)
halves = st.tuples(fragments, fragments) | places.map(lambda abc: (WORDS[abc[0] : abc[1]], WORDS[abc[1] : abc[2]]))
CHARS = sorted(set(string.ascii_letters).union(WORDS, *FRAGMENTS))


@functools.cache
def gpt2_tokenizer():
    return GPT2Tokenizer()


@functools.cache
def bpe_tokenizer():
    return train_bpe([PROSE, CODE], 400)


@functools.cache
def char_tokenizer():
    return CharTokenizer(CHARS)


MAKE = {'gpt2': gpt2_tokenizer, 'bpe': bpe_tokenizer, 'char': char_tokenizer}


@pytest.fixture(scope='module', params=[pytest.param('gpt2', marks=needs_gpt2_vocabulary), 'bpe', 'char'])
def tokenizer(request):
    return MAKE[request.param]()


@pytest.fixture(scope='module', params=[pytest.param('gpt2', marks=needs_gpt2_vocabulary), 'bpe'])
def byte_level(request):
    """One of the tokenizers that have an id for every text."""
    return MAKE[request.param]()


@pytest.fixture(scope='module')
def saved(byte_level, tmp_path_factory):
    folder = tmp_path_factory.mktemp('saved')
    byte_level.save(folder)
    return folder


# GPT-2's vocabulary ---------------------------------------------------------------------------------------------------


@needs_gpt2_vocabulary
def test_gpt2_ids_are_the_published_ones():
    tokenizer = gpt2_tokenizer()
    assert tokenizer.encode('Hello world') == [15496, 995]
    assert tokenizer.encode('Once upon a time') == [7454, 2402, 257, 640]
    assert (tokenizer.vocab_size, tokenizer.eot) == (50257, 50256)
    assert tokenizer.encode(f'Hello{EOT} world') == [15496, 50256, 995]


@needs_gpt2_vocabulary
@settings(deadline=None, max_examples=200)
@given(any_text)
def test_gpt2_ids_equal_those_of_tiktoken(text):
    expected = tiktoken.get_encoding('gpt2').encode(text, allowed_special='all')
    assert gpt2_tokenizer().encode(text) == expected
    assert gpt2_tokenizer().encode_batch([text, 'x', text]) == [expected, [87], expected]


def published_gpt2_file(name):
    """OpenAI's own file, which tiktoken keeps under the SHA-1 of its address."""
    gpt2_tokenizer()  # has fetched it, if it was not there
    address = f'https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/{name}'
    return Path(os.environ['TIKTOKEN_CACHE_DIR'], hashlib.sha1(address.encode()).hexdigest())


@needs_gpt2_vocabulary
def test_saved_gpt2_has_openais_vocabulary_and_merges(tmp_path):
    gpt2_tokenizer().save(tmp_path)
    saved = json.loads((tmp_path / 'tokenizer.json').read_text(encoding='utf-8'))
    vocab = json.loads(published_gpt2_file('encoder.json').read_text(encoding='utf-8'))
    merges = published_gpt2_file('vocab.bpe').read_text(encoding='utf-8').splitlines()[1:]  # the first is a version
    assert saved['model']['vocab'] | {EOT: 50256} == vocab
    assert [tuple(pair) for pair in saved['model']['merges']] == [tuple(line.split(' ')) for line in merges]


@needs_gpt2_vocabulary
def test_vocab_json_with_merges_txt_gives_the_same_ids(tmp_path):
    for source, name in (('encoder.json', 'vocab.json'), ('vocab.bpe', 'merges.txt')):
        (tmp_path / name).write_bytes(published_gpt2_file(source).read_bytes())
    tokenizer = tokenizer_from_folder(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.eot) == (50257, 50256)
    for text in VARIED:
        assert tokenizer.encode(text) == gpt2_tokenizer().encode(text)


# Both byte-level tokenizers -------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(text=any_text)
@example('\r\n')
@example('🙂👩‍👩‍👧‍👦 中文 \x00\x1b\x7f')
@example(f'{EOT}{EOT} {EOT}\n')
def test_any_text_comes_back_from_its_ids(byte_level, text):
    ids = byte_level.encode(text)
    assert byte_level.decode(ids) == text
    assert byte_level.encode_batch([text, '']) == [ids, []]


def test_text_for_end_of_text_is_one_id(byte_level):
    assert byte_level.encode(EOT) == [byte_level.eot]
    assert byte_level.encode(f'a{EOT}b').count(byte_level.eot) == 1
    assert byte_level.decode([byte_level.eot]) == EOT
    assert byte_level.eot not in byte_level.encode(PROSE)


def test_text_with_a_lone_surrogate_has_ids(byte_level):
    """Python hands over a command line that is not UTF-8 as text with lone surrogates."""
    broken = b'a\xffb'.decode('utf-8', errors='surrogateescape')
    assert byte_level.decode(byte_level.encode(broken)) == 'a\ufffdb'
    assert byte_level.encode_batch([broken]) == [byte_level.encode(broken)]


@settings(deadline=None, max_examples=100)
@given(text=any_text)
def test_saved_tokenizer_json_gives_the_same_ids(byte_level, saved, text):
    read = read_once(saved)
    assert read.encode(text) == byte_level.encode(text)
    assert (read.vocab_size, read.eot) == (byte_level.vocab_size, byte_level.eot)


@functools.cache
def read_once(folder):
    return BPETokenizer.from_file(folder / 'tokenizer.json')


@settings(deadline=None, max_examples=100)
@given(text=any_text)
def test_transformers_reads_the_saved_folder_and_gives_the_same_ids(byte_level, saved, text):
    auto = auto_tokenizer(saved)
    assert auto.encode(text) == byte_level.encode(text)


def test_transformers_agrees_on_varied_text(byte_level, saved):
    auto = auto_tokenizer(saved)
    for text in VARIED:
        ids = byte_level.encode(text)
        assert auto.encode(text) == ids
        assert auto(text)['input_ids'] == ids
        assert auto.decode(ids) == text
    assert auto.eos_token_id == auto.bos_token_id == byte_level.eot
    assert len(auto) == byte_level.vocab_size


@functools.cache
def auto_tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def test_names_that_a_person_gives_find_the_tokenizer(byte_level, saved):
    ids = byte_level.encode(PROSE)
    assert tokenizer_from_name(str(saved)).encode(PROSE) == ids
    assert tokenizer_from_name(str(saved / 'tokenizer.json')).encode(PROSE) == ids


# A BPE of one's own ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('vocab_size', [257, 258, 300, 400])
def test_trained_vocabulary_has_the_size_asked_for(vocab_size):
    tokenizer = train_bpe([PROSE, CODE], vocab_size)
    assert tokenizer.vocab_size == vocab_size
    assert tokenizer.encode(EOT) == [tokenizer.eot]
    assert len({tokenizer.decode_bytes([id]) for id in range(vocab_size)}) == vocab_size
    for text in VARIED:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize('vocab_size', [256, 1, 0, -5])
def test_vocabulary_without_room_for_every_byte_is_an_error(vocab_size):
    with pytest.raises(UserError, match=f'256 .*{vocab_size} were asked for'):
        train_bpe([PROSE], vocab_size)


def test_training_merges_the_commonest_pair_first():
    tokenizer = train_bpe(['xq xq xq xq yz ab'], 259)
    assert [tokenizer.decode([id]) for id in (257, 258)] == ['xq', ' xq']


def bpe_by_hand(text, ids_of, merges):
    """Sennrich et al. 2016 in their own words: in each word, join the pair that was learned first, again and again."""
    ids = []
    for word in regex.findall(r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", text):
        parts = [bytes([byte]) for byte in word.encode()]
        while True:
            ranked = [(merges[pair], at) for at, pair in enumerate(itertools.pairwise(parts)) if pair in merges]
            if not ranked:
                break
            at = min(ranked)[1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids += [ids_of[part] for part in parts]
    return ids


@settings(deadline=None, max_examples=100)
@given(any_text.filter(lambda text: EOT not in text))
@example(PROSE)
@example(CODE)
def test_trained_bpe_encodes_as_the_algorithm_does_by_hand(text):
    ids_of, merges = table_of_bpe()
    assert bpe_tokenizer().encode(text) == bpe_by_hand(text, ids_of, merges)


@functools.cache
def table_of_bpe():
    tokenizer = bpe_tokenizer()
    ids_of = {tokenizer.decode_bytes([id]): id for id in range(tokenizer.vocab_size)}
    model = json.loads(tokenizer.contents['json'])['model']
    merges = {
        tuple(tokenizer.decode_bytes([model['vocab'][part]]) for part in pair): rank
        for rank, pair in enumerate(model['merges'])
    }
    return ids_of, merges


def changed_json(**changes):
    return json.dumps(json.loads(bpe_tokenizer().contents['json']) | changes)


@pytest.mark.parametrize(
    'changes',
    [
        {'truncation': {'direction': 'Right', 'max_length': 5, 'strategy': 'LongestFirst', 'stride': 0}},
        {
            'padding': {
                'strategy': {'Fixed': 5000},
                'direction': 'Right',
                'pad_to_multiple_of': None,
                'pad_id': 0,
                'pad_type_id': 0,
                'pad_token': EOT,
            }
        },
    ],
    ids=['truncation', 'padding'],
)
def test_truncation_and_padding_in_a_tokenizer_json_change_no_ids(changes):
    tokenizer = BPETokenizer.from_json(changed_json(**changes))
    assert tokenizer.encode(PROSE) == bpe_tokenizer().encode(PROSE)
    assert tokenizer.encode_batch([PROSE, 'a']) == bpe_tokenizer().encode_batch([PROSE, 'a'])


def test_an_id_that_the_vocabulary_leaves_out_is_an_error():
    model = json.loads(bpe_tokenizer().contents['json'])['model']
    vocab = model['vocab'] | {'zebra': 1000}
    tokenizer = BPETokenizer.from_json(changed_json(model=model | {'vocab': vocab}))
    assert tokenizer.decode([1000]) == 'zebra'
    with pytest.raises(UserError, match='700'):
        tokenizer.decode([700])
    with pytest.raises(UserError, match='700'):
        tokenizer.pieces([700])


@pytest.mark.parametrize(
    'text', ['', 'no JSON', '[]', '{}', '{"pre_tokenizer": "ByteLevel"}', '{"decoder": {"type": "WordPiece"}}', '\x00']
)
def test_file_that_is_no_byte_level_tokenizer_json_is_an_error(tmp_path, text):
    (tmp_path / 'tokenizer.json').write_text(text)
    with pytest.raises(UserError, match=r'tokenizer\.json'):
        tokenizer_from_folder(tmp_path)


def test_missing_or_binary_tokenizer_json_is_an_error(tmp_path):
    with pytest.raises(UserError, match='nowhere'):
        BPETokenizer.from_file(tmp_path / 'nowhere.json')
    (tmp_path / 'tokenizer.json').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(UserError, match=r'tokenizer\.json'):
        BPETokenizer.from_file(tmp_path / 'tokenizer.json')


@pytest.mark.parametrize(
    'files',
    [
        {'vocab.json': '{"a": 0', 'merges.txt': ''},
        {'vocab.json': '[]', 'merges.txt': ''},
        {'vocab.json': '{"a": 0}', 'merges.txt': '#version: 0.2\na b\n'},
        {'characters.json': '{"kind": "char"'},
        {'characters.json': '{"kind": "char", "chars": "abc"}'},
        {'characters.json': '[]'},
        {'meta.json': 'not JSON'},
        {'meta.json': '{"vocab_size": 3}'},
        {'meta.json': '[]'},
    ],
    ids=lambda files: ' '.join(f'{name}={text!r}' for name, text in files.items()),
)
def test_damaged_tokenizer_files_in_a_folder_are_an_error(tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError):
        tokenizer_from_folder(tmp_path)


def test_folder_without_a_tokenizer_has_none(tmp_path):
    assert tokenizer_from_folder(tmp_path) is None
    with pytest.raises(UserError, match='no tokenizer'):
        tokenizer_from_name(str(tmp_path))


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


# Ids, contents, pieces ------------------------------------------------------------------------------------------------


def test_ids_that_there_are_not_are_named(tokenizer):
    beyond = tokenizer.vocab_size
    for bad in (beyond, beyond + 46, -1):
        for method in (tokenizer.decode, tokenizer.decode_bytes, tokenizer.pieces):
            with pytest.raises(UserError, match=rf'\[{bad}\].*{tokenizer.vocab_size}'):
                method([0, bad])
    assert tokenizer.decode_bytes([beyond - 1])
    assert tokenizer.decode([]) == '' and tokenizer.pieces([]) == []


def test_contents_make_the_same_tokenizer_again(tokenizer, tmp_path):
    contents = tokenizer.contents
    torch.save(contents, tmp_path / 'contents.pt')
    for kept in (contents, json.loads(json.dumps(contents)), torch.load(tmp_path / 'contents.pt', weights_only=True)):
        assert kept == contents
        again = tokenizer_from_contents(kept)
        assert type(again) is type(tokenizer)
        assert (again.vocab_size, again.eot, again.contents) == (tokenizer.vocab_size, tokenizer.eot, contents)
        text = ''.join(FRAGMENTS)
        assert again.encode(text) == tokenizer.encode(text)
        assert again.pieces(again.encode(text)) == tokenizer.pieces(tokenizer.encode(text))


@pytest.mark.parametrize(
    'contents',
    [
        None,
        {},
        [],
        'gpt2',
        {'kind': 'gpt3'},
        {'kind': 'bpe'},
        {'kind': 'bpe', 'json': 5},
        {'kind': 'bpe', 'json': '{}'},
        {'kind': 'char', 'chars': 'abc'},
        {'kind': 'char', 'chars': [1, 2]},
        {'kind': 'char', 'chars': [['a']]},
        {'kind': 'char', 'chars': ['ab', 'c']},
    ],
    ids=repr,
)
def test_contents_of_no_known_kind_are_an_error(contents):
    with pytest.raises(UserError):
        tokenizer_from_contents(contents)


@needs_gpt2_vocabulary
def test_pieces_make_white_space_visible():
    tokenizer = gpt2_tokenizer()
    shown = tokenizer.pieces(tokenizer.encode('Once upon a\ttime\r\n\n'))
    assert shown == ['Once', '·upon', '·a', '⇥', 'time', '␍', '⏎⏎']
    assert tokenizer.pieces([tokenizer.eot]) == [EOT]


@needs_gpt2_vocabulary
def test_pieces_show_parts_of_a_character_as_their_bytes():
    tokenizer = gpt2_tokenizer()
    pieces = tokenizer.pieces(tokenizer.encode('🙂'))
    assert len(pieces) > 1
    assert all(re.fullmatch('‹[0-9a-f]{2}( [0-9a-f]{2})*›', piece) for piece in pieces)
    assert ' '.join(piece.strip('‹›') for piece in pieces) == '🙂'.encode().hex(' ')


def test_pieces_of_every_token_are_printable(tokenizer):
    for piece in tokenizer.pieces(range(tokenizer.vocab_size)):
        assert piece and piece.isprintable() and ' ' not in re.sub('‹[0-9a-f ]*›', '', piece)


def bytes_shown(pieces):
    """Read the bytes of a text back out of its pieces."""
    hidden = {'·': b' ', '⏎': b'\n', '⇥': b'\t', '␍': b'\r'}
    shown = b''
    for mark in re.findall(r'‹.*?›|[^‹]', ''.join(pieces)):
        if mark.startswith('‹U+'):
            shown += chr(int(mark[3:-1], 16)).encode()
        elif mark.startswith('‹'):
            shown += bytes.fromhex(mark[1:-1])
        else:
            shown += hidden.get(mark) or mark.encode()
    return shown


@settings(deadline=None, max_examples=200)
@given(text=(st.text(st.characters(codec='utf-8', exclude_characters='·⏎⇥␍‹›')) | fragments))
@example('a \n\t\r\x00\u2028\u00ad👩‍👩‍👧‍👦')
def test_pieces_show_all_of_a_text(byte_level, text):
    assert bytes_shown(byte_level.pieces(byte_level.encode(text))) == text.encode()


@settings(deadline=None, max_examples=50)
@given(text=fragments)
def test_pieces_show_all_of_a_text_of_characters(text):
    assert bytes_shown(char_tokenizer().pieces(char_tokenizer().encode(text))) == text.encode()


@settings(deadline=None, max_examples=100)
@given(text=any_text)
def test_bytes_of_single_tokens_join_to_the_text(byte_level, text):
    assert b''.join(byte_level.decode_bytes([id]) for id in byte_level.encode(text)) == text.encode()


def test_half_a_character_decodes_to_the_replacement_character(byte_level):
    ids = byte_level.encode('a🙂')
    assert byte_level.decode(ids[:-1]) == 'a\ufffd'
    assert byte_level.decode(ids) == 'a🙂'


# Where a response begins ----------------------------------------------------------------------------------------------


def pair_of_the_harness(encode, context, continuation):
    """lm-evaluation-harness's rule: white space at the context's end counts as the continuation's, and the
    continuation's tokens are those of the whole text from as many on as the context alone has."""
    context, moved = context.rstrip(), context[len(context.rstrip()) :]
    own = encode(context)
    return own, encode(context + moved + continuation)[len(own) :]


@settings(deadline=None, max_examples=600)
@given(pair=halves)
@example(('Once upon a time ', 'there'))
@example(('Once upon a time', ' there'))
@example(('The fog\n\n', 'lifted'))
@example(('th', 'e'))
@example(('a th', 'ere'))
@example(('The ANSWE', 'RS'))  # ·AN S WE, but ·AN SW ERS
@example(('Accordin', 'gly'))  # Acc ord in, but According ly
@example(('un\u3000', '\u2003er'))
@example(('👩\u200d', '👧'))
def test_joint_boundary_is_the_harness_rule_wherever_that_is_defined(tokenizer, pair):
    """And where it is not, what follows documents what holds instead."""
    prompt, response = pair
    encode = tokenizer.encode
    own, rest = pair_of_the_harness(encode, prompt, response)
    whole = encode(prompt + response)
    if not response:
        if prompt or tokenizer.eot is not None:
            assert tokenizer.encode_pair(prompt, '') == (encode(prompt) or [tokenizer.eot], [])
        return
    if not prompt.strip():
        if tokenizer.eot is None:
            with pytest.raises(UserError, match='prompt is empty'):
                tokenizer.encode_pair(prompt, response)
        else:
            assert tokenizer.encode_pair(prompt, response) == ([tokenizer.eot], whole)
        return
    prompt_ids, response_ids = tokenizer.encode_pair(prompt, response)
    if rest:
        assert (prompt_ids, response_ids) == (own, rest)
        if whole[: len(own)] == own:
            assert prompt_ids + response_ids == whole
            assert tokenizer.decode(prompt_ids + response_ids) == prompt + response
    else:  # a merge swallowed the boundary: the tokens that both share, then the others of the whole text
        shared = [a for a, b in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(whole, own))]
        assert (prompt_ids, response_ids) == (shared or [tokenizer.eot], whole[len(shared) :])
        assert response_ids


@needs_gpt2_vocabulary
def test_white_space_at_the_end_of_a_prompt_moves_to_the_response():
    tokenizer = gpt2_tokenizer()
    expected = (tokenizer.encode('Once upon a time'), tokenizer.encode(' there'))
    assert tokenizer.encode_pair('Once upon a time', ' there') == expected
    assert tokenizer.encode_pair('Once upon a time ', 'there') == expected


@needs_gpt2_vocabulary
def test_split_moves_back_where_a_merge_swallows_the_boundary():
    tokenizer = gpt2_tokenizer()
    (the,) = tokenizer.encode(' the')
    assert tokenizer.encode(' th') != [the]
    assert tokenizer.encode_pair('All th', 'e') == (tokenizer.encode('All'), [the])
    assert tokenizer.encode_pair(' th', 'e') == ([tokenizer.eot], [the])
    prompt_ids, response_ids = tokenizer.encode_pair('The ANSWE', 'RS')
    assert (tokenizer.pieces(prompt_ids), tokenizer.pieces(response_ids)) == (['The', '·AN'], ['SW', 'ERS'])


def test_empty_prompt_is_end_of_text_and_empty_response_has_no_ids(byte_level):
    for boundary in ('joint', 'separate'):
        assert byte_level.encode_pair('', ' the', boundary) == ([byte_level.eot], byte_level.encode(' the'))
        assert byte_level.encode_pair('the ', '', boundary) == (byte_level.encode('the '), [])
        assert byte_level.encode_pair('', '', boundary) == ([byte_level.eot], [])
    assert byte_level.encode_pair(' \n', 'the') == ([byte_level.eot], byte_level.encode(' \nthe'))
    assert byte_level.encode_prompt('') == [byte_level.eot]
    assert byte_level.encode_prompt('the ') == byte_level.encode('the ')


def test_empty_prompt_of_a_tokenizer_without_end_of_text_is_an_error():
    for boundary in ('joint', 'separate'):
        with pytest.raises(UserError, match='prompt is empty'):
            char_tokenizer().encode_pair('', 'the', boundary)
    with pytest.raises(UserError, match='prompt is empty'):
        char_tokenizer().encode_prompt('')


@settings(deadline=None, max_examples=100)
@given(prompt=fragments.filter(bool), response=fragments)
def test_separate_boundary_encodes_each_side_by_itself(tokenizer, prompt, response):
    expected = (tokenizer.encode(prompt), tokenizer.encode(response))
    assert tokenizer.encode_pair(prompt, response, boundary='separate') == expected


def test_unknown_boundary_is_an_error(tokenizer):
    with pytest.raises(UserError, match=r"'apart'.*joint.*separate"):
        tokenizer.encode_pair('the', ' fog', boundary='apart')
