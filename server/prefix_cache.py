"""The keys and values of texts that were read lately, for texts that begin like them.

A class asks about the same beginnings over and over, and a page about a text that grows. What was read of it before is
copied, and only the rest is computed. The caches that are kept have a bounded size; the one that was of no use for the
longest time goes first.
"""

from typing import NamedTuple

import numpy as np

from model import Cache, LanguageModel


class Kept(NamedTuple):
    """A text, and the keys and values of its tokens."""

    model: LanguageModel
    ids: np.ndarray  # (n,) int64
    cache: Cache  # one row, which holds n tokens


class PrefixCache:
    """The caches that are kept, the one that was used last at the end."""

    def __init__(self, max_bytes):
        """max_bytes: of all caches together."""
        self.max_bytes, self._kept = max_bytes, []

    @property
    def nbytes(self):
        """The size of all that is kept, in bytes."""
        return sum(kept.cache.nbytes for kept in self._kept)

    def find(self, model, ids):
        """Return a new cache that holds as many of the first ids as are known, but not all; None if there are none.

        The last of the ids is left to be read, since its output is needed.
        """
        wanted = np.array(ids[:-1], np.int64)
        found, length = None, 0
        for kept in self._kept:
            if kept.model is model and (common := count_common(kept.ids, wanted)) > length:
                found, length = kept, common
        if found is None:
            return None
        self._kept.append(self._kept.pop(next(n for n, kept in enumerate(self._kept) if kept is found)))
        cache = found.cache.expand(1)
        cache.rewind(length)
        return cache

    def keep(self, model, ids, cache):
        """Keep a cache of one row that holds these ids; the caller does not use it any more."""
        ids = np.array(ids, np.int64)
        if cache.nbytes > self.max_bytes or any(
            kept.model is model and count_common(kept.ids, ids) == len(ids) for kept in self._kept
        ):
            return
        # A text that goes on takes the place of its beginning.
        self._kept = [
            kept for kept in self._kept if kept.model is not model or count_common(kept.ids, ids) < len(kept.ids)
        ]
        self._kept.append(Kept(model, ids, cache))
        while self.nbytes > self.max_bytes:
            del self._kept[0]


def count_common(first, second):
    """Return how many ids two arrays have in common at their beginning."""
    length = min(len(first), len(second))
    different = (first[:length] != second[:length]).nonzero()[0]
    return int(different[0]) if len(different) else length
