"""Every row of a table becomes a document, unchanged; errors name the place."""

import json
import re
from pathlib import Path

import pytest
from helpers.documents import TALES, split_at_once, texts_in, write_table
from hypothesis import given, settings
from hypothesis import strategies as st

from common import text_files
from common.errors import UserError
from texts import csv_rows, json_rows


@pytest.mark.parametrize('name', ['rows.jsonl', 'rows.csv', 'rows.parquet', 'ROWS.JSONL'])
def test_each_row_is_a_document(name):
    write_table(name, [{'id': number, 'text': tale} for number, tale in enumerate(TALES)])
    assert texts_in(name) == texts_in(name, column='text') == TALES


table_text = st.text(st.characters(codec='utf-8', exclude_characters='\0'), max_size=20)


@pytest.mark.parametrize('suffix', ['.jsonl', '.csv', '.parquet'])
@settings(deadline=None, max_examples=60)
@given(texts=st.lists(table_text, min_size=1, max_size=8))
def test_any_text_survives_any_table(tmp_path_factory, suffix, texts):
    path = tmp_path_factory.getbasetemp() / f'any{suffix}'
    write_table(path, [{'number': 1, 'text': text} for text in texts])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, 'CHUNK', 5)
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
    with pytest.raises(UserError, match=r"--text_column: story \('x{29}…'\), title \('The Newt'\)$"):
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
def test_a_column_that_does_not_exist(name, column, words):
    write_table(name, [{'id': '17', 'year': 1999}, {'id': '18', 'year': 2001}])
    with pytest.raises(UserError, match=rf'{name} has no (column --text_column=)?{words}'):
        texts_in(name, column=column)


def test_a_column_that_is_not_text():
    write_table('rows.jsonl', [{'id': 1, 'text': 'one'}])
    with pytest.raises(UserError, match=r"'id' contains '1', which is not text"):
        texts_in('rows.jsonl', column='id')


@pytest.mark.parametrize(
    ('name', 'content', 'words'),
    [
        ('bad.jsonl', b'{"text": "one"}\n\n{"text": "two"\n', r'bad\.jsonl, line 3 is not JSON'),
        ('bad.jsonl', b'{"text": "one"}\n[2]\n', r'bad\.jsonl: row 2 is neither'),
        ('bad.jsonl', b'[' * 100_000, r'bad\.jsonl, line 1 is not JSON'),
        ('bad.jsonl', b'{"text": "one"}\n{"text": "sch\xf6n"}', r'bad\.jsonl is not UTF-8 text \(byte 29 is 0xf6\)'),
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


def test_a_row_that_is_too_long_is_an_error(monkeypatch):
    monkeypatch.setattr(json_rows, 'LONGEST_ROW', 50)
    Path('rows.jsonl').write_text(json.dumps({'text': 'x' * 99}))
    with pytest.raises(UserError, match='more than 50 characters'):
        texts_in('rows.jsonl')
    monkeypatch.setattr(csv_rows, 'LONGEST_ROW', 50)
    Path('rows.csv').write_text('text\n"' + 'x y\n' * 99)  # a quotation that never ends
    with pytest.raises(UserError, match=r'rows\.csv, line \d+ is not CSV: field larger'):
        texts_in('rows.csv')


def test_a_table_without_rows_has_no_documents():
    Path('rows.jsonl').write_text('')
    Path('rows.csv').write_text('text\n')
    assert texts_in('rows.jsonl', 'rows.csv') == []


def test_the_turns_of_a_chat_are_no_text():
    Path('chats.json').write_text(json.dumps([{'messages': [{'role': 'user', 'content': 'Hello there'}]}]))
    with pytest.raises(UserError, match=r"no text column \(its columns: messages\); make each 'messages' one text"):
        texts_in('chats.json')
