"""The lean loss against torch's cross-entropy, in value and gradient. (test_model.py does it through a whole model.)"""

import pytest
import torch
from torch.nn import functional as F

from training.lean_loss import TOKENS, lean_cross_entropy


def example(tokens, n_ids=61, vocab_size=64, width=24):
    """Return hidden states, an output matrix, and targets of which some do not count."""
    torch.manual_seed(tokens)
    x = torch.randn(tokens, width, requires_grad=True)
    weight = torch.randn(vocab_size, width, requires_grad=True)
    targets = torch.randint(n_ids, (tokens,))
    targets[tokens // 2 : tokens // 2 + 5] = -1
    return x, weight, targets, n_ids


def plain(x, weight, targets, n_ids):
    """Return the loss with all logits, the padding ids left out of the softmax."""
    return F.cross_entropy(F.linear(x, weight)[:, :n_ids].float(), targets, ignore_index=-1)


@pytest.mark.parametrize('tokens', [7, TOKENS, TOKENS + 1, 2 * TOKENS + 100])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_value_and_gradients_are_those_of_cross_entropy(tokens, dtype):
    results = []
    for loss_of in (lean_cross_entropy, plain):
        x, weight, *rest = example(tokens)
        with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
            loss = loss_of(x, weight, *rest)
        (3 * loss).backward()  # as a gradient scaler, or a share of several batches, would have it
        results.append((loss.detach(), x.grad, weight.grad))
    tolerance = {'rtol': 1e-4, 'atol': 1e-6} if dtype == torch.float32 else {'rtol': 0.03, 'atol': 0.003}
    for got, expected in zip(*results, strict=True):
        assert got.dtype == expected.dtype
        assert torch.allclose(got, expected, **tolerance)
    assert (results[0][2][61:] == 0).all()  # padding ids learn nothing


def test_only_the_gradients_that_are_asked_for_are_made():
    x, weight, *rest = example(20)
    lean_cross_entropy(x, weight.detach(), *rest).backward()
    assert x.grad is not None
    assert weight.grad is None
    lean_cross_entropy(x.detach(), weight, *rest).backward()
    assert weight.grad is not None
    with torch.no_grad():
        assert lean_cross_entropy(x, weight, *rest).item() == pytest.approx(plain(x, weight, *rest).item(), rel=1e-6)


def test_a_second_backward_is_refused():
    x, weight, *rest = example(20)
    loss = lean_cross_entropy(x, weight, *rest)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match='only once'):
        loss.backward()
