"""prepare_bin.py: whole documents, each in one split, nothing lost; tokenizers; tables and hub datasets."""

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.datasets import (
    STORIES,
    TEXT,
    CodePoints,
    assert_whole_and_apart,
    both_of,
    corpus,
    documents_of,
    ids_of,
    meta_of,
    prepare,
    save_small_bpe,
    stories_of,
)
from helpers.models import needs_gpt2_vocabulary
from helpers.scripts import PROJECT, assert_friendly_error, run_script

import prepare_bin
from common.errors import UserError
from lm.roles import Roles
from lm.tokenizer import CharTokenizer, tokenizer_from_contents
from prepare_bin import Settings


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope='module')
def bpe(tmp_path_factory):
    return save_small_bpe(tmp_path_factory.mktemp('bpe'))


# Splits ---------------------------------------------------------------------------------------------------------------


def test_documents_stay_whole_and_in_order(bpe):
    train, val = both_of(prepare(tokenizer=str(bpe), val_fraction=0.3))
    assert train and val
    assert_whole_and_apart(train, val, STORIES)


@needs_gpt2_vocabulary
def test_gpt2_is_the_default_and_its_tokens_decode_to_the_documents():
    folder = prepare(val_fraction=0.3)
    assert meta_of(folder)['tokenizer'] == {'kind': 'gpt2'}
    assert meta_of(folder)['vocab_size'] == 50257
    assert_whole_and_apart(*both_of(folder), STORIES)
    assert ids_of(folder, 'train')[0] == ids_of(folder, 'train')[-1] == 50256


def test_the_files_depend_on_the_seed_alone(bpe):
    def written(**settings):
        folder = prepare(tokenizer=str(bpe), val_fraction=0.3, **settings)
        return [(folder / name).read_bytes() for name in ('train.bin', 'val.bin', 'meta.json')]

    first = written()
    assert written() == first == written(seed=1337)
    assert any(written(seed=seed)[1] != first[1] for seed in (1, 2, 3))


@pytest.mark.parametrize(('fraction', 'empty', 'full'), [(0, 'val', 'train'), (1, 'train', 'val')])
@pytest.mark.parametrize('documents', [STORIES, STORIES[:2], STORIES[:1]], ids=len)
def test_fraction_0_and_1_leave_one_split_empty(bpe, documents, fraction, empty, full):
    folder = prepare('\n\n\n'.join(documents), tokenizer=str(bpe), val_fraction=fraction)
    assert documents_of(folder, full) == documents
    assert ids_of(folder, empty) == []
    assert meta_of(folder)[empty]['documents'] == meta_of(folder)[empty]['tokens'] == 0


@pytest.mark.parametrize('fraction', [-0.1, 1.1, float('nan')])
def test_an_invalid_fraction_is_an_error(fraction):
    with pytest.raises(UserError, match='val_fraction'):
        prepare(val_fraction=fraction)


# A text that is one document ------------------------------------------------------------------------------------------


def test_a_single_document_is_cut_in_two(bpe):
    paragraphs = [f'Paragraph {number} is about as long as each of the others.' for number in range(40)]
    folder = prepare('\n\n'.join(paragraphs), tokenizer=str(bpe), val_fraction=0.2)
    (train,), (val,) = both_of(folder)
    assert train.strip('\n') == '\n\n'.join(paragraphs[:32])
    assert val == '\n\n'.join(paragraphs[32:])


# Separators -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('written', 'separator'),
    [('\\n\\n\\n', '\n\n\n'), ('\\n---\\n', '\n---\n'), ('\n---\n', '\n---\n'), ('\\t', '\t'), ('***', '***')],
)
def test_a_separator_is_written_as_in_python(bpe, written, separator):
    folder = prepare(separator.join(STORIES), tokenizer=str(bpe), separator=written, val_fraction=0.3)
    assert_whole_and_apart(*both_of(folder), STORIES)


@pytest.mark.parametrize('separator', ['§', '\\n— ✂ —\\n', '\\u2042'])
def test_a_separator_may_be_any_character(bpe, separator):
    text = separator.replace('\\n', '\n').replace('\\u2042', '\u2042').join(STORIES)
    folder = prepare(text, tokenizer=str(bpe), separator=separator, val_fraction=0.3)
    assert_whole_and_apart(*both_of(folder), STORIES)


@pytest.mark.parametrize('separator', ['', '\\', '\\x', '\\u12'])
def test_an_invalid_separator_is_an_error(bpe, separator):
    with pytest.raises(UserError, match='separator'):
        prepare(tokenizer=str(bpe), separator=separator)
    assert not Path('data').exists()


def test_windows_line_ends_and_byte_order_mark_make_no_difference(bpe):
    plain = both_of(prepare(tokenizer=str(bpe), val_fraction=0.3))
    windows = both_of(prepare('\ufeff' + TEXT.replace('\n', '\r\n'), tokenizer=str(bpe), val_fraction=0.3))
    assert windows == plain


# Which files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'input', ['a.txt,b.txt,sub/c.txt', '*.txt,sub/*.txt', '[ab].txt,sub/c.txt', '**/*.txt', '?.txt,sub/c.txt']
)
def test_names_and_patterns_are_read_in_order(bpe, input):
    Path('sub').mkdir()
    for name, stories in (('a', STORIES[:3]), ('b', STORIES[3:7]), ('sub/c', STORIES[7:])):
        Path(f'{name}.txt').write_text('\n\n\n'.join(stories), encoding='utf-8')
    folder = prepare(None, input=input, tokenizer=str(bpe), val_fraction=0)
    assert documents_of(folder, 'train') == STORIES
    assert [source['name'] for source in meta_of(folder)['sources']] == ['a.txt', 'b.txt', 'c.txt']


def test_a_file_named_twice_is_read_once(bpe):
    """Otherwise a story could be both in train.bin and in val.bin."""
    folder = prepare(input='stories.txt,*.txt,./stories.txt', tokenizer=str(bpe), val_fraction=0.3)
    assert_whole_and_apart(*both_of(folder), STORIES)
    assert len(meta_of(folder)['sources']) == 1


def test_a_file_name_may_look_like_a_pattern(bpe):
    Path('story[1].txt').write_text(TEXT, encoding='utf-8')
    folder = prepare(None, input='story[1].txt', tokenizer=str(bpe), val_fraction=0)
    assert documents_of(folder, 'train') == STORIES


def test_a_shipped_file_is_found_from_any_folder(bpe):
    folder = prepare(None, input='data/childrens_stories/childrens_stories.txt', tokenizer=str(bpe), val_fraction=0)
    assert documents_of(folder, 'train') == stories_of(corpus())


@pytest.mark.parametrize('name', ['nowhere.txt', 'nowhere*.txt', 'empty', 'stories.docx'])
def test_the_error_names_a_file_that_cannot_be_read(name):
    Path('empty').mkdir()
    Path('stories.docx').write_text(TEXT, encoding='utf-8')
    with pytest.raises(UserError) as error:
        prepare(input=name)
    assert name in str(error.value)
    assert (
        name.endswith('*.txt')
        or name == 'nowhere.txt'
        or '.txt, .json, .jsonl, .csv, .tsv, .parquet' in str(error.value)
    )
    assert not Path('data').exists()


def test_the_error_names_the_byte_that_is_not_utf8():
    Path('latin1.txt').write_bytes('Es war einmal ein Fräulein'.encode('latin-1'))
    with pytest.raises(UserError, match=r'latin1\.txt .*UTF-8.*byte 20'):
        prepare(input='latin1.txt', tokenizer='tiny')  # which is shipped


@pytest.mark.parametrize('text', ['', '\n\n\n\n', ' \n\t\n\n\n \r\n'])
def test_an_empty_text_is_an_error(text):
    with pytest.raises(UserError, match='no text'):
        prepare(text, tokenizer='tiny')
    assert not Path('data').exists()


@pytest.mark.parametrize('missing', ['input', 'dataset'])
def test_input_and_dataset_are_required(missing):
    with pytest.raises(UserError, match=r'--input=.*--dataset='):
        prepare(**{missing: ''})


# Tokenizers -----------------------------------------------------------------------------------------------------------


def test_characters_have_the_separator_before_between_and_after():
    folder = prepare(tokenizer='char', val_fraction=0.3)
    meta = meta_of(folder)
    tokenizer = tokenizer_from_contents(meta['tokenizer'])
    assert isinstance(tokenizer, CharTokenizer)
    assert meta['tokenizer']['chars'] == sorted(set(TEXT))
    parts = []
    for split in ('train', 'val'):
        text = tokenizer.decode(ids_of(folder, split))
        assert text.startswith('\n\n\n') and text.endswith('\n\n\n')
        parts.append(text.strip('\n').split('\n\n\n'))
    assert_whole_and_apart(*parts, STORIES)


def test_a_bpe_is_trained_on_the_training_part_only():
    text = '\n\n\n'.join(f'{letter}{letter} ' * 500 for letter in 'abcdefghij')
    folder = prepare(text, train_bpe=300, val_fraction=0.3)
    meta = meta_of(folder)
    tokenizer = tokenizer_from_contents(meta['tokenizer'])
    train, val = both_of(folder)
    assert (len(train), len(val)) == (7, 3)
    for document in train:
        assert len(tokenizer.encode(document)) < 1000
    for document in val:
        assert len(tokenizer.encode(document)) >= 1000  # it never saw this letter, so it has no token for two of them


def test_a_trained_bpe_has_the_requested_size():
    folder = prepare(train_bpe=300, val_fraction=0.3)
    assert meta_of(folder)['vocab_size'] == 300
    assert_whole_and_apart(*both_of(folder), STORIES)


def test_a_bpe_of_too_few_tokens_is_an_error_and_writes_nothing():
    with pytest.raises(UserError, match=r'\b100\b'):
        prepare(train_bpe=100)
    assert not Path('data').exists()


@pytest.mark.parametrize(('vocab_size', 'dtype'), [(2**16, np.uint16), (2**16 + 1, np.uint32), (0x110000, np.uint32)])
def test_a_large_vocabulary_takes_32_bits_per_token(monkeypatch, vocab_size, dtype):
    last = chr(vocab_size - 1)
    monkeypatch.setattr(prepare_bin, 'tokenizer_from_name', lambda name: CodePoints(vocab_size, eot=0))
    folder = prepare(f'ab{last}', tokenizer='any', val_fraction=0)
    assert np.fromfile(folder / 'train.bin', dtype).tolist() == [0, ord('a'), ord('b'), ord(last), 0]
    assert meta_of(folder)['dtype'] == np.dtype(dtype).name
    assert meta_of(folder)['vocab_size'] == vocab_size


# Tables and the hub, test splits, duplicates --------------------------------------------------------------------------


@pytest.mark.parametrize('suffix', ['jsonl', 'csv'])
def test_rows_become_documents_and_empty_ones_are_counted(bpe, capsys, suffix):
    rows = [{'id': 'a', 'story': story} for story in [*STORIES[:4], '', *STORIES[4:], '\n']]
    with open(f'stories.{suffix}', 'w', newline='', encoding='utf-8') as file:
        if suffix == 'jsonl':
            file.writelines(json.dumps(row) + '\n' for row in rows)
        else:
            writer = csv.DictWriter(file, ['id', 'story'])
            writer.writeheader()
            writer.writerows(rows)
    folder = prepare(None, input=f'stories.{suffix}', text_column='story', tokenizer=str(bpe), val_fraction=0.3)
    assert_whole_and_apart(*both_of(folder), STORIES)
    assert meta_of(folder)['empty_skipped'] == 2
    assert '0 duplicates of earlier documents, 2 rows without text' in capsys.readouterr().out


def test_a_hub_dataset_is_prepared_like_a_file_of_the_same_documents(bpe):
    Path('hub').mkdir()
    Path('hub/train.jsonl').write_text(''.join(json.dumps({'text': story}) + '\n' for story in STORIES))
    hub_folder = prepare(None, input='', hf_dataset='hub', tokenizer=str(bpe), val_fraction=0.3, dataset='tales')
    written = [(hub_folder / name).read_bytes() for name in ('train.bin', 'val.bin')]
    assert meta_of(hub_folder)['sources'] == [{'hf_dataset': 'hub', 'config': None, 'split': 'train', 'revision': None}]
    file_folder = prepare(tokenizer=str(bpe), val_fraction=0.3)
    assert [(file_folder / name).read_bytes() for name in ('train.bin', 'val.bin')] == written


@pytest.mark.slow
def test_an_unreachable_hub_is_an_error_of_one_line(tmp_path):
    nowhere = {'HF_HOME': str(tmp_path / 'cache'), 'HF_ENDPOINT': 'http://127.0.0.1:9', 'NO_PROXY': '127.0.0.1'}
    arguments = ['--hf_dataset=someone/tales', '--dataset=tales', f'--tokenizer={PROJECT / "models" / "tiny"}']
    process = run_script('prepare_bin.py', *arguments, cwd=tmp_path, env=nowhere)
    assert_friendly_error(process, '--hf_dataset=someone/tales', 'hub', '--input')
    assert not Path('data').exists()


@pytest.mark.parametrize('settings', [{}, {'input': 'a.txt', 'hf_dataset': 'someone/tales'}], ids=['none', 'both'])
def test_files_or_a_hub_dataset_are_required_but_not_both(settings):
    with pytest.raises(UserError, match=r'--input=.* or --hf_dataset='):
        prepare_bin.main(Settings(dataset='tales', **settings))


def test_a_test_split_is_separate_and_an_old_one_is_deleted(bpe):
    folder = prepare(tokenizer=str(bpe), val_fraction=0.2, test_fraction=0.2)
    parts = [documents_of(folder, split) for split in ('train', 'val', 'test')]
    assert all(parts)
    assert sorted(itertools.chain(*parts)) == sorted(STORIES)
    assert meta_of(folder)['test']['documents'] == len(parts[2])
    prepare(tokenizer=str(bpe), val_fraction=0.2)
    assert documents_of(folder, 'val') == parts[1]
    assert not (folder / 'test.bin').exists()
    assert 'test' not in meta_of(folder)


def test_val_and_test_may_take_the_whole_text(bpe):
    folder = prepare(tokenizer=str(bpe), val_fraction=0.7, test_fraction=0.3)  # 1 - 0.7 - 0.3 is not exactly 0
    assert ids_of(folder, 'train') == []
    assert_whole_and_apart(documents_of(folder, 'val'), documents_of(folder, 'test'), STORIES)


def test_fractions_that_exceed_1_are_an_error():
    with pytest.raises(UserError, match='exceed 1'):
        prepare(val_fraction=0.6, test_fraction=0.5)


def test_the_second_of_equal_documents_is_left_out(bpe, capsys):
    text = '\n\n\n'.join([*STORIES, *STORIES[:5], STORIES[0] + '!'])
    folder = prepare(text, tokenizer=str(bpe), val_fraction=0.3)
    assert_whole_and_apart(*both_of(folder), [*STORIES, STORIES[0] + '!'])
    assert meta_of(folder)['duplicates_dropped'] == 5
    assert 'left out: 5 duplicates' in capsys.readouterr().out
    folder = prepare(text, tokenizer=str(bpe), val_fraction=0, keep_duplicates=True)
    assert documents_of(folder, 'train') == text.split('\n\n\n')
    assert meta_of(folder)['duplicates_dropped'] == 0


def test_a_bpe_cannot_be_trained_on_nothing():
    with pytest.raises(UserError, match='training part'):
        prepare(train_bpe=300, val_fraction=1)
    assert not Path('data').exists()


@pytest.mark.parametrize(
    ('eot', 'bos', 'front', 'expected'),
    [
        (2, 1, (1,), [2, 1]),  # Llama 2: </s><s>
        (2, 1, (), [2]),  # GPT-2, Qwen: only what ends a text
        (2, 2, (2,), [2]),  # OPT: one token begins and ends a text
        (None, 1, (1,), [1]),
        (None, 1, (), [1]),
        (None, None, (), [10, 10]),
    ],
)
def test_documents_are_separated_as_the_model_saw_them(eot, bos, front, expected):
    tokenizer = CodePoints(256, None)
    tokenizer.roles = Roles(bos, () if eot is None else (eot,))
    tokenizer.front = front
    assert prepare_bin.separator_ids(tokenizer, '\n\n') == expected
