"""What a training run starts from: the model with its tokenizer, and what must be right before the first step."""

import math
import sys
from pathlib import Path

import torch

from common.errors import UserError
from lm import checkpoint as checkpoints
from lm.tokenizer import GPT2Tokenizer, tokenizer_from_folder
from model import GPT, GPTConfig
from texts.token_files import dataset_folder, largest_token

# What a run cannot change when it is taken up again: the optimizer's numbers belong to weights of these shapes.
FIXED = ('n_layer', 'n_head', 'n_embd', 'block_size', 'bias', 'freeze', 'lora_rank', 'lora_alpha')
ORDER = ('seed', 'batch_size', 'gradient_accumulation_steps')  # what the order of the data depends on besides

AT_LEAST_1 = (
    *('gradient_accumulation_steps', 'batch_size', 'block_size', 'n_head', 'n_embd'),
    *('eval_interval', 'eval_iters', 'log_interval', 'save_interval', 'patience'),
)
AT_LEAST_0 = (
    *('n_layer', 'dropout', 'freeze', 'lora_rank', 'lora_alpha', 'max_iters', 'epochs', 'save_minutes', 'seed'),
    *('learning_rate', 'min_lr', 'weight_decay', 'grad_clip', 'beta1', 'beta2'),
)


def check_training_settings(settings):
    """Raise UserError for values that cannot be meant, before anything is read or written."""
    for at_least, names in {0: AT_LEAST_0, 1: AT_LEAST_1}.items():
        for name in names:
            value = getattr(settings, name)
            if value is not None and not at_least <= value < math.inf:
                raise UserError(f'--{name}={value}: it is at least {at_least}')
    for name, below in {'dropout': 1, 'beta1': 1, 'beta2': 1, 'seed': 2**63}.items():
        if getattr(settings, name) >= below:
            raise UserError(f'--{name}={getattr(settings, name)}: it is below {below}')
    if settings.lora_rank and settings.freeze is not None:
        raise UserError('--lora_rank freezes all weights already; leave --freeze out')
    there = [name for name in ('last.pt', 'ckpt.pt') if (Path(settings.out_dir) / name).exists()]
    if there and settings.init_from != 'resume' and not (settings.overwrite or settings.eval_only):
        raise UserError(
            f'{settings.out_dir} holds {" and ".join(there)} of another run: go on with it (--init_from=resume), '
            'choose another --out_dir, or replace it (--overwrite=True)'
        )


def make_model(settings, device):
    """Return (model, tokenizer, checkpoint) for the settings; the checkpoint is None unless a run is resumed."""
    if settings.init_from == 'scratch':
        return (*_new_model(settings, device), None)
    # A measurement is of what the other scripts use; training goes on from what was trained last.
    files = ('ckpt.pt', 'last.pt') if settings.eval_only else ('last.pt', 'ckpt.pt')
    file = next((name for name in files if (Path(settings.out_dir) / name).exists()), 'ckpt.pt')
    model, tokenizer, checkpoint = checkpoints.load_model(settings.init_from, settings.out_dir, str(device), file=file)
    of_data = tokenizer_from_folder(dataset_folder(settings.dataset))
    if of_data is not None and tokenizer is not None and of_data.fingerprint != tokenizer.fingerprint:
        name = settings.out_dir if settings.init_from == 'resume' else settings.init_from
        name = 'gpt2' if tokenizer.fingerprint == GPT2Tokenizer.fingerprint else name
        raise UserError(
            f'the tokens of data/{settings.dataset} were made with another tokenizer than {settings.init_from} has; '
            f'make new ones: python prepare_bin.py --input=... --dataset=ANOTHER_NAME --tokenizer={name}'
        )
    if settings.init_from == 'resume':
        if not settings.eval_only:
            _check_resumable(settings, checkpoint, file)
    else:
        checkpoint = None
        if settings.block_size < model.config.block_size:
            model.crop_block_size(settings.block_size)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = settings.dropout
    model.config.dropout = settings.dropout
    return model.train(), tokenizer, checkpoint


def _new_model(settings, device):
    """Return a model that knows nothing yet, and the tokenizer of its data."""
    tokenizer = tokenizer_from_folder(dataset_folder(settings.dataset))
    # Without a word about it, tokens are GPT-2's, as in nanoGPT, which pads their number for speed.
    vocab_size = 50304 if tokenizer is None else tokenizer.vocab_size
    tokenizer = tokenizer or GPT2Tokenizer()
    shape = {name: getattr(settings, name) for name in ('n_layer', 'n_head', 'n_embd', 'block_size', 'dropout', 'bias')}
    try:
        model = GPT(GPTConfig(vocab_size=vocab_size, **shape), n_ids=tokenizer.vocab_size)
    except ValueError as error:
        raise UserError(str(error)) from error
    return model.to(device).train(), tokenizer


def _check_resumable(settings, checkpoint, file):
    """Raise UserError where a checkpoint is not one that this run can go on from."""
    path = Path(settings.out_dir) / file
    if missing := {'optimizer', 'iter_num', 'best_val_loss'} - checkpoint.keys():
        raise UserError(
            f'{path} has no {", ".join(sorted(missing))} to resume with; '
            f'--init_from={settings.out_dir} starts a new run from its weights'
        )
    begun_with = {'freeze': None, 'lora_rank': 0} | (checkpoint.get('config') or {})  # nanoGPT has neither
    for name in ORDER:
        if name in begun_with and begun_with[name] != getattr(settings, name):
            print(
                f'note: the run was begun with {name}={begun_with[name]}, now it is {getattr(settings, name)}: it goes '
                'on with other batches than it would have',
                file=sys.stderr,
            )
    for name in FIXED:
        if name in begun_with and begun_with[name] != getattr(settings, name):
            raise UserError(
                f'{path} was begun with {name}={begun_with[name]}, and the settings say {getattr(settings, name)}; '
                'resume with the config file and the settings that it was begun with'
            )


def check_tokens(data, model, settings):
    """Raise UserError for token files that are too short, or hold ids that the model does not have."""
    block_size = model.config.block_size
    for split, tokens in data.items():
        if len(tokens) <= block_size and not (settings.eval_only and len(tokens) == 0):
            raise UserError(
                f'data/{settings.dataset}/{split}.bin has {len(tokens)} tokens, too few for block_size={block_size}; '
                'a smaller --block_size helps, or a larger --val_fraction in prepare_bin.py'
            )
        if (largest := largest_token(tokens)) >= model.n_ids:
            raise UserError(
                f'data/{settings.dataset}/{split}.bin has token {largest}, and the model knows only {model.n_ids}'
            )


def freeze_layers(model, blocks):
    """Leave the embeddings and the lowest so many blocks as they are; None freezes nothing."""
    if blocks is None:
        return
    if blocks > model.config.n_layer:
        raise UserError(f'--freeze={blocks}: the model has {model.config.n_layer} blocks')
    for part in (model.transformer.wte, model.transformer.wpe, *model.transformer.h[:blocks]):
        part.requires_grad_(False)


def remove_earlier_run(out_dir):
    """Take away what an earlier run left in out_dir, so that it is not taken for this one's."""
    for name in ('last.pt', 'ckpt.pt', 'loss.png'):
        (Path(out_dir) / name).unlink(missing_ok=True)


def remove_partial_files(out_dir):
    """Take away checkpoints that were being written when a run was killed."""
    for name in ('last.pt', 'ckpt.pt'):
        for path in Path(out_dir).glob(f'.{name}.*'):
            path.unlink(missing_ok=True)
