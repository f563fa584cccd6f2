"""Looking ahead: find continuations that are likely as a whole, whereas sampling looks at one token at a time.

    beam_search      keeps the few likeliest prefixes at each step; fast, but may miss the best continuation
    most_probable    finds the k likeliest continuations and proves that they are; may take a long time
    all_above        finds every continuation that is likelier than a threshold

Every probability here is the model's: temperature 1, no token cut off. Logprobs are natural, float64, on the CPU.
Shapes: T tokens of the prompt, n of a continuation, w beams, k answers, B prefixes read at once, V token ids.
"""

import heapq
import math
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from lm.alternatives import likeliest
from lm.roles import end_ids
from lm.scoring import CPU_BATCH_TOKENS, GPU_BATCH_TOKENS
from lm.token_tree import BATCH, ROOT, TokenTree
from lm.waiting import Waiting
from model import LanguageModel, logits_to_logprobs

LONG_BEAM = 100  # steps of a beam search after which a caller with a budget looks at its clock
MIN_BEAM_WIDTH = 8  # of the beam search that the exact search starts with: good answers found early prune more


# Beam search --------------------------------------------------------------------------------------------------------


class Beam(NamedTuple):
    """A continuation, or the beginning of one."""

    ids: tuple[int, ...]  # after the prompt
    logprob: float  # the sum over its tokens
    parent: int  # the index of the beam that it extends, among those kept at the step before


def beam_search(
    model: LanguageModel,
    idx: Int64[Tensor, 'B T'],
    max_new_tokens: int,
    beam_width: int,
    length_penalty: float = 0.0,
    eos: int | Collection[int] | None = None,
) -> tuple[Int64[Tensor, 'w T_plus_n'], Float64[Tensor, ' w']]:
    """Find likely continuations by keeping the beam_width likeliest prefixes at each step.

    idx: (1, T), one prompt. eos: the id, or ids, that end a continuation. length_penalty: finished beams are ranked by
    logprob / length ** length_penalty, as in transformers. 0 ranks by probability, 1 by the mean logprob per token;
    anything above 0 favours longer continuations, which each further token otherwise makes less likely.
    Returns the sequences and their logprobs, best first; a row that ended early is padded with its end. There are fewer
    than beam_width only if no more continuations exist. Raises ValueError for invalid arguments.
    """
    *_, (_, finished) = beam_steps(model, idx, max_new_tokens, beam_width, length_penalty, eos)
    return as_tensors(idx, [(beam.ids, beam.logprob) for beam in finished], max_new_tokens)


def beam_steps(
    model: LanguageModel, idx: Int64[Tensor, 'B T'], max_new_tokens, beam_width, length_penalty=0.0, eos=None
) -> Iterator[tuple[list[Beam], list[Beam]]]:
    """Search as `beam_search` does, yielding after each step (the beams that continue, the beams that have finished).

    Continuing beams are ranked by logprob; finished ones, at most beam_width over all steps, by their score after the
    length penalty.
    """
    parts = beam_parts(model, idx, max_new_tokens, beam_width, length_penalty, eos)
    return (part for part in parts if part is not None)


def beam_parts(model, idx, max_new_tokens, beam_width, length_penalty=0.0, eos=None) -> Iterator[tuple | None]:
    """Search as `beam_steps` does, yielding None between the passes of a step that takes several."""
    check_search_arguments(model, idx, max_new_tokens)
    if beam_width < 1:
        raise ValueError(f'beam_width={beam_width}: it must be at least 1')
    if not abs(length_penalty) <= 10:
        raise ValueError(f'length_penalty={length_penalty}: it must be between -10 and 10')

    ends = end_ids(eos)

    def score(beam):
        return beam.logprob / len(beam.ids) ** length_penalty

    beams, finished = [Beam((), 0.0, 0)], []
    text, cache = idx, None
    for size in range(1, max_new_tokens + 1):
        logits, cache = yield from read_in_parts(model, text, cache, idx.size(1) + max_new_tokens)
        # Twice as many candidates as beams: even if half of them end here, enough continue.
        logprobs = logits_to_logprobs(logits).cpu()  # (w, V)
        counts = count_hopeful(beams, logprobs, 2 * beam_width)
        totals = [
            (beam.logprob + logprob, parent, id)
            for parent, (beam, row, count) in enumerate(zip(beams, logprobs, counts))
            for logprob, id in (likeliest(row, count) if count else ())
        ]
        totals = sorted(totals, key=lambda candidate: -candidate[0])[: 2 * beam_width]
        candidates = [Beam((*beams[parent].ids, id), total, parent) for total, parent, id in totals]
        ended = [size == max_new_tokens or beam.ids[-1] in ends for beam in candidates]
        # Only the first beam_width candidates may finish; the others are there to replace those that do.
        finished += [beam for beam, end in zip(candidates[:beam_width], ended) if end]
        finished = sorted(finished, key=score, reverse=True)[:beam_width]
        beams = [beam for beam, end in zip(candidates, ended) if not end][:beam_width]
        yield beams, finished
        if not beams:
            return
        # A beam's logprob can only fall, so its best possible score is its present logprob over the best length.
        best_length = max_new_tokens if length_penalty > 0 else size
        if len(finished) == beam_width and beams[0].logprob / best_length**length_penalty <= score(finished[-1]):
            return
        parents = torch.tensor([beam.parent for beam in beams], device=idx.device)
        cache = None if cache is None else cache.take(parents)
        last = torch.tensor([beam.ids[-1] for beam in beams], device=idx.device)
        text = torch.cat([text[parents], last[:, None]], dim=1)  # (w, T + size)


@torch.no_grad()
def read_in_parts(model: LanguageModel, text: Int64[Tensor, 'w T'], cache, length):
    """Return what `model.next_logits` does; beyond the context, where rows share nothing, yield None after a few."""
    if text.size(1) <= model.block_size:
        return model.next_logits(text, cache, length)
    batch_tokens = CPU_BATCH_TOKENS if model.device.type == 'cpu' else GPU_BATCH_TOKENS
    logits = []
    for rows in text.split(max(1, batch_tokens // model.block_size)):
        logits.append(model.next_logits(rows, None, length)[0])
        yield None
    return torch.cat(logits), None


def count_hopeful(beams: list[Beam], logprobs: Float[Tensor, 'w V'], n) -> list[int]:
    """Return how many extensions of each beam are among the n likeliest of all, or as likely as the last of them."""
    totals = logprobs.double() + torch.tensor([beam.logprob for beam in beams], dtype=torch.float64)[:, None]  # (w, V)
    least = totals.flatten().topk(min(n, totals.numel())).values[-1]
    return (totals >= least).sum(1).clamp(max=n).tolist()


# The most probable continuations, exactly ---------------------------------------------------------------------------


class Found(NamedTuple):
    """What the exact search has found so far."""

    sequences: Int64[Tensor, 'k T_plus_n']  # the likeliest continuations found, in descending order
    logprobs: Float64[Tensor, ' k']
    bound: float  # no other continuation has a higher logprob
    exact: bool  # these are proved to be the likeliest
    opened: int  # prefixes whose next token has been computed
    waiting: int  # prefixes still to be opened, including those that can no longer win
    mebibytes: float  # memory that the waiting prefixes and the continuations take


@dataclass
class Budget:
    """How much a search may use; None means no limit."""

    prefixes: float | None = None
    seconds: float | None = None
    mebibytes: float | None = None  # for the waiting prefixes and the continuations found

    def is_spent(self, found, seconds):
        """Return whether a search must stop, given what it has `found` and how many seconds it has taken."""
        pairs = ((found.opened, self.prefixes), (seconds, self.seconds), (found.mebibytes, self.mebibytes))
        return any(limit is not None and used >= limit for used, limit in pairs)


def most_probable(
    model: LanguageModel,
    idx: Int64[Tensor, 'B T'],
    max_new_tokens: int,
    k: int = 5,
    eos: int | Collection[int] | None = None,
    budget: Budget | None = None,
) -> tuple[Int64[Tensor, 'k T_plus_n'], Float64[Tensor, ' k'], float]:
    """Find the k likeliest continuations of max_new_tokens tokens, and prove that they are.

    idx: (1, T), one prompt. eos: an id that ends a continuation; with it, all lengths up to max_new_tokens compete.
    budget: None searches to the end.
    Returns the sequences and their logprobs, likeliest first, and a bound: no other continuation has a higher logprob.
    The k are proved to be the likeliest if the bound is not above the last of their logprobs, which always holds
    without a budget. All this is up to rounding: continuations closer than that may change places (1e-5 in float32; in
    bfloat16 and int8 a text's logprob depends on its batch, by some hundredths). A row that ended early is padded
    with its end. Raises ValueError for invalid arguments.
    """
    started = time.perf_counter()
    for found in search_steps(model, idx, max_new_tokens, k, eos):
        if budget is not None and budget.is_spent(found, time.perf_counter() - started):
            break
    return found.sequences, found.logprobs, found.bound


def search_steps(model: LanguageModel, idx: Int64[Tensor, 'B T'], max_new_tokens, k=5, eos=None) -> Iterator[Found]:
    """Search as `most_probable` does, yielding what is `Found` after each batch of prefixes.

    Best first, as in Dijkstra's algorithm: another token never makes a text likelier, so nothing unseen can be likelier
    than the likeliest prefix that is still waiting. Once k continuations are at least that likely, the search is over.
    Prefixes less likely than the k-th best continuation so far are not even kept.
    """
    return (part for part in search_parts(model, idx, max_new_tokens, k, eos) if part is not None)


def search_parts(model: LanguageModel, idx: Int64[Tensor, 'B T'], max_new_tokens, k=5, eos=None):
    """Search as `search_steps` does, yielding None, too, between the passes before anything is found."""
    check_search_arguments(model, idx, max_new_tokens)
    if k < 1:
        raise ValueError(f'k={k}: it must be at least 1')
    answers, ends = Answers(k), end_ids(eos)
    for width in (1, min(max(k, MIN_BEAM_WIDTH), BATCH)):  # greedy, too: the result must not be less likely
        passes = beam_parts(model, idx, max_new_tokens, width, eos=eos)
        for number, part in enumerate(passes, 1):
            yield None
            if number % LONG_BEAM == 0:  # nothing is found yet, but the caller may have waited long enough
                yield Found(*as_tensors(idx, [], max_new_tokens), 0.0, False, opened=0, waiting=1, mebibytes=0.0)
            finished = part[1] if part is not None else ()
        for beam in finished:
            answers.offer(beam.ids, beam.logprob)
    tree, waiting = TokenTree(model, idx[0].tolist(), max_new_tokens), Waiting()

    def found(exact, bound):
        size = waiting.bytes + answers.bytes + tree.nbytes
        best = as_tensors(idx, answers.best(), max_new_tokens)
        return Found(*best, bound, exact, n_opened, waiting.count, size / 2**20)

    n_opened = 0
    yield found(exact=False, bound=0.0)
    opened, logprobs = [(ROOT, 0.0)], tree.root_logprobs[None]  # [(node, its logprob)], (B, V) what follows each
    while opened:
        n_opened += len(opened)
        for (node, logprob), row in zip(opened, logprobs):
            prefix = tuple(tree.path(node))
            totals = logprob + row  # (V,), the logprob of the prefix extended by each id
            if len(prefix) == max_new_tokens - 1:
                for total, id in likeliest(totals, k + 1):  # one more than needed: it bounds those left out
                    answers.offer((*prefix, id), total)
                continue
            for end in sorted(ends):
                answers.offer((*prefix, end), totals[end].item())
                totals[end] = -math.inf
            hopeful = totals > answers.floor
            answers.pass_over(totals.masked_fill(hopeful, -math.inf).max().item())
            waiting.add(node, hopeful.nonzero()[:, 0], totals[hopeful])
        yield found(waiting.best <= answers.floor, max(answers.passed_over, waiting.best))
        batch = [waiting.pop() for _ in range(min(tree.at_once, waiting.count)) if waiting.best > answers.floor]
        nodes, logprobs = tree.read([parent for parent, _, _ in batch], [id for _, id, _ in batch])
        opened = [(node, logprob) for node, (*_, logprob) in zip(nodes, batch, strict=True)]


class Answers:
    """The k likeliest continuations found so far, and a bound on all that were passed over."""

    def __init__(self, k):
        self._k = k
        self._heap = []  # (logprob, ids), the least likely on top
        self._known = set()
        self.floor = -math.inf  # once there are k, a continuation must exceed this
        self.passed_over = -math.inf
        self.bytes = 0

    def offer(self, ids, logprob):
        """Add a continuation if it is new and likely enough."""
        if ids in self._known:  # already here, from a batch with different rounding
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
        self.bytes = len(self._heap) * (400 + 40 * len(ids))  # about the size of the Python objects
        if len(self._heap) == self._k:
            self.floor = self._heap[0][0]

    def pass_over(self, logprob):
        """Note that a continuation or prefix of this logprob is not pursued."""
        self.passed_over = max(self.passed_over, logprob)

    def best(self):
        """Return [(ids, logprob)], likeliest first."""
        return [(ids, logprob) for logprob, ids in sorted(self._heap, key=lambda answer: -answer[0])]


# All continuations above a threshold --------------------------------------------------------------------------------


def all_above(
    model: LanguageModel,
    idx: Int64[Tensor, 'B T'],
    max_new_tokens: int,
    threshold: float,
    eos: int | Collection[int] | None = None,
) -> list[tuple[tuple[int, ...], float]]:
    """Return every continuation of max_new_tokens tokens with a probability above a threshold, likeliest first.

    The others are as in `most_probable`. Returns [(ids, logprob)], at most 1 / threshold of them; with eos, some may be
    shorter. None is missing, up to rounding: another token never makes a text likelier, so only prefixes above the
    threshold are read. Raises ValueError for invalid arguments.
    """
    *_, found = above_steps(model, idx, max_new_tokens, threshold, eos)
    return found


def above_steps(
    model: LanguageModel, idx: Int64[Tensor, 'B T'], max_new_tokens, threshold, eos=None
) -> Iterator[list[tuple[tuple[int, ...], float]]]:
    """Search as `all_above` does, yielding after each length the prefixes of it, and what has ended before."""
    check_search_arguments(model, idx, max_new_tokens)
    if not 0 < threshold < 1:
        raise ValueError(f'threshold={threshold}: it must be a probability above 0 and below 1')
    tree, ends, least = TokenTree(model, idx[0].tolist(), max_new_tokens), end_ids(eos), math.log(threshold)

    def extend(node, row):
        """Return what is likely enough: [(node, the id after it, logprob)]. row: (V,), its logprob by id."""
        return [(node, id, row[id].item()) for id in (row > least).nonzero()[:, 0].tolist()]

    finished, prefixes = [], extend(ROOT, tree.root_logprobs)
    for size in range(1, max_new_tokens + 1):
        finished += [((*tree.path(node), id), logprob) for node, id, logprob in prefixes if id in ends]
        prefixes = [prefix for prefix in prefixes if prefix[1] not in ends]
        found = finished + [((*tree.path(node), id), logprob) for node, id, logprob in prefixes]
        yield sorted(found, key=lambda continuation: -continuation[1])
        if not prefixes or size == max_new_tokens:
            return
        longer = []
        for first in range(0, len(prefixes), BATCH):
            batch = prefixes[first : first + BATCH]
            nodes, logprobs = tree.read([node for node, _, _ in batch], [id for _, id, _ in batch])
            for node, row, (*_, logprob) in zip(nodes, logprobs, batch, strict=True):
                longer += extend(node, logprob + row)
        prefixes = longer


# Shared by all --------------------------------------------------------------------------------------------------------


def check_search_arguments(model: LanguageModel, idx: Int64[Tensor, 'B T'], max_new_tokens):
    """Raise ValueError unless idx is one prompt of known ids and max_new_tokens is at least 1."""
    if idx.size(0) != 1 or not idx.size(1):
        raise ValueError(f'idx of shape {tuple(idx.shape)}: it must be one prompt, (1, T), of at least one token')
    if max_new_tokens < 1:
        raise ValueError(f'max_new_tokens={max_new_tokens}: a continuation has at least one token')
    model.check_ids(idx[0].tolist(), 'the prompt')


def as_tensors(
    idx: Int64[Tensor, '1 T'], continuations, max_new_tokens
) -> tuple[Int64[Tensor, 'w T_plus_n'], Float64[Tensor, ' w']]:
    """Return sequences and logprobs of [(ids, logprob)] after the prompt, padded with its end."""
    rows = [[*ids, *ids[-1:] * (max_new_tokens - len(ids))] for ids, _ in continuations]
    continued = torch.tensor(rows, dtype=torch.int64, device=idx.device).view(len(rows), max_new_tokens)
    logprobs = torch.tensor([logprob for _, logprob in continuations], dtype=torch.float64)
    return torch.cat([idx.expand(len(rows), -1), continued], dim=1), logprobs
