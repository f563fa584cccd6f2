"""Texts that wait to be scored, and one batch of their rows, of many requests together."""

import itertools
from collections import deque
from concurrent.futures import Future

import torch

from lm.scoring import (
    CPU_BATCH_TOKENS,
    GPU_BATCH_TOKENS,
    MIN_TOKENS_SAVED,
    Wanted,
    batches,
    empty_score,
    score_batch,
    split_pair,
)


class Scoring:
    """Texts that wait to be scored, as rows: each predicts tokens of one of them."""

    def __init__(self, model, pairs, count):
        """pairs: (prompt ids, response ids). count: of alternatives in each TokenRecord."""
        for prompt, response in pairs:
            model.check_ids([*prompt, *response], 'the text')
            if not prompt:
                raise ValueError('nothing comes before the first token: it has no probability')
        self.model, self.count = model, count
        split = (
            split_pair(n, list(prompt), list(response), model.block_size) for n, (prompt, response) in enumerate(pairs)
        )
        self.rows = itertools.chain.from_iterable(split)  # that are still to be computed
        self.tokens = sum(count_inputs(*map(len, pair), model.block_size) for pair in pairs)  # in these rows
        self.scores = [empty_score(len(response)) for _, response in pairs]
        self.done = Future()  # of the list of Scores


def count_inputs(prompt, response, block_size):
    """Return how many tokens the rows of a pair read, of these lengths; see `lm.scoring.split_pair`."""
    if response == 0:
        return 0
    end = max(prompt + 1, min(prompt + response, block_size + 1))  # of the first row
    return min(end - 1, block_size) + (prompt + response - end) * block_size


def take_rows(scorings):
    """Return [(scoring, row)] for one pass: rows of all of them in turn, about a batch of tokens."""
    left = batch_tokens(scorings[0].model)
    taken, turns = [], deque(scorings)
    while turns and left > 0:
        scoring = turns.popleft()
        if (row := next(scoring.rows, None)) is not None:
            taken.append((scoring, row))
            scoring.tokens -= len(row.inputs)
            left -= len(row.inputs)
            turns.append(scoring)
    return taken


def compute_rows(taken, prefixes):
    """Compute rows, [(scoring, row)], and write what they say into the scores of their scorings.

    prefixes: a PrefixCache. A row that begins like a text in it reads only the rest; others are computed in batches,
    and what is read of a request's only text is kept.
    """
    model = taken[0][0].model
    pairs = {}  # (its scoring, the index of a pair in there) -> the index of the pair among all
    for scoring, row in taken:
        pairs.setdefault((scoring, row.pair), len(pairs))
    rows = [row._replace(pair=pairs[scoring, row.pair]) for scoring, row in taken]
    keeps = [len(scoring.scores) == 1 for scoring, _ in pairs]
    scores = [scoring.scores[pair] for scoring, pair in pairs]
    count = max(scoring.count for scoring, _ in taken)
    wanted = Wanted(1.0, {n: len(score.ranks) for n, score in enumerate(scores)}, None, count)
    to_batch = []
    for row in rows:
        context = len(row.inputs) - len(row.targets)
        cache = prefixes.find(model, row.inputs[: context + 1]) if keeps[row.pair] and row.offset == 0 else None
        if cache is None or cache.end < MIN_TOKENS_SAVED:
            to_batch.append(row)
        else:
            score_batch(model, [row._replace(inputs=row.inputs[cache.end :])], wanted, scores, cache)
            prefixes.keep(model, row.inputs, cache)
    for batch in batches(to_batch, batch_tokens(model)):
        cache = model.new_cache(len(batch), max(len(row.inputs) for row in batch))
        score_batch(model, batch, wanted, scores, cache)
        for place, row in enumerate(batch):
            if keeps[row.pair] and row.offset == 0:
                kept = cache.take(torch.tensor([place]))
                kept.rewind(len(row.inputs))
                prefixes.keep(model, row.inputs, kept)
    for scoring, row in taken:
        for record in scoring.scores[row.pair].records[row.offset : row.offset + len(row.targets)]:
            del record.alternatives[scoring.count :]


def batch_tokens(model):
    """Return how many tokens to compute in one pass."""
    return CPU_BATCH_TOKENS if model.device.type == 'cpu' else GPU_BATCH_TOKENS
