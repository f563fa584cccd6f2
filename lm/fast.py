"""The same model, faster on a CPU: fewer and larger steps, and matrices stored as is best for this machine.

    fast.pack(model)                       float32 or bfloat16: the same numbers, up to rounding
    fast.pack(model, quantize='int8')      a quarter of the memory, nearly the same numbers

model.py is the reference, and tests compare the two. How matrices are stored is measured (tuning.py).
"""

import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from common.errors import UserError
from lm.file_pages import page_out
from lm.matrices import PlainMatrix, TransposedMatrix, can_quantize, in_rows
from lm.threads import keep_pace
from lm.tuning import MANY_PRODUCTS, choose_matrix
from model import GPT, attend

ONE_LAYER = 4  # Linear layers, about


def pack(model, quantize=None, rows=1, tune='once', products=MANY_PRODUCTS):
    """Optimise a language model for inference, in place; it can no longer be trained or saved.

    In a GPT, and in Llama and its relatives, whole layers are replaced; in other models of transformers each of its
    Linear layers.

    quantize: None, or 'int8'. rows: how many tokens will mostly be computed at a time: 1 for a text that is generated,
    many for texts that are scored. products: how many times, about. tune: whether to measure which way to multiply is
    the fastest here; 'once', 'again' or 'never' (tuning.py).
    Returns the model, unchanged on a GPU; its `tuning` is the Choice that was made, or None.
    Raises UserError if int8 is not supported here.
    """
    if quantize not in (None, 'int8'):
        raise UserError(f'--quantize={quantize}: it must be int8, or None')
    model.tuning, weight = None, next(model.parameters())
    model.n_parameters = count_parameters(model)
    if quantize and not can_quantize(weight):
        raise UserError(f'--quantize={quantize} needs a CPU and float32; leave it out otherwise')
    linears = [module for module in model.modules() if type(module) is nn.Linear]
    if weight.device.type != 'cpu' or not linears:
        return model
    model.tuning = choose_matrix(linears[:ONE_LAYER], quantize, rows, tune, products)
    matrix = model.tuning.matrix
    keep_pace(model, threads=model.tuning.threads)
    if not isinstance(model, GPT):
        return pack_network(model, matrix)
    copies = matrix not in (PlainMatrix, TransposedMatrix)  # these take the weights as they are in the file
    blocks = model.transformer.h
    for layer, block in enumerate(blocks):  # one at a time, so that two whole models are never in memory
        blocks[layer] = PackedBlock(block, model.gelu, matrix)
        if copies and getattr(model, 'is_as_in_file', False):
            page_out([module.weight for module in block.modules() if type(module) is nn.Linear])
    model.lm_head = PackedLinear(model.lm_head, matrix)
    return model


def count_parameters(model):
    """Return how many parameters a model has, or had before it was packed: packed matrices are none."""
    return getattr(model, 'n_parameters', None) or model.get_num_params(non_embedding=False)


def pack_network(model, matrix):
    """Replace the layers of a model of transformers that are known, and each Linear layer of the rest; return it."""
    from lm.fast_decoder import PackedDecoderLayer, is_known  # here, since it imports this module

    # One at a time, so that two whole models are never in memory; whole layers before what is in them.
    for name in [name for name, module in model.named_modules() if is_known(module)]:
        model.set_submodule(name, PackedDecoderLayer(model.get_submodule(name), matrix))
    linears = [name for name, module in model.named_modules() if type(module) is nn.Linear]  # subclasses do more
    for name in linears:
        model.set_submodule(name, PackedLinear(model.get_submodule(name), matrix))
    return model


class PackedBlock(nn.Module):
    """One layer: computes what model.Block does, without dropout."""

    def __init__(self, block, gelu, matrix):
        super().__init__()
        self.ln_1, self.ln_2 = block.ln_1, block.ln_2
        self.n_head, self.gelu = block.attn.n_head, gelu
        self.c_attn, self.attn_proj = matrix(block.attn.c_attn), matrix(block.attn.c_proj)
        self.c_fc, self.mlp_proj = matrix(block.mlp.c_fc), matrix(block.mlp.c_proj)

    def forward(self, x: Float[Tensor, 'B T C'], cache=None, layer=None) -> Float[Tensor, 'B T C']:
        B, T, C = x.shape
        rows, enough = B * T, self.c_attn.enough_rows
        padded = rows < enough or rows > 32
        x = in_rows(x, enough) if padded else x.reshape(rows, C)  # (R, C) with R >= B * T
        qkv = self.c_attn(self.ln_1(x))[:rows].view(B, T, 3 * C)
        y = attend(qkv, self.n_head, cache, layer)  # (B, T, C)
        x = self.attn_proj(in_rows(y, enough) if padded else y.view(rows, C), add_to=x)
        x = self.mlp_proj(self.c_fc(self.ln_2(x), gelu=self.gelu), add_to=x)
        return (x[:rows] if padded else x).view(B, T, C)


class PackedLinear(nn.Module):
    """A Linear layer for any shape of input, such as the output layer."""

    def __init__(self, linear, matrix):
        super().__init__()
        self.matrix = matrix(linear)

    def forward(self, x: Float[Tensor, '*N C']) -> Float[Tensor, '*N V']:
        rows = x.numel() // x.size(-1)
        return self.matrix(in_rows(x, self.matrix.enough_rows))[:rows].view(*x.shape[:-1], -1)
