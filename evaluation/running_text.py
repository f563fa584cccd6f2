"""A running text cut into segments: every token is scored once, after as much of the text as fits into the context.

The text is read and encoded piece by piece, and its token ids are kept in a temporary file, so memory does not grow
with the text.
"""

import codecs
import re
import tempfile
from itertools import islice

import numpy as np

from common.errors import UserError
from common.files import file_sha256, resolve_path
from common.notes import note
from common.text_files import read_text_chunks, text_kind
from evaluation.sources import Item
from lm.scoring import cut_text, segment_ends
from lm.tokenizer import GPT2Tokenizer, tokenizer_from_folder
from lm.tokenizer_base import EOT
from texts.readers import with_notes
from texts.tables import TABLES
from texts.token_files import dataset_folder, open_mask, open_tokens

PIECE = 2**18  # characters to encode at a time
TOKENS = 2**18  # tokens to decode or to measure at a time
SAFE_END = re.compile(r'(?s:.*)\S(?=[ \n])')  # the last place where a text can be cut


class TextSource:
    """A running text, cut into segments at the same places for each tokenizer.

    A text file is one text. A split of a dataset, `mine` (its val part) or `mine/test`, keeps the <|endoftext|> between
    documents.
    """

    def __init__(self, text, tokenizers, block_sizes, stride=None):
        """text: as --text. block_sizes: of each tokenizer's model. stride: tokens per segment, None for half a context.

        Raises UserError if the text cannot be read, is empty, or does not suit a tokenizer or the stride.
        """
        path, chunks, ids, text_tokenizer = open_text(text)
        self.name, self.sha256, self.bad = str(text), file_sha256(path), 0
        ids_of = {} if ids is None else {text_tokenizer.fingerprint: ids}
        for tokenizer in tokenizers:
            if tokenizer.fingerprint not in ids_of:
                ids_of[tokenizer.fingerprint] = encode_chunks(chunks(), tokenizer, text)
        self._ids = [ids_of[tokenizer.fingerprint] for tokenizer in tokenizers]  # (n,) of the whole text, of each
        n = len(self._ids[0])
        if not n:
            raise UserError(f'--text={text} is empty')
        self._first = [tokenizer.start_ids() for tokenizer in tokenizers]
        if any(len(ids) < 2 and not first for ids, first in zip(self._ids, self._first)):
            raise UserError(f'--text={text} has only one token, which has no probability: nothing comes before it')
        if not all(self._first):
            note(
                'this tokenizer has no token that begins a text: the first token has no probability and is not counted'
            )
        self._block_sizes = share_context(tokenizers, block_sizes)
        block_size = min(block_sizes)
        self.stride = max(1, block_size // 2) if stride is None else stride
        if not 1 <= self.stride <= block_size:
            raise UserError(f'--stride={stride}: it must be 1 to {block_size} tokens, the context of the model')
        ends = np.array(segment_ends(n, block_size, self.stride))
        self.count = len(ends)
        # The first tokenizer decides where segments end; another's token belongs to the segment in which it starts.
        self._ends = [
            ends if ids is self._ids[0] else move_ends(ends, self._ids[0], tokenizers[0], ids, tokenizer)
            for ids, tokenizer in zip(self._ids, tokenizers)
        ]

    def units(self, first=0):
        """Yield (index, segment) from `first` on; a segment is (prompt ids, response ids) for each tokenizer."""
        cut = [cut_text(*cuts) for cuts in zip(self._ids, self._ends, self._block_sizes, self._first)]
        return islice(enumerate(zip(*cut)), first, None)

    def encode(self, unit, tokenizers, boundary, separator):
        """Return an Item. The text was encoded as a whole, so there is no boundary and no separator."""
        (before, response), *_ = unit
        row = {'response': tokenizers[0].decode(response, before)}
        return Item(row, [[pair] for pair in unit], [None] * len(unit))


def share_context(tokenizers, block_sizes):
    """Return how many tokens each model is shown: the same number if their tokenizers are the same.

    Fine-tuning often shortens the context, and with a shorter context any text is less likely. A comparison of before
    and after must not show that.
    """
    if len(set(block_sizes)) == 1:
        return block_sizes
    sizes = ' and '.join(f'{size:,}' for size in block_sizes)
    if len({tokenizer.fingerprint for tokenizer in tokenizers}) > 1:
        note(f'these models have contexts of {sizes} tokens of their own, so one is shown more of the text')
        return block_sizes
    shortest = min(block_sizes)
    note(f'these models have contexts of {sizes} tokens; to compare them, both are shown at most {shortest:,}')
    return [shortest] * len(block_sizes)


def open_text(text):
    """Return (path, chunks, ids, tokenizer) of --text; ids and tokenizer are None unless it is a dataset.

    chunks: a function that returns an iterator over the text.
    """
    path, dataset, split = resolve_path(text), text, 'val'
    if text.endswith(('/train', '/val', '/test')) and not dataset_folder(text).is_dir():
        dataset, _, split = text.rpartition('/')
    if path.is_file():
        if (kind := text_kind(path)) in TABLES:
            command = f'python prepare_bin.py --input={path} --dataset=mine --val_fraction=1, then --text=mine'
            if kind in ('.parquet', '.arrow', '.feather'):
                raise UserError(f'--text={text} is a table, not a running text; to score the texts in it: {command}')
            note(f'{path} is scored as it is, with all marks of {kind}; to score the texts in it: {command}')
            return path, lambda: read_text_chunks(path), None, None
        return path, lambda: with_notes(read_text_chunks(path), path, EOT), None, None
    folder = dataset_folder(dataset)
    if folder.is_dir() and (folder != path or any(folder.glob('*.bin'))):
        path = folder / f'{split}.bin'
        ids = open_tokens(dataset, split)
        if open_mask(dataset, split, ids) is not None:
            note(f'{path} holds pairs, and their prompts are scored, too; --eval_data=FILE scores responses only')
        tokenizer = tokenizer_from_folder(path.parent) or GPT2Tokenizer()
        return path, lambda: decode_tokens(ids, tokenizer), ids, tokenizer
    if path.is_dir():
        raise UserError(
            f'--text={text} is a folder; name one file of it, or make a dataset of all: python prepare_bin.py '
            f'--input={text} --dataset={path.name} --val_fraction=1, then --text={path.name}'
        )
    hint = '; it names a file: for a text itself, give --start= and --fixed_response="the text"' if ' ' in text else ''
    raise UserError(f'--text={text} is neither a text file nor a dataset in data/{hint}')


def decode_tokens(ids, tokenizer):
    """Yield the text of token ids in chunks."""
    decoder = codecs.getincrementaldecoder('utf-8')(errors='replace')
    for start in range(0, len(ids), TOKENS):
        before = ids[max(0, start - TOKENS) : start].tolist()
        yield decoder.decode(tokenizer.decode_bytes(ids[start : start + TOKENS].tolist(), before))
    yield decoder.decode(b'', final=True)


# Encoding in pieces -------------------------------------------------------------------------------------------------


def encode_chunks(chunks, tokenizer, name):
    """Return the ids of a text that arrives in chunks, (n,), in a temporary file: the same ids as of the whole text."""
    if tokenizer.can_be_cut:
        pieces = cut_before_space(chunks)
    else:
        note(f'{name}: this tokenizer has no places where a text can be cut safely; it is encoded as a whole')
        pieces = [''.join(chunks)]
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    with tempfile.TemporaryFile() as file:
        for piece in pieces:
            file.write(tokenizer.encode_array(piece, dtype).tobytes())
        file.flush()
        # An empty file cannot be mapped. The map keeps the file's contents after it is closed.
        return np.memmap(file, dtype, mode='r') if file.tell() else np.zeros(0, dtype)


def cut_before_space(chunks, size=None):
    """Yield a text in pieces of about `size` characters, cut where a space or a newline follows something else."""
    size = size or PIECE
    text = ''
    for chunk in chunks:
        start = len(text) - 1 if len(text) >= size else 0  # no cut was found before
        text += chunk
        if len(text) >= size and (found := SAFE_END.match(text, max(0, start))):
            yield text[: found.end()]
            text = text[found.end() :]
    yield text


# Places in the text, in bytes ----------------------------------------------------------------------------------------


def move_ends(ends, ids, tokenizer, other_ids, other_tokenizer):
    """Return where the segments end in the tokens of another tokenizer: before the first that starts at an end."""
    places = np.zeros(len(ends), np.int64)  # of the ends, in bytes
    for first, starts in byte_starts(ids, tokenizer):
        low, high = np.searchsorted(ends, [first, first + len(starts) - 1], side='right')
        places[low:high] = starts[ends[low:high] - first]
    moved = sum(np.searchsorted(starts[:-1], places) for _, starts in byte_starts(other_ids, other_tokenizer))
    moved[-1] = len(other_ids)
    return moved


def byte_starts(ids, tokenizer):
    """Yield, for TOKENS ids at a time, the index of the first, and where each starts and the last ends, in bytes."""
    place = 0
    for first in range(0, len(ids), TOKENS):
        sizes = tokenizer.byte_sizes(ids[first : first + TOKENS], ids[max(0, first - TOKENS) : first])
        starts = place + np.insert(np.cumsum(sizes), 0, 0)
        yield first, starts
        place = starts[-1]
