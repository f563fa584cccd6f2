"""A running text: its segments, the same ids in pieces as in one, files of all encodings, and flat memory."""

import json
import os
import subprocess
import sys
from itertools import chain

import numpy as np
import pytest
from helpers.models import needs_gpt2_vocabulary
from helpers.scripts import PROJECT

import prepare_bin
from common.errors import UserError
from common.notes import forget_notes
from evaluation import running_text
from evaluation.running_text import TextSource, cut_before_space, encode_chunks, open_text
from lm.tokenizer import BPETokenizer, CharTokenizer, GPT2Tokenizer, tokenizer_from_folder, train_bpe


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = 'Once upon a time, in 東京 🦊, there was\na naïve little fox who counted: 1, 2, 3.\n' * 9
    (tmp_path / 'text.txt').write_text(written, encoding='utf-8')
    return written


@pytest.mark.slow
@pytest.mark.parametrize('stride', [1, 3, 8, 16])
def test_every_token_and_byte_is_in_one_segment_for_both_tokenizers(text, stride):
    bpe, chars = tokenizer_from_folder(PROJECT / 'models' / 'tiny'), CharTokenizer(sorted(set(text)))
    chars.eot = 0  # a character tokenizer has none; any id will do
    source = TextSource('text.txt', [bpe, chars, bpe], [16, 24, 20], stride)
    segments = [unit for _, unit in source.units()]
    assert len(segments) == source.count
    for which, tokenizer in enumerate((bpe, chars, bpe)):
        assert list(chain(*(unit[which][1] for unit in segments))) == tokenizer.encode(text)
    ends = [0, 0, 0]
    for unit in segments:
        sizes = [len(tokenizer.decode_bytes(pair[1])) for tokenizer, pair in zip((bpe, chars, bpe), unit)]
        ends = [end + size for end, size in zip(ends, sizes)]
        assert ends[0] == ends[2]
        assert 0 <= ends[1] - ends[0] < 4  # a character belongs to the segment that it starts in
    assert [index for index, _ in source.units(first=5)] == list(range(5, source.count))


def test_a_dataset_is_taken_as_it_is_and_decoded_for_another_tokenizer(text):
    with open('docs.txt', 'w') as file:
        file.write('\n\n\n'.join([text] * 5))
    settings = {'input': 'docs.txt', 'dataset': 'docs', 'tokenizer': 'tiny', 'val_fraction': 0.5}
    prepare_bin.main(prepare_bin.Settings(**settings))
    tiny, other = tokenizer_from_folder(PROJECT / 'models' / 'tiny'), train_bpe([text], 300)
    ids = np.fromfile('data/docs/val.bin', np.uint16).tolist()
    assert ids.count(tiny.eot) > 1
    source = TextSource('docs', [tiny, other], [16, 16])
    for which, tokenizer in enumerate((tiny, other)):
        found = list(chain(*(unit[which][1] for _, unit in source.units())))
        assert tokenizer.decode(found) == tiny.decode(ids)
        assert found.count(tokenizer.eot) == ids.count(tiny.eot)


def test_each_split_of_a_dataset_has_a_name(text):
    with open('docs.txt', 'w') as file:
        file.write('\n\n\n'.join(f'{number} {text}' for number in range(9)))
    settings = {'input': 'docs.txt', 'dataset': 'docs', 'tokenizer': 'tiny', 'val_fraction': 0.3}
    prepare_bin.main(prepare_bin.Settings(**settings, test_fraction=0.3))
    tiny = tokenizer_from_folder(PROJECT / 'models' / 'tiny')
    for name, split in {'docs': 'val', 'docs/val': 'val', 'docs/train': 'train', 'docs/test': 'test'}.items():
        source = TextSource(name, [tiny], [16])
        found = list(chain(*(pair[1] for _, (pair,) in source.units())))
        assert found == np.fromfile(f'data/docs/{split}.bin', np.uint16).tolist()
    prepare_bin.main(prepare_bin.Settings(**settings))
    prepare_bin.main(prepare_bin.Settings(**settings | {'dataset': 'docs/train'}))  # a dataset of that name comes first
    assert TextSource('docs/train', [tiny], [16]).sha256 == TextSource('docs/train/val', [tiny], [16]).sha256
    with pytest.raises(UserError, match=r'test\.bin; make it with: .* --test_fraction=0\.1'):
        TextSource('docs/test', [tiny], [16])


def test_what_is_neither_a_file_nor_a_dataset():
    with pytest.raises(UserError, match='neither a text file nor a dataset'):
        TextSource('nothing', [tokenizer_from_folder(PROJECT / 'models' / 'tiny')], [16])


def test_a_folder_of_texts_is_refused_with_the_way_to_score_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'books').mkdir()
    with pytest.raises(UserError, match=r'--text=books is a folder; .*--input=books --dataset=books .*--text=books$'):
        open_text('books')
    (tmp_path / 'data' / 'mine').mkdir(parents=True)
    np.arange(9, dtype=np.uint16).tofile(tmp_path / 'data' / 'mine' / 'val.bin')
    assert list(open_text('mine')[2]) == list(open_text('data/mine')[2]) == list(range(9))


def test_a_parquet_table_is_refused_with_the_way_to_score_its_texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a.parquet').write_bytes(b'PAR1')
    with pytest.raises(UserError, match=r'--text=a\.parquet is a table, .*--input=a\.parquet --dataset=mine'):
        open_text('a.parquet')


def test_a_sentence_instead_of_a_file_is_refused_with_the_way_to_score_it():
    with pytest.raises(UserError, match=r'--text=The quick fox .*--fixed_response="the text"'):
        open_text('The quick fox')


@pytest.mark.parametrize(
    ('name', 'content', 'words'),
    [
        ('a.jsonl', '{"text": "The fox."}\n', 'is scored as it is, with all marks of .jsonl; to score the texts in it'),
        ('a.csv', 'text\nThe fox.\n', 'is scored as it is, with all marks of .csv'),
        ('a.html', '<!DOCTYPE html>\n<p>The fox.', 'looks like a web page'),
    ],
)
def test_a_table_or_a_web_page_is_scored_as_it_is_with_a_note(tmp_path, monkeypatch, capsys, name, content, words):
    monkeypatch.chdir(tmp_path)
    forget_notes()
    (tmp_path / name).write_text(content)
    assert ''.join(open_text(name)[1]()) == content
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(('stride', 'words'), [(0, 'stride=0'), (17, '1 to 16')])
def test_an_invalid_stride(text, stride, words):
    with pytest.raises(UserError, match=words):
        TextSource('text.txt', [tokenizer_from_folder(PROJECT / 'models' / 'tiny')], [16, 32], stride)


def test_an_empty_text_and_a_tokenizer_without_a_beginning(tmp_path, text):
    tiny = tokenizer_from_folder(PROJECT / 'models' / 'tiny')
    (tmp_path / 'empty.txt').write_text('')
    with pytest.raises(UserError, match=r'empty\.txt is empty'):
        TextSource('empty.txt', [tiny], [16])
    chars = CharTokenizer(sorted(set(text)))
    (tmp_path / 'one.txt').write_text('O')
    with pytest.raises(UserError, match='only one token, which has no probability'):
        TextSource('one.txt', [chars], [16])
    for stride in (1, 5, 16):
        segments = [pair for _, (pair,) in TextSource('text.txt', [chars], [16], stride).units()]
        assert list(chain(*(response for _, response in segments))) == chars.encode(text)[1:]
        assert all(prompt and len(prompt) + len(response) <= 17 for prompt, response in segments)
        assert segments[0][0] == chars.encode(text[0])


# Encoding in pieces -------------------------------------------------------------------------------------------------

STORIES = PROJECT / 'data' / 'childrens_stories' / 'childrens_stories.txt'
ODD = 'a  b \n\n c\t\n\x1c d\u00a0 e.\n<|endoftext|> don\u2019t 12 34 \u6771\u4eac ' * 300


def bpe_with(**changes):
    """Return the tokenizer of tiny with some parts of its tokenizer.json changed."""
    contents = json.loads(tokenizer_from_folder(PROJECT / 'models' / 'tiny').contents['json'])
    return BPETokenizer.from_json(json.dumps(contents | changes))


@pytest.mark.parametrize('size', [1, 50, 5000])
@pytest.mark.parametrize('name', ['tiny', pytest.param('gpt2', marks=needs_gpt2_vocabulary), 'characters'])
def test_a_text_in_pieces_has_the_same_ids_as_the_whole(monkeypatch, name, size):
    text = STORIES.read_text(encoding='utf-8')[:30_000] + ODD
    tokenizer = {
        'tiny': lambda: tokenizer_from_folder(PROJECT / 'models' / 'tiny'),
        'gpt2': GPT2Tokenizer,
        'characters': lambda: CharTokenizer(sorted(set(text))),
    }[name]()
    monkeypatch.setattr(running_text, 'PIECE', size)
    chunks = [text[start : start + 700] for start in range(0, len(text), 700)]
    pieces = list(cut_before_space(chunks))
    assert ''.join(pieces) == text
    assert len(pieces) > min(20, len(text) // size // 2)
    assert encode_chunks(chunks, tokenizer, 'text').tolist() == tokenizer.encode(text)


def test_a_run_without_spaces_is_not_cut():
    pieces = list(cut_before_space(['ab' * 40, 'cd' * 40, 'e f', ' g'], size=10))
    assert pieces == ['ab' * 40 + 'cd' * 40 + 'e', ' f g']


SPACE = {'type': 'ByteLevel', 'add_prefix_space': True, 'trim_offsets': True, 'use_regex': True}
ONE_WORD = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': False}


@pytest.mark.parametrize(
    'changes', [{'pre_tokenizer': SPACE}, {'pre_tokenizer': ONE_WORD}, {'normalizer': {'type': 'NFC'}}]
)
def test_a_tokenizer_without_safe_places_encodes_the_text_as_a_whole_and_says_so(monkeypatch, capsys, changes):
    forget_notes()
    tokenizer = bpe_with(**changes)
    assert not tokenizer.can_be_cut
    monkeypatch.setattr(running_text, 'PIECE', 100)
    text = STORIES.read_text(encoding='utf-8')[:2000]
    assert encode_chunks([text[:500], text[500:]], tokenizer, 'book.txt').tolist() == tokenizer.encode(text)
    assert 'note: book.txt: this tokenizer has no places where a text can be cut safely' in capsys.readouterr().err


MEMORY = """
import resource, sys
from evaluation.running_text import TextSource
from lm.tokenizer import GPT2Tokenizer, tokenizer_from_folder
tokenizer = GPT2Tokenizer() if sys.argv[2] == 'gpt2' else tokenizer_from_folder(sys.argv[2])
source = TextSource(sys.argv[1], [tokenizer], [256])
count = sum(1 for _ in source.units())
assert count == source.count
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def memory_of_text(folder, megabytes, tokenizer):
    """Return the peak memory in MiB of a process that reads a text of this size and cuts it into segments."""
    stories = STORIES.read_text(encoding='utf-8')
    (folder / 'book.txt').write_text((stories * (megabytes * 10**6 // len(stories) + 1))[: megabytes * 10**6])
    command = [sys.executable, '-c', MEMORY, 'book.txt', tokenizer]
    env = {**os.environ, 'PYTHONPATH': str(PROJECT)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.slow
def test_the_memory_for_a_text_does_not_grow_with_it(tmp_path):
    tiny = str(PROJECT / 'models' / 'tiny')
    assert memory_of_text(tmp_path, 4, tiny) - memory_of_text(tmp_path, 1, tiny) < 20  # 180 as a whole


@pytest.mark.slow
@needs_gpt2_vocabulary
def test_a_text_of_50_mb_takes_hardly_more_memory_than_one_of_5_mb(tmp_path):
    assert memory_of_text(tmp_path, 50, 'gpt2') - memory_of_text(tmp_path, 5, 'gpt2') < 100  # it took 6.9 GB


# Files as people have them ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16'])
@pytest.mark.parametrize('newline', ['\n', '\r\n'])
def test_a_text_from_windows_is_the_same_text(text, encoding, newline):
    tiny = tokenizer_from_folder(PROJECT / 'models' / 'tiny')
    with open('windows.txt', 'w', encoding=encoding, newline=newline) as file:
        file.write(text)
    ids = [[pair for _, pair in TextSource(name, [tiny], [16]).units()] for name in ('text.txt', 'windows.txt')]
    assert ids[0] == ids[1]


def test_a_text_in_another_encoding_is_refused_with_the_byte(text):
    with open('old.txt', 'w', encoding='latin-1') as file:
        file.write('na\xefve')
    with pytest.raises(UserError, match=r'old\.txt is not UTF-8 text \(byte 2 is 0xef\)'):
        TextSource('old.txt', [tokenizer_from_folder(PROJECT / 'models' / 'tiny')], [16])
