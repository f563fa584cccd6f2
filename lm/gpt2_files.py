"""GPT-2 in Hugging Face's files: config.json and named weights, turned into a GPT of model.py and back.

For variants that model.py does not compute, and for other architectures, `OtherArchitecture` is raised;
lm/hub_model.py leaves those to transformers.
"""

import re

import torch

from common.errors import UserError
from common.files import is_there
from common.json_files import read_json_object
from common.strings import show_value
from lm.roles import Roles
from lm.weight_files import read_weights
from model import GPT, GPTConfig

# transformers' names for the activations that model.py supports, and torch's name for each kind of GELU.
GELU_OF_ACTIVATION = {'gelu_new': 'tanh', 'gelu_pytorch_tanh': 'tanh', 'gelu': 'none'}

# What GPT-2's config.json may vary and model.py does not: each setting with the only supported value.
ONLY_VALUE = {
    'layer_norm_epsilon': 1e-5,
    'scale_attn_weights': True,
    'scale_attn_by_inverse_layer_idx': False,
    'add_cross_attention': False,
    'tie_word_embeddings': True,
}

# GPT-2 was released with its matrices as (in, out); torch's Linear has (out, in).
TRANSPOSED = ('attn.c_attn.weight', 'attn.c_proj.weight', 'mlp.c_fc.weight', 'mlp.c_proj.weight')


class OtherArchitecture(UserError):
    """A model that model.py does not compute."""


def require_gpt(model, name, what):
    """Raise UserError unless the model called `name` is computed by model.py. what: 'train.py fine-tunes', say."""
    if not isinstance(model, GPT):
        raise UserError(f'{what} models of the GPT-2 architecture; {name} is of type {model.config.model_type!r}')


def read_hub_config(path, dropout):
    """Return the GPTConfig and the kind of GELU of a config.json.

    Raises UserError if it is missing or damaged, and OtherArchitecture if it describes no GPT-2 as in model.py.
    """
    if not is_there(path):
        raise UserError(f'{path.parent} is not a model folder: it has no config.json (and no ckpt.pt)')
    found = read_json_object(path)
    kind = show_value(found.get('model_type'))
    if not isinstance(found.get('model_type', ''), str):
        raise UserError(f'{path} is damaged: model_type is {kind}, not a text')
    if found.get('model_type') != 'gpt2':
        raise OtherArchitecture(f'{path.parent} contains a model of type {kind}; this needs a gpt2')
    try:
        config = GPTConfig(
            block_size=found.get('n_positions', found.get('n_ctx', 1024)),
            vocab_size=found['vocab_size'],
            n_layer=found['n_layer'],
            n_head=found['n_head'],
            n_embd=found['n_embd'],
            dropout=dropout,
        )
    except KeyError as error:
        raise UserError(f'{path} lacks {error}') from error
    activation = found.get('activation_function', 'gelu_new')
    if activation not in list(GELU_OF_ACTIVATION):  # a list, since a damaged file may hold anything
        raise OtherArchitecture(f'{path.parent}: activation_function={show_value(activation)} is not supported')
    check_config(config, path)
    if found.get('n_inner') not in (None, 4 * config.n_embd):
        raise OtherArchitecture(
            f'{path.parent}: n_inner={show_value(found["n_inner"])} is not supported; it must be 4 * n_embd'
        )
    for name, value in ONLY_VALUE.items():
        if found.get(name, value) != value:
            raise OtherArchitecture(
                f'{path.parent}: {name}={show_value(found[name])} is a variant of GPT-2 that is not supported'
            )
    return config, GELU_OF_ACTIVATION[activation]


def check_config(config, where):
    """Raise UserError unless a GPTConfig from a file holds numbers that a model can have, whatever its weights."""
    for name in ('block_size', 'vocab_size', 'n_layer', 'n_head', 'n_embd'):
        value, least = getattr(config, name), 0 if name == 'n_layer' else 1
        if type(value) is not int or not least <= value < 2**31:
            raise UserError(
                f'{where} is damaged: {name} is {show_value(value)}, but it must be a whole number, at least {least}'
            )
    if type(config.dropout) not in (int, float) or not 0 <= config.dropout < 1:
        raise UserError(f'{where} is damaged: dropout is {show_value(config.dropout)}, not a number from 0 to 1')
    if type(config.bias) is not bool:
        raise UserError(f'{where} is damaged: bias is {show_value(config.bias)}, neither true nor false')


def read_hub_state(folder):
    """Return {name: tensor} of a model folder's weights, named and laid out as in model.py."""
    state = {re.sub(r'^transformer\.', '', name): tensor for name, tensor in read_weights(folder).items()}
    # Older versions of transformers saved each layer's causal mask; it is not needed here.
    state = {name: tensor for name, tensor in state.items() if not name.endswith(('.attn.bias', '.attn.masked_bias'))}
    head = state.pop('lm_head.weight', None)
    if head is not None and 'wte.weight' in state and not torch.equal(head, state['wte.weight']):
        raise UserError(
            f'{folder}: its output layer and token embeddings differ (they are untied), but its config.json says that '
            'they are one'
        )
    return {
        f'transformer.{name}': (tensor.t() if name.endswith(TRANSPOSED) else tensor) for name, tensor in state.items()
    }


def make_hub_state(model, dtype):
    """Return {name: tensor} of a model's weights, named and laid out as in transformers."""
    state = {}
    for name, tensor in model.state_dict().items():
        name = name.removeprefix('transformer.')
        tensor = tensor[: model.n_ids] if name == 'wte.weight' else tensor.t() if name.endswith(TRANSPOSED) else tensor
        state[f'transformer.{name}'] = tensor.to('cpu', dtype).contiguous()
    del state['transformer.lm_head.weight']  # the same matrix as wte
    for name in [name for name in state if name.endswith('.weight') and 'wte' not in name and 'wpe' not in name]:
        out_features = state[name].shape[-1]
        state.setdefault(name.replace('.weight', '.bias'), torch.zeros(out_features, dtype=dtype))
    return state


def make_hub_config(model, tokenizer, dtype):
    """Return the contents of a model folder's config.json."""
    config, roles = model.config, Roles() if tokenizer is None else tokenizer.roles
    ends = roles.ends[0] if len(roles.ends) == 1 else list(roles.ends) or None
    roles = {'bos_token_id': roles.bos, 'eos_token_id': ends, 'pad_token_id': roles.pad}
    return {
        'architectures': ['GPT2LMHeadModel'],
        'model_type': 'gpt2',
        'activation_function': next(name for name, gelu in GELU_OF_ACTIVATION.items() if gelu == model.gelu),
        'vocab_size': model.n_ids,
        'n_positions': config.block_size,
        'n_ctx': config.block_size,
        'n_embd': config.n_embd,
        'n_layer': config.n_layer,
        'n_head': config.n_head,
        'n_inner': None,
        'resid_pdrop': config.dropout,
        'embd_pdrop': config.dropout,
        'attn_pdrop': config.dropout,
        **ONLY_VALUE,
        'initializer_range': 0.02,
        'dtype': str(dtype).removeprefix('torch.'),
        **{name: id for name, id in roles.items() if id is not None},
    }
