"""A model that reads for the live page: how likely each token of a text is, and the logits after any of them.

It remembers the hidden states of what it has read. So a slider that changes the sampler, or a click on a token, costs
the output layer only. Of a text that is being typed, only the end is computed: the engine keeps the keys and values of
its beginning.
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


class Reader:
    """One model of the page. A text longer than its context is read in segments, as by `eval.py --text`."""

    def __init__(self, model, tokenizer, prefixes):
        """prefixes: the engine's PrefixCache."""
        self.model, self.tokenizer, self.prefixes = model, tokenizer, prefixes
        self.stride = max(1, model.block_size // 2)  # tokens in each segment after the first
        self._states = OrderedDict()  # what was read, a tuple of ids -> hidden states (T, C), the latest last
        self._bytes = 0  # of these

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
        cache = self.prefixes.find(self.model, ids) or self.model.new_cache(1, len(ids))
        known, shared = self._longest_beginning(ids)
        cache.rewind(min(shared, cache.end))  # both the keys and values and the hidden states must be there
        before = cache.end
        new = self.model.hidden(torch.tensor([ids[before:]], device=self.model.device), cache)[0]  # (T, C)
        states = torch.cat([known[:before], new]) if before else new
        self.prefixes.keep(self.model, ids, cache)
        self._remember(ids, states)
        return states

    def _longest_beginning(self, ids):
        """Return (hidden states, number of ids) of the text that has most of its first ids in common with these."""
        best, length = None, 0
        for known, states in self._states.items():
            shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(known, ids)))
            if shared > length:
                best, length = states, shared
        return best, length

    def _remember(self, ids, states):
        self._states[ids] = states
        self._bytes += states.nbytes
        while self._bytes > REMEMBERED_BYTES and len(self._states) > 1:
            self._bytes -= self._states.popitem(last=False)[1].nbytes
