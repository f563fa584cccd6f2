"""Beam search equals transformers'; the exact search equals counting out all continuations."""

import itertools
import math

import pytest
import torch
from helpers.models import random_gpt
from transformers import GPT2LMHeadModel

from lm import fast, token_tree
from lm.checkpoint import save_pretrained
from lm.scoring import score
from lm.search import Budget, above_steps, all_above, beam_search, beam_steps, most_probable, search_steps
from lm.waiting import Waiting


def all_continuations(model, prompt, n, eos=None):
    """Score every continuation there is: {ids: logprob}. With eos, those that end with it early, too."""
    found = {}
    for ids in itertools.product(range(model.n_ids), repeat=n):
        if eos in ids:
            ids = ids[: ids.index(eos) + 1]
        found[ids] = None
    logprobs = score(model, [prompt] * len(found), list(map(list, found)))
    return {ids: logprob.sum().item() for ids, logprob in zip(found, logprobs, strict=True)}


def ids_of(sequences, prompt, eos=None):
    """Return the continuations as tuples, without the eos that fill them up."""
    rows = [tuple(row[len(prompt) :]) for row in sequences.tolist()]
    assert all(row[: len(prompt)] == prompt for row in sequences.tolist())
    return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


# Beam search --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """Return [(model, the same in transformers)] for random models of odd shapes."""
    pairs = []
    for seed, shape in enumerate([{'vocab_size': 61}, {'vocab_size': 83, 'n_layer': 3, 'n_head': 4, 'n_embd': 32}]):
        model = random_gpt(block_size=32, seed=seed, **shape)
        folder = tmp_path_factory.mktemp('gpt2')
        save_pretrained(model, folder)
        pairs.append((model, GPT2LMHeadModel.from_pretrained(folder).eval()))
    return pairs


def theirs(model, idx, n, width, **settings):
    """Return (sequences, scores) of transformers' beam search."""
    out = model.generate(
        idx,
        attention_mask=torch.ones_like(idx),
        max_new_tokens=n,
        num_beams=width,
        num_return_sequences=width,
        do_sample=False,
        early_stopping='never',  # the search that the paper means; the default stops on a guess
        output_scores=True,
        return_dict_in_generate=True,
        **{'length_penalty': 0.0, 'eos_token_id': None, 'pad_token_id': 0, **settings},
    )
    return out.sequences, out.sequences_scores.double()


@pytest.mark.parametrize('width', [2, 5, 16])
@pytest.mark.parametrize('which', [0, 1])
@pytest.mark.parametrize('prompt', [[3], [7, 1, 12, 5, 5]])
def test_beams_equal_those_of_transformers(folders, which, width, prompt):
    ours, reference = folders[which]
    idx = torch.tensor([prompt])
    sequences, logprobs = beam_search(ours, idx, 12, width)
    their_sequences, scores = theirs(reference, idx, 12, width)
    assert sequences.tolist() == their_sequences.tolist()
    assert logprobs.dtype == torch.float64
    torch.testing.assert_close(logprobs, scores, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('penalty', [0.0, 0.7, 1.0, -0.5])
@pytest.mark.parametrize('which', [0, 1])
def test_beams_that_end_early_equal_those_of_transformers(folders, which, penalty):
    ours, reference = folders[which]
    ended_early = 0
    for eos in range(0, 61, 4):
        idx = torch.tensor([[2, 9]])
        sequences, logprobs = beam_search(ours, idx, 10, 4, length_penalty=penalty, eos=eos)
        their_sequences, scores = theirs(
            reference, idx, 10, 4, length_penalty=penalty, eos_token_id=eos, pad_token_id=eos
        )
        rows = ids_of(sequences, [2, 9], eos)
        assert rows == ids_of(their_sequences, [2, 9], eos)
        lengths = torch.tensor([len(row) for row in rows])
        torch.testing.assert_close(logprobs / lengths**penalty, scores, rtol=1e-5, atol=1e-4)
        ended_early += (lengths < 10).sum().item()
    assert ended_early > 0


def test_as_many_beams_as_there_are_prefixes_find_everything():
    model = random_gpt(vocab_size=5)
    sequences, logprobs = beam_search(model, torch.tensor([[1, 2]]), 3, 5**3)
    everything = all_continuations(model, [1, 2], 3)
    assert ids_of(sequences, [1, 2]) == sorted(everything, key=everything.get, reverse=True)
    torch.testing.assert_close(logprobs.tolist(), sorted(everything.values(), reverse=True), rtol=0, atol=1e-5)


def test_one_beam_is_greedy():
    model = random_gpt()
    idx = torch.tensor([[4, 4, 8]])
    greedy, _ = model.generate(idx, 30, temperature=0)  # beyond block_size 16: the window slides
    sequences, logprobs = beam_search(model, idx, 30, 1)
    assert sequences.tolist() == greedy.tolist()
    scored = score(model, [[4, 4, 8]], [greedy[0, 3:].tolist()])[0].sum()
    assert logprobs.item() == pytest.approx(scored.item(), abs=1e-4)


def test_a_beams_logprob_is_that_of_its_text_also_where_the_window_slides():
    model = random_gpt()
    sequences, logprobs = beam_search(model, torch.tensor([[4, 4, 8]]), 25, 6)
    assert len(set(ids_of(sequences, [4, 4, 8]))) == 6
    scores = score(model, [[4, 4, 8]] * 6, [list(ids) for ids in ids_of(sequences, [4, 4, 8])])
    assert logprobs.tolist() == pytest.approx([score.sum().item() for score in scores], abs=1e-4)
    assert logprobs.tolist() == sorted(logprobs.tolist(), reverse=True)


def test_of_equals_the_lower_id_comes_first_as_in_greedy_decoding():
    model = random_gpt(vocab_size=40)
    model.transformer.wte.weight.data[20:] = model.transformer.wte.weight.data[:20]  # every logit stands twice
    idx = torch.tensor([[3, 1]])
    greedy, _ = model.generate(idx, 12, temperature=0)
    assert beam_search(model, idx, 12, 1)[0].tolist() == greedy.tolist()
    assert max(beam_search(model, idx, 4, 3)[0][0, 2:].tolist()) < 20
    assert most_probable(model, idx, 3, 1)[0].max() < 20


def test_padding_ids_are_never_chosen():
    model = random_gpt(vocab_size=12, n_ids=3)
    sequences, logprobs = beam_search(model, torch.tensor([[1]]), 2, 50)
    assert len(sequences) == 9
    assert sequences.max() < 3
    assert logprobs.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_each_beam_names_the_one_that_it_extends():
    model, before = random_gpt(), None
    for beams, finished in beam_steps(model, torch.tensor([[1]]), 5, 4):
        for beam in [*beams, *finished]:
            if before is not None:
                assert beam.ids[:-1] == before[beam.parent].ids
        before = beams
    assert len(finished) == 4


# The most probable --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize(('vocab_size', 'n', 'k'), [(5, 4, 7), (11, 3, 5), (3, 6, 20), (40, 2, 1)])
def test_the_most_probable_are_those_that_counting_out_finds(seed, vocab_size, n, k):
    model = random_gpt(vocab_size=vocab_size, seed=seed)
    prompt = [seed % vocab_size, 1]
    sequences, logprobs, bound = most_probable(model, torch.tensor([prompt]), n, k)
    everything = all_continuations(model, prompt, n)
    best = sorted(everything, key=everything.get, reverse=True)
    assert ids_of(sequences, prompt) == best[:k]
    assert logprobs.tolist() == pytest.approx([everything[ids] for ids in best[:k]], abs=1e-5)
    assert everything[best[k]] - 1e-5 <= bound <= logprobs[-1] + 1e-5


@pytest.mark.parametrize('seed', range(6))
def test_with_eos_all_lengths_compete(seed):
    model = random_gpt(vocab_size=6, seed=seed)
    sequences, logprobs, bound = most_probable(model, torch.tensor([[1]]), 4, 9, eos=0)
    everything = all_continuations(model, [1], 4, eos=0)
    best = sorted(everything, key=everything.get, reverse=True)
    assert ids_of(sequences, [1], eos=0) == best[:9]
    assert logprobs.tolist() == pytest.approx([everything[ids] for ids in best[:9]], abs=1e-5)
    assert everything[best[9]] - 1e-5 <= bound <= logprobs[-1] + 1e-5


@pytest.mark.parametrize('eos', [None, 2])
def test_the_probabilities_of_all_continuations_are_one(eos):
    model = random_gpt(vocab_size=8, n_ids=5)
    sequences, logprobs, bound = most_probable(model, torch.tensor([[1, 3]]), 3, 10_000, eos=eos)
    assert logprobs.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert bound == -math.inf  # there is nothing else
    assert len(sequences) == (5**3 if eos is None else 4**3 + 4**2 + 4 + 1)


def test_it_sees_what_the_model_sees_where_the_window_slides():
    model = random_gpt(vocab_size=4, block_size=4)
    prompt = [1, 3, 2]
    sequences, _, _ = most_probable(model, torch.tensor([prompt]), 5, 6)
    everything = all_continuations(model, prompt, 5)
    assert ids_of(sequences, prompt) == sorted(everything, key=everything.get, reverse=True)[:6]


@pytest.mark.slow
@pytest.mark.parametrize('seed', [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_whatever_it_knows_so_far_is_true(seed):
    model = random_gpt(vocab_size=30, seed=seed)
    idx = torch.tensor([[2]])
    everything = all_continuations(model, [2], 3)
    bounds = []
    for found in search_steps(model, idx, 3, k=4):
        known = set(ids_of(found.sequences, [2]))
        unseen = max(logprob for ids, logprob in everything.items() if ids not in known)
        assert unseen <= found.bound + 1e-5
        bounds.append(found.bound)
    assert bounds == sorted(bounds, reverse=True)
    assert found.exact


def test_a_spent_budget_leaves_a_gap_and_never_loses_to_greedy_or_beams():
    model = random_gpt(vocab_size=200, n_embd=8, seed=3)
    for parameter in model.parameters():
        parameter.data *= 0.3  # flat distributions: a full search would have to open nearly all prefixes
    idx = torch.tensor([[5]])
    _, cut, bound = most_probable(model, idx, 4, 3, budget=Budget(prefixes=2))
    assert bound > cut[-1]
    for width in (1, 3, 8):
        assert cut[0] >= beam_search(model, idx, 4, width)[1][0] - 1e-6
    for budget in (Budget(seconds=0.0), Budget(mebibytes=0.001)):
        assert most_probable(model, idx, 4, 3, budget=budget)[2] > cut[-1]


@pytest.mark.slow
def test_only_prefixes_that_might_win_are_opened():
    model = random_gpt(vocab_size=30)
    *_, found = search_steps(model, torch.tensor([[2]]), 3, k=1)
    prefixes = {}
    for ids, logprob in all_continuations(model, [2], 3).items():
        for size in range(3):
            prefixes[ids[:size]] = prefixes.get(ids[:size], 0) + math.exp(logprob)
    needed = sum(prob > math.exp(found.logprobs[0]) for prob in prefixes.values())
    assert needed <= found.opened <= needed + 64  # a batch may hold some that turn out not to be needed


def test_fewer_prefixes_are_read_at_once_where_their_caches_are_large(monkeypatch):
    model = random_gpt(vocab_size=30)
    idx = torch.tensor([[2, 5, 7]])
    expected = most_probable(model, idx, 3, 4)
    monkeypatch.setattr(token_tree, 'CACHE_BYTES', 0)
    *_, found = search_steps(model, idx, 3, 4)
    assert found.sequences.tolist() == expected[0].tolist()
    assert found.bound == pytest.approx(expected[2], abs=1e-5)


@pytest.mark.parametrize('eos', [None, 3])
def test_every_continuation_above_a_threshold_is_found(eos):
    model = random_gpt(vocab_size=9)
    expected = all_continuations(model, [2, 5], 3, eos)
    for threshold in (0.5, 0.01, 0.003, 1e-9):
        found = all_above(model, torch.tensor([[2, 5]]), 3, threshold, eos)
        likely = {ids: logprob for ids, logprob in expected.items() if logprob > math.log(threshold)}
        assert [ids for ids, _ in found] == sorted(likely, key=likely.get, reverse=True)
        assert dict(found) == pytest.approx(likely, abs=1e-5)
    *_, growing = above_steps(model, torch.tensor([[2, 5]]), 9, 0.01)
    assert sum(math.exp(logprob) for _, logprob in growing) <= 1
    with pytest.raises(ValueError, match='threshold=0'):
        all_above(model, torch.tensor([[2]]), 2, 0)


def test_a_packed_model_finds_the_same():
    model = random_gpt(vocab_size=50, n_embd=32)
    idx = torch.tensor([[2, 7]])
    sequences, logprobs, bound = most_probable(model, idx, 3, 5)
    beams = beam_search(model, idx, 6, 5)
    fast.pack(model)
    packed = most_probable(model, idx, 3, 5)
    assert packed[0].tolist() == sequences.tolist()
    torch.testing.assert_close(packed[1], logprobs, rtol=0, atol=1e-4)
    assert packed[2] == pytest.approx(bound, abs=1e-4)
    assert beam_search(model, idx, 6, 5)[0].tolist() == beams[0].tolist()


@pytest.mark.parametrize(
    ('idx', 'settings', 'says'),
    [
        ([[]], {}, 'at least one token'),
        ([[1], [2]], {}, 'one prompt'),
        ([[61]], {}, '61'),
        ([[1]], {'max_new_tokens': 0}, 'max_new_tokens=0'),
    ],
)
def test_invalid_arguments_are_refused(model, idx, settings, says):
    settings = {'max_new_tokens': 2, **settings}
    idx = torch.tensor(idx, dtype=torch.int64)
    with pytest.raises(ValueError, match=says):
        beam_search(model, idx, beam_width=2, **settings)
    with pytest.raises(ValueError, match=says):
        most_probable(model, idx, **settings)
    with pytest.raises(ValueError, match='beam_width=0'):
        beam_search(model, torch.tensor([[1]]), 2, 0)
    for penalty in (11.0, math.nan, math.inf):
        with pytest.raises(ValueError, match='length_penalty'):
            beam_search(model, torch.tensor([[1]]), 2, 2, length_penalty=penalty)
    with pytest.raises(ValueError, match='k=0'):
        most_probable(model, torch.tensor([[1]]), 2, 0)


def test_waiting_prefixes_come_likeliest_first_and_ties_in_the_order_of_their_ids():
    torch.manual_seed(1)
    waiting, added = Waiting(), []
    for node, n in enumerate((1, 70, 2000)):
        logprobs = (torch.rand(n, dtype=torch.float64) * 40).floor() / -8  # many are equal
        waiting.add(node, torch.arange(n), logprobs)
        added += [(logprob, node, id) for id, logprob in enumerate(logprobs.tolist())]
    taken = [waiting.pop() for _ in range(len(added))]
    assert [(logprob, node, id) for node, id, logprob in taken] == sorted(added, key=lambda each: (-each[0], *each[1:]))
    assert (waiting.count, waiting.bytes, waiting.best) == (0, 0, -math.inf)
