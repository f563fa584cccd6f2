"""What else could have been said: the likeliest tokens at each step, for the charts of plots.py and for a page."""

import math
from dataclasses import dataclass

import torch

from model import logits_to_logprobs
from page import Alternative, Side, Token
from plots import Chart
from scoring import OUTPUT_ROWS, rows_of_pair
from search import likeliest

ALTERNATIVES = 10  # tokens that are shown


@dataclass
class Look:
    """One step: what was likeliest, and what was said."""

    ids: list[int]  # likeliest first under the model; last the one that was said, if it is not among them
    logprobs: list[float]  # of each under the model
    sampler_logprobs: list[float]
    chosen: int  # which of them was said
    rank: int  # its rank among all tokens, from 1
    entropy: float  # of the model's distribution, in nats


def look_at(logits, chosen, temperature, top_k=None, top_p=None):
    """Return a Look at one step: logits (V,), and the id that was said."""
    logits = logits.float().cpu()
    ids = [id for _, id in likeliest(logits, ALTERNATIVES)]
    rank = 1 + (logits > logits[chosen]).sum().item() + (logits[:chosen] == logits[chosen]).sum().item()
    if chosen not in ids:
        ids.append(chosen)
    logprobs = logits_to_logprobs(logits).double()
    entropy = torch.special.entr(logprobs.exp()).sum().item()
    of_sampler = logits_to_logprobs(logits, temperature, top_k, top_p)
    return Look(ids, logprobs[ids].tolist(), of_sampler[ids].tolist(), ids.index(chosen), rank, entropy)


@torch.no_grad()
def looks_at_response(model, prompt_ids, response_ids, temperature=1.0):
    """Return a Look for each token of a fixed response: one forward pass where it fits, no loop over tokens."""
    looks = []
    for row in rows_of_pair(0, list(prompt_ids), list(response_ids), model.config.block_size):
        idx = torch.tensor([row.inputs], device=model.transformer.wte.weight.device)
        x = model.hidden(idx)[0, -len(row.targets) :]  # (R, C)
        for part, ids in zip(x.split(OUTPUT_ROWS), torch.tensor(row.targets).split(OUTPUT_ROWS), strict=True):
            looks += [look_at(logits, id, temperature) for logits, id in zip(model.logits(part), ids.tolist())]
    return looks


def charts(looks, response_ids, prompt_ids, tokenizer, sampler_name):
    """Return a Chart for each Look at the first steps of a response. sampler_name: its temperature, top-k and top-p."""
    return [
        Chart(
            pieces=tokenizer.pieces(look.ids),
            sampler=[math.exp(logprob) for logprob in look.sampler_logprobs],
            model=[math.exp(logprob) for logprob in look.logprobs],
            chosen=look.chosen,
            rank=look.rank,
            context=tokenizer.decode(prompt_ids + response_ids[:number]),
            sampler_name=sampler_name,
        )
        for number, look in enumerate(looks)
    ]


def page_side(looks, tokenizer, with_sampler):
    """Return what a page shows of a response: a Token for each Look."""
    tokens = []
    for look in looks:
        of_sampler = look.sampler_logprobs if with_sampler else [None] * len(look.ids)
        alternatives = [
            Alternative(piece, math.exp(logprob), None if of is None else math.exp(of))
            for piece, logprob, of in zip(tokenizer.pieces(look.ids), look.logprobs, of_sampler, strict=True)
        ]
        chosen = look.chosen
        tokens.append(
            Token(
                piece=alternatives[chosen].piece,
                logprob=look.logprobs[chosen],
                sampler_logprob=of_sampler[chosen],
                rank=look.rank,
                entropy=look.entropy,
                alternatives=alternatives[:ALTERNATIVES],
            )
        )
    return Side(tokens)
