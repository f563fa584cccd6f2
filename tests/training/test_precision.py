"""The precision of training is measured when a run begins, changes nothing else, and is kept when it resumes."""

import pytest
import torch
from helpers.models import random_gpt
from helpers.training import assert_same_run, checkpoint, run

from common.errors import UserError
from common.notes import forget_notes
from lm import hardware
from training import precision
from training.lean_loss import LeanLoss

BOTH = [torch.float32, torch.bfloat16]
CPU = torch.device('cpu')


@pytest.fixture
def hardware_with_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: {'avx512_bf16': True})


def pretend(monkeypatch, float32, bfloat16):
    """Let both precisions take these seconds."""
    monkeypatch.setattr(precision, 'measure_dtypes', lambda *_: dict(zip(BOTH, (float32, bfloat16))))


@pytest.mark.slow
@pytest.mark.usefixtures('dataset', 'hardware_with_bfloat16')
def test_the_faster_one_is_chosen_and_kept_when_the_run_resumes(monkeypatch, capsys):
    for seconds, chosen in (((2.0, 1.0), 'bfloat16'), ((1.0, 2.0), 'float32')):
        pretend(monkeypatch, *seconds)
        run(dtype=None, out_dir=f'whole-{chosen}')
        run(dtype=None, out_dir=chosen, max_iters=4)
        ratio = seconds[1] / seconds[0]
        assert f'in {chosen} (measured: bfloat16 takes {ratio:.2f} times as long as float32)' in capsys.readouterr().out
        pretend(monkeypatch, *reversed(seconds))  # now the machine does something else
        run(dtype=None, out_dir=chosen, init_from='resume')
        assert f'in {chosen} (as it began)' in capsys.readouterr().out
        assert checkpoint(chosen)['dtype'] == chosen
        assert_same_run(f'whole-{chosen}', chosen)


@pytest.mark.slow
@pytest.mark.usefixtures('dataset')
def test_another_precision_than_the_run_began_with_is_said(capsys):
    forget_notes()
    run(max_iters=4)
    run(init_from='resume', dtype='bfloat16')
    assert 'the run began in float32, now it computes in bfloat16' in capsys.readouterr().err
    damaged = checkpoint('out') | {'dtype': ['float8']}
    torch.save(damaged, 'out/last.pt')
    with pytest.raises(UserError, match='its checkpoint says dtype'):
        run(init_from='resume', dtype=None, max_iters=12)


def test_measuring_changes_neither_weights_nor_random_numbers():
    model = random_gpt(dropout=0.2).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    ids = torch.arange(9)[None]
    seconds = precision.measure_dtypes(LeanLoss(model), CPU, BOTH, (ids[:, :-1], ids[:, 1:]))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert list(seconds) == BOTH
    assert all(0 < value < 5 for value in seconds.values())


def test_only_a_cpu_with_bfloat16_leaves_a_choice(monkeypatch):
    for capabilities, dtypes in (
        ({}, [torch.float32]),
        ({'avx512_bf16': True}, BOTH),
        ({'amx_bf16': True}, BOTH),
        ({'bf16': True}, BOTH),
    ):
        monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda capabilities=capabilities: capabilities)
        assert hardware.training_dtypes(CPU) == dtypes
        assert hardware.training_dtypes(CPU, 'float16') == [torch.float16]
