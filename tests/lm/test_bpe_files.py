"""Training a BPE, against the algorithm written out here; tokenizer files of every kind, damaged ones among them."""

import functools
import itertools
import json

import pytest
import regex
from helpers.tokenizers import CODE, PROSE, VARIED, any_text, bpe_tokenizer
from hypothesis import example, given, settings
from tokenizers import Tokenizer, processors

from common.errors import UserError
from lm.tokenizer import EOT, BPETokenizer, tokenizer_from_folder, train_bpe
from lm.tokenizer_names import tokenizer_from_name

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
    with pytest.raises(UserError, match=f'vocab_size={vocab_size}: .* more than 256'):
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


@pytest.mark.slow
@pytest.mark.parametrize('name', ['PreTrainedTokenizerFast', 'GPT2Tokenizer'])
def test_what_a_tokenizer_json_puts_before_texts_is_kept_as_by_transformers(tmp_path, name):
    from transformers import AutoTokenizer

    bpe_tokenizer().save(tmp_path)
    contents = Tokenizer.from_file(str(tmp_path / 'tokenizer.json'))
    contents.post_processor = processors.TemplateProcessing(single=f'{EOT} $A', special_tokens=[(EOT, 0)])
    contents.save(str(tmp_path / 'tokenizer.json'))
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps({'tokenizer_class': name, 'bos_token': EOT}))
    (tmp_path / 'config.json').write_text('{"model_type": "gpt2", "eos_token_id": 405, "vocab_size": 410}')
    tokenizer = tokenizer_from_folder(tmp_path)
    assert tokenizer.encode_prompt('the fog') == AutoTokenizer.from_pretrained(tmp_path).encode('the fog')
    assert tokenizer.front == (0,)
    assert tokenizer.roles.ends == (405,)
