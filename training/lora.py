"""LoRA: fine-tune a low-rank addition to each matrix instead of the matrix (Hu et al. 2021, arXiv:2106.09685).

A layer y = W x becomes y = W x + alpha / rank * B A x, with W frozen, A (rank, in) and B (out, rank). B starts at zero,
so the model starts unchanged; what it has learned can be added to W, which gives ordinary weights.
"""

import math

import torch
import torch.nn as nn
from torch.nn import functional as F


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
    """Give each matrix in the blocks of a GPT an addition of this rank; freeze everything else."""
    model.requires_grad_(False)
    for block in model.transformer.h:
        for layer in (block.attn, block.mlp):
            for name, linear in list(layer.named_children()):
                if isinstance(linear, nn.Linear):
                    setattr(layer, name, LoRALinear(linear, rank, alpha))


def split_state_dict(model):
    """Return two state dicts: the weights of the GPT without the additions, and the additions alone."""
    state = model.state_dict()
    lora = {name: tensor for name, tensor in state.items() if '.lora_' in name}
    return {name: tensor for name, tensor in state.items() if name not in lora}, lora


@torch.no_grad()
def merged_state_dict(model):
    """Return the weights of an ordinary GPT that computes the same; without LoRA, simply its weights."""
    state, _ = split_state_dict(model)
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            state[f'{name}.weight'] = module.merged_weight()
    return state
