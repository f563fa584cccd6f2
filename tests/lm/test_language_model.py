"""Drawing, scoring and searching know a model only as a LanguageModel: all of them with one that has no network."""

import itertools
import math
import random

import pytest
import torch
from helpers.fake_model import FakeModel

from lm.responses import generate_responses
from lm.scoring import cut_text, score, score_pairs, score_window, segment_ends
from lm.search import beam_search, most_probable, search_steps
from lm.settings import SamplingSettings

PROMPT = [3, 0, 5]


def continuations(model, prompt, n, eos=None):
    """Return {ids: logprob} of all continuations, likeliest first; with eos, those that it ends early too."""
    found = {}
    for ids in itertools.product(range(model.n_ids), repeat=n):
        ids = ids[: ids.index(eos) + 1] if eos in ids else ids
        found[ids] = math.fsum(model.logprob_of(prompt, ids))
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def rows_of(sequences, eos=None):
    """Return the continuations of PROMPT as tuples, without the eos that fill them up."""
    rows = [tuple(row[len(PROMPT) :]) for row in sequences.tolist()]
    return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


def drawn_by_hand(probs, uniform):
    """Return the id that the inverse of the cumulative distribution gives."""
    return next(id for id, total in enumerate(itertools.accumulate((probs / probs.sum()).tolist())) if uniform < total)


@pytest.mark.parametrize('top_k', [None, 2])
def test_steps_draw_from_the_known_probabilities(top_k):
    model, rows, n = FakeModel(), 3, 20  # far beyond block_size 8
    generators = [random.Random(f'11 {row}') for row in range(rows)]
    texts = [list(PROMPT) for _ in range(rows)]
    for step in model.steps(torch.tensor([PROMPT] * rows), n, temperature=0.5, top_k=top_k, seed=11):
        for row, text in enumerate(texts):
            probs = model.probs_after(text)
            sampler = probs**2
            if top_k is not None:
                sampler[sampler < sampler.sort(descending=True).values[top_k - 1]] = 0
            sampler /= sampler.sum()
            id = drawn_by_hand(sampler, generators[row].random())
            assert step.ids[row] == id
            assert step.model_logprob[row].item() == pytest.approx(probs[id].log().item(), abs=1e-5)
            assert step.sampler_logprob[row].item() == pytest.approx(sampler[id].log().item(), abs=1e-5)
            text.append(id)
    assert len(texts[0]) == len(PROMPT) + n


def test_generate_returns_the_probability_of_a_fixed_response():
    model = FakeModel()
    response = [6, 6, 0, 1, 2, 5, 4, 3, 3, 1]
    _, prob = model.generate(torch.tensor([PROMPT]), fixed_response=response)
    assert math.log(prob) == pytest.approx(math.fsum(model.logprob_of(PROMPT, response)), abs=1e-4)


def test_responses_end_at_eot_and_have_records():
    model = FakeModel()
    settings = SamplingSettings(temperature=1.0, top_k=None, max_new_tokens=12, seed=2)
    *_, responses = generate_responses(model, PROMPT, settings, num_samples=8, eot=4, recorded_steps=2)
    assert any(len(response.ids) < 12 for response in responses)
    for response in responses:
        assert 4 not in response.ids[:-1]
        assert response.model_logprobs == pytest.approx(model.logprob_of(PROMPT, response.ids), abs=1e-5)
        assert [record.id for record in response.records] == response.ids[:2]
        for place, record in enumerate(response.records):
            probs = model.probs_after([*PROMPT, *response.ids[:place]])
            assert [other.id for other in record.alternatives] == probs.argsort(descending=True).tolist()
            assert record.entropy == pytest.approx(-(probs * probs.log()).sum().item(), abs=1e-5)


def test_scores_are_the_known_probabilities():
    """Prompts that are shared and that are not, within and beyond block_size."""
    model, rng = FakeModel(block_size=40), random.Random(0)
    shared = [rng.randrange(7) for _ in range(30)]
    pairs = [(shared, [rng.randrange(7) for _ in range(size)]) for size in (1, 2, 5, 9, 10, 11, 0, 25)]
    pairs += [([rng.randrange(7) for _ in range(size)], [1, 2, 3]) for size in (1, 7, 39, 60)]
    for (prompt, response), scored in zip(pairs, score_pairs(model, pairs), strict=True):
        assert scored.model_logprobs.tolist() == pytest.approx(model.logprob_of(prompt, response), abs=1e-5)
    for (prompt, response), logprobs in zip(pairs, score(model, *zip(*pairs)), strict=True):
        assert logprobs.sum().item() == pytest.approx(math.fsum(model.logprob_of(prompt, response)), abs=1e-4)
    recorded = score_window(model, pairs, n_records={3: 4})[3]
    assert [record.id for record in recorded.records] == pairs[3][1][:4]
    probs = model.probs_after([*shared, *pairs[3][1][:3]])
    assert recorded.records[3].alternatives[0].id == probs.argmax()


def test_running_text_is_scored_with_the_context_that_fits():
    model, ids = FakeModel(), [1, 6, 2, 0, 0, 3, 5, 4, 4, 1, 2, 6, 6, 3, 0, 5, 1, 2, 3]
    pairs = list(cut_text(ids, segment_ends(len(ids), 8, 1), 8, first=[5]))
    logprobs = [logprob for scored in score_pairs(model, pairs) for logprob in scored.model_logprobs.tolist()]
    assert logprobs == pytest.approx(model.logprob_of([5], ids), abs=1e-5)


@pytest.mark.parametrize('block_size', [8, 4])  # the window slides beyond 4
def test_as_many_beams_as_prefixes_find_everything(block_size):
    model = FakeModel(n_ids=4, block_size=block_size)
    expected = continuations(model, PROMPT[1:2], 4)
    sequences, logprobs = beam_search(model, torch.tensor([PROMPT[1:2]]), 4, 4**4)
    assert logprobs.tolist() == pytest.approx(list(expected.values()), abs=1e-5)
    assert {tuple(row[1:]) for row in sequences.tolist()} == set(expected)


@pytest.mark.parametrize('block_size', [8, 4])
@pytest.mark.parametrize('eos', [None, 2])
def test_the_exact_search_finds_the_likeliest(block_size, eos):
    model = FakeModel(block_size=block_size)
    expected = continuations(model, PROMPT, 4, eos)
    sequences, logprobs, bound = most_probable(model, torch.tensor([PROMPT]), 4, k=6, eos=eos)
    assert rows_of(sequences, eos) == list(expected)[:6]
    assert logprobs.tolist() == pytest.approx(list(expected.values())[:6], abs=1e-5)
    assert bound <= logprobs[-1] + 1e-5
    *_, found = search_steps(model, torch.tensor([PROMPT]), 4, k=6, eos=eos)
    assert found.exact


def test_unknown_ids_are_refused():
    model = FakeModel()
    with pytest.raises(ValueError, match=r'unknown ids \[7, 8\]; the model has ids 0 to 6'):
        model.generate(torch.tensor([[8, 1, 7]]), 1)
    with pytest.raises(ValueError, match=r'pair 1: unknown ids \[7\]'):
        score(model, [[1], [7]], [[1], [1]])
    with pytest.raises(ValueError, match=r'unknown ids \[-1\]'):
        beam_search(model, torch.tensor([[-1]]), 1, 1)
