"""The files of prepare_bin.py: the same bytes from any number of processes; all written or none."""

import errno
import hashlib
import os
from pathlib import Path

import pytest
from helpers.datasets import STORIES, TEXT, CodePoints, documents_of, ids_of, meta_of, prepare, save_small_bpe
from helpers.models import needs_gpt2_vocabulary
from helpers.scripts import PROJECT

import prepare_bin
from common.errors import UserError
from lm.tokenizer import CharTokenizer, tokenizer_from_contents
from texts import encoding


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope='module')
def bpe(tmp_path_factory):
    return save_small_bpe(tmp_path_factory.mktemp('bpe'))


# Several processes ----------------------------------------------------------------------------------------------------


@pytest.fixture
def many_batches(monkeypatch):
    """A text of many batches, small enough to test quickly; and settings with which it gets several processes."""
    monkeypatch.setattr(prepare_bin, 'BATCH', 2000)
    monkeypatch.setattr(prepare_bin, 'BYTES_PER_WORKER', 1)
    return '\n\n\n'.join(f'{number}. {story}' for number in range(20) for story in STORIES)


@pytest.mark.parametrize(
    'tokenizer',
    [
        pytest.param('gpt2', id='gpt2', marks=[needs_gpt2_vocabulary, pytest.mark.slow]),
        pytest.param(str(PROJECT / 'models' / 'tiny'), id='tiny'),
        pytest.param('char', id='char', marks=pytest.mark.slow),
    ],
)
def test_any_number_of_processes_writes_the_bytes_of_a_plain_loop(many_batches, tokenizer):
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
        for document in ids:  # the documents of this split follow each other in order
            if here[: len(document)] == document:
                here = here[len(document) :]
        assert here == between


def test_an_error_in_a_worker_is_the_same_error(many_batches):
    CharTokenizer(sorted(set(TEXT) | set('0123456789.'))).save('letters')
    with pytest.raises(UserError, match='U\\+1F40A'):
        prepare(many_batches + '\n\n\n🐊', tokenizer='letters', num_workers=2)
    assert not Path('data').exists()


def test_a_worker_that_dies_is_an_error_and_leaves_nothing(many_batches, bpe, monkeypatch):
    monkeypatch.setattr(encoding, 'prepare_worker', os._exit)
    with pytest.raises(UserError, match='--num_workers=1'):
        prepare(many_batches, tokenizer=str(bpe), num_workers=2)
    assert not Path('data').exists()


@pytest.mark.parametrize('setting', ['num_workers', 'max_documents'])
def test_at_least_one_process_and_one_document_are_required(setting):
    with pytest.raises(UserError, match=f'--{setting}=0'):
        prepare(**{setting: 0})


def test_max_documents_reads_the_first_documents(bpe):
    folder = prepare(tokenizer=str(bpe), val_fraction=0.0, max_documents=3)
    assert documents_of(folder, 'train') == STORIES[:3]


# meta.json, and failures while writing --------------------------------------------------------------------------------


def test_meta_json_describes_the_files(bpe):
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
    """A limit on the size of files stands in for the disk: the text has 36,000 bytes, its tokens have 52,000."""
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


def test_ids_that_do_not_fit_into_16_bits_leave_the_old_files(bpe, monkeypatch):
    folder = prepare(tokenizer=str(bpe))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(prepare_bin, 'tokenizer_from_name', lambda name: CodePoints(300, eot=70_000))
    with pytest.raises(OverflowError):
        prepare('Another story.', tokenizer='any', val_fraction=0)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_unknown_character_in_val_leaves_the_old_files(bpe):
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
