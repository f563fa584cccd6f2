"""Text files become token files: whole documents, each in one split, nothing lost; and the stories that are shipped."""

import csv
import errno
import hashlib
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from helpers.models import needs_gpt2_vocabulary
from helpers.scripts import PROJECT, assert_friendly_error, run_script

import prepare_bin
from common.errors import UserError
from lm.tokenizer import EOT, CharTokenizer, tokenizer_from_contents, train_bpe
from prepare_bin import Settings
from texts.documents import split_documents

STORIES = [
    f'The Tale of {name}\n\n'
    + '\n\n'.join(f'{name} went {way}, {number} times, and met a {beast}.' for number, way in enumerate(ways, 2))
    for name, beast, ways in [
        ('Ada', 'newt', ['up', 'down', 'out']),
        ('Bo', 'goose', ['home']),
        ('Cy', 'snail 🐌', ['slowly', 'on', 'and on', 'past the “inn”', 'under']),
        ('Dot', 'dragon', ['by', 'in']),
        ('Élan', 'hare', ['off', 'far', 'very far', 'back']),
        ('Flo', 'crow', ['up']),
        ('Gus', 'goat', ['over', 'around', 'through', 'up', 'down', 'home']),
        ('Hal', 'hen', ['to bed', 'to sea']),
        ('Ivy', 'ibis', ['aboard', 'ashore']),
        ('Jo', 'jackdaw', ['by train', 'by boat', 'on foot']),
        ('Kit', 'kite', ['up', 'up', 'up']),
        ('Lu', 'lynx', ['nowhere']),
    ]
]
TEXT = '\n\n\n'.join(STORIES) + '\n'


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope='module')
def bpe(tmp_path_factory):
    """A folder with a small tokenizer that has <|endoftext|>."""
    folder = tmp_path_factory.mktemp('bpe')
    train_bpe(STORIES, 300).save(folder)
    return folder


def prepare(text=TEXT, **settings):
    """Run the script on a text; return its data folder."""
    if text is not None:
        Path('stories.txt').write_bytes(text.encode())
    prepare_bin.main(Settings(**{'input': 'stories.txt', 'dataset': 'tales'} | settings))
    return Path('data/tales')


def meta_of(folder):
    return json.loads((folder / 'meta.json').read_text(encoding='utf-8'))


def ids_of(folder, split):
    return np.fromfile(folder / f'{split}.bin', dtype=meta_of(folder)['dtype']).tolist()


def documents_of(folder, split):
    """The documents that a .bin file holds, by its <|endoftext|>; checks that these stand before, between, after."""
    tokenizer = tokenizer_from_contents(meta_of(folder)['tokenizer'])
    ids = ids_of(folder, split)
    if not ids:
        return []
    assert ids[0] == ids[-1] == tokenizer.eot
    marks = [place for place, id in enumerate(ids) if id == tokenizer.eot]
    return [tokenizer.decode(ids[start + 1 : end]) for start, end in itertools.pairwise(marks)]


def both_of(folder):
    return documents_of(folder, 'train'), documents_of(folder, 'val')


def assert_whole_and_apart(train, val, documents):
    """Every document in exactly one split, in the order of the text."""
    assert sorted(train + val) == sorted(documents)
    assert train == [document for document in documents if document in train]
    assert val == [document for document in documents if document in val]


# Splitting ------------------------------------------------------------------------------------------------------------


def test_documents_stay_whole_in_one_split_in_order(bpe):
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


def test_the_same_seed_writes_the_same_files_and_another_other_ones(bpe):
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
def test_a_fraction_that_is_none_is_an_error(fraction):
    with pytest.raises(UserError, match='val_fraction'):
        prepare(val_fraction=fraction)


# A text that is one document ------------------------------------------------------------------------------------------


def test_one_text_without_separators_goes_in_part_to_val(bpe):
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
def test_a_separator_is_given_as_it_is_written_in_python(bpe, written, separator):
    folder = prepare(separator.join(STORIES), tokenizer=str(bpe), separator=written, val_fraction=0.3)
    assert_whole_and_apart(*both_of(folder), STORIES)


@pytest.mark.parametrize('separator', ['§', '\\n— ✂ —\\n', '\\u2042'])
def test_a_separator_may_be_any_character(bpe, separator):
    text = separator.replace('\\n', '\n').replace('\\u2042', '\u2042').join(STORIES)
    folder = prepare(text, tokenizer=str(bpe), separator=separator, val_fraction=0.3)
    assert_whole_and_apart(*both_of(folder), STORIES)


@pytest.mark.parametrize('separator', ['', '\\', '\\x', '\\u12'])
def test_a_separator_that_is_none_is_an_error(bpe, separator):
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


def test_a_file_that_is_named_twice_is_read_once(bpe):
    """Or a story would stand in train.bin and val.bin both."""
    folder = prepare(input='stories.txt,*.txt,./stories.txt', tokenizer=str(bpe), val_fraction=0.3)
    assert_whole_and_apart(*both_of(folder), STORIES)
    assert len(meta_of(folder)['sources']) == 1


def test_a_name_that_looks_like_a_pattern_is_found(bpe):
    Path('story[1].txt').write_text(TEXT, encoding='utf-8')
    folder = prepare(None, input='story[1].txt', tokenizer=str(bpe), val_fraction=0)
    assert documents_of(folder, 'train') == STORIES


def test_a_file_that_the_project_ships_is_found_from_any_folder(bpe):
    folder = prepare(None, input='data/childrens_stories/childrens_stories.txt', tokenizer=str(bpe), val_fraction=0)
    assert documents_of(folder, 'train') == stories_of(corpus())


@pytest.mark.parametrize('name', ['nowhere.txt', 'nowhere*.txt', 'empty', 'stories.md'])
def test_a_file_that_cannot_be_read_is_named(name):
    Path('empty').mkdir()
    Path('stories.md').write_text(TEXT, encoding='utf-8')
    with pytest.raises(UserError) as error:
        prepare(input=name)
    assert name in str(error.value)
    assert name.endswith('*.txt') or name == 'nowhere.txt' or '.txt, .jsonl, .csv, .parquet' in str(error.value)
    assert not Path('data').exists()


def test_a_file_that_is_not_utf8_is_an_error_that_names_the_place():
    Path('latin1.txt').write_bytes('Es war einmal ein Fräulein'.encode('latin-1'))
    with pytest.raises(UserError, match=r'latin1\.txt .*UTF-8.*byte 20'):
        prepare(input='latin1.txt')


@pytest.mark.parametrize('text', ['', '\n\n\n\n', ' \n\t\n\n\n \r\n'])
def test_a_text_without_text_is_an_error(text):
    with pytest.raises(UserError, match='no text'):
        prepare(text)
    assert not Path('data').exists()


@pytest.mark.parametrize('missing', ['input', 'dataset'])
def test_input_and_dataset_must_be_said(missing):
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
        assert len(tokenizer.encode(document)) >= 1000  # it never saw this letter, so it has no token of two of them


def test_a_trained_bpe_has_the_size_asked_for():
    folder = prepare(train_bpe=300, val_fraction=0.3)
    assert meta_of(folder)['vocab_size'] == 300
    assert_whole_and_apart(*both_of(folder), STORIES)


def test_a_bpe_of_too_few_tokens_is_an_error_and_writes_nothing():
    with pytest.raises(UserError, match='100 were asked for'):
        prepare(train_bpe=100)
    assert not Path('data').exists()


class CodePoints:
    """A tokenizer whose ids are Unicode's code points."""

    def __init__(self, vocab_size, eot):
        self.vocab_size, self.eot, self.contents = vocab_size, eot, {'kind': 'code points'}

    def encode(self, text):
        return [ord(char) for char in text]

    def encode_array(self, text, dtype):
        return np.array(self.encode(text), dtype)


@pytest.mark.parametrize(('vocab_size', 'dtype'), [(2**16, np.uint16), (2**16 + 1, np.uint32), (0x110000, np.uint32)])
def test_ids_beyond_16_bits_take_32(monkeypatch, vocab_size, dtype):
    last = chr(vocab_size - 1)
    monkeypatch.setattr(prepare_bin, 'from_name', lambda name: CodePoints(vocab_size, eot=0))
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
    from_hub = prepare(None, input='', hf_dataset='hub', tokenizer=str(bpe), val_fraction=0.3, dataset='tales')
    written = [(from_hub / name).read_bytes() for name in ('train.bin', 'val.bin')]
    assert meta_of(from_hub)['sources'] == [{'hf_dataset': 'hub', 'config': None, 'split': 'train', 'revision': None}]
    from_file = prepare(tokenizer=str(bpe), val_fraction=0.3)
    assert [(from_file / name).read_bytes() for name in ('train.bin', 'val.bin')] == written


def test_a_hub_that_cannot_be_reached_is_an_error_of_one_line(tmp_path):
    nowhere = {'HF_HOME': str(tmp_path / 'cache'), 'HF_ENDPOINT': 'http://127.0.0.1:9', 'NO_PROXY': '127.0.0.1'}
    arguments = ['--hf_dataset=someone/tales', '--dataset=tales', f'--tokenizer={PROJECT / "models" / "tiny"}']
    process = run_script('prepare_bin.py', *arguments, cwd=tmp_path, env=nowhere)
    assert_friendly_error(process, '--hf_dataset=someone/tales', 'hub', '--input')
    assert not Path('data').exists()


@pytest.mark.parametrize('settings', [{}, {'input': 'a.txt', 'hf_dataset': 'someone/tales'}], ids=['none', 'both'])
def test_either_files_or_the_hub_must_be_named(settings):
    with pytest.raises(UserError, match=r'--input=.* or --hf_dataset='):
        prepare_bin.main(Settings(dataset='tales', **settings))


def test_a_test_split_is_kept_apart_and_gone_when_it_is_not_asked_for(bpe):
    folder = prepare(tokenizer=str(bpe), val_fraction=0.2, test_fraction=0.2)
    parts = [documents_of(folder, split) for split in ('train', 'val', 'test')]
    assert all(parts)
    assert sorted(itertools.chain(*parts)) == sorted(STORIES)
    assert meta_of(folder)['test']['documents'] == len(parts[2])
    prepare(tokenizer=str(bpe), val_fraction=0.2)
    assert documents_of(folder, 'val') == parts[1]
    assert not (folder / 'test.bin').exists()
    assert 'test' not in meta_of(folder)


def test_all_of_a_text_may_be_for_val_and_test(bpe):
    folder = prepare(tokenizer=str(bpe), val_fraction=0.7, test_fraction=0.3)  # 1 - 0.7 - 0.3 is not quite 0
    assert ids_of(folder, 'train') == []
    assert_whole_and_apart(documents_of(folder, 'val'), documents_of(folder, 'test'), STORIES)


def test_fractions_of_more_than_everything_are_an_error():
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


# Several processes ----------------------------------------------------------------------------------------------------


@pytest.fixture
def many_batches(monkeypatch):
    """A text of many batches, cut small enough that processes are worth while."""
    monkeypatch.setattr(prepare_bin, 'BATCH', 2000)
    monkeypatch.setattr(prepare_bin, 'WORTH_A_PROCESS', 1)
    return '\n\n\n'.join(f'{number}. {story}' for number in range(20) for story in STORIES)


TOKENIZERS = [
    pytest.param('gpt2', marks=needs_gpt2_vocabulary),
    str(PROJECT / 'models' / 'tiny'),
    'char',
]


@pytest.mark.parametrize('tokenizer', TOKENIZERS, ids=['gpt2', 'tiny', 'char'])
def test_the_bytes_are_those_of_a_plain_loop_whatever_the_number_of_processes(many_batches, tokenizer):
    written = []
    for num_workers in (1, 3):
        folder = prepare(many_batches, tokenizer=tokenizer, num_workers=num_workers)
        written.append([(folder / name).read_bytes() for name in ('train.bin', 'val.bin', 'meta.json')])
    assert written[0] == written[1]
    meta = meta_of(folder)
    plain = tokenizer_from_contents(meta['tokenizer'])
    between = plain.encode('\n\n\n') if plain.eot is None else [plain.eot]
    ids = [between + plain.encode(document) for document in many_batches.split('\n\n\n')]
    for split in ('train', 'val'):
        here = ids_of(folder, split)
        for document in ids:  # in order, those of this split one after another
            if here[: len(document)] == document:
                here = here[len(document) :]
        assert here == between


def test_an_error_in_another_process_is_the_same_error(many_batches):
    CharTokenizer(sorted(set(TEXT) | set('0123456789.'))).save('letters')
    with pytest.raises(UserError, match='U\\+1F40A'):
        prepare(many_batches + '\n\n\n🐊', tokenizer='letters', num_workers=2)
    assert not Path('data').exists()


def test_a_process_that_dies_is_an_error_and_leaves_nothing(many_batches, bpe, monkeypatch):
    monkeypatch.setattr(prepare_bin, 'start_worker', os._exit)
    with pytest.raises(UserError, match='--num_workers=1'):
        prepare(many_batches, tokenizer=str(bpe), num_workers=2)
    assert not Path('data').exists()


@pytest.mark.parametrize('setting', ['num_workers', 'max_documents'])
def test_there_is_at_least_one_process_and_one_document(setting):
    with pytest.raises(UserError, match=f'--{setting}=0'):
        prepare(**{setting: 0})


def test_the_first_documents_of_a_large_text(bpe):
    folder = prepare(tokenizer=str(bpe), val_fraction=0.0, max_documents=3)
    assert documents_of(folder, 'train') == STORIES[:3]


# What is written down, and what happens when writing fails ------------------------------------------------------------


def test_meta_json_counts_what_is_there(bpe):
    Path('more.txt').write_text('Möwe\n', encoding='utf-8')
    folder = prepare(input='stories.txt,more.txt', tokenizer=str(bpe), val_fraction=0.3)
    meta = meta_of(folder)
    for split in ('train', 'val'):
        content, documents = (folder / f'{split}.bin').read_bytes(), documents_of(folder, split)
        assert meta[split] == {
            'documents': len(documents),
            'bytes': len(''.join(documents).encode()),
            'tokens': len(content) // 2,
            'sha256': hashlib.sha256(content).hexdigest(),
        }
    for source, name in zip(meta['sources'], ('stories.txt', 'more.txt'), strict=True):
        content = Path(name).read_bytes()
        assert source == {'name': name, 'bytes': len(content), 'sha256': hashlib.sha256(content).hexdigest()}
    assert meta['vocab_size'] == 300
    assert sorted(path.name for path in folder.iterdir()) == ['meta.json', 'train.bin', 'val.bin']


def test_a_write_that_fails_leaves_the_old_files(bpe, monkeypatch):
    folder = prepare(tokenizer=str(bpe))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr('common.files.os.fsync', full)
    with pytest.raises(Exception, match='No space left'):
        prepare('Another story.', tokenizer=str(bpe), val_fraction=0)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize('room', [20_000, 45_000], ids=['while reading', 'while encoding'])
def test_a_disk_that_is_full_leaves_the_old_files(bpe, room):
    """A limit on the size of files stands in for the disk: the text is of 36,000 bytes, and its tokens of 52,000."""
    resource = pytest.importorskip('resource')  # Windows has no such limits
    folder = prepare(tokenizer=str(bpe))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    Path('long.txt').write_text(''.join(f'{number:05}\n\n\n' for number in range(6000)))
    CharTokenizer('0123456789\n').save('digits')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(UserError, match=r'cannot write .*tales.*File too large'):
            prepare(None, input='long.txt', tokenizer='digits', val_fraction=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_ids_that_do_not_fit_leave_the_old_files(bpe, monkeypatch):
    folder = prepare(tokenizer=str(bpe))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(prepare_bin, 'from_name', lambda name: CodePoints(300, eot=70_000))
    with pytest.raises(OverflowError):
        prepare('Another story.', tokenizer='any', val_fraction=0)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_character_that_only_val_has_and_the_tokenizer_lacks_leaves_the_old_files(bpe):
    folder = prepare(tokenizer=str(bpe))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    CharTokenizer(sorted(set(TEXT))).save('letters')
    val = documents_of(folder, 'val')
    assert val
    with pytest.raises(UserError, match='U\\+1F40A'):
        prepare(TEXT.replace(val[-1], val[-1][:-1] + '🐊'), tokenizer='letters')
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_file_where_the_folder_should_be_is_an_error(bpe):
    Path('data').mkdir()
    Path('data/tales').write_text('mine')
    with pytest.raises(UserError, match='tales'):
        prepare(tokenizer=str(bpe))
    assert Path('data/tales').read_text() == 'mine'


# The stories that are shipped -----------------------------------------------------------------------------------------

CORPUS = PROJECT / 'data' / 'childrens_stories'


def corpus():
    return (CORPUS / 'childrens_stories.txt').read_text(encoding='utf-8')


def stories_of(text):
    return list(split_documents([text], '\n\n\n'))


def test_corpus_has_enough_stories_each_with_its_own_title():
    stories = stories_of(corpus())
    titles = [story.split('\n')[0] for story in stories]
    assert len(stories) >= 40
    assert len(corpus().encode()) >= 60_000
    assert len({title.casefold() for title in titles}) == len(titles)
    assert all(0 < len(title) <= 60 and title == title.strip() for title in titles)
    bodies = [story.split('\n', 1)[1].strip() for story in stories]
    assert len(set(bodies)) == len(bodies)
    assert min(map(len, bodies)) > 200


def test_corpus_says_no_paragraph_twice_in_different_stories():
    seen = {}
    for number, story in enumerate(stories_of(corpus())):
        for paragraph in story.split('\n'):
            if len(paragraph) > 60:
                assert seen.setdefault(paragraph, number) == number, paragraph


def test_corpus_is_clean_text():
    text = corpus()
    assert '\r' not in text and '\ufffd' not in text and '\t' not in text and EOT not in text
    assert all(line == line.rstrip() for line in text.split('\n'))
    assert all(char == '\n' or char.isprintable() for char in text)


def test_corpus_token_files_decode_to_exactly_its_stories():
    files = [CORPUS / name for name in ('train.bin', 'val.bin', 'meta.json')]
    if not any(file.exists() for file in files):
        pytest.skip('the corpus has no token files yet')
    meta = meta_of(CORPUS)
    if meta['tokenizer'] == {'kind': 'gpt2'} and needs_gpt2_vocabulary.args[0]:
        pytest.skip(needs_gpt2_vocabulary.kwargs['reason'])
    train, val = both_of(CORPUS)
    assert train and val
    assert_whole_and_apart(train, val, stories_of(corpus()))
    for split in ('train', 'val'):
        assert meta[split]['sha256'] == hashlib.sha256((CORPUS / f'{split}.bin').read_bytes()).hexdigest()
    assert meta['sources'][0]['sha256'] == hashlib.sha256((CORPUS / 'childrens_stories.txt').read_bytes()).hexdigest()
