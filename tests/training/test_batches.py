"""Batches: each epoch reads every block once, in an order that depends on the seed alone."""

import itertools

import numpy as np
import pytest
import torch

from texts.token_files import largest_token, tokens_sha256
from training.batches import TextBlocks, evaluation_batches, prefetch, shuffle_blocks, training_batch


def test_an_epoch_visits_every_block_once_in_a_new_order_from_a_new_offset():
    tokens = np.arange(1000)
    block_size, batch_size = 10, 7
    blocks = (1000 - 1) // 10 - 1
    batches = [
        training_batch(TextBlocks(tokens, block_size), batch_size, number, seed=3) for number in range(4 * blocks // 7)
    ]
    starts = torch.cat([x[:, 0] for x, _ in batches])
    epochs = [starts[first : first + blocks].tolist() for first in range(0, 3 * blocks, blocks)]
    for epoch in epochs:
        assert np.diff(sorted(epoch)).tolist() == [block_size] * (blocks - 1)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len({min(epoch) for epoch in epochs}) > 1
    for x, y in batches:
        assert x.dtype == torch.int64
        assert torch.equal(y, x + 1)
        assert torch.equal(x, x[:, :1] + torch.arange(block_size))


def test_a_batch_depends_only_on_its_number_and_the_seed():
    tokens = np.arange(500)
    later = training_batch(TextBlocks(tokens, 8), 4, 33, seed=1)[0]
    shuffle_blocks.cache_clear()
    assert torch.equal(training_batch(TextBlocks(tokens, 8), 4, 33, seed=1)[0], later)
    assert not torch.equal(training_batch(TextBlocks(tokens, 8), 4, 33, seed=2)[0], later)


@pytest.mark.parametrize('length', [18, 33, 34])
def test_the_shortest_texts_give_batches(length):
    for number in range(20):
        assert training_batch(TextBlocks(np.arange(length), 16), 3, number, seed=0)[1].max() < length


def test_an_evaluation_reads_every_token_once_or_an_even_spread_of_them():
    tokens = np.arange(1001)
    seen = torch.cat([y.flatten() for _, y in evaluation_batches(TextBlocks(tokens, 10), 7, max_batches=200)])
    assert seen.tolist() == list(range(1, 1001))
    few = [y for _, y in evaluation_batches(TextBlocks(tokens, 10), 4, max_batches=3)]
    assert [len(y) for y in few] == [4, 4, 4]
    assert few[0].min() == 1
    assert few[-1].max() == 1000
    assert all(
        torch.equal(a, b)
        for a, (_, b) in zip(few, evaluation_batches(TextBlocks(tokens, 10), 4, max_batches=3), strict=True)
    )


def test_prefetched_batches_and_errors_arrive_in_order():
    def load(number):
        if number == 5:
            raise ValueError('five')
        return number * 10

    batches = prefetch(load, itertools.count(2))
    assert [next(batches) for _ in range(3)] == [20, 30, 40]
    with pytest.raises(ValueError, match='five'):
        next(batches)
    assert list(prefetch(load, range(3))) == [0, 10, 20]
    assert list(prefetch(load, [])) == []


def test_the_hash_and_the_largest_id_depend_on_every_token_of_a_small_file():
    tokens = np.arange(3_000_000, dtype=np.uint16)
    before = tokens_sha256(tokens)
    assert largest_token(tokens, piece=1000) == 65535
    assert largest_token(tokens[:0]) == -1
    tokens[2_999_999] ^= 1
    assert tokens_sha256(tokens) != before
    assert tokens_sha256(tokens[:-1]) != tokens_sha256(tokens)
