"""The numbers that results/REPORT.md explains things with, apart from what the scripts print themselves."""

import math
from dataclasses import dataclass

import torch

from lab import text_statistics
from lm import internals
from lm.alternatives import entropy
from lm.scoring import score
from lm.search import beam_search, most_probable
from lm.tokenizer import Tokenizer
from model import GPT, logits_to_logprobs

ENOUGH = 10_000  # tokens, for any product of probabilities to become zero


@dataclass
class Voice:
    """A model and its tokenizer."""

    model: GPT
    tokenizer: Tokenizer

    def ids(self, text):
        """Return a prompt as the model reads it, (1, T)."""
        return torch.tensor([self.tokenizer.encode_prompt(text)])


@torch.no_grad()
def temperatures(voice, start, which):
    """Return the effective number of choices of what comes next, at some temperatures."""
    logits = voice.model(voice.ids(start))[0][0, -1]  # (V,)
    choices = {str(one): {'choices': math.exp(entropy(logits_to_logprobs(logits, one)).item())} for one in which}
    return {'vocabulary': voice.model.n_ids, **choices}


@torch.no_grad()
def nearly_greedy(voice, start, max_new_tokens, temperature):
    """Return, for each token that is drawn, what makes a small temperature certain of it: the gap to the runner-up.

    The sampler's probability of the likeliest token is 1 / (1 + the sum over the others of exp(-gap / temperature)),
    where a gap is how much lower the other's logit is: at temperature 0.0001, a gap of 0.01 makes exp(-100).
    """
    tokens = []
    for step in voice.model.steps(voice.ids(start), max_new_tokens, temperature):
        logits = step.logits[0].float()
        (best, second), (id, runner_up) = (part.tolist() for part in logits.topk(2))
        tokens.append(
            {
                'piece': voice.tokenizer.pieces([id])[0],
                'runner_up': voice.tokenizer.pieces([runner_up])[0],
                'gap': best - second,
                'log10_of_the_rest': -(best - second) / temperature / math.log(10),
                'model_probability': step.model_logprob.exp().item(),
                'sampler_probability': step.sampler_logprob.exp().item(),
            }
        )
    return tokens


def underflow(voice, start, seed):
    """Return after how many drawn tokens the product of their probabilities is 0.0, in float32 and in float64."""
    products = {'float32': torch.ones((), dtype=torch.float32), 'float64': torch.ones((), dtype=torch.float64)}
    found, logprobs = {}, []
    for step in voice.model.steps(voice.ids(start), ENOUGH, 1.0, seed=seed):
        logprobs.append(step.model_logprob.item())
        for name, product in products.items():
            product *= math.exp(logprobs[-1])
            if product == 0 and name not in found:
                found[name] = {'tokens': len(logprobs), 'logprob': math.fsum(logprobs)}
        if len(found) == len(products):
            break
    return found


def lengths(voice, stories):
    """Return the logprob of the first tokens of stories, as [(tokens, logprob)], for 1, 2, 4, ... of them."""
    points = []
    longest = voice.model.config.block_size - 1
    for story in stories:
        ids = voice.tokenizer.encode(story)[:longest]
        logprobs = score(voice.model, [voice.tokenizer.encode_prompt('')], [ids])[0]
        sums = logprobs.cumsum(0).tolist()
        points += [(2**power, sums[2**power - 1]) for power in range(10) if 2**power <= len(ids)]
    return points


def line_through(points):
    """Return slope and correlation of logprob against length, by least squares."""
    x, y = (torch.tensor(column, dtype=torch.float64) for column in zip(*points))
    covariance = ((x - x.mean()) * (y - y.mean())).mean()
    return {
        'slope': (covariance / x.var(correction=0)).item(),
        'correlation': (covariance / x.std(correction=0) / y.std(correction=0)).item(),
    }


def searched(voice, start, max_new_tokens, draws, seed):
    """Return the best that each way of looking finds: greedy, beams, many draws, and the proof of what there is."""
    idx = voice.ids(start)
    ways = {f'beams_{width}': beam_search(voice.model, idx, max_new_tokens, width) for width in (1, 2, 5, 20)}
    found = {name: (ids[0, idx.shape[1] :].tolist(), logprobs[0].item()) for name, (ids, logprobs) in ways.items()}
    for temperature in (1.0, 0.5):
        steps = list(voice.model.steps(idx.expand(draws, -1), max_new_tokens, temperature, seed=seed))
        drawn = torch.stack([step.ids for step in steps], dim=1)  # (draws, n)
        logprobs = torch.stack([step.model_logprob for step in steps]).sum(0)
        best = logprobs.argmax()
        found[f'draws_at_{temperature:g}'] = (drawn[best].tolist(), logprobs[best].item())
        found[f'draws_at_{temperature:g}_different'] = len(drawn.unique(dim=0))
        found[f'draws_at_{temperature:g}_mean'] = logprobs.mean().item()
    ids, logprobs, _ = most_probable(voice.model, idx, max_new_tokens, k=1)
    found['exact'] = (ids[0, idx.shape[1] :].tolist(), logprobs[0].item())
    return {
        name: {'text': voice.tokenizer.decode(of[0]), 'logprob': of[1]} if isinstance(of, tuple) else of
        for name, of in found.items()
    }


@torch.no_grad()
def attention(voice, start):
    """Return what the first head of the first layer does at the last token of a text, with the cache and without."""
    model, idx = voice.model, voice.ids(start)
    block, n_head = model.transformer.h[0], model.config.n_head
    seen = {}

    def note(name):
        return lambda module, inputs, output: seen.__setitem__(name, output)

    hooks = [block.attn.c_attn.register_forward_hook(note('qkv')), block.attn.register_forward_hook(note('out'))]
    try:
        model.hidden(idx)
        full = dict(seen)
        _, cache = model.prefill(idx[:, :-1], idx.shape[1])
        filled = cache.lengths.item()
        model.decode(idx[:, -1], cache)
    finally:
        for hook in hooks:
            hook.remove()
    q, k, v = (part[0] for part in internals.split_heads(full['qkv'], n_head))  # (nh, T, hs) each
    scores = q[0, -1] @ k[0].T / math.sqrt(q.shape[-1])  # (T,)
    weights = scores.softmax(-1)
    return {
        'scores': scores.tolist(),
        'weights': weights.tolist(),
        'gathered': (weights @ v[0])[:4].tolist(),
        'head_size': q.shape[-1],
        'filled': filled,
        'difference': (seen['out'][0, -1] - full['out'][0, -1]).abs().max().item(),
    }


@torch.no_grad()
def with_and_without_cache(voice, start, max_new_tokens):
    """Return how far logits from the cache are, at the most, from those of full passes."""
    model, idx = voice.model, voice.ids(start)
    steps = list(model.steps(idx, max_new_tokens, temperature=0))
    text = torch.cat([idx, torch.stack([step.ids for step in steps], dim=1)], dim=1)
    full = [model(text[:, :end])[0][0, -1] for end in range(idx.shape[1], text.shape[1])]
    difference = max((step.logits[0] - logits).abs().max().item() for step, logits in zip(steps, full))
    return {'tokens': max_new_tokens, 'difference': difference}


def languages(texts):
    """Return figures of texts and the words that set stories and novels apart. texts: name -> text."""
    stories = '\n\n\n'.join(text for name, text in texts.items() if name != 'novels')
    rows = {
        title: [dict(zip(('word', 'z', 'here', 'there'), row)) for row in text_statistics.keywords(here, there)]
        for title, here, there in (
            ('more in the stories', stories, texts['novels']),
            ('more in the novels', texts['novels'], stories),
        )
    }
    return {'texts': {name: text_statistics.describe_text(text) for name, text in texts.items()}, 'keywords': rows}
