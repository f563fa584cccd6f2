"""Token ids and bytes against tiktoken and transformers; round trips; tokens made visible."""

import functools
import hashlib
import json
import os
import re
from pathlib import Path

import pytest
import tiktoken
import torch
from helpers.models import needs_gpt2_vocabulary
from helpers.tokenizers import FRAGMENTS, PROSE, VARIED, any_text, char_tokenizer, fragments, gpt2_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.errors import UserError
from lm.tokenizer import EOT, BPETokenizer, tokenizer_from_contents, tokenizer_from_folder
from lm.tokenizer_names import tokenizer_from_name

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


# Threads --------------------------------------------------------------------------------------------------------------


def test_what_is_said_while_a_text_is_encoded_is_not_lost(capfd):
    tokenizer = tokenizer_from_folder(Path('models/tiny'))
    library = tokenizer._tokenizer

    class Library:
        def encode(self, text, **options):
            os.write(2, b'said by another thread\n')
            return library.encode(text, **options)

    tokenizer._tokenizer = Library()
    assert tokenizer.encode('Once upon a time') == library.encode('Once upon a time').ids
    assert capfd.readouterr().err == 'said by another thread\n'
