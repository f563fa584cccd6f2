"""Explanations for check_generate.py: what a student's number is if it is not the probability that was asked for.

Each explanation computes, from the true logits, the number that one way of writing generate would give. If it agrees
with all numbers that came back, up to rounding, and the right one does not, this is most likely what the code does.
An example: the number is exp of the mean logprob, and not of their sum.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from model import logits_to_logprobs

TOP_K_CUTS = 'Top-k applies to the fixed response, too.'
SMALLEST, SMALLEST_FLOAT32 = -708.0, -87.0  # below this, exp gives 0, or a float that has lost its digits


class Text(NamedTuple):
    """A prompt with its response, and the model's logits at every position: row t says what comes after token t."""

    ids: torch.Tensor  # (T + n,)
    start: int  # T, where the response begins
    logits: torch.Tensor  # (T + n, V); the model sees the last block_size tokens, as in generate
    greedy: torch.Tensor  # (n, V), the logits along the likeliest response instead
    temperature: float
    top_k: int | None
    is_fixed: bool

    @property
    def cut(self):
        """The top-k that applies: none to a fixed response."""
        return None if self.is_fixed else self.top_k


def read_text(model, prompt, response, temperature, top_k, is_fixed):
    """Return the Text; prompt, response: lists of ids."""
    ids, n = prompt + response, len(response)
    steps = model.steps(torch.tensor([ids[:1]]), fixed_response=[*ids[1:], ids[-1]])  # one more, for what comes after
    logits = torch.cat([step.logits for step in steps])
    greedy = torch.cat([step.logits for step in model.steps(torch.tensor([prompt]), n, temperature=0)])
    return Text(torch.tensor(ids), len(prompt), logits, greedy, temperature, top_k, is_fixed)


def look_up(logits, ids, temperature=1.0, top_k=None):
    """Return the logprob of each id, (n,) float64. logits: (n, V), or (1, V) for all."""
    logprobs = logits_to_logprobs(logits, temperature, top_k).double()
    return logprobs.expand(len(ids), -1).gather(1, ids[:, None])[:, 0]


def of_response(text, temperature=1.0, top_k=None, shift=0):
    """Return the logprob of each token of the response; shift: how many positions too late its logits are taken."""
    first = text.start - 1 + shift
    return look_up(text.logits[first : first + len(text.ids) - text.start], text.ids[text.start :], temperature, top_k)


def right_logprobs(text):
    """Return the logprob of each token of the response as generate should give it: under the sampler.

    Temperature applies always, top-k only if the tokens are drawn.
    """
    return of_response(text, text.temperature, text.cut)


def of_prompt(text, temperature):
    """Return the logprob of the prompt's tokens after the first."""
    return look_up(text.logits[: text.start - 1], text.ids[1 : text.start], temperature).sum()


def of_likeliest(text):
    """Return the logprob of the likeliest token at each position."""
    logits = text.logits[text.start - 1 : -1]
    return logits_to_logprobs(logits, text.temperature, text.cut).double().amax(1)


class Mistake(NamedTuple):
    """One way to write generate wrongly."""

    sentence: str  # what the code seems to do, and what to look at
    compute: Callable  # from a Text to the logprob that it would give


MISTAKES = [
    Mistake(
        'The product has underflowed to 0: so many small factors are too small for a float32 (below 1e-45). Sum the '
        'logprobs in float64, and take exp at the end.',
        lambda text: -math.inf if right_logprobs(text).sum() < SMALLEST_FLOAT32 else math.nan,
    ),
    Mistake(TOP_K_CUTS, lambda text: of_response(text, text.temperature, text.top_k).sum()),
    Mistake(
        "The temperature is not applied to the probability: it is the softmax of the raw logits, the model's own. Take "
        'it after `logits / temperature` (and after top-k), from the same softmax that the token is drawn from.',
        lambda text: of_response(text).sum(),
    ),
    Mistake(
        'The temperature is not applied, only top-k: divide the logits by the temperature before the softmax.',
        lambda text: of_response(text, 1.0, text.top_k).sum(),
    ),
    Mistake(
        'The probability is taken before top-k cuts the other tokens off. After the cut, the probabilities of those '
        'that are left must sum to 1 again: take the softmax after the cut.',
        lambda text: of_response(text, text.temperature).sum(),
    ),
    Mistake(
        'The prompt is counted, too: begin the product with the first token after the prompt.',
        lambda text: right_logprobs(text).sum() + of_prompt(text, text.temperature),
    ),
    Mistake(
        'The prompt is counted, too, and without temperature: begin the product with the first token after the prompt.',
        lambda text: of_response(text).sum() + of_prompt(text, 1.0),
    ),
    Mistake(
        'The probabilities of the tokens are added: the probability of all of them is their product (or exp of the '
        'summed logprobs).',
        lambda text: right_logprobs(text).logsumexp(0),
    ),
    Mistake(
        "It is the mean of the tokens' probabilities: the probability of all of them is their product.",
        lambda text: right_logprobs(text).logsumexp(0) - math.log(len(text.ids) - text.start),
    ),
    Mistake(
        'It is the probability per token, the geometric mean: do not divide the summed logprobs by how many they are.',
        lambda text: right_logprobs(text).mean(),
    ),
    Mistake(
        'It is the probability of the last token alone: multiply over all steps.', lambda text: right_logprobs(text)[-1]
    ),
    Mistake(
        'It is the probability of the first token alone: multiply over all steps.', lambda text: right_logprobs(text)[0]
    ),
    Mistake(
        'The first token is left out: its probability comes from the logits after the last token of the prompt.',
        lambda text: right_logprobs(text)[1:].sum(),
    ),
    Mistake(
        'The last token is left out: it counts like the others, though nothing comes after it.',
        lambda text: right_logprobs(text)[:-1].sum(),
    ),
    Mistake(
        'Off by one: each token is looked up in the logits that come after it. The logits at position t are about the '
        'token at t + 1.',
        lambda text: of_response(text, text.temperature, text.cut, shift=1).sum(),
    ),
    Mistake(
        'Off by one: each token is looked up in the logits one position too early.',
        lambda text: of_response(text, text.temperature, text.cut, shift=-1).sum(),
    ),
    Mistake(
        'Every token is looked up after the prompt alone: append each token to idx before the next step.',
        lambda text: look_up(text.logits[[text.start - 1]], text.ids[text.start :], text.temperature, text.cut).sum(),
    ),
    Mistake(
        'The model reads its own likeliest tokens instead of the fixed response: append the fixed token to idx.',
        lambda text: look_up(text.greedy, text.ids[text.start :], text.temperature, text.cut).sum(),
    ),
    Mistake(
        'It is the probability of the likeliest token at each step, not of the one that comes next: look up the id of '
        'that token (`probs[0, id]`), not the maximum.',
        lambda text: of_likeliest(text).sum(),
    ),
    Mistake(
        'The logits are multiplied by the temperature: divide them by it.',
        lambda text: of_response(text, 1 / text.temperature, text.cut).sum(),
    ),
]
FORMS = {  # what a number may be: from it to a logprob in nats
    'the probability': lambda value: math.log(value) if value > 0 else (-math.inf if value == 0 else math.nan),
    'the logprob': lambda value: value,
    'minus the logprob': lambda value: -value,
    'the logprob to base 10': lambda value: value * math.log(10),
    'the logprob to base 2': lambda value: value * math.log(2),
}


def agree(logprob, other):
    """Return whether two logprobs are equal but for rounding: to float32, to four digits, or to 0."""
    if logprob < SMALLEST and other < SMALLEST:
        return True
    return math.isfinite(logprob) and math.isfinite(other) and abs(logprob - other) <= 2e-3 + 1e-4 * abs(other)


def convert(values, form):
    """Return the logprob that a student's numbers stand for: one for all, or one for each token."""
    return sum(FORMS[form](value) for value in values)


def explain(outcomes):
    """Return the form of a student's numbers, and the sentence about a mistake, or None if they are right.

    outcomes: (Text, numbers) of several calls. (None, None): nothing fits.
    """
    designs = [(None, lambda text: right_logprobs(text).sum()), *MISTAKES]
    for sentence, compute in designs:
        expected = [float(compute(text)) for text, _ in outcomes]
        for form in FORMS:
            if all(agree(convert(values, form), of) for (_, values), of in zip(outcomes, expected)):
                return form, sentence
    return None, None


def fits_shares(logits, drawn, temperature, top_k):
    """Return whether tokens were drawn about as often as they should be.

    Each of the five likeliest, and all others together, may be 4.5 standard deviations off: chance alone does that once
    in 20,000 checks.
    """
    probs = logits_to_logprobs(logits, temperature, top_k).double().exp()
    expected, ids = probs.topk(5)
    shares = (drawn[:, None] == ids).double().mean(0)
    expected, shares = (torch.cat([of, 1 - of.sum(0, keepdim=True)]).clamp(0, 1) for of in (expected, shares))
    return bool(((shares - expected).abs() <= 4.5 * (expected * (1 - expected) / len(drawn)).sqrt() + 1e-9).all())
