"""A tokenizer whose tokens overlap in every way, and random models to go with it."""

import itertools

from helpers.fake_model import FakeModel
from lm.tokenizer_base import Tokenizer


class ByteTokens(Tokenizer):
    """A tokenizer that is told what each token spells; None is a special token. It can only decode."""

    def __init__(self, tokens, eot=None, drops=False):
        self.tokens, self.vocab_size, self.eot, self.drops = tokens, len(tokens), eot, drops

    def _bytes_of(self, id):
        return self.tokens[id] or b''

    def is_special(self, id):
        return self.tokens[id] is None

    def drops_space(self, after):
        return self.drops and all(map(self.is_special, after))

    def text_of(self, ids, after):
        """Return what ids spell before the first special token, by definition."""
        parts = itertools.takewhile(lambda part: part is not None, (self.tokens[id] for id in ids))
        text = b''.join(parts)
        return text.removeprefix(b' ') if self.drops_space(after) else text


def random_case(rng, alphabets):
    """Return a model, a tokenizer with every kind of overlap, a prompt, and the alphabet."""
    alphabet = rng.choice(alphabets)
    n_ids = rng.randint(3, 8)
    tokens = [bytes(rng.choices(alphabet, k=rng.choice([1, 1, 2, 3]))) for _ in range(n_ids - 1)]
    special = rng.randrange(n_ids)
    tokens.insert(special, None)
    if rng.random() < 0.2:
        tokens[(special + 1) % n_ids] = b''
    tokenizer = ByteTokens(tokens, special, drops=rng.random() < 0.3)
    model = FakeModel(n_ids, n_ids + 2, block_size=rng.randint(3, 12), seed=rng.randrange(10**6))
    prompt = [rng.choice([special, rng.randrange(n_ids)]) for _ in range(rng.randint(1, 3))]
    return model, tokenizer, prompt, alphabet
