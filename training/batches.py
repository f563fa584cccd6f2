"""From token files to batches: the order in which training reads the tokens, and what an evaluation reads."""

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch

from training.pair_windows import PairWindows


def prefetch(load, numbers):
    """Yield load(number) for each number, while a thread already loads the next one."""
    with ThreadPoolExecutor(1) as pool:
        pending = None
        for number in numbers:
            ready, pending = pending, pool.submit(load, number)
            if ready is not None:
                yield ready.result()
        if pending is not None:
            yield pending.result()


class TextBlocks:
    """Running text in blocks of block_size tokens, each of which is the target of the one before it."""

    def __init__(self, tokens, block_size):
        """tokens: (n,), read when needed."""
        self._tokens, self.step = tokens, block_size
        self.room = len(tokens) - 1 - len(self) * block_size  # the largest offset of an epoch's first block

    def __len__(self):
        """Return the number of blocks in an epoch: one fewer than fit, which leaves room for a random offset."""
        return max(1, (len(self._tokens) - 1) // self.step - 1)

    def places(self):
        """Return where blocks begin that together hold every token, as far as they are full."""
        return np.arange(0, len(self._tokens) - self.step, self.step)

    def read(self, places):
        """Return the blocks that begin at these places, (B, T) int64, and the token that follows each token."""
        rows = np.stack([self._tokens[place : place + self.step + 1] for place in places])  # (B, T + 1)
        rows = torch.from_numpy(rows.astype(np.int64))
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def make_blocks(tokens, mask, block_size):
    """Return what training reads: the PairWindows of tokens with a mask or, without one (None), their TextBlocks."""
    return TextBlocks(tokens, block_size) if mask is None else PairWindows(tokens, mask, block_size)


def training_batch(blocks, batch_size, number, seed):
    """Return the inputs and targets, (B, T) each, of batch `number`; they depend on number and seed alone.

    Every epoch visits each block once, in a new order; TextBlocks begin at a new random offset. blocks: TextBlocks or
    PairWindows.
    """
    places = []
    for count in range(number * batch_size, (number + 1) * batch_size):
        epoch, block = divmod(count, len(blocks))
        offset, order = shuffle_blocks(len(blocks), blocks.room, seed, epoch)
        places.append(int(offset + order[block] * blocks.step))
    return blocks.read(places)


@lru_cache(maxsize=2)  # a batch may reach into the next epoch
def shuffle_blocks(blocks, room, seed, epoch):
    """Return an epoch's offset, from 0 to room, and the order of its blocks."""
    rng = np.random.default_rng((seed, epoch))
    return rng.integers(room + 1), rng.permutation(blocks)


def evaluation_batches(blocks, batch_size, max_batches):
    """Yield at most max_batches inputs and targets, (B, T) each, spread evenly over the tokens; always the same."""
    places = blocks.places()
    if len(places) > max_batches * batch_size:
        places = places[np.linspace(0, len(places) - 1, max_batches * batch_size).astype(int)]
    for first in range(0, len(places), batch_size):
        yield blocks.read(places[first : first + batch_size].tolist())
