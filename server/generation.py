"""Generating what a request asks for, in the engine's thread: the steps of `LanguageModel.steps`, one token at a time.

The same seed and settings give the same text as sample.py: row r of a request draws with the generator of (seed, r).
"""

import codecs
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from lm.alternatives import TokenRecord, record_tokens
from model import LanguageModel


@dataclass
class Sampling:
    """How the texts of a request are drawn."""

    max_tokens: int
    seed: int
    n: int = 1  # texts for each prompt
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)  # id -> what is added to its logit
    stop: tuple[str, ...] = ()  # a text ends before the first of these
    ignore_eos: bool = False  # whether to go on after an end token, as sample.py does
    n_alternatives: int | None = None  # in the TokenRecord of each token; None: no records


class Drawn(NamedTuple):
    """A token of one of the texts."""

    row: int  # which text: 0 to n - 1
    id: int
    text: str  # what can be shown now: text that may become a stop sequence is held back
    record: TokenRecord | None
    finish_reason: str | None = None  # 'stop' or 'length' with the last token of a text


class ServedModel(LanguageModel):
    """A model that reads no prompt twice, and whose logits are biased before a token is drawn."""

    def __init__(self, model, prefixes, logit_bias=None):
        """prefixes: a PrefixCache. logit_bias: {id: what is added to its logit}."""
        super().__init__()
        self.model, self.prefixes = model, prefixes
        self.n_ids, self.block_size, self.device = model.n_ids, model.block_size, model.device
        self.new_cache, self.hidden, self.logits = model.new_cache, model.hidden, model.logits
        self.biased_ids = torch.tensor(list(logit_bias or ()), dtype=torch.int64, device=self.device)
        self.bias = torch.tensor(list((logit_bias or {}).values()), dtype=torch.float32, device=self.device)
        self.model_logits = None  # the last ones, (B, V), without the bias

    def prefill(self, idx, length):
        """Process a prompt, of which all rows are equal unless it fills the context; see `LanguageModel.prefill`."""
        B, T = idx.shape
        if self.block_size <= T:
            return self.model.prefill(idx, length)
        logits, cache = read_prefix(self.model, self.prefixes, idx[0].tolist())
        return logits.expand(B, -1), cache.expand(B)

    def next_logits(self, text, cache, length):
        """Return the biased logits that follow a text, and its cache; see `LanguageModel.next_logits`."""
        self.model_logits, cache = super().next_logits(text, cache, length)
        self.cache = cache
        return self.model_logits.float().index_add(-1, self.biased_ids, self.bias.expand(len(text), -1)), cache


def read_prefix(model, prefixes, ids):
    """Read a text that fits into the context; return the logits after it, (1, V), and its cache, which is kept."""
    cache = prefixes.find(model, ids) or model.new_cache(1, len(ids))
    rest = torch.tensor([ids[cache.end :]], device=model.device)
    logits = model.logits(model.hidden(rest, cache)[:, -1])
    prefixes.keep(model, ids, cache)
    return logits, cache


class GrowingText:
    """The text of tokens as they are drawn. It ends before a stop sequence, so what may become one is held back."""

    def __init__(self, tokenizer, prompt_ids, stops=()):
        self._tokenizer, self._ids, self._stops = tokenizer, list(prompt_ids), stops
        self._decoder = codecs.getincrementaldecoder('utf-8')(errors='replace')
        self._held = ''
        self.is_stopped = False

    def add(self, id):
        """Add a token; return what can be shown now."""
        (data,) = self._tokenizer.split_bytes([id], self._ids)
        self._ids.append(id)
        return self._show(self._decoder.decode(data))

    def close(self):
        """Return what was held back, at the end of the text."""
        text = self._show(self._decoder.decode(b'', final=True))
        return text if self.is_stopped else text + self._held

    def _show(self, new):
        text = self._held + new
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.is_stopped, self._held = True, ''
            return text[: min(found)]
        longest = max(map(len, self._stops), default=0)
        size = next((n for n in range(min(longest - 1, len(text)), 0, -1) if self._may_become_stop(text[-n:])), 0)
        shown, self._held = text[: len(text) - size], text[len(text) - size :]
        return shown

    def _may_become_stop(self, end):
        return any(stop.startswith(end) for stop in self._stops)


def generate(model, prefixes, tokenizer, prompt_ids, sampling):
    """Draw the texts that follow a prompt; yield the list of Drawn of each step.

    A token that ends a text is its last one, and adds nothing to it. prefixes: a PrefixCache.
    """
    served = ServedModel(model, prefixes, sampling.logit_bias)
    ends = () if sampling.ignore_eos else tokenizer.roles.ends
    texts = [GrowingText(tokenizer, prompt_ids, sampling.stop) for _ in range(sampling.n)]
    running, read = list(range(sampling.n)), list(prompt_ids)  # read: the ids of the first text
    idx = torch.tensor([prompt_ids] * sampling.n, device=model.device)
    steps = served.steps(
        idx,
        sampling.max_tokens,
        sampling.temperature,
        sampling.top_k,
        seed=sampling.seed,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
    )
    try:
        for number, step in enumerate(steps, 1):
            ids, records = step.ids.tolist(), [None] * sampling.n
            if sampling.n_alternatives is not None:
                records = record_tokens(served.model_logits, step.ids, count=sampling.n_alternatives)
            drawn = []
            for row in running:
                if records[row] is not None:
                    records[row].sampler_logprob = step.sampler_logprob[row].item()
                is_end = ids[row] in ends
                shown = '' if is_end else texts[row].add(ids[row])
                reason = 'stop' if is_end or texts[row].is_stopped else None
                if reason is None and number == sampling.max_tokens:
                    reason = 'length'
                if reason is not None and not texts[row].is_stopped:
                    shown += texts[row].close()
                drawn.append(Drawn(row, ids[row], shown, records[row], reason))
            running = [one.row for one in drawn if one.finish_reason is None]
            yield drawn
            if not running:
                break
            read.append(ids[0])
    finally:
        if sampling.n == 1 and len(read) < model.block_size and served.model_logits is not None:
            prefixes.keep(model, read[: served.cache.end], served.cache)
