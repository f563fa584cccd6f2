"""Files of weights: safetensors, in one file or in several, and what torch.save wrote, of which nothing is executed."""

import pickle
import re
import warnings
import zipfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from common.errors import UserError, reraise_if_of_system
from common.files import check_regular, is_there
from common.json_files import read_json_object
from common.strings import show_value


class _Settings:
    """What a dataclass of settings in a file becomes: only its values are read, not its class."""


UNUSUAL_TENSORS = {  # what a tensor in a file may be besides floats in rows and columns
    'a tensor without numbers (of the device meta)': lambda tensor: tensor.is_meta,
    'nested': lambda tensor: tensor.is_nested,
    'quantized': lambda tensor: tensor.is_quantized,
    'sparse': lambda tensor: tensor.layout != torch.strided,
    'of packed four-bit numbers': lambda tensor: tensor.dtype == torch.float4_e2m1fn_x2,
}

# GPTConfig of build-nanogpt's train_gpt2.py and of nanoGPT's model.py, whose checkpoints may hold it whole.
PLAIN_CLASSES = [(_Settings, f'{module}.GPTConfig') for module in ('__main__', 'train_gpt2', 'model', 'gpt')]


def read_weights(folder):
    """Return {name: tensor} of the weights in a folder; all are floats."""
    files = find_weight_files(folder)
    if not files:
        raise UserError(f'{folder} has no weights: neither model.safetensors nor pytorch_model.bin')
    if files == ['pytorch_model.bin']:
        return check_weights(load_torch_file(folder / 'pytorch_model.bin'), folder / 'pytorch_model.bin')
    return {name: tensor for file in files for name, tensor in read_safetensors(folder / file).items()}


def find_weight_files(folder):
    """Return the names of the files that hold a folder's weights: model.safetensors, its shards, or an old .bin."""
    if is_there(folder / 'model.safetensors'):
        return ['model.safetensors']
    if is_there(folder / 'model.safetensors.index.json'):
        return _read_shard_names(folder / 'model.safetensors.index.json')
    return ['pytorch_model.bin'] if is_there(folder / 'pytorch_model.bin') else []


def _read_shard_names(path):
    """Return the names of the files in the folder of an index that it names, each once."""
    shards = read_json_object(path).get('weight_map')
    if not isinstance(shards, dict) or not shards:
        raise UserError(f'{path} is damaged: its weight_map does not say which file each weight is in')
    for weight, name in shards.items():
        if not isinstance(name, str) or name in ('', '.', '..') or re.search(r'[/\\\0]', name):
            raise UserError(
                f'{path} is refused: it says that {show_value(weight)} is in {show_value(name)}, which is not '
                'the name of a file beside it'
            )
    return sorted(set(shards.values()))


def read_safetensors(path):
    """Return {name: tensor} of a safetensors file; all are floats."""
    check_regular(path)
    try:
        return check_weights(load_file(path), path)
    except UserError:
        raise
    except Exception as error:  # of safetensors and of torch, for a kind of number that it does not have
        reraise_if_of_system(error, path)
        raise UserError(f'{path} is damaged or not a safetensors file: {first_line(error)}') from error


def read_weight_shapes(folder):
    """Return {name: shape} of the weights in a folder's safetensors, without reading the weights.

    Raises UserError if there are none, or if some are no floats.
    """
    files = find_weight_files(folder)
    if not files or files == ['pytorch_model.bin']:
        raise UserError(
            f'{folder} has no safetensors, the only form of weights that is read of models like this; load it with '
            'transformers and save it again: save_pretrained writes them'
        )
    shapes = {}
    for file in files:
        check_regular(folder / file)
        try:
            with safe_open(folder / file, 'pt') as weights:
                parts = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118 (it is no dict)
                others = [name for name, part in parts.items() if not part.get_dtype().startswith(('F', 'BF'))]
                shapes |= {name: tuple(part.get_shape()) for name, part in parts.items()}
        except (OSError, SafetensorError) as error:
            raise UserError(f'{folder / file} is damaged or not a safetensors file: {first_line(error)}') from error
        if others:
            raise UserError(
                f'{folder / file}: {others[0]} is of another type than float; quantised models are not read'
            )
    return shapes


def check_weights(weights, where):
    """Return {name: tensor} if all are plain tensors of floats; raise UserError, naming the first that is not.

    A file may also say that a tensor is larger than what is stored: all its elements one number, or many tensors on
    the same bytes. Only the output layer and the embeddings of GPT-2 are stored once for both.
    """
    if not isinstance(weights, dict):
        raise UserError(f'{where} is not a file of weights: it contains a {type(weights).__name__}')
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise UserError(f'{where}: {show_value(name)} is not a tensor but a {type(tensor).__name__}')
        kind = next((kind for kind, is_it in UNUSUAL_TENSORS.items() if is_it(tensor)), None)
        if kind is None and not tensor.is_floating_point():
            kind = f'of {str(tensor.dtype).removeprefix("torch.")}'
        if kind is not None:
            raise UserError(
                f'{where}: {name} is {kind}, but weights must be plain floats; convert them in the program that made '
                'them, for example model.float()'
            )
    counted = [tensor for name, tensor in weights.items() if 'lm_head.weight' not in name]
    stored = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in counted}
    used = sum(tensor.numel() * tensor.itemsize for tensor in counted)
    if used > sum(stored.values()):
        raise UserError(
            f'{where} is refused: its weights take {used:,} bytes, but it stores only {sum(stored.values()):,}, so '
            'some of them are the same numbers; it is damaged, or made to fill the memory'
        )
    return weights


def first_line(error):
    """Return the first line of an error's message, or its class if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def load_torch_file(path):
    """Read a file of torch.save: tensors and plain types only; the settings of build-nanogpt are read as a dict."""
    _refuse_compressed(path, check_regular(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about pickle protocols that torch.save does not write
            with torch.serialization.safe_globals(PLAIN_CLASSES):
                loaded = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own message says how to execute the contents
        found = re.search(r'Unsupported global: GLOBAL ([\w.]+)', str(error))
        what = f' ({found[1]})' if found else ''
        raise UserError(
            f'{path} is refused: it is damaged, or it contains more than tensors and plain data{what}, which might be '
            'code; code in a file is never executed. If you trust it, load it in the program that wrote it and save '
            "its state_dict and shape: torch.save({'model': model.state_dict(), 'model_args': {'n_layer': 12, ...}})"
        ) from error
    except Exception as error:  # a damaged pickle can raise almost anything
        reraise_if_of_system(error, path)
        raise UserError(
            f'{path} cannot be read: it is truncated, damaged or not a weights file ({first_line(error)})'
        ) from error
    if isinstance(loaded, dict):
        return {name: vars(value) if isinstance(value, _Settings) else value for name, value in loaded.items()}
    return loaded


def _refuse_compressed(path, size):
    """Raise UserError for a file that would become larger in memory than it is: torch.save compresses nothing."""
    try:
        with zipfile.ZipFile(path) as file:
            unpacked = sum(entry.file_size for entry in file.infolist())
    except Exception:  # no zip archive, as torch before 1.6 wrote; or a damaged one, which torch.load reports
        return
    if unpacked > size:
        raise UserError(
            f'{path} is refused: its {size:,} bytes would become {unpacked:,} in memory; torch.save compresses nothing,'
            ' so it is damaged, or made to fill the memory'
        )
