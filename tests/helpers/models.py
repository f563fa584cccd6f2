"""Small models with random weights, and a mark for tests that need GPT-2's vocabulary."""

import os

import pytest
import torch

from model import GPT, GPTConfig

needs_gpt2_vocabulary = pytest.mark.skipif(
    not os.environ.get('TIKTOKEN_CACHE_DIR'),
    reason="needs GPT-2's vocabulary without a network: set TIKTOKEN_CACHE_DIR to a folder that has it",
)


def random_gpt(vocab_size=61, block_size=16, n_layer=2, n_head=2, n_embd=16, seed=0, n_ids=None, gelu='tanh', **rest):
    """Return a GPT with random weights, large enough that its distributions are far from flat."""
    torch.manual_seed(seed)
    config = GPTConfig(block_size, vocab_size, n_layer, n_head, n_embd, **rest)
    model = GPT(config, gelu=gelu, n_ids=n_ids).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3)
        if '.ln_' in name and name.endswith('weight'):
            parameter.data += 1
    return model
