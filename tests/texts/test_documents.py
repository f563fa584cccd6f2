"""Documents come out of every format as they went in, however large the source; and each lands in one split."""

import csv
import itertools
import json
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from helpers.models import needs_gpt2_vocabulary
from helpers.scripts import PROJECT
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from lm.tokenizer import BPETokenizer, GPT2Tokenizer
from texts import corpus, documents, tables
from texts.corpus import (
    Corpus,
    assign_splits,
    cut_for_tokenizer,
    gather_documents,
    hold_out,
    place_to_halve,
    read_documents,
)
from texts.documents import cut_long, read_text, split_documents
from texts.files import files_below, input_paths, read_files
from texts.hub import hub_rows, read_hub

TALES = ['The newt went up.\n\n"Oh," it said, “why?”', 'A snail 🐌, slowly.', 'Comma, "quote"\n  and an indent.']


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_table(path, rows):
    """Write rows, dicts with the same keys, in the format that the name of the file says."""
    match Path(path).suffix.lower():
        case '.jsonl':
            Path(path).write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
        case '.csv':
            with open(path, 'w', newline='', encoding='utf-8') as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
        case '.parquet':
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def texts_in(*names, column='', separator='\n\n\n'):
    return list(read_files([Path(name) for name in names], separator, column))


# Text files ----------------------------------------------------------------------------------------------------------


def split_at_once(text, separator):
    """What split_documents does to a text in pieces, done to it in one: the definition."""
    parts = re.sub(r'^[ \t]+$', '', text, flags=re.MULTILINE).split(separator)
    return [part.strip('\n') for part in parts if part.strip('\n')]


@settings(deadline=None, max_examples=500)
@given(
    text=st.text(st.sampled_from('ab \t\n-'), max_size=60),
    separator=st.sampled_from(['\n\n\n', '\n', '--', '-\n-', ' ', 'ab']),
    cuts=st.lists(st.integers(0, 60), max_size=6),
)
def test_documents_do_not_depend_on_the_chunks_that_a_text_comes_in(text, separator, cuts):
    ends = [0, *sorted(cuts), len(text)]
    chunks = [text[start:end] for start, end in itertools.pairwise(ends)]
    assert list(split_documents(chunks, separator)) == split_at_once(text, separator)


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.sampled_from('aé🐌\r\n \ufeff')), chunk=st.integers(1, 7))
def test_a_file_is_decoded_as_python_does_it_whatever_the_chunks(tmp_path_factory, text, chunk):
    path = tmp_path_factory.getbasetemp() / 'decoded.txt'
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, 'CHUNK', chunk)
        assert ''.join(read_text(path)) == path.read_text(encoding='utf-8-sig')


@pytest.mark.parametrize('chunk', [1, 3, 64, 2**20])
@pytest.mark.parametrize('bad', [b'\xff', b'\xc3', b'\xf0\x9f\x90'])
def test_bytes_that_are_not_utf8_are_placed_exactly(monkeypatch, chunk, bad):
    monkeypatch.setattr(documents, 'CHUNK', chunk)
    good = '\ufeffé🐌\r\n'.encode() * 5
    for after in (b'', b'more'):
        Path('bad.txt').write_bytes(good + bad + after)
        with pytest.raises(UserError, match=rf'bad\.txt is not UTF-8 text \(byte {len(good)}\)'):
            texts_in('bad.txt')


def test_lines_of_white_space_count_as_empty():
    text = 'One\n \nmore\n  \n\t\t\nTwo\n\n\n\n\n \nThree\n   '
    assert list(split_documents([text], '\n\n\n')) == ['One\n\nmore', 'Two', 'Three']


def test_empty_lines_around_documents_go_and_indents_stay():
    text = '\n\n\n\n  One\n\n\n\n\n\n\n  Two\n two\n\n\n\n'
    assert list(split_documents([text], '\n\n\n')) == ['  One', '  Two\n two']


# Long documents ------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(text=st.text(st.sampled_from('ab \n'), max_size=200), chunk=st.integers(1, 50))
def test_a_long_document_is_cut_and_loses_nothing_but_empty_lines(text, chunk):
    chunks = [text[start : start + chunk] for start in range(0, len(text), chunk)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, 'LONGEST', 10)
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
        ('a\nbbbbbbbbbbbbb', ['a\nbbbbbbbb', 'bbbbb']),  # the line's end is too near to the beginning
        ('aaaaaaaaaabbbbbbbbbbc', ['aaaaaaaaaa', 'bbbbbbbbbb', 'c']),
        ('aaaaaaaaaa', ['aaaaaaaaaa']),
    ],
)
def test_a_long_document_is_cut_after_a_line_else_a_word_else_anywhere(monkeypatch, text, parts):
    monkeypatch.setattr(documents, 'LONGEST', 10)
    assert list(cut_long(text)) == parts
    assert list(split_documents([text], '\n\n\n')) == parts
    write_table('rows.jsonl', [{'text': text}])
    assert texts_in('rows.jsonl') == parts


def test_a_separator_is_found_however_long_the_documents(monkeypatch):
    """Also where one has only half arrived while a long document is being cut."""
    monkeypatch.setattr(documents, 'LONGEST', 10)
    for length in range(5, 40):
        text = 'a' * length + '<| end |>' + 'b' * length
        for chunk in (1, 4, 7):
            found = ''.join(split_documents([text[at : at + chunk] for at in range(0, len(text), chunk)], '<| end |>'))
            assert found == 'a' * length + 'b' * length


@pytest.mark.parametrize(
    'text', ['word ' * 2_000_000, 'x' * 10_000_000, 'word\n\n\n' * 1_200_000], ids=['words', 'x', 'docs']
)
def test_a_file_is_never_held_as_a_whole(monkeypatch, text):
    monkeypatch.setattr(documents, 'LONGEST', 2**17)
    Path('long.txt').write_text(text)
    tracemalloc.start()
    try:
        for _ in read_files([Path('long.txt')], '\n\n\n'):
            pass
        assert tracemalloc.get_traced_memory()[1] < 2_000_000  # bytes at the peak, of ten million
    finally:
        tracemalloc.stop()


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
def test_pieces_have_the_tokens_of_the_whole(tokenizer, words):
    text = 'a b'.join(words)  # the smallest piece below is longer than any run without a place to cut
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, 'PIECE', 30)
        parts = list(cut_for_tokenizer(text))
    assert ''.join(parts) == text
    assert all(len(part) <= 30 for part in parts)
    assert [id for part in parts for id in tokenizer.encode(part)] == tokenizer.encode(text)


# Tables --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['rows.jsonl', 'rows.csv', 'rows.parquet', 'ROWS.JSONL'])
def test_each_row_is_a_document(name):
    write_table(name, [{'id': number, 'text': tale} for number, tale in enumerate(TALES)])
    assert texts_in(name) == texts_in(name, column='text') == TALES


table_text = st.text(st.characters(codec='utf-8', exclude_characters='\0'), max_size=20)


@pytest.mark.parametrize('suffix', ['.jsonl', '.csv', '.parquet'])
@settings(deadline=None, max_examples=60)
@given(texts=st.lists(table_text, min_size=1, max_size=8))
def test_any_text_comes_through_any_table(tmp_path_factory, suffix, texts):
    path = tmp_path_factory.getbasetemp() / f'any{suffix}'
    write_table(path, [{'number': 1, 'text': text} for text in texts])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, 'CHUNK', 5)
        found = texts_in(path, column='text')
    assert found == [(split_at_once(re.sub('\r\n?', '\n', text), '\0') or [''])[0] for text in texts]


@pytest.mark.parametrize('name', ['rows.jsonl', 'rows.csv', 'rows.parquet'])
def test_rows_without_text_are_empty(name):
    write_table(name, [{'id': 7, 'text': text} for text in ('one', '', ' \n\t', None, 'two')])
    assert texts_in(name, column='text') == ['one', '', '', '', 'two']


def test_a_row_of_a_jsonl_may_lack_the_column():
    Path('rows.jsonl').write_text('{"text": "one"}\n\n{"id": 3}\n{"text": "half a pair \\ud800"}')
    assert texts_in('rows.jsonl') == ['one', '', 'half a pair \ufffd']


@pytest.mark.parametrize('name', ['rows.jsonl', 'rows.csv', 'rows.parquet'])
def test_several_text_columns_are_listed_with_examples(name):
    write_table(name, [{'id': '17', 'title': 'The Newt', 'story': 'x' * 99, 'year': 1999.5}] * 3)
    with pytest.raises(UserError, match=r"--text_column: title \('The Newt'\), story \('x{29}…'\)$"):
        texts_in(name)
    assert texts_in(name, column='title') == ['The Newt'] * 3


@pytest.mark.parametrize('name', ['rows.jsonl', 'rows.csv', 'rows.parquet'])
@pytest.mark.parametrize(
    ('column', 'words'),
    [
        ('', r'text column \(its columns: id, year\)'),
        ('yaer', 'yaer; did you mean year'),
        ('text', 'text; there are: id, year'),
    ],
)
def test_a_column_that_there_is_not(name, column, words):
    write_table(name, [{'id': '17', 'year': 1999}, {'id': '18', 'year': 2001}])
    with pytest.raises(UserError, match=rf'{name} has no (column --text_column=)?{words}'):
        texts_in(name, column=column)


def test_a_column_that_is_not_text():
    write_table('rows.jsonl', [{'id': 1, 'text': 'one'}])
    with pytest.raises(UserError, match=r"'id' holds '1', which is not text"):
        texts_in('rows.jsonl', column='id')


@pytest.mark.parametrize(
    ('name', 'content', 'words'),
    [
        ('bad.jsonl', b'{"text": "one"}\n\n{"text": "two"\n', r'bad\.jsonl, line 3 is not JSON'),
        ('bad.jsonl', b'{"text": "one"}\n["two"]\n', r'bad\.jsonl, line 2 is not a JSON object'),
        ('bad.jsonl', b'[' * 100_000, r'bad\.jsonl, line 1 is not JSON'),
        ('bad.jsonl', b'{"text": "one"}\n{"text": "sch\xf6n"}', r'bad\.jsonl is not UTF-8 text \(byte 29\)'),
        ('bad.csv', b'text\none\n"two" or three\n', r'bad\.csv, line 3 is not CSV'),
        ('bad.csv', b'text\none\n"two\n', r'bad\.csv, line 3 is not CSV'),
        ('bad.csv', b'id,text\n1,one\n2,two, and three\n', r'bad\.csv, line 3 has more fields'),
        ('bad.parquet', b'PAR1 and then nothing', r'bad\.parquet cannot be read as Parquet'),
    ],
)
def test_a_damaged_table_is_an_error_that_names_the_place(name, content, words):
    Path(name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        texts_in(name)


def test_a_row_too_long_to_hold_is_an_error(monkeypatch):
    monkeypatch.setattr(tables, 'LONGEST_ROW', 50)
    Path('rows.jsonl').write_text(json.dumps({'text': 'x' * 99}))
    with pytest.raises(UserError, match='more than 50 characters'):
        texts_in('rows.jsonl')
    Path('rows.csv').write_text('text\n"' + 'x y\n' * 99)  # a quotation that never ends
    with pytest.raises(UserError, match=r'rows\.csv, line \d+ is not CSV: field larger'):
        texts_in('rows.csv')


def test_a_table_without_rows_has_no_documents():
    Path('rows.jsonl').write_text('')
    Path('rows.csv').write_text('text\n')
    assert texts_in('rows.jsonl', 'rows.csv') == []


# Which files ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_every_file_below_that_can_be_read_sorted():
    names = ['b/2.txt', 'a.jsonl', 'b/1.csv', 'c.parquet', 'b/deep/0.TXT', 'notes.md', '.hidden/d.txt', 'b/.e.txt']
    for name in names:
        path = Path('texts', name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('')
    expected = [Path('texts', name) for name in ('a.jsonl', 'b/1.csv', 'b/2.txt', 'b/deep/0.TXT', 'c.parquet')]
    assert files_below(Path('texts')) == expected
    assert input_paths('texts') == expected
    assert input_paths('texts/b/2.txt,texts') == [Path('texts/b/2.txt'), *(e for e in expected if e.name != '2.txt')]
    assert input_paths('tex*') == expected


# The hub, of which a folder on the disk is an example that needs no network -------------------------------------------


@pytest.fixture
def hub(tmp_path):
    """A folder as a dataset on the hub looks: two splits, one of them in two files of another format."""
    (tmp_path / 'hub').mkdir()
    for number in range(2):
        rows = [{'number': 10 * number + n, 'text': f'Tale {n} of {number}.'} for n in range(10)]
        write_table(tmp_path / 'hub' / f'train-{number}.parquet', rows)
    write_table(tmp_path / 'hub' / 'test-0.parquet', [{'number': 99, 'text': 'The last tale.'}])
    return str(tmp_path / 'hub')


def test_a_hub_dataset_is_read_row_by_row(hub):
    texts, source = read_hub(hub)
    assert list(texts) == [f'Tale {n} of {number}.' for number in range(2) for n in range(10)]
    assert source == {'hf_dataset': hub, 'config': None, 'split': 'train', 'revision': None}
    texts, source = read_hub(hub, config='default', split='test', column='text')
    assert list(texts) == ['The last tale.']
    assert (source['config'], source['split']) == ('default', 'test')


@pytest.mark.parametrize(
    ('asked', 'words'),
    [
        ({'split': 'dev'}, ['--hf_split=dev', 'train', 'test']),
        ({'config': 'large'}, ['--hf_config=large', 'default']),
        ({'column': 'story'}, ['--text_column=story', 'number, text']),
        ({'name': 'no such name!'}, ['--hf_dataset=no such name!', '--input']),
    ],
)
def test_what_a_hub_dataset_has_not_is_an_error(hub, asked, words):
    with pytest.raises(UserError) as error:
        list(read_hub(**{'name': hub} | asked)[0])
    for word in words:
        assert word in str(error.value)
    assert '\n' not in str(error.value)


def test_the_revision_of_the_hub_is_asked_for_and_kept_to(monkeypatch):
    import datasets
    import huggingface_hub

    seen = {}

    def load_dataset(*arguments, **rest):
        seen.update(arguments=arguments, **rest)
        return datasets.Dataset.from_dict({'text': TALES}).to_iterable_dataset()

    monkeypatch.setattr(huggingface_hub.HfApi, 'dataset_info', lambda self, name: type('Info', (), {'sha': 'c0ffee'}))
    monkeypatch.setattr(datasets, 'load_dataset', load_dataset)
    texts, source = read_hub('someone/tales', 'short', 'validation')
    assert list(texts) == TALES
    assert seen == {
        'arguments': ('someone/tales', 'short'),
        'split': 'validation',
        'revision': 'c0ffee',
        'streaming': True,
    }
    assert source['revision'] == 'c0ffee'


def test_a_network_that_goes_while_reading_is_an_error():
    def rows():
        yield {'text': 'one'}
        raise ConnectionError('it went')

    found = hub_rows(rows(), '--hf_dataset=tales')
    assert next(found) == {'text': 'one'}
    with pytest.raises(UserError, match=r'--hf_dataset=tales .* it went'):
        next(found)


# Gathering and splitting ---------------------------------------------------------------------------------------------


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


sizes_of_documents = st.lists(st.integers(1, 400), min_size=2, max_size=60).map(np.array)


def held(chars, val, test=0.0, seed=1337):
    return hold_out(chars, [round(1 - val - test, 9), val, test], seed)


@settings(deadline=None, max_examples=300)
@given(chars=sizes_of_documents, val=st.floats(0, 1), test=st.floats(0, 1), seed=st.integers(0, 5))
def test_shares_are_as_near_as_whole_documents_allow(chars, val, test, seed):
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


def test_a_test_split_leaves_val_as_it_was():
    chars = 100 + np.arange(400) % 300
    assert ((held(chars, 0.1) == 1) == (held(chars, 0.1, 0.2) == 1)).all()


def test_shares_of_many_documents_are_near_what_is_asked():
    chars = 100 + np.arange(400) % 300
    split = held(chars, 0.1, 0.05)
    assert chars[split == 1].sum() / chars.sum() == pytest.approx(0.1, abs=0.003)
    assert chars[split == 2].sum() / chars.sum() == pytest.approx(0.05, abs=0.003)


def test_val_is_drawn_from_everywhere_not_from_one_end():
    numbers = np.flatnonzero(held(np.full(1000, 50), 0.1) == 1)
    assert np.mean(numbers) == pytest.approx(499.5, abs=4 * 288.7 / 100**0.5)  # four standard errors


def test_the_same_seed_splits_the_same_and_another_differently():
    chars = np.full(100, 50)
    assert (held(chars, 0.3, seed=1) == held(chars, 0.3, seed=1)).all()
    assert (held(chars, 0.3, seed=1) != held(chars, 0.3, seed=2)).any()


@pytest.mark.parametrize(
    ('text', 'fraction', 'expected'),
    [
        ('aaaa aaaa\naaaa\n\nbb bb\nbb', 0.6, 'aaaa aaaa\naaaa\n\n'),  # a paragraph's end, though a line's is nearer
        ('aa\n\nbb\n\ncc\n\ndd', 0.5, 'aa\n\nbb\n\n'),
        ('aa\n\nbb\n\ncc\n\ndd', 0.8, 'aa\n\nbb\n\ncc\n\n'),
        ('aa aa\nbb bb\ncc cc', 0.4, 'aa aa\n'),
        ('aa aa bb bb cc cc', 0.5, 'aa aa bb '),
        ('aaaaaaaaaa', 0.7, 'aaaaaaa'),
        ('中文中文中文', 0.5, '中文中'),
    ],
)
def test_one_text_is_cut_after_a_paragraph_else_a_line_else_a_word_else_anywhere(text, fraction, expected):
    assert text[: place_to_halve(text, fraction)] == expected


def test_one_text_of_a_title_and_one_long_paragraph_is_not_cut_after_the_title():
    text = 'The Title\n\n' + 'word ' * 2000
    assert place_to_halve(text, 0.9) / len(text) == pytest.approx(0.9, abs=0.05)


def corpus_of(*texts):
    corpus, _ = gather_documents(texts, Path('gathered'), keep_duplicates=True)
    return corpus


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.sampled_from('ab é\n'), min_size=20), val=st.floats(0.2, 0.4), test=st.floats(0.2, 0.4))
def test_one_document_is_cut_into_all_splits_and_loses_nothing(tmp_path_factory, text, val, test):
    path = tmp_path_factory.getbasetemp() / 'one'
    corpus, _ = gather_documents([text], path, keep_duplicates=True)
    split = assign_splits(corpus, [1 - val - test, val, test], seed=1)
    assert split.tolist() == [0, 1, 2]
    assert ''.join(read_documents(path, corpus.starts, corpus.ends)) == text


@pytest.mark.parametrize(
    ('texts', 'shares', 'words'),
    [
        (['x'], [0.9, 0.1, 0], '1 document: too little for train, val, nothing is left for val'),
        (['one', 'two'], [0.8, 0.1, 0.1], '2 documents: too little for train, val, test, nothing is left for val'),
    ],
)
def test_too_little_for_every_split_that_is_asked_for_is_an_error(texts, shares, words):
    with pytest.raises(UserError, match=words):
        assign_splits(corpus_of(*texts), shares, seed=1)


def test_the_numbers_held_of_a_document_are_few_bytes():
    corpus = corpus_of(*(f'Tale {number}' for number in range(1000)))
    assert isinstance(corpus, Corpus)
    assert sum(array.nbytes for array in (corpus.starts, corpus.ends, corpus.chars)) == 20 * 1000
