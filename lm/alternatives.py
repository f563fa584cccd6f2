"""A record of one token of a response: how likely it was, and what else the model could have said.

`record_tokens` makes the records; bar charts and the HTML page show them.

Shapes: N positions, V token ids.
"""

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lm.wording import differs_from_model
from model import logits_to_logprobs

ALTERNATIVES = 10  # how many of the likeliest tokens are kept


class Alternative(NamedTuple):
    """One of the likeliest tokens at a position; logprobs are natural."""

    id: int
    model_logprob: float
    sampler_logprob: float  # -inf if the sampler could not have drawn it


@dataclass
class TokenRecord:
    """One token of a response; logprobs are natural."""

    id: int
    model_logprob: float
    sampler_logprob: float
    rank: int  # among all tokens under the model; 1 is the token that greedy decoding picks
    entropy: float  # of the model's distribution, in nats
    alternatives: list[Alternative]  # the likeliest tokens under the model, in descending order

    @property
    def alternatives_and_token(self):
        """The alternatives, followed by this token unless it is one of them."""
        if any(other.id == self.id for other in self.alternatives):
            return self.alternatives
        return [*self.alternatives, Alternative(self.id, self.model_logprob, self.sampler_logprob)]


def record_tokens(
    logits: Float[Tensor, 'N V'], ids: Int[Tensor, ' N'], temperature=1.0, count=ALTERNATIVES, text=None, **others
) -> list[TokenRecord]:
    """Return a TokenRecord for each position.

    logits: what each token was chosen from. ids: the chosen tokens. count: how many alternatives to keep. text: the ids
    before each token. temperature, text and others, the sampler's settings: see `model.logits_to_logprobs`.
    """
    of_model = of_sampler = logits_to_logprobs(logits).cpu()
    if differs_from_model(temperature, **others):
        of_sampler = logits_to_logprobs(logits, temperature, text=text, **others).cpu()
    logits, ids = logits.float().cpu(), ids.cpu()
    model_logprobs, sampler_logprobs = (of.gather(-1, ids[:, None])[:, 0] for of in (of_model, of_sampler))
    columns = (ids, model_logprobs, sampler_logprobs, rank_tokens(logits, ids), entropy(of_model))
    others = likeliest_ids(logits, count)
    places = [place for place, row in enumerate(others) for _ in row], [id for row in others for id in row]
    alternatives = map(Alternative, places[1], of_model[places].tolist(), of_sampler[places].tolist())
    return [
        TokenRecord(*values, list(itertools.islice(alternatives, len(row))))
        for *values, row in zip(*(column.tolist() for column in columns), others, strict=True)
    ]


def rank_tokens(
    logits: Float[Tensor, '*N V'], ids: Int[Tensor, '*N'], scratch: Float[Tensor, '*N V'] | None = None
) -> Int[Tensor, '*N']:
    """Return the rank of each id among all tokens, from 1; of equally likely ids the lower comes first, as in argmax.

    scratch: a float32 tensor that may be overwritten, to save allocating one.
    """
    values = logits.gather(-1, ids[..., None])  # (..., 1)
    # Comparisons go into a float tensor, since torch sums booleans far more slowly.
    scratch = torch.empty_like(logits, dtype=torch.float32) if scratch is None else scratch
    ranks = 1 + torch.gt(logits, values, out=scratch).sum(-1).long()
    equals = torch.eq(logits, values, out=scratch).sum(-1)
    for place in (equals > 1).nonzero().tolist():
        place = tuple(place)
        ranks[place] += (logits[place][: ids[place]] == values[place]).sum()
    return ranks


def entropy(logprobs: Float[Tensor, '*N V']) -> Float[Tensor, '*N']:
    """Return the entropy of each distribution, in nats, float64."""
    return torch.special.entr(logprobs.double().exp()).sum(-1)


def likeliest(logprobs: Float[Tensor, ' V'], k: int) -> list[tuple[float, int]]:
    """Return [(logprob, id)] of the k likeliest ids in descending order; fewer if fewer are possible.

    Among equals the lower id comes first, as in greedy decoding; torch.topk alone promises no order.
    """
    least = logprobs.topk(min(k, len(logprobs))).values[-1]
    ids = ((logprobs >= least) & (logprobs > -math.inf)).nonzero()[:, 0]
    ids = ids[logprobs[ids].argsort(descending=True, stable=True)][:k]
    return list(zip(logprobs[ids].tolist(), ids.tolist()))


def likeliest_ids(logprobs: Float[Tensor, 'N V'], k: int) -> list[list[int]]:
    """Return the ids that `likeliest` finds in each row, for many rows at once."""
    if k == 0:
        return [[] for _ in logprobs]
    values, ids = logprobs.topk(min(k + 1, logprobs.size(-1)))  # (N, k + 1) each, in descending order
    is_clear = (values.diff() < 0).all(-1) & (values[:, -1] > -math.inf)  # none are equal, or impossible
    rows = zip(ids[:, :k].tolist(), is_clear.tolist(), logprobs, strict=True)
    return [row if clear else [id for _, id in likeliest(of, k)] for row, clear, of in rows]
