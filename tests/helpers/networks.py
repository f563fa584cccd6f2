"""Small random models of many architectures, made with transformers."""

import functools

import pytest
import torch

SIZES = {
    'hidden_size': 32,
    'intermediate_size': 64,
    'num_hidden_layers': 3,
    'num_attention_heads': 4,
    'max_position_embeddings': 48,
}
GROUPED = SIZES | {'num_key_value_heads': 2, 'pad_token_id': 0}
GEMMA = GROUPED | {'head_dim': 8, 'query_pre_attn_scalar': 8}
OLDER = {'n_embd': 32, 'n_layer': 3, 'n_head': 4, 'n_positions': 48}
OPT = {'hidden_size': 32, 'ffn_dim': 64, 'num_hidden_layers': 3, 'num_attention_heads': 4, 'word_embed_proj_dim': 16}
LOCAL = {'attention_types': [[['global', 'local'], 1]], 'window_size': 8}  # GPT-Neo: every other layer has a window
# Each architecture with its settings; sizes apart, those that make it differ from others.
ARCHITECTURES = {
    'llama': GROUPED,
    'mistral': GROUPED | {'sliding_window': 8},
    'qwen2': GROUPED,
    'qwen3': GROUPED | {'head_dim': 8},
    'gemma': GROUPED | {'head_dim': 8},
    'gemma2': GEMMA | {'sliding_window': 8},  # caps attention and logits
    'gemma3_text': GEMMA | {'sliding_window': 8, 'final_logit_softcapping': 5.0},
    'gpt_neo': {'hidden_size': 32, 'num_layers': 2, 'num_heads': 4, 'max_position_embeddings': 48, **LOCAL},
    'gpt_neox': SIZES,
    'gptj': OLDER | {'rotary_dim': 4},
    'opt': OPT | {'max_position_embeddings': 48},
    'bloom': {'hidden_size': 32, 'n_layer': 3, 'n_head': 4},
    'phi': SIZES,
    'phi3': GROUPED,
    'falcon': {'hidden_size': 32, 'num_hidden_layers': 3, 'num_attention_heads': 4, 'alibi': True},
    'olmo2': GROUPED,
    'stablelm': GROUPED,
    'granite': GROUPED | {'logits_scaling': 3.0, 'embedding_multiplier': 2.0},
    'cohere': GROUPED | {'logit_scale': 0.25},
    'smollm3': GROUPED,
    'gpt_bigcode': OLDER,
    'mixtral': GROUPED | {'num_local_experts': 4},
}


# What the tests without `slow` try: those that differ most from each other.
FEW = ('llama', 'gemma2', 'gpt_neox', 'opt', 'bloom', 'cohere')
KINDS = [pytest.param(kind, marks=() if kind in FEW else pytest.mark.slow) for kind in ARCHITECTURES]


@functools.cache
def random_network(kind, vocab_size=61, seed=0, **settings):
    """Return an AutoModelForCausalLM with random weights, large enough that its distributions are far from flat."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    roles = {'bos_token_id': 1, 'eos_token_id': 2}
    settings = {'vocab_size': vocab_size, **roles, **ARCHITECTURES.get(kind, SIZES), **settings}
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).eval().float()
    for parameter in network.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return network


def save_network(kind, folder, tokenizer, **settings):
    """Write a random model with a tokenizer into a folder, as if it had been trained with it; return its network."""
    roles = {f'{name}_token_id': tokenizer.eot for name in ('bos', 'eos')}
    network = random_network(kind, vocab_size=tokenizer.vocab_size, max_position_embeddings=48, **roles, **settings)
    network.save_pretrained(folder)
    tokenizer.save(folder)
    return network
