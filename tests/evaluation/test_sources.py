"""Files of pairs in every form, and the errors for invalid ones."""

import json

import pandas
import pytest
from helpers.scripts import PROJECT

from common.errors import UserError
from common.notes import forget_notes
from eval import Settings
from evaluation.pair_files import KeyChoice, Pair, read_pairs
from evaluation.result_folder import result_path
from evaluation.sources import PairSource, join_response
from lm.tokenizer import CharTokenizer, tokenizer_from_folder

FOX = {'prompt': 'The fox', 'response': ' ran', 'id': 'a', 'distractors': [' flew', ' sang']}
BEAR = {'prompt': 'The bear', 'response': ' slept'}


def refuse(line):
    raise UserError(line)


def pairs_of(tmp_path, text, name='pairs.json', on_bad=refuse):
    path = tmp_path / name
    path.write_text(text, encoding='utf-8')
    return list(read_pairs(path, on_bad))


@pytest.mark.parametrize(
    ('name', 'text'),
    [
        ('pairs.json', json.dumps([FOX, BEAR])),
        ('pairs.json', '\ufeff \n' + json.dumps([FOX, BEAR], indent=2)),
        ('pairs.jsonl', f'{json.dumps(FOX)}\n\n{json.dumps(BEAR)}\n'),
        ('pairs.json', f'{json.dumps(FOX)}\n{json.dumps(BEAR)}'),
        ('pairs.txt', f'\n{json.dumps(FOX)}\r\n{json.dumps(BEAR)}\r\n'),
    ],
    ids=['list', 'list with a mark and space before it', 'lines', 'lines called .json', 'lines of Windows'],
)
def test_every_form_of_file_gives_the_same_pairs(tmp_path, name, text):
    assert pairs_of(tmp_path, text, name) == [
        Pair(0, 'a', 'The fox', ' ran', [' flew', ' sang']),
        Pair(1, None, 'The bear', ' slept', []),
    ]


@pytest.mark.parametrize('name', ['pairs.json', 'pairs.jsonl'])
@pytest.mark.parametrize('many', [True, False])
def test_two_element_lists_are_prompt_and_response(tmp_path, name, many):
    items = [['Once', ' upon'], ['', 'a']] if many else [['Once', ' upon']]
    lines = pairs_of(tmp_path, '\n'.join(map(json.dumps, items)), name if many else 'pairs.jsonl')
    assert lines == [Pair(n, None, *item, []) for n, item in enumerate(items)]
    assert pairs_of(tmp_path, json.dumps(items)) == lines


BAD = [
    ('"Once"', 'neither'),
    ('["Once", " upon", " a"]', 'list of 3'),
    ('{"response": " ran"}', 'none of the keys prompt'),
    ('{"prompt": "The fox"}', 'none of the keys response'),
    ('["Once", 5]', 'other than two texts'),
    ('{"prompt": "The fox", "response": 5}', '"response" that is not text'),
    ('{"prompt": null, "response": " ran"}', '"prompt" that is not text'),
    ('{"prompt": "The fox", "response": " ran", "distractors": " flew"}', '"distractors"'),
    ('{"prompt": "The fox", "response": " ran", "distractors": [1]}', '"distractors"'),
    ('{"prompt": "The fox", "response": " ran", "id": [1]}', '"id"'),
    ('{"prompt": "The fox", "response": " ran", "id": "a"}', "the id 'a' of an earlier pair"),
]


@pytest.mark.parametrize(('item', 'words'), BAD, ids=[words for _, words in BAD])
def test_a_bad_pair_is_named_by_its_index_and_does_not_lose_the_others(tmp_path, item, words):
    for text, name in [
        (f'[{json.dumps(FOX)}, {item}, {json.dumps(BEAR)}]', 'pairs.json'),
        (f'{json.dumps(FOX)}\n{item}\n{json.dumps(BEAR)}\n', 'pairs.jsonl'),
    ]:
        with pytest.raises(UserError, match='pair 1') as error:
            pairs_of(tmp_path, text, name)
        assert words in str(error.value)
        reported = []
        assert [pair.index for pair in pairs_of(tmp_path, text, name, on_bad=reported.append)] == [0, 2]
        assert len(reported) == 1
        assert words in reported[0]


def test_a_line_that_is_not_json_is_a_bad_pair(tmp_path):
    reported = []
    text = f'{json.dumps(FOX)}\n{{"prompt": \n{"[" * 100_000}\n{json.dumps(BEAR)}\n'
    assert [pair.index for pair in pairs_of(tmp_path, text, 'pairs.jsonl', on_bad=reported.append)] == [0, 3]
    assert all('is not JSON' in line for line in reported)


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (b'', 'has no pairs'),
        (b' \n', 'has no pairs'),
        (b'[]', 'has no pairs'),
        (b'[{"prompt": "a"', 'not JSON'),
        (b'[["sch\xf6n", ""]]', 'not UTF-8'),
    ],
)
def test_a_file_without_pairs_is_refused(tmp_path, content, words):
    path = tmp_path / 'pairs.json'
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        list(read_pairs(path, refuse))


def test_a_running_text_instead_of_pairs_is_refused_with_the_way_to_score_it(tmp_path):
    with pytest.raises(
        UserError, match=r"begins with 'Once upon a time'; .*Running text is scored with --text=.*a\.txt"
    ):
        pairs_of(tmp_path, '\nOnce upon a time there was a fox.\n', 'a.txt')


@pytest.mark.parametrize('ending', ['.parquet', '.feather', '.jsonl.gz'])
def test_pairs_in_a_file_from_pandas_are_read(tmp_path, ending):
    path, rows = tmp_path / f'pairs{ending}', pandas.DataFrame([BEAR, BEAR])
    if ending == '.jsonl.gz':
        rows.to_json(path, orient='records', lines=True)
    else:
        {'.parquet': rows.to_parquet, '.feather': rows.to_feather}[ending](path)
    assert list(read_pairs(path, refuse)) == [Pair(index, None, *BEAR.values(), []) for index in range(2)]


def test_a_missing_file():
    with pytest.raises(UserError, match=r'cannot read nowhere\.json: No such file'):
        PairSource('nowhere.json')


def test_a_lone_surrogate_becomes_the_replacement_character(tmp_path):
    (pair,) = pairs_of(tmp_path, '[["\\ud83d", "a\\udc00"]]')
    assert (pair.prompt, pair.response) == ('\ufffd', 'a\ufffd')


def test_lines_are_read_one_by_one(tmp_path):
    path = tmp_path / 'pairs.jsonl'
    path.write_text(f'{json.dumps(FOX)}\n{{"no": "pair"}}\n')
    assert next(read_pairs(path, refuse)).prompt == 'The fox'  # the second has not been read yet


@pytest.mark.parametrize(
    ('prompt', 'response', 'joined'),
    [
        ('I live in', 'a shoe', ' a shoe'),
        ('In', '1984', ' 1984'),
        ('in', 'été', ' été'),
        ('I live in', ' a shoe', ' a shoe'),
        ('I live in ', 'a shoe', 'a shoe'),
        ('I live in\n', 'a shoe', 'a shoe'),
        ('I live', ', I think', ', I think'),
        ('he said', '"No."', '"No."'),
        ('', 'a shoe', 'a shoe'),
        ('I live in', '', ''),
        ('I live in', '_a', ' _a'),
        ('Answer:', 'Paris', ' Paris'),
        ('said "No."', 'Then', ' Then'),
        ('f(', 'x', 'x'),
        ('she said "', 'No', 'No'),
    ],
)
def test_the_separator_is_put_between_words_that_would_run_together(prompt, response, joined):
    assert join_response(prompt, response) == joined
    assert join_response(prompt, response, separator='') == response
    assert join_response(prompt, response, separator='\n\n') == joined if joined == response else '\n\n' + response


def test_choices_are_joined_and_encoded_like_the_response():
    tokenizer = tokenizer_from_folder(PROJECT / 'models' / 'tiny')
    source = PairSource(given=[Pair(0, 'a', 'The fox', 'ran', ['flew', ' sang'])])
    item = source.encode(next(source.units())[1], [tokenizer, tokenizer], 'joint', ' ')
    assert item.row == {'id': 'a', 'prompt': 'The fox', 'response': 'ran'}
    texts = [' ran', ' flew', ' sang']
    assert item.pairs == [[tokenizer.encode_pair('The fox', text) for text in texts]] * 2
    assert item.unusual == [None, None]
    apart = source.encode(next(source.units())[1], [tokenizer], 'separate', '')
    assert apart.pairs[0][0] == (tokenizer.encode('The fox'), tokenizer.encode('ran'))


def test_units_start_at_an_index_and_skip_bad_ones(tmp_path, capsys):
    path = tmp_path / 'pairs.jsonl'
    path.write_text('\n'.join(json.dumps(item) for item in [FOX, {}, BEAR, BEAR, FOX]))
    source = PairSource(path, skip_bad=True)
    assert capsys.readouterr().err.count('left out') == 2
    assert source.count == 3
    assert [index for index, _ in source.units()] == [0, 2, 3]
    assert [index for index, _ in source.units(first=3)] == [3]
    assert capsys.readouterr().err == ''


def test_characters_that_a_tokenizer_lacks_are_named_with_their_pair(tmp_path):
    path = tmp_path / 'pairs.json'
    path.write_text('[["Once", " upon"], ["Once", " für"]]', encoding='utf-8')
    tokenizer = CharTokenizer('Once upfor')
    units = [unit for _, unit in PairSource(path).units()]
    assert PairSource(path).encode(units[0], [tokenizer], 'joint', ' ').pairs[0][0] == ([0, 1, 2, 3], [4, 5, 6, 8, 1])
    with pytest.raises(UserError, match=r"pairs\.json: pair 1: .*'ü' \(U\+00FC\)"):
        PairSource(path).encode(units[1], [tokenizer], 'joint', ' ')


# Files as people have them ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('prompt', 'response'),
    [('instruction', 'response'), ('question', 'answer'), ('input', 'output'), ('prompt', 'completion')],
)
@pytest.mark.parametrize('wrap', [lambda rows: rows, lambda rows: {'data': rows}, lambda rows: {'results': rows}])
def test_common_keys_are_read_by_name_and_a_note_says_which(tmp_path, capsys, prompt, response, wrap):
    forget_notes()
    rows = [{prompt: 'The fox', response: ' ran'}, {prompt: 'The bear', response: ' slept', 'id': 5}]
    assert pairs_of(tmp_path, json.dumps(wrap(rows))) == [
        Pair(0, None, 'The fox', ' ran', []),
        Pair(1, '5', 'The bear', ' slept', []),
    ]
    assert f'prompts are read from "{prompt}", responses from "{response}"' in capsys.readouterr().err


def test_other_keys_are_named_and_the_error_names_those_that_are_there(tmp_path):
    path = tmp_path / 'pairs.json'
    path.write_text('[{"frage": "The fox", "antwort": " ran"}]')
    with pytest.raises(UserError, match='--prompt_key, its keys are frage, antwort'):
        PairSource(path)
    source = PairSource(path, keys=KeyChoice('frage', 'antwort'))
    assert [pair for _, pair in source.units()] == [Pair(0, None, 'The fox', ' ran', [])]
    with pytest.raises(UserError, match='no key --prompt_key=question; its keys are frage, antwort'):
        PairSource(path, keys=KeyChoice('question', 'antwort'))


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16'])
def test_pairs_from_windows_are_the_same_pairs(tmp_path, encoding):
    text = f'{json.dumps(FOX)}\r\n{json.dumps(BEAR)}\r\n'
    (tmp_path / 'windows.jsonl').write_bytes(text.encode(encoding))
    assert list(read_pairs(tmp_path / 'windows.jsonl', refuse)) == pairs_of(tmp_path, text, 'pairs.jsonl')


@pytest.mark.parametrize(('name', 'mark'), [('pairs.csv', ','), ('pairs.csv', ';'), ('pairs.tsv', '\t')])
def test_a_table_of_pairs_is_read_like_json(tmp_path, name, mark):
    rows = [['question', 'answer', 'id'], ['"The fox, the bear"', 'ran', '7'], ['Once', 'upon a time', '8']]
    text = '\r\n'.join(mark.join(row) for row in rows)
    assert pairs_of(tmp_path, text, name) == [
        Pair(0, '7', 'The fox, the bear', 'ran', []),
        Pair(1, '8', 'Once', 'upon a time', []),
    ]


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'pairs.json').write_text(json.dumps([FOX]))
    assert PairSource('~/pairs.json').count == 1
    assert result_path(Settings(save='~/kept')) == tmp_path / 'kept'
    assert result_path(Settings(save='kept', plot_dir='~')) == tmp_path / 'kept'


# Conversations ------------------------------------------------------------------------------------------------------

USER, ASSISTANT = {'role': 'user', 'content': 'Who?'}, {'role': 'assistant', 'content': 'The fox.'}


@pytest.mark.parametrize('name', ['pairs.json', 'pairs.jsonl'])
@pytest.mark.parametrize(
    'row',
    [
        {'messages': [USER, ASSISTANT]},
        {'prompt': 'Who?', 'messages': [USER, ASSISTANT], 'source': 'books'},
        {'prompt': [USER], 'response': 'The fox.'},
        {'prompt': [USER], 'completion': [ASSISTANT]},
        {'messages': [USER], 'answer': 'The fox.'},
    ],
)
def test_a_conversation_is_a_prompt_and_the_last_message(tmp_path, name, row):
    path = tmp_path / name
    for text in (json.dumps(row), json.dumps([row]), f'{json.dumps(row)}\n' * 2):
        if name == 'pairs.jsonl' or text.startswith('['):
            path.write_text(text)
            assert next(read_pairs(path, refuse)) == Pair(0, None, [USER], 'The fox.', [])
    source = PairSource(path, chat=True)
    (_, pair), *_ = source.units()
    assert source.count_joined(' ') == 0
    assert isinstance(pair.prompt, list)
    with pytest.raises(UserError, match=r'pair 0 is a conversation, which only eval\.py --chat=True scores'):
        PairSource(path)


@pytest.mark.parametrize(
    ('row', 'words'),
    [
        ({'messages': [USER]}, 'does not end with one message of the assistant'),
        ({'messages': [ASSISTANT]}, 'does not end with one message of the assistant'),
        ({'messages': []}, 'does not end with one message of the assistant'),
        ({'messages': [USER, {'role': 'assistant', 'content': None}]}, 'not all messages'),
        ({'messages': [USER, 'The fox.']}, 'not all messages'),
        ({'prompt': [USER], 'completion': [ASSISTANT, ASSISTANT]}, 'does not end with one message of the assistant'),
        ({'messages': [USER, ASSISTANT], 'answer': 'A bear.'}, 'and "answer" besides'),
    ],
)
def test_a_conversation_without_a_response_is_a_bad_pair(tmp_path, row, words):
    with pytest.raises(UserError, match=words):
        pairs_of(tmp_path, json.dumps([row]))
    reported = []
    assert len(pairs_of(tmp_path, json.dumps([FOX, row]), on_bad=reported.append)) == 1
    assert len(reported) == 1
