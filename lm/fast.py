"""The same model, faster on a CPU: packed or eight-bit matrices.

    fast.pack(model)                       float32 or bfloat16: the same numbers, up to rounding
    fast.pack(model, quantize='int8')      a quarter of the memory, nearly the same numbers

model.py is the reference, and tests compare the two. Why this is faster:

- With one row, a product takes as long as reading its matrix; with many rows, as long as multiplying. oneDNN, which
  comes with torch, is faster at both if the matrix is cut into blocks. That is done once here, not in every call.
- GELU, and the addition to the residual stream, are applied while the product's results are written.
- Eight bits are a quarter as much to read, and many CPUs multiply four of them at a time.
"""

import warnings

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from common.errors import UserError
from model import GPT, attend

ROWS = 512  # matrices are packed for about this many rows; for a single row every packing is equally fast


def can_pack(weight: Tensor) -> bool:
    """Return whether matrices like this can be packed: on a CPU, with oneDNN, in a precision that both support."""
    if weight.device.type != 'cpu' or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def can_quantize(weight: Tensor) -> bool:
    """Return whether matrices like this can be converted to int8: in float32 on an x86 CPU."""
    on_x86 = weight.device.type == 'cpu' and 'fbgemm' in torch.backends.quantized.supported_engines
    return on_x86 and weight.dtype == torch.float32


def pack(model, quantize=None):
    """Optimise a language model for inference, in place; it can no longer be trained or saved.

    In a GPT, and in Llama and its relatives, whole layers are replaced; in other models of transformers each of its
    Linear layers.

    quantize: None, or 'int8'. Returns the model, unchanged if the plain one is already the fastest (on a GPU).
    Raises UserError if int8 is not supported here.
    """
    if quantize not in (None, 'int8'):
        raise UserError(f'--quantize={quantize}: it must be int8, or None')
    weight = next(model.parameters())
    if quantize and not can_quantize(weight):
        raise UserError(f'--quantize={quantize} needs an x86 CPU and float32; leave it out otherwise')
    if quantize or can_pack(weight):
        matrix = Int8Matrix if quantize else PackedMatrix
        if not isinstance(model, GPT):
            return pack_network(model, matrix)
        blocks = model.transformer.h
        for layer in range(len(blocks)):  # one at a time, so that two whole models are never in memory
            blocks[layer] = PackedBlock(blocks[layer], model.gelu, matrix)
        model.lm_head = PackedLinear(model.lm_head, matrix)
    return model


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
        enough = self.c_attn.enough_rows
        x = in_rows(x, enough)  # (R, C) with R >= B * T
        qkv = self.c_attn(self.ln_1(x))[: B * T].view(B, T, 3 * C)
        x = self.attn_proj(in_rows(attend(qkv, self.n_head, cache, layer), enough), add_to=x)
        x = self.mlp_proj(self.c_fc(self.ln_2(x), gelu=self.gelu), add_to=x)
        return x[: B * T].view(B, T, C)


class PackedLinear(nn.Module):
    """A Linear layer for any shape of input, such as the output layer."""

    def __init__(self, linear, matrix):
        super().__init__()
        self.matrix = matrix(linear)

    def forward(self, x: Float[Tensor, '*N C']) -> Float[Tensor, '*N V']:
        rows = x.numel() // x.size(-1)
        return self.matrix(in_rows(x, self.matrix.enough_rows))[:rows].view(*x.shape[:-1], -1)


def in_rows(x: Float[Tensor, '*N C'], enough: int) -> Float[Tensor, 'R C']:
    """Return x as one matrix, padded with rows of zeros to at least `enough`.

    If there are many rows, R is a multiple of 32: oneDNN compiles code for each R that it meets, and keeps it.
    """
    x = x.reshape(-1, x.size(-1))
    missing = -x.size(0) % 32 if x.size(0) > 32 else enough - x.size(0)
    return F.pad(x, (0, 0, 0, missing)) if missing > 0 else x


class PackedMatrix(nn.Module):
    """A Linear layer in float32 or bfloat16, packed for oneDNN, which also applies GELU or adds the residual stream."""

    enough_rows = 4  # faster than one: measured at 37 instead of 29 GB/s of matrix

    def __init__(self, linear):
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.product = torch.ops.mkldnn._linear_pointwise.default
        self.product_and_sum = torch.ops.mkldnn._linear_pointwise.binary

    def forward(
        self, x: Float[Tensor, 'R C_in'], gelu: str | None = None, add_to: Float[Tensor, 'R C_out'] | None = None
    ) -> Float[Tensor, 'R C_out']:
        if add_to is not None:
            return self.product_and_sum(x, add_to, self.packed, self.bias, 'add')
        return self.product(x, self.packed, self.bias, 'gelu' if gelu else 'none', [], gelu or '')


class Int8Matrix(nn.Module):
    """A Linear layer with eight-bit weights: one scale for each output, and one for each row of its input.

    A row of weights is rounded to -127 .. 127, a row of x to 0 .. 255 between its smallest and largest number (dynamic
    quantization). torch alone uses one scale for all of x. Here each row is rounded by itself, so a text's numbers do
    not depend on the rest of the batch. A single row goes to torch unchanged, which is faster; torch rounds it between
    limits that always include 0.
    """

    enough_rows = 1
    # Without VNNI instructions, products of 8 by 8 bits are added in 16 bits and overflow; 7 by 8 bits do not.
    seven_bits = not any(torch.cpu.get_capabilities().get(name) for name in ('avx512_vnni', 'avx_vnni'))

    def __init__(self, linear):
        super().__init__()
        weight = linear.weight.detach()
        scale = weight.abs().amax(1).clamp(min=1e-30) / 127
        torch.backends.quantized.engine = 'fbgemm'
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # quantized tensors are deprecated; the pinned version of torch has them
            zeros = torch.zeros(len(weight), dtype=torch.long)
            quantized = torch.quantize_per_channel(weight, scale.double(), zeros, 0, torch.qint8)
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.packed = torch.ops.quantized.linear_prepack(quantized, self.bias)
        self.sums = scale * quantized.int_repr().sum(1)  # the output for an x of ones

    def forward(
        self, x: Float[Tensor, 'R C_in'], gelu: str | None = None, add_to: Float[Tensor, 'R C_out'] | None = None
    ) -> Float[Tensor, 'R C_out']:
        if x.numel() == x.size(-1):
            y = torch.ops.quantized.linear_dynamic(x, self.packed, self.seven_bits)
        else:
            # x = low + size * (numbers from 0 to 1). Every row of those contains a 0 and a 1, so the single scale that
            # torch computes for all rows is right for each.
            low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)  # several times as fast as aminmax
            size = (high - low).clamp_(min=1e-30)
            y = torch.ops.quantized.linear_dynamic((x - low).div_(size), self.packed, self.seven_bits)
            y = y.mul_(size).addcmul_(low, self.sums)
            if self.bias is not None:
                y.addcmul_(1 - size, self.bias)
        if gelu:
            y = F.gelu(y, approximate=gelu)
        return y if add_to is None else y.add_(add_to)
