"""Layers of Llama and its relatives in transformers, optimised for inference on a CPU.

With one row at a time, such a model spends as long between its matrices as in them: some forty small operations a
layer, each called from Python. Here queries, keys and values come from one product, so do both inputs of the MLP's
gate, and what lies between is a dozen operations. What they compute is what transformers' layers compute; tests compare
the two.
"""

import torch
import torch.nn as nn
from torch.nn import functional as F

from lm.matrices import in_rows

# Each has RMSNorm before attention and before a gated MLP, rotary positions, and queries in groups that share keys.
KNOWN = ('Llama', 'Mistral', 'Qwen2', 'Qwen3')


def is_known(layer):
    """Return whether a layer of transformers can be replaced by a PackedDecoderLayer."""
    name = type(layer).__name__.removesuffix('DecoderLayer')
    is_theirs = type(layer).__module__ == f'transformers.models.{name.lower()}.modeling_{name.lower()}'
    if name not in KNOWN or not is_theirs:
        return False
    config = layer.self_attn.config
    rotary = getattr(config, 'rope_parameters', None) or {}
    return rotary.get('partial_rotary_factor', 1) == 1 and not getattr(config, 'pretraining_tp', 1) > 1


class PackedDecoderLayer(nn.Module):
    """One layer: attention, then the MLP; each adds its output to the residual stream.

    Shapes: B rows of a batch, T new tokens, S tokens in all, nh heads of queries, nkv of keys and values, hs channels
    of a head.
    """

    def __init__(self, layer, matrix):
        """layer: of transformers. matrix: one of the classes in matrices.py."""
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.layer_idx, self.hs, self.scale = attention.layer_idx, attention.head_dim, attention.scaling
        self.nkv = attention.k_proj.out_features // self.hs
        self.nh = attention.q_proj.out_features // self.hs
        self.norm_1, self.norm_2 = layer.input_layernorm, layer.post_attention_layernorm
        self.head_norms = (attention.q_norm, attention.k_norm) if hasattr(attention, 'q_norm') else None
        self.qkv = matrix(join_linears(attention.q_proj, attention.k_proj, attention.v_proj))
        self.gate_and_up = matrix(join_linears(mlp.gate_proj, mlp.up_proj))
        self.attention_out, self.mlp_out = matrix(attention.o_proj), matrix(mlp.down_proj)
        self.activation = mlp.act_fn

    def forward(self, x, attention_mask=None, past_key_values=None, position_embeddings=None, **_):
        """x: (B, T, C). position_embeddings: cosines and sines, (B or 1, T, hs) each. Returns (B, T, C)."""
        B, T, C = x.shape
        enough = self.qkv.enough_rows
        x = in_rows(x, enough)  # (R, C) with R >= B * T
        qkv = self.qkv(rms_norm(x, self.norm_1))[: B * T].view(B, T, self.nh + 2 * self.nkv, self.hs)
        y = self.attend(qkv, attention_mask, past_key_values, position_embeddings)  # (B, T, nh * hs)
        x = self.attention_out(in_rows(y, enough), add_to=x)
        gate, up = self.gate_and_up(rms_norm(x, self.norm_2)).chunk(2, dim=-1)
        x = self.mlp_out(self.activation(gate) * up, add_to=x)
        return x[: B * T].view(B, T, C)

    def attend(self, qkv, mask, cache, position_embeddings):
        """Return what each new token takes from those it sees, (B, T, nh * hs). qkv: (B, T, nh + 2 * nkv, hs)."""
        B, T = qkv.shape[:2]
        qk, v = qkv[:, :, : self.nh + self.nkv], qkv[:, :, self.nh + self.nkv :]
        if self.head_norms is not None:
            q, k = qk.split((self.nh, self.nkv), dim=2)
            qk = torch.cat([rms_norm(q, self.head_norms[0]), rms_norm(k, self.head_norms[1])], dim=2)
        q, k = rotate(qk, *position_embeddings).transpose(1, 2).split((self.nh, self.nkv), dim=1)  # (B, ., T, hs)
        v = v.transpose(1, 2)  # (B, nkv, T, hs)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)  # (B, nkv, S, hs)
        if T == 1:  # the queries of a group are like several tokens that see the same
            q = q.reshape(B, self.nkv, self.nh // self.nkv, self.hs)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
            return y.reshape(B, 1, self.nh * self.hs)
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=self.scale, enable_gqa=self.nkv < self.nh
        )
        return y.transpose(1, 2).reshape(B, T, self.nh * self.hs)


def join_linears(*linears):
    """Return one Linear layer with the outputs of all, side by side."""
    joined = nn.Linear(1, 1, bias=linears[0].bias is not None)
    joined.weight = nn.Parameter(torch.cat([linear.weight.detach() for linear in linears]), requires_grad=False)
    if joined.bias is not None:
        joined.bias = nn.Parameter(torch.cat([linear.bias.detach() for linear in linears]), requires_grad=False)
    return joined


def rms_norm(x, norm):
    """Return x, divided by the root of its mean square over the last dimension and scaled by the gains of `norm`."""
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


def rotate(x, cosines, sines):
    """Turn each pair of channels (i, i + hs / 2) by its angle (Su et al. 2021, https://arxiv.org/abs/2104.09864).

    x: (B, T, heads, hs). cosines, sines: (B or 1, T, hs), the second half like the first.
    """
    half = x.size(-1) // 2
    sines = torch.cat([-sines[..., :half], sines[..., half:]], dim=-1)
    return torch.addcmul(x * cosines.unsqueeze(2), x.roll(half, dims=-1), sines.unsqueeze(2))
