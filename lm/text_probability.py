"""The probability of a text itself, however it is cut into tokens: a lower and an upper bound, with proof.

A tokenizer cuts a text in one way, but a model can write it in many: " there", " the" + "re", " t" + "here" ... The
probability of the text is the sum over all of them (Cao & Rimell 2021, https://aclanthology.org/2021.emnlp-main.238).

The *prefix probability* of some bytes is the probability that what the model goes on to write begins with them: the sum
over all sequences of tokens whose last token reaches the end of the bytes or passes it, and whose earlier tokens spell
a proper prefix of them. No two such sequences can both happen, so their probabilities add up. The *whole-text
probability* is that the model writes exactly these bytes and then ends the text.

The sum is searched best first. At any time

    lower = the probability of all sequences completed so far
    upper = lower + the probability of all prefixes not opened yet

since whatever completes a prefix is part of the prefix's own probability. Opening the likeliest prefix moves some of
its probability into `lower`, some into longer prefixes, and most of it, that of other texts, out of `upper`.

Every sequence of tokens counts, also those that the tokenizer would not produce. Special tokens spell nothing, and no
text goes on after them. Temperature 1, no token cut off.
"""

import bisect
import functools
import heapq
import itertools
import math
import time
from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
import torch

from common.errors import UserError
from lm.roles import end_ids
from lm.token_tree import ROOT, TokenTree
from model import LanguageModel

GAP = 1e-3  # relative, between the bounds: where a search is content
ROUNDING = 3e-6  # relative, for each token: what the bounds are widened by, for rounding in float32


class TextProbability(NamedTuple):
    """Bounds on the probability of a text, as natural logarithms."""

    log_lower: float  # -inf if no spelling has been completed
    log_upper: float
    gap: float  # the distance between the bounds, relative to the lower one, before they were widened for rounding
    opened: int  # prefixes whose next token has been computed
    waiting: int  # prefixes still to be opened
    mebibytes: float  # memory that the prefixes take


def prefix_probability(model, tokenizer, prompt_ids, text, spelling=None, gap=GAP, budget=None) -> TextProbability:
    """Return bounds on the probability that what a model writes after a prompt begins with a text.

    model: a LanguageModel. tokenizer: its tokenizer, whose text is that of its tokens, joined. prompt_ids: what stands
    before, at least one id: the model reads these ids, they are not cut otherwise. text: a str, or bytes, of which
    every byte must match. spelling: ids that spell it, which are opened first: so there is a lower bound at once. gap:
    the search stops when the bounds are this close, relative to the lower one. budget: a lm.search.Budget.
    Raises UserError for a tokenizer whose tokens' bytes depend on other tokens, ValueError for an invalid prompt.
    """
    return _last(probability_steps(model, tokenizer, prompt_ids, text, spelling), gap, budget)


def whole_text_probability(
    model, tokenizer, prompt_ids, text, ends, spelling=None, gap=GAP, budget=None
) -> TextProbability:
    """Return bounds on the probability that what a model writes after a prompt is exactly a text, and then an end.

    ends: the id, or ids, that end a text. The others are as in `prefix_probability`.
    """
    return _last(probability_steps(model, tokenizer, prompt_ids, text, spelling, end_ids(ends)), gap, budget)


def _last(steps, gap, budget):
    """Return the last of the bounds that are needed."""
    started = time.perf_counter()
    for bounds in steps:
        if bounds.gap <= gap or (budget and budget.is_spent(bounds, time.perf_counter() - started)):
            break
    return bounds


def probability_steps(
    model: LanguageModel, tokenizer, prompt_ids, text, spelling=None, ends: Collection[int] | None = None
) -> Iterator[TextProbability]:
    """Search as `prefix_probability` does, yielding the bounds after each batch, without end until they meet.

    ends: None for the prefix probability; ids for that of the whole text and one of these after it.
    """
    parts = probability_parts(model, tokenizer, prompt_ids, text, spelling, ends)
    return (part for part in parts if part is not None)


def probability_parts(model, tokenizer, prompt_ids, text, spelling=None, ends=None) -> Iterator[TextProbability | None]:
    """Search as `probability_steps` does, yielding None between passes before there are bounds."""
    model.check_ids([*prompt_ids, *(spelling or ())], 'the prompt and the text')
    if not len(prompt_ids):
        raise ValueError('an empty prompt: begin with the id of <|endoftext|>')
    data = text if isinstance(text, bytes) else text.encode('utf-8', 'surrogatepass')
    if not data and ends is None:  # whatever is written begins with nothing
        yield TextProbability(0.0, 0.0, 0.0, opened=0, waiting=0, mebibytes=0.0)
        return
    tree = TokenTree(model, prompt_ids, depth=len(spelling or data) + 2)
    search = _Search(Spellings(tokenizer, model.n_ids, prompt_ids, data, ends), tree)
    yield from search.open_spelling(spelling or ())
    yield search.bounds()
    while search.waiting:
        search.open_likeliest(tree.at_once)
        yield search.bounds()


# Which probability of a response's text is meant, and how it is called.
QUANTITIES = {
    'response': 'its text, after the tokens of the prompt',
    'start': 'the text of prompt and response, after the start token',
    'ratio': 'the text of prompt and response over that of the prompt, both after the start token',
}


def usual_tokens(tokenizer, quantity, prompt_ids, response_ids):
    """Return (ids before, ids) of the tokens to compare one of QUANTITIES with: the same bytes after the same start."""
    if quantity == 'response':
        return prompt_ids, response_ids
    start, body = split_start(tokenizer, prompt_ids)
    return (start, [*body, *response_ids]) if quantity == 'start' else ([*start, *body], response_ids)


def split_start(tokenizer, prompt_ids):
    """Return the ids that begin a text, and those of a prompt without them."""
    start = tokenizer.start_ids()
    if not start:
        raise UserError('this tokenizer has no token that begins a text, so a whole text has no probability')
    return start, list(prompt_ids[len(start) :] if list(prompt_ids[: len(start)]) == start else prompt_ids)


def quantity_steps(model, tokenizer, quantity, prompt_ids, response_ids) -> Iterator[TextProbability]:
    """Yield bounds on one of QUANTITIES for a prompt and a response that are given as ids."""
    if quantity == 'response':
        text = tokenizer.decode_bytes(response_ids, prompt_ids)
        yield from probability_steps(model, tokenizer, prompt_ids, text, response_ids)
        return
    start, body = split_start(tokenizer, prompt_ids)
    wholes = [[*body, *response_ids], body]
    searches = [probability_steps(model, tokenizer, start, tokenizer.decode_bytes(ids, start), ids) for ids in wholes]
    if quantity == 'start':
        yield from searches[0]
        return
    bounds = [next(search) for search in searches]
    while True:
        whole, prompt = bounds
        low, high = whole.log_lower - prompt.log_upper, min(0.0, whole.log_upper - prompt.log_lower)
        counts = [sum(values) for values in zip(whole[3:], prompt[3:], strict=True)]
        yield TextProbability(low, high, math.expm1(high - low) if low > -math.inf else math.inf, *counts)
        widest = max((0, 1), key=lambda number: (bounds[number].waiting > 0, bounds[number].gap))
        found = next(searches[widest], None)
        if found is None:
            return
        bounds[widest] = found


class Spellings:
    """Which tokens can come next where bytes are to be spelled, for each place: the number of bytes spelled so far."""

    START = -1  # the place before the first token, where some decoders drop a space

    def __init__(self, tokenizer, n_ids, prompt_ids, data, ends=None):
        """data: the bytes. ends: ids that must follow them; None if the last token may pass their end."""
        if not tokenizer.joins_bytes:
            raise UserError('what a token of this tokenizer spells depends on other tokens; its texts have no such sum')
        self._data, self._ends = data, ends
        self._drops_space = tokenizer.drops_space(prompt_ids)
        self._ids_of, self._tokens = index_tokens(tokenizer, n_ids)
        self._longest = max(map(len, self._tokens), default=0)
        self._found = {}

    @property
    def start(self):
        """The place before the first token."""
        return self.START if self._drops_space else 0

    def at(self, place):
        """Return ([(id, place after it)] of tokens that go on, tensor of ids that complete the text)."""
        if place not in self._found:
            if place == self.START:
                going_on, complete = self._match(b' ' + self._data, shift=-1)
                if not self._data.startswith(b' '):  # else a token that begins with it drops it
                    others = self._match(self._data, shift=0)
                    going_on, complete = going_on + others[0], complete + others[1]
            else:
                going_on, complete = self._match(self._data[place:], shift=place)
            self._found[place] = going_on, torch.tensor(sorted(complete), dtype=torch.int64)
        return self._found[place]

    def _match(self, rest, shift):
        """Return the same for the bytes that are left; shift: their place."""
        if self._ends is not None and not rest:
            return [], list(self._ends)
        longest = min(len(rest) if self._ends is not None else len(rest) - 1, self._longest)
        going_on = [(id, shift + size) for size in range(1, longest + 1) for id in self._ids_of.get(rest[:size], ())]
        if self._ends is not None:
            return going_on, []
        first = bisect.bisect_left(self._tokens, rest)  # tokens that begin with the rest follow one another
        beginning = itertools.takewhile(
            lambda token: token.startswith(rest), itertools.islice(self._tokens, first, None)
        )
        return going_on, [id for token in beginning for id in self._ids_of[token]]


@functools.lru_cache(maxsize=4)
def index_tokens(tokenizer, n_ids):
    """Return {bytes of a token: its ids} and the sorted list of these bytes, without tokens that spell nothing."""
    ids_of = defaultdict(list)
    for id, token in enumerate(tokenizer.token_bytes[:n_ids]):
        if token:
            ids_of[token].append(id)
    return dict(ids_of), sorted(ids_of)


class _Search:
    """The state of a search: what has been completed, and the prefixes that wait, likeliest first."""

    def __init__(self, spellings, tree):
        self._spellings, self._tree = spellings, tree
        self._log_lower = -math.inf
        self._heap = []  # (-logprob, number, node before, id, place after the id)
        self._logprobs = np.empty(1024)  # by number; -inf once a prefix has been opened
        self._pushed = self._opened = self._longest = 0

    @property
    def waiting(self):
        """How many prefixes wait."""
        return len(self._heap)

    def open_spelling(self, ids):
        """Open the prompt, and each prefix of a spelling that goes on; a generator that yields None between passes."""
        place, path, places = self._spellings.start, [], [self._spellings.start]
        for id in ids:
            place = dict(self._spellings.at(place)[0]).get(id)
            if place is None:
                break
            path.append(id)
            places.append(place)
        nodes, rows = yield from self._tree.read_path(path)
        logprob = 0.0
        for node, place, row, id in zip([ROOT, *nodes], places, [self._tree.root_logprobs, *rows], [*path, None]):
            self._open(node, place, logprob, row, already_open=id)
            logprob += 0.0 if id is None else row[id].item()

    def open_likeliest(self, n):
        """Open the n likeliest prefixes, or all that wait."""
        popped = [heapq.heappop(self._heap) for _ in range(min(n, len(self._heap)))]
        self._logprobs[[number for _, number, *_ in popped]] = -math.inf
        nodes, rows = self._tree.read([node for _, _, node, *_ in popped], [id for *_, id, _ in popped])
        for (negative, *_, place), node, row in zip(popped, nodes, rows):
            self._open(node, place, -negative, row)

    def _open(self, node, place, logprob, row, already_open=None):
        """Add up what completes a prefix, and let what goes on wait. row: (V,) logprobs of what follows it."""
        going_on, complete = self._spellings.at(place)
        self._opened += 1
        self._longest = max(self._longest, 1 + len(self._tree.path(node)))
        if len(complete):
            self._log_lower = np.logaddexp(self._log_lower, logprob + row[complete].logsumexp(0).item())
        for id, reached in going_on:
            if id != already_open:
                self._push(logprob + row[id].item(), node, id, reached)

    def _push(self, logprob, node, id, place):
        if self._pushed == len(self._logprobs):
            self._logprobs = np.concatenate([self._logprobs, np.empty_like(self._logprobs)])
        self._logprobs[self._pushed] = logprob
        heapq.heappush(self._heap, (-logprob, self._pushed, node, id, place))
        self._pushed += 1

    def bounds(self):
        """Return the TextProbability of what has been opened so far."""
        log_upper = np.logaddexp(self._log_lower, np.logaddexp.reduce(self._logprobs[: self._pushed], initial=-np.inf))
        gap = math.expm1(log_upper - self._log_lower) if self._log_lower > -math.inf else math.inf
        slack = ROUNDING * self._longest
        mebibytes = (self._tree.nbytes + self._logprobs.nbytes + 250 * self.waiting) / 2**20  # 250: Python's objects
        low, high = float(self._log_lower - slack), float(min(0.0, log_upper + slack))
        return TextProbability(low, high, gap, self._opened, self.waiting, mebibytes)
