"""Assign each document to the training, validation or test split."""

import re

import numpy as np

from common.errors import UserError
from texts.corpus import read_documents

SPLITS = ('train', 'val', 'test')


def assign_splits(corpus, shares, seed):
    """Return the split of each document as its index in SPLITS, (n,).

    shares: the shares of train, val and test, which add up to 1. A single document, if it is no pair, is cut to fill
    all splits with a share above 0; the corpus then holds its parts. Raises UserError if one of these splits remains
    empty.
    """
    wanted = [number for number, share in enumerate(shares) if share > 0]
    if len(corpus.starts) == 1 and corpus.middles is None:
        (text,) = read_documents(corpus.path, corpus.starts, corpus.ends)
        parts = cut_to_shares(text, [shares[number] for number in wanted])
        sizes = np.array([len(part.encode()) for part in parts])
        corpus.ends = corpus.starts[0] + np.cumsum(sizes)
        corpus.starts = corpus.ends - sizes
        split = np.array(wanted[: len(parts)])
    else:
        split = hold_out(corpus.chars, shares, seed)
    empty = [SPLITS[number] for number in wanted if number not in split]
    if empty:
        count, noun = len(corpus.starts), 'document' if corpus.middles is None else 'pair'
        more = 'text, another --separator,' if corpus.middles is None else 'pairs'
        raise UserError(
            f'{count} {noun}{"s" if count > 1 else ""}: not enough for '
            f'{", ".join(SPLITS[number] for number in wanted)}; nothing is left for {", ".join(empty)}; '
            f'use more {more} or --val_fraction=0'
        )
    return split


def hold_out(chars, shares, seed):
    """Return the split of each document, (n,): whole ones at random, until val and test have their shares of the text.

    chars: (n,) characters of each. While there are enough documents, every split with a share above 0 gets at least
    one.
    """
    split = np.zeros(len(chars), np.uint8)
    order = np.random.default_rng(seed).permutation(len(chars))
    for number, share in enumerate(shares[1:], 1):
        others = sum(other > 0 for other in (shares[0], *shares[number + 1 :]))
        spare = int((split == 0).sum()) - others  # each of the others needs one
        goal, size = share * int(chars.sum(dtype=np.int64)), 0
        for index in order if share > 0 else ():
            # Take another document only if that brings the size closer to the goal.
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
    """Return a text cut into one part for each share, or into fewer if it is too short."""
    if len(shares) == 1 or len(text) == 1:
        return [text]
    cut = find_split_point(text, shares[0] / sum(shares))
    return [text[:cut], *cut_to_shares(text[cut:], shares[1:])]


def find_split_point(text, fraction):
    """Return where to cut a text in two: after a paragraph, else a line, else a word, else anywhere.

    fraction: the share of the first part. A paragraph, line or word end qualifies only if the smaller part then has
    between half and one and a half times its intended length.
    """
    goal = fraction * len(text)
    tolerance = min(fraction, 1 - fraction) * len(text) / 2
    for end in ('\n\n', '\n', ' '):
        places = [match.end() for match in re.finditer(end, text) if 0 < match.end() < len(text)]
        places = [place for place in places if abs(place - goal) <= tolerance]
        if places:
            return min(places, key=lambda place: abs(place - goal))
    return min(max(round(goal), 1), len(text) - 1)
