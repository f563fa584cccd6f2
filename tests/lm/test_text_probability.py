"""The probability of a text: its bounds hold the sum over all sequences of tokens, and close on it."""

import itertools
import json
import math
import random

import pytest
from helpers.byte_tokens import random_case
from helpers.networks import random_network
from helpers.piece_tokenizers import save_llama_tokenizer
from helpers.scripts import PROJECT

import lm
from common.errors import UserError
from lm.scoring import score
from lm.search import Budget
from lm.story_tokenizer import StoryTokenizer
from lm.text_probability import prefix_probability, probability_steps, whole_text_probability

ALPHABETS = (b'a', b'ab', b'a b')


def count_out(model, tokenizer, prompt, data, ends=None):
    """Return the probability of a text by trying all sequences of tokens, one token at a time."""
    total, waiting = 0.0, [((), 1.0)]
    while waiting:
        ids, prob = waiting.pop()
        following = model.probs_after([*prompt, *ids]).tolist()
        if ends is not None and tokenizer.text_of(ids, prompt) == data:
            total += prob * sum(following[end] for end in ends)
        for id, token in enumerate(tokenizer.tokens):
            spelled = tokenizer.text_of((*ids, id), prompt)
            if not token:  # special, or without bytes
                continue
            if ends is None and spelled.startswith(data):
                total += prob * following[id]
            elif data.startswith(spelled):
                waiting.append(((*ids, id), prob * following[id]))
    return total


@pytest.mark.parametrize('cases', [30, pytest.param(300, marks=pytest.mark.slow)])
def test_the_bounds_hold_the_sum_over_all_spellings_and_close_on_it(cases):
    rng = random.Random(cases)
    for _ in range(cases):
        model, tokenizer, prompt, alphabet = random_case(rng, ALPHABETS)
        data = bytes(rng.choices(alphabet, k=rng.randint(1, 5)))
        for ends in (None, [tokenizer.eot]):
            truth = count_out(model, tokenizer, prompt, data, ends)
            for bounds in probability_steps(model, tokenizer, prompt, data, ends=ends):
                assert math.exp(bounds.log_lower) <= truth <= math.exp(bounds.log_upper)
            assert truth == pytest.approx(math.exp(bounds.log_lower), rel=1e-4)
            assert truth == pytest.approx(math.exp(bounds.log_upper), rel=1e-4)
            assert bounds.waiting == 0


def test_all_texts_of_a_length_and_all_that_end_before_add_up_to_one():
    rng = random.Random(3)
    for _ in range(20):
        model, tokenizer, prompt, alphabet = random_case(rng, ALPHABETS)
        if b'' in tokenizer.tokens or tokenizer.drops_space(prompt):
            continue  # such tokens end the match, or make two texts one
        n = rng.randint(1, 3)
        total = 0.0
        for size in range(n + 1):
            for data in map(bytes, itertools.product(sorted(set(alphabet)), repeat=size)):
                ends = None if size == n else [tokenizer.eot]
                *_, bounds = probability_steps(model, tokenizer, prompt, data, ends=ends)
                total += math.exp(bounds.log_upper)
        assert total == pytest.approx(1, abs=1e-3)


def test_a_text_is_at_least_as_likely_as_its_usual_tokens():
    model, tokenizer = lm.load('tiny-stories', device='cpu')
    for prompt, response in (('The old king', ' had a daughter'), ('', 'Once upon a time ')):
        prompt_ids, ids = tokenizer.encode_pair(prompt, response)
        of_tokens = score(model, [prompt_ids], [ids])[0].sum().item()
        bounds = prefix_probability(model, tokenizer, prompt_ids, response, ids)
        assert bounds.gap <= 1e-3
        assert of_tokens <= bounds.log_upper
        assert of_tokens - 1e-4 <= bounds.log_lower <= bounds.log_upper
        whole = whole_text_probability(model, tokenizer, prompt_ids, response, tokenizer.eot, ids)
        assert whole.log_upper < bounds.log_lower  # to end there is one way to go on
    assert math.exp(bounds.log_lower - of_tokens) > 100  # the space at the end: no usual token begins after it


@pytest.mark.slow
def test_pieces_with_byte_fallback_and_a_space_that_is_dropped(tmp_path):
    n_ids = save_llama_tokenizer(tmp_path)
    random_network('llama', vocab_size=n_ids + 3).save_pretrained(tmp_path)
    model, tokenizer = lm.load(str(tmp_path), device='cpu')
    start = tokenizer.encode_prompt('')
    for text in ('The', 'the é'):
        steps = list(itertools.islice(probability_steps(model, tokenizer, start, text, tokenizer.encode(text)), 8))
        lower, upper = ([getattr(bounds, name) for bounds in steps] for name in ('log_lower', 'log_upper'))
        rounding = 1e-4  # they are widened by more, the longer the prefixes are
        assert all(later > earlier - rounding for earlier, later in itertools.pairwise(lower))
        assert all(later < earlier + rounding for earlier, later in itertools.pairwise(upper))
        assert tokenizer.decode(tokenizer.encode(text), after=start) == text
        assert lower[-1] > -math.inf


def test_a_search_stops_when_its_budget_is_spent():
    model, tokenizer = lm.load('tiny-stories', device='cpu')
    prompt_ids, ids = tokenizer.encode_pair('The', ' invoice was disconnected')
    bounds = prefix_probability(model, tokenizer, prompt_ids, ' invoice was disconnected', ids, 0, Budget(prefixes=100))
    assert bounds.opened <= 100 + 64
    assert bounds.gap > 0


def test_what_has_no_such_sum_is_refused():
    model, tokenizer = lm.load('tiny-stories', device='cpu')
    assert prefix_probability(model, tokenizer, [0], '').log_lower == 0  # but every text begins with nothing
    with pytest.raises(UserError, match='depends on other tokens'):
        prefix_probability(model, StoryTokenizer(), [0], 'a')
    with pytest.raises(ValueError, match='empty prompt'):
        prefix_probability(model, tokenizer, [], 'a')


@pytest.mark.slow
def test_most_pairs_of_the_project_close():
    model, tokenizer = lm.load('tiny-stories', device='cpu')
    closed = 0
    for pair in json.loads((PROJECT / 'eval_data.json').read_text())[::8]:
        prompt_ids, ids = tokenizer.encode_pair(pair['prompt'], pair['response'])
        text = tokenizer.decode_bytes(ids, prompt_ids)
        closed += prefix_probability(model, tokenizer, prompt_ids, text, ids, budget=Budget(prefixes=4000)).gap <= 1e-3
    assert closed >= 6  # of 8
