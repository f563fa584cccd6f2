"""The model against transformers, against scipy, against formulas written out here, and against itself."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from helpers.models import random_gpt
from torch.nn import functional as F
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import model as model_module
from lm import scoring
from lm.checkpoint import load_model
from lm.scoring import score
from model import GPT, GPTConfig, logits_to_logprobs, sample

SHAPES = [
    {'vocab_size': 101, 'n_positions': 37, 'n_embd': 48, 'n_layer': 3, 'n_head': 4},
    {'vocab_size': 257, 'n_positions': 90, 'n_embd': 35, 'n_layer': 5, 'n_head': 7},
]


@pytest.fixture(params=SHAPES, ids=['3 layers', '5 layers'])
def reference(request, tmp_path):
    """A random-weight GPT-2 of transformers, and ours loaded from the folder that it saved."""
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(**request.param, bos_token_id=0, eos_token_id=0)).eval()
    for parameter in theirs.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path)
    return theirs, load_model(tmp_path, device='cpu')[0]


def ids_for(model, *shape, seed=1):
    return torch.randint(model.n_ids, shape, generator=torch.Generator().manual_seed(seed))


def full_logits(model, idx):
    return model(idx, idx)[0]


# Against transformers ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_logits_and_loss_equal_transformers(reference):
    theirs, ours = reference
    idx = ids_for(ours, 3, ours.config.block_size)
    expected = theirs(idx, labels=idx)
    assert (full_logits(ours, idx) - expected.logits).abs().max() < 1e-4
    loss = ours(idx[:, :-1], idx[:, 1:])[1]
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    assert torch.equal(ours(idx)[0], ours(idx)[0][:, -1:])
    assert torch.allclose(ours(idx)[0], expected.logits[:, -1:], atol=1e-4)


@torch.no_grad()
def test_greedy_text_equals_transformers(reference):
    theirs, ours = reference
    room = ours.config.block_size
    prompt = ids_for(ours, 2, 5)
    n = min(64, room - 5)
    expected = theirs.generate(prompt, max_new_tokens=n, do_sample=False, eos_token_id=None, pad_token_id=0)
    text, prob = ours.generate(prompt, n, temperature=0)
    assert torch.equal(text, expected)
    assert torch.equal(prob, torch.ones(2, dtype=torch.float64))


@torch.no_grad()
def test_probability_of_a_fixed_response_equals_transformers(reference):
    theirs, ours = reference
    text = ids_for(ours, 1, ours.config.block_size)
    logprobs = theirs(text).logits.double().log_softmax(-1)[0, 9:-1].gather(-1, text[0, 10:, None])
    response = text[0, 10:].tolist()
    _, prob = ours.generate(text[:, :10], fixed_response=response)
    assert isinstance(prob, float)
    assert math.log(prob) == pytest.approx(logprobs.sum().item(), rel=1e-5)
    scored = score(ours, [text[0, :10].tolist()], [response])[0]
    assert scored.dtype == torch.float64
    assert torch.allclose(scored, logprobs[:, 0], rtol=1e-5, atol=1e-6)


# The cache ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('rows', [1, 3])
def test_with_the_cache_equals_without_at_every_length(model, rows):
    block_size = model.config.block_size
    n = 2 * block_size  # far across block_size
    prompt = ids_for(model, rows, 3)
    text, _ = model.generate(prompt, n, seed=1)
    for step, end in zip(model.steps(prompt, n, seed=1), range(3, 3 + n), strict=True):
        with torch.no_grad():
            expected = model(text[:, max(0, end - block_size) : end])[0][:, -1]
        assert torch.equal(step.ids, text[:, end])
        assert torch.allclose(step.logits, expected, atol=1e-4)


@torch.no_grad()
def test_several_tokens_after_a_cached_prefix_see_only_what_is_before_them(model):
    idx = ids_for(model, 2, 10)
    _, cache = model.prefill(idx[:, :4], 10)
    assert torch.allclose(model.logits(model.hidden(idx[:, 4:], cache)), full_logits(model, idx)[:, 4:], atol=1e-4)


def test_a_prompt_longer_than_block_size_is_seen_from_its_end(model):
    prompt = ids_for(model, 1, 40)
    step = next(model.steps(prompt, 1))
    cropped = next(model.steps(prompt[:, -model.config.block_size :], 1))
    assert torch.equal(step.logits, cropped.logits)


# Probabilities ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('temperature', [0.6, 1.0, 1.7])
def test_all_continuations_of_length_two_add_up_to_one(temperature):
    model = random_gpt(vocab_size=9)
    prompt = ids_for(model, 1, 3)
    probs = [
        model.generate(prompt, temperature=temperature, fixed_response=list(pair))[1]
        for pair in itertools.product(range(9), repeat=2)
    ]
    assert math.fsum(probs) == pytest.approx(1, abs=1e-6)
    scored = score(model, [prompt[0].tolist()] * 81, list(itertools.product(range(9), repeat=2)), temperature)
    assert [part.sum().exp().item() for part in scored] == pytest.approx(probs, rel=1e-5)


def test_frequencies_match_probabilities():
    """A chi-square test of 20,000 draws, each from a generator of its own."""
    model = random_gpt(vocab_size=12)
    prompt = ids_for(model, 1, 4)
    draws = model.generate(prompt.expand(20_000, -1), 1, temperature=1.3, top_k=9, seed=5)[0][:, -1]
    probs = logits_to_logprobs(model(prompt)[0][0, -1].detach(), 1.3, 9).double().exp().numpy()
    counts = np.bincount(draws, minlength=12)
    assert counts[probs == 0].sum() == 0
    kept = probs > 0
    expected = probs[kept] / probs[kept].sum() * counts.sum()
    assert scipy.stats.chisquare(counts[kept], expected).pvalue > 0.001


def test_the_numbers_that_a_row_draws_are_independent_from_step_to_step():
    """Pairs of successive draws of a model that ignores its context fill the square evenly."""
    model = random_gpt(vocab_size=5)
    for parameter in model.parameters():
        parameter.data.zero_()  # all five tokens equally likely
    text = model.generate(torch.zeros(10_000, 1, dtype=torch.long), 2, seed=3)[0]
    counts = np.bincount(text[:, 1] * 5 + text[:, 2], minlength=25)
    assert scipy.stats.chisquare(counts).pvalue > 0.001


@pytest.mark.parametrize('temperature', [0.3, 1.0, 2.5])
@pytest.mark.parametrize('top_k', [None, 1, 4, 50])
def test_temperature_and_top_k_follow_the_formula(temperature, top_k):
    logits = np.random.default_rng(0).normal(0, 3, 20)
    kept = np.ones(20, bool) if top_k is None else logits >= np.sort(logits)[::-1][min(top_k, 20) - 1]
    expected = np.where(kept, np.exp(logits / temperature), 0)
    found = logits_to_logprobs(torch.tensor(logits), temperature, top_k).exp().numpy()
    assert found == pytest.approx(expected / expected.sum(), rel=1e-5)


def test_equals_at_the_edge_of_top_k_all_stay():
    probs = logits_to_logprobs(torch.tensor([2.0, 1.0, 1.0, 0.0]), top_k=2).exp()
    assert (probs > 0).tolist() == [True, True, True, False]


@pytest.mark.parametrize('temperature', [0.3, 1.0, 2.5])
@pytest.mark.parametrize('top_k', [None, 7])
@pytest.mark.parametrize('top_p', [1e-50, 1e-9, 0.3, 0.9, 0.999, 1.0])
def test_top_p_keeps_the_fewest_likeliest_that_reach_it_as_transformers_does(temperature, top_k, top_p):
    logits = torch.tensor(np.random.default_rng(0).normal(0, 2, (6, 40)), dtype=torch.float32)
    found = logits_to_logprobs(logits, temperature, top_k, top_p).exp()
    before = logits_to_logprobs(logits, temperature, top_k).exp()
    for row, all_of_them in zip(found, before):
        kept = row > 0
        inside = all_of_them[kept].sum()
        assert inside >= top_p - 1e-6
        assert kept.sum() == 1 or inside - all_of_them[kept].min() < top_p or top_p == 1
        assert kept.all() or all_of_them[kept].min() > all_of_them[~kept].max()
        torch.testing.assert_close(row[kept], all_of_them[kept] / inside, rtol=1e-5, atol=0)
    theirs = TemperatureLogitsWarper(temperature)(None, logits)
    theirs = theirs if top_k is None else TopKLogitsWarper(top_k)(None, theirs)
    torch.testing.assert_close(found, TopPLogitsWarper(top_p)(None, theirs).softmax(-1), rtol=1e-5, atol=1e-8)


def test_equals_at_the_edge_of_top_p_all_stay():
    probs = logits_to_logprobs(torch.tensor([0.5, 0.2, 0.2, 0.1]).log(), top_p=0.6).exp()
    assert probs.tolist() == pytest.approx([5 / 9, 2 / 9, 2 / 9, 0])


def test_temperature_zero_and_the_smallest_ones_are_greedy_and_the_lowest_id_wins_among_equals():
    logits = torch.tensor([[0.0, 80.0, 80.0], [5.0, -90.0, -math.inf]])
    assert logits_to_logprobs(logits, 0).exp().tolist() == [[0, 1, 0], [1, 0, 0]]
    flat = logits_to_logprobs(logits, 1e300, top_k=2).exp()  # beyond float32
    assert flat.tolist() == [[0, 0.5, 0.5], [0.5, 0.5, 0]]
    tiny = logits_to_logprobs(logits, 1e-38)
    assert tiny.exp().tolist() == [[0, 0.5, 0.5], [1, 0, 0]]


def test_sample_is_the_inverse_cdf_in_id_order():
    logprobs = torch.tensor([0.25, 0.0, 0.5, 0.25, 0.0]).log().expand(6, -1)
    uniforms = [0.0, 0.2499, 0.2501, 0.7499, 0.7501, 1 - 2**-53]
    assert sample(logprobs, uniforms).tolist() == [0, 0, 2, 2, 3, 3]


def test_greedy_fixed_response_has_probability_one_or_zero(model):
    prompt = ids_for(model, 1, 4)
    greedy = model.generate(prompt, 6, temperature=0)[0][0, 4:].tolist()
    assert model.generate(prompt, temperature=0, fixed_response=greedy)[1] == 1.0
    greedy[3] = (greedy[3] + 1) % model.n_ids
    assert model.generate(prompt, temperature=0, fixed_response=greedy)[1] == 0.0


def test_a_fixed_response_is_not_cut_off_by_top_k_or_top_p_and_its_length_wins(model):
    prompt = ids_for(model, 1, 4)
    unlikely = model(prompt)[0][0, -1].argmin().item()
    text, prob = model.generate(prompt, 50, top_k=1, fixed_response=[unlikely, 2], top_p=0.01)
    assert text[0, 4:].tolist() == [unlikely, 2]
    assert 0 < prob == model.generate(prompt, fixed_response=[unlikely, 2])[1]


def test_a_fixed_response_may_be_a_tensor(model):
    prompt = ids_for(model, 1, 4)
    as_list, as_tensor = ({'fixed_response': kind([3, 0])} for kind in (list, torch.tensor))
    assert model.generate(prompt, **as_tensor)[1] == model.generate(prompt, **as_list)[1]
    with pytest.raises(ValueError, match='unknown ids'):
        model.generate(prompt, fixed_response=torch.tensor([3, model.n_ids]))


def test_an_empty_response_has_probability_one(model):
    prompt = ids_for(model, 1, 4)
    assert model.generate(prompt, fixed_response=[])[1] == 1.0
    assert torch.equal(model.generate(prompt, 0)[0], prompt)
    assert score(model, [[1]], [[]])[0].tolist() == []


def test_a_long_response_underflows_but_its_logprob_does_not():
    model = random_gpt(n_layer=1)
    response = ids_for(model, 2000).tolist()
    prompt = ids_for(model, 1, 4)
    logprob = sum(step.sampler_logprob.item() for step in model.steps(prompt, fixed_response=response))
    assert model.generate(prompt, fixed_response=response)[1] == 0.0
    assert -math.inf < logprob < -2000
    assert score(model, [prompt[0].tolist()], [response])[0].sum().item() == pytest.approx(logprob, rel=1e-6)


def test_generate_is_the_sum_of_its_steps_under_sampler_and_model(model):
    prompt = ids_for(model, 2, 4)
    settings = {'temperature': 0.7, 'top_k': 5, 'seed': 9, 'top_p': 0.8}
    steps = list(model.steps(prompt, 8, **settings))
    text, prob = model.generate(prompt, 8, **settings)
    assert torch.equal(torch.stack([step.ids for step in steps], 1), text[:, 4:])
    assert prob.dtype == torch.float64
    assert torch.equal(sum(step.sampler_logprob for step in steps).exp(), prob)
    for row in range(2):
        of_model = score(model, [prompt[row].tolist()], [text[row, 4:].tolist()])[0]
        assert torch.allclose(torch.stack([step.model_logprob[row] for step in steps]), of_model, atol=1e-5)
        for step in steps:
            sampler = logits_to_logprobs(step.logits[row], 0.7, 5, 0.8)[step.ids[row]]
            assert step.sampler_logprob[row].item() == pytest.approx(sampler.item())


def test_a_row_draws_the_same_text_alone_and_in_a_batch_of_ten(model):
    prompt = ids_for(model, 1, 4)
    batch, probs = model.generate(prompt.expand(10, -1), 40, temperature=0.9, top_k=30, seed=7)
    alone, prob = model.generate(prompt, 40, temperature=0.9, top_k=30, seed=7)
    assert torch.equal(batch[:1], alone)
    assert probs[0].item() == pytest.approx(prob, rel=1e-4)
    assert len({tuple(row) for row in batch.tolist()}) == 10


def test_without_a_seed_the_global_one_decides(model):
    prompt = ids_for(model, 1, 4)
    torch.manual_seed(3)
    first, second = model.generate(prompt, 20)[0], model.generate(prompt, 20)[0]
    torch.manual_seed(3)
    assert torch.equal(model.generate(prompt, 20)[0], first)
    assert not torch.equal(first, second)


def test_score_equals_steps_pair_by_pair_whatever_their_lengths(model, monkeypatch):
    """Prompts and responses from one token to far beyond block_size, in batches that pad and split them."""
    lengths = [(1, 1), (3, 20), (16, 1), (15, 2), (17, 5), (40, 3), (2, 14), (1, 16), (5, 0), (1, 15)]
    prompts = [ids_for(model, n, seed=n).tolist() for n, _ in lengths]
    responses = [ids_for(model, n, seed=100 + n).tolist() for _, n in lengths]
    for batch_tokens in (1, 60, 10_000):
        monkeypatch.setattr(scoring, 'CPU_BATCH_TOKENS', batch_tokens)
        scored = score(model, prompts, responses, temperature=0.8)
        for prompt, response, logprobs in zip(prompts, responses, scored, strict=True):
            steps = list(model.steps(torch.tensor([prompt]), temperature=0.8, fixed_response=response))
            assert logprobs.tolist() == pytest.approx([step.sampler_logprob.item() for step in steps], abs=1e-5)


# A padded vocabulary ------------------------------------------------------------------------------------------------


def test_padding_ids_have_no_probability_anywhere():
    model = random_gpt(vocab_size=64, n_ids=50)
    model.transformer.wte.weight.data[50:] = 5.0  # would be by far the likeliest
    idx = ids_for(model, 2, 8)
    logits, loss = model(idx, idx)
    assert logits.shape == (2, 8, 64)
    assert (logits[..., 50:] == -math.inf).all()
    assert loss.item() == pytest.approx(F.cross_entropy(logits[..., :50].flatten(0, 1), idx.flatten()).item())
    others = {'top_p': 0.99}, {'min_p': 1e-9}, {'repetition_penalty': 9.0}
    for settings in ({'temperature': 0}, {'temperature': 9.0}, {'top_k': 60}, *others):
        assert model.generate(idx, 30, **settings)[0].max() < 50
    with pytest.raises(ValueError, match=r'\[50\]'):
        model.generate(idx, fixed_response=[3, 50])


# Invalid arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({}, 'max_new_tokens=None'),
        ({'max_new_tokens': -1}, 'max_new_tokens=-1'),
        ({'max_new_tokens': 1, 'temperature': -0.1}, 'temperature'),
        ({'max_new_tokens': 1, 'temperature': math.nan}, 'temperature'),
        ({'max_new_tokens': 1, 'temperature': math.inf}, 'temperature'),
        ({'max_new_tokens': 1, 'top_k': 0}, 'top_k'),
        ({'max_new_tokens': 1, 'top_p': 0.0}, 'top_p'),
        ({'max_new_tokens': 1, 'top_p': 1.1}, 'top_p'),
        ({'max_new_tokens': 1, 'min_p': -0.1}, 'min_p'),
        ({'max_new_tokens': 1, 'min_p': 1.1}, 'min_p'),
        ({'max_new_tokens': 1, 'repetition_penalty': 0}, 'repetition_penalty'),
        ({'fixed_response': [1], 'repetition_penalty': math.nan}, 'repetition_penalty'),
        ({'fixed_response': [61]}, r'\[61\]'),
        ({'fixed_response': [-1]}, r'\[-1\]'),
    ],
)
def test_invalid_arguments_are_refused(model, settings, message):
    with pytest.raises(ValueError, match=message):
        model.generate(ids_for(model, 1, 3), **settings)


def test_an_empty_prompt_and_too_long_an_input_are_refused(model):
    with pytest.raises(ValueError, match='empty prompt'):
        model.generate(torch.zeros(1, 0, dtype=torch.long), 1)
    with pytest.raises(ValueError, match='pair 1 has an empty prompt'):
        score(model, [[1], []], [[1], [1]])
    with pytest.raises(ValueError, match='block_size=16'):
        model(ids_for(model, 1, 17))
    with pytest.raises(ValueError, match='n_head=3'):
        GPT(GPTConfig(n_embd=16, n_head=3))


# Training -----------------------------------------------------------------------------------------------------------


def test_initialisation_is_gpt2s():
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=64, vocab_size=500, n_layer=8, n_head=4, n_embd=128))
    for name, parameter in model.named_parameters():
        if name.endswith('bias'):
            assert (parameter == 0).all(), name
        elif '.ln_' in name:
            assert (parameter == 1).all(), name
        else:
            std = 0.02 / math.sqrt(16) if name.endswith('c_proj.weight') else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name
    assert model.lm_head.weight is model.transformer.wte.weight
    idx = ids_for(model, 4, 64)
    assert model(idx, idx.roll(1))[1].item() == pytest.approx(math.log(500), abs=0.1)


def test_the_two_gelus_differ_and_are_what_they_say():
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    tanh = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    exact = x * torch.tensor(scipy.stats.norm.cdf(x.numpy()))
    for gelu, expected in (('tanh', tanh), ('none', exact)):
        assert torch.allclose(random_gpt(gelu=gelu).transformer.h[0].mlp.gelu(x), expected, atol=1e-12)
    assert (tanh - exact).abs().max() > 1e-4


def test_crop_block_size_keeps_what_the_first_positions_say(model):
    idx = ids_for(model, 2, 7)
    before = full_logits(model, idx)
    model.crop_block_size(7)
    assert torch.equal(full_logits(model, idx), before)
    assert model.config.block_size == 7
    with pytest.raises(ValueError, match='7 tokens'):
        model.crop_block_size(8)


def test_weight_decay_is_for_matrices_only(model):
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), 'cpu')
    decayed, rest = (group['params'] for group in optimizer.param_groups)
    assert {p.dim() for p in decayed} == {2}
    assert {p.dim() for p in rest} == {1}
    assert [group['weight_decay'] for group in optimizer.param_groups] == [0.1, 0.0]
    assert sum(p.numel() for p in decayed + rest) == model.get_num_params(non_embedding=False)
    assert optimizer.defaults['fused']
    # One step with no gradient but decay shrinks the matrices by lr * decay and leaves the rest.
    before = [p.detach().clone() for p in decayed + rest]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for old, new in zip(before, decayed + rest, strict=True):
        assert torch.allclose(new, old * (1 - 1e-4) if old.dim() == 2 else old)


def test_mfu_is_the_flops_of_a_step_against_the_peak(model):
    flops_per_token = 6 * model.get_num_params() + 12 * 2 * 16 * 16
    assert model.estimate_mfu(3, 0.5, peak_flops=1e9) == pytest.approx(flops_per_token * 16 * 3 / 0.5 / 1e9)
    assert 0 < model.estimate_mfu(3, 0.5) < 1  # against what this machine can do


def test_model_needs_torch_alone():
    lines = Path(model_module.__file__).read_text().splitlines()
    imported = {line.split()[1].split('.')[0] for line in lines if line.startswith(('import ', 'from '))}
    assert imported == {'copy', 'math', 'random', 'dataclasses', 'typing', 'torch'}
    assert len(lines) <= 450


@pytest.mark.parametrize('place', ['embeddings', 'attention', 'mlp', 'residual'])
def test_each_dropout_works_in_training_and_only_there(place):
    model = random_gpt(dropout=0.5)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    block = model.transformer.h[0]
    idx = ids_for(model, 2, 12)
    before = full_logits(model, idx)
    {
        'embeddings': model.transformer.drop,
        'attention': block.attn.resid_dropout,
        'residual': block.attn.resid_dropout,
        'mlp': block.mlp.dropout,
    }[place].p = 0.5
    assert torch.equal(full_logits(model, idx), before)
    model.train()
    if place == 'attention':  # the same setting drops attention weights too, which this alone shows
        block.attn.resid_dropout.forward = lambda x: x
    assert not torch.allclose(full_logits(model, idx), before, atol=1e-3)


def test_tokens_are_decoded_from_the_cache_and_not_read_again(model, monkeypatch):
    lengths = []
    hidden = model.hidden
    monkeypatch.setattr(model, 'hidden', lambda idx, cache=None: lengths.append(idx.size(1)) or hidden(idx, cache))
    model.generate(ids_for(model, 1, 4), 14)
    assert lengths == [4] + [1] * 12 + [16]  # the prompt, a token at a time up to block_size, then whole windows


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_gives_float32_logprobs_near_the_exact_ones(dtype):
    model = random_gpt()
    prompt, response = ids_for(model, 1, 4), ids_for(model, 9).tolist()
    exact = score(model, [prompt[0].tolist()], [response])[0]
    half = random_gpt().to(dtype)
    scored = score(half, [prompt[0].tolist()], [response])[0]
    steps = list(half.steps(prompt, fixed_response=response))
    assert torch.allclose(scored, exact, atol=0.25)
    assert not torch.equal(scored, exact)
    assert torch.allclose(torch.cat([step.sampler_logprob for step in steps]), exact, atol=0.25)
    for step in steps:
        assert logits_to_logprobs(step.logits).double().exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_compiled_hidden_states_say_the_same(model):
    prompt = ids_for(model, 1, 4)
    expected, prob = model.generate(prompt, 8, seed=1)
    model.hidden = torch.compile(model.hidden, dynamic=True, backend='aot_eager', fullgraph=True)
    text, compiled_prob = model.generate(prompt, 8, seed=1)
    assert torch.equal(text, expected)
    assert compiled_prob == pytest.approx(prob, rel=1e-4)
