"""TODO."""

import re
from array import array
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.errors import UserError

SPLITS = ('train', 'val', 'test')
PIECE = 2**18  # characters that a tokenizer is given at a time; some take memory or time out of proportion to more


# One file of them all -------------------------------------------------------------------------------------------------


@dataclass
class Corpus:
    """Documents in a file, one after another; of each the byte it starts at, the one it ends before, its characters.

    These are all that is in memory: 20 bytes a document, and 80 at the peak, when digests are sorted for duplicates.
    """

    path: Path
    starts: np.ndarray  # (n,) int64
    ends: np.ndarray  # (n,) int64
    chars: np.ndarray  # (n,) uint32

    def texts(self, which):
        """Yield the documents of these indices, in pieces that a tokenizer can take."""
        return chain.from_iterable(
            map(cut_for_tokenizer, read_documents(self.path, self.starts[which], self.ends[which]))
        )


def gather_documents(documents, path, keep_duplicates):
    """Write documents to a file, the first of equal ones; return (Corpus, how many were left out for which reason)."""
    sizes, chars, digests, empty = array('I'), array('I'), bytearray(), 0
    with open(path, 'wb') as file:
        for document in tqdm(documents, desc='reading', unit='document', leave=False, disable=None):
            if not document:
                empty += 1
                continue
            data = document.encode()
            file.write(data)
            sizes.append(len(data))
            chars.append(len(document))
            digests += blake2b(data, digest_size=16).digest()
    kept = np.arange(len(sizes))
    if kept.size and not keep_duplicates:
        _, first = np.unique(np.frombuffer(digests, 'S16'), return_index=True)
        kept = np.sort(first)
    ends = np.cumsum(sizes, dtype=np.int64)
    corpus = Corpus(path, (ends - sizes)[kept], ends[kept], np.array(chars)[kept])
    return corpus, {'duplicates_dropped': len(sizes) - len(kept), 'empty_skipped': empty}


def read_documents(path, starts, ends):
    """Yield the documents between these bytes of a file."""
    with open(path, 'rb') as file:
        for start, end in zip(map(int, starts), map(int, ends), strict=True):
            file.seek(start)
            yield file.read(end - start).decode()


def cut_for_tokenizer(text):
    """Yield a text in pieces of PIECE characters at the most, whose tokens are together those of the text.

    A byte-level BPE begins a new word before any white space, and tokens end where words do. So that is where to cut;
    only a run of PIECE characters without a space is cut elsewhere.
    """
    start = 0
    while len(text) - start > PIECE:
        found = re.compile(r'(?s:.*)\S(?=[ \n])').match(text, start, start + PIECE)
        end = found.end() if found else start + PIECE
        yield text[start:end]
        start = end
    yield text[start:]


# Splits ------------------------------------------------------------------------------------------------------------


def assign_splits(corpus, shares, seed):
    """Return the split of each document, its index in SPLITS. One document alone is cut to make as many as needed."""
    wanted = [number for number, share in enumerate(shares) if share > 0]
    if len(corpus.starts) == 1:
        (text,) = read_documents(corpus.path, corpus.starts, corpus.ends)
        parts = cut_to_shares(text, [shares[number] for number in wanted])
        sizes = np.array([len(part.encode()) for part in parts])
        corpus.ends = corpus.starts[0] + np.cumsum(sizes)
        corpus.starts = corpus.ends - sizes
        split = np.array(wanted[: len(parts)])
    else:
        split = hold_out(corpus.chars, shares, seed)
    lacking = [SPLITS[number] for number in wanted if number not in split]
    if lacking:
        few = f'{len(corpus.starts)} document{"s"[: len(corpus.starts) > 1]}'
        raise UserError(
            f'{few}: too little for {", ".join(SPLITS[number] for number in wanted)}, nothing is left for '
            f'{", ".join(lacking)}; more text helps, another --separator, or --val_fraction=0'
        )
    return split


def hold_out(chars, shares, seed):
    """Return the split of each document: whole ones, until val and test have their share of the characters.

    chars: (n,) characters of each. Every split that is asked for has one document at the least, while there are any.
    """
    split = np.zeros(len(chars), np.uint8)
    order = np.random.default_rng(seed).permutation(len(chars))
    for number, share in enumerate(shares[1:], 1):
        others = sum(other > 0 for other in (shares[0], *shares[number + 1 :]))
        spare = int((split == 0).sum()) - others  # each of the others needs one
        goal, size = share * int(chars.sum(dtype=np.int64)), 0
        for index in order if share > 0 else ():
            # One more document only if that brings the size nearer to the goal.
            if spare and not split[index] and size + chars[index] / 2 <= goal:
                split[index] = number
                size += int(chars[index])
                spare -= 1
        if share > 0 and not size and spare:
            left = np.flatnonzero(split == 0)
            split[left[np.argmin(chars[left])]] = number
    if shares[0] == 0:
        split[split == 0] = 2 if shares[2] > 0 else 1
    return split


def cut_to_shares(text, shares):
    """Cut one text in as many parts as there are shares, or in fewer if it is too short."""
    if len(shares) == 1 or len(text) == 1:
        return [text]
    at = place_to_halve(text, shares[0] / sum(shares))
    return [text[:at], *cut_to_shares(text[at:], shares[1:])]


def place_to_halve(text, fraction):
    """Return where to cut a text in two: after a paragraph, else a line, else a word, else anywhere.

    A place counts only if it makes the smaller part at most half as large again, and at least half as large, as asked.
    """
    goal = fraction * len(text)
    near = min(fraction, 1 - fraction) * len(text) / 2
    for end in ('\n\n', '\n', ' '):
        places = [match.end() for match in re.finditer(end, text) if 0 < match.end() < len(text)]
        places = [place for place in places if abs(place - goal) <= near]
        if places:
            return min(places, key=lambda place: abs(place - goal))
    return min(max(round(goal), 1), len(text) - 1)
