"""The prefixes that the exact search has not opened yet; it always opens the likeliest one next."""

import heapq
import itertools
import math

import numpy as np

FIRST_SORTED = 64  # next ids of an opened prefix that are sorted at first: few are ever opened


class Waiting:
    """The prefixes not yet opened, likeliest first.

    Opening a prefix adds thousands of longer ones, of which few are ever opened. So each addition is an array, of which
    only the likeliest ids are sorted, and more of them when these are used up. The heap holds the likeliest of each.
    """

    def __init__(self):
        self._heap = []  # (-logprob, number, Extensions)
        self._numbers = itertools.count()  # break ties before tuples are compared further
        self.count = self.bytes = 0

    def add(self, node, ids, logprobs):
        """Add the prefix of an opened node, extended by each of the next ids. ids, logprobs: tensors (n,)."""
        if not len(ids):
            return
        added = Extensions(node, ids.numpy().astype(np.int32), logprobs.numpy())
        self.count += len(ids)
        self.bytes += added.bytes
        heapq.heappush(self._heap, (-added.next_logprob, next(self._numbers), added))

    @property
    def best(self):
        """The logprob of the likeliest waiting prefix; -inf if there is none."""
        return float(-self._heap[0][0]) if self._heap else -math.inf

    def pop(self):
        """Remove and return the likeliest waiting prefix: (opened node, next id, logprob)."""
        negative, number, extensions = self._heap[0]
        self.count -= 1
        id = extensions.take()
        if extensions.next_logprob is not None:
            heapq.heapreplace(self._heap, (-extensions.next_logprob, number, extensions))
        else:
            heapq.heappop(self._heap)
            self.bytes -= extensions.bytes
        return extensions.node, id, float(-negative)


class Extensions:
    """The ids that may follow an opened node, likeliest first, sorted as far as they are needed; ties by id."""

    def __init__(self, node, ids, logprobs):
        self.node, self.bytes = node, ids.nbytes + logprobs.nbytes + 500  # about the size of the Python objects
        self._rest, self._size = (ids, logprobs), FIRST_SORTED
        self._sort_more()

    def _sort_more(self):
        """Sort the likeliest of those that are not sorted yet, eight times as many as before."""
        ids, logprobs = self._rest
        if len(ids) > self._size:
            is_next = logprobs >= np.partition(logprobs, -self._size)[-self._size]
            self._rest = ids[~is_next], logprobs[~is_next]
            ids, logprobs = ids[is_next], logprobs[is_next]
        else:
            self._rest = ids[:0], logprobs[:0]
        order = np.argsort(-logprobs, kind='stable')
        self._ids, self._logprobs, self._place, self._size = ids[order], logprobs[order], 0, self._size * 8

    @property
    def next_logprob(self):
        """The logprob of the next prefix; None if there is none."""
        return self._logprobs[self._place] if self._place < len(self._ids) else None

    def take(self):
        """Remove and return the next id."""
        id = int(self._ids[self._place])
        self._place += 1
        if self._place == len(self._ids) and len(self._rest[0]):
            self._sort_more()
        return id
