"""A message names what is wrong: a file that may not or cannot be read is not damaged, nor is a machine without memory.

/proc/self/mem stands for a file on a disk that fails: it is a regular file, and reading its beginning is an error.
"""

import errno
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
from helpers.permissions import forbid
from helpers.scripts import PROJECT
from safetensors import torch as safetensors

from common.errors import UserError, describe_os_error, explain_write_error
from common.files import file_sha256
from evaluation.pair_files import read_pairs
from lm.checkpoint import load_model
from lm.locate import locate_model
from lm.tokenizer import GPT2Tokenizer, tokenizer_from_folder
from lm.weight_files import load_torch_file, read_safetensors
from texts.readers import input_paths, read_files
from training.log import read_curves

FAILING = Path('/proc/self/mem')
on_linux = pytest.mark.skipif(not FAILING.exists(), reason='the system has no file that always fails')
with_permissions = pytest.mark.skipif(sys.platform == 'win32', reason='Windows has other permissions')
FILES = ['config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json']


@pytest.fixture
def model(tmp_path):
    """The folder of a model."""
    return Path(shutil.copytree(PROJECT / 'models' / 'tiny', tmp_path / 'model'))


def assert_says(words, function, *arguments):
    """Check that a call raises a UserError that begins with these words and calls nothing damaged."""
    with pytest.raises(UserError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert message.startswith(words), message
    assert not any(word in message for word in ('damaged', 'truncated', 'neither', 'cannot write')), message


# Without permission ---------------------------------------------------------------------------------------------------


@with_permissions
@pytest.mark.parametrize('name', FILES)
def test_a_file_of_a_model_without_permission(model, name):
    with forbid(model / name):
        assert_says(f'cannot read {model / name}: Permission denied', load_model, str(model))


@with_permissions
@pytest.mark.parametrize('name', ['.', 'inner'])
def test_a_folder_of_texts_without_permission_is_not_empty(tmp_path, name):
    (tmp_path / 'texts' / 'inner').mkdir(parents=True)
    for path in (tmp_path / 'texts' / 'a.txt', tmp_path / 'texts' / 'inner' / 'b.txt'):
        path.write_text('Once')
    folder = tmp_path / 'texts' / name
    with forbid(folder):
        assert_says(f'cannot read {folder}: Permission denied', input_paths, str(tmp_path / 'texts'))


@with_permissions
def test_a_dataset_without_permission(tmp_path):
    path = tmp_path / 'a.parquet'
    path.write_bytes(b'PAR1')
    with forbid(path):
        assert_says(f'cannot read {path}: Permission denied', list, read_files([path], ''))


# On a disk that fails -------------------------------------------------------------------------------------------------


@on_linux
@pytest.mark.parametrize('name', FILES)
def test_a_file_of_a_model_on_a_failing_disk(model, name):
    (model / name).unlink()
    (model / name).symlink_to(FAILING)
    assert_says(f'cannot read {model / name}: ', load_model, str(model))


@on_linux
def test_a_checkpoint_on_a_failing_disk(tmp_path):
    (tmp_path / 'ckpt.pt').symlink_to(FAILING)
    assert_says(f'cannot read {tmp_path / "ckpt.pt"}: Input/output', load_model, 'resume', tmp_path)


@on_linux
@pytest.mark.parametrize('name', ['a.txt', 'a.csv', 'a.json', 'a.jsonl', 'a.txt.gz', 'a.txt.xz'])
def test_a_text_on_a_failing_disk(tmp_path, name):
    (tmp_path / name).symlink_to(FAILING)
    assert_says(f'cannot read {tmp_path / name}: Input/output', list, read_files([tmp_path / name], ''))


@on_linux
def test_other_files_on_a_failing_disk(tmp_path):
    for name in ('meta.pkl', 'metrics.jsonl', 'train.bin'):
        (tmp_path / name).symlink_to(FAILING)
    assert_says(f'cannot read {tmp_path / "meta.pkl"}: Input/output', tokenizer_from_folder, tmp_path)
    assert_says(f'cannot read {tmp_path / "metrics.jsonl"}: Input/output', read_curves, tmp_path)
    assert_says(f'cannot read {tmp_path / "train.bin"}: Input/output', file_sha256, tmp_path / 'train.bin')


def test_an_input_that_fails_while_a_dataset_is_written(tmp_path):
    folder, other = tmp_path / 'data', tmp_path / 'books' / 'a.txt'
    of_input = explain_write_error(OSError(errno.EIO, 'Input/output error', str(other)), folder)
    assert of_input == f'{other}: Input/output error; {folder} was not written'
    for error in (
        OSError(errno.ENOSPC, 'No space left on device'),
        OSError(errno.ENOSPC, 'No space left on device', str(folder / '.new.x' / 'train.bin')),
        OSError(errno.ENOSPC, 'No space left on device', str(tmp_path / '.data.x.partial')),
    ):
        assert explain_write_error(error, folder).startswith(f'cannot write {folder}: No space left on device; nothing')
    assert 'read' in describe_os_error(OSError(errno.EIO, 'Input/output error'))


# Without memory -------------------------------------------------------------------------------------------------------


def test_weights_for_which_there_is_no_memory(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    torch.save({'model': {}}, tmp_path / 'a.pt')
    monkeypatch.setattr(torch, 'load', fail)
    with pytest.raises(RuntimeError, match='allocate memory'):
        load_torch_file(tmp_path / 'a.pt')
    safetensors.save_file({'a': torch.zeros(1)}, tmp_path / 'a.safetensors')
    monkeypatch.setattr('lm.weight_files.load_file', fail)
    with pytest.raises(RuntimeError, match='allocate memory'):
        read_safetensors(tmp_path / 'a.safetensors')


def test_a_pickle_that_asks_for_any_amount_of_memory(tmp_path, monkeypatch):
    (tmp_path / 'meta.pkl').write_bytes(pickle.dumps({'itos': {}}))

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr('lm.plain_pickle._PlainUnpickler', fail)
    with pytest.raises(UserError, match=r"as nanoGPT's meta\.pkl: MemoryError"):
        tokenizer_from_folder(tmp_path)


# A file or folder in place of the other, and other encodings ----------------------------------------------------------


def test_out_dir_is_a_file(tmp_path):
    (tmp_path / 'out').write_text('')
    assert_says(
        f'cannot read {tmp_path / "out" / "ckpt.pt"}: {tmp_path / "out"} is a file',
        load_model,
        'resume',
        tmp_path / 'out',
    )


@pytest.mark.parametrize('name', ['a.parquet', 'a.arrow', 'a.json', 'a.csv'])
def test_a_folder_in_place_of_pairs(tmp_path, name):
    (tmp_path / name).mkdir()
    assert_says(f'cannot read {tmp_path / name}: it is a folder', list, read_pairs(tmp_path / name, print))


@pytest.mark.parametrize('name', ['config.json', 'tokenizer.json', 'tokenizer_config.json'])
def test_a_model_whose_files_were_saved_as_utf_16(model, name):
    before = load_model(str(model), device='cpu')
    (model / name).write_bytes((model / name).read_text(encoding='utf-8').encode('utf-16'))
    after = load_model(str(model), device='cpu')
    assert after[0].config == before[0].config
    assert after[1].fingerprint == before[1].fingerprint


def test_other_encodings_are_named(model):
    text = (model / 'tokenizer.json').read_text(encoding='utf-8')
    (model / 'tokenizer.json').write_bytes(text.encode('latin-1', 'replace'))
    assert_says(f'{model / "tokenizer.json"} is not UTF-8 text (byte ', load_model, str(model))
    (model / 'config.json').write_bytes((model / 'config.json').read_bytes().decode().encode('utf-16-le'))
    shutil.copy(PROJECT / 'models' / 'tiny' / 'tokenizer.json', model)
    assert_says(f'{model / "config.json"} is not text: byte 1 is NUL; it is like UTF-16', load_model, str(model))


# Caches and downloads -------------------------------------------------------------------------------------------------


def test_a_cache_that_may_not_be_read(monkeypatch):
    import huggingface_hub
    import tiktoken

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, 'Permission denied', '/cache/file')

    monkeypatch.setattr(tiktoken, 'get_encoding', refuse)
    assert_says(
        "GPT-2's vocabulary cannot be read or kept: /cache/file: Permission denied", GPT2Tokenizer().encode, 'a'
    )

    class Api:
        def model_info(self, name, revision=None):
            raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(huggingface_hub, 'HfApi', Api)
    words = "'someone/model' could not be downloaded: cannot print or write: No space left on device; HF_HOME"
    assert_says(words, locate_model, 'someone/model')
