"""What is seen inside a model, against transformers, against brute force, and against the model itself."""

import itertools
import math

import numpy as np
import pytest
import torch
from helpers.models import random_gpt
from scipy.special import softmax
from scipy.stats import entropy as scipy_entropy
from torch.nn import functional as F

from lm import checkpoint, internals
from lm.alternatives import entropy
from model import attend, logits_to_logprobs

MODELS = {
    'as GPT-2': {},
    'as nanoGPT saves it': {'bias': False, 'gelu': 'none'},
    'padded vocabulary': {'n_ids': 50},
    'one head, one layer': {'n_head': 1, 'n_layer': 1},
    'many heads': {'n_head': 8, 'n_layer': 3},
}


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def model(request):
    return random_gpt(**request.param)


def some_ids(model, B=1, T=9, seed=3):
    return torch.randint(model.n_ids, (B, T), generator=torch.Generator().manual_seed(seed))


def by_transformers(model, folder, idx):
    """What transformers says of the same weights, attention written out and all hidden states kept."""
    from transformers import GPT2LMHeadModel

    checkpoint.save_pretrained(model, folder)
    theirs = GPT2LMHeadModel.from_pretrained(folder, attn_implementation='eager', dtype=torch.float32).eval()
    with torch.no_grad():
        return theirs(idx, output_attentions=True, output_hidden_states=True)


# Watching -------------------------------------------------------------------------------------------------------------


def test_watching_changes_nothing_and_leaves_nothing_behind(model):
    idx = some_ids(model, B=2)
    with torch.no_grad():
        plain = model.hidden(idx)
    x, seen = internals.capture_activations(model, idx)
    assert torch.equal(x, plain)
    assert torch.equal(seen[model.transformer.ln_f].output, plain)
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match='block_size'):
        internals.capture_activations(model, some_ids(model, T=model.config.block_size + 1))
    assert not any(module._forward_hooks for module in model.modules())


def test_the_stream_is_what_transformers_calls_hidden_states(model, tmp_path):
    idx = some_ids(model, B=2)
    theirs = by_transformers(model, tmp_path, idx).hidden_states
    ours = internals.residual_stream(model, idx)
    assert len(ours) == len(theirs) == model.config.n_layer + 1
    for x, y in zip(ours[:-1], theirs[:-1]):  # their last one has been through ln_f
        torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(model.transformer.ln_f(ours[-1]), theirs[-1], atol=1e-4, rtol=1e-4)


# Attention ------------------------------------------------------------------------------------------------------------


def test_attention_weights_are_those_of_transformers(model, tmp_path):
    idx = some_ids(model, B=2)
    theirs = torch.stack(by_transformers(model, tmp_path, idx).attentions)
    torch.testing.assert_close(torch.stack(list(internals.layer_attentions(model, idx))), theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('T', [1, 2, 9])
@pytest.mark.parametrize('n_head', [1, 4])
def test_the_weights_give_what_the_fused_attention_gives(T, n_head):
    qkv = torch.randn(3, T, 3 * 16, generator=torch.Generator().manual_seed(T)).double()
    weights = internals.attention_weights(qkv, n_head)
    _, _, v = internals.split_heads(qkv, n_head)
    y = (weights @ v).transpose(1, 2).reshape(3, T, 16)
    torch.testing.assert_close(y, attend(qkv, n_head), atol=1e-12, rtol=1e-12)


def test_a_row_of_weights_sums_to_one_and_knows_no_future():
    model = random_gpt()
    weights = torch.stack(list(internals.layer_attentions(model, some_ids(model, B=2))))
    assert weights.shape == (2, 2, 2, 9, 9)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 2, 9))
    assert (weights.triu(1) == 0).all() and (weights >= 0).all()


def test_weights_of_a_bfloat16_model_are_as_exact_as_its_queries_allow():
    qkv = torch.randn(1, 7, 48, generator=torch.Generator().manual_seed(0)).bfloat16()
    weights = internals.attention_weights(qkv, 2)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, internals.attention_weights(qkv.double(), 2).float())


def test_rollout_is_the_sum_over_all_paths_through_the_layers():
    L, T = 3, 4
    weights = torch.rand(L, 1, 2, T, T, generator=torch.Generator().manual_seed(1)).double().tril()
    weights /= weights.sum(-1, keepdim=True)
    step = weights[:, 0].mean(1) / 2 + torch.eye(T) / 2
    shares = internals.attention_rollout(weights.mean(2))
    for depth, (end, begin) in itertools.product(range(1, L + 1), itertools.product(range(T), range(T))):
        paths = itertools.product(range(T), repeat=depth - 1)  # the tokens that information passed through on its way
        total = 0.0
        for between in paths:
            places = (end, *between, begin)
            # From the uppermost layer down: a token at the end of the path took from the one before it.
            total += math.prod(step[depth - 1 - i, a, b].item() for i, (a, b) in enumerate(itertools.pairwise(places)))
        assert shares[depth - 1, 0, end, begin].item() == pytest.approx(total, abs=1e-12)


def test_rollout_shares_sum_to_one_and_come_from_the_past(model):
    shares = internals.attention_rollout(
        weights.mean(1) for weights in internals.layer_attentions(model, some_ids(model, B=2))
    )
    assert shares.shape == (model.config.n_layer, 2, 9, 9)
    torch.testing.assert_close(shares.sum(-1), torch.ones(model.config.n_layer, 2, 9))
    assert (shares.triu(1) == 0).all()


# Logit lens -----------------------------------------------------------------------------------------------------------


def test_the_last_layer_of_the_lens_is_the_model_itself(model):
    idx = some_ids(model, B=2)
    lens = internals.logit_lens(model, idx)
    with torch.no_grad():
        logprobs = logits_to_logprobs(model(idx, targets=idx)[0])
    assert torch.equal(lens.ids[-1], logprobs.argmax(-1))
    assert torch.equal(lens.logprobs[-1], logprobs.max(-1).values)
    assert torch.equal(lens.next_logprobs[-1], logprobs[:, :-1].gather(-1, idx[:, 1:, None])[..., 0])


def test_every_layer_of_the_lens_is_ln_f_and_lm_head_of_transformers_hidden_states(model, tmp_path):
    idx = some_ids(model)
    hidden = by_transformers(model, tmp_path, idx).hidden_states
    lens = internals.logit_lens(model, idx)
    norm, head = model.transformer.ln_f, model.transformer.wte.weight.detach().numpy()[: model.n_ids]
    for layer, x in enumerate(hidden):
        x = x[0].numpy().astype(np.float64)
        if layer < len(hidden) - 1:  # their last one has been through ln_f
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
            x = x * norm.weight.detach().numpy() + (0 if norm.bias is None else norm.bias.detach().numpy())
        probs = softmax(x @ head.T, axis=-1)
        assert lens.ids[layer, 0].tolist() == probs.argmax(-1).tolist()
        np.testing.assert_allclose(lens.logprobs[layer, 0].exp(), probs.max(-1), rtol=1e-3)
        for position, following in enumerate(idx[0, 1:].tolist()):
            row = probs[position]
            assert lens.next_logprobs[layer, 0, position].exp().item() == pytest.approx(row[following], rel=1e-3)
            assert lens.next_ranks[layer, 0, position] == 1 + (row > row[following] * (1 + 1e-9)).sum()


def test_rank_one_is_what_greedy_decoding_picks_also_among_equals():
    model = random_gpt()
    model.transformer.wte.weight.data[:] = model.transformer.wte.weight.data[0]  # all tokens are alike
    idx = torch.tensor([[5, 0, 1, 7]])
    lens = internals.logit_lens(model, idx)
    assert (lens.ids == 0).all()
    assert lens.next_ranks[-1].tolist() == [[1, 2, 8]]


def test_a_single_token_has_a_lens_and_nothing_that_came_next():
    model = random_gpt()
    lens = internals.logit_lens(model, torch.tensor([[3]]))
    assert lens.ids.shape == (3, 1, 1)
    assert lens.next_ranks.shape == lens.next_logprobs.shape == (3, 1, 0)


# Temperature ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('temperature', [0.2, 1.0, 1.7])
def test_a_tempered_distribution_is_that_of_scipy(temperature):
    logits = torch.randn(40, generator=torch.Generator().manual_seed(2)) * 2
    of = internals.temper_distribution(logits, temperature, top_k=6, top_p=0.8)
    probs = softmax(logits.double().numpy() / temperature)
    np.testing.assert_allclose(of.probs, probs, rtol=1e-4, atol=1e-12)
    assert of.entropy == pytest.approx(scipy_entropy(probs), rel=1e-5)
    ordered = np.sort(probs)[::-1]
    nucleus = int(np.searchsorted(ordered.cumsum(), 0.8)) + 1
    assert of.by_top_k == (6, pytest.approx(ordered[:6].sum(), rel=1e-5))
    assert of.by_top_p == (nucleus, pytest.approx(ordered[:nucleus].sum(), rel=1e-5))
    of_six = ordered[:6] / ordered[:6].sum()
    both = int(np.searchsorted(of_six.cumsum(), 0.8)) + 1
    assert of.by_both == (both, pytest.approx(ordered[:both].sum(), rel=1e-5))
    assert of.entropy_of_both == pytest.approx(scipy_entropy(ordered[:both]), rel=1e-4)


def test_greedy_has_no_choice_and_without_cuts_everything_stays():
    logits = torch.tensor([0.0, 3.0, 3.0, -math.inf])
    greedy = internals.temper_distribution(logits, 0)
    assert greedy.probs.tolist() == [0, 1, 0, 0]
    assert greedy.entropy == 0 and greedy.by_both == (1, 1)
    plain = internals.temper_distribution(logits, 1.0)
    assert plain.by_both == plain.by_top_k == plain.by_top_p == (3, pytest.approx(1))
    assert plain.entropy == plain.entropy_of_both


def test_entropy_of_equal_choices_is_the_logarithm_of_their_number():
    assert entropy(torch.full((2, 5), -math.log(5))).tolist() == pytest.approx([math.log(5)] * 2)


# Embeddings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('shape', [(12, 30), (30, 5), (3, 2)])
def test_pca_is_that_of_the_covariance_matrix(shape):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(5)).double()
    plane = internals.pca(x)
    values, vectors = np.linalg.eigh(np.cov(x.numpy().T))
    values, vectors = values[::-1], vectors[:, ::-1]
    np.testing.assert_allclose(plane.shares, values[:2] / values.sum(), rtol=1e-9)
    for axis, vector in zip(plane.axes.numpy(), vectors.T):
        assert abs(axis @ vector) == pytest.approx(1)
        assert axis[np.abs(axis).argmax()] > 0
    np.testing.assert_allclose(plane.points, (x - x.mean(0)).numpy() @ plane.axes.numpy().T, atol=1e-12)
    torch.testing.assert_close(plane.project(x), plane.points)


def test_pca_of_equal_points_has_no_variance_and_no_nan():
    plane = internals.pca(torch.ones(4, 3))
    assert plane.points.abs().max() < 1e-9
    assert plane.shares.isfinite().all()


def test_neighbours_are_those_that_brute_force_finds():
    table = torch.randn(30, 6, generator=torch.Generator().manual_seed(7))
    ids, cosines = internals.nearest_neighbours(table, torch.tensor([4, 11]), 5)
    for row, (near, values) in zip((4, 11), zip(ids.tolist(), cosines.tolist())):
        rows = table.double().numpy()
        all_cosines = {
            other: rows[row] @ rows[other] / np.linalg.norm(rows[row]) / np.linalg.norm(rows[other])
            for other in range(30)
            if other != row
        }
        best = sorted(all_cosines, key=all_cosines.get, reverse=True)[:5]
        assert near == best
        assert values == pytest.approx([all_cosines[other] for other in best], abs=1e-6)


def test_there_are_no_more_neighbours_than_other_rows():
    ids, _ = internals.nearest_neighbours(torch.eye(3) + 0.1, torch.tensor([1]), 10)
    assert sorted(ids[0].tolist()) == [0, 2]


# Trace ----------------------------------------------------------------------------------------------------------------


def test_every_step_names_a_line_of_model_py_that_is_there(model, monkeypatch):
    plain = internals.source_line
    asked = []

    def noting(function, fragment):
        asked.append((function, fragment))
        return plain(function, fragment)

    monkeypatch.setattr(internals, 'source_line', noting)
    steps = internals.trace_forward(model, some_ids(model))
    lines = internals.inspect.getsource(internals.inspect.getmodule(attend)).splitlines()
    for step, (function, fragment) in zip(steps, asked, strict=True):
        assert fragment in step.code, step.name  # model.py has changed, and internals.py must follow
        assert lines[step.line - 1].strip() == step.code
        assert step.function == function.__qualname__


def test_shapes_are_what_their_letters_say(model):
    config = model.config
    sizes = {'B': 2, 'T': 9, 'C': config.n_embd, '3C': 3 * config.n_embd, '4C': 4 * config.n_embd, 'nh': config.n_head}
    sizes |= {'hs': config.n_embd // config.n_head, 'V': config.vocab_size}
    for step in internals.trace_forward(model, some_ids(model, B=2)):
        assert step.value.shape == tuple(sizes[letter] for letter in step.letters.split(', ')), step.name


def test_the_trace_holds_the_models_own_values(model):
    idx = some_ids(model, B=2)
    steps = internals.trace_forward(model, idx)
    with torch.no_grad():
        logits = model(idx, targets=idx)[0]
    assert torch.equal(steps[-1].value, logits_to_logprobs(logits))
    x = [step.value for step in steps if step.name == 'x']
    torch.testing.assert_close(torch.stack(x[::2]), internals.residual_stream(model, idx))
    padded = model.n_ids < model.config.vocab_size
    assert ('logits' in [step.name for step in steps]) == padded
    assert steps[-1].value.isinf().any() == padded
    raw = next(step.value for step in steps if step.name == 'lm_head(x)')
    assert raw.isfinite().all()


def test_each_step_of_a_block_follows_from_those_before_it(model):
    block = model.transformer.h[0]
    steps = internals.trace_forward(model, some_ids(model, B=2))
    (before,) = [step.value for step in steps if step.name == 'x' and step.layer is None]
    of = [step.value for step in steps if step.layer == 0]
    ln_1, qkv, q, k, v, weights, y, together, mixed, after_attention, ln_2, out, gelu, back, after = of

    def close(a, b):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)

    close(ln_1, F.layer_norm(before, before.shape[-1:], block.ln_1.weight, block.ln_1.bias))
    close(qkv, F.linear(ln_1, block.attn.c_attn.weight, block.attn.c_attn.bias))
    close(torch.stack([q, k, v], 2).permute(0, 3, 2, 1, 4).flatten(2), qkv)
    scores = torch.einsum('bhtc,bhsc->bhts', q, k) / math.sqrt(q.size(-1))
    for place in range(9):
        close(weights[:, :, place, : place + 1], scores[:, :, place, : place + 1].softmax(-1))
    close(y, torch.einsum('bhts,bhsc->bhtc', weights, v))
    close(together, y.transpose(1, 2).flatten(2))
    close(mixed, F.linear(together, block.attn.c_proj.weight, block.attn.c_proj.bias))
    close(after_attention, before + mixed)
    close(ln_2, F.layer_norm(after_attention, before.shape[-1:], block.ln_2.weight, block.ln_2.bias))
    close(out, F.linear(ln_2, block.mlp.c_fc.weight, block.mlp.c_fc.bias))
    close(gelu, F.gelu(out, approximate=model.gelu))
    close(back, F.linear(gelu, block.mlp.c_proj.weight, block.mlp.c_proj.bias))
    close(after, after_attention + back)


def test_a_layer_norm_without_bias_is_described_without_one():
    for bias in (True, False):
        model = random_gpt(bias=bias)
        said = {step.meaning for step in internals.trace_forward(model, some_ids(model)) if step.name.startswith('ln_')}
        assert ('mean 0, variance 1, gain, bias' in said) == bias
        assert ('mean 0, variance 1, gain' in said) != bias


def test_a_missing_line_is_replaced_by_the_first_of_the_function():
    number, code = internals.source_line(attend, 'a line that nobody wrote')
    assert code.startswith('def attend(')
    assert number == attend.__code__.co_firstlineno
