"""What is scored: pairs of prompt and response, as here, or a running text, as in `evaluation.running_text`.

Each source has a `name`, a `sha256`, a `count`, and the number of `bad` items. `units(first)` yields (index, unit), one
by one, from an index on; a unit is a pair or a segment. `encode(unit, ...)` turns it into an Item: token ids for each
model.
"""

import sys
from itertools import groupby
from typing import NamedTuple

from tqdm import tqdm

from common.errors import UserError
from common.files import file_sha256, resolve_path
from common.notes import note
from common.strings import separator_between, show_invisible
from evaluation.pair_files import COMMON_KEYS, FORMS, read_pairs
from lm.boundary import describe_join, join_response
from lm.scoring import WINDOW


class Item(NamedTuple):
    """A unit, encoded."""

    row: dict  # what its row begins with: id, prompt, response
    pairs: list  # for each model: (prompt ids, response ids) of the response, then of each distractor
    unusual: list  # for each model: the lm.boundary.EncodedPair of the first of them that has a note, else None


class PairSource:
    """The pairs of a file, or those given."""

    def __init__(self, path=None, given=None, skip_bad=False, keys=COMMON_KEYS, chat=False):
        """Read all pairs once, so that errors are reported before anything is computed.

        chat: whether they go through a chat template, so that a prompt may be a list of messages.
        """
        self.name = None if path is None else str(path)
        self._path, self._given, self._keys, self._chat = path, given, keys, chat
        bad, self.count = [], 0
        for _ in tqdm(self._read(bad.append), 'reading', unit=' pairs', leave=False, delay=3, disable=None):
            if bad and not skip_bad:
                refuse_pair(bad[0])
            self.count += 1
        if bad and not skip_bad:
            self._refuse_end(bad)
        self.bad = len(bad)
        for line in bad:
            report_skipped_pair(line)
        self.sha256 = None if path is None else file_sha256(resolve_path(path))

    def _read(self, on_bad):
        for pair in self._given if self._path is None else read_pairs(self._path, on_bad, self._keys):
            if isinstance(pair.prompt, str) or self._chat:
                yield pair
            else:
                on_bad(f'{self._path}: pair {pair.index} is a conversation, which only eval.py --chat=True scores')

    def _refuse_end(self, bad):
        """Stop if the file ends with bad pairs: leaving them out is no help if there are no others."""
        if self.count:
            refuse_pair(bad[0])
        others = f'; none of its {len(bad):,} items is a pair' if len(bad) > 1 else ''
        raise UserError(f'{bad[0]}{others}; the file should be {FORMS}')

    def count_joined(self, separator):
        """Return between how many prompts and responses the separator is put."""
        if self._chat:
            return 0
        return sum(bool(separator_between(pair.prompt, pair.response, separator)) for _, pair in self.units())

    def note_joined(self, separator, setting='--separator'):
        """Say between how many prompts and responses the separator is put. setting: the one that names it."""
        if joined := self.count_joined(separator):
            pairs = f' ({joined:,} of {self.count:,} pairs)' if self.count > 1 else ''
            note(describe_join(separator, setting) + pairs)

    def units(self, first=0):
        """Yield (index, Pair); the indices of bad items are missing."""
        for pair in self._read(on_bad=lambda line: None):
            if pair.index >= first:
                yield pair.index, pair

    def encode(self, pair, tokenizers, boundary, separator):
        """Return an Item. Raises UserError for a pair that a tokenizer cannot encode."""
        responses = [pair.response, *pair.distractors]
        if not self._chat:
            responses = [join_response(pair.prompt, text, separator) for text in responses]
        try:
            encoded = [
                [tokenizer.split_pair(pair.prompt, response, boundary) for response in responses]
                for tokenizer in tokenizers
            ]
        except UserError as error:
            raise UserError(f'{self.name or "the pair"}: pair {pair.index}: {error}') from error
        id = {} if pair.id is None else {'id': pair.id}
        pairs = [[choice[:2] for choice in choices] for choices in encoded]
        unusual = [next((choice for choice in choices if choice.note), None) for choices in encoded]
        row = {**id, 'prompt': show_messages(pair.prompt), 'response': pair.response}
        return Item(row, pairs, unusual)


def show_messages(prompt):
    """Return a prompt as a text: messages in lines, each after its role."""
    if isinstance(prompt, str):
        return prompt
    return '\n'.join(f'{message["role"]}: {message["content"]}' for message in prompt)


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


def refuse_pair(reason):
    """Stop at a bad pair that is not the only one."""
    raise UserError(f'{reason} (--skip_bad=True leaves it out)')


def report_skipped_pair(reason):
    """Print that a bad pair is left out."""
    print(f'{show_invisible(reason)}; left out', file=sys.stderr)
