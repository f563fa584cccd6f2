"""The likeliest next words: their bounds hold what trying all sequences of tokens gives."""

import itertools
import math
import random
import re
from collections import defaultdict

import pytest
from helpers.byte_tokens import random_case

from lm.next_words import next_words_steps

ALPHABETS = (b'ab ', b'a .', 'aé ’'.encode())
DEPTH = 7


def word_of(data, is_whole):
    """Return the word that a text begins with, by a regular expression; None if it has none, or may still go on."""
    text = data.decode('utf-8', 'surrogateescape')
    match = re.match(r" ?([\w'’-]+)(.?)", text, re.DOTALL)
    return match[1] if match and (is_whole or (match[2] and may_go_on(data) is False)) else None


def may_go_on(data):
    """Return whether bytes are the beginning of a space and a word, or of one and of half a character."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        if error.reason != 'unexpected end of data':
            return False
        text = data[: error.start].decode()
    return bool(re.fullmatch(r" ?[\w'’-]*", text))


def count_out(model, tokenizer, prompt):
    """Return {word: probability} by trying all sequences of up to DEPTH tokens, and what is left of probability."""
    words, left, waiting = defaultdict(float), 0.0, [((), 1.0)]
    while waiting:
        ids, prob = waiting.pop()
        if len(ids) == DEPTH or prob < 1e-9:
            left += prob
            continue
        following = model.probs_after([*prompt, *ids]).tolist()
        data = tokenizer.text_of(ids, prompt)
        if word := word_of(data, is_whole=True):
            words[word] += prob * following[tokenizer.eot]
        for id, token in enumerate(tokenizer.tokens):
            if token:
                longer = tokenizer.text_of((*ids, id), prompt)
                if word := word_of(longer, is_whole=False):
                    words[word] += prob * following[id]
                elif may_go_on(longer):
                    waiting.append(((*ids, id), prob * following[id]))
    return words, left


@pytest.mark.parametrize('cases', [4, pytest.param(60, marks=pytest.mark.slow)])
def test_the_bounds_hold_what_trying_everything_gives(cases):
    rng = random.Random(cases)
    for _ in range(cases):
        model, tokenizer, prompt, _ = random_case(rng, ALPHABETS)
        words, left = count_out(model, tokenizer, prompt)
        for found in itertools.islice(next_words_steps(model, tokenizer, prompt, 3, tokenizer.eot), 20):
            for word, lower, upper in found.words:
                assert math.exp(lower) <= words[word] + left + 1e-9
                assert words[word] <= math.exp(upper) + 1e-9
            named = {word for word, *_ in found.words}
            assert max((prob for word, prob in words.items() if word not in named), default=0) <= (
                math.exp(found.others) + 1e-9
            )
