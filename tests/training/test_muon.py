"""Muon: orthogonal updates for the matrices in the layers, AdamW for everything else."""

import math

import pytest
import torch
from helpers.models import random_gpt
from helpers.training import assert_same_run, losses, run

from common.errors import UserError
from training.muon import COEFFICIENTS, MOMENTUM, make_muon, orthogonalize

SETTINGS = {'optimizer': 'muon', 'learning_rate': 1e-2}


@pytest.mark.parametrize('shape', [(8, 8), (8, 32), (32, 8)])
def test_an_update_keeps_the_singular_vectors_and_evens_out_the_singular_values(shape):
    torch.manual_seed(1)
    matrix = torch.randn(shape, dtype=torch.float64)
    result = orthogonalize(matrix)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    inner = left.T @ result @ right.T  # diagonal, if the singular vectors are the same
    assert torch.allclose(inner, inner.diag().diag(), atol=1e-9)
    expected = values / values.norm()
    a, b, c = COEFFICIENTS
    for _ in range(5):
        expected = a * expected + b * expected**3 + c * expected**5
    assert torch.allclose(inner.diag(), expected)
    assert values.max() / values.min() > 2
    assert inner.diag().min() > 0.6 and inner.diag().max() < 1.3


def gradients(model):
    """Give every parameter a gradient, as after loss.backward()."""
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)


def test_everything_but_the_matrices_in_the_layers_is_trained_by_adamw():
    model, same = random_gpt(), random_gpt()
    same.load_state_dict(model.state_dict())
    muon = make_muon(model, 0.1, 1e-2, (0.9, 0.95), 'cpu')
    adamw = same.configure_optimizers(0.1, 1e-2, (0.9, 0.95), 'cpu')
    for seed in range(3):
        for trained, optimizer in ((model, muon), (same, adamw)):
            torch.manual_seed(seed)
            gradients(trained)
            optimizer.step()
    for (name, one), two in zip(model.named_parameters(), same.parameters()):
        inside = name.startswith('transformer.h.') and one.dim() == 2
        assert torch.equal(one, two) != inside, name


def test_a_step_is_muons_with_the_size_of_adamws():
    torch.manual_seed(2)
    model = random_gpt()
    weights = {name: weight for name, weight in model.named_parameters() if '.h.0.' in name and weight.dim() == 2}
    expected = {name: weight.detach().double().clone() for name, weight in weights.items()}
    momentum = {name: torch.zeros_like(weight) for name, weight in expected.items()}
    optimizer = make_muon(model, 0.1, 1e-2, (0.9, 0.95), 'cpu')
    for _ in range(2):
        gradients(model)
        for name, weight in expected.items():
            gradient = weights[name].grad.double()
            momentum[name] = MOMENTUM * momentum[name] + (1 - MOMENTUM) * gradient
            ahead = MOMENTUM * momentum[name] + (1 - MOMENTUM) * gradient
            parts = ahead.chunk(3 if 'c_attn' in name else 1)
            update = torch.cat([orthogonalize(part) * 0.2 * math.sqrt(max(part.shape)) for part in parts])
            weight *= 1 - 1e-2 * 0.1
            weight -= 1e-2 * update
            assert 0.1 < update.square().mean().sqrt() < 0.3  # AdamW's updates are about 0.2 in root mean square
        optimizer.step()
    for name, weight in weights.items():
        assert torch.allclose(weight.double(), expected[name], atol=1e-5), name


def test_muon_agrees_with_the_one_of_torch():
    torch.manual_seed(3)
    model = random_gpt()
    weight = model.transformer.h[0].mlp.c_fc.weight
    other = torch.nn.Parameter(weight.detach().clone())
    ours = make_muon(model, 0.1, 1e-2, (0.9, 0.95), 'cpu')
    theirs = torch.optim.Muon([other], lr=1e-2, weight_decay=0.1, adjust_lr_fn='match_rms_adamw')
    start = other.detach().clone()
    for _ in range(3):
        gradients(model)
        other.grad = weight.grad.clone()
        ours.step()
        theirs.step()
    change = (weight - start).norm()
    assert (weight - other).norm() / change < 0.02  # theirs computes in bfloat16


def test_a_run_with_muon_learns_and_is_resumed_exactly(dataset):
    run(**SETTINGS, out_dir='whole')
    run(**SETTINGS, out_dir='parts', max_iters=4)
    run(**SETTINGS, out_dir='parts', init_from='resume')
    assert_same_run('whole', 'parts')
    found = losses('whole')
    assert found[8] < 0.9 * found[1]


def test_a_run_is_not_resumed_with_another_optimizer(dataset):
    run(out_dir='mine', max_iters=2)
    with pytest.raises(UserError, match='optimizer=adamw, but the settings say muon'):
        run(out_dir='mine', max_iters=4, init_from='resume', optimizer='muon')


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        ({'optimizer': 'sgd'}, 'neither adamw nor muon'),
        ({'optimizer': 'muon', 'lora_rank': 2}, 'lora_rank'),
    ],
)
def test_wrong_optimizers_are_errors(dataset, settings, words):
    with pytest.raises(UserError, match=words):
        run(**settings)
