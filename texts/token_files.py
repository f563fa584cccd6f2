"""Open the token files of a dataset, data/<dataset>/train.bin, val.bin, test.bin and meta.json.

A dataset of pairs also has train.mask.bin and so on, with one byte for each token: 1 if it counts in the loss, as those
of responses do, else 0.
"""

import hashlib
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import expand_path, file_sha256, is_there, open_regular, resolve_path
from common.folders import finish_replacing
from common.json_files import read_json_object
from common.strings import show_value
from texts.splits import SPLITS

FILES = (*(f'{split}{end}' for split in SPLITS for end in ('.bin', '.mask.bin')), 'meta.json')  # written together
AGAIN = 'make the dataset again with prepare_bin.py'
HASHED_BYTES = 2**28  # of larger files the hash is not checked, which would take seconds, but the size is


def dataset_folder(dataset):
    """Return data/<dataset> in the current folder or, if it is not there, the one that the project ships.

    The dataset may also be named with its folder, data/mine.
    """
    path = resolve_path(Path('data') / expand_path(dataset))
    return resolve_path(dataset) if str(dataset).startswith('data/') and not path.exists() else path


def read_meta(dataset):
    """Return the contents of a dataset's meta.json; {} if nanoGPT prepared it, which writes none."""
    path = dataset_folder(dataset) / 'meta.json'
    try:
        meta = read_json_object(path, missing={})
    except UserError as error:
        raise UserError(f'{error}; prepare_bin.py can make it again') from error
    for split in SPLITS:
        if not isinstance(meta.get(split, {}), dict):
            raise UserError(f'{path} is damaged: its {split} is not a JSON object; prepare_bin.py can make it again')
    return meta


def open_tokens(dataset, split):
    """Return the tokens of one split as a TokenFile: only what is used is read.

    Raises UserError if the file is missing, or is not the one that meta.json describes.
    """
    path = dataset_folder(dataset) / f'{split}.bin'
    finish_replacing(path.parent, FILES)
    if not is_there(path):
        more = ' --test_fraction=0.1' if split == 'test' else ''
        text = expand_path(dataset)
        text, name = (text, text.stem) if text.is_file() else ('your_text.txt', dataset)  # the text for the dataset
        raise UserError(
            f'there is no {path}; make it with: python prepare_bin.py --input={text} --dataset={name}{more}'
        )
    meta = read_meta(dataset)
    name = meta.get('dtype', 'uint16')
    if name not in ('uint16', 'uint32'):
        raise UserError(
            f'{path.parent / "meta.json"} is damaged: its dtype is {show_value(name)}, but token files have uint16 '
            'or uint32; prepare_bin.py can make it again'
        )
    tokens = TokenFile(path, np.dtype(name))
    if meta:
        _check_belongs(path, tokens, meta.get(split))
    return tokens


def open_mask(dataset, split, tokens):
    """Return which of a split's tokens count in the loss, as a TokenFile of zeros and ones; None if all do.

    Raises UserError if it is missing, or is not the one that meta.json describes.
    """
    path = dataset_folder(dataset) / f'{split}.mask.bin'
    meta = read_meta(dataset)
    described = meta.get(split, {})
    if not is_there(path):
        if 'mask_sha256' in described:
            raise UserError(f'there is no {path}, which belongs to the meta.json beside it: {AGAIN}')
        return None
    mask = TokenFile(path, np.dtype(np.uint8))
    if meta:
        named = {'tokens': len(tokens), 'sha256': described['mask_sha256']} if 'mask_sha256' in described else None
        _check_belongs(path, mask, named)
    if len(mask) != len(tokens):
        raise UserError(f'{path} has {len(mask):,} bytes, but {split}.bin has {len(tokens):,} tokens: {AGAIN}')
    return mask


def _check_belongs(path, tokens, described):
    """Raise UserError unless a file is the one that meta.json describes: its size and, if it is not large, its hash."""
    if not described:
        raise UserError(f'{path} does not belong to the meta.json beside it, which names no such file: {AGAIN}')
    is_same = described.get('tokens', len(tokens)) == len(tokens)
    if is_same and 'sha256' in described and path.stat().st_size <= HASHED_BYTES:
        is_same = described['sha256'] == file_sha256(path)
    if not is_same:
        raise UserError(
            f'{path} is not the file that the meta.json beside it describes, so it may be of another text or '
            f'tokenizer: {AGAIN}'
        )


class TokenFile(Sequence):
    """The tokens in a file, (n,), which are read when they are used, a slice at a time.

    It is no memory map: if the file is cut short while it is in use, reading a map kills the process, and reading a
    file is an error.
    """

    def __init__(self, path, dtype):
        """Open the file. Raises UserError if that fails, or if its size is not a multiple of a token's."""
        self.path, self.dtype, self.itemsize = path, dtype, dtype.itemsize
        self._file = open_regular(path)
        weakref.finalize(self, self._file.close)
        size = path.stat().st_size
        self._lock = threading.Lock()  # batches are loaded in one thread and evaluated in another
        if size % self.itemsize:
            raise UserError(
                f'{path} cannot be read as {dtype.name} tokens: its {size:,} bytes are no multiple of {self.itemsize}'
            )
        self._length = size // self.itemsize

    def __len__(self):
        return self._length

    def __getitem__(self, part):
        """Return the tokens of a slice, which has no step, as an array; or one token."""
        if not isinstance(part, slice):
            return int(self._read(range(len(self))[part], 1)[0])
        start, stop, _ = part.indices(len(self))
        return self._read(start, max(0, stop - start))

    def _read(self, start, count):
        with self._lock:
            try:
                self._file.seek(start * self.itemsize)
                data = self._file.read(count * self.itemsize)
            except OSError as error:
                raise UserError(f'{self.path} cannot be read: {error.strerror}') from error
        if len(data) < count * self.itemsize:
            raise UserError(f'{self.path} became shorter while it was in use; make it again with prepare_bin.py')
        return np.frombuffer(data, self.dtype)


def tokens_sha256(tokens):
    """Return a SHA-256 of tokens; for more than 256 MiB, that of 256 pieces of 1 MiB, spread evenly."""
    size, piece = len(tokens), 2**20 // tokens.itemsize
    digest = hashlib.sha256(str(size).encode())
    starts = range(0, size, piece) if size <= 256 * piece else np.linspace(0, size - piece, 256).astype(int)
    for start in starts:
        digest.update(np.ascontiguousarray(tokens[start : start + piece]))
    return digest.hexdigest()


def largest_token(tokens, piece=2**24):
    """Return the largest token id, -1 if there are no tokens; reads `piece` tokens at a time."""
    return max((int(tokens[start : start + piece].max()) for start in range(0, len(tokens), piece)), default=-1)
