"""Score prompt/response pairs in batches: how likely is each token of a fixed response?

A pair is (prompt ids, response ids), and the prompt is not empty. Everything that can be cut into pairs is scored here:
responses, the choices of a multiple-choice question, running text. Every token sees exactly the context it has in
`model.steps`, but a whole batch goes through the model in one forward pass, without a loop over tokens.

Shapes: B rows of a batch, T tokens, N positions to predict, R tokens of a response, C channels, V token ids.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from lm.alternatives import ALTERNATIVES, TokenRecord, entropy, rank_tokens, record_tokens
from lm.wording import differs_from_model
from model import Cache, LanguageModel, logits_to_logprobs

Pair = tuple[Sequence[int], Sequence[int]]  # ids of the prompt, ids of the response

WINDOW = 512  # pairs sorted by length and batched together; a larger window pads less, but holds more in memory
CPU_BATCH_TOKENS = 512  # tokens in one forward pass; more would not fit into a CPU's cache
GPU_BATCH_TOKENS = 16384  # it takes many to keep a GPU busy
OUTPUT_POSITIONS = 64  # in the output layer at a time: with 50,257 ids, 13 MB of logits, which fit into a CPU's cache
SILENCE = 3  # seconds after which a terminal shows how far a window has got
MIN_TOKENS_SAVED = 48  # compute a prompt once for several responses if that saves this many tokens


class Score(NamedTuple):
    """How likely each of the R tokens of a response is. Logprobs are natural logarithms; all tensors on the CPU."""

    model_logprobs: Float64[Tensor, ' R']
    sampler_logprobs: Float64[Tensor, ' R']  # after temperature and repetition penalty; no token is cut off
    ranks: Int64[Tensor, ' R']  # 1 is the token that greedy decoding would pick
    top_logprobs: Float64[Tensor, ' R']  # of the model's likeliest token: how confident it was
    entropies: Float64[Tensor, ' R']  # of the model's distribution, in nats; nan unless boundary ids were given
    boundary_logprobs: Float64[Tensor, ' R']  # that one of the boundary ids comes here; nan unless they were given
    records: list[TokenRecord]  # of its first tokens, as many as were asked for


class Wanted(NamedTuple):
    """What is to be computed beside the model's logprobs; see `score_window`."""

    temperature: float
    n_records: dict[int, int]
    boundary_ids: Int64[Tensor, ' n'] | None
    n_alternatives: int = ALTERNATIVES  # in each TokenRecord
    repetition_penalty: float = 1.0
    pairs: list[Pair] | None = None  # those that rows are parts of, for the penalty


class Row(NamedTuple):
    """One row of a batch: each of the last len(targets) inputs predicts one target."""

    pair: int  # which pair this belongs to
    offset: int  # the index of its first target in the response
    inputs: list[int]
    targets: list[int]


def score(
    model: LanguageModel, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], temperature=1.0
) -> list[Float64[Tensor, ' R']]:
    """Return the logprob of each token of each response, given its prompt: a (len(response),) tensor for each pair.

    They are what `model.steps` gives with fixed_response, up to rounding, even where the text exceeds block_size.
    At temperature 1 they are the model's, otherwise the sampler's. Raises ValueError for an empty prompt or unknown
    ids.
    """
    pairs = list(zip(prompts, responses, strict=True))
    for number, (prompt, response) in enumerate(pairs):
        model.check_ids([*prompt, *response], f'pair {number}')
        if not prompt:
            raise ValueError(f'pair {number} has an empty prompt: begin with the id of <|endoftext|>')
    return [scored.sampler_logprobs for scored in score_pairs(model, pairs, temperature)]


def score_pairs(model: LanguageModel, pairs: Iterable[Pair], temperature=1.0) -> Iterator[Score]:
    """Yield a Score for each pair, in order. Reads WINDOW pairs at a time, so memory stays flat."""
    pairs = iter(pairs)
    while window := list(itertools.islice(pairs, WINDOW)):
        yield from score_window(model, window, temperature)


@torch.no_grad()
def score_window(
    model: LanguageModel,
    pairs: list[Pair],
    temperature=1.0,
    n_records: dict[int, int] | None = None,
    boundary_ids: Int64[Tensor, ' n'] | None = None,
    repetition_penalty=1.0,
) -> list[Score]:
    """Return the Scores of a list of pairs.

    temperature, repetition_penalty: the sampler's, as in `model.logits_to_logprobs`. n_records: {index of a pair: of
    how many of its first tokens to make a TokenRecord, in the same pass}. boundary_ids: ids that are summed up at each
    position, for `boundary_logprobs`.
    Rows of similar length are batched, and a prompt that several pairs share is computed once. Where a pair is longer
    than block_size, the model sees the last block_size tokens, as in `model.steps`.
    """
    scores = [empty_score(len(response)) for _, response in pairs]
    batch_tokens = CPU_BATCH_TOKENS if model.device.type == 'cpu' else GPU_BATCH_TOKENS
    shared, single = share_prompts(pairs, model.block_size)
    wanted = Wanted(temperature, n_records or {}, boundary_ids, repetition_penalty=repetition_penalty, pairs=pairs)
    total = sum(len(response) for _, response in pairs)
    with tqdm(total=total, unit=' tokens', leave=False, delay=SILENCE, disable=None) as progress:
        for prefix, rows in shared:
            cache = model.new_cache(1, len(prefix) + max(len(row.inputs) for row in rows))
            model.hidden(torch.tensor([prefix], device=model.device), cache)
            for batch in batches(rows, batch_tokens):
                score_batch(model, batch, wanted, scores, cache.expand(len(batch)))
                progress.update(sum(len(row.targets) for row in batch))
        for batch in batches(single, batch_tokens):
            score_batch(model, batch, wanted, scores)
            progress.update(sum(len(row.targets) for row in batch))
    return scores


def empty_score(size):
    """Return a Score of `size` tokens, to be filled in."""
    first, second, *others = (torch.zeros(size, dtype=torch.float64) for _ in range(5))
    return Score(first, second, torch.zeros(size, dtype=torch.int64), *others, [])


def share_prompts(pairs, block_size):
    """Return [(prefix, rows that continue it)] for the prompts worth sharing, and the rows that stand alone."""
    by_prompt = defaultdict(list)
    for number, (prompt, response) in enumerate(pairs):
        by_prompt[tuple(prompt)].append((number, list(response)))
    shared, single = [], []
    for prompt, responses in by_prompt.items():
        prompt = list(prompt)
        prefix = prompt[:-1]  # the last token is read with each response: its output predicts the first target
        fitting = [(number, ids) for number, ids in responses if ids and len(prompt) + len(ids) - 1 <= block_size]
        if (len(fitting) - 1) * len(prefix) >= MIN_TOKENS_SAVED:
            shared.append((prefix, [Row(number, 0, [prompt[-1], *ids[:-1]], ids) for number, ids in fitting]))
            responses = [(number, ids) for number, ids in responses if len(prompt) + len(ids) - 1 > block_size]
        for number, ids in responses:
            single += split_pair(number, prompt, ids, block_size)
    return shared, single


def split_pair(number, prompt, response, block_size):
    """Yield the rows of a pair: one for all targets that see the text from its beginning, then one for each other one.

    Targets beyond block_size need a row each, since the window slides and every position changes.
    """
    text = prompt + response
    start = len(prompt)
    while start < len(text):  # the targets are text[start:end]; the inputs end one token earlier
        end = max(start + 1, min(len(text), block_size + 1))
        yield Row(number, start - len(prompt), text[max(0, end - 1 - block_size) : end - 1], text[start:end])
        start = end


def batches(rows, batch_tokens):
    """Yield lists of rows of similar length, at most batch_tokens tokens with padding, or a single longer row."""
    batch = []
    for row in sorted(rows, key=lambda row: len(row.inputs)):
        if batch and (len(batch) + 1) * len(row.inputs) > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def score_batch(
    model: LanguageModel,
    rows: list[Row],
    wanted: Wanted,
    scores: list[Score],
    cache: Cache | None = None,
):
    """Run one forward pass and write what it says about each row's targets into `scores`.

    cache: the prefix that the rows continue.
    """
    # Pad on the right: no token attends to what comes after it.
    idx = pad_sequence([torch.tensor(row.inputs) for row in rows], batch_first=True).to(model.device)  # (B, T)
    x = model.hidden(idx, cache)  # (B, T, C)
    # Only the positions that predict a target go through the output layer, by far the widest.
    sizes = [len(row.targets) for row in rows]
    x = torch.cat([x[i, len(row.inputs) - size : len(row.inputs)] for i, (row, size) in enumerate(zip(rows, sizes))])
    targets = torch.tensor([id for row in rows for id in row.targets], device=model.device)  # (N,), like x: (N, C)
    recorded = [row.offset + n < wanted.n_records.get(row.pair, 0) for row in rows for n in range(len(row.targets))]
    recorded = torch.tensor(recorded, device=model.device)  # (N,), whether to make a TokenRecord
    parts = [each.split(OUTPUT_POSITIONS) for each in (x, targets, recorded)]
    if wanted.repetition_penalty != 1:
        parts.append(texts_before(wanted.pairs, rows).to(model.device).split(OUTPUT_POSITIONS))
    *columns, records = zip(*(score_positions(model, wanted, *part) for part in zip(*parts)))
    # Each column holds one field of Score for all N positions, cut into parts: join them, and give each row its values.
    for name, column in zip(Score._fields, columns):
        for row, values in zip(rows, torch.cat(column).cpu().split(sizes), strict=True):
            getattr(scores[row.pair], name)[row.offset : row.offset + len(values)] = values
    records = itertools.chain.from_iterable(records)
    for row, recorded_in_row in zip(rows, recorded.split(sizes)):
        n = int(recorded_in_row.sum())
        scores[row.pair].records.extend(itertools.islice(records, n))  # a pair's rows come in order


def texts_before(pairs: list[Pair], rows: list[Row]) -> Int64[Tensor, 'N S']:
    """Return the ids before each target, filled up with the first of them, which changes no repetition penalty."""
    texts = []
    for row in rows:
        prompt, response = pairs[row.pair]
        text = torch.tensor([*prompt, *response])
        ends = len(prompt) + row.offset + torch.arange(len(row.targets))  # of the text before each target
        texts += torch.where(torch.arange(len(text)) < ends[:, None], text, text[0])
    size = max(len(text) for text in texts)
    return torch.stack([torch.cat([text, text[:1].expand(size - len(text))]) for text in texts])


def score_positions(
    model: LanguageModel,
    wanted: Wanted,
    x: Float[Tensor, 'N C'],
    targets: Int[Tensor, ' N'],
    recorded: Bool[Tensor, ' N'],
    texts: Int64[Tensor, 'N S'] | None = None,
):
    """Return the fields of a Score, in order, for N hidden states and the ids that follow them: (N,) each.

    recorded: where to make a TokenRecord. texts: the ids before each target, for a repetition penalty.
    """
    logits = model.logits(x)  # (N, V)
    logprobs = logits_to_logprobs(logits)
    model_logprobs = logprobs.gather(-1, targets[:, None])[:, 0]  # (N,)
    top_logprobs = logprobs.amax(-1)  # (N,)
    entropies = boundary_logprobs = torch.full_like(top_logprobs, torch.nan)
    if wanted.boundary_ids is not None:
        entropies, boundary_logprobs = entropy(logprobs), logprobs[:, wanted.boundary_ids].logsumexp(-1)
    sampler_logprobs = model_logprobs
    sampler = {'temperature': wanted.temperature, 'repetition_penalty': wanted.repetition_penalty}
    if differs_from_model(**sampler):
        sampler_logprobs = logits_to_logprobs(logits, **sampler, text=texts).gather(-1, targets[:, None])[:, 0]
    ranks = rank_tokens(logits, targets, scratch=logprobs)  # (N,); overwrites logprobs
    records = []
    if recorded.any():
        before = None if texts is None else texts[recorded]
        count = wanted.n_alternatives
        records = record_tokens(logits[recorded], targets[recorded], count=count, **sampler, text=before)
    return model_logprobs, sampler_logprobs, ranks, top_logprobs, entropies, boundary_logprobs, records


def segment_ends(n: int, block_size: int, stride: int) -> list[int]:
    """Return where the segments of a running text of n tokens end: one block first, then every `stride` tokens."""
    return [*range(min(n, block_size), n, stride), n] if n else []


def cut_text(
    ids: Sequence[int] | np.ndarray, ends: Iterable[int] | np.ndarray, block_size: int, first: Sequence[int]
) -> Iterator[Pair]:
    """Yield running text as pairs: each token is in one response; its prompt is as much context as fits before it.

    ids: the text, a list or an array, of which only one pair at a time becomes a list. ends: where each response ends.
    first: the ids before the text, mostly that of <|endoftext|>; without any, the first token is context only, since
    nothing predicts it. With `segment_ends(n, block_size, block_size)` this is lm-evaluation-harness's
    loglikelihood_rolling, the fastest way; a smaller stride gives each token more context (a sliding window).
    """
    for start, end in itertools.pairwise(itertools.chain((0,), ends)):
        begin = min(max(0, end - block_size), start)  # of the prompt, in a text that has one id before it
        prompt, response = ([*map(int, ids[a:b])] for a, b in ((max(0, begin - 1), start), (start, end)))
        prompt = prompt if begin else [*first, *prompt]
        yield (prompt, response) if prompt else (response[:1], response[1:])
