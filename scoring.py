"""Prompt/response pairs to scores, in batches: how likely each token of many fixed responses is.

A pair is (prompt ids, response ids), the prompt not empty. Whatever can be cut into pairs is scored here: responses,
the choices of a multiple-choice question, running text. Every token sees exactly what it sees in `model.steps`, but a
whole batch goes through the model in one forward pass, without a loop over tokens.

Shapes in comments: B rows of a batch, T tokens, N positions to be predicted, C = n_embd channels, V token ids.
"""

import itertools
from collections import defaultdict
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from model import LayerCache, logits_to_logprobs

WINDOW = 512  # pairs sorted by length and batched together; more pad less, but hold more in memory
BATCH_TOKENS = {'cpu': 512}  # tokens in one forward pass: more fall out of a CPU's cache on their way
OTHER_BATCH_TOKENS = 16384  # a GPU needs many to be busy
OUTPUT_ROWS = 64  # positions in the output layer at a time: with 50,257 ids, logits of 13 MB, which stay in the cache
SHARE_FROM = 48  # a prompt is computed once for several responses where that saves so many tokens


class Score(NamedTuple):
    """How likely each of the R tokens of a response is: (R,) CPU tensors, logprobs natural and float64."""

    logprobs: torch.Tensor  # under the model
    sampler_logprobs: torch.Tensor  # under the sampler: at the temperature asked for, no token cut off
    ranks: torch.Tensor  # int64; 1 is the token that greedy decoding would have said
    top_logprobs: torch.Tensor  # of the token that the model found likeliest: how sure it was


class Row(NamedTuple):
    """What one row of a batch computes: a target follows each of the last len(targets) inputs."""

    pair: int  # whose tokens these are
    place: int  # of the first target in that pair's response
    inputs: list[int]
    targets: list[int]


def score_pairs(model, pairs, temperature=1.0):
    """Yield a Score for each of any number of pairs, in order, reading WINDOW of them at a time: memory stays flat."""
    pairs = iter(pairs)
    while window := list(itertools.islice(pairs, WINDOW)):
        yield from score_window(model, window, temperature)


@torch.no_grad()
def score_window(model, pairs, temperature=1.0):
    """Return the list of Scores of a list of pairs.

    Rows alike in length are batched, and a prompt that several pairs have is computed once, its cache shared. Where
    a pair is longer than block_size, the model sees the last block_size tokens, as in `model.steps`.
    """
    scores = [empty_score(len(response)) for _, response in pairs]
    device = model.transformer.wte.weight.device
    batch_tokens = BATCH_TOKENS.get(device.type, OTHER_BATCH_TOKENS)
    shared, single = share_prompts(pairs, model.config.block_size)
    for prefix, rows in shared:
        caches = empty_caches(model, 1, len(prefix))
        model.hidden(torch.tensor([prefix], device=device), caches)
        for batch in batches(rows, batch_tokens):
            score_batch(model, batch, temperature, scores, caches)
    for batch in batches(single, batch_tokens):
        score_batch(model, batch, temperature, scores)
    return scores


def empty_score(size):
    """Return a Score of `size` tokens, to be filled in."""
    return Score(
        logprobs=torch.zeros(size, dtype=torch.float64),
        sampler_logprobs=torch.zeros(size, dtype=torch.float64),
        ranks=torch.zeros(size, dtype=torch.int64),
        top_logprobs=torch.zeros(size, dtype=torch.float64),
    )


def share_prompts(pairs, block_size):
    """Return [(prefix, the rows that go on from it)] for the prompts worth sharing, and the rows that stand alone."""
    alike = defaultdict(list)
    for number, (prompt, response) in enumerate(pairs):
        alike[tuple(prompt)].append((number, list(response)))
    shared, single = [], []
    for prompt, responses in alike.items():
        prompt = list(prompt)
        prefix = prompt[:-1]  # the last token is read anew: what it leads to predicts the response's first
        fitting = [(number, ids) for number, ids in responses if ids and len(prompt) + len(ids) - 1 <= block_size]
        if (len(fitting) - 1) * len(prefix) >= SHARE_FROM:
            shared.append((prefix, [Row(number, 0, [prompt[-1], *ids[:-1]], ids) for number, ids in fitting]))
            responses = [(number, ids) for number, ids in responses if len(prompt) + len(ids) - 1 > block_size]
        for number, ids in responses:
            single += rows_of_pair(number, prompt, ids, block_size)
    return shared, single


def rows_of_pair(number, prompt, response, block_size):
    """Yield the rows of a pair: one for all targets that see the text from its first token on, then one for each."""
    text = prompt + response
    start = len(prompt)
    while start < len(text):
        end = max(start + 1, min(len(text), block_size + 1))
        yield Row(number, start - len(prompt), text[max(0, end - 1 - block_size) : end - 1], text[start:end])
        start = end


def batches(rows, batch_tokens):
    """Yield lists of rows alike in length that come to at most batch_tokens with their padding; or a single row."""
    batch = []
    for row in sorted(rows, key=lambda row: len(row.inputs)):
        if batch and (len(batch) + 1) * len(row.inputs) > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def empty_caches(model, batch_size, length):
    """Return a cache for each layer, with room for `length` tokens."""
    like = model.transformer.wte.weight
    return [LayerCache(model.config, batch_size, length, like) for _ in range(model.config.n_layer)]


def score_batch(model, rows, temperature, scores, prefix_caches=None):
    """Run one forward pass and write what it says about each row's targets into `scores`.

    prefix_caches: what all rows go on from, computed for one row.
    """
    device = model.transformer.wte.weight.device
    # Padding stands to the right, where no earlier token can look.
    idx = pad_sequence([torch.tensor(row.inputs) for row in rows], batch_first=True).to(device)  # (B, T)
    caches = None
    if prefix_caches is not None:
        caches = empty_caches(model, len(rows), prefix_caches[0].filled + idx.size(1))
        for cache, prefix in zip(caches, prefix_caches, strict=True):
            cache.append(prefix.kv.expand(-1, len(rows), -1, -1, -1))
    x = model.hidden(idx, caches)  # (B, T, C)
    # Only the positions before a target go through the output layer, by far the widest.
    ends, sizes = [len(row.inputs) for row in rows], [len(row.targets) for row in rows]
    x = torch.cat([x[place, end - size : end] for place, (end, size) in enumerate(zip(ends, sizes))])  # (N, C)
    targets = torch.tensor([id for row in rows for id in row.targets], device=device)[:, None]  # (N, 1)
    few = zip(x.split(OUTPUT_ROWS), targets.split(OUTPUT_ROWS))
    columns = zip(*(score_positions(model, *part, temperature) for part in few))
    for name, column in zip(Score._fields, columns, strict=True):
        for row, part in zip(rows, torch.cat(column).cpu().split(sizes), strict=True):
            getattr(scores[row.pair], name)[row.place : row.place + len(part)] = part


def score_positions(model, x, targets, temperature):
    """Return the fields of a Score for (N, C) hidden states and the (N, 1) ids that follow them, (N,) each."""
    logits = model.logits(x)  # (N, V)
    logprobs = logits_to_logprobs(logits)
    of_model, of_top = logprobs.gather(-1, targets)[:, 0], logprobs.amax(-1)
    of_sampler = of_model
    if temperature != 1:
        of_sampler = logits_to_logprobs(logits, temperature).gather(-1, targets)[:, 0]
    of_targets = logits.gather(-1, targets)
    # Counted as numbers, in memory that is there: torch adds up truth values far slower.
    ranks = 1 + torch.gt(logits, of_targets, out=logprobs).sum(-1)
    equals = torch.eq(logits, of_targets, out=logprobs).sum(-1)
    for row in (equals > 1).nonzero()[:, 0].tolist():  # of equals, the lower id comes first, as argmax has it
        ranks[row] += (logits[row, : targets[row, 0]] == of_targets[row]).sum()
    return of_model, of_sampler, ranks, of_top


def text_ends(n, block_size, stride):
    """Return where the pieces of a running text of n tokens end: the first as long as fits, then `stride` more each."""
    return [*range(min(n, block_size), n, stride), n] if n else []


def cut_text(ids, ends, block_size, first):
    """Yield running text as pairs: each token is in one response, and the prompt is what fits of the text before it.

    ids: the text. ends: where each response ends. first: the id that stands before the text, <|endoftext|>. With
    `text_ends(n, block_size, block_size)` this is lm-evaluation-harness's loglikelihood_rolling, the quickest way; a
    smaller stride gives the tokens more context to be predicted from (a sliding window).
    """
    text = [first, *ids]
    for start, end in itertools.pairwise((0, *ends)):
        yield text[min(max(0, end - block_size), start) : start + 1], text[start + 1 : end + 1]
