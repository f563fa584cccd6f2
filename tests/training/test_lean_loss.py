"""The lean loss against torch's cross-entropy, in value and gradient, alone and through a whole model."""

import pytest
import torch
from helpers.models import random_gpt
from torch.nn import functional as F

from training.lean_loss import CHUNK, LeanLoss, lean_cross_entropy
from training.lora import add_lora


def example(tokens, n_ids=61, vocab_size=64, width=24):
    """Return hidden states, an output matrix, and targets of which some are left out."""
    torch.manual_seed(tokens)
    x = torch.randn(tokens, width, requires_grad=True)
    weight = torch.randn(vocab_size, width, requires_grad=True)
    targets = torch.randint(n_ids, (tokens,))
    targets[tokens // 2 : tokens // 2 + 5] = -1
    return x, weight, targets, n_ids


def plain_cross_entropy(x, weight, targets, n_ids):
    """Return the loss from all logits at once, without those of the padding ids."""
    return F.cross_entropy(F.linear(x, weight)[:, :n_ids].float(), targets, ignore_index=-1)


@pytest.mark.parametrize('tokens', [7, CHUNK, CHUNK + 1, 2 * CHUNK + 100])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_value_and_gradients_are_those_of_cross_entropy(tokens, dtype):
    results = []
    for cross_entropy in (lean_cross_entropy, plain_cross_entropy):
        x, weight, *rest = example(tokens)
        with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
            loss = cross_entropy(x, weight, *rest)
        (3 * loss).backward()  # scaled, as by a gradient scaler or by gradient accumulation
        results.append((loss.detach(), x.grad, weight.grad))
    tolerance = {'rtol': 1e-4, 'atol': 1e-6} if dtype == torch.float32 else {'rtol': 0.03, 'atol': 0.003}
    for got, expected in zip(*results, strict=True):
        assert got.dtype == expected.dtype
        assert torch.allclose(got, expected, **tolerance)
    assert (results[0][2][61:] == 0).all()  # padding ids get no gradient


def test_only_the_gradients_that_are_needed_are_computed():
    x, weight, *rest = example(20)
    lean_cross_entropy(x, weight.detach(), *rest).backward()
    assert x.grad is not None
    assert weight.grad is None
    lean_cross_entropy(x.detach(), weight, *rest).backward()
    assert weight.grad is not None
    with torch.no_grad():
        expected = plain_cross_entropy(x, weight, *rest).item()
        assert lean_cross_entropy(x, weight, *rest).item() == pytest.approx(expected, rel=1e-6)


def test_a_second_backward_is_refused():
    x, weight, *rest = example(20)
    loss = lean_cross_entropy(x, weight, *rest)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match='only one backward'):
        loss.backward()


@pytest.mark.parametrize('lora_rank', [0, 2])
@pytest.mark.parametrize('recompute', [False, True])
@pytest.mark.parametrize('n_ids', [61, 50])
def test_loss_and_gradients_of_a_model_are_those_of_its_forward_pass(n_ids, recompute, lora_rank):
    model = random_gpt(n_ids=n_ids).train()
    if lora_rank:
        add_lora(model, lora_rank, alpha=4)
    model.gradient_checkpointing = recompute
    idx, targets = torch.randint(n_ids, (2, 3, 16))
    targets[1, 5:] = -1
    results = []
    for loss in (LeanLoss(model)(idx, targets), model(idx, targets)[1]):
        model.zero_grad()
        loss.backward()
        results.append((loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
    (lean, lean_gradients), (plain, gradients) = results
    assert lean.item() == pytest.approx(plain.item(), rel=1e-6)
    assert lean_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(lean_gradients[name], gradient, rtol=1e-4, atol=1e-6), name


def test_a_long_batch_with_padding_ids_has_the_loss_and_gradients_of_torch():
    model = random_gpt(vocab_size=64, n_ids=61, block_size=300)
    idx = torch.randint(61, (3, 300))
    targets = idx.roll(-1, 1)
    targets[:, -7:] = -1  # not counted
    gradients = []
    for loss_of in (LeanLoss(model), lambda idx, targets: model(idx, targets)[1]):
        model.zero_grad()
        loss = loss_of(idx, targets)
        loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        assert loss.item() == pytest.approx(F.cross_entropy(model(idx, idx)[0].mT, targets, ignore_index=-1).item())
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*gradients, strict=True))


def largest_saved_tensor(loss_of, idx):
    """Return how many numbers the largest tensor has that is kept for the backward pass."""
    sizes = []

    def note(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss_of(idx, idx)
    return max(sizes)


def test_no_logits_are_kept_for_the_backward_pass():
    model = random_gpt(vocab_size=5000, block_size=128)
    idx = torch.randint(5000, (16, 128))
    assert largest_saved_tensor(model, idx) >= 16 * 128 * 5000
    assert largest_saved_tensor(LeanLoss(model), idx) < 512 * 5000
