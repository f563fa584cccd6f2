"""What is scored: pairs of prompt and response from a file, a single pair, or a running text cut into segments.

Each source has a `name`, a `sha256`, a `count`, and the number of `bad` items. `units(first)` yields (index, unit), one
by one, from an index on; a unit is a pair or a segment. `encode(unit, ...)` turns it into an Item: token ids for each
model.
"""

import codecs
import json
import sys
from itertools import groupby, islice
from typing import NamedTuple

import numpy as np

from common.errors import UserError
from common.files import file_sha256, resolve_path
from common.strings import replace_surrogates
from lm.boundary import join_response
from lm.scoring import WINDOW, cut_text, segment_ends
from lm.tokenizer import GPT2Tokenizer, tokenizer_from_folder
from texts.token_files import dataset_folder, open_tokens

FORMS = 'a JSON list or JSON lines of {"prompt": ..., "response": ...} or [prompt, response]'


class Pair(NamedTuple):
    """A prompt, a response to score and, for a multiple-choice question, the wrong responses."""

    index: int  # its position in the file, from 0
    id: str | None
    prompt: str
    response: str
    distractors: list[str]


class Item(NamedTuple):
    """A unit, encoded."""

    row: dict  # what its row begins with: id, prompt, response
    pairs: list  # for each model: (prompt ids, response ids) of the response, then of each distractor


class PairSource:
    """The pairs of a file, or those given."""

    def __init__(self, path=None, given=None, skip_bad=False):
        """Read all pairs once, so that errors are reported before anything is computed."""
        self.name = None if path is None else str(path)
        self._path, self._given = path, given
        bad = []
        self.count = sum(1 for _ in self._read(bad.append if skip_bad else refuse_pair))
        self.bad = len(bad)
        for line in bad:
            report_skipped_pair(line)
        self.sha256 = None if path is None else file_sha256(resolve_path(path))

    def _read(self, on_bad):
        return iter(self._given) if self._path is None else read_pairs(self._path, on_bad)

    def units(self, first=0):
        """Yield (index, Pair); the indices of bad items are missing."""
        for pair in self._read(on_bad=lambda line: None):
            if pair.index >= first:
                yield pair.index, pair

    def encode(self, pair, tokenizers, boundary, separator):
        """Return an Item. Raises UserError for a pair that a tokenizer cannot encode."""
        responses = [join_response(pair.prompt, text, separator) for text in (pair.response, *pair.distractors)]
        try:
            pairs = [
                [tokenizer.encode_pair(pair.prompt, response, boundary) for response in responses]
                for tokenizer in tokenizers
            ]
        except UserError as error:
            raise UserError(f'{self.name or "the pair"}: pair {pair.index}: {error}') from error
        id = {} if pair.id is None else {'id': pair.id}
        return Item({**id, 'prompt': pair.prompt, 'response': pair.response}, pairs)


class TextSource:
    """A running text, cut into segments at the same places for each tokenizer; every token is scored once.

    A text file is one text. A split of a dataset, `mine` (its val part) or `mine/test`, keeps the <|endoftext|> between
    documents.
    """

    def __init__(self, text, tokenizers, block_sizes, stride=None):
        """text: as --text. block_sizes: of each tokenizer's model. stride: tokens per segment, None for half a context.

        Raises UserError if the text cannot be read, is empty, or does not suit a tokenizer or the stride.
        """
        path, written, ids, text_tokenizer = open_text(text)
        self.name, self.sha256, self.bad = str(text), file_sha256(path), 0
        self._ids = []  # of the whole text, for each tokenizer
        for tokenizer in tokenizers:
            if tokenizer.eot is None:
                raise UserError('--text needs a tokenizer with <|endoftext|>, which comes before the first token')
            if text_tokenizer is not None and tokenizer.fingerprint == text_tokenizer.fingerprint:
                self._ids.append(ids)
            else:
                written = text_tokenizer.decode(ids) if written is None else written
                self._ids.append(tokenizer.encode(written))
        if not self._ids[0]:
            raise UserError(f'--text={text} is empty')
        block_size = min(block_sizes)
        self.stride = max(1, block_size // 2) if stride is None else stride
        if not 1 <= self.stride <= block_size:
            raise UserError(f'--stride={stride}: it must be 1 to {block_size} tokens, the context of the model')
        ends = segment_ends(len(self._ids[0]), block_size, self.stride)
        self.count = len(ends)
        # The first tokenizer decides where segments end; another's token belongs to the segment in which it starts.
        starts = [_byte_starts(ids, tokenizer) for ids, tokenizer in zip(self._ids, tokenizers)]
        self._ends = [
            ends if ids == self._ids[0] else np.searchsorted(start[:-1], starts[0][ends]).tolist()
            for ids, start in zip(self._ids, starts)
        ]
        self._eots = [tokenizer.eot for tokenizer in tokenizers]
        self._block_sizes = block_sizes

    def units(self, first=0):
        """Yield (index, segment) from `first` on; a segment is (prompt ids, response ids) for each tokenizer."""
        cut = [cut_text(*cuts) for cuts in zip(self._ids, self._ends, self._block_sizes, self._eots)]
        return islice(enumerate(zip(*cut)), first, None)

    def encode(self, unit, tokenizers, boundary, separator):
        """Return an Item. The text was encoded as a whole, so there is no boundary and no separator."""
        (_, response), *_ = unit
        return Item({'response': tokenizers[0].decode(response)}, [[pair] for pair in unit])


def open_text(text):
    """Return (path, text, ids, tokenizer) of --text: a file has only a text, a dataset only ids and a tokenizer."""
    path, dataset, split = resolve_path(text), text, 'val'
    if text.endswith(('/train', '/val', '/test')) and not dataset_folder(text).is_dir():
        dataset, _, split = text.rpartition('/')
    if path.is_file():
        try:
            return path, replace_surrogates(path.read_text(encoding='utf-8')), None, None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f'--text={text}: {path} cannot be read as UTF-8 text: {error}') from error
    if dataset_folder(dataset).is_dir():
        path = dataset_folder(dataset) / f'{split}.bin'
        ids = open_tokens(dataset, split).tolist()
        return path, None, ids, tokenizer_from_folder(path.parent) or GPT2Tokenizer()
    raise UserError(f'--text={text} is neither a text file nor a dataset in data/')


def _byte_starts(ids, tokenizer):
    """Return where each token starts in the text, in bytes, and where the last one ends."""
    sizes = {id: len(tokenizer.decode_bytes([id])) for id in set(ids)}
    return np.cumsum([0, *(sizes[id] for id in ids)])


def window_start(index):
    """Return where the window of a unit begins.

    Units are scored a window at a time. Windows have fixed places in the source, so a resumed evaluation makes the same
    batches as an uninterrupted one, and its numbers are bit for bit the same.
    """
    return index - index % WINDOW


def group_windows(units):
    """Yield the units of each window as a list of (index, unit)."""
    for _, window in groupby(units, key=lambda unit: window_start(unit[0])):
        yield list(window)


# Files of pairs -----------------------------------------------------------------------------------------------------


def refuse_pair(reason):
    """Stop at a bad pair."""
    raise UserError(f'{reason} (--skip_bad=True leaves it out)')


def report_skipped_pair(reason):
    """Print that a bad pair is left out."""
    print(f'{reason}; left out', file=sys.stderr)


def read_pairs(path, on_bad):
    """Yield the Pairs of a file: a JSON list, or JSON lines, which are read one by one and need not fit in memory.

    A pair is an object with `prompt`, `response` and, optionally, `id` and `distractors` (a list of texts); or a list
    of prompt and response. on_bad: called with the reason for each item that is neither or repeats an earlier id; if it
    returns, that item is left out. Raises UserError for a file that cannot be read or has no pairs.
    """
    path = resolve_path(path)
    ids = set()
    index = None
    for index, item in _items(path):
        try:
            pair = _pair(index, item)
            if pair.id is not None and pair.id in ids:
                raise ValueError(f'has the id {pair.id!r} of an earlier pair')
        except ValueError as error:
            on_bad(f'{path}: pair {index} {error}')
            continue
        ids.add(pair.id)
        yield pair
    if index is None:
        raise UserError(f'{path} has no pairs; it should be {FORMS}')


def _items(path):
    """Yield (index, item); for an item that is not JSON, the item is a ValueError."""
    if path.exists() and not path.is_file():
        raise UserError(f'{path} is not a regular file; pairs are read twice, so it cannot be a pipe')
    try:
        with open(path, 'rb') as file:
            start = 3 if file.read(3) == codecs.BOM_UTF8 else 0
            file.seek(start)
            if path.suffix != '.jsonl' and _first_byte(file) in (b'[', b''):
                file.seek(start)
                try:
                    items = json.loads(file.read())
                except UnicodeDecodeError as error:
                    raise UserError(f'{path} is not UTF-8 text (byte {error.start})') from error
                except (ValueError, RecursionError) as error:
                    if not str(error).startswith('Extra data'):  # as JSON lines of two-element lists are
                        raise UserError(f'{path} is not JSON: {error}') from error
                else:
                    yield from enumerate(items)
                    return
            file.seek(start)
            for index, line in enumerate(line for line in file if line.strip()):
                try:
                    item = json.loads(line)
                except (ValueError, RecursionError) as error:  # invalid UTF-8 is a ValueError, too
                    item = ValueError(f'is not JSON: {error}; the file should be {FORMS}')
                yield index, item
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}') from error


def _first_byte(file):
    """Return the first byte that is not white space, or b''."""
    byte = b' '
    while byte.isspace():
        byte = file.read(1)
    return byte


def _pair(index, item):
    """Return the Pair of an item. Raises a ValueError whose text continues 'pair 3 ...'."""
    if isinstance(item, Exception):
        raise item
    if isinstance(item, list):
        if len(item) != 2:
            raise ValueError(f'is a list of {len(item)}; a list must be [prompt, response]')
        item = dict(zip(('prompt', 'response'), item))
    if not isinstance(item, dict):
        raise ValueError('is neither {"prompt": ..., "response": ...} nor [prompt, response]')
    for key in ('prompt', 'response'):
        if not isinstance(item.get(key), str):
            raise ValueError(f'has no "{key}"' if key not in item else f'has a "{key}" that is not text')
    distractors = item.get('distractors') or []
    if not isinstance(distractors, list) or not all(isinstance(text, str) for text in distractors):
        raise ValueError('has "distractors" that are not a list of texts')
    id = item.get('id')
    if isinstance(id, bool) or not isinstance(id, (str, int, float, type(None))):
        raise ValueError('has an "id" that is neither text nor a number')
    texts = [replace_surrogates(text) for text in (item['prompt'], item['response'], *distractors)]
    return Pair(index, None if id is None else str(id), texts[0], texts[1], texts[2:])
