"""A model that reads for the live page: how likely each token of a text is, and the logits after any of them.

It remembers the hidden states of what it has read. So a slider that changes the sampler, or a click on a token, costs
the output layer only, and of a text that is being typed, only the end is computed.
"""

import functools
from collections import OrderedDict
from collections.abc import Iterator
from itertools import takewhile

import torch
from jaxtyping import Float
from torch import Tensor

from lm.alternatives import TokenRecord, record_tokens
from lm.scoring import OUTPUT_POSITIONS, cut_text, segment_ends

REMEMBERED_BYTES = 2**26  # hidden states of a model
MIN_SHARED = 8  # tokens that a text must have in common with the last one


class Reader:
    """One model of the page. A text longer than its context is read in segments, as by `eval.py --text`."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.stride = max(1, model.block_size // 2)  # tokens in each segment after the first
        self._states = OrderedDict()  # what was read, a tuple of ids -> hidden states (T, C), the latest last
        self._bytes = 0  # of these
        self._cache, self._ids = None, ()  # the keys and values of the latest text, and its ids

    @functools.cached_property
    def fingerprint(self) -> str:
        """The tokenizer's: models that share it share their ids."""
        return self.tokenizer.fingerprint

    def front(self, ids, start) -> list[int]:
        """Return what stands before a text's ids: what its tokenizer puts there; with `start`, the start token."""
        return self.tokenizer.start_ids() if start or not len(ids) else list(self.tokenizer.front)

    def segments(self, ids, start) -> Iterator[tuple[int, list[int], list[int]]]:
        """Yield (index of the first token that is scored, ids before it, ids scored) of each segment of a text."""
        ends = segment_ends(len(ids), self.model.block_size, self.stride)
        for end, (prompt, response) in zip(ends, cut_text(ids, ends, self.model.block_size, self.front(ids, start))):
            yield end - len(response), prompt, response

    def records(self, ids, start, since=0, count=1, **sampler) -> Iterator[tuple[int, list[TokenRecord]]]:
        """Yield (index of the first, TokenRecords) for the tokens of a text from index `since` on, part by part.

        start: whether the text begins after the start token. count, sampler: as in `record_tokens`. The first token of
        a text has no record if nothing stands before it.
        """
        for first, prompt, response in self.segments(ids, start):
            skipped = max(0, since - first)
            if skipped >= len(response):
                continue
            states = self.read([*prompt, *response])[len(prompt) - 1 :][: len(response)]  # (R, C)
            for at in range(skipped, len(response), OUTPUT_POSITIONS):
                part = slice(at, at + OUTPUT_POSITIONS)
                logits = self.model.logits(states[part])
                yield first + at, record_tokens(logits, torch.tensor(response[part]), count=count, **sampler)

    def logits_before(self, ids, at, start) -> Float[Tensor, ' V']:
        """Return the logits that token `at` of a text is chosen from; at the end, those of the token after it."""
        window = self.window_before(ids, at, start)
        return self.model.logits(self.read(window)[len(window) - 1]).float()[: self.model.n_ids].cpu()

    def window_before(self, ids, at, start) -> list[int]:
        """Return the ids that the model sees when it predicts token `at`. Raises ValueError if there are none."""
        if at < len(ids):
            for first, prompt, response in self.segments(ids, start):
                if first <= at < first + len(response):
                    return [*prompt, *response[: at - first]]
        window = [*self.front(ids, start), *ids[:at]][-self.model.block_size :]
        if not window or at < len(ids):
            raise ValueError('nothing comes before the first token: it has no probability')
        return window

    @torch.no_grad()
    def read(self, ids) -> Float[Tensor, 'T C']:
        """Return the hidden states after each of the ids, or after the first block_size of them."""
        ids = tuple(ids[: self.model.block_size])
        if ids in self._states:
            self._states.move_to_end(ids)
            return self._states[ids]
        for longer, states in self._states.items():
            if longer[: len(ids)] == ids:
                return states[: len(ids)]
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, self._ids)))
        shared = min(shared, len(ids) - 1)
        known = self._states.get(self._ids)
        if shared < MIN_SHARED or known is None:
            shared, known = 0, None
            self._cache = self.model.new_cache(1, self.model.block_size)
        self._ids = ()  # until the pass below has succeeded
        self._cache.rewind(shared)
        new = self.model.hidden(torch.tensor([ids[shared:]], device=self.model.device), self._cache)[0]  # (T, C)
        states = new if known is None else torch.cat([known[:shared], new])
        self._ids = ids
        self._remember(ids, states)
        return states

    def _remember(self, ids, states):
        self._states[ids] = states
        self._bytes += states.nbytes
        while self._bytes > REMEMBERED_BYTES and len(self._states) > 1:
            self._bytes -= self._states.popitem(last=False)[1].nbytes
