"""Loading and saving models, on disk and from the Hugging Face hub.

There are two formats. A checkpoint is nanoGPT's out_dir/ckpt.pt, plus what nanoGPT leaves out: the tokenizer and the
kind of GELU; of other models than GPT-2, their config.json instead of nanoGPT's model_args. A model folder is a Hugging
Face folder: config.json, model.safetensors, tokenizer files. Those of GPT-2 are read directly, without a slow import.
Nothing that a file contains is executed.
"""

import dataclasses
import hashlib
import json
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

from common.errors import UserError
from common.files import atomic_write, expand_path, is_there, resolve_path
from common.folders import finish_replacing, lock_folder, replace_together
from common.notes import note
from common.strings import shorten, show_control_characters, show_value
from lm.adapter import adapted_model, merge_adapter
from lm.file_pages import page_out_read
from lm.gpt2_files import (
    OtherArchitecture,
    check_config,
    make_hub_config,
    make_hub_state,
    read_hub_config,
    read_hub_state,
)
from lm.hardware import pick_device, pick_dtype
from lm.locate import locate_model
from lm.roles import give_roles
from lm.tokenizer import GPT2_SIZES, GPT2Tokenizer, note_changes, tokenizer_from_contents, tokenizer_from_folder
from lm.tokenizer_names import tokenizer_of_model
from lm.weight_files import check_weights, first_line, load_torch_file
from model import GPT, GPTConfig

# The files that a model folder may contain; those of an older model go when a new one is written.
WEIGHT_FILES = ('model.safetensors', 'pytorch_model.bin', 'model.safetensors.index.json', 'config.json')
MODEL_FILES = (
    *('README.md', 'tokenizer.json', 'tokenizer_config.json', 'characters.json', 'vocab.json', 'merges.txt'),
    *('special_tokens_map.json', 'generation_config.json', 'added_tokens.json', 'chat_template.jinja'),
    *WEIGHT_FILES,  # config.json last: without it, no program takes the folder for a model
)
PADDED_TO = 128  # training programs pad the number of ids to a multiple of this, or of 64, for speed


def load_model(init_from, out_dir='out', device=None, dtype=None, file='ckpt.pt', to_pack=False):
    """Return (model, tokenizer, checkpoint) of the model that init_from names, in eval mode but still trainable.

    init_from: 'resume' for `file` in out_dir; 'tiny' or 'tiny-stories', shipped in models/; a model folder, a folder
    with a ckpt.pt or a LoRA adapter, a .pt file; else a name on the Hugging Face hub, such as 'gpt2'.
    device: 'cpu', 'cuda', ...; None for the best available. dtype: 'float32' (None), 'bfloat16' or 'float16'.
    to_pack: leave matrices as they are in the file, in any layout, for `fast.pack` to store in another way.
    The tokenizer is None if there is none and the vocabulary is not GPT-2's; the checkpoint is None for a model folder.
    Raises UserError if something is missing, damaged or not a causal language model.
    """
    device, dtype = pick_device(device), pick_dtype(dtype)
    if init_from == 'scratch':
        raise UserError('--init_from=scratch means an untrained model; only train.py can use it')
    path = expand_path(out_dir) / file if init_from == 'resume' else locate_model(init_from)
    is_folder = init_from != 'resume' and path.is_dir()
    if is_folder and is_there(path / 'ckpt.pt'):
        path, is_folder = path / 'ckpt.pt', False
    if is_folder:
        model, tokenizer, checkpoint = *_load_folder(path, to_pack), None
    else:
        model, tokenizer, checkpoint = _load_checkpoint(path)
    if tokenizer is None and model.config.vocab_size in GPT2_SIZES:
        tokenizer = give_roles(GPT2Tokenizer(), path if is_folder else path.parent)
    if tokenizer is not None:
        _fit_vocabularies(model, tokenizer, path, is_folder)
    model.is_as_in_file = to_pack and isinstance(model, GPT) and is_folder and adapted_model(path) is None
    return model.to(device=device, dtype=dtype).eval(), tokenizer, checkpoint


def _load_folder(folder, to_pack):
    """Return (model, tokenizer) of a model folder, or of a folder with a LoRA adapter."""
    finish_replacing(folder, MODEL_FILES)
    before = _signature(folder)
    try:
        model, tokenizer = load_pretrained(folder, to_pack=to_pack), tokenizer_of_model(folder)
    except OtherArchitecture:
        from lm.hub_model import load_hub_model  # here, since transformers is slow to import

        base = adapted_model(folder)
        model = load_hub_model(folder if base is None else locate_model(base))
        if base is not None:
            merge_adapter(model, folder)
        tokenizer = tokenizer_of_model(folder)
    if _signature(folder) != before:
        raise UserError(f'{folder} was written while it was being read: try again')
    return model, tokenizer


def _signature(folder):
    """Return what changes whenever a file of a model folder is written."""
    paths = [folder / name for name in MODEL_FILES]
    stats = [(path.name, path.stat()) for path in paths if path.exists()]
    return [(name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _fit_vocabularies(model, tokenizer, path, is_folder):
    """Mask ids that the tokenizer lacks, refuse texts with tokens that the model lacks, and say so."""
    in_model, in_tokenizer = model.config.vocab_size, tokenizer.vocab_size
    model.n_ids = min(in_model, in_tokenizer)
    if in_model > in_tokenizer and (is_folder or in_model - in_tokenizer >= PADDED_TO):
        note(
            f'{path}: the model has {in_model} ids and its tokenizer {in_tokenizer}; the other '
            f'{in_model - in_tokenizer} are masked, as padding: they have probability 0'
        )
    elif in_model < in_tokenizer:
        may_differ = is_folder or not isinstance(model, GPT)  # as the folder that the model came from
        if not may_differ and not all(tokenizer.is_added(id) for id in range(in_model, in_tokenizer)):
            raise UserError(
                f'the tokenizer of {path} has {in_tokenizer} tokens but its model only {in_model}: they do not belong '
                'together'
            )
        tokenizer.limit = in_model
        note(
            f'{path}: the tokenizer has {in_tokenizer} tokens and its model only {in_model} ids; a text with one of '
            'the others cannot be scored. Make sure that the two belong together'
        )


def require_tokenizer(tokenizer, init_from):
    """Return the tokenizer; raise UserError if the model called init_from has none."""
    if tokenizer is None:
        raise UserError(
            f'{init_from} has no tokenizer; copy the tokenizer.json that it was trained with into its folder'
        )
    return tokenizer


# Model folders ------------------------------------------------------------------------------------------------------


def load_pretrained(name_or_folder, dropout=0.0, to_pack=False):
    """Return the GPT in a Hugging Face folder or on the hub, in float32 on the CPU. to_pack: see `load_model`."""
    folder = locate_model(name_or_folder)
    if (base := adapted_model(folder)) is not None:
        if adapted_model(locate_model(base)) is not None:
            raise UserError(f'{folder} is an adapter of {base}, which is an adapter, too; merge that one first')
        note(f'{folder} is a LoRA adapter: it is merged into {base}')
        return merge_adapter(load_pretrained(base, dropout), folder)
    config, gelu = read_hub_config(folder / 'config.json', dropout)
    state = read_hub_state(folder)
    return _build(config, gelu, state, folder, to_pack)


def save_pretrained(model, folder, tokenizer=None, dtype=torch.float32):
    """Write a model as a folder that both `transformers` and `load_model` can read.

    Of a GPT, padding ids, which the tokenizer lacks, are left out, so that a program that does not mask them computes
    the same probabilities; one without biases is saved with biases of zero, which is the same model.
    """
    folder = expand_path(folder)
    names = [name for name in MODEL_FILES if tokenizer is not None or name in WEIGHT_FILES]
    with lock_folder(folder, 'choose another folder'), replace_together(folder, names) as new:
        write_model_files(model, new, tokenizer, dtype)


def write_model_files(model, folder, tokenizer, dtype):
    """Write the files of a model into a new folder; see `save_pretrained`."""
    if isinstance(model, GPT):
        state, config = make_hub_state(model, dtype), make_hub_config(model, tokenizer, dtype)
    else:
        from lm.hub_model import folder_config, folder_state  # here, since transformers is slow to import

        state, config = folder_state(model, dtype), folder_config(model, dtype)
        if model.generation_config is not None:
            (folder / 'generation_config.json').write_text(model.generation_config, encoding='utf-8')
    with _report_write_errors(folder / 'model.safetensors') as path:
        save_file(state, path, metadata={'format': 'pt'})
    with atomic_write(folder / 'config.json') as path:
        path.write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')
    if tokenizer is not None:
        tokenizer.save(folder)


def weights_sha256(model):
    """Return the SHA-256 of a model's weights as they are in memory: the name and bytes of each, in order."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if name != 'lm_head.weight':  # the same matrix as wte
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


# Checkpoints --------------------------------------------------------------------------------------------------------


def save_checkpoint(path, model, tokenizer, state=None, **rest):
    """Write a checkpoint; that of a GPT can be read by nanoGPT, too.

    state: the weights; None for the model's. rest: `optimizer`, `iter_num`, `best_val_loss`, `config` and others.
    """
    state = model.state_dict() if state is None else state
    if isinstance(model, GPT):
        described = {'model_args': dataclasses.asdict(model.config), 'gelu': model.gelu}
    else:
        described = model.contents
        names = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
        state = {name: tensor for name, tensor in state.items() if name in names}  # tied weights once
    checkpoint = {
        'model': state,
        **described,
        'tokenizer': None if tokenizer is None else tokenizer.contents,
        **rest,
    }
    # Through a file of Python's, whose error is the disk's; torch's own says "unexpected pos".
    with _report_write_errors(path) as temporary, open(temporary, 'wb') as file:
        torch.save(checkpoint, file)


@contextmanager
def _report_write_errors(path):
    """Write a file atomically; turn the errors of torch and safetensors, for a full disk say, into a UserError."""
    try:
        with atomic_write(path) as temporary:
            yield temporary
    except (RuntimeError, SafetensorError) as error:
        cause = error.__context__
        reason = cause.strerror if isinstance(cause, OSError) else str(error).splitlines()[0]
        raise UserError(f'cannot write {path}: {reason}; nothing was overwritten') from error


def _load_checkpoint(path):
    """Return (model, tokenizer, checkpoint) of a ckpt.pt, ours or nanoGPT's."""
    if not is_there(path):
        if path.parent.is_file():
            raise UserError(f'cannot read {path}: {path.parent} is a file, not a folder')
        raise UserError(
            f'there is no checkpoint {path}; train.py writes one, --out_dir sets the folder, '
            'and --init_from=tiny-stories uses the shipped model'
        )
    checkpoint = load_torch_file(path)
    try:
        if not isinstance(checkpoint, dict):
            raise TypeError(f'it contains a {type(checkpoint).__name__}')
        settings = checkpoint.get('config') or {}  # of the run
        if not isinstance(settings, dict):
            raise TypeError(f'its config is a {type(settings).__name__}')
        if 'hub_config' in checkpoint:
            from lm.hub_model import restore_hub_model  # here, since transformers is slow to import

            state = check_weights(checkpoint['model'], path)
            return restore_hub_model(checkpoint, state, path), _tokenizer_of_checkpoint(checkpoint, path), checkpoint
        if 'model_args' not in checkpoint and 'n_layer' in settings:
            note(f'{path} is read as a checkpoint of build-nanogpt, whose GELU is the tanh approximation')
            checkpoint = {'gelu': 'tanh', **checkpoint, 'model_args': settings}
        state, config = check_weights(checkpoint['model'], path), GPTConfig(**checkpoint['model_args'])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not a checkpoint of this project's or nanoGPT's train.py: {error}") from error
    check_config(config, path)
    gelu = checkpoint.get('gelu', 'none')  # nanoGPT does not store it; it has only the exact one
    if gelu not in ['tanh', 'none']:  # a list, since a damaged file may hold anything
        raise UserError(f'{path}: gelu={show_value(gelu)} is neither tanh nor none')
    prefix = '_orig_mod.'  # added by torch.compile
    state = {name.removeprefix(prefix): tensor for name, tensor in state.items() if not name.endswith('.attn.bias')}
    state.pop('lm_head.weight', None)  # the same matrix as transformer.wte.weight
    model = _build(config, gelu, state, path)
    return model, _tokenizer_of_checkpoint(checkpoint, path), checkpoint


def _tokenizer_of_checkpoint(checkpoint, path):
    """Return the tokenizer in a checkpoint, else the one beside it or that of its dataset; None if there is none."""
    if checkpoint.get('tokenizer') is not None:
        try:
            return note_changes(tokenizer_from_contents(checkpoint['tokenizer']), path)
        except UserError as error:
            raise UserError(f'cannot read the tokenizer in {path}: {error}') from error
    tokenizer = tokenizer_from_folder(path.parent)
    dataset = (checkpoint.get('config') or {}).get('dataset')  # whose folder holds nanoGPT's characters
    if tokenizer is None and isinstance(dataset, str) and dataset:
        tokenizer = tokenizer_from_folder(resolve_path(Path('data') / dataset))
    return tokenizer


class _NoInit(TorchFunctionMode):
    """Makes the functions of torch.nn.init do nothing."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, '__module__', None) == 'torch.nn.init':
            return kwargs['tensor'] if 'tensor' in kwargs else args[0]
        return func(*args, **kwargs)


def _build(config, gelu, state, where, to_pack=False):
    """Return a GPT with these weights. Raises UserError, naming `where` they are from, if they do not fit its shape.

    The config has passed `check_config` and the weights `check_weights`: what follows takes no more time and memory
    than the weights themselves.
    """
    if config.n_layer > len(state):
        raise UserError(f'{where}: its config means {config.n_layer:,} layers, but it has only {len(state):,} weights')
    embeddings, shape = state.get('transformer.wte.weight'), (config.vocab_size, config.n_embd)
    if embeddings is not None and embeddings.shape != shape:  # first, since other sizes may overflow
        found = tuple(embeddings.shape)
        raise UserError(f'{where}: transformer.wte.weight is {found}, but its config means {shape}')
    try:
        # Shapes only, without memory. Initial weights would be thrown away, and to draw them on `meta` torch would
        # import its compiler, which takes a second.
        with torch.device('meta'), _NoInit():
            model = GPT(config, gelu)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f'{where}: {first_line(error)}') from error
    expected = {name: tensor.shape for name, tensor in model.state_dict().items() if name != 'lm_head.weight'}
    for problem, names in (('lacks', expected.keys() - state.keys()), ('has unknown', state.keys() - expected.keys())):
        if names:
            shown = ', '.join(shorten(show_control_characters(name), 80) for name in sorted(names)[:3])
            raise UserError(f'{where} {problem} weights: {shown} ({len(names)} in all)')
    for name, shape in expected.items():
        if state[name].shape != shape:
            raise UserError(f'{where}: {name} is {tuple(state[name].shape)}, but its config means {tuple(shape)}')
        state[name] = state[name].float() if to_pack else state[name].float().contiguous()
    for name, tensor in page_out_read(state) if to_pack else state.items():
        if tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():  # min and max pass nan on
            raise UserError(f'{where}: {name} is not finite; the file is damaged, or the training diverged')
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    return model
