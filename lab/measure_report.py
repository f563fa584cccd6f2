"""The numbers in results/REPORT.md that no script prints: its examples, computed from the shipped model and texts."""

import math
import statistics
from dataclasses import replace

import torch

from lab import text_statistics
from lm import internals
from lm.alternatives import entropy
from lm.scoring import score
from lm.search import Budget, beam_search, most_probable, search_steps
from lm.text_probability import prefix_probability
from model import logits_to_logprobs
from texts.plain_text import split_documents

SEPARATOR = '\n\n\n'  # between documents
TOKENS_AT_MOST = 10_000  # enough for any product of probabilities to become zero
LENGTHS = (1, 2, 4, 8, 16, 32, 64, 128)  # tokens of the beginnings that are compared
TEXT_BUDGET = Budget(prefixes=2000)  # of the search for the other ways to cut a response into tokens
SEARCH_BUDGET = Budget(prefixes=20_000, mebibytes=2000)  # of the exact search
SEARCHED = 100_000  # prefixes, of the exact searches after many prompts together
LARGE = 50_000_000  # parameters; a model with more takes long for each prefix, so its searches get fewer of them
ROUNDING = 1e-4  # nats by which logprobs of the same text may differ
WIDTHS = (1, 2, 5, 20)  # of the beams that are compared with it; 1 is greedy decoding
BEGINNERS = ('simple_stories', 'tinystories')  # the texts that are written for them
PHRASES = ('in every direction', 'spread out')  # counted in these texts and in all others


def compute_all(model, tokenizer, stories, tales, pairs, draws, cached):
    """Return the contents of report.json that depend on the model, and what its pictures show.

    stories: texts to score, each with a title. tales: more, without titles. pairs: (prompt, response) to score. draws:
    how many texts to draw for comparison with the searches. cached: how many tokens to generate with and without the
    cache. What the pictures show: under `length` the points [(tokens, logprob)], under `underflow` the logprob of a
    text after each of its tokens.
    """
    logprobs = score_texts(model, tokenizer, stories)
    points = cut_beginnings(logprobs)
    underflow, course = find_underflow(model, tokenizer, 'Once upon a time', seed=1)
    numbers = {
        'block_size': model.block_size,
        'temperature': count_choices(model, tokenizer, 'The old king had a', (0.2, 0.7, 1.0, 1.5)),
        'i_live_in': compare_runners_up(model, tokenizer, 'I live in', 5, temperature=0.0001),
        'underflow': underflow,
        'cutting': sum_over_cuts(model, tokenizer, pairs),
        'trailing_space': move_a_space(model, tokenizer, 'Once upon a time', 'there was a king'),
        'length': {
            'stories': len(stories),
            **fit_line(points),
            **compare_titles(tokenizer, stories, logprobs),
            'beginnings': {
                'stories': average_beginnings(logprobs),
                'without_titles': average_beginnings(score_texts(model, tokenizer, map(without_title, stories))),
                'tales': average_beginnings(score_texts(model, tokenizer, tales)),
            },
        },
        'one_pass': compare_with_generate(model, tokenizer, pairs),
        'search': compare_searches(model, tokenizer, 'The giant', 6, draws, seed=1),
        'searches': count_misses(model, tokenizer, [prompt for prompt, _ in pairs], 6),
        'attention': follow_attention(model, tokenizer, 'The king had a'),
        'cache': compare_with_cache(model, tokenizer, 'Once upon a time', cached),
    }
    return numbers, {'length': points, 'underflow': course}


def encode(model, tokenizer, prompt):
    """Return the ids of a prompt, (1, T)."""
    return torch.tensor([tokenizer.encode_prompt(prompt)], device=model.device)


@torch.no_grad()
def count_choices(model, tokenizer, prompt, temperatures):
    """Return the effective number of choices for the next token at each temperature: exp of the entropy."""
    logits = model(encode(model, tokenizer, prompt))[0][0, -1]  # (V,)
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
    for step in model.steps(encode(model, tokenizer, prompt), max_new_tokens, temperature):
        logits = step.logits[0].float()
        (best, second), (id, runner_up) = (part.tolist() for part in logits.topk(2))
        tokens.append(
            {
                'piece': tokenizer.pieces([id])[0],
                'runner_up': tokenizer.pieces([runner_up])[0],
                'gap': best - second,
                'of_the_runner_up': write_power(-(best - second) / temperature / math.log(10)),
                'model_probability': step.model_logprob.exp().item(),
                'sampler_probability': step.sampler_logprob.exp().item(),
            }
        )
    return tokens


def write_power(exponent):
    """Return a power of ten with a whole exponent as text, such as 10⁻⁴²⁴⁴: a float could be too small for it."""
    return '10' + str(round(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))


def find_underflow(model, tokenizer, prompt, seed):
    """Return after how many drawn tokens the product of their probabilities is 0.0, in float32 and in float64.

    Also returns the logprob of the text after each token.
    """
    products = {'float32': torch.ones((), dtype=torch.float32), 'float64': torch.ones((), dtype=torch.float64)}
    found, logprobs, course = {}, [], []
    for step in model.steps(encode(model, tokenizer, prompt), TOKENS_AT_MOST, 1.0, seed=seed):
        logprobs.append(step.model_logprob.item())
        course.append(math.fsum(logprobs))
        for name, product in products.items():
            product *= math.exp(logprobs[-1])
            if product == 0 and name not in found:
                found[name] = {'tokens': len(logprobs), 'logprob': course[-1]}
        if len(found) == len(products):
            break
    return found, course


def reduce_for(model, budget):
    """Return a budget for a search, a tenth of it if the model is large."""
    return replace(budget, prefixes=budget.prefixes // 10) if model.get_num_params() > LARGE else budget


@torch.no_grad()
def sum_over_cuts(model, tokenizer, pairs):
    """Return how much likelier responses are as texts, over all ways to cut them into tokens, than as their tokens.

    The logarithms of these factors are bounded, from below and from above; the smaller ones are sure.
    """
    sure, possible, texts = [], [], []
    for prompt, response in pairs:
        prompt_ids, ids = tokenizer.encode_pair(prompt, response)
        tokens = score(model, [prompt_ids], [ids])[0].sum().item()
        text = tokenizer.decode_bytes(ids, prompt_ids)
        found = prefix_probability(model, tokenizer, prompt_ids, text, ids, budget=reduce_for(model, TEXT_BUDGET))
        sure.append(found.log_lower - tokens)
        possible.append(found.log_upper - tokens)
        texts.append(' '.join(tokenizer.pieces(ids)))
    factors = list(map(math.exp, sure))
    largest = max(range(len(factors)), key=factors.__getitem__)
    return {
        'pairs': len(sure),
        'median': statistics.median(factors),
        'largest': {'factor': factors[largest], 'pieces': texts[largest]},
        'mean_log_sure': statistics.fmean(sure),
        'mean_log_possible': statistics.fmean(possible),
    }


@torch.no_grad()
def move_a_space(model, tokenizer, prompt, response):
    """Return the probability of a response after a prompt, with the space between them in the one or in the other."""
    places = {'in_response': (prompt, f' {response}'), 'in_prompt': (f'{prompt} ', response)}
    found = {}
    for place, (before, after) in places.items():
        ids = tokenizer.encode_prompt(before), tokenizer.encode(after)
        found[place] = score(model, [ids[0]], [ids[1]])[0].sum().exp().item()
    return {**found, 'factor': found['in_response'] / found['in_prompt']}


def score_texts(model, tokenizer, texts):
    """Return the logprobs of the tokens of each text, to the end of the context; each begins with <|endoftext|>."""
    start, longest = tokenizer.encode_prompt(''), model.block_size - 1
    return [score(model, [start], [tokenizer.encode(text)[:longest]])[0] for text in texts]


def without_title(story):
    """Return a story without its title, which is the first paragraph."""
    return story.partition('\n\n')[2]


def cut_beginnings(logprobs):
    """Return [(tokens, logprob)] of the first 1, 2, 4, ... tokens of each text."""
    return [(length, row[:length].sum().item()) for row in logprobs for length in LENGTHS if length <= len(row)]


def average_beginnings(logprobs):
    """Return the mean logprob per token of the first 1, 2, 4, ... tokens of texts: {length: mean over the texts}.

    A length that no text has is left out.
    """
    means = {}
    for length in LENGTHS:
        if rows := [row[:length].mean().item() for row in logprobs if length <= len(row)]:
            means[str(length)] = statistics.fmean(rows)
    return means


def compare_titles(tokenizer, stories, logprobs):
    """Return how likely the tokens of titles are, and those of the stories below them, on average."""
    sizes = [len(tokenizer.encode(story.partition('\n\n')[0])) for story in stories]
    titles, bodies = (
        torch.cat([row[part] for row, part in zip(logprobs, parts, strict=True)])
        for parts in ([slice(size) for size in sizes], [slice(size, None) for size in sizes])
    )
    return {
        'title_tokens': statistics.fmean(sizes),
        'per_token': {'titles': titles.mean().item(), 'bodies': bodies.mean().item()},
    }


@torch.no_grad()
def compare_with_generate(model, tokenizer, pairs):
    """Return the largest difference between responses scored in one pass, as eval.py does, and by `generate`."""
    differences = []
    for prompt, response in pairs:
        prompt_ids, ids = tokenizer.encode_pair(prompt, response)
        _, prob = model.generate(torch.tensor([prompt_ids], device=model.device), fixed_response=ids)
        differences.append(abs(math.log(prob) - score(model, [prompt_ids], [ids])[0].sum().item()))
    return {'pairs': len(differences), 'largest_difference': max(differences)}


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
    idx = encode(model, tokenizer, prompt)
    beams = {width: beam_search(model, idx, max_new_tokens, width) for width in WIDTHS}
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
    ids, logprobs, bound = most_probable(model, idx, max_new_tokens, k=1, budget=SEARCH_BUDGET)
    found['exact'] = ids[0, idx.size(1) :], logprobs[0]
    best = {
        name: {'text': tokenizer.decode(ids.tolist()), 'logprob': logprob.item()}
        for name, (ids, logprob) in found.items()
    }
    return {**best, **spread, 'proved': bound <= logprobs[0].item()}


def count_misses(model, tokenizer, prompts, max_new_tokens):
    """Return how often beam search misses the most probable continuation of a prompt, and what that costs.

    For each width: how often it was `missed`, and how much less likely than it the text found is, in nats (mean).
    proved: for how many prompts the exact search proved its answer within its budget. opened: prefixes, the median.
    """
    losses, proved, opened = {width: [] for width in WIDTHS}, 0, []
    for prompt in prompts:
        if sum(opened) >= reduce_for(model, Budget(prefixes=SEARCHED)).prefixes:  # fewer prompts must do
            break
        idx = encode(model, tokenizer, prompt)
        for found in search_steps(model, idx, max_new_tokens, k=1):
            if found.exact or SEARCH_BUDGET.is_spent(found, seconds=0):
                break
        proved += found.exact
        opened.append(found.opened)
        reached = {width: beam_search(model, idx, max_new_tokens, width)[1][0].item() for width in WIDTHS}
        best = max(found.logprobs[0].item(), *reached.values())
        for width, logprob in reached.items():
            losses[width].append(best - logprob)
    return {
        'prompts': len(opened),
        'proved': proved,
        'opened': statistics.median(opened),
        **{
            f'beams_{width}': {'missed': sum(loss > ROUNDING for loss in each), 'loss': statistics.fmean(each)}
            for width, each in losses.items()
        },
    }


@torch.no_grad()
def follow_attention(model, tokenizer, prompt):
    """Return what head 0 of layer 0 computes at the last token of a prompt, and how far the cache's result is off."""
    idx = encode(model, tokenizer, prompt)
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
    idx = encode(model, tokenizer, prompt)
    steps = list(model.steps(idx, max_new_tokens, temperature=0))
    text = torch.cat([idx, torch.stack([step.ids for step in steps], dim=1)], dim=1)
    full = [model(text[:, :end])[0][0, -1] for end in range(idx.shape[1], text.shape[1])]
    difference = max((step.logits[0] - logits).abs().max().item() for step, logits in zip(steps, full))
    return {'tokens': max_new_tokens, 'difference': difference}


def compare_texts(prose_read, stories_read):
    """Return statistics of each text, and the words that set stories and prose apart: {name: text} each.

    `phrases`: how often some phrases are in the texts for beginners, and in all the others, which are old books.
    """
    prose, stories = (SEPARATOR.join(texts.values()) for texts in (prose_read, stories_read))
    rows = {
        title: [dict(zip(('word', 'z', 'here', 'there'), row)) for row in text_statistics.keywords(here, there)]
        for title, here, there in (
            ('more in the stories', stories, prose),
            ('more in the prose', prose, stories),
        )
    }
    described = {
        name: {
            **text_statistics.describe_text(text),
            'opening': text_statistics.common_opening(split_documents([text], SEPARATOR)),
        }
        for name, text in (prose_read | stories_read).items()
    }
    of_beginners = [name for name in stories_read if name in BEGINNERS]
    everything = prose_read | stories_read
    phrases = {
        readers: {phrase: sum(' '.join(everything[name].split()).count(phrase) for name in names) for phrase in PHRASES}
        for readers, names in (('old', everything.keys() - of_beginners), ('beginners', of_beginners))
    }
    return {'texts': described, 'keywords': rows, 'phrases': phrases}
