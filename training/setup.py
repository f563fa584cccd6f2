"""Everything before the first step: the settings, making or loading the model, claiming and tidying out_dir."""

import contextlib
import math
import sys
from dataclasses import replace
from pathlib import Path

import torch

from common.errors import UserError
from common.files import PROJECT, expand_path
from common.folders import lock_folder, remove_leftovers
from common.notes import note
from lm import checkpoint as checkpoints
from lm.hub_download import DownloadError
from lm.hub_internals import find_blocks
from lm.tokenizer import GPT2Tokenizer, tokenizer_from_folder
from model import GPT, GPTConfig
from texts.token_files import dataset_folder, largest_token
from training.memory import require_training_memory
from training.pair_windows import PairWindows
from training.resume import check_resumable

AT_LEAST_1 = (
    *('gradient_accumulation_steps', 'batch_size', 'block_size', 'n_head', 'n_embd'),
    *('eval_interval', 'eval_iters', 'log_interval', 'save_interval', 'patience'),
)
AT_LEAST_0 = (
    *('n_layer', 'dropout', 'freeze', 'lora_rank', 'lora_alpha', 'max_iters', 'epochs', 'save_minutes', 'seed'),
    *('learning_rate', 'min_lr', 'weight_decay', 'grad_clip', 'beta1', 'beta2'),
)
NEW_MODEL = ('n_layer', 'n_head', 'n_embd', 'bias')  # settings of a new model only
RUN_FILES = ('last.pt', 'ckpt.pt', 'loss.png', 'metrics.jsonl')
REMOVING = '.removing'  # in out_dir, as long as an earlier run is being deleted
BELOW = {'dropout': 1, 'beta1': 1, 'beta2': 1, 'seed': 2**63, 'epochs': 1e15}


STORIES_CONFIG = 'config/finetune_stories.py'
STORIES = 'childrens_stories'  # the shipped dataset, which that file names


def choose_configs(flags):
    """Return the config files to use if the command line names none: those for the shipped stories, or none.

    flags: what was typed, key -> text. As soon as a dataset is named, or is where nanoGPT's default is, everything is
    as in nanoGPT.
    """
    if 'dataset' in flags or dataset_folder('openwebtext').exists():
        return []
    others = sorted(f'config/{path.name}' for path in (PROJECT / 'config').glob('*.py'))
    note(
        'neither a config file nor a --dataset is named, so this trains on the shipped stories with the settings of '
        f'{STORIES_CONFIG}, from gpt2 unless --init_from says otherwise; the config files are {", ".join(others)}'
    )
    return [str(PROJECT / STORIES_CONFIG)]


def expand_paths(settings):
    """Return the settings with `~` in paths replaced, and with data/NAME instead of NAME understood as the dataset."""
    names = ('out_dir', 'dataset', 'eval_file', 'init_from')
    paths = {name: getattr(settings, name) for name in names}
    expanded = {name: str(expand_path(path)) for name, path in paths.items() if path and path.startswith('~')}
    dataset = settings.dataset.rstrip('/')
    if dataset.startswith('data/') and not dataset_folder(dataset).exists():
        expanded['dataset'] = dataset.removeprefix('data/')
    return replace(settings, **expanded)


def check_training_settings(settings):
    """Raise UserError for invalid settings, before anything is read or written."""
    for minimum, names in {0: AT_LEAST_0, 1: AT_LEAST_1}.items():
        for name in names:
            value = getattr(settings, name)
            if value is not None and not value >= minimum:  # nan is not, either
                raise UserError(f'--{name}={value}: it must be at least {minimum}')
            if value == math.inf:
                raise UserError(f'--{name}={value}: it must be finite')
    for name, limit in BELOW.items():
        if (getattr(settings, name) or 0) >= limit:
            raise UserError(f'--{name}={getattr(settings, name)}: it must be below {limit}')
    if settings.optimizer not in ('adamw', 'muon'):
        raise UserError(f'--optimizer={settings.optimizer} is neither adamw nor muon')
    if settings.optimizer == 'muon' and settings.lora_rank:
        raise UserError('--optimizer=muon is for whole matrices; leave it out to train the additions of --lora_rank')
    if settings.lora_rank and settings.freeze is not None:
        raise UserError('--lora_rank already freezes all weights; leave out --freeze')


def note_learning_rate(settings, max_iters):
    """Say so if the learning rate rises where it should fall, or ends before it is as high as the settings say."""
    if not settings.decay_lr:
        return
    rate = f'--learning_rate={settings.learning_rate:g}'
    if settings.min_lr > settings.learning_rate:
        note(
            f'--min_lr={settings.min_lr:g} is above {rate}, so the learning rate rises to it; a tenth is usual: '
            f'--min_lr={settings.learning_rate / 10:g}'
        )
    if settings.warmup_iters > max_iters > 0:
        warmup = f'--warmup_iters={settings.warmup_iters}'
        note(f'{warmup}, and there are {max_iters} iterations: training ends before it reaches {rate}')


@contextlib.contextmanager
def claim_out_dir(settings, processes):
    """Keep other runs out of out_dir while the block runs. Several processes are one run: the first has the lock.

    Raises UserError if another run is writing there, or if an earlier one is there that may not be deleted.
    """
    error, out_dir = None, Path(settings.out_dir)
    with contextlib.ExitStack() as stack:
        if processes.first and not settings.eval_only:
            try:
                stack.enter_context(lock_folder(out_dir, 'choose another --out_dir'))
                finish_removing(out_dir)
                check_earlier_run(settings)
                remove_leftovers(out_dir, *RUN_FILES)
            except UserError as raised:
                error = raised
        error = processes.broadcast(error)
        if error is not None and not processes.first:
            sys.exit(2)  # the first process reports it
        if error is not None:
            raise error
        yield


def check_earlier_run(settings):
    """Raise UserError if out_dir holds an earlier run that is neither to be resumed nor to be deleted."""
    existing = [name for name in ('last.pt', 'ckpt.pt') if (Path(settings.out_dir) / name).exists()]
    if existing and settings.init_from != 'resume' and not settings.overwrite:
        raise UserError(
            f'{settings.out_dir} holds {" and ".join(existing)} of an earlier run: resume that run '
            '(--init_from=resume), choose another --out_dir, or delete it (--overwrite=True)'
        )


def prepare_model(settings, device):
    """Make or load the model; return (model, tokenizer, checkpoint), the last None unless a run is being resumed."""
    if settings.init_from == 'scratch':
        return (*_new_model(settings, device), None)
    # Evaluate the weights that the other scripts use, but resume from the latest ones.
    files = ('ckpt.pt', 'last.pt') if settings.eval_only else ('last.pt', 'ckpt.pt')
    file = next((name for name in files if (Path(settings.out_dir) / name).exists()), 'ckpt.pt')
    try:
        loaded = checkpoints.load_model(settings.init_from, settings.out_dir, str(device), file=file)
    except DownloadError as error:
        if settings.dataset != STORIES:
            raise
        raise UserError(
            f'{settings.init_from} is not on this machine and could not be downloaded '
            f'({type(error.__cause__).__name__}); begin from a shipped model instead: {_story_commands(settings)}'
        ) from error
    model, tokenizer, checkpoint = loaded
    if settings.optimizer == 'muon' and not isinstance(model, GPT):
        kind = f'{settings.init_from} is of type {model.config.model_type!r}'
        raise UserError(f'--optimizer=muon is for models of the GPT-2 architecture; {kind}: leave it out')
    _check_same_tokenizer(settings, tokenizer, checkpoint)
    if settings.init_from == 'resume':
        if not settings.eval_only:
            check_resumable(settings, checkpoint, file)
    else:
        checkpoint = None
        note_own_shape(settings, model)
    if settings.block_size < model.block_size and (checkpoint is None or not isinstance(model, GPT)):
        model.crop_block_size(settings.block_size)
    set_dropout(model, settings.dropout)
    require_training_memory(settings, device, model.config.vocab_size, model)
    return model.train(), tokenizer, checkpoint


def note_own_shape(settings, model):
    """Name the settings of a new model that were given, and that a loaded model overrules by its own shape."""
    given = [name for name in (*NEW_MODEL, 'block_size') if getattr(settings, name) != getattr(type(settings), name)]
    for name in given:
        value = getattr(settings, name)
        if name == 'block_size' and value > model.block_size:
            note(f'--block_size={value}: {settings.init_from} reads at most {model.block_size} tokens, so it is that')
        elif name != 'block_size' and value != getattr(model.config, name, None):
            note(f'--{name}={value} has no effect: {settings.init_from} has its own shape')


def set_dropout(model, probability):
    """Set all dropout of a model; say what that is in a model of another architecture than GPT-2."""
    changed = False
    for module in model.modules():
        names = ['p'] if isinstance(module, torch.nn.Dropout) else [name for name in vars(module) if _is_dropout(name)]
        for name in names:
            if type(getattr(module, name)) in (int, float):
                setattr(module, name, probability)
                changed = True
    if isinstance(model, GPT):
        model.config.dropout = probability
        return
    numbers = {name: value for name, value in model.config.to_dict().items() if type(value) in (int, float)}
    found = list(filter(_is_dropout, numbers))
    for name in found:
        setattr(model.config, name, probability)
    kind = f'models of type {model.config.model_type!r}'
    if probability and changed:
        note(f'--dropout={probability} is what {kind} call {", ".join(found)}')
    elif probability:
        note(f'--dropout={probability} has no effect: {kind} have no dropout')


def _is_dropout(name):
    """Return whether this is a name for the share of numbers that dropout drops."""
    return 'drop' in name and not name.startswith(('layer', 'classifier', 'summary'))


def _story_commands(settings, name='tiny'):
    """Return the commands that fine-tune a model with a tokenizer of its own on the shipped stories."""
    text = dataset_folder(STORIES) / f'{STORIES}.txt'
    device = f' --device={settings.device}' if settings.device else ''
    return (
        f'python prepare_bin.py --input={text} --dataset=my_stories --tokenizer={name}, then python train.py '
        f'config/finetune_own_text.py --init_from={name} --dataset=my_stories --out_dir={settings.out_dir}{device}'
    )


def _new_model(settings, device):
    """Return a GPT with random weights, and the tokenizer of the dataset."""
    tokenizer = tokenizer_from_folder(dataset_folder(settings.dataset))
    # A dataset that names no tokenizer has GPT-2's tokens, as in nanoGPT, which pads their number for speed.
    vocab_size = 50304 if tokenizer is None else tokenizer.vocab_size
    tokenizer = tokenizer or GPT2Tokenizer()
    require_training_memory(settings, device, vocab_size)
    shape = {name: getattr(settings, name) for name in (*NEW_MODEL, 'block_size', 'dropout')}
    try:
        model = GPT(GPTConfig(vocab_size=vocab_size, **shape), n_ids=tokenizer.vocab_size)
    except ValueError as error:
        raise UserError(str(error)) from error
    return model.to(device).train(), tokenizer


def _check_same_tokenizer(settings, tokenizer, checkpoint):
    """Raise UserError if the dataset was made with another tokenizer than the model's; either may be unknown (None)."""
    of_data = tokenizer_from_folder(dataset_folder(settings.dataset))
    name = settings.out_dir if settings.init_from == 'resume' else settings.init_from
    if of_data is None and tokenizer is not None and tokenizer.fingerprint != GPT2Tokenizer.fingerprint:
        unknown = f'data/{settings.dataset} does not say with which tokenizer it was made'
        note(f'{unknown}; its tokens are taken for those of {name}')
    if of_data is None or tokenizer is None or of_data.fingerprint == tokenizer.fingerprint:
        return
    name = 'gpt2' if tokenizer.fingerprint == GPT2Tokenizer.fingerprint else name
    if settings.dataset == STORIES and settings.init_from != 'resume':
        commands = _story_commands(settings, name)
    else:
        commands = f'python prepare_bin.py --input=... --dataset=ANOTHER_NAME --tokenizer={name}'
    begun_with = (checkpoint.get('config') or {}).get('dataset') if settings.init_from == 'resume' else None
    other = f'resume with --dataset={begun_with}, as the run began, or ' if begun_with else ''
    raise UserError(
        f'data/{settings.dataset} was made with another tokenizer than the one of {settings.init_from}; {other}make it '
        f'again with: {commands}'
    )


def check_tokens(data, blocks, model, settings):
    """Raise UserError if token files are too short for a block or hold ids that the model does not have.

    blocks: of each split its TextBlocks or PairWindows; pairs may be shorter, but there must be some.
    """
    for split, tokens in data.items():
        path = dataset_folder(settings.dataset) / f'{split}.bin'
        may_be_empty = settings.eval_only and len(tokens) == 0
        if isinstance(blocks[split], PairWindows):
            check_pairs(blocks[split], path, model.block_size, may_be_empty)
        elif len(tokens) <= model.block_size and not may_be_empty:
            raise UserError(
                f'{path} has {len(tokens)} tokens, too few for block_size={model.block_size}; '
                f'{_more_tokens(data, split, model.block_size)}'
            )
        if (largest := largest_token(tokens)) >= model.n_ids:
            raise UserError(f'{path} has token id {largest}, but the model has only {model.n_ids} ids')


def check_pairs(windows, path, block_size, may_be_empty):
    """Raise UserError if a file of pairs has no response; say so if pairs are cut, since they are too long."""
    if not len(windows) and not may_be_empty:
        raise UserError(f'{path} has no response to learn; prepare more pairs, or with another --val_fraction')
    if windows.cut_pairs:
        note(
            f'{path}: pairs of more than block_size={block_size} tokens ({windows.cut_pairs:,}) are cut, so that parts '
            'of responses are read without the beginning of their prompts; a larger --block_size avoids that'
        )


def _more_tokens(data, split, block_size):
    """Return what to do about a split that is too short for a block."""
    n, total = len(data[split]), sum(len(tokens) for tokens in data.values())
    lower = f'use --block_size={n - 1} or less, or ' if n > 1 else ''
    if total <= 2 * block_size + 1:  # too few for both, however they are divided
        return f'{lower}prepare more text'
    # The training part is what the other parts leave.
    return f'{lower}prepare more text, or a {"smaller" if split == "train" else "larger"} --val_fraction'


def freeze_layers(model, blocks):
    """Freeze the embeddings and this many of the lowest blocks; None freezes nothing."""
    if blocks is None:
        return
    present = find_blocks(model)
    if blocks > len(present):
        raise UserError(f'--freeze={blocks}: the model has only {len(present)} blocks')
    embeddings = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    for part in (*embeddings, *present[:blocks]):
        part.requires_grad_(False)


def remove_earlier_run(out_dir):
    """Delete what an earlier run wrote into out_dir, so that it is not mistaken for this run's."""
    (Path(out_dir) / REMOVING).touch()
    finish_removing(out_dir)


def finish_removing(out_dir):
    """Delete the rest of an earlier run, if a process was killed while it deleted it; the caller holds the lock.

    What is left of it could otherwise be resumed with the settings of the run that was to replace it.
    """
    if (Path(out_dir) / REMOVING).exists():
        for name in (*RUN_FILES, REMOVING):
            (Path(out_dir) / name).unlink(missing_ok=True)
