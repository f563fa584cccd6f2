"""Training on pairs of prompt and response: windows that begin with a prompt, and targets that are responses only."""

from bisect import bisect_right

import numpy as np
import torch

PIECE = 2**24  # bytes of a mask that are read at a time


class PairWindows:
    """The windows in which the tokens of pairs are read. Every token that counts is the target of exactly one.

    A window begins with the first token of a prompt and holds as many whole pairs as fit into block_size, so that each
    response is trained after its prompt; the rest of the block counts nothing. Only a longer pair is cut, into windows
    of which the last is moved back until it is full, so that it sees as much as fits of what came before.
    """

    step, room = 1, 0  # as in TextBlocks: places are the numbers of windows, and no epoch begins elsewhere

    def __init__(self, tokens, mask, block_size):
        """tokens, mask: (n,) each, read when needed. A token counts if its place in the mask is not 0."""
        self._tokens, self._mask, self._block_size = tokens, mask, block_size
        windows, self.cut_pairs = cut_into_windows(find_pairs(mask), block_size)
        counts = [np.count_nonzero(mask[after + 1 : last + 1]) for _, after, last in windows]
        self.n_targets = sum(counts)
        # Of each window the first token; the targets that may count are those after `after`, up to `last`.
        windows = [window for window, count in zip(windows, counts) if count]
        self._first, self._after, self._last = np.array(windows, np.int64).reshape(-1, 3).T

    def __len__(self):
        return len(self._first)

    def places(self):
        """Return the numbers of all windows."""
        return np.arange(len(self))

    def read(self, places):
        """Return the windows of these numbers and what follows each token, (B, T) int64 each.

        A target that does not count is -1. What is beyond the end of the file is token 0.
        """
        n = self._block_size + 1
        rows, targets = np.zeros((2, len(places), n), np.int64)
        for row, number in enumerate(places):
            first = int(self._first[number])
            ids, counts = self._tokens[first : first + n], self._mask[first : first + n] != 0
            place = np.arange(first, first + len(ids))
            counts &= (place > self._after[number]) & (place <= self._last[number])
            rows[row, : len(ids)] = ids
            targets[row] = -1
            targets[row, : len(ids)][counts] = ids[counts]
        return torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(targets[:, 1:].copy())


def share_of_targets(targets):
    """Return the share of targets that count, 0 to 1. targets: ids, or -1 for one that does not."""
    return int((targets != -1).sum()) / targets.numel()


def find_pairs(mask, piece=PIECE):
    """Return where each pair begins, and at the end where the last one is over; a list of n + 1 for n pairs.

    A pair is tokens that do not count, if any, and those that count after them. mask: (n,), read a piece at a time.
    """
    begins, end, before = [0], 0, False  # before: whether the token before the piece counts
    for start in range(0, len(mask), piece):
        counts = mask[start : start + piece] != 0
        counts[0] &= start > 0  # a target has a token before it
        turns = np.flatnonzero(np.concatenate([[before], counts[:-1]]) & ~counts)
        begins += (turns + start).tolist()
        if counts.any():
            end = start + int(np.flatnonzero(counts)[-1]) + 1
        before = counts[-1]
    return [*(begin for begin in begins if begin < end), end]


def cut_into_windows(edges, block_size):
    """Return the windows of pairs as (first token, after, last), and how many pairs were cut.

    edges: as from find_pairs. The targets of a window are after the token at `after`, up to the one at `last`.
    """
    windows, cut, pair = [], 0, 0
    while pair < len(edges) - 1:
        first = edges[pair]
        fitting = bisect_right(edges, first + block_size + 1) - 1  # the first pair that does not fit, or the end
        if fitting > pair:
            windows.append((first, first, edges[fitting] - 1))
            pair = fitting
            continue
        stop = edges[pair + 1] - 1
        for after in range(first, stop, block_size):
            last = min(after + block_size, stop)
            windows.append((last - block_size, after, last))
        cut += 1
        pair += 1
    return windows, cut
