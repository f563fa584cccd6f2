"""The numbers in results/REPORT.md that no script prints: its examples, computed from the shipped model and texts."""

import math

import torch

from lab import text_statistics
from lm import internals
from lm.alternatives import entropy
from lm.scoring import score
from lm.search import beam_search, most_probable
from model import logits_to_logprobs

TOKENS_AT_MOST = 10_000  # enough for any product of probabilities to become zero


def compute_all(model, tokenizer, stories, prose_read, stories_read, draws, cached):
    """Return the contents of report.json, and the points of its picture of lengths, [(tokens, logprob)].

    stories: texts to score. prose_read, stories_read: the training texts, {name: text}. draws: how many texts to draw
    for comparison with the searches. cached: how many tokens to generate with and without the cache.
    """
    points = score_beginnings(model, tokenizer, stories)
    numbers = {
        'temperature': count_choices(model, tokenizer, 'The old king had a', (0.2, 0.7, 1.0, 1.5)),
        'i_live_in': compare_runners_up(model, tokenizer, 'I live in', 5, temperature=0.0001),
        'underflow': find_underflow(model, tokenizer, 'Once upon a time', seed=1),
        'length': {'stories': len(stories), 'points': len(points), **fit_line(points)},
        'search': compare_searches(model, tokenizer, 'The giant', 6, draws, seed=1),
        'attention': follow_attention(model, tokenizer, 'The king had a'),
        'cache': compare_with_cache(model, tokenizer, 'Once upon a time', cached),
        'language': compare_texts(prose_read, stories_read),
    }
    return numbers, points


def encode(tokenizer, prompt):
    """Return the ids of a prompt, (1, T)."""
    return torch.tensor([tokenizer.encode_prompt(prompt)])


@torch.no_grad()
def count_choices(model, tokenizer, prompt, temperatures):
    """Return the effective number of choices for the next token at each temperature: exp of the entropy."""
    logits = model(encode(tokenizer, prompt))[0][0, -1]  # (V,)
    entropies = {temperature: entropy(logits_to_logprobs(logits, temperature)).item() for temperature in temperatures}
    choices = {str(temperature): {'choices': math.exp(nats)} for temperature, nats in entropies.items()}
    return {'vocabulary': model.n_ids, **choices}


@torch.no_grad()
def compare_runners_up(model, tokenizer, prompt, max_new_tokens, temperature):
    """Return, for each token drawn at a low temperature, how it compares with the runner-up.

    The sampler's probability of the likeliest token is 1 / (1 + the sum over the others of exp(-gap / temperature)),
    where the gap is how much lower the other's logit is. At temperature 0.0001, a gap of 0.01 gives exp(-100).
    """
    tokens = []
    for step in model.steps(encode(tokenizer, prompt), max_new_tokens, temperature):
        logits = step.logits[0].float()
        (best, second), (id, runner_up) = (part.tolist() for part in logits.topk(2))
        tokens.append(
            {
                'piece': tokenizer.pieces([id])[0],
                'runner_up': tokenizer.pieces([runner_up])[0],
                'gap': best - second,
                'log10_of_the_rest': -(best - second) / temperature / math.log(10),
                'model_probability': step.model_logprob.exp().item(),
                'sampler_probability': step.sampler_logprob.exp().item(),
            }
        )
    return tokens


def find_underflow(model, tokenizer, prompt, seed):
    """Return after how many drawn tokens the product of their probabilities is 0.0, in float32 and in float64."""
    products = {'float32': torch.ones((), dtype=torch.float32), 'float64': torch.ones((), dtype=torch.float64)}
    found, logprobs = {}, []
    for step in model.steps(encode(tokenizer, prompt), TOKENS_AT_MOST, 1.0, seed=seed):
        logprobs.append(step.model_logprob.item())
        for name, product in products.items():
            product *= math.exp(logprobs[-1])
            if product == 0 and name not in found:
                found[name] = {'tokens': len(logprobs), 'logprob': math.fsum(logprobs)}
        if len(found) == len(products):
            break
    return found


def score_beginnings(model, tokenizer, stories):
    """Return [(tokens, logprob)] of the first 1, 2, 4, ... tokens of each story."""
    points = []
    longest = model.block_size - 1
    for story in stories:
        ids = tokenizer.encode(story)[:longest]
        logprobs = score(model, [tokenizer.encode_prompt('')], [ids])[0]
        sums = logprobs.cumsum(0).tolist()
        points += [(2**power, sums[2**power - 1]) for power in range(10) if 2**power <= len(ids)]
    return points


def fit_line(points):
    """Return the slope (by least squares) and the correlation of [(tokens, logprob)] points."""
    x, y = (torch.tensor(column, dtype=torch.float64) for column in zip(*points))
    covariance = ((x - x.mean()) * (y - y.mean())).mean()
    return {
        'slope': (covariance / x.var(correction=0)).item(),
        'correlation': (covariance / x.std(correction=0) / y.std(correction=0)).item(),
    }


def compare_searches(model, tokenizer, prompt, max_new_tokens, draws, seed):
    """Return the best continuation that each method finds: greedy decoding, beams, many draws, the exact search."""
    idx = encode(tokenizer, prompt)
    beams = {width: beam_search(model, idx, max_new_tokens, width) for width in (1, 2, 5, 20)}
    found = {f'beams_{width}': (ids[0, idx.size(1) :], logprobs[0]) for width, (ids, logprobs) in beams.items()}
    spread = {}
    for temperature in (1.0, 0.5):
        steps = list(model.steps(idx.expand(draws, -1), max_new_tokens, temperature, seed=seed))
        drawn = torch.stack([step.ids for step in steps], dim=1)  # (draws, n)
        logprobs = torch.stack([step.model_logprob for step in steps]).sum(0)  # (draws,)
        best = logprobs.argmax()
        found[f'draws_at_{temperature:g}'] = drawn[best], logprobs[best]
        spread[f'draws_at_{temperature:g}_different'] = len(drawn.unique(dim=0))
        spread[f'draws_at_{temperature:g}_mean'] = logprobs.mean().item()
    ids, logprobs, _ = most_probable(model, idx, max_new_tokens, k=1)
    found['exact'] = ids[0, idx.size(1) :], logprobs[0]
    best = {
        name: {'text': tokenizer.decode(ids.tolist()), 'logprob': logprob.item()}
        for name, (ids, logprob) in found.items()
    }
    return {**best, **spread}


@torch.no_grad()
def follow_attention(model, tokenizer, prompt):
    """Return what head 0 of layer 0 computes at the last token of a prompt, and how far the cache's result is off."""
    idx = encode(tokenizer, prompt)
    block, n_head = model.transformer.h[0], model.config.n_head
    seen = {}  # what came out of the modules in the last pass

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
def compare_with_cache(model, tokenizer, prompt, max_new_tokens):
    """Return the largest difference between logits computed with the cache and those of full passes."""
    idx = encode(tokenizer, prompt)
    steps = list(model.steps(idx, max_new_tokens, temperature=0))
    text = torch.cat([idx, torch.stack([step.ids for step in steps], dim=1)], dim=1)
    full = [model(text[:, :end])[0][0, -1] for end in range(idx.shape[1], text.shape[1])]
    difference = max((step.logits[0] - logits).abs().max().item() for step, logits in zip(steps, full))
    return {'tokens': max_new_tokens, 'difference': difference}


def compare_texts(prose_read, stories_read):
    """Return statistics of each text, and the words that set stories and prose apart: {name: text} each."""
    prose, stories = ('\n\n\n'.join(texts.values()) for texts in (prose_read, stories_read))
    rows = {
        title: [dict(zip(('word', 'z', 'here', 'there'), row)) for row in text_statistics.keywords(here, there)]
        for title, here, there in (
            ('more in the stories', stories, prose),
            ('more in the prose', prose, stories),
        )
    }
    described = {name: text_statistics.describe_text(text) for name, text in (prose_read | stories_read).items()}
    return {'texts': described, 'keywords': rows}
