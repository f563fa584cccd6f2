"""Open the token files of a dataset, data/<dataset>/train.bin, val.bin, test.bin and meta.json."""

import hashlib
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import check_regular, expand_path, is_there, resolve_path
from common.json_files import read_json_object
from common.strings import show_value


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
        return read_json_object(path, missing={})
    except UserError as error:
        raise UserError(f'{error}; prepare_bin.py can make it again') from error


def open_tokens(dataset, split):
    """Return the tokens of one split as a memory map, (n,): only what is used is read."""
    path = dataset_folder(dataset) / f'{split}.bin'
    if not is_there(path):
        more = ' --test_fraction=0.1' if split == 'test' else ''
        text = expand_path(dataset)
        text, name = (text, text.stem) if text.is_file() else ('your_text.txt', dataset)  # the text for the dataset
        raise UserError(
            f'there is no {path}; make it with: python prepare_bin.py --input={text} --dataset={name}{more}'
        )
    name = read_meta(dataset).get('dtype', 'uint16')
    if name not in ('uint16', 'uint32'):
        raise UserError(
            f'{path.parent / "meta.json"} is damaged: its dtype is {show_value(name)}, but token files have uint16 '
            'or uint32; prepare_bin.py can make it again'
        )
    dtype, size = np.dtype(name), check_regular(path)
    if size == 0:
        return np.zeros(0, dtype)  # an empty file cannot be mapped
    try:
        return np.memmap(path, dtype, mode='r')
    except (OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read as {dtype.name} tokens: {error}') from error


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
