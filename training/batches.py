"""Token files to batches: where a dataset lies, in which order training reads it, what an evaluation looks at."""

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch


def count_blocks(tokens, block_size):
    """Return how many blocks an epoch has: one fewer than would fit, which leaves room for its random offset."""
    return max(1, (len(tokens) - 1) // block_size - 1)


def prefetch(make, numbers):
    """Yield make(number) for each number, the next one being made in a thread meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        coming = None
        for number in numbers:
            ready, coming = coming, pool.submit(make, number)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()


def training_batch(tokens, block_size, batch_size, number, seed):
    """Return inputs and targets, (B, T) each, of batch `number`: a function of its number and the seed alone.

    Every epoch cuts the tokens into blocks from another random offset on, and visits each block once in a new order.
    """
    blocks = count_blocks(tokens, block_size)
    room = len(tokens) - 1 - blocks * block_size
    places = range(number * batch_size, (number + 1) * batch_size)
    starts = []
    for epoch, block in (divmod(place, blocks) for place in places):
        offset, order = shuffled_blocks(blocks, room, seed, epoch)
        starts.append(offset + order[block] * block_size)
    return inputs_and_targets(tokens, np.array(starts), block_size)


@lru_cache(maxsize=2)  # a batch may reach from one epoch into the next
def shuffled_blocks(blocks, room, seed, epoch):
    """Return an epoch's offset, 0 to room, and the order of its blocks."""
    rng = np.random.default_rng((seed, epoch))
    return rng.integers(room + 1), rng.permutation(blocks)


def evaluation_batches(tokens, block_size, batch_size, most):
    """Yield at most `most` batches of inputs and targets, spread evenly over the tokens and always the same ones."""
    starts = np.arange(0, max(1, len(tokens) - block_size), block_size)
    if len(starts) > most * batch_size:
        starts = starts[np.linspace(0, len(starts) - 1, most * batch_size).astype(int)]
    for first in range(0, len(starts), batch_size):
        yield inputs_and_targets(tokens, starts[first : first + batch_size], block_size)


def inputs_and_targets(tokens, starts, block_size):
    """Gather blocks from their starts on, (B, T) int64, and the token that follows each of theirs, (B, T)."""
    rows = torch.from_numpy(tokens[starts[:, None] + np.arange(block_size + 1)].astype(np.int64))  # (B, T + 1)
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
