"""LoRA: only the additions are trained, and they merge into ordinary weights."""

import math

import pytest
import torch
from helpers.models import random_gpt
from helpers.training import checkpoint, losses, run, weights

import train
from common.errors import UserError
from lm.checkpoint import load_model
from training.lora import add_lora, merged_state_dict, split_state_dict

pytestmark = pytest.mark.usefixtures('dataset')


def test_lora_starts_without_effect_and_merges_into_equivalent_weights():
    model, plain = random_gpt(dropout=0.0), random_gpt(dropout=0.0)
    idx = torch.randint(61, (2, 9))
    before = model(idx, idx)[0]
    add_lora(model, rank=2, alpha=4)
    assert torch.equal(model(idx, idx)[0], before)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == set(split_state_dict(model)[1])
    for name, parameter in model.named_parameters():
        if '.lora_' in name:
            torch.nn.init.normal_(parameter, std=0.3)
    plain.load_state_dict(merged_state_dict(model))
    assert torch.allclose(model(idx, idx)[0], plain(idx, idx)[0], atol=1e-4)
    assert not torch.allclose(model(idx, idx)[0], before, atol=1e-2)


@pytest.mark.slow
def test_only_the_additions_are_trained_and_ckpt_pt_has_them_merged():
    run(max_iters=40, lr_decay_iters=40, learning_rate=1e-2, out_dir='base')
    run(
        init_from='base',
        out_dir='tuned',
        lora_rank=3,
        lora_alpha=6.0,
        max_iters=60,
        lr_decay_iters=60,
        learning_rate=1e-2,
    )
    base, merged, kept = weights('base'), weights('tuned'), weights('tuned', 'last.pt')
    lora = checkpoint('tuned')['lora']
    matrices = [name for name in base if name.startswith('transformer.h.') and base[name].dim() == 2]
    assert len(lora) == 2 * len(matrices) == 16
    for name, tensor in base.items():
        assert torch.equal(kept[name], tensor), name  # nothing but the additions was trained
        change = merged[name].double() - tensor.double()
        if name in matrices:
            stem = name.removesuffix('weight')
            added = 6 / 3 * lora[f'{stem}lora_B'].double() @ lora[f'{stem}lora_A'].double()
            assert torch.allclose(change, added, atol=1e-6)
            assert torch.linalg.matrix_rank(added, rtol=1e-9) <= 3
            assert change.abs().max() > 1e-3
        else:
            assert change.abs().max() == 0
    assert losses('tuned')[60] < losses('tuned')[1] - 0.1
    model, _, _ = load_model('resume', 'tuned', device='cpu')  # an ordinary model for every other script
    assert not any('lora' in name for name in model.state_dict())


@pytest.mark.parametrize('which', ['lora_A', pytest.param('lora_B', marks=pytest.mark.slow)])
def test_additions_that_are_not_finite_are_not_saved(monkeypatch, which):
    step = train.Run.step

    def ruinous(self, batches):
        result = step(self, batches)
        if self.iter_num == 3:  # after the last evaluation, so that only saving can notice
            with torch.no_grad():
                dict(self.model.named_parameters())[f'transformer.h.0.mlp.c_fc.{which}'][0, 0] = math.nan
        return result

    monkeypatch.setattr(train.Run, 'step', ruinous)
    with pytest.raises(UserError, match=r'diverged at iteration 3: .* \(in the weights\)'):
        run(lora_rank=2, save_interval=1)
    last = checkpoint('out')
    assert last['iter_num'] == 2
    assert all(tensor.isfinite().all() for tensor in last['lora'].values())
