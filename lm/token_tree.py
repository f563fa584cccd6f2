"""A tree of texts that begin alike, of which a model reads each token once.

A search opens thousands of continuations of a prompt, most of which share their beginning. Each is a node: its last
token, and the node before that. The tree keeps the keys and values of each node's own token; to read another token
after some nodes, those of the tokens on their paths are gathered into the cache of a batch.
"""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from model import Cache, LanguageModel, logits_to_logprobs

BATCH = 64  # nodes that a search reads at once
BATCH_BEYOND = 4  # the same where a text is longer than the context: each is read on its own, in a pass over all of it
CACHE_BYTES = 2**28  # of a batch: fewer nodes are read at once if the prompt's keys and values would take more
ROOT = -1  # the node of the prompt, which adds no token


class TokenTree:
    """What a model predicts after a prompt and after each of many continuations of it.

    Shapes: B nodes read at once, S tokens on the longest path, V token ids.
    """

    def __init__(self, model: LanguageModel, prompt_ids, depth=16):
        """Read the prompt, at least one id. depth: how long most continuations will be; longer ones take more time."""
        self.model, self.prompt_ids, self._depth = model, list(prompt_ids), depth
        self._paths = []  # for each node: the nodes from the first token to itself
        self._ids = []  # for each node: its token
        self._kept = []  # for each tensor of the cache: keys or values by node, (room for nodes, ..., hs)
        self._prompt_cache = None  # of one row; None if nothing fits into the context after the prompt
        self.root_logprobs = self._read_prompt()  # (V,) after the prompt

    def __len__(self):
        return len(self._ids)

    @property
    def nbytes(self):
        """The size of the keys and values that are kept, in bytes."""
        return sum(tensor.nbytes for tensor in self._kept)

    @property
    def at_once(self):
        """How many nodes a search should read at once, so that a step of it is short."""
        return BATCH if self._fits(self._depth) else BATCH_BEYOND

    def path(self, node):
        """Return the ids that lead from the prompt to a node."""
        return [] if node == ROOT else [self._ids[passed] for passed in self._paths[node]]

    @torch.no_grad()
    def read(self, parents: list[int], ids: list[int]) -> tuple[list[int], Float64[Tensor, 'B V']]:
        """Read one more token after each parent; return the new nodes and the logprobs of what follows them.

        Where a text is longer than block_size, the model sees its last block_size tokens, as in `model.steps`.
        """
        nodes = self._add(parents, ids)
        logprobs = self.root_logprobs.new_empty(len(ids), len(self.root_logprobs))
        fitting = [row for row, node in enumerate(nodes) if self._fits(len(self._paths[node]))]
        at_once = 1 + CACHE_BYTES // self._prompt_cache.nbytes if fitting else 1
        for first in range(0, len(fitting), at_once):
            rows = fitting[first : first + at_once]
            cache = self._gather([parents[row] for row in rows])
            places = cache.lengths
            logprobs[rows] = self._predict(torch.tensor([[ids[row]] for row in rows]), cache)[:, 0]
            self._keep([nodes[row] for row in rows], cache, torch.arange(len(rows)), places)
        for row in sorted(set(range(len(ids))) - set(fitting)):
            text = [*self.prompt_ids, *self.path(nodes[row])][-self.model.block_size :]
            logprobs[row] = self._predict(torch.tensor([text]))[0, -1]
        return nodes, logprobs

    @torch.no_grad()
    def read_path(self, ids: list[int]):
        """Read ids one after the other after the prompt, as far as the context goes in a single pass.

        A generator that yields None between further passes, and returns what `read` does.
        """
        n = len(ids)
        while n and not self._fits(n):
            n -= 1
        nodes, logprobs = [], []
        if n:
            nodes = self._add([ROOT, *range(len(self), len(self) + n - 1)], ids[:n])
            cache = self._prompt_cache.expand(1)
            logprobs = [*self._predict(torch.tensor([ids[:n]]), cache)[0]]
            places = len(self.prompt_ids) + torch.arange(n)
            self._keep(nodes, cache, torch.zeros(n, dtype=torch.int64), places)
        for id in ids[n:]:
            yield None
            (node,), (row,) = self.read([nodes[-1] if nodes else ROOT], [id])
            nodes, logprobs = [*nodes, node], [*logprobs, row]
        return nodes, torch.stack(logprobs) if ids else self.root_logprobs.new_empty(0, len(self.root_logprobs))

    @torch.no_grad()
    def _read_prompt(self):
        seen = torch.tensor([self.prompt_ids[-self.model.block_size :]], device=self.model.device)
        logits, cache = self.model.prefill(seen, seen.size(1) + self._depth + 1)
        if self._fits(1):
            self._prompt_cache = cache
            self._kept = [tensor[0, ..., :0, :].movedim(-2, 0).contiguous() for tensor in cache.tensors()]
        return logits_to_logprobs(logits)[0].cpu().double()

    def _fits(self, depth):
        """Return whether the model sees the whole text that ends `depth` tokens after the prompt."""
        return len(self.prompt_ids) + depth <= self.model.block_size

    def _predict(self, idx, cache=None):
        """Return the logprobs of what follows each of the ids, (B, T, V)."""
        logits = self.model.logits(self.model.hidden(idx.to(self.model.device), cache))
        return logits_to_logprobs(logits).cpu().double()

    def _add(self, parents, ids):
        nodes = []
        for parent, id in zip(parents, ids, strict=True):
            nodes.append(len(self._ids))
            self._paths.append([*(() if parent == ROOT else self._paths[parent]), nodes[-1]])
            self._ids.append(id)
        return nodes

    def _gather(self, nodes) -> Cache:
        """Return a cache with a row for each node: the prompt and the node's path."""
        paths = [torch.tensor([] if node == ROOT else self._paths[node], dtype=torch.int64) for node in nodes]
        places = pad_sequence(paths, batch_first=True)  # (B, S)
        start, S = len(self.prompt_ids), places.size(1)
        cache = self._prompt_cache.expand(len(nodes))
        cache.reserve(S + 1)  # and room for one more
        for tensor, kept in zip(cache.tensors(), self._kept, strict=True):
            tensor[..., start : start + S, :] = kept[places.to(kept.device)].movedim(1, -2)  # (B, ..., S, hs)
        cache.rewind(start + torch.tensor([len(path) for path in paths]))
        return cache

    def _keep(self, nodes, cache, rows: Int64[Tensor, ' n'], places: Int64[Tensor, ' n']):
        """Keep the keys and values that a cache holds for nodes, in these rows and places of it."""
        last = max(nodes) + 1
        for number, (tensor, kept) in enumerate(zip(cache.tensors(), self._kept, strict=True)):
            if last > len(kept):  # at least double the room, so that it rarely grows
                larger = kept.new_zeros(max(last, 2 * len(kept)), *kept.shape[1:])
                larger[: len(kept)] = kept
                self._kept[number] = kept = larger
            kept[torch.tensor(nodes)] = tensor.movedim(-2, 1)[rows.to(tensor.device), places.to(tensor.device)]
