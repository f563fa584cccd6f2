"""looks.py: what is noted of a step is what its logits say, for charts and for pages."""

import math

import numpy as np
import pytest
import torch
from helpers.models import random_gpt
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lm.alternatives import charts, look_at, looks_at_response, page_side
from lm.settings import SamplingSettings
from lm.tokenizer import CharTokenizer
from lm.wording import describe_sampler
from model import logits_to_logprobs

TOKENIZER = CharTokenizer('abcdefghijklmnopqrstuvwxyz \n\t')
V = TOKENIZER.vocab_size


def softmax(logits):
    exps = np.exp(logits - logits.max())
    return exps / exps.sum()


def sampler_by_hand(logits, temperature, top_k=None, top_p=None):
    """Those at least as likely as the k-th stay; then softmax(logits / temperature), or 1 for the first best.

    Of those, the likeliest stay that together reach top_p, and their equals.
    """
    logits = np.array(logits, dtype=np.float64)
    if temperature == 0:
        return np.eye(len(logits))[logits.argmax()]
    if top_k is not None:
        kth = np.sort(logits)[::-1][min(top_k, len(logits)) - 1]
        logits = np.where(logits < kth, -np.inf, logits)
    probs = softmax(logits / temperature)
    if top_p is not None and top_p < 1:
        descending = np.sort(probs)[::-1]
        probs = np.where(probs < descending[(descending.cumsum() - descending < top_p).sum() - 1], 0, probs)
    return probs / probs.sum()


def one_chart(logits, chosen, temperature=1.0, **cut):
    look = look_at(torch.tensor(logits, dtype=torch.float32), chosen, temperature, **cut)
    (chart,) = charts([look], [chosen], TOKENIZER.encode('ab'), TOKENIZER, 'temperature 1')
    return chart


a_few_values = st.integers(-3, 3).map(float)  # so that there are many ties
logits_lists = st.lists(st.one_of(a_few_values, st.floats(-20, 20, width=32)), min_size=V, max_size=V) | st.lists(
    a_few_values, min_size=V, max_size=V
)


@settings(deadline=None, max_examples=300)
@given(
    logits=logits_lists,
    chosen=st.integers(0, V - 1),
    temperature=st.sampled_from([0, 0.1, 0.8, 1, 2.5]),
    top_k=st.sampled_from([None, 1, 3, 10, 11, V, 1000]),
)
@example(logits=[0.0] * V, chosen=V - 1, temperature=1, top_k=1)
@example(logits=[5.0] * 12 + [0.0] * (V - 12), chosen=11, temperature=0.8, top_k=3)
def test_charts_have_the_ten_likeliest_with_both_probabilities(logits, chosen, temperature, top_k):
    chart = one_chart(logits, chosen, temperature, top_k=top_k)
    order = sorted(range(V), key=lambda id: (-logits[id], id))  # among equals the lower id first
    rank = order.index(chosen) + 1
    shown = order[:10] if rank <= 10 else [*order[:10], chosen]
    sampler = sampler_by_hand(logits, temperature, top_k)
    assert chart.pieces == TOKENIZER.pieces(shown)
    assert shown[chart.chosen] == chosen
    assert chart.rank == rank
    assert chart.sampler == pytest.approx(sampler[shown].tolist(), rel=1e-4, abs=1e-7)
    assert chart.model == pytest.approx(softmax(np.array(logits))[shown].tolist(), rel=1e-4, abs=1e-7)


def test_rank_among_equals_is_by_id():
    logits = [0.0] * 5 + [1.0] * 3 + [0.0] * (V - 8)
    assert [one_chart(logits, chosen).rank for chosen in (5, 6, 7, 0, 4, 8)] == [1, 2, 3, 4, 8, 9]


def test_what_top_p_cuts_off_has_no_sampler_probability():
    logits = np.random.default_rng(0).normal(0, 2, V).tolist()
    order = np.argsort(logits)[::-1]
    look = look_at(torch.tensor(logits, dtype=torch.float32), int(order[20]), 0.8, top_k=15, top_p=0.7)
    expected = sampler_by_hand(logits, 0.8, 15, 0.7)[look.ids]
    assert 0 in expected
    assert np.exp(look.sampler_logprobs) == pytest.approx(expected, rel=1e-4)
    assert look.sampler_logprobs[-1] == -math.inf  # what was said could not have been drawn


def test_the_entropy_is_the_models_in_nats():
    probs = np.array([0.5, 0.25, 0.125, 0.125])
    assert look_at(torch.tensor(probs).log(), 0, 0.3).entropy == pytest.approx(-(probs * np.log(probs)).sum(), rel=1e-6)
    padded = torch.tensor([0.0] * 8 + [-math.inf] * 56)
    assert look_at(padded, 0, 1.0).entropy == pytest.approx(math.log(8), rel=1e-6)


def test_padding_ids_are_never_shown():
    """Ids that the tokenizer does not have come with logits of minus infinity."""
    tokenizer = CharTokenizer('abc')
    look = look_at(torch.tensor([0.5, 0.1, 2.0] + [-torch.inf] * 61), 1, 1.0)
    (chart,) = charts([look], [1], [0], tokenizer, 'temperature 1')
    assert chart.pieces == ['c', 'a', 'b']
    assert (chart.chosen, chart.rank) == (2, 3)
    assert chart.model == pytest.approx(softmax(np.array([2.0, 0.5, 0.1])).tolist(), rel=1e-5)
    assert chart.sampler == pytest.approx(chart.model)


def test_contexts_grow_by_what_was_said_and_only_steps_that_were_looked_at_are_drawn():
    ids = TOKENIZER.encode('once\n')
    looks = [look_at(torch.zeros(V), id, 0.8) for id in ids[:3]]
    made = charts(looks, ids, TOKENIZER.encode('ab '), TOKENIZER, 'temperature 0.8')
    assert [chart.context for chart in made] == ['ab ', 'ab o', 'ab on']
    assert [chart.pieces[chart.chosen] for chart in made] == ['o', 'n', 'c']


@pytest.mark.parametrize('size', [1, 7, 30])  # beyond block_size 16 the window slides
def test_a_fixed_responses_looks_are_those_of_its_steps(size):
    model = random_gpt(vocab_size=61)
    prompt, response = [3, 1, 4], [(7 * place) % 61 for place in range(size)]
    looks = looks_at_response(model, prompt, response, 0.7)
    steps = list(model.steps(torch.tensor([prompt]), temperature=0.7, fixed_response=response))
    for id, look, step in zip(response, looks, steps, strict=True):
        expected = look_at(step.logits[0], id, 0.7)
        assert (look.ids, look.chosen, look.rank) == (expected.ids, expected.chosen, expected.rank)
        assert look.ids[look.chosen] == id
        assert look.logprobs == pytest.approx(expected.logprobs, abs=1e-5)
        assert look.sampler_logprobs == pytest.approx(expected.sampler_logprobs, abs=1e-5)
        assert look.logprobs[look.chosen] == pytest.approx(step.model_logprob.item(), abs=1e-5)
        assert look.sampler_logprobs[look.chosen] == pytest.approx(step.sampler_logprob.item(), abs=1e-5)
        assert look.entropy == pytest.approx(expected.entropy, abs=1e-5)


@pytest.mark.parametrize('with_sampler', [True, False])
def test_a_page_shows_what_was_looked_at(with_sampler):
    logits = torch.tensor(np.random.default_rng(1).normal(0, 2, V), dtype=torch.float32)
    order = logits.argsort(descending=True).tolist()
    looks = [look_at(logits, id, 0.5, top_k=4) for id in (order[0], order[15])]
    side = page_side(looks, TOKENIZER, with_sampler)
    of_model, of_sampler = logits_to_logprobs(logits), logits_to_logprobs(logits, 0.5, 4)
    for token, rank in zip(side.tokens, (1, 16), strict=True):
        id = order[rank - 1]
        assert token.rank == rank
        assert token.piece == TOKENIZER.pieces([id])[0]
        assert token.logprob == pytest.approx(of_model[id].item())
        assert [one.piece for one in token.alternatives] == TOKENIZER.pieces(order[:10])
        assert [one.prob for one in token.alternatives] == pytest.approx(of_model[order[:10]].exp().tolist())
        if with_sampler:
            assert token.sampler_logprob == pytest.approx(of_sampler[id].item())
            expected = of_sampler[order[:10]].exp().tolist()
            assert [one.sampler_prob for one in token.alternatives] == pytest.approx(expected)
        else:
            assert token.sampler_logprob is None
            assert {one.sampler_prob for one in token.alternatives} == {None}


def test_a_samplers_name_says_what_applies():
    settings = SamplingSettings(temperature=0.7, top_k=40, top_p=0.95)
    assert describe_sampler(settings, fixed=False) == 'temperature 0.7, top_k 40, top_p 0.95'
    assert describe_sampler(settings, fixed=True) == 'temperature 0.7'
