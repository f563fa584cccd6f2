"""What a TokenRecord holds, against NumPy's softmax, sorting by hand and the steps of the model."""

import math

import numpy as np
import pytest
import torch
from helpers.models import random_gpt
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lm import scoring
from lm.alternatives import Alternative, TokenRecord, entropy, likeliest, rank_tokens, record_tokens
from lm.scoring import score_window

V = 29


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


def one_record(logits, chosen, temperature=1.0, **cut):
    (record,) = record_tokens(torch.as_tensor(logits).float()[None], torch.tensor([chosen]), temperature, **cut)
    return record


def assert_same_records(records, expected):
    """The same tokens in the same order, with logprobs that differ by rounding only."""
    for record, other in zip(records, expected, strict=True):
        assert (record.id, record.rank) == (other.id, other.rank)
        assert [one.id for one in record.alternatives] == [one.id for one in other.alternatives]
        for one, two in zip([record, *record.alternatives], [other, *other.alternatives], strict=True):
            assert one.model_logprob == pytest.approx(two.model_logprob, abs=1e-5)
            assert one.sampler_logprob == pytest.approx(two.sampler_logprob, abs=1e-5)
        assert record.entropy == pytest.approx(other.entropy, abs=1e-5)


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
def test_a_record_has_the_ten_likeliest_with_both_probabilities(logits, chosen, temperature, top_k):
    record = one_record(logits, chosen, temperature, top_k=top_k)
    order = sorted(range(V), key=lambda id: (-logits[id], id))  # among equals the lower id first
    rank = order.index(chosen) + 1
    shown = order[:10] if rank <= 10 else [*order[:10], chosen]
    model, sampler = softmax(np.array(logits)), sampler_by_hand(logits, temperature, top_k)
    assert (record.id, record.rank) == (chosen, rank)
    assert [other.id for other in record.alternatives] == order[:10]
    assert [other.id for other in record.alternatives_and_token] == shown
    for one in [record, *record.alternatives_and_token]:
        assert math.exp(one.model_logprob) == pytest.approx(model[one.id], rel=1e-4, abs=1e-7)
        assert math.exp(one.sampler_logprob) == pytest.approx(sampler[one.id], rel=1e-4, abs=1e-7)


def test_rank_among_equals_is_by_id_and_rank_1_is_greedy():
    logits = torch.tensor([0.0] * 5 + [1.0] * 3 + [0.0] * (V - 8))
    ids = torch.tensor([5, 6, 7, 0, 4, 8])
    assert rank_tokens(logits.expand(6, V), ids).tolist() == [1, 2, 3, 4, 8, 9]
    assert [one_record(logits, id).rank for id in ids.tolist()] == [1, 2, 3, 4, 8, 9]
    assert one_record(logits, logits.argmax().item()).rank == 1


@settings(deadline=None, max_examples=100)
@given(rows=st.lists(st.lists(st.integers(-2, 2), min_size=7, max_size=7), min_size=6, max_size=6))
def test_ranks_of_many_positions_are_places_in_the_sorted_order(rows):
    logits = torch.tensor(rows, dtype=torch.float32).view(2, 3, 7)
    for id in range(7):
        ranks = rank_tokens(logits, torch.full((2, 3), id), scratch=torch.empty(2, 3, 7))
        expected = [1 + sorted(range(7), key=lambda other: (-row[other], other)).index(id) for row in rows]
        assert ranks.flatten().tolist() == expected


def test_the_likeliest_are_in_descending_order_and_only_possible_ones():
    logprobs = torch.tensor([0.1, 0.2, 0.0, 0.2, 0.4, 0.1]).log()
    assert [id for _, id in likeliest(logprobs, 4)] == [4, 1, 3, 0]  # 0 and 5 are equal at the edge
    assert [id for _, id in likeliest(logprobs, 100)] == [4, 1, 3, 0, 5]
    assert [math.exp(logprob) for logprob, _ in likeliest(logprobs, 2)] == pytest.approx([0.4, 0.2])
    assert likeliest(logprobs, 1)[0][1] == logprobs.argmax()


def test_what_top_p_cuts_off_has_no_sampler_probability():
    logits = np.random.default_rng(0).normal(0, 2, V)
    order = np.argsort(logits)[::-1]
    record = one_record(logits, int(order[20]), 0.8, top_k=15, top_p=0.7)
    shown = record.alternatives_and_token
    expected = sampler_by_hand(logits, 0.8, 15, 0.7)[[other.id for other in shown]]
    assert 0 in expected
    assert [math.exp(other.sampler_logprob) for other in shown] == pytest.approx(expected.tolist(), rel=1e-4)
    assert record.sampler_logprob == shown[-1].sampler_logprob == -math.inf  # it could not have been drawn


def test_the_entropy_is_the_models_in_nats():
    probs = np.array([0.5, 0.25, 0.125, 0.125])
    assert one_record(np.log(probs), 0, 0.3).entropy == pytest.approx(-(probs * np.log(probs)).sum(), rel=1e-6)
    padded = torch.tensor([0.0] * 8 + [-math.inf] * 56)
    assert one_record(padded, 0).entropy == pytest.approx(math.log(8), rel=1e-6)
    both = entropy(torch.full((2, 5), -math.log(5)))
    assert both.dtype == torch.float64
    assert both.tolist() == pytest.approx([math.log(5)] * 2)


def test_padding_ids_are_never_alternatives():
    """Ids that the tokenizer does not have come with logits of minus infinity."""
    record = one_record([0.5, 0.1, 2.0] + [-math.inf] * 61, 1)
    assert [other.id for other in record.alternatives] == [2, 0, 1]
    assert record.rank == 3
    probs = [math.exp(other.model_logprob) for other in record.alternatives]
    assert probs == pytest.approx(softmax(np.array([2.0, 0.5, 0.1])).tolist(), rel=1e-5)
    assert [math.exp(other.sampler_logprob) for other in record.alternatives] == pytest.approx(probs)


def test_a_token_is_added_to_its_alternatives_only_if_it_is_not_among_them():
    alternatives = [Alternative(4, -0.5, -0.2), Alternative(1, -1.5, -1.8)]
    among = TokenRecord(1, -1.5, -1.8, 2, 1.0, alternatives)
    assert among.alternatives_and_token == alternatives
    beyond = TokenRecord(7, -3.0, -math.inf, 3, 1.0, alternatives)
    assert beyond.alternatives_and_token == [*alternatives, Alternative(7, -3.0, -math.inf)]
    assert len(beyond.alternatives) == 2


@pytest.mark.parametrize('size', [1, 7, 30])  # beyond block_size 16 the window slides
def test_records_made_while_scoring_are_those_of_the_steps(size):
    model = random_gpt(vocab_size=61)
    prompt, response = [3, 1, 4], [(7 * place) % 61 for place in range(size)]
    (score,) = score_window(model, [(prompt, response)], 0.7, n_records={0: size})
    steps = list(model.steps(torch.tensor([prompt]), temperature=0.7, fixed_response=response))
    assert_same_records(score.records, [one_record(step.logits[0], step.ids.item(), 0.7) for step in steps])
    for record, step in zip(score.records, steps, strict=True):
        assert record.model_logprob == pytest.approx(step.model_logprob.item(), abs=1e-5)
        assert record.sampler_logprob == pytest.approx(step.sampler_logprob.item(), abs=1e-5)
    assert [record.model_logprob for record in score.records] == pytest.approx(score.model_logprobs.tolist(), abs=1e-6)
    assert [record.rank for record in score.records] == score.ranks.tolist()


@pytest.mark.parametrize('batch_tokens', [1, 40, 10_000])
def test_each_pair_gets_as_many_records_as_it_is_given(monkeypatch, batch_tokens):
    """Shared prompts, windows that slide, responses shorter than the number of records, pairs without any."""
    monkeypatch.setattr(scoring, 'CPU_BATCH_TOKENS', batch_tokens)
    monkeypatch.setattr(scoring, 'MIN_TOKENS_SAVED', 8)
    model = random_gpt()
    shared = [5, 9, 2, 8, 1, 1]
    sizes = [3, 1, 0, 7, 20, 2, 12]
    pairs = [(shared, [(number + 7 * place) % 61 for place in range(size)]) for number, size in enumerate(sizes)]
    pairs += [([4], [1, 2, 3]), ([7] * 20, [8, 9, 10, 11])]
    record = {0: 2, 1: 5, 2: 5, 4: 18, 6: 12, 8: 3}
    scores = score_window(model, pairs, 0.8, record)
    for number, ((prompt, response), score) in enumerate(zip(pairs, scores, strict=True)):
        steps = list(model.steps(torch.tensor([prompt]), temperature=0.8, fixed_response=response))
        expected = [one_record(step.logits[0], step.ids.item(), 0.8) for step in steps[: record.get(number, 0)]]
        assert_same_records(score.records, expected)
    without = score_window(model, pairs, 0.8)
    assert all(score.records == [] for score in without)
    for score, other in zip(scores, without):
        assert torch.equal(score.sampler_logprobs, other.sampler_logprobs)


def test_recording_all_rows_of_a_batch_equals_recording_each():
    logits, ids = torch.randn(5, V, generator=torch.Generator().manual_seed(1)) * 3, torch.tensor([3, 28, 0, 7, 7])
    together = record_tokens(logits, ids, 0.5, top_k=4, top_p=0.9)
    assert_same_records(together, [one_record(*row, 0.5, top_k=4, top_p=0.9) for row in zip(logits, ids.tolist())])
    assert [len(record.alternatives) for record in record_tokens(logits, ids, count=3)] == [3] * 5
