"""Files of weights: safetensors, in one file or in several, and what torch.save wrote, of which nothing is executed."""

import json
import pickle
import re
import warnings

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from common.errors import UserError


class _Settings:
    """What a dataclass of settings in a file becomes: only its values are read, not its class."""


# GPTConfig of build-nanogpt's train_gpt2.py and of nanoGPT's model.py, whose checkpoints may hold it whole.
PLAIN_CLASSES = [(_Settings, f'{module}.GPTConfig') for module in ('__main__', 'train_gpt2', 'model', 'gpt')]


def read_weights(folder):
    """Return {name: tensor} of the weights in a folder."""
    files = find_weight_files(folder)
    if not files:
        raise UserError(f'{folder} has no weights: neither model.safetensors nor pytorch_model.bin')
    if files == ['pytorch_model.bin']:
        return load_torch_file(folder / 'pytorch_model.bin')
    return {name: tensor for file in files for name, tensor in read_safetensors(folder / file).items()}


def find_weight_files(folder):
    """Return the names of the files that hold a folder's weights: model.safetensors, its shards, or an old .bin."""
    if (folder / 'model.safetensors').exists():
        return ['model.safetensors']
    if (folder / 'model.safetensors.index.json').exists():
        path = folder / 'model.safetensors.index.json'
        try:
            return sorted(set(json.loads(path.read_text(encoding='utf-8'))['weight_map'].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f'{path} cannot be read: {error}') from error
    return ['pytorch_model.bin'] if (folder / 'pytorch_model.bin').exists() else []


def read_safetensors(path):
    """Return {name: tensor} of a safetensors file."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f'{path} is damaged or not a safetensors file: {error}') from error


def load_torch_file(path):
    """Read a file of torch.save: tensors and plain types only; the settings of build-nanogpt are read as a dict."""
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
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f'{path} cannot be read: it is truncated, damaged or not a weights file ({reason})') from error
    if isinstance(loaded, dict):
        return {name: vars(value) if isinstance(value, _Settings) else value for name, value in loaded.items()}
    return loaded
