"""JSON files of every form that people have; prompts and responses under the names that people use."""

import json
import tracemalloc
from pathlib import Path

import pytest
from helpers.documents import texts_in
from hypothesis import given, settings
from hypothesis import strategies as st

from common import text_files
from common.errors import UserError
from texts import json_rows
from texts.json_rows import BadRow, find_pair_keys, read_json_rows

ROWS = [{'text': 'a [1, 2] "fox"'}, {'text': 'a hen 🐔'}]


def rows_of(content, name='rows.json'):
    Path(name).write_text(content if isinstance(content, str) else json.dumps(content), encoding='utf-8')
    return [item for _, item in read_json_rows(name)]


@pytest.mark.parametrize('name', ['rows.json', 'rows.jsonl'])
@pytest.mark.parametrize('indent', [None, 0, 2])
@pytest.mark.parametrize(
    'table',
    [
        ROWS,
        {'data': ROWS},
        {'results': ROWS, 'count': 2},
        {'tales': ROWS, 'version': '1.0', 'tags': ['x']},
        {'data': {'rows': ROWS}},
        {'columns': ['text'], 'index': [0, 1], 'data': [[row['text']] for row in ROWS]},  # pandas, orient='split'
        {'text': {str(number): row['text'] for number, row in enumerate(ROWS)}},  # pandas, as it is by default
        {'first': ROWS[0], 'second': ROWS[1]},
    ],
    ids=['list', 'data', 'results', 'any key', 'nested', 'pandas split', 'pandas', 'by id'],
)
def test_rows_are_found_in_any_common_form(table, indent, name):
    assert rows_of(json.dumps(table, indent=indent, ensure_ascii=False), name) == ROWS


def test_rows_may_follow_each_other_in_one_line_or_in_several():
    assert rows_of('\n'.join(map(json.dumps, ROWS))) == ROWS
    assert rows_of('\r\n\r\n'.join(json.dumps(row, indent=1) for row in ROWS)) == ROWS
    assert rows_of('["a", "b"]\n["c", "d"]\n') == [['a', 'b'], ['c', 'd']]
    assert rows_of('["a", "b"]', 'pairs.jsonl') == [['a', 'b']]
    assert rows_of('["a", "b"]') == ['a', 'b']
    assert rows_of({'text': ['a', 'b'], 'id': [1, 2]}) == [{'text': 'a', 'id': 1}, {'text': 'b', 'id': 2}]
    assert rows_of({'prompt': 'a', 'response': 'b', 'distractors': ['c']}) == [
        {'prompt': 'a', 'response': 'b', 'distractors': ['c']}
    ]
    assert rows_of('') == rows_of('[]') == rows_of('{"data": []}') == []


def test_a_damaged_line_does_not_hide_the_others():
    for bad, good in (('{"text": "two"', '{"text": "one"}'), ('nothing', '{"text": "one"}')):
        first, second = rows_of(f'{bad}\n{good}\n', 'rows.jsonl')
        assert isinstance(first, BadRow) and first.line == 1
        first, second = rows_of(f'{good}\n{bad}\n', 'rows.jsonl')
        assert isinstance(second, BadRow) and second.line == 2


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ('[{"text": "one"},\n{"text" "two"}]', "rows.json, line 2 is not JSON: Expecting ':'"),
        ('[{"text": "one"},\n{"text": "two"}', 'rows.json, line 2 is not JSON'),
        ('[\n{"text": "one"}\n]\nand more', 'rows.json, line 3 is not JSON: there is more after the end'),
        ('{\n"data": [\n}', 'rows.json, line 3 is not JSON'),
        ('[' * 100_000, 'rows.json, line 1 is not JSON'),
        ('{"train": [{"text": "a"}], "test": [{"text": "b"}]}', 'keys train, test, and which of them'),
        ('{"title": "Tales", "year": 1, "tales": ["a", "b"]}', 'keys title, year, tales, and which of them'),
    ],
)
def test_the_error_names_the_line_or_the_keys(content, words):
    with pytest.raises(UserError) as error:
        rows_of(content)
    assert words in str(error.value)


json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=8)


@settings(deadline=None, max_examples=100)
@given(rows=st.lists(json_values, max_size=6), chunk=st.integers(1, 9), indent=st.sampled_from([None, 1]))
def test_an_array_is_read_as_by_python_whatever_the_chunks(tmp_path_factory, rows, chunk, indent):
    path = tmp_path_factory.getbasetemp() / 'array.json'
    path.write_text(json.dumps(rows, indent=indent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, 'CHUNK', chunk)
        patch.setattr(json_rows, 'LONG_LINE', 4)
        assert list(json_rows._array_items(text_files.read_text_chunks(path), path)) == rows


def test_a_large_array_is_never_in_memory_as_a_whole():
    Path('large.json').write_text('[' + ', '.join(['{"text": "' + 'x' * 1000 + '"}'] * 10_000) + ']')
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_json_rows('large.json')) == 10_000
        assert tracemalloc.get_traced_memory()[1] < 5_000_000  # bytes at the peak, of ten million
    finally:
        tracemalloc.stop()


# Pairs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'names',
    [
        ('prompt', 'response'),
        ('prompt', 'completion'),
        ('input', 'output'),
        ('question', 'answer'),
        ('Question', 'Answer'),
        ('instruction', 'response'),
        ('instruction', 'output'),
    ],
)
def test_pairs_are_found_under_common_names(names):
    row = dict(zip(names, ('How are you?', 'Well.'))) | {'id': 7}
    assert find_pair_keys(row) == ((names[0],), names[1])
    Path('pairs.json').write_text(json.dumps([row]))
    assert texts_in('pairs.json') == ['How are you? Well.']


def test_alpacas_input_belongs_to_its_prompt():
    rows = [
        {'instruction': 'Sort these.', 'input': 'b, a', 'output': 'a, b'},
        {'instruction': 'Say hello.', 'input': '', 'output': 'Hello.'},
    ]
    assert find_pair_keys(rows[0]) == (('instruction', 'input'), 'output')
    Path('alpaca.json').write_text(json.dumps(rows))
    assert texts_in('alpaca.json') == ['Sort these.\n\nb, a a, b', 'Say hello. Hello.']


def test_other_keys_are_named():
    row = {'frage': 'Wie?', 'antwort': 'So.'}
    assert find_pair_keys(row, 'frage', 'antwort') == (('frage',), 'antwort')
    with pytest.raises(UserError, match=r'--prompt_key, its keys are frage, antwort'):
        find_pair_keys(row)
    with pytest.raises(UserError, match=r'has no key --response_key=answer; its keys are frage, antwort'):
        find_pair_keys(row, 'frage', 'answer')
    with pytest.raises(UserError, match='not an object'):
        find_pair_keys(['a'])


def test_a_list_of_texts_or_of_pairs_is_read():
    Path('texts.json').write_text('["one", "two"]')
    Path('pairs.json').write_text('[["Who?", "Me."], ["Why", "so"]]')
    assert texts_in('texts.json', 'pairs.json') == ['one', 'two', 'Who? Me.', 'Why so']
