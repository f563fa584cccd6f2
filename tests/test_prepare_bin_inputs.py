"""prepare_bin.py on files as people have them: exports, other encodings, and files that are no texts."""

import json
from pathlib import Path

import pandas
import pytest
from helpers.datasets import STORIES, TEXT, assert_whole_and_apart, both_of, documents_of, prepare, save_small_bpe

from common.errors import UserError
from common.notes import forget_notes
from prepare_bin import Settings, check_prepare_settings


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    forget_notes()


@pytest.fixture(scope='module')
def bpe(tmp_path_factory):
    return save_small_bpe(tmp_path_factory.mktemp('bpe'))


def test_a_file_from_pandas_is_trained_on_for_its_text_not_its_row_numbers(bpe, capsys):
    pandas.DataFrame({'text': STORIES}).to_csv('m.csv')
    folder = prepare(None, input='m.csv', tokenizer=str(bpe), val_fraction=0.3)
    assert_whole_and_apart(*both_of(folder), STORIES)
    assert 'note: m.csv: the text is in the column "text", such as \'The Tale of Ada' in capsys.readouterr().err


def test_settings_for_another_input_or_tokenizer_are_said_to_have_no_effect(capsys):
    unused = {'hf_split': 'test', 'tokenizer': 'char', 'skip_bad': True}
    check_prepare_settings(Settings(input='m.txt', dataset='m', train_bpe=300, **unused))
    said = capsys.readouterr().err.splitlines()
    assert sorted(line.split()[1] for line in said) == sorted(f'--{name}' for name in unused)
    check_prepare_settings(Settings(hf_dataset='tales', dataset='m', hf_split='test', tokenizer='char'))
    assert not capsys.readouterr().err


def test_a_column_of_a_file_without_columns_is_said_to_have_no_effect(bpe, capsys):
    Path('m.txt').write_text('\n\n\n'.join(STORIES), encoding='utf-8')
    prepare(None, input='m.txt', tokenizer=str(bpe), text_column='story')
    assert 'note: --text_column has no effect without a table' in capsys.readouterr().err


@pytest.mark.parametrize('orient', ['records', 'columns', 'index', 'split', 'table'])
def test_any_json_that_pandas_writes_is_read(bpe, orient):
    pandas.DataFrame({'text': STORIES}).to_json('m.json', orient=orient, force_ascii=False)
    folder = prepare(None, input='m.json', tokenizer=str(bpe), val_fraction=0.3)
    assert_whole_and_apart(*both_of(folder), STORIES)


def test_a_text_file_from_powershell_is_the_same_text(bpe):
    Path('powershell.txt').write_bytes(TEXT.replace('\n', '\r\n').encode('utf-16'))
    folder = prepare(None, input='powershell.txt', tokenizer=str(bpe), val_fraction=0.3)
    assert_whole_and_apart(*both_of(folder), STORIES)


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('stories.xlsx', 'save the sheet as CSV'),
        ('stories.docx', 'save it as plain text'),
        ('stories.7z', 'unpack it first'),
        ('stories.py', 'if it is plain text, rename it to .txt'),
    ],
)
def test_a_file_of_another_kind_is_refused_with_a_way_out(name, words):
    Path(name).write_bytes(b'PK\3\4')
    with pytest.raises(UserError, match=f'{name} cannot be read: .*; {words}'):
        prepare(None, input=name)


def test_a_spreadsheet_that_is_only_called_csv_is_refused_with_a_way_out():
    Path('stories.csv').write_bytes(b'PK\3\4\x14\0\6\0\x08\0')
    with pytest.raises(UserError, match=r'stories\.csv is not text: .*Office.*CSV'):
        prepare(None, input='stories.csv', tokenizer='tiny')
    assert not Path('data').exists()


def test_a_path_may_begin_with_the_home_folder(bpe, tmp_path, monkeypatch):
    (tmp_path / 'home').mkdir()
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    Path('home/stories.txt').write_text(TEXT, encoding='utf-8')
    for input in ('~/stories.txt', '~/*.txt', '~'):
        folder = prepare(None, input=input, tokenizer=str(bpe), val_fraction=0)
        assert documents_of(folder, 'train') == STORIES
    assert sorted(path.name for path in Path().iterdir()) == ['data', 'home']


def test_prompts_and_responses_of_any_name_are_joined(bpe):
    rows = [{'n': number, 'frage': f'Wer ist {number}?', 'antwort': 'Ich.'} for number in range(9)]
    Path('pairs.json').write_text(json.dumps({'results': rows}))
    keys = {'prompt_key': 'frage', 'response_key': 'antwort'}
    folder = prepare(None, input='pairs.json', tokenizer=str(bpe), val_fraction=0, **keys)
    assert documents_of(folder, 'train') == [f'Wer ist {number}? Ich.' for number in range(9)]
    with pytest.raises(UserError, match=r'pairs\.json has no key --response_key=reply; its keys are n, frage, antwort'):
        prepare(None, input='pairs.json', tokenizer=str(bpe), **keys | {'response_key': 'reply'})
    with pytest.raises(UserError, match='not both'):
        prepare(None, input='pairs.json', text_column='frage', **keys)
