"""The training loop: learning, evaluating, saving the best weights, and what happens when training fails."""

import itertools
import math

import numpy as np
import pytest
import torch
from helpers.nanogpt_configs import CHARACTERS, FINE_TUNING
from helpers.scripts import run_script
from helpers.training import TEXT, assert_same_run, checkpoint, evaluations, losses, run, weights

import prepare_bin
import train
from common.errors import UserError
from lm.checkpoint import load_model
from model import GPT
from texts.token_files import read_meta
from train import Settings, learning_rate_at

pytestmark = pytest.mark.usefixtures('dataset')


def test_the_learning_rate_warms_up_and_follows_a_cosine():
    settings = Settings(learning_rate=1.0, min_lr=0.1, warmup_iters=10, lr_decay_iters=110)
    assert learning_rate_at(0, settings, 110) == pytest.approx(1 / 11)
    assert learning_rate_at(10, settings, 110) == 1.0
    assert learning_rate_at(60, settings, 110) == pytest.approx(0.55)
    assert learning_rate_at(35, settings, 110) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert learning_rate_at(110, settings, 110) == learning_rate_at(10**6, settings, 110) == 0.1
    assert learning_rate_at(10**6, Settings(decay_lr=False, learning_rate=0.3), 9) == 0.3


def test_training_lowers_the_loss_and_the_checkpoint_generates_what_was_learned(capsys):
    run(max_iters=60, lr_decay_iters=60, eval_interval=30, learning_rate=1e-2)
    curve = losses('out')
    assert sorted(curve) == list(range(1, 61))
    assert curve[1] == pytest.approx(math.log(290), rel=0.1)  # all tokens equally likely
    assert curve[60] < 2
    model, tokenizer, checkpoint = load_model('resume', device='cpu')
    assert checkpoint['iter_num'] == 60
    assert checkpoint['model'].keys() == GPT(model.config).state_dict().keys()  # nanoGPT's names, without a prefix
    assert checkpoint['config']['learning_rate'] == 1e-2
    text, _ = model.generate(torch.tensor([tokenizer.encode('The cat went')]), 12, temperature=0)
    assert 'hill' in tokenizer.decode(text[0].tolist())
    assert 'bits per byte' in capsys.readouterr().out


def test_gradient_accumulation_equals_a_larger_batch():
    run(max_iters=4, out_dir='one', batch_size=16, gradient_accumulation_steps=1)
    run(max_iters=4, out_dir='two', batch_size=4, gradient_accumulation_steps=4)
    one, two = losses('one'), losses('two')
    assert list(two.values()) == pytest.approx(list(one.values()), rel=1e-5)


def test_only_the_best_checkpoint_is_kept_on_request():
    run(max_iters=4, learning_rate=1e-2)
    best = load_model('resume', device='cpu')[2]['best_val_loss']
    before = weights('out')
    run(init_from='resume', max_iters=8, learning_rate=10.0, decay_lr=False, always_save_checkpoint=False)
    assert load_model('resume', device='cpu')[2]['best_val_loss'] == best
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights('out').items())


def test_a_run_that_never_improves_says_that_there_is_no_checkpoint(capsys, tmp_path):
    run(max_iters=4, learning_rate=3.0, min_lr=3.0, warmup_iters=0, always_save_checkpoint=False)
    assert 'there is no new ckpt.pt' in capsys.readouterr().out
    assert not (tmp_path / 'out' / 'ckpt.pt').exists()


def test_eval_only_measures_and_writes_nothing(capsys, tmp_path):
    run()
    model = load_model('resume', device='cpu')[0]
    capsys.readouterr()
    run(init_from='out', out_dir='elsewhere', eval_only=True, eval_iters=100)
    printed = capsys.readouterr().out
    tokens = np.fromfile('data/rhymes/val.bin', np.uint16)
    n = (len(tokens) - 1) // 16 * 16
    x = torch.from_numpy(tokens[: n + 1].astype(np.int64))
    loss = model(x[:-1].view(-1, 16), x[1:].view(-1, 16))[1].item()
    assert f'val: {loss:.4f} nats per token' in printed
    meta = read_meta('rhymes')['val']
    assert f'({loss / math.log(2) * meta["tokens"] / meta["bytes"]:.4f} bits per byte), computed in float32' in printed
    assert not (tmp_path / 'elsewhere').exists()


@pytest.mark.slow
def test_eval_only_measures_the_weights_that_the_other_scripts_use(capsys):
    run(max_iters=40, lr_decay_iters=40, learning_rate=1e-2, out_dir='base')
    tuning = {'out_dir': 'tuned', 'lora_rank': 4, 'max_iters': 40, 'lr_decay_iters': 40, 'learning_rate': 1e-2}
    run(init_from='base', **tuning)
    measured = evaluations('tuned')
    capsys.readouterr()
    run(init_from='resume', eval_only=True, **tuning)
    printed = float(capsys.readouterr().out.split('val: ')[1].split()[0])
    assert printed == pytest.approx(measured[40][1], abs=1e-4)
    assert printed < measured[0][1]


@pytest.mark.slow
def test_bfloat16_autocast_keeps_weights_in_float32_and_learns_equally_well():
    run(dtype='bfloat16', out_dir='half')
    run(out_dir='full')
    assert {tensor.dtype for tensor in weights('half').values()} == {torch.float32}
    assert losses('half')[8] == pytest.approx(losses('full')[8], rel=0.02)


def test_dropout_is_on_only_in_training_and_the_dtype_is_the_chosen_one(monkeypatch):
    seen = []
    hidden = GPT.hidden

    def watched(self, idx):
        hook = self.transformer.h[0].mlp.c_fc.register_forward_hook(
            lambda module, inputs, output: seen.append((self.training, torch.is_grad_enabled(), output.dtype))
        )
        try:
            return hidden(self, idx)
        finally:
            hook.remove()

    monkeypatch.setattr(GPT, 'hidden', watched)
    run(max_iters=5, dtype='bfloat16', gradient_accumulation_steps=1)
    assert {dtype for _, _, dtype in seen} == {torch.bfloat16}
    assert [training for training, grad, _ in seen if grad] == [True] * 5
    assert {training for training, grad, _ in seen if not grad} == {False}


@pytest.mark.parametrize(
    'more',
    [
        {},
        pytest.param({'lora_rank': 2}, marks=pytest.mark.slow),
        pytest.param({'freeze': 1}, marks=pytest.mark.slow),
    ],
)
def test_gradient_checkpointing_changes_no_number(more):
    run(out_dir='base', max_iters=1)
    for name, recompute in (('plain', False), ('recomputed', True)):
        run(init_from='base', out_dir=name, gradient_checkpointing=recompute, dropout=0.2, **more)
    assert losses('plain') == losses('recomputed')
    assert_same_run('plain', 'recomputed')


@pytest.mark.slow
def test_a_compiled_model_learns_the_same_and_its_checkpoint_has_ordinary_names():
    short = {'max_iters': 2, 'eval_interval': 2, 'eval_iters': 1, 'n_layer': 1}
    run(out_dir='plain', **short)
    run(out_dir='compiled', compile=True, **short)
    assert list(losses('compiled').values()) == pytest.approx(list(losses('plain').values()), rel=1e-4)
    for file in ('ckpt.pt', 'last.pt'):
        assert weights('compiled', file).keys() == weights('plain', file).keys()


@pytest.mark.parametrize('epochs', [0.5, 1, 2])
def test_epochs_set_the_number_of_steps(epochs):
    run(epochs=epochs, max_iters=10**6, batch_size=4)
    blocks = (len(np.fromfile('data/rhymes/train.bin', np.uint16)) - 1) // 16 - 1
    assert max(losses('out')) == math.ceil(epochs * blocks / 8)


@pytest.mark.slow
def test_patience_ends_a_run_that_no_longer_improves(capsys):
    run(max_iters=400, patience=2, eval_interval=5, learning_rate=0.3, min_lr=0.3, warmup_iters=0, lr_decay_iters=400)
    measured = evaluations('out')
    best = min(measured, key=lambda iteration: measured[iteration][1])
    assert max(measured) == best + 2 * 5 < 400
    assert 'no better for 2 evaluations in a row' in capsys.readouterr().out


@pytest.mark.slow
def test_nanogpts_settings_run_on_small_data(tmp_path):
    """All settings of its character-level and fine-tuning examples; those that take long are overridden."""
    (tmp_path / 'long.txt').write_text(TEXT * 4)
    prepare_bin.main(prepare_bin.Settings(input='long.txt', dataset='characters', tokenizer='char', val_fraction=0.2))
    run(max_iters=1, out_dir='base')
    short = ('--device=cpu', '--max_iters=2', '--eval_iters=1', '--batch_size=2')
    for config, *changes in [
        (CHARACTERS, '--dataset=characters', '--n_embd=48', '--out_dir=of-characters'),
        (FINE_TUNING, '--dataset=rhymes', '--init_from=base', '--out_dir=tuned'),
    ]:
        (tmp_path / 'settings.py').write_text(config)
        process = run_script('train.py', 'settings.py', *short, *changes, cwd=tmp_path)
        assert process.returncode == 0, process.stderr
    assert checkpoint('of-characters')['config']['dropout'] == 0.2
    assert checkpoint('tuned')['config']['decay_lr'] is False


# Failures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('bad', [math.nan, pytest.param(math.inf, marks=pytest.mark.slow)])
def test_divergence_stops_the_run_and_keeps_the_last_good_checkpoint(monkeypatch, bad):
    run(out_dir='whole', max_iters=4)
    compute_loss, calls = train.Run.compute_loss, itertools.count()

    def diverging(self, module, x, y):
        loss = compute_loss(self, module, x, y)
        return loss * bad if torch.is_grad_enabled() and next(calls) == 2 * 5 + 1 else loss  # in the sixth step

    monkeypatch.setattr(train.Run, 'compute_loss', diverging)
    with pytest.raises(UserError, match=r'diverged at iteration 6: .*not finite \(loss (nan|inf).*--learning_rate'):
        run()
    assert max(losses('out')) == 5
    assert checkpoint('out')['iter_num'] == 4
    assert all(torch.equal(tensor, weights('whole', 'last.pt')[n]) for n, tensor in weights('out', 'last.pt').items())


def test_weights_that_are_not_finite_are_not_saved():
    run(max_iters=4)
    ruinous = {'learning_rate': 1e37, 'min_lr': 1e37, 'warmup_iters': 0, 'grad_clip': 0.0, 'decay_lr': False}
    with pytest.raises(UserError, match=r'iteration \d+: .*not finite'):
        run(init_from='resume', eval_interval=1, save_interval=1, **ruinous)
    last = checkpoint('out')
    assert all(tensor.isfinite().all() for tensor in last['model'].values())
    assert all(tensor.isfinite().all() for tensor in weights('out').values())


@pytest.mark.parametrize(
    'error',
    [
        torch.OutOfMemoryError('CUDA out of memory'),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_running_out_of_memory_suggests_what_to_lower(monkeypatch, error):
    def out_of_memory(self, module, x, y):
        raise error

    monkeypatch.setattr(train.Run, 'compute_loss', out_of_memory)
    with pytest.raises(UserError, match='out of memory: lower --batch_size'):
        run()


def test_other_errors_are_not_mistaken_for_running_out_of_memory(monkeypatch):
    def mistaken(self, module, x, y):
        raise RuntimeError('shapes')

    monkeypatch.setattr(train.Run, 'compute_loss', mistaken)
    with pytest.raises(RuntimeError, match='shapes'):
        run()
