"""Training on pairs: whole pairs in each window, every token of a response once, against a plain count."""

import random

import numpy as np
import pytest
import torch

from training.batches import evaluation_batches, training_batch
from training.pair_windows import PairWindows, find_pairs, share_of_targets

LENGTHS = {'short': (4, 4), 'long': (40, 40), 'long prompts': (60, 3), 'long responses': (3, 60), 'no prompts': (0, 9)}


def pairs_of(lengths, seed, count=40):
    """Return tokens, each its own place, their mask, and (begin, end) of each pair."""
    rng = random.Random(seed)
    mask, edges = [], []
    for _ in range(count):
        begin = len(mask)
        mask += [0] * rng.randint(min(1, lengths[0]), lengths[0]) + [1] * rng.randint(1, lengths[1])
        edges.append((begin, len(mask)))
    return np.arange(len(mask)), np.array(mask, np.uint8), edges


def rows_of(windows):
    """Return the inputs and targets of all windows as lists."""
    x, y = windows.read(range(len(windows)))
    return list(zip(x.tolist(), y.tolist(), strict=True))


@pytest.mark.parametrize('kind', LENGTHS)
@pytest.mark.parametrize('block_size', [1, 7, 8, 32, 1000])
def test_each_token_of_a_response_is_a_target_once_and_nothing_else_is(kind, block_size):
    for seed in range(5):
        tokens, mask, _ = pairs_of(LENGTHS[kind], seed)
        rows = rows_of(PairWindows(tokens, mask, block_size))
        targets = [target for _, y in rows for target in y if target != -1]
        assert sorted(targets) == [place for place in np.flatnonzero(mask).tolist() if place > 0]
        for x, y in rows:
            assert len(x) == len(y) == block_size
            assert any(target != -1 for target in y)  # or else its loss would not be a number
            assert all(target in (-1, id + 1) for id, target in zip(x, y))


@pytest.mark.parametrize('kind', ['short', 'long', 'long prompts', 'long responses'])
@pytest.mark.parametrize('block_size', [8, 32, 80])
def test_a_pair_that_fits_is_in_one_window_with_its_whole_prompt(kind, block_size):
    for seed in range(5):
        tokens, mask, edges = pairs_of(LENGTHS[kind], seed)
        windows = PairWindows(tokens, mask, block_size)
        row_of = {target: x for x, y in rows_of(windows) for target in y if target != -1}
        assert windows.cut_pairs == sum(end - begin > block_size + 1 for begin, end in edges)
        begins = {begin for begin, _ in edges}
        for begin, end in edges:
            response = [place for place in range(begin, end) if mask[place] and place > 0]
            if end - begin <= block_size + 1:
                (row,) = {id(row_of[place]): row_of[place] for place in response}.values()
                assert row[0] in begins  # as where sample.py and eval.py begin
                assert begin in row
            else:  # the end of a pair that is cut sees as much of it as fits
                assert row_of[end - 1] == list(range(end - 1 - block_size, end - 1))


def test_a_mask_may_be_read_in_pieces_of_any_size():
    for seed in range(5):
        _, mask, edges = pairs_of((3, 3), seed)
        mask = np.concatenate([mask, [0, 0]])  # a prompt without a response
        for piece in (1, 2, 7, 1000):
            assert find_pairs(mask, piece) == [*(begin for begin, _ in edges), edges[-1][1]]
    assert find_pairs(np.zeros(0, np.uint8)) == find_pairs(np.zeros(5, np.uint8)) == [0]
    assert len(PairWindows(np.arange(5), np.zeros(5, np.uint8), 2)) == 0


def test_an_epoch_reads_each_window_once_in_a_new_order_and_an_evaluation_reads_them_all():
    tokens, mask, _ = pairs_of((6, 6), 1)
    windows = PairWindows(tokens, mask, 16)
    n = len(windows)
    firsts = [x[0] for x, _ in rows_of(windows)]
    seen = torch.cat([training_batch(windows, 1, number, seed=3)[0][:, 0] for number in range(3 * n)]).tolist()
    epochs = [seen[first : first + n] for first in range(0, 3 * n, n)]
    assert all(sorted(epoch) == firsts for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    batches = list(evaluation_batches(windows, 4, max_batches=1000))
    assert torch.cat([x[:, 0] for x, _ in batches]).tolist() == firsts
    assert sum(share_of_targets(y) * y.numel() for _, y in batches) == pytest.approx(windows.n_targets)
    assert windows.n_targets == mask.sum()
    assert [len(x) for x, _ in evaluation_batches(windows, 2, max_batches=3)] == [2, 2, 2]
