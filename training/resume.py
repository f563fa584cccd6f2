"""Saving a run in training, and resuming it exactly."""

import dataclasses
import platform
import sys
from pathlib import Path

import torch

from common.errors import UserError
from lm import checkpoint as checkpoints
from training.log import divergence_error

# The optimizer's state fits only weights of the shapes that these settings give.
FIXED = ('n_layer', 'n_head', 'n_embd', 'block_size', 'bias', 'freeze', 'lora_rank', 'lora_alpha')
DATA_ORDER = ('seed', 'batch_size', 'gradient_accumulation_steps')  # settings that decide which batch comes when


def check_resumable(settings, checkpoint, file):
    """Raise UserError if a run cannot be resumed from a checkpoint with these settings."""
    path = Path(settings.out_dir) / file
    if missing := {'optimizer', 'iter_num', 'best_val_loss'} - checkpoint.keys():
        raise UserError(
            f'{path} cannot be resumed: it has no {", ".join(sorted(missing))}; '
            f'--init_from={settings.out_dir} starts a new run from its weights'
        )
    original = {'freeze': None, 'lora_rank': 0} | (checkpoint.get('config') or {})  # nanoGPT has neither setting
    for name in DATA_ORDER:
        if name in original and original[name] != getattr(settings, name):
            print(
                f'note: the run started with {name}={original[name]}, now it is {getattr(settings, name)}; from here '
                'on it trains on other batches than it would have',
                file=sys.stderr,
            )
    for name in FIXED:
        if name in original and original[name] != getattr(settings, name):
            raise UserError(
                f'{path} is from a run with {name}={original[name]}, but the settings say {getattr(settings, name)}; '
                'resume with the config file and the settings that the run started with'
            )


def restore_run(run, checkpoint):
    """Restore a run's state from its last.pt, or from the ckpt.pt of nanoGPT."""
    settings = run.settings
    if checkpoint.get('data_sha256', run.data_sha256) != run.data_sha256:
        raise UserError(
            f'data/{settings.dataset} is not the data that the run in {settings.out_dir} started with; '
            f'--init_from={settings.out_dir} --out_dir=ANOTHER starts a new run from its weights'
        )
    run.model.load_state_dict(checkpoint.get('lora', {}), strict=False)
    run.optimizer.load_state_dict(checkpoint['optimizer'])
    if run.scaler.is_enabled() and checkpoint.get('scaler'):
        run.scaler.load_state_dict(checkpoint['scaler'])
    run.iter_num, run.best_val_loss = checkpoint['iter_num'], float(checkpoint['best_val_loss'])
    run.begun_from = checkpoint.get('begun_from', (checkpoint.get('config') or {}).get('init_from'))
    run.evaluations_since_best = checkpoint.get('evaluations_since_best', 0)
    run.evaluated, run.saved = checkpoint.get('evaluated', False), checkpoint.get('saved', True)


def save_run(run, file, weights, **more):
    """Write a checkpoint into out_dir, the whole file or nothing; only the first process does.

    file: last.pt, from which a run is resumed, or ckpt.pt, which the other scripts use. weights: the model's state
    dict, without LoRA's additions. more: further entries, such as `lora`. Raises UserError if a weight is not finite.
    """
    if not run.processes.first:
        return
    if not all(tensor.isfinite().all() for tensor in [*weights.values(), *more.get('lora', {}).values()]):
        raise divergence_error(run.iter_num, 'in the weights')
    if file == 'last.pt' or not run.settings.lora_rank:  # it does not train the merged weights of LoRA
        more['optimizer'] = run.optimizer.state_dict()
    run.saved = run.saved or file == 'ckpt.pt'
    checkpoints.save_checkpoint(
        Path(run.settings.out_dir) / file,
        run.model,
        run.tokenizer,
        weights,
        scaler=run.scaler.state_dict(),
        iter_num=run.iter_num,
        best_val_loss=run.best_val_loss,
        evaluations_since_best=run.evaluations_since_best,
        evaluated=run.evaluated,
        saved=run.saved,
        config=dataclasses.asdict(run.settings),
        begun_from=run.begun_from,
        data_sha256=run.data_sha256,
        wandb_id=run.log.wandb_id,
        versions={'python': platform.python_version(), 'torch': str(torch.__version__)},
        **more,
    )
