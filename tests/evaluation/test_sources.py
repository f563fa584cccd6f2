"""Files of pairs in every form, the errors for invalid ones, and how a text is cut into segments."""

import json
from itertools import chain

import numpy as np
import pytest
from helpers.scripts import PROJECT

import prepare_bin
from common.errors import UserError
from evaluation.sources import Pair, PairSource, TextSource, join_response, read_pairs
from lm.tokenizer import CharTokenizer, tokenizer_from_folder, train_bpe

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
    ('{"response": " ran"}', 'no "prompt"'),
    ('{"prompt": "The fox"}', 'no "response"'),
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
        (b'', 'not JSON'),
        (b' \n', 'not JSON'),
        (b'[]', 'has no pairs'),
        (b'[{"prompt": "a"', 'not JSON'),
        (b'[["sch\xf6n", ""]]', 'not UTF-8'),
        (b'{"prompt": "a",\n "response": "b"}', 'pair 0 is not JSON'),
    ],
)
def test_a_file_without_pairs_is_refused(tmp_path, content, words):
    path = tmp_path / 'pairs.json'
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        list(read_pairs(path, refuse))


def test_a_missing_file():
    with pytest.raises(UserError, match=r'nowhere\.json cannot be read: No such file'):
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


# Running text -------------------------------------------------------------------------------------------------------


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = 'Once upon a time, in 東京 🦊, there was\na naïve little fox who counted: 1, 2, 3.\n' * 9
    (tmp_path / 'text.txt').write_text(written, encoding='utf-8')
    return written


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


@pytest.mark.parametrize(('stride', 'words'), [(0, 'stride=0'), (17, '1 to 16')])
def test_an_invalid_stride(text, stride, words):
    with pytest.raises(UserError, match=words):
        TextSource('text.txt', [tokenizer_from_folder(PROJECT / 'models' / 'tiny')], [16, 32], stride)


def test_an_empty_text_and_a_tokenizer_without_a_beginning(tmp_path, text):
    tiny = tokenizer_from_folder(PROJECT / 'models' / 'tiny')
    (tmp_path / 'empty.txt').write_text('')
    with pytest.raises(UserError, match=r'empty\.txt is empty'):
        TextSource('empty.txt', [tiny], [16])
    with pytest.raises(UserError, match='endoftext'):
        TextSource('text.txt', [CharTokenizer(sorted(set(text)))], [16])
