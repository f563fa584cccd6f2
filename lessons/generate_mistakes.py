"""Explanations for check_generate.py: what a student's number is if it is not the probability that was asked for.

Every way to write generate makes five choices: after which text each token is looked up, in which softmax, which token
that is, which tokens count, and how their probabilities become one number. Each choice has one right answer, the first
in its list, and wrong ones, with a sentence about each. `explain` computes what every design with at most two wrong
answers gives, from the true logits, and finds the one that gives a student's numbers: all of them, up to rounding.
An example: exp of the mean logprob is the right answer four times, and once a wrong one, "geometric mean".
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from model import logits_to_logprobs

TOP_K_CUTS = 'Top-k applies to the fixed response, too.'  # not a mistake, but a choice worth a note
UNDERFLOWED = (
    'A small probability has become 0: it was rounded, or it underflowed (a float32 holds nothing below 1e-45). Sum '
    'the logprobs; where you need the probability itself, take exp at the end, in float64.'
)
SMALLEST, SMALLEST_FLOAT32, SMALL = -708.0, -87.0, -7.0  # logprobs: exp gives 0; the same in float32; below 0.001


@dataclass
class Text:
    """A prompt with its response, and the model's logits at every position: row t says what comes after token t."""

    ids: torch.Tensor  # (T + n,)
    start: int  # T, where the response begins
    logits: torch.Tensor  # (T + n, V); the model sees the last block_size tokens, as in generate
    greedy: torch.Tensor  # (n, V), the logits along the likeliest response instead
    alone: torch.Tensor  # (T + n, V), the logits after each token if the model sees nothing before it
    temperature: float
    top_k: int | None
    is_fixed: bool
    computed: dict = field(default_factory=dict)  # the logprobs of tokens that `look_up` was asked for

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
    with torch.no_grad():
        alone = model(torch.tensor(ids)[:, None])[0][:, 0]
    return Text(torch.tensor(ids), len(prompt), logits, greedy, alone, temperature, top_k, is_fixed)


class Choice(NamedTuple):
    """One answer to one of the five questions."""

    sentence: str | None  # what to look at; None: this is right
    compute: Callable


READ = [  # from a Text to logits (T + n - 1, V), in which the tokens after the first are looked up
    Choice(None, lambda text: text.logits[:-1]),
    Choice(
        'Off by one: each token is looked up in the logits that come after it. The logits at position t are about the '
        'token at t + 1.',
        lambda text: text.logits[1:],
    ),
    Choice(
        'Off by one: each token is looked up in the logits one position too early.',
        lambda text: torch.cat([text.logits[:1], text.logits[:-2]]),
    ),
    Choice(
        'Every token is looked up after the prompt alone: append each token to idx before the next step.',
        lambda text: text.logits[text.start - 1].expand(len(text.ids) - 1, -1),
    ),
    Choice(
        'The model reads its own likeliest tokens instead of the fixed response: append the fixed token to idx.',
        lambda text: torch.cat([text.logits[: text.start - 1], text.greedy]),
    ),
    Choice(
        'The model sees only the last token, and at the first position: give it the whole text (or a cache, and the '
        'right positions).',
        lambda text: text.alone[:-1],
    ),
]
SOFTMAX = [  # from a Text to the temperature and the top-k before the softmax
    Choice(None, lambda text: (text.temperature, text.cut)),
    Choice(TOP_K_CUTS, lambda text: (text.temperature, text.top_k)),
    Choice(
        "The temperature is not applied to the probability: it is the softmax of the raw logits, the model's own. Take "
        'it after `logits / temperature` (and after top-k), from the same softmax that the token is drawn from.',
        lambda text: (1.0, None),
    ),
    Choice(
        'The temperature is not applied, only top-k: divide the logits by the temperature before the softmax.',
        lambda text: (1.0, text.top_k),
    ),
    Choice(
        'The probability is taken before top-k cuts the other tokens off. After the cut, the probabilities of those '
        'that are left must sum to 1 again: take the softmax after the cut.',
        lambda text: (text.temperature, None),
    ),
    Choice(
        'The logits are multiplied by the temperature: divide them by it.',
        lambda text: (1 / text.temperature, text.cut),
    ),
    Choice(
        'The temperature is applied twice: divide the logits by it once.', lambda text: (text.temperature**2, text.cut)
    ),
]
CHOSEN = [  # from logprobs (T + n - 1, V) and ids (T + n - 1,) to one logprob for each token
    Choice(None, lambda logprobs, ids: logprobs.gather(1, ids[:, None])[:, 0]),
    Choice(
        'It is the probability of the likeliest token at each step, not of the one that comes next: look up the id of '
        'that token (`probs[0, id]`), not the maximum.',
        lambda logprobs, ids: logprobs.amax(1),
    ),
]
COUNTED = [  # from T to the tokens that count, of those after the first
    Choice(None, lambda start: slice(start - 1, None)),
    Choice(
        'The prompt is counted, too: begin the product with the first token after the prompt.',
        lambda start: slice(None),
    ),
    Choice('It is the probability of the last token alone: multiply over all steps.', lambda start: slice(-1, None)),
    Choice(
        'It is the probability of the first token alone: multiply over all steps.',
        lambda start: slice(start - 1, start),
    ),
    Choice(
        'The first token is left out: its probability comes from the logits after the last token of the prompt.',
        lambda start: slice(start, None),
    ),
    Choice(
        'The last token is left out: it counts like the others, though nothing comes after it.',
        lambda start: slice(start - 1, -1),
    ),
]
COMBINED = [  # from logprobs (n,) to the logarithm of one number
    Choice(None, lambda logprobs: logprobs.sum()),
    Choice(
        'The probabilities of the tokens are added: the probability of all of them is their product (or exp of the '
        'summed logprobs).',
        lambda logprobs: logprobs.logsumexp(0),
    ),
    Choice(
        "It is the mean of the tokens' probabilities: the probability of all of them is their product.",
        lambda logprobs: logprobs.logsumexp(0) - math.log(max(1, len(logprobs))),
    ),
    Choice(
        'It is the probability per token, the geometric mean: do not divide the summed logprobs by how many they are.',
        lambda logprobs: logprobs.mean(),
    ),
    Choice(
        'It is the perplexity, one over the geometric mean: the probability is the product of those of the tokens.',
        lambda logprobs: -logprobs.mean(),
    ),
]


def find_mistakes(design):
    """Return the sentences about the wrong answers in a design, a Choice for each of the five questions."""
    return [choice.sentence for choice in design if choice.sentence not in (None, TOP_K_CUTS)]


DESIGNS = sorted(itertools.product(READ, SOFTMAX, CHOSEN, COUNTED, COMBINED), key=lambda each: len(find_mistakes(each)))
DESIGNS = [design for design in DESIGNS if len(find_mistakes(design)) <= 2]
RIGHT = DESIGNS[0]


def look_up(text, design=RIGHT):
    """Return the logprob of each token that counts, (n,) float64, as generate would find it in this design."""
    read, softmax, chosen, counted, _ = design
    key = (read, softmax, chosen)
    if key not in text.computed:
        logprobs = logits_to_logprobs(read.compute(text), *softmax.compute(text)).double()
        text.computed[key] = chosen.compute(logprobs, text.ids[1:])
    return text.computed[key][counted.compute(text.start)]


FORMS = {  # what a number may be: from it to a logprob in nats
    'the probability': lambda value: math.log(value) if value > 0 else (-math.inf if value == 0 else math.nan),
    'the logprob': lambda value: value,
    'minus the logprob': lambda value: -value,
    'the logprob to base 10': lambda value: value * math.log(10),
    'the logprob to base 2': lambda value: value * math.log(2),
    'the surprisal in bits (minus the logprob to base 2)': lambda value: -value * math.log(2),
}


def agree(logprob, other):
    """Return whether two logprobs are equal but for rounding: to float32, to four digits, or to 0."""
    if logprob < SMALLEST and other < SMALLEST:
        return True
    return math.isfinite(logprob) and math.isfinite(other) and abs(logprob - other) <= 2e-3 + 1e-4 * abs(other)


def convert(values, form):
    """Return the logprob that a student's numbers stand for: one for all, or one for each token."""
    return sum(FORMS[form](value) for value in values)


def explain(outcomes, designs=DESIGNS):
    """Return the form of a student's numbers, their design, and whether small ones became 0: (None, None, False) if
    none of the designs fits.

    outcomes: (Text, numbers) of several calls. The first design that fits has the fewest mistakes.
    """
    given = {form: [convert(values, form) for _, values in outcomes] for form in FORMS}
    for limit in (-math.inf, SMALLEST_FLOAT32, SMALL):  # below it, a 0 will do, unless all are 0
        for design in designs:
            expected = [float(design[-1].compute(look_up(text, design))) for text, _ in outcomes]
            for form, logprobs in given.items():
                lost = [theirs == -math.inf and ours < limit for theirs, ours in zip(logprobs, expected)]
                fits = all(zero or agree(*both) for zero, *both in zip(lost, logprobs, expected))
                if fits and not (limit == SMALL and all(lost)):
                    return form, design, any(lost)
    return None, None, False


def measure_fit(logits, drawn, temperature, top_k):
    """Return how far the shares of drawn ids are from their probabilities: G, or infinity for what cannot be drawn.

    The five likeliest ids are counted, and all others together. If all is right, G has a chi-squared distribution with
    at most 5 degrees of freedom (Sokal & Rohlf, Biometry): it exceeds 32 once in 150,000 times.
    """
    probs = logits_to_logprobs(logits, temperature, top_k).double().exp()
    expected, ids = probs.topk(5)
    shares = (drawn[:, None] == ids).double().mean(0)
    expected, shares = (torch.cat([of, (1 - of.sum(0, keepdim=True)).clamp(min=0)]) for of in (expected, shares))
    impossible = (shares > 1e-9) & (expected < 1e-9)
    return (
        math.inf
        if impossible.any()
        else 2 * len(drawn) * torch.xlogy(shares, shares / expected.clamp(1e-9)).sum().item()
    )
