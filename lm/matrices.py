"""The matrix of a Linear layer, stored in one of several ways, for inference on a CPU.

All compute the same product; which is the fastest depends on the machine, on the matrix and on the number of rows, and
is measured (tuning.py). With one row, a product takes as long as reading its matrix; with many, as long as
multiplying. Each class takes a Linear layer, and is called with

    x: (R, C_in)          rows, at least `enough_rows` of them
    gelu: None, or the kind of GELU to apply to the product
    add_to: None, or (R, C_out) to add, the residual stream

and returns (R, C_out).
"""

import math
import warnings

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

PART = 2**13  # outputs that are converted at a time, which takes several times their memory


def can_pack(weight: Tensor) -> bool:
    """Return whether matrices like this can be packed: on a CPU, with oneDNN, in a precision that both support."""
    if weight.device.type != 'cpu' or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def can_quantize(weight: Tensor) -> bool:
    """Return whether matrices like this can be converted to int8: those in float32 on a CPU."""
    return weight.device.type == 'cpu' and weight.dtype == torch.float32


def can_split(weight: Tensor) -> bool:
    """Return whether matrices like this can be split: those in float32 on a CPU for which FBGEMM was written."""
    return can_quantize(weight) and 'fbgemm' in torch.backends.quantized.supported_engines


def in_rows(x: Float[Tensor, '*N C'], enough: int) -> Float[Tensor, 'R C']:
    """Return x as one matrix, padded with rows of zeros to at least `enough`.

    If there are many rows, R is a multiple of 32: oneDNN compiles code for each R that it meets, and keeps it.
    """
    x = x.reshape(-1, x.size(-1))
    missing = -x.size(0) % 32 if x.size(0) > 32 else enough - x.size(0)
    return F.pad(x, (0, 0, 0, missing)) if missing > 0 else x


def finish(y: Float[Tensor, 'R C_out'], gelu: str | None, add_to: Float[Tensor, 'R C_out'] | None):
    """Return a product after GELU and the addition; y may be overwritten."""
    if gelu:
        y = F.gelu(y, approximate=gelu)
    return y if add_to is None else y.add_(add_to)


class PlainMatrix(nn.Module):
    """As torch stores it, (C_out, C_in): no copy is made."""

    enough_rows = 1

    def __init__(self, linear):
        super().__init__()
        self.weight = linear.weight.detach()
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x, gelu=None, add_to=None):
        return finish(F.linear(x, self.weight, self.bias), gelu, add_to)


class TransposedMatrix(nn.Module):
    """Stored as (C_in, C_out)."""

    enough_rows = 1

    def __init__(self, linear):
        super().__init__()
        self.weight = linear.weight.detach().t().contiguous()
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x, gelu=None, add_to=None):
        y = x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)
        return finish(y, gelu, add_to)


class PackedMatrix(nn.Module):
    """Cut into blocks for oneDNN, once and not in every call; GELU and addition happen while results are written."""

    enough_rows = 1
    packed_for = 512  # rows

    def __init__(self, linear):
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), self.packed_for)
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.product = torch.ops.mkldnn._linear_pointwise.default
        self.product_and_sum = torch.ops.mkldnn._linear_pointwise.binary

    def forward(
        self, x: Float[Tensor, 'R C_in'], gelu: str | None = None, add_to: Float[Tensor, 'R C_out'] | None = None
    ) -> Float[Tensor, 'R C_out']:
        if add_to is not None:
            return self.product_and_sum(x, add_to, self.packed, self.bias, 'add')
        return self.product(x, self.packed, self.bias, 'gelu' if gelu else 'none', [], gelu or '')


class PackedMatrixOfOne(PackedMatrix):
    """The same, in the blocks that oneDNN prefers for a single row."""

    packed_for = 1


class PackedMatrixOfFour(PackedMatrix):
    """The same; fewer than four rows are padded, since oneDNN may take another way with one row, and a slower one."""

    enough_rows = 4


class SplitMatrix(nn.Module):
    """Each weight is stored as the sum of two numbers in float16, which together have 22 of the 24 bits of a float32.

    The products are computed in float32. This reads as much memory as float32 does; but for a single row, FBGEMM reads
    float16 faster on some CPUs than any library reads float32.
    """

    enough_rows = 1
    step = 2.0**11  # the second number is stored times this, since float16 has few bits for small numbers

    def __init__(self, linear):
        super().__init__()
        weight, self.bias = linear.weight.detach(), None if linear.bias is None else linear.bias.detach()
        torch.backends.quantized.engine = 'fbgemm'
        # A power of two by which float16, which ends at 65,504, can hold all weights.
        self.scale = 2.0 ** max(0, math.frexp(weight.abs().max().item())[1] - 15)
        self.parts = [self._pack(weight[rows] / self.scale) for rows in parts_of(len(weight))]
        self.product = torch.ops.quantized.linear_dynamic_fp16.default

    def _pack(self, weight):
        high = weight.half().float()
        return torch.ops.quantized.linear_prepack_fp16(torch.cat([high, (weight - high) * self.step]), None)

    def forward(self, x, gelu=None, add_to=None):
        sums = []
        for part in self.parts:
            high, low = self.product(x, part).chunk(2, dim=-1)
            sums.append(torch.add(high, low, alpha=1 / self.step))
        y = sums[0] if len(sums) == 1 else torch.cat(sums, dim=-1)
        if self.scale != 1:
            y.mul_(self.scale)
        return finish(y if self.bias is None else y.add_(self.bias), gelu, add_to)


class Int8Matrix(nn.Module):
    """A Linear layer with eight-bit weights: one scale for each output, and one for each row of its input.

    A row of weights is rounded to -127 .. 127, a row of x to 0 .. 255 between its smallest and largest number (dynamic
    quantization). torch alone uses one scale for all of x. Here each row is rounded by itself, so a text's numbers do
    not depend on the rest of the batch. A single row goes to torch unchanged, which is faster; torch rounds it between
    limits that always include 0.
    """

    enough_rows = 1
    engine = 'fbgemm'  # of torch: which library multiplies
    # Without VNNI instructions, products of 8 by 8 bits are added in 16 bits and overflow; 7 by 8 bits do not.
    seven_bits = 'fbgemm' in torch.backends.quantized.supported_engines and not any(
        torch.cpu.get_capabilities().get(name) for name in ('avx512_vnni', 'avx_vnni')
    )

    def __init__(self, linear):
        super().__init__()
        scale, quantized = quantize_rows(linear.weight.detach())
        self.bias = None if linear.bias is None else linear.bias.detach()
        parts = parts_of(len(scale))
        self.sums = scale * torch.cat([quantized[rows].sum(1) for rows in parts])  # the output for an x of ones
        torch.backends.quantized.engine = self.engine
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # quantized tensors are deprecated; the pinned version of torch has them
            self.parts = [self._pack(quantized, scale, rows) for rows in parts]

    def _pack(self, quantized, scale, rows):
        scale = scale[rows].double()
        zeros = torch.zeros(len(scale), dtype=torch.long)
        weight = torch._make_per_channel_quantized_tensor(quantized[rows], scale, zeros, 0)
        return torch.ops.quantized.linear_prepack(weight, None if self.bias is None else self.bias[rows])

    def _multiply(self, x):
        product = torch.ops.quantized.linear_dynamic.default
        products = [product(x, part, self.seven_bits) for part in self.parts]
        return products[0] if len(products) == 1 else torch.cat(products, dim=-1)

    def forward(
        self, x: Float[Tensor, 'R C_in'], gelu: str | None = None, add_to: Float[Tensor, 'R C_out'] | None = None
    ) -> Float[Tensor, 'R C_out']:
        if x.numel() == x.size(-1):
            y = self._multiply(x)
        else:
            # x = low + size * (numbers from 0 to 1). Every row of those contains a 0 and a 1, so the single scale that
            # torch computes for all rows is right for each.
            low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)  # several times as fast as aminmax
            size = (high - low).clamp_(min=1e-30)
            y = self._multiply((x - low).div_(size))
            y = y.mul_(size).addcmul_(low, self.sums)
            if self.bias is not None:
                y.addcmul_(1 - size, self.bias)
        return finish(y, gelu, add_to)


class X86Int8Matrix(Int8Matrix):
    """The same, multiplied by oneDNN where the CPU has instructions for eight bits, else by FBGEMM."""

    engine = 'x86'


class OneDnnInt8Matrix(Int8Matrix):
    """The same, multiplied by oneDNN."""

    engine = 'onednn'


class QnnpackInt8Matrix(Int8Matrix):
    """The same, multiplied by QNNPACK, as on Arm."""

    engine = 'qnnpack'
    seven_bits = False


class PortableInt8Matrix(nn.Module):
    """Eight-bit weights for any CPU: a quarter of the memory, but turned into float32 again in each product."""

    enough_rows = 1

    def __init__(self, linear):
        super().__init__()
        self.scale, self.weight = quantize_rows(linear.weight.detach())
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x, gelu=None, add_to=None):
        y = F.linear(x, self.weight.to(x.dtype)).mul_(self.scale)
        return finish(y if self.bias is None else y.add_(self.bias), gelu, add_to)


def quantize_rows(weight: Float[Tensor, 'C_out C_in']):
    """Return the scale of each row, (C_out,), and the rows divided by it, rounded to -127 .. 127, in int8."""
    low, high = weight.aminmax(dim=1)
    scale = torch.maximum(high, -low).clamp(min=1e-30) / 127
    rounded = torch.empty(weight.shape, dtype=torch.int8)
    for rows in parts_of(len(weight)):  # a division takes as much memory as what it divides
        rounded[rows] = (weight[rows] / scale[rows, None]).round_()
    return scale, rounded


def parts_of(count):
    """Return slices that together cover `count` rows."""
    return [slice(start, start + PART) for start in range(0, count, PART)]
