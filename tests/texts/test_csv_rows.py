"""CSV files as pandas, Excel, Google Sheets, Kaggle and people write them: no text lost, no number taken for text."""

import csv
import io
from pathlib import Path

import pytest
from helpers.documents import texts_in
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.notes import forget_notes
from texts.csv_rows import read_csv_rows

FOX, HEN = 'The fox ran.', 'The hen sat, too; "well"\nand slept.'


def write_csv(rows, name='table.csv', encoding='utf-8', start='', **dialect):
    stream = io.StringIO(newline='')
    csv.writer(stream, **dialect).writerows(rows)
    Path(name).write_bytes((start + stream.getvalue()).encode(encoding))
    return name


@pytest.fixture
def said(capsys):
    """A function that returns what has been printed on stderr."""
    forget_notes()
    return lambda: capsys.readouterr().err


@pytest.mark.parametrize('index', ['', 'Unnamed: 0', 'index', 'id', 'Id', 'ID', 'doc_id'])
@pytest.mark.parametrize('numbers', [('0', '1'), ('a17', 'b18')])
def test_the_index_that_pandas_writes_is_never_text(said, index, numbers):
    write_csv([[index, 'poem'], [numbers[0], FOX], [numbers[1], HEN]])
    assert texts_in('table.csv') == [FOX, HEN]
    assert said() == f'note: table.csv: the text is in the column "poem", such as {FOX!r}\n'


def test_a_table_of_numbers_has_no_text():
    write_csv([['', 'label', 'day'], ['0', '1', '2024-01-31'], ['1', '0', '2024-02-01 10:00']])
    with pytest.raises(UserError, match=r"no text column \(its columns: '', label, day\)"):
        texts_in('table.csv')


@pytest.mark.parametrize('delimiter', [',', ';', '\t', '|'])
@pytest.mark.parametrize('quoting', [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize('ending', ['\n', '\r\n'])
def test_any_delimiter_is_found(said, delimiter, quoting, ending):
    write_csv([['id', 'text'], [1, FOX], [2, HEN]], delimiter=delimiter, quoting=quoting, lineterminator=ending)
    assert texts_in('table.csv') == [FOX, HEN]
    assert ('fields are separated by' in said()) == (delimiter != ',')


@pytest.mark.parametrize('suffix', ['.csv', '.tsv'])
def test_excels_unicode_text_is_read(suffix):
    name = write_csv([['id', 'text'], [1, FOX], [2, HEN]], f'table{suffix}', encoding='utf-16', delimiter='\t')
    assert texts_in(name) == [FOX, HEN]


def test_excels_first_line_names_the_delimiter():
    write_csv([['a', 'b'], ['1,5', FOX], ['2,5', HEN]], start='sep=;\r\n', delimiter=';', encoding='utf-8-sig')
    assert list(read_csv_rows(Path('table.csv'))) == [{'a': '1,5', 'b': FOX}, {'a': '2,5', 'b': HEN}]


def test_quotation_marks_in_a_file_with_tabs_may_be_part_of_the_text():
    Path('table.tsv').write_text('id\ttext\n1\t"Oh," said he.\n2\t"Oh no\n')
    assert texts_in('table.tsv') == ['"Oh," said he.', '"Oh no']


def test_quotation_marks_may_have_a_backslash():
    Path('table.csv').write_text('id,text\n1,"He said \\"well, well\\" to me"\n2,"x, y"\n')
    assert texts_in('table.csv') == ['He said "well, well" to me', 'x, y']


def test_there_may_be_a_space_after_each_comma():
    Path('table.csv').write_text('id, text\n1, "The fox, it ran."\n2, It sat.\n')
    assert texts_in('table.csv') == ['The fox, it ran.', 'It sat.']


@pytest.mark.parametrize(
    ('rows', 'column'),
    [
        ([[FOX], [HEN]], ''),
        ([['0', FOX], ['1', HEN]], ''),
        ([['hello there'], ['how are you'], ['fine']], ''),
        ([['ham', FOX], ['spam', HEN]], '2'),
    ],
)
def test_a_table_without_names_loses_nothing(said, rows, column):
    write_csv(rows)
    assert texts_in('table.csv', column=column) == [row[-1] for row in rows]
    assert 'its first line is taken for a row' in said()


@pytest.mark.parametrize(
    'names',
    [['text'], ['id', 'Poem'], ['n', 'strophe'], ['Timestamp', 'Write a poem about your favourite animal, please!']],
)
def test_names_of_columns_are_no_text(names):
    write_csv([names, ['2024-01-31', FOX * 9][-len(names) :], ['2024-02-01', HEN * 9][-len(names) :]])
    assert texts_in('table.csv') == [FOX * 9, HEN * 9]


def test_a_column_that_is_named_is_in_the_first_line():
    write_csv([['hello there', 'x'], ['how are you', 'y']])
    assert texts_in('table.csv', column='hello there') == ['how are you']


def test_pandas_numbers_columns_without_names():
    write_csv([['', '0'], ['0', FOX], ['1', HEN]])
    assert texts_in('table.csv') == [FOX, HEN]
    write_csv([['0', '1'], [FOX, '7'], [HEN, '8']])
    assert texts_in('table.csv') == [FOX, HEN]


@pytest.mark.parametrize(
    'rows',
    [[['review', 'sentiment'], [FOX, 'good'], [HEN, 'bad']], [['v1', 'v2', ''], ['ham', FOX, ''], ['ham', HEN, '']]],
)
def test_several_texts_are_refused_with_an_example_of_each(rows):
    write_csv(rows)
    with pytest.raises(UserError, match=r'--text_column: ') as error:
        texts_in('table.csv')
    for name, example in zip(rows[0][:2], rows[1]):
        assert f'{name} ({example!r})' in str(error.value)


def test_a_delimiter_that_is_not_clear_is_refused():
    Path('table.csv').write_text('1,5;abc\n2,5;def\n')
    with pytest.raises(UserError, match=r'by commas or by semicolons; add a first line .*sep='):
        texts_in('table.csv')


def test_a_text_with_commas_needs_quotation_marks():
    Path('table.csv').write_text('text\nThe fox, it ran.\n')
    with pytest.raises(UserError, match=r'line 2 has more fields .*commas must be in quotation marks'):
        texts_in('table.csv')


def test_a_web_page_is_no_table():
    Path('table.csv').write_text('<!DOCTYPE html>\n<html>\n')
    with pytest.raises(UserError, match='web page'):
        texts_in('table.csv')


words = st.text(st.sampled_from('abc é,;|\t"\n1'), min_size=1, max_size=12)


@settings(deadline=None, max_examples=200)
@given(rows=st.lists(st.tuples(st.integers(0, 99), words), min_size=1, max_size=6), delimiter=st.sampled_from(',;\t|'))
def test_what_the_csv_module_writes_is_read_back(tmp_path_factory, rows, delimiter):
    path = tmp_path_factory.getbasetemp() / 'table.csv'
    write_csv([('id', 'text'), *rows], path, delimiter=delimiter)
    assert [(int(row['id']), row['text']) for row in read_csv_rows(path)] == rows


def test_whole_lines_in_quotation_marks_are_refused():
    Path('table.csv').write_text('"id;text"\n"1;The fox ran"\n')
    with pytest.raises(UserError, match='as a whole'):
        texts_in('table.csv')


def test_a_table_that_is_called_txt_is_read_as_it_is_and_said(said):
    write_csv([['id', 'text'], [1, FOX], [2, HEN]], 'table.txt', encoding='utf-16', delimiter='\t')
    assert 'fox' in texts_in('table.txt')[0]
    assert 'table.txt is read as plain text, but it looks like a table with tabs' in said()
