"""LoRA adapters as the `peft` library saves them: read, and merged into the model that they adapt.

A folder has adapter_config.json and adapter_model.safetensors. For a matrix W, of shape (out, in), the adapter has A
(r, in) and B (out, r); merged, W is W + scale * B A, with scale = alpha / r, or alpha / sqrt(r) if `use_rslora`
(Hu et al. 2021, https://arxiv.org/abs/2106.09685; Kalajdzievski 2023, https://arxiv.org/abs/2312.03732).
"""

import math
import re
from collections import defaultdict
from pathlib import Path

import torch

from common.errors import UserError
from common.files import is_there
from common.json_files import read_json_object
from common.strings import show_value
from lm.weight_files import check_weights, load_torch_file, read_safetensors
from model import GPT

TRANSPOSED = ('attn.c_attn', 'attn.c_proj', 'mlp.c_fc', 'mlp.c_proj')  # saved as (in, out), as in transformers
PARTS = {'lora_A.weight': 'A', 'lora_B.weight': 'B', 'lora_embedding_A': 'A', 'lora_embedding_B': 'B'}
WAY_OUT = 'merge it where it was trained (merge_and_unload, then save_pretrained) and load that folder'


def adapted_model(folder):
    """Return the name or folder of the model that an adapter adapts; None if the folder holds no adapter."""
    folder = Path(folder)
    if not is_there(folder / 'adapter_config.json'):
        return None
    base = read_json_object(folder / 'adapter_config.json').get('base_model_name_or_path')
    if not isinstance(base, str) or not base:
        raise UserError(f'{folder} is an adapter whose adapter_config.json names no base_model_name_or_path')
    return base


@torch.no_grad()
def merge_adapter(model, folder):
    """Add the adapter in a folder to the model that it adapts; return the model.

    Raises UserError, with the way out, for kinds of adapter other than LoRA and for weights that do not fit.
    """
    config = read_json_object(folder / 'adapter_config.json')
    for name, plain in (('peft_type', 'LORA'), ('use_dora', False), ('lora_bias', False)):
        if config.get(name, plain) != plain:
            value = show_value(config[name])
            raise UserError(f'{folder} is an adapter with {name}={value}, which is not supported; {WAY_OUT}')
    network = model if isinstance(model, GPT) else model.network
    head, embedding = _find_head_and_embedding(network)
    factors, whole = defaultdict(dict), {}
    for key, tensor in _read_adapter(folder).items():
        if '.original_module.' in key:  # what `modules_to_save` replaces
            continue
        name = key.removeprefix('base_model.model.').replace('.base_layer', '').replace('.modules_to_save', '')
        part = next((part for part in PARTS if name.endswith(f'.{part}')), None)
        if part is None:
            whole[name] = tensor
        else:
            factors[name.removesuffix(f'.{part}')][PARTS[part]] = tensor.float(), 'embedding' in part
    if network.get_parameter(f'{head}.weight') is network.get_parameter(f'{embedding}.weight'):
        of_head, new = whole.pop(f'{head}.weight', None), whole.get(f'{embedding}.weight')
        untied = of_head is not None and (new is None or not torch.equal(of_head, new))
        if untied or head in factors or embedding in factors:
            raise UserError(f'{folder}: it changes the output layer and the token embeddings differently; {WAY_OUT}')
    old, new = network.get_parameter(f'{embedding}.weight'), whole.get(f'{embedding}.weight')
    if new is not None and len(new) not in (0, len(old)) and new.shape[1:] == old.shape[1:]:
        _resize_vocabulary(model, len(new))  # the tokenizer has grown
    parameters, modules = dict(network.named_parameters(remove_duplicate=False)), dict(network.named_modules())
    for name, tensor in whole.items():
        tensor = _oriented(model, name, tensor.float())
        _check_shape(folder, name, parameters, tuple(tensor.shape))
        parameters[name].copy_(tensor)
    for name, parts in factors.items():
        if set(parts) != {'A', 'B'}:
            raise UserError(f'{folder} is damaged: of the adapter of {name} it has only {", ".join(parts)}')
        (A, is_embedding), (B, _) = parts['A'], parts['B']
        if A.dim() != 2 or B.dim() != 2 or B.shape[1] != A.shape[0] or not len(A):
            shapes = f'{tuple(A.shape)} and {tuple(B.shape)}'
            raise UserError(f'{folder} is damaged: the adapter of {name} has shapes {shapes}')
        # Before they are multiplied: the product may be far larger than the two.
        is_transposed = is_embedding or (name in modules and type(modules[name]).__name__ == 'Conv1D')
        shape = (A.shape[1], B.shape[0]) if is_transposed else (B.shape[0], A.shape[1])
        _check_shape(folder, f'{name}.weight', parameters, shape)
        change = _scale(folder, config, name, A.shape[0]) * (B @ A)
        parameters[f'{name}.weight'].add_(change.t() if is_transposed else change)
    if broken := [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]:
        raise UserError(f'{folder}: with it, {broken[0]} is not finite; it is damaged, or its training diverged')
    return model


def _read_adapter(folder):
    """Return {name: tensor} of an adapter's weights."""
    if is_there(folder / 'adapter_model.safetensors'):
        return read_safetensors(folder / 'adapter_model.safetensors')
    if is_there(folder / 'adapter_model.bin'):
        return check_weights(load_torch_file(folder / 'adapter_model.bin'), folder / 'adapter_model.bin')
    raise UserError(f'{folder} has an adapter_config.json, but no adapter_model.safetensors')


def _scale(folder, config, name, rank):
    """Return the factor of an adapter's change to one matrix."""
    alpha, patterns = config.get('lora_alpha', 8), config.get('alpha_pattern') or {}
    for pattern in patterns if isinstance(patterns, dict) else ():
        if re.search(r'\)[*+?{]|([*+?{].*){4}', pattern):
            raise UserError(f'{folder}: alpha_pattern {show_value(pattern)} could take forever; {WAY_OUT}')
        if re.match(rf'(.*\.)?({pattern})$', name):  # as in peft
            alpha = patterns[pattern]
            break
    if type(alpha) not in (int, float):
        raise UserError(f'{folder} is damaged: its lora_alpha is {show_value(alpha)}, not a number')
    return alpha / (math.sqrt(rank) if config.get('use_rslora') else rank)


def _find_head_and_embedding(network):
    """Return the names of the output layer and of the token embeddings, in a GPT or in a network of transformers."""
    if isinstance(network, GPT):
        return 'lm_head', 'transformer.wte'
    parts = network.get_output_embeddings(), network.get_input_embeddings()
    return tuple(next(name for name, module in network.named_modules() if module is part) for part in parts)


def _oriented(model, name, tensor):
    """Return a weight of transformers as the model has it: a GPT has its matrices as torch's Linear, (out, in)."""
    is_matrix = name.removesuffix('.weight').endswith(TRANSPOSED) and tensor.dim() == 2
    return tensor.t() if is_matrix and isinstance(model, GPT) else tensor


def _check_shape(folder, name, parameters, shape):
    if name not in parameters:
        raise UserError(f'{folder} adapts {name}, which its model does not have; {WAY_OUT}')
    if (expected := tuple(parameters[name].shape)) != shape:
        shapes = f'{shape}, but the model has {expected}'
        raise UserError(f'{folder}: its {name} is {shapes}; is it an adapter of another model?')


def _resize_vocabulary(model, n_ids):
    """Give a model room for this many token embeddings, which are filled afterwards."""
    if isinstance(model, GPT):
        model.config.vocab_size = model.transformer.wte.num_embeddings = model.lm_head.out_features = n_ids
        model.transformer.wte.weight = torch.nn.Parameter(torch.zeros(n_ids, model.config.n_embd))
        model.tie_weights()
    else:
        model.network.resize_token_embeddings(n_ids, mean_resizing=False)
    model.n_ids = n_ids
