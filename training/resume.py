"""Saving a run in training, and resuming it exactly."""

import dataclasses
import math
import platform
import sys
from pathlib import Path

import torch

from common.errors import UserError
from common.strings import show_value
from lm import checkpoint as checkpoints
from lm.weight_files import first_line
from training.log import divergence_error

# The optimizer's state fits only weights of the shapes that these settings give.
FIXED = ('n_layer', 'n_head', 'n_embd', 'block_size', 'bias', 'freeze', 'lora_rank', 'lora_alpha', 'optimizer')
DATA_ORDER = ('seed', 'batch_size', 'gradient_accumulation_steps')  # settings that decide which batch comes when


def check_resumable(settings, checkpoint, file):
    """Raise UserError if a run cannot be resumed from a checkpoint with these settings."""
    path = Path(settings.out_dir) / file
    if missing := {'optimizer', 'iter_num', 'best_val_loss'} - checkpoint.keys():
        raise UserError(
            f'{path} cannot be resumed: it has no {", ".join(sorted(missing))}; '
            f'--init_from={settings.out_dir} starts a new run from its weights'
        )
    defaults = {'freeze': None, 'lora_rank': 0, 'optimizer': 'adamw'}  # settings that nanoGPT does not have
    original = defaults | (checkpoint.get('config') or {})
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
    """Restore a run's state from its last.pt, or from the ckpt.pt of nanoGPT. Raises UserError if it is damaged."""
    try:
        _restore_run(run, checkpoint)
    except (RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise _damaged_state(run.settings, error) from error
    except ValueError as error:  # of torch or of Python
        raise (error if isinstance(error, UserError) else _damaged_state(run.settings, error)) from error


def _damaged_state(settings, reason):
    return UserError(
        f'{settings.out_dir} cannot be resumed: what its checkpoint holds besides the weights is damaged '
        f'({type(reason).__name__}: {first_line(reason)}); --init_from={settings.out_dir} --out_dir=ANOTHER starts a '
        'new run from its weights'
    )


def _restore_run(run, checkpoint):
    settings = run.settings
    if checkpoint.get('data_sha256', run.data_sha256) != run.data_sha256:
        raise UserError(
            f'data/{settings.dataset} is not the data that the run in {settings.out_dir} started with; '
            f'--init_from={settings.out_dir} --out_dir=ANOTHER starts a new run from its weights'
        )
    run.model.load_state_dict(checkpoint.get('lora', {}), strict=False)
    _load_optimizer(run.optimizer, checkpoint['optimizer'])
    if run.scaler.is_enabled() and checkpoint.get('scaler'):
        run.scaler.load_state_dict(checkpoint['scaler'])
    for name in ('iter_num', 'evaluations_since_best'):
        if type(value := checkpoint.get(name, 0)) is not int or value < 0:
            raise TypeError(f'{name} is {show_value(value)}')
    run.iter_num, run.best_val_loss = checkpoint['iter_num'], float(checkpoint['best_val_loss'])
    # In float16 the first steps may all have been skipped.
    _check_optimizer(run.optimizer, may_be_new=run.iter_num == 0 or run.scaler.is_enabled())
    run.begun_from = checkpoint.get('begun_from', (checkpoint.get('config') or {}).get('init_from'))
    run.evaluations_since_best = checkpoint.get('evaluations_since_best', 0)
    run.evaluated, run.saved = checkpoint.get('evaluated', False), checkpoint.get('saved', True)


def _load_optimizer(optimizer, state):
    """Load AdamW's state. Raises ValueError if its settings are none that train.py and nanoGPT's would train with."""
    made = [{name: value for name, value in group.items() if name != 'params'} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, made, strict=True):
        beta1, beta2 = group['betas']
        values = {name: group[name] for name in ('lr', 'eps', 'weight_decay')} | {'beta1': beta1, 'beta2': beta2}
        for name, value in values.items():
            if type(value) not in (int, float) or not 0 <= value < (1 if 'beta' in name else math.inf):
                raise ValueError(f'{name} of the optimizer is {show_value(value)}')
        for name in ('amsgrad', 'maximize'):
            if group.get(name, False) is not False:
                raise ValueError(f'{name} of the optimizer is {show_value(group[name])}')
        group.update({name: own[name] for name in own.keys() - {'lr', 'betas', 'eps', 'weight_decay'}})  # how it runs


def _check_optimizer(optimizer, may_be_new):
    """Raise ValueError unless the optimizer has a state for each parameter, of its shape; a new one has none at all."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
    if len(optimizer.state) != len(parameters) and not (may_be_new and not optimizer.state):
        raise ValueError(f'the optimizer has the state of {len(optimizer.state)} of {len(parameters)} parameters')
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            is_plain = isinstance(value, torch.Tensor) and value.layout == torch.strided and value.is_floating_point()
            if not is_plain or (value.dim() and (value.shape != parameter.shape or 0 in value.stride())):
                raise ValueError(f'{name} of the optimizer does not fit the weights')


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
        dtype=run.dtype_name,
        versions={'python': platform.python_version(), 'torch': str(torch.__version__)},
        **more,
    )
