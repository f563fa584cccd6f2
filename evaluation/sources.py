"""What is to be scored: pairs of prompt and response from a file, one pair, or a running text cut into pairs.

Each source knows its `name`, `sha256`, `count`, and how many items are `bad`. `units(first)` yields (index, unit) of
what lies in it from an index on, one by one, and `encode(unit)` makes an Item of a unit: token ids for each model.
"""

import codecs
import json
import sys
from itertools import islice
from typing import NamedTuple

import numpy as np

from common.errors import UserError
from common.files import file_sha256, resolve_path
from common.strings import replace_surrogates
from lm.scoring import cut_text, segment_ends
from lm.tokenizer import GPT2Tokenizer, tokenizer_from_folder
from texts.token_files import dataset_folder, open_tokens

FORMS = 'a JSON list or JSON lines of {"prompt": ..., "response": ...} or [prompt, response]'


class Pair(NamedTuple):
    """A prompt, a response to be scored, and for a multiple-choice question the wrong responses."""

    index: int  # its place in the file, from 0
    id: str | None
    prompt: str
    response: str
    distractors: list[str]


class Item(NamedTuple):
    """What one row of the results is about."""

    row: dict  # id, prompt, response: what the row begins with
    pairs: list  # for each model: (prompt ids, response ids) of the response, then of each distractor


class PairSource:
    """The pairs of a file, or those given, encoded for each tokenizer."""

    def __init__(self, path=None, given=None, skip_bad=False):
        """Read it once, so that what is wrong with it is told before anything is computed."""
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
        """Yield (index, Pair); those of bad items are missing."""
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

    A text file is read as one text; a split of a dataset, `mine` (val) or `mine/test`, keeps the <|endoftext|> between
    its documents.
    """

    def __init__(self, text, tokenizers, block_sizes, stride=None):
        path, ids, text_tokenizer, written = resolve_path(text), None, None, None
        dataset, split = text, 'val'
        if text.endswith(('/train', '/val', '/test')) and not dataset_folder(text).is_dir():
            dataset, _, split = text.rpartition('/')
        if path.is_file():
            try:
                written = replace_surrogates(path.read_text(encoding='utf-8'))
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f'--text={text}: {path} cannot be read as UTF-8 text: {error}') from error
        elif dataset_folder(dataset).is_dir():
            path = dataset_folder(dataset) / f'{split}.bin'
            ids = open_tokens(dataset, split).tolist()
            text_tokenizer = tokenizer_from_folder(path.parent) or GPT2Tokenizer()
        else:
            raise UserError(f'--text={text} is neither a text file nor a dataset in data/')
        self.name, self.sha256 = str(text), file_sha256(path)

        self._ids = []
        for tokenizer in tokenizers:
            if tokenizer.eot is None:
                raise UserError('--text needs a tokenizer with <|endoftext|>, for the first token to follow something')
            if text_tokenizer is not None and tokenizer.fingerprint == text_tokenizer.fingerprint:
                self._ids.append(ids)
            else:
                written = text_tokenizer.decode(ids) if written is None else written
                self._ids.append(tokenizer.encode(written))
        if not self._ids[0]:
            raise UserError(f'--text={text} holds no text')
        block_size = min(block_sizes)
        stride = max(1, block_size // 2) if stride is None else stride
        if not 1 <= stride <= block_size:
            raise UserError(f'--stride={stride}: it is 1 to {block_size} tokens, the context of the model')
        ends = segment_ends(len(self._ids[0]), block_size, stride)
        self.count = len(ends)
        # The first tokenizer says where segments end; in another, a token belongs to the segment that it starts in.
        starts = [_byte_starts(ids, tokenizer) for ids, tokenizer in zip(self._ids, tokenizers)]
        self._ends = [
            ends if ids == self._ids[0] else np.searchsorted(start[:-1], starts[0][ends]).tolist()
            for ids, start in zip(self._ids, starts)
        ]
        self.stride, self.bad = stride, 0
        self._eots = [tokenizer.eot for tokenizer in tokenizers]
        self._block_sizes = block_sizes

    def units(self, first=0):
        """Yield (index, what it says to each model) of the segments from `first` on."""
        cut = [cut_text(*cuts) for cuts in zip(self._ids, self._ends, self._block_sizes, self._eots)]
        return islice(enumerate(zip(*cut)), first, None)

    def encode(self, unit, tokenizers, boundary, separator):
        """Return an Item; a segment is cut from what is encoded as one text, so there is no boundary."""
        (_, response), *_ = unit
        return Item({'response': tokenizers[0].decode(response)}, [[pair] for pair in unit])


def _byte_starts(ids, tokenizer):
    """Return where each token starts in the text, in bytes, and where the last one ends."""
    sizes = {id: len(tokenizer.decode_bytes([id])) for id in set(ids)}
    return np.cumsum([0, *(sizes[id] for id in ids)])


def refuse_pair(line):
    """Stop at a bad pair."""
    raise UserError(f'{line} (--skip_bad=True leaves it out)')


def report_skipped_pair(line):
    """Say that a bad pair is left out."""
    print(f'{line}; left out', file=sys.stderr)


def read_pairs(path, on_bad):
    """Yield the Pairs of a file: a JSON list, or JSON lines, which are read one by one and need not fit in memory.

    A pair is an object with `prompt`, `response` and, if one likes, `id` and `distractors` (a list of texts); or a list
    of prompt and response. on_bad: called with a line about each item that is none of these or has the id of an earlier
    one; where it returns, that item is left out. Raises UserError for a file that cannot be read or is empty.
    """
    path = resolve_path(path)
    ids = set()
    index = None
    for index, item in _items(path):
        try:
            pair = _pair(index, item)
            if pair.id is not None and pair.id in ids:
                raise ValueError(f'has the id {pair.id!r}, which an earlier pair has')
        except ValueError as error:
            on_bad(f'{path}: pair {index} {error}')
            continue
        ids.add(pair.id)
        yield pair
    if index is None:
        raise UserError(f'{path} holds no pairs; it takes {FORMS}')


def join_response(prompt, response, separator=' '):
    """Return the response as it follows the prompt: behind a separator where the two would run together.

    That is where there is a prompt, neither side has white space at the join, and the response begins with a letter or
    a digit. lm-evaluation-harness calls the separator `target_delimiter`.
    """
    if prompt and not prompt[-1].isspace() and response and response[0].isalnum():
        return separator + response
    return response


def _items(path):
    """Yield (index, item); an item that is no JSON is the error that says so."""
    if path.exists() and not path.is_file():
        raise UserError(f'{path} is not a file; pairs are read twice, so a pipe will not do')
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
                    if not str(error).startswith('Extra data'):  # which JSON lines of two-element lists would be
                        raise UserError(f'{path} is not JSON: {error}') from error
                else:
                    yield from enumerate(items)
                    return
            file.seek(start)
            for index, line in enumerate(line for line in file if line.strip()):
                try:
                    item = json.loads(line)
                except (ValueError, RecursionError) as error:  # what is not UTF-8 is a ValueError too
                    item = ValueError(f'is not JSON: {error}; the file takes {FORMS}')
                yield index, item
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}') from error


def _first_byte(file):
    """Return the first byte that is not white space, b'' if there is none."""
    byte = b' '
    while byte.isspace():
        byte = file.read(1)
    return byte


def _pair(index, item):
    """Return the Pair that an item means. Raises ValueError that goes on from 'pair 3 ...'."""
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
