"""The probability of a text: its bounds hold the sum over all sequences of tokens, and close on it."""

import itertools
import math
import random

import pytest
from helpers.fake_model import FakeModel

from lm.text_probability import probability_steps
from lm.tokenizer_base import Tokenizer


class ByteTokens(Tokenizer):
    """A tokenizer that is told what each token spells; None is a special token. It can only decode."""

    def __init__(self, tokens, eot=None, drops=False):
        self._tokens, self.vocab_size, self.eot, self._drops = tokens, len(tokens), eot, drops

    def _bytes_of(self, id):
        return b'' if self._tokens[id] is None else self._tokens[id]

    def is_special(self, id):
        return self._tokens[id] is None

    def drops_space(self, after):
        return self._drops and all(self.is_special(id) for id in after)


def text_of(tokenizer, ids):
    """Return what ids spell before the first special token, by definition."""
    spelled = b''.join(itertools.takewhile(lambda part: part is not None, (tokenizer._tokens[id] for id in ids)))
    return spelled.removeprefix(b' ') if tokenizer._drops else spelled


def count_out(model, tokenizer, prompt, data, ends=None):
    """Return the probability of a text by trying all sequences of tokens, one token at a time."""
    total, waiting = 0.0, [((), 1.0)]
    while waiting:
        ids, prob = waiting.pop()
        following = model.probs_after([*prompt, *ids]).tolist()
        if ends is not None and text_of(tokenizer, ids) == data:
            total += prob * sum(following[end] for end in ends)
        for id, token in enumerate(tokenizer._tokens):
            spelled = text_of(tokenizer, (*ids, id))
            if not token:  # special, or without bytes
                continue
            if ends is None and spelled.startswith(data):
                total += prob * following[id]
            elif data.startswith(spelled):
                waiting.append(((*ids, id), prob * following[id]))
    return total


def random_case(rng):
    """Return a model, a tokenizer with every kind of overlap, a prompt and a text."""
    alphabet = rng.choice([b'a', b'ab', b'a b'])
    n_ids = rng.randint(3, 8)
    tokens = [bytes(rng.choices(alphabet, k=rng.choice([1, 1, 2, 3]))) for _ in range(n_ids - 1)]
    special = rng.randrange(n_ids)
    tokens.insert(special, None)
    if rng.random() < 0.2:
        tokens[(special + 1) % n_ids] = b''
    tokenizer = ByteTokens(tokens, special, drops=rng.random() < 0.3)
    model = FakeModel(n_ids, n_ids + 2, block_size=rng.randint(3, 12), seed=rng.randrange(10**6))
    prompt = [rng.choice([special, rng.randrange(n_ids)]) for _ in range(rng.randint(1, 3))]
    tokenizer._drops &= all(map(tokenizer.is_special, prompt))
    return model, tokenizer, prompt, bytes(rng.choices(alphabet, k=rng.randint(1, 5)))


@pytest.mark.parametrize('cases', [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_the_bounds_hold_the_sum_over_all_spellings_and_close_on_it(cases):
    rng = random.Random(cases)
    for _ in range(cases):
        model, tokenizer, prompt, data = random_case(rng)
        for ends in (None, [tokenizer.eot]):
            truth = count_out(model, tokenizer, prompt, data, ends)
            for bounds in probability_steps(model, tokenizer, prompt, data, ends=ends):
                assert math.exp(bounds.log_lower) <= truth <= math.exp(bounds.log_upper)
            assert truth == pytest.approx(math.exp(bounds.log_lower), rel=1e-4)
            assert truth == pytest.approx(math.exp(bounds.log_upper), rel=1e-4)
            assert bounds.waiting == 0
