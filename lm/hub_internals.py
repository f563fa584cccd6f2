"""What happens inside a model of transformers, for the same pictures as of a GPT.

Architectures name their parts differently; all have one list of blocks, each of which adds to the residual stream.
"""

import contextlib

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from common.errors import UserError
from model import GPT


def find_blocks(model) -> torch.nn.ModuleList:
    """Return the blocks of a model, from the first to the last. Raises UserError if there is no such list."""
    if isinstance(model, GPT):
        return model.transformer.h
    n_layer = model.config.num_hidden_layers
    lists = [module for module in model.network.modules() if isinstance(module, torch.nn.ModuleList)]
    blocks = next((blocks for blocks in lists if len(blocks) == n_layer), None)
    if blocks is None:
        raise UserError(f'the blocks of a model of type {model.config.model_type!r} are not where they are looked for')
    return blocks


@torch.no_grad()
def residual_stream(model, idx: Int64[Tensor, 'B T']) -> list[Float[Tensor, 'B T C']]:
    """Return the residual stream before the first block and after each of the L blocks."""
    blocks, stream = find_blocks(model), []

    def record_input(block, arguments, named):
        stream.append(arguments[0] if arguments else named['hidden_states'])

    def record_output(block, inputs, output):
        stream.append(_first(output))

    hooks = [blocks[0].register_forward_pre_hook(record_input, with_kwargs=True)]
    hooks += [block.register_forward_hook(record_output) for block in blocks]
    with _removed_after(hooks):
        model.hidden(idx)
    return stream


@torch.no_grad()
def logits_of_stream(model, idx: Int64[Tensor, 'B T'], x: Float[Tensor, 'B T C']) -> Float[Tensor, 'B T V']:
    """Return the logits as if the last block had left x in the residual stream: what follows it is the model's own."""

    def replace_output(block, inputs, output):
        return (x, *output[1:]) if isinstance(output, tuple) else x

    with _removed_after([find_blocks(model)[-1].register_forward_hook(replace_output)]):
        return model.logits(model.hidden(idx))


@torch.no_grad()
def layer_attentions(model, idx: Int64[Tensor, 'B T']) -> list[Float[Tensor, 'B nh T T']]:
    """Return the attention weights of each layer, in float32; each row sums to 1.

    They are transformers' own, from its `eager` attention, which is the one that keeps them.
    """
    network, usual = model.network, model.network.config._attn_implementation
    network.set_attn_implementation('eager')
    try:
        weights = network.base_model(idx, use_cache=False, output_attentions=True).attentions
    finally:
        network.set_attn_implementation(usual)
    if not weights or any(weight is None or weight.dim() != 4 for weight in weights):
        raise UserError(f'a model of type {model.config.model_type!r} does not tell its attention weights')
    return [weight.float() for weight in weights]


def _first(output):
    """Return the residual stream from what a block returns: some architectures return more besides."""
    return output[0] if isinstance(output, tuple) else output


@contextlib.contextmanager
def _removed_after(hooks):
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
