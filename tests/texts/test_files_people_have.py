"""Files as people have them are read for what they are, or refused with a way out; nothing is taken silently."""

import bz2
import gzip
import json
import lzma
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.feather
import pytest
from helpers.documents import TALES, texts_in, write_table

from common.errors import UserError
from common.notes import forget_notes
from texts.readers import input_paths, read_files

ROWS = [{'id': number, 'text': tale} for number, tale in enumerate(TALES)]


@pytest.fixture(autouse=True)
def no_earlier_notes():
    forget_notes()


def zip_files(name, **contents):
    with zipfile.ZipFile(name, 'w') as archive:
        for member, content in contents.items():
            archive.writestr(member.replace('_DOT_', '.').replace('_IN_', '/'), content)


def documents_of(text, separator='\n\n\n'):
    """Return what prepare_bin.py reads from --input=text."""
    return list(read_files(input_paths(text), separator))


# Compressed files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['.txt', '.jsonl', '.csv', '.tsv'])
@pytest.mark.parametrize('packer', [gzip, bz2, lzma])
def test_a_compressed_download_is_read_like_the_file_inside(kind, packer):
    if kind == '.txt':
        Path('tales.txt').write_text('\n\n\n'.join(TALES), encoding='utf-8')
    elif kind == '.tsv':
        Path('tales.tsv').write_text('id\ttext\n' + ''.join(f'{n}\t{json.dumps(t)}\n' for n, t in enumerate('abc')))
    else:
        write_table(f'tales{kind}', ROWS)
    ending = {gzip: '.gz', bz2: '.bz2', lzma: '.xz'}[packer]
    Path(f'tales{kind}{ending}').write_bytes(packer.compress(Path(f'tales{kind}').read_bytes()))
    assert documents_of(f'tales{kind}{ending}') == documents_of(f'tales{kind}') != []


def test_a_csv_that_pandas_or_a_mac_zipped_is_read():
    write_table('tales.csv', ROWS)
    zip_files('tales.csv.zip', tales_DOT_csv=Path('tales.csv').read_bytes(), __MACOSX_IN_tales='resources')
    assert documents_of('tales.csv.zip') == TALES


@pytest.mark.parametrize(
    ('name', 'make', 'words'),
    [
        ('a.csv.zip', lambda name: zip_files(name, a='x', b='y'), r'a\.csv\.zip contains 2 files; unpack it first'),
        ('a.zip', lambda name: zip_files(name, a='x'), r'a\.zip cannot be read: .*; unpack it first'),
        ('a.tar.gz', lambda name: Path(name).write_bytes(b''), r'a\.tar\.gz cannot be read: .*; unpack it first'),
        ('a.txt.gz', lambda name: Path(name).write_bytes(b'no gzip'), r'cannot read a\.txt\.gz: Not a gzipped file'),
        ('a.txt.gz', lambda name: Path(name).write_bytes(gzip.compress(b'fox')[:-9]), r'cannot unpack a\.txt\.gz: '),
        ('a.txt.xz', lambda name: Path(name).write_bytes(b'no xz'), r'cannot unpack a\.txt\.xz: '),
        ('a.txt.zip', lambda name: Path(name).write_bytes(b'no zip'), r'cannot unpack a\.txt\.zip: .*not a zip'),
        ('a.txt', lambda name: Path(name).write_bytes(gzip.compress(b'fox')), r'gzip; its name must end in \.gz'),
        ('a.txt', lambda name: Path(name).write_bytes(bz2.compress(b'fox')), r'bzip2; its name must end in \.bz2'),
    ],
)
def test_a_compressed_file_that_cannot_be_read_is_refused(name, make, words):
    make(name)
    with pytest.raises(UserError, match=words):
        documents_of(name)


# Folders --------------------------------------------------------------------------------------------------------------


def save_to_disk(folder, tales):
    """Write a folder as `datasets.Dataset.save_to_disk` does."""
    folder.mkdir(parents=True)
    table = pyarrow.table({'text': tales})
    path = str(folder / 'data-00000-of-00001.arrow')
    with pyarrow.OSFile(path, 'wb') as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    (folder / 'dataset_info.json').write_text('{"features": {"text": {"dtype": "string"}}, "splits": {}}')
    (folder / 'state.json').write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')


def test_a_dataset_that_save_to_disk_wrote_is_read(capsys):
    save_to_disk(Path('saved/train'), TALES[:2])
    save_to_disk(Path('saved/test'), TALES[2:])
    Path('saved/dataset_dict.json').write_text('{"splits": ["train", "test"]}')
    assert documents_of('saved/train') == TALES[:2]
    assert documents_of('saved') == [*TALES[2:], *TALES[:2]]
    assert '2 files are read (test/data-00000' in capsys.readouterr().err  # the test part, too


def test_a_feather_file_from_pandas_is_read():
    pyarrow.feather.write_feather(pyarrow.table({'text': TALES}), 'tales.feather')
    assert documents_of('tales.feather') == TALES
    Path('bad.arrow').write_bytes(b'no arrow')
    with pytest.raises(UserError, match=r'bad\.arrow cannot be read as Arrow: '):
        documents_of('bad.arrow')


def test_a_folder_of_all_kinds_says_what_is_read_and_what_is_not(capsys):
    Path('mine').mkdir()
    for name in ('a.txt', 'b.docx', 'c.docx', 'notes.md', 'LICENSE', '.DS_Store', '._a.txt', '~$a.txt'):
        Path('mine', name).write_text('The fox.')
    assert documents_of('mine') == ['The fox.']
    expected = 'note: mine: 1 file is read (a.txt); others are left out (2 .docx, '
    assert capsys.readouterr().err.startswith(expected)


def test_a_folder_of_notes_from_obsidian_is_refused_with_the_pattern_that_reads_it():
    Path('vault/.obsidian').mkdir(parents=True)
    Path('vault/.obsidian/app.json').write_text('{}')
    Path('vault/Daily').mkdir()
    Path('vault/Daily/Fox.md').write_text('The [[fox]] ran.')
    with pytest.raises(UserError, match=r'but \.md; name them .*--input="vault/\*\*/\*\.md"') as refused:
        input_paths('vault')
    pattern = str(refused.value).partition('--input="')[2].partition('"')[0]
    assert documents_of(pattern) == ['The [[fox]] ran.']


def test_a_folder_of_word_files_is_refused_with_a_way_out():
    Path('letters').mkdir()
    Path('letters/a.docx').write_bytes(b'PK\3\4')
    with pytest.raises(UserError, match=r'contains no .* files, but \.docx; save it as plain text'):
        input_paths('letters')


@pytest.mark.parametrize(
    ('name', 'way_out'),
    [
        ('a.ipynb', 'save the notebook as Markdown'),
        ('a.yaml', 'save it as .json'),
        ('a.xml', 'save it as plain text'),
        ('a.srt', 'if it is plain text, rename it to .txt'),
        ('a', 'if it is plain text, rename it to .txt'),
        ('https://example.com/a.txt', 'download the file first'),
    ],
)
def test_every_refused_input_comes_with_a_way_out(name, way_out):
    if not name.startswith('https'):
        Path(name).write_text('x')
    with pytest.raises(UserError, match=f'cannot be read: .*; .*{way_out}'):
        input_paths(name)


# Rows -----------------------------------------------------------------------------------------------------------------

CELL = {'cell_type': 'code', 'metadata': {}, 'outputs': [], 'source': ['total = 0\n', 'for x in range(9): total += x']}
ARTICLE = {'title': 'Foxes', 'paragraphs': [{'context': 'A fox is a mammal with a bushy tail.', 'qas': []}]}
CHAT = {'title': 'Chat', 'mapping': {'a': {'parent': None, 'message': {'content': {'parts': ['Tell me of foxes.']}}}}}


@pytest.mark.parametrize(
    ('content', 'inner', 'column'),
    [
        ({'cells': [CELL, CELL]}, 'source', 'cell_type'),
        ({'version': '2.0', 'data': [ARTICLE, ARTICLE]}, 'paragraphs', 'title'),
        ([CHAT, CHAT], 'mapping', 'title'),
    ],
    ids=['notebook', 'SQuAD', "ChatGPT's export"],
)
def test_a_title_is_not_taken_for_the_text_that_is_in_lists_beside_it(content, inner, column):
    Path('a.json').write_text(json.dumps(content))
    words = (
        f"most of its text is inside '{inner}'; make each '{inner}' one text first, or choose --text_column={column}"
    )
    with pytest.raises(UserError, match=words):
        texts_in('a.json')
    assert len(texts_in('a.json', column=column)) == len(
        content.get('cells', [0, 0]) if column == 'cell_type' else '12'
    )


def test_a_text_with_its_words_in_a_list_beside_it_is_the_text():
    rows = [{'sentence': tale, 'words': tale.split()} for tale in TALES]
    Path('a.json').write_text(json.dumps(rows))
    assert texts_in('a.json') == TALES


def test_a_number_among_texts_is_named():
    Path('a.jsonl').write_text('{"text": "A fox ran."}\n{"text": 42}\n')
    with pytest.raises(UserError, match=r"a\.jsonl: the column 'text' contains '42', which is not text"):
        texts_in('a.jsonl')


def test_nan_from_python_and_pandas_is_a_row_without_text():
    rows = [{'text': 'A fox ran.'}, {'text': float('nan')}]
    Path('a.json').write_text(json.dumps(rows))
    assert texts_in('a.json') == ['A fox ran.', '']


@pytest.mark.parametrize('word', ['nan', 'NaN', 'None'])
def test_a_csv_with_the_word_nan_in_empty_cells_is_pointed_out(word, capsys):
    Path('a.csv').write_text(f'text\nA fox ran.\n{word}\n')
    assert texts_in('a.csv') == ['A fox ran.', word]
    assert f"a.csv: a text is only '{word}', as programs write an empty cell" in capsys.readouterr().err


def test_lines_with_commas_after_them_as_in_a_list_are_read():
    Path('a.jsonl').write_text('{"text": "one,"},\n{"text": "two"}, \n{"text": "three"}\n')
    assert texts_in('a.jsonl') == ['one,', 'two', 'three']


def test_a_list_that_python_printed_is_refused_with_a_way_out():
    Path('a.json').write_text(str([{'text': 'one'}, {'text': 'two'}]))
    with pytest.raises(UserError, match=r'double quotes; write texts in ", not in \': in Python, with json\.dump'):
        texts_in('a.json')


def test_rows_of_one_value_as_pandas_writes_them_are_texts():
    Path('a.json').write_text(json.dumps([[tale] for tale in TALES]))
    assert texts_in('a.json') == TALES


def test_of_many_text_columns_those_with_the_longest_texts_are_shown_first():
    row = {f'column {number}': 'word ' * (number + 1) for number in range(40)}
    Path('a.json').write_text(json.dumps([row]))
    with pytest.raises(UserError, match=r'--text_column: column 39 \(.*, column 32 \([^,]*, and 32 others$'):
        texts_in('a.json')


# Plain text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        (
            'One.\n<|endoftext|>\nTwo.\n',
            "contains <|endoftext|>; if that is between its documents, add --separator='<|e",
        ),
        ('The Project Gutenberg eBook of Alice\n\nCHAPTER I\n', 'the header of Project Gutenberg'),
        ('\x1b[32mINFO\x1b[0m started\n', r"the colour codes of a terminal, such as '\x1b[32m'"),
        ('1\n00:00:01,000 --> 00:00:04,000\nHello there.\n', 'looks like subtitles'),
    ],
    ids=['TinyStories', 'Gutenberg', 'log', 'subtitles'],
)
def test_a_text_with_more_than_prose_is_read_with_a_note(text, words, capsys):
    Path('a.txt').write_text(text)
    assert '\n'.join(texts_in('a.txt')) == text.strip('\n')
    assert 'note: a.txt is read as plain text, but it ' in (err := capsys.readouterr().err)
    assert words in err


def test_no_note_on_endoftext_if_it_is_the_separator(capsys):
    Path('a.txt').write_text('One.\n<|endoftext|>\nTwo.\n')
    assert texts_in('a.txt', separator='<|endoftext|>') == ['One.', 'Two.']
    assert capsys.readouterr().err == ''
