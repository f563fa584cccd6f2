"""Looking ahead: whole continuations that are likely, where sampling sees one token at a time.

    beam_search      keeps the likeliest few prefixes at each step; quick, and may miss the best
    most_probable    the k likeliest continuations there are, and a proof of it; may take long

Every probability here is the model's: temperature 1, no token cut off. Tensors of token ids in, ids and natural
logarithms out, the latter float64 on the CPU. Shapes in comments: T tokens of the prompt, n of a continuation, w beams,
B prefixes read at once, V token ids.
"""

import copy
import heapq
import itertools
import math
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from model import logits_to_logprobs

BATCH = 64  # prefixes that the exact search reads at once
CACHE_BYTES = 2**28  # or fewer, if their caches would take more than this
BEAMS_FIRST = 8  # it begins with what at least so many beams find: the more is found, the more can be passed over


# Beam search --------------------------------------------------------------------------------------------------------


class Beam(NamedTuple):
    """A continuation, or the beginning of one."""

    ids: tuple[int, ...]  # after the prompt
    logprob: float  # of all of them
    parent: int  # its place among the beams that went on from the step before


def beam_search(model, idx, max_new_tokens, beam_width, length_penalty=0.0, eos=None):
    """Find likely continuations by keeping, at each step, the beam_width likeliest prefixes.

    idx: (1, T) prompt ids. eos: an id that ends a continuation where it comes. length_penalty: beams are ranked by
    logprob / length ** length_penalty, as in transformers; 0 ranks by probability, 1 by the mean per token, and since
    longer continuations are never likelier, anything above 0 favours them.
    Returns (sequences (w, T + n), logprobs (w,)), best first; after an early eos, eos fills the row. w is less than
    beam_width only if there are no more continuations. Raises ValueError for what cannot be meant.
    """
    *_, (_, finished) = beam_steps(model, idx, max_new_tokens, beam_width, length_penalty, eos)
    return as_tensors(idx, [(beam.ids, beam.logprob) for beam in finished], max_new_tokens, eos)


@torch.no_grad()
def beam_steps(model, idx, max_new_tokens, beam_width, length_penalty=0.0, eos=None):
    """Search as `beam_search` does, yielding after each step (the beams that go on, those that have finished).

    The first are ranked by logprob and go on from the likeliest; the second, at most beam_width over all steps, by the
    score that the length penalty makes of it.
    """
    check(model, idx, max_new_tokens)
    if beam_width < 1:
        raise ValueError(f'beam_width={beam_width}: it is at least 1')
    if not abs(length_penalty) <= 10:
        raise ValueError(f'length_penalty={length_penalty}: it is between -10 and 10')

    def score(beam):
        return beam.logprob / len(beam.ids) ** length_penalty

    beams, finished = [Beam((), 0.0, 0)], []
    text, caches = idx, None
    for size in range(1, max_new_tokens + 1):
        logits, caches = model.next_logits(text, caches, idx.size(1) + max_new_tokens)
        # Twice as many as are kept: even if half of them end here, enough go on.
        totals = [
            (beam.logprob + logprob, parent, id)
            for parent, (beam, row) in enumerate(zip(beams, logits_to_logprobs(logits).cpu()))
            for logprob, id in likeliest(row, 2 * beam_width)
        ]
        totals = sorted(totals, key=lambda one: -one[0])[: 2 * beam_width]
        candidates = [Beam((*beams[parent].ids, id), total, parent) for total, parent, id in totals]
        ended = [size == max_new_tokens or beam.ids[-1] == eos for beam in candidates]
        # One that ends must be among the likeliest beam_width; those behind them only stand in for it.
        finished += [beam for beam, end in zip(candidates[:beam_width], ended) if end]
        finished = sorted(finished, key=score, reverse=True)[:beam_width]
        beams = [beam for beam, end in zip(candidates, ended) if not end][:beam_width]
        yield beams, finished
        if not beams:
            return
        # A beam's logprob can only fall; the best that may become of it is that it stays, over the best length.
        best_length = max_new_tokens if length_penalty > 0 else size
        if len(finished) == beam_width and beams[0].logprob / best_length**length_penalty <= score(finished[-1]):
            return
        parents = torch.tensor([beam.parent for beam in beams], device=idx.device)
        caches = take_rows(caches, parents)
        last = torch.tensor([beam.ids[-1] for beam in beams], device=idx.device)
        text = torch.cat([text[parents], last[:, None]], dim=1)  # (w, T + size)


# The most probable continuations, exactly ---------------------------------------------------------------------------


class Found(NamedTuple):
    """What the exact search knows so far."""

    sequences: torch.Tensor  # (k, T + n) the likeliest continuations it has met, likeliest first
    logprobs: torch.Tensor  # (k,)
    bound: float  # no continuation but these has a higher logprob
    exact: bool  # these are proved to be the likeliest
    opened: int  # prefixes whose next token has been looked at
    waiting: int  # prefixes that wait for that, also those that have become hopeless since they were met
    mebibytes: float  # that those take


@dataclass
class Budget:
    """What a search may use up; None is no limit."""

    prefixes: int | None = None
    seconds: float | None = None
    mebibytes: float | None = None  # for the prefixes that wait

    def is_spent(self, found, seconds):
        """Say whether a search that has taken so many seconds must end."""
        pairs = ((found.opened, self.prefixes), (seconds, self.seconds), (found.mebibytes, self.mebibytes))
        return any(limit is not None and used >= limit for used, limit in pairs)


def most_probable(model, idx, max_new_tokens, k=5, eos=None, budget=None):
    """Find the k likeliest continuations of max_new_tokens tokens, and prove it.

    idx: (1, T) prompt ids. eos: an id that ends a continuation where it comes; then all lengths up to max_new_tokens
    compete. budget: a Budget; None searches to the end.
    Returns (sequences (k, T + n), logprobs (k,), bound), likeliest first: no other continuation has a logprob above
    the bound. They are the likeliest if it is not above the last of logprobs, and without a budget it never is. All
    this holds up to rounding: continuations that are closer may change places (1e-5 in float32; in bfloat16 and int8 a
    text's logprob depends on the batch that it is computed in, by some hundredths). After an early eos, eos fills the
    row. Raises ValueError for what cannot be meant.
    """
    started = time.perf_counter()
    for found in search_steps(model, idx, max_new_tokens, k, eos):
        if budget is not None and budget.is_spent(found, time.perf_counter() - started):
            break
    return found.sequences, found.logprobs, found.bound


@torch.no_grad()
def search_steps(model, idx, max_new_tokens, k=5, eos=None):
    """Search as `most_probable` does, yielding what is `Found` after each batch of prefixes.

    Best first (Dijkstra's order): a token more never makes a text likelier, so the likeliest prefix not yet opened is
    at least as likely as all that it, or any other, can become. Once k continuations are known that are as likely, the
    rest need not be looked at. Prefixes less likely than the k-th known are not even kept.
    """
    check(model, idx, max_new_tokens)
    if k < 1:
        raise ValueError(f'k={k}: it is at least 1')
    answers = Answers(k)
    for width in (1, min(max(k, BEAMS_FIRST), BATCH)):  # greedy first, so that the search never ends below it
        *_, (_, finished) = beam_steps(model, idx, max_new_tokens, width, eos=eos)
        for beam in finished:
            answers.offer(beam.ids, beam.logprob)
    caches = prompt_caches(model, idx, max_new_tokens)
    at_once = BATCH if caches is None else min(BATCH, 1 + CACHE_BYTES // sum(cache.kv.nbytes for cache in caches))
    opened, waiting = 0, Waiting()
    yield Found(*as_tensors(idx, answers.best(), max_new_tokens, eos), 0.0, False, opened, 1, 0.0)
    batch = [((), 0.0)]  # the prefixes to be opened, and their logprobs; at first the empty one
    while batch:
        totals = next_logprobs(model, idx, [prefix for prefix, _ in batch], caches)  # (B, V)
        opened += len(batch)
        for (prefix, logprob), row in zip(batch, totals):
            row += logprob
            if len(prefix) == max_new_tokens - 1:
                for total, id in likeliest(row, k + 1):  # the first left out is at least as likely as all after it
                    answers.offer((*prefix, id), total)
                continue
            if eos is not None:
                answers.offer((*prefix, eos), row[eos].item())
                row[eos] = -math.inf
            hopeful = row > answers.floor
            answers.pass_over(row.masked_fill(hopeful, -math.inf).max().item())
            waiting.add(prefix, hopeful.nonzero()[:, 0], row[hopeful])
        yield Found(
            *as_tensors(idx, answers.best(), max_new_tokens, eos),
            bound=max(answers.passed_over, waiting.best),
            exact=waiting.best <= answers.floor,
            opened=opened,
            waiting=waiting.count,
            mebibytes=waiting.bytes / 2**20,
        )
        batch = [waiting.pop() for _ in range(min(at_once, waiting.count)) if waiting.best > answers.floor]


class Answers:
    """The k likeliest continuations met so far, and how likely the likeliest other one can be that was passed over."""

    def __init__(self, k):
        self._k = k
        self._heap = []  # (logprob, ids), the least likely on top
        self._known = set()
        self.floor = -math.inf  # what a continuation must exceed to come in, once there are k
        self.passed_over = -math.inf

    def offer(self, ids, logprob):
        """Take a continuation in, if it is new and likely enough."""
        if ids in self._known:  # computed in another batch, and rounded otherwise
            return
        if len(self._heap) < self._k:
            heapq.heappush(self._heap, (logprob, ids))
        elif logprob <= self.floor:
            self.pass_over(logprob)
            return
        else:
            least, dropped = heapq.heapreplace(self._heap, (logprob, ids))
            self.pass_over(least)
            self._known.remove(dropped)
        self._known.add(ids)
        if len(self._heap) == self._k:
            self.floor = self._heap[0][0]

    def pass_over(self, logprob):
        """Note that something of this logprob is not followed up."""
        self.passed_over = max(self.passed_over, logprob)

    def best(self):
        """Return [(ids, logprob)], likeliest first."""
        return [(ids, logprob) for logprob, ids in sorted(self._heap, key=lambda one: -one[0])]


class Waiting:
    """The prefixes not yet opened, likeliest first.

    A prefix that was opened brings thousands of next tokens. They lie in arrays, sorted, and of each opened prefix only
    the likeliest that still waits is in the heap.
    """

    def __init__(self):
        self._heap = []  # (-logprob, number of the opened prefix, its ids, next ids, their logprobs, place)
        self._numbers = itertools.count()  # so that equals need not be compared any further
        self.count = self.bytes = 0

    def add(self, prefix, ids, logprobs):
        """Let prefix, a tuple of ids, wait with each of the next ids."""
        if not len(ids):
            return
        order = logprobs.argsort(descending=True, stable=True)
        ids, logprobs = ids[order].numpy().astype(np.int32), logprobs[order].numpy()
        self.count += len(ids)
        self.bytes += ids.nbytes + logprobs.nbytes + 500  # or so, for the tuple and what Python needs besides
        heapq.heappush(self._heap, (-logprobs[0], next(self._numbers), prefix, ids, logprobs, 0))

    @property
    def best(self):
        """The logprob of the likeliest, -inf if none waits."""
        return float(-self._heap[0][0]) if self._heap else -math.inf

    def pop(self):
        """Return the likeliest, (ids, logprob), which waits no longer."""
        negative, number, prefix, ids, logprobs, place = self._heap[0]
        self.count -= 1
        if place + 1 < len(ids):
            heapq.heapreplace(self._heap, (-logprobs[place + 1], number, prefix, ids, logprobs, place + 1))
        else:
            heapq.heappop(self._heap)
            self.bytes -= ids.nbytes + logprobs.nbytes + 500
        return (*prefix, int(ids[place])), float(-negative)


# What both need -----------------------------------------------------------------------------------------------------


def check(model, idx, max_new_tokens):
    """Raise ValueError unless idx is one prompt of ids that the model knows, and there is a length."""
    if idx.size(0) != 1 or not idx.size(1):
        raise ValueError(f'idx of shape {tuple(idx.shape)}: it is one prompt, (1, T), of at least one token')
    if max_new_tokens < 1:
        raise ValueError(f'max_new_tokens={max_new_tokens}: a continuation has at least one token')
    model.check_ids(idx[0].tolist(), 'the prompt')


def prompt_caches(model, idx, max_new_tokens):
    """Return caches of one row that hold the prompt but for its last token; None if not all will fit into block_size.

    The last token is read again with each prefix: what it leads to is the empty prefix's next token.
    """
    if idx.size(1) + max_new_tokens - 1 > model.config.block_size:
        return None
    _, caches = model.prefill(idx, idx.size(1) + max_new_tokens)
    for cache in caches:
        cache.filled -= 1
    return caches


def next_logprobs(model, idx, prefixes, caches):
    """Return the model's logprobs of the token after the prompt and each of the prefixes, (B, V) float64 on the CPU."""
    prompt = idx[0].tolist()
    texts = [[*prompt, *prefix][-model.config.block_size :] for prefix in prefixes]
    if caches is not None:
        texts = [text[len(prompt) - 1 :] for text in texts]
        caches = take_rows(caches, torch.zeros(len(prefixes), dtype=torch.int64, device=idx.device))
    # Padding stands to the right, where no earlier token can look.
    padded = pad_sequence([torch.tensor(text) for text in texts], batch_first=True).to(idx.device)  # (B, <= T + n)
    last = torch.tensor([len(text) - 1 for text in texts], device=idx.device)
    x = model.hidden(padded, caches)[torch.arange(len(texts), device=idx.device), last]  # (B, C)
    return logits_to_logprobs(model.logits(x)).cpu().double()


def take_rows(caches, rows):
    """Return caches with these rows of others, (w,) places: some perhaps several times, others no more."""
    taken = [copy.copy(cache) for cache in caches]
    for cache in taken:
        cache.kv = cache.kv.index_select(1, rows)
    return taken


def likeliest(logprobs, k):
    """Return [(logprob, id)] of the k likeliest ids, (V,), likeliest first; fewer if there are fewer.

    Of equals, the lower id comes first, as greedy decoding has it; topk alone promises no order.
    """
    least = logprobs.topk(min(k, len(logprobs))).values[-1]
    ids = ((logprobs >= least) & (logprobs > -math.inf)).nonzero()[:, 0]
    ids = ids[logprobs[ids].argsort(descending=True, stable=True)][:k]
    return list(zip(logprobs[ids].tolist(), ids.tolist()))


def as_tensors(idx, continuations, max_new_tokens, eos):
    """Return (sequences (w, T + n), logprobs (w,)) of [(ids, logprob)] after the prompt, filled up with eos."""
    rows = [[*ids, *[eos] * (max_new_tokens - len(ids))] for ids, _ in continuations]
    continued = torch.tensor(rows, dtype=torch.int64, device=idx.device).view(len(rows), max_new_tokens)
    logprobs = torch.tensor([logprob for _, logprob in continuations], dtype=torch.float64)
    return torch.cat([idx.expand(len(rows), -1), continued], dim=1), logprobs
