"""A language model without a network, whose probabilities are known: what uses `LanguageModel` must work with it."""

import torch

from model import Cache, LanguageModel


class FakeModel(LanguageModel):
    """The next token's distribution depends on every token in the window and on its position, in a known way.

    The state after some ids is the sum of (position + 1) * (id + 1), modulo the number of states; each state has a
    row of probabilities. The cache holds ids where a network would hold keys and values.
    """

    def __init__(self, n_ids=7, vocab_size=9, block_size=8, n_states=13, seed=0):
        super().__init__()
        self.n_ids, self._block_size = n_ids, block_size
        probs = torch.rand(n_states, n_ids, generator=torch.Generator().manual_seed(seed)).double() ** 3 + 0.01
        self.probs = probs / probs.sum(1, keepdim=True)  # (states, n_ids)
        self.table = torch.full((n_states, vocab_size), -torch.inf)  # (states, V)
        self.table[:, :n_ids] = 2 + self.probs.log().float()

    @property
    def device(self):
        return torch.device('cpu')

    @property
    def block_size(self):
        return self._block_size

    def new_cache(self, batch_size, length):
        return Cache(torch.zeros(1, 2, batch_size, 1, length, 1))

    def hidden(self, idx, cache=None):
        """Return one-hot states, (B, T, states)."""
        cache = self.new_cache(len(idx), idx.size(1)) if cache is None else cache
        B, T = idx.shape
        positions = cache.reserve(T).expand(B, T)
        assert positions.max() < self.block_size
        terms = (positions + 1) * (idx + 1)
        seen = cache.append(0, terms[None, :, None, :, None].expand(2, B, 1, T, 1).float())  # (2, B, 1, S, 1)
        terms = seen[0, :, 0, None, :, 0]  # (B, 1, S)
        visible = torch.arange(terms.size(-1)) <= positions[..., None]  # (B, T, S)
        if cache.mask is not None:
            assert torch.equal(cache.mask.expand(B, 1, T, -1)[:, 0], visible)
        states = (terms * visible).sum(-1).long() % len(self.table)
        return torch.nn.functional.one_hot(states, len(self.table)).float()

    def logits(self, x):
        return self.table[x.argmax(-1)]

    def probs_after(self, ids):
        """Return the probabilities of the next token after a list of ids, (n_ids,) float64, without any batch."""
        window = ids[-self.block_size :]
        return self.probs[sum((place + 1) * (id + 1) for place, id in enumerate(window)) % len(self.probs)]

    def logprob_of(self, prompt, response):
        """Return the logprob of a response after a prompt, token by token."""
        text = [*prompt, *response]
        return [self.probs_after(text[:end])[text[end]].log().item() for end in range(len(prompt), len(text))]
