"""GPT-2 in one file: the network, its cache, and how logits become tokens and probabilities.

The architecture is that of Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (GPT-2), a
decoder-only Transformer (Vaswani et al. 2017) with layer normalisation before each sub-layer. Parameter names and
`GPTConfig` are nanoGPT's, so checkpoints can be exchanged in both directions.

Read it from top to bottom, as the data flows: configuration; attention, MLP and block; cache; how logits become
log-probabilities and tokens; `LanguageModel`, all that sampling, scoring and search need; `GPT`.
Shapes in comments: B rows in a batch, T new tokens, S tokens in all (those in the cache, then the new ones), C = n_embd
channels, nh heads of hs = C / nh channels, L layers, V token ids.
"""

import copy
import math
import random
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recompute_in_backward


@dataclass
class GPTConfig:
    """The shape of a GPT. The defaults are GPT-2's smallest, its 50,257 ids padded to a multiple of 64 for speed."""

    block_size: int = 1024  # the longest context, in tokens
    vocab_size: int = 50304  # token ids, including padding ids that no text uses
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True  # biases in Linear and LayerNorm, as in GPT-2


def attend(qkv, n_head, cache=None, layer=None, dropout=0.0):
    """Causal self-attention: each token attends to itself and the tokens before it, including those in the cache.

    qkv: (B, T, 3C), the new tokens' queries, keys and values side by side. layer: the index of this layer in the cache.
    Returns (B, T, C).
    """
    B, T, C = qkv.size(0), qkv.size(1), qkv.size(2) // 3
    qkv = qkv.view(B, T, 3, n_head, C // n_head).permute(2, 0, 3, 1, 4)  # (3, B, nh, T, hs)
    q, kv = qkv[0], qkv[1:]  # (B, nh, T, hs), (2, B, nh, T, hs)
    k, v = kv if cache is None else cache.append(layer, kv)  # (B, nh, S, hs) each
    mask = None if cache is None else cache.mask
    causal = True if mask is None and k.size(2) == T else False  # noqa: SIM210 (torch.compile needs a plain bool)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout)  # (B, nh, T, hs)
    return y.transpose(1, 2).reshape(B, T, C)  # the outputs of all heads side by side


class CausalSelfAttention(nn.Module):
    """Multi-head attention: project to queries, keys and values, attend, project back."""

    def __init__(self, config):
        super().__init__()
        if config.n_head < 1 or config.n_embd % config.n_head:
            raise ValueError(f'n_embd={config.n_embd} is not a multiple of n_head={config.n_head}')
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # queries, keys, values in one
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.n_head = config.n_head

    def forward(self, x, cache=None, layer=None):
        y = attend(self.c_attn(x), self.n_head, cache, layer, self.resid_dropout.p if self.training else 0.0)
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    """Each token by itself: widen to 4C, apply GELU, project back to C."""

    def __init__(self, config, gelu):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.gelu = nn.GELU(approximate=gelu)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x))))


class Block(nn.Module):
    """One layer: attention, then the MLP; each adds its output to the residual stream."""

    def __init__(self, config, gelu):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config, gelu)

    def forward(self, x, cache=None, layer=None):
        x = x + self.attn(self.ln_1(x), cache, layer)
        return x + self.mlp(self.ln_2(x))


class Cache:
    """The keys and values of all tokens processed so far, for every layer and every row of a batch.

    Rows may hold different numbers of tokens. Each row then has its own positions, and a mask hides what lies beyond
    its end. To process prompts of different lengths in one batch, pad them on the right and `rewind` to their lengths.
    """

    def __init__(self, kv):
        """kv: (L, 2, B, nh, length, hs), room for `length` tokens a row. Zeros, since a mask does not hide nan."""
        self.kv = kv
        self.lengths = torch.zeros(kv.size(2), dtype=torch.int64)  # (B,) tokens that each row holds, on the CPU
        self.ragged = False  # whether the rows differ in length
        self.start = self.end = 0  # the longest row's length before and after the tokens being processed
        self.mask = None  # what those tokens may attend to: (T, S) or (B, 1, T, S); None: no mask is needed
        self.places = None  # (B, 1, T, 1) where their keys and values go; None: from start to end in every row

    @property
    def nbytes(self):
        return self.kv.nbytes

    def reserve(self, T):
        """Make room for T more tokens in each row; return their positions, (T,), or (B, T) if the rows differ."""
        starts, self.lengths = self.lengths, self.lengths + T  # (B,)
        self.start, self.end, self.mask, self.places = self.end, self.end + T, None, None
        if self.end > self.kv.size(4):  # at least double the room, so that it rarely grows
            self.kv = F.pad(self.kv, (0, 0, 0, max(self.end - self.kv.size(4), self.kv.size(4))))
        self.seen, self.new = (self.kv[..., a : self.end, :].unbind() for a in (0, self.start))  # L views each
        if self.ragged:
            positions = (starts[:, None] + torch.arange(T)).to(self.kv.device)  # (B, T)
            self.places = positions[:, None, :, None]
            self.mask = torch.arange(self.end, device=self.kv.device) <= self.places  # (B, 1, T, S)
            return positions
        if 1 < T < self.end:  # is_causal would align its triangle with the first key, not the last
            self.mask = torch.ones(T, self.end, dtype=torch.bool, device=self.kv.device).tril(self.start)
        return torch.arange(self.start, self.end, device=self.kv.device)

    def tensors(self):
        """Return views of all keys and values, each with the shape (B, ..., room, hs)."""
        return [self.kv.movedim(2, 0)]

    def append(self, layer, kv):
        """Store one layer's keys and values of the T new tokens, (2, B, nh, T, hs); return a view of all S."""
        if self.places is None:
            self.new[layer].copy_(kv.detach())
        else:
            self.kv[layer].scatter_(3, self.places.expand_as(kv), kv.detach())  # along the tokens
        return self.seen[layer]  # (2, B, nh, S, hs)

    def take(self, rows):
        """Return a new cache made of these rows, (n,) indices; a row may be taken several times."""
        taken = copy.copy(self)
        taken.kv = self.kv.index_select(2, rows.to(self.kv.device))
        taken._set_lengths(self.lengths[rows.cpu()])
        return taken

    def expand(self, n):
        """Return a new cache with n copies of the only row."""
        return self.take(torch.zeros(n, dtype=torch.int64))

    def rewind(self, length):
        """Forget all but the first `length` tokens; an int for every row, or a (B,) tensor."""
        self._set_lengths(torch.minimum(self.lengths, torch.as_tensor(length).cpu()))

    def _set_lengths(self, lengths):
        self.lengths, self.end, self.new, self.seen = lengths, int(lengths.max()), (), ()
        self.ragged = bool((lengths < self.end).any())


# From logits to probabilities and tokens ------------------------------------------------------------------------------


def check_sampler(temperature=1.0, top_k=None, top_p=None, min_p=None, repetition_penalty=1.0):
    """Raise ValueError for settings that `logits_to_logprobs` cannot use."""
    if not 0 <= temperature < math.inf:
        raise ValueError(f'temperature={temperature}: it must be 0 (greedy) or a positive number')
    if top_k is not None and top_k < 1:
        raise ValueError(f'top_k={top_k}: it must be at least 1, or None for all tokens')
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f'top_p={top_p}: it must be above 0 and at most 1, or None for all tokens')
    if min_p is not None and not 0 <= min_p <= 1:
        raise ValueError(f'min_p={min_p}: it must be 0 to 1, or None for all tokens')
    if not 0.01 <= repetition_penalty <= 100:
        raise ValueError(f'repetition_penalty={repetition_penalty}: it must be 0.01 to 100; 1 changes nothing')


def logits_to_logprobs(logits, temperature=1.0, top_k=None, top_p=None, min_p=None, repetition_penalty=1.0, text=None):
    """Turn logits into log-probabilities. Everything that samples, scores or searches gets them from here.

    logits: (..., V). repetition_penalty: the logits of ids in text, (..., S), the prompt and all that follows it so
    far, are divided by it, or multiplied if negative (Keskar et al. 2019, https://arxiv.org/abs/1909.05858).
    temperature: divides all; 0 gives all probability to the likeliest token, among equals to the lowest id. top_k: keep
    the k likeliest tokens. top_p: of these, keep the likeliest that together reach this probability (nucleus sampling,
    Holtzman et al. 2020, https://arxiv.org/abs/1904.09751). min_p: of these, keep those at least min_p times as likely
    as the likeliest (Nguyen et al. 2024, https://arxiv.org/abs/2407.01082). Each keeps the equals of the last one, too.
    Returns (..., V) natural logs, float32: the model's with the defaults, otherwise the sampler's. Raises ValueError
    for invalid settings, FloatingPointError for inf or nan.
    """
    check_sampler(temperature, top_k, top_p, min_p, repetition_penalty)
    logits = logits.float()
    if repetition_penalty != 1:
        old = logits.gather(-1, text)  # (..., S)
        logits = logits.scatter(-1, text, torch.where(old < 0, old * repetition_penalty, old / repetition_penalty))
    if temperature == 0:
        return torch.full_like(logits, -math.inf).scatter(-1, logits.argmax(-1, keepdim=True), 0.0)
    if top_k is not None and top_k < logits.size(-1):
        values, ids = logits.topk(top_k + 1)  # (..., k + 1), in descending order
        if (values[..., -1] < values[..., -2]).all():  # go on with the k kept, which is much faster
            kept = logits_to_logprobs(values[..., :-1], temperature, None, top_p, min_p)
            return torch.full_like(logits, -math.inf).scatter(-1, ids[..., :-1], kept)
        logits = logits.masked_fill(logits < values[..., -2:-1], -math.inf)
    if temperature != 1:
        # Subtract the largest first: a tiny temperature would give inf - inf. The limits are those of float32.
        logits = (logits - logits.amax(-1, keepdim=True)) / min(max(temperature, 1.2e-38), 3e38)
    logprobs = F.log_softmax(logits, dim=-1)
    if logprobs[..., 0].isnan().any():  # one inf or nan makes a whole row nan
        raise FloatingPointError('the logits are not finite: the weights, or float16, led to too large numbers')
    if top_p is not None and top_p < 1:
        likeliest = logprobs.sort(descending=True).values
        before = likeliest.exp().cumsum(-1) - likeliest.exp()  # the total probability of all likelier tokens
        n_kept = (before < top_p).sum(-1, keepdim=True).clamp(min=1)  # (..., 1); a tiny top_p keeps the likeliest token
        least = likeliest.gather(-1, n_kept - 1)  # (..., 1), the logprob of the last token kept
        logprobs = F.log_softmax(logprobs.masked_fill(logprobs < least, -math.inf), dim=-1)
    if min_p:
        least = logprobs.amax(-1, keepdim=True) + math.log(min_p)  # (..., 1)
        logprobs = F.log_softmax(logprobs.masked_fill(logprobs < least, -math.inf), dim=-1)
    return logprobs


def sample(logprobs, uniforms):
    """Sample one id per row, (B,) int64, by inverting the cumulative distribution, in id order.

    logprobs: (B, V) on the CPU. uniforms: B numbers in [0, 1), which do not come from the device: every device samples
    the same ids, unless rounding in the logits tips the balance.
    """
    possible = (logprobs.amax(0) > -math.inf).nonzero()[:, 0]  # (K,) ids: after top-k, far fewer than V
    cdf = logprobs.index_select(1, possible).double().exp().cumsum(-1)  # (B, K)
    cdf = cdf / cdf[:, -1:]  # after rounding, the last need not be exactly 1
    return possible[torch.searchsorted(cdf, torch.tensor(uniforms, dtype=cdf.dtype)[:, None], right=True)[:, 0]]


class Step(NamedTuple):
    """One token per row of a batch, and how likely it was. Logprobs are natural logarithms, float64, on the CPU."""

    ids: torch.Tensor  # (B,) the chosen token ids
    sampler_logprob: torch.Tensor  # (B,) under the sampler: after the settings of `logits_to_logprobs`
    model_logprob: torch.Tensor  # (B,) under the model: log-softmax of the raw logits
    logits: torch.Tensor  # (B, V) what each id was chosen from; -inf for ids that no text uses
    text: torch.Tensor  # (B, T) all ids before it, on the model's device


class LanguageModel(nn.Module):
    """The interface of a language model: sampling, scoring and search use only what is declared here. A subclass
    provides `device`, `block_size`, `n_ids`, `new_cache`, `hidden` and `logits`, and inherits the rest."""

    n_ids: int  # how many ids are real; any above are padding and have probability 0
    block_size: int  # the longest context, in tokens
    device: torch.device  # where token ids must be

    def new_cache(self, batch_size, length):
        """Return an empty Cache with room for `length` tokens a row; it grows when it must."""
        raise NotImplementedError

    def hidden(self, idx, cache=None):
        """Process (B, T) ids after those in the cache; return hidden states, (B, T, C), after the final LayerNorm."""
        raise NotImplementedError

    def logits(self, x):
        """Return (..., V) logits of (..., C) hidden states; -inf for padding ids, which drop out of every softmax."""
        raise NotImplementedError

    def forward(self, idx, targets=None):
        """Predict the next token, as in nanoGPT.

        idx: (B, T) ids with T <= block_size. targets: (B, T) the id that follows each; -1 is left out of the loss.
        Returns (logits of the last position (B, 1, V), None), or with targets (logits (B, T, V), mean loss in nats).
        """
        x = self.hidden(idx)
        if targets is None:
            return self.logits(x[:, [-1]]), None
        logits = self.logits(x)
        return logits, F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-1)

    def prefill(self, idx, length):
        """Process a prompt, (B, T) ids; return the logits after it, (B, V), and a cache with room for `length` ids."""
        cache = self.new_cache(idx.size(0), length)
        return self.logits(self.hidden(idx, cache)[:, -1]), cache

    def decode(self, ids, cache):
        """Process one more token per row, (B,) ids; return the logits after it, (B, V)."""
        return self.logits(self.hidden(ids[:, None], cache)[:, -1])

    def next_logits(self, text, cache, length):
        """Return the logits that follow a growing text, (B, V), and the cache for the next call.

        text: (B, T) ids, one more per row at each call. cache: None in the first call. length: how long the text will
        get. Beyond block_size all positions change with each token, so the last block_size tokens are processed again.
        """
        if cache is not None and text.size(1) <= self.block_size:
            return self.decode(text[:, -1], cache), cache
        return self.prefill(text[:, -self.block_size :], min(length, self.block_size))

    @torch.no_grad()
    def steps(self, idx, max_new_tokens=None, temperature=1.0, top_k=None, fixed_response=None, seed=None, **others):
        """Generate token by token, yielding a `Step` for each: the caller sees every choice and may stop early.

        idx: (B, T) prompt ids, T >= 1, on the model's device. fixed_response: ids to score instead of sampling, the
        same for every row. It replaces max_new_tokens; temperature and repetition_penalty apply to it, but nothing is
        cut off. seed: row r has its own generator, seeded with (seed, r), so its text does not depend on the other
        rows; None takes a new seed from torch. others: top_p, min_p, repetition_penalty. Of a long text the model sees
        the last block_size tokens, the penalty all. Raises ValueError, at the first step, for an empty prompt, unknown
        ids, invalid settings or a missing length.
        """
        B, T = idx.shape
        n = len(fixed_response) if fixed_response is not None else max_new_tokens
        if n is None or n < 0:
            raise ValueError(f'max_new_tokens={n}: say how many tokens to generate, or give a fixed_response')
        self.check_ids([*idx.flatten().tolist(), *([] if fixed_response is None else fixed_response)], 'the text')
        if T == 0:
            raise ValueError('an empty prompt: begin with the id of <|endoftext|>')
        check_sampler(temperature, top_k, **others)
        if fixed_response is not None:
            top_k, others = None, {**others, 'top_p': None, 'min_p': None}
        seed = torch.randint(2**31, ()).item() if seed is None else seed
        # Random hashes a string, so that neighbouring seeds and rows give unrelated numbers.
        generators, rows = [random.Random(f'{seed} {row}') for row in range(B)], torch.arange(B)
        text, cache = idx, None
        for end in range(T, T + n):
            logits, cache = self.next_logits(text, cache, T + n)
            model_logprobs = logits_to_logprobs(logits).cpu()  # (B, V)
            sampler_logprobs = logits_to_logprobs(logits, temperature, top_k, text=text, **others).cpu()  # (B, V)
            if fixed_response is not None:
                ids = torch.full((B,), fixed_response[end - T])
            else:
                ids = sample(sampler_logprobs, [generator.random() for generator in generators])  # (B,)
            yield Step(ids, sampler_logprobs[rows, ids].double(), model_logprobs[rows, ids].double(), logits, text)
            text = torch.cat([text, ids[:, None].to(text.device)], dim=1)  # (B, end + 1)

    def generate(self, idx, max_new_tokens=None, temperature=1.0, top_k=None, fixed_response=None, **others):
        """Generate a whole response and return how likely it was; the arguments are those of `steps`.

        Returns the ids, (B, T + n), and each row's sampler probability: a float for one row, else a (B,) float64 CPU
        tensor. It underflows to 0.0 for long responses; the sum of the steps' logprobs does not.
        """
        ids, logprob = [idx], torch.zeros(idx.size(0), dtype=torch.float64)
        for step in self.steps(idx, max_new_tokens, temperature, top_k, fixed_response, **others):
            ids.append(step.ids[:, None].to(idx.device))
            logprob += step.sampler_logprob
        prob = logprob.exp()
        return torch.cat(ids, dim=1), prob.item() if len(prob) == 1 else prob

    def check_ids(self, ids, where):
        """Raise ValueError if the model does not have some of these ids. where: what holds them, for the message."""
        if unknown := sorted({id for id in ids if not 0 <= id < self.n_ids}):
            raise ValueError(f'{where}: unknown ids {unknown[:5]}; the model has ids 0 to {self.n_ids - 1}')

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        """Return AdamW with weight decay for matrices and embeddings, but not for biases and LayerNorm gains."""
        matrices = [p for p in self.parameters() if p.requires_grad and p.dim() >= 2]
        vectors = [p for p in self.parameters() if p.requires_grad and p.dim() < 2]
        groups = [{'params': matrices, 'weight_decay': weight_decay}, {'params': vectors, 'weight_decay': 0.0}]
        return torch.optim.AdamW(groups, learning_rate, betas, fused=device_type in ('cpu', 'cuda', 'mps', 'xpu'))


class GPT(LanguageModel):
    """A GPT language model; the methods that it inherits are described in `LanguageModel`.

    gelu: 'tanh' for GPT-2's approximation of GELU, 'none' for the exact function, which nanoGPT's models use.
    n_ids: how many of the vocab_size ids are real; None for all.
    """

    def __init__(self, config, gelu='tanh', n_ids=None):
        super().__init__()
        self.config, self.gelu, self.block_size = config, gelu, config.block_size
        self.n_ids = config.vocab_size if n_ids is None else n_ids
        self.gradient_checkpointing = False  # recompute each layer in the backward pass: slower, less memory
        parts = {
            'wte': nn.Embedding(config.vocab_size, config.n_embd),  # what each token is
            'wpe': nn.Embedding(config.block_size, config.n_embd),  # where it stands
            'drop': nn.Dropout(config.dropout),
            'h': nn.ModuleList([Block(config, gelu) for _ in range(config.n_layer)]),
            'ln_f': nn.LayerNorm(config.n_embd, bias=config.bias),
        }
        self.transformer = nn.ModuleDict(parts)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.tie_weights()
        self.apply(self._init_weights)
        for name, weight in self.named_parameters():
            if name.endswith('c_proj.weight'):  # 2 * n_layer add to the residual stream: keep its variance constant
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * config.n_layer))

    def tie_weights(self):
        """Use one matrix for both input and output embeddings (Press & Wolf 2017, https://arxiv.org/abs/1608.05859)."""
        self.lm_head.weight = self.transformer.wte.weight

    @staticmethod
    def _init_weights(module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    @classmethod
    def from_pretrained(cls, name_or_folder, override_args=None):
        """Load GPT-2 weights from the hub or from a folder; override_args may hold `dropout`, as in nanoGPT."""
        from lm.checkpoint import load_pretrained  # here, so that this file needs nothing but torch

        return load_pretrained(name_or_folder, **(override_args or {}))

    @property
    def device(self):
        return self.transformer.wte.weight.device

    def new_cache(self, batch_size, length):
        L, nh, hs = self.config.n_layer, self.config.n_head, self.config.n_embd // self.config.n_head
        return Cache(self.transformer.wte.weight.new_zeros(L, 2, batch_size, nh, length, hs))

    def hidden(self, idx, cache=None):
        T = idx.size(1)
        if (length := T if cache is None else cache.end + T) > self.block_size:
            raise ValueError(f'{length} tokens do not fit into block_size={self.block_size}')
        positions = torch.arange(T, device=idx.device) if cache is None else cache.reserve(T)  # (T,) or (B, T)
        x = self.transformer.drop(self.transformer.wte(idx) + self.transformer.wpe(positions))  # (B, T, C)
        recompute = self.gradient_checkpointing and self.training
        for layer, block in enumerate(self.transformer.h):
            x = recompute_in_backward(block, x, use_reentrant=False) if recompute else block(x, cache, layer)
        return self.transformer.ln_f(x)

    def logits(self, x):
        logits = self.lm_head(x)
        if self.n_ids < self.config.vocab_size:
            logits[..., self.n_ids :] = -math.inf
        return logits

    def get_num_params(self, non_embedding=True):
        """Count the parameters as nanoGPT does: without position embeddings, but with the tied token embeddings."""
        return sum(p.numel() for p in self.parameters()) - (self.transformer.wpe.weight.numel() if non_embedding else 0)

    def crop_block_size(self, block_size):
        """Drop the positions from block_size on, to fine-tune a pretrained model on shorter texts."""
        if not 1 <= block_size <= self.block_size:
            raise ValueError(f'block_size={block_size}: this model has room for 1 to {self.block_size} tokens')
        self.block_size = self.config.block_size = self.transformer.wpe.num_embeddings = block_size
        self.transformer.wpe.weight = nn.Parameter(self.transformer.wpe.weight[:block_size].detach().clone())

    def estimate_mfu(self, fwdbwd_per_iter, dt, peak_flops=312e12):
        """Model FLOPs utilisation (Chowdhery et al. 2022, PaLM, appendix B) of fwdbwd_per_iter sequences in dt seconds.

        peak_flops: of the device; by default, as in nanoGPT, of an A100 in bfloat16."""
        per_pair = 12 * self.config.n_layer * self.config.n_embd  # FLOPs, forward and backward, per pair of positions
        per_token = 6 * self.get_num_params() + per_pair * self.block_size
        return per_token * self.block_size * fwdbwd_per_iter / dt / peak_flops
