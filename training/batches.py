"""From token files to batches: the order in which training reads the tokens, and what an evaluation reads."""

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch


def count_blocks(tokens, block_size):
    """Return the number of blocks in an epoch: one fewer than fit, which leaves room for a random offset."""
    return max(1, (len(tokens) - 1) // block_size - 1)


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


def training_batch(tokens, block_size, batch_size, number, seed):
    """Return the inputs and targets, (B, T) each, of batch `number`; they depend on number and seed alone.

    Every epoch cuts the tokens into blocks at a new random offset, and visits each block once, in a new order.
    """
    blocks = count_blocks(tokens, block_size)
    room = len(tokens) - 1 - blocks * block_size
    starts = []
    for place in range(number * batch_size, (number + 1) * batch_size):
        epoch, block = divmod(place, blocks)
        offset, order = shuffle_blocks(blocks, room, seed, epoch)
        starts.append(offset + order[block] * block_size)
    return inputs_and_targets(tokens, np.array(starts), block_size)


@lru_cache(maxsize=2)  # a batch may reach into the next epoch
def shuffle_blocks(blocks, room, seed, epoch):
    """Return an epoch's offset, from 0 to room, and the order of its blocks."""
    rng = np.random.default_rng((seed, epoch))
    return rng.integers(room + 1), rng.permutation(blocks)


def evaluation_batches(tokens, block_size, batch_size, max_batches):
    """Yield at most max_batches inputs and targets, (B, T) each, spread evenly over the tokens; always the same."""
    starts = np.arange(0, max(1, len(tokens) - block_size), block_size)
    if len(starts) > max_batches * batch_size:
        starts = starts[np.linspace(0, len(starts) - 1, max_batches * batch_size).astype(int)]
    for first in range(0, len(starts), batch_size):
        yield inputs_and_targets(tokens, starts[first : first + batch_size], block_size)


def inputs_and_targets(tokens, starts, block_size):
    """Return the blocks that begin at `starts`, (B, T) int64, and the token that follows each of theirs, (B, T)."""
    rows = np.stack([tokens[start : start + block_size + 1] for start in starts.tolist()])  # (B, T + 1)
    rows = torch.from_numpy(rows.astype(np.int64))
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
