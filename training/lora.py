"""LoRA: fine-tune a low-rank addition to each matrix instead of the matrix (Hu et al. 2021, arXiv:2106.09685).

A layer y = W x becomes y = W x + alpha / rank * B A x, with W frozen, A (rank, in) and B (out, rank). B starts at zero,
so the model starts unchanged; what it has learned can be added to W, which gives ordinary weights.
"""

import math

import torch
import torch.nn as nn
from torch.nn import functional as F

from common.errors import UserError
from common.notes import note
from lm.hub_internals import find_blocks


class LoRALinear(nn.Linear):
    """A Linear layer that learns a low-rank addition to its frozen weight."""

    def __init__(self, linear, rank, alpha):
        nn.Module.__init__(self)  # not Linear's, which would draw a new weight; `linear` has one
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.lora_A = nn.Parameter(self.weight.new_empty(rank, self.in_features))
        self.lora_B = nn.Parameter(self.weight.new_zeros(self.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as torch initialises a Linear
        self.scale = alpha / rank

    def forward(self, x):
        return super().forward(x) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)

    def merged_weight(self):
        """Return the weight, (out, in), with which an ordinary layer computes the same."""
        return self.weight + self.scale * self.lora_B @ self.lora_A


def add_lora(model, rank, alpha):
    """Give each Linear layer in the blocks of a model an addition of this rank; freeze everything else.

    Raises UserError if there is none.
    """
    model.requires_grad_(False)
    blocks = find_blocks(model)
    for name, module in list(blocks.named_modules()):
        if isinstance(module, nn.Linear):
            blocks.set_submodule(name, LoRALinear(module, rank, alpha))
    if not any(isinstance(module, LoRALinear) for module in blocks.modules()):
        raise UserError('--lora_rank: the blocks of this model have no Linear layers; leave it out')
    owners = [module for module in blocks.modules() if not isinstance(module, LoRALinear)]
    parts = [(name, part) for module in owners for name, part in module.named_parameters(recurse=False)]
    if others := sorted({name for name, matrix in parts if matrix.dim() > 1}):
        names = ', '.join(others)
        note(f'--lora_rank adds to Linear layers only; other matrices of the blocks stay as they are: {names}')


def split_state_dict(model):
    """Return two state dicts: the weights of a model without the additions, and the additions alone."""
    state = model.state_dict()
    lora = {name: tensor for name, tensor in state.items() if '.lora_' in name}
    return {name: tensor for name, tensor in state.items() if name not in lora}, lora


@torch.no_grad()
def merged_state_dict(model):
    """Return the weights of an ordinary model that computes the same; without LoRA, simply its weights."""
    state, _ = split_state_dict(model)
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            state[f'{name}.weight'] = module.merged_weight()
    return state
