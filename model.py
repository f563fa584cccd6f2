"""GPT-2 in one file, and everything about its probabilities: tensors of token ids in, logits and log-probabilities out.

The architecture is that of Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (GPT-2), a
decoder-only Transformer (Vaswani et al. 2017) with layer normalisation before each sub-layer. Parameter names and
`GPTConfig` are those of nanoGPT, so that checkpoints go both ways.

Read it in the order the data flows: configuration, attention with its cache, MLP, block, the whole GPT; then logits
become log-probabilities and these become tokens; last comes what only training needs.
Shapes in comments: B rows of a batch, T tokens, C = n_embd channels, nh heads of hs = C / nh channels, V token ids.
"""

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
    """The shape of a GPT; the defaults are GPT-2's smallest, its 50,257 ids padded to a multiple of 64 for speed."""

    block_size: int = 1024  # the most tokens it can look back on, its own position included
    vocab_size: int = 50304  # token ids, padding ids that no text uses included
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True  # biases in Linear and LayerNorm, as GPT-2 has them


class LayerCache:
    """One layer's keys and values of the tokens seen so far, in memory set aside beforehand."""

    def __init__(self, config, batch_size, length, like):
        self.kv = like.new_empty(2, batch_size, config.n_head, length, config.n_embd // config.n_head)
        self.filled = 0  # tokens seen; to forget the last ones, lower it

    def append(self, kv):
        """Add the keys and values of new tokens, (2, B, nh, T, hs); return those of all tokens seen, a view."""
        start, self.filled = self.filled, self.filled + kv.size(3)
        self.kv[:, :, :, start : self.filled] = kv
        return self.kv[:, :, :, : self.filled]


def attend(qkv, n_head, cache=None, dropout=0.0):
    """Let every token gather from itself and the tokens before it, those in the cache included.

    qkv: (B, T, 3C), queries, keys and values of the new tokens side by side. Returns (B, T, C).
    """
    B, T, C = qkv.size(0), qkv.size(1), qkv.size(2) // 3
    qkv = qkv.view(B, T, 3, n_head, C // n_head).permute(2, 0, 3, 1, 4)  # (3, B, nh, T, hs)
    k, v = qkv[1:] if cache is None else cache.append(qkv[1:])  # (B, nh, S, hs) with S >= T: those before, then these
    S = k.size(2)
    # A single new token may look at everything. Several tokens after a cached prefix need a mask of their own,
    # since is_causal aligns its triangle with the first key, not the last.
    mask = torch.ones(T, S, dtype=torch.bool, device=k.device).tril(S - T) if 1 < T < S else None
    causal = True if T == S else False  # noqa: SIM210 (torch.compile takes a plain bool, not T == S)
    y = F.scaled_dot_product_attention(qkv[0], k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout)
    return y.transpose(1, 2).reshape(B, T, C)  # (B, nh, T, hs) to the heads side by side


class CausalSelfAttention(nn.Module):
    """Attention in several heads at once, between a matrix that asks and answers and one that mixes the heads."""

    def __init__(self, config):
        super().__init__()
        if config.n_head < 1 or config.n_embd % config.n_head:
            raise ValueError(f'n_embd={config.n_embd} cannot be shared out among n_head={config.n_head} heads')
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # queries, keys, values in one
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.n_head = config.n_head

    def forward(self, x, cache=None):
        y = attend(self.c_attn(x), self.n_head, cache, self.resid_dropout.p if self.training else 0.0)
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    """Each token by itself: out to four times the width, through GELU, and back."""

    def __init__(self, config, gelu):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.gelu = nn.GELU(approximate=gelu)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x))))


class Block(nn.Module):
    """One layer: what attention gathered is added to the stream, then what the MLP makes of it."""

    def __init__(self, config, gelu):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config, gelu)

    def forward(self, x, cache=None):
        x = x + self.attn(self.ln_1(x), cache)
        return x + self.mlp(self.ln_2(x))


class Step(NamedTuple):
    """One token per row of a batch, and how likely it was. Log-probabilities are natural, float64, on the CPU."""

    ids: torch.Tensor  # (B,) the chosen token ids
    logprob: torch.Tensor  # (B,) under the sampler: after temperature, top-k and top-p
    model_logprob: torch.Tensor  # (B,) under the model: softmax of the raw logits
    logits: torch.Tensor  # (B, V) what it was chosen from; ids the tokenizer does not have are -inf


def logits_to_logprobs(logits, temperature=1.0, top_k=None, top_p=None):
    """Turn logits into log-probabilities, the one place where that happens.

    logits: (..., V). temperature: divides the logits; 0 leaves all probability to the likeliest token, the one with
    the lowest id among equals. top_k: tokens less likely than the k-th likeliest get probability 0; those as likely
    as it stay. top_p: of what is left, the likeliest tokens stay whose probabilities together reach it, and those as
    likely as the last of them (nucleus sampling, Holtzman et al. 2020, https://arxiv.org/abs/1904.09751).
    With the defaults these are model probabilities, otherwise the sampler's.
    Returns (..., V) float32 natural logarithms. Raises ValueError for settings that cannot be meant.
    """
    if not 0 <= temperature < math.inf:
        raise ValueError(f'temperature={temperature}: it must be 0 (greedy) or a positive number')
    if top_k is not None and top_k < 1:
        raise ValueError(f'top_k={top_k}: it must be at least 1, or None for all tokens')
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f'top_p={top_p}: it must be above 0 and at most 1, or None for all tokens')
    logits = logits.float()
    if temperature == 0:
        greedy = torch.full_like(logits, -math.inf)
        return greedy.scatter(-1, logits.argmax(-1, keepdim=True), 0.0)
    if top_k is not None:
        kth = logits.topk(min(top_k, logits.size(-1))).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -math.inf)
    if temperature != 1:
        # Less the largest first, or a tiny temperature would overflow to inf - inf; float32 ends at these two limits.
        logits = (logits - logits.amax(-1, keepdim=True)) / min(max(temperature, 1.2e-38), 3e38)
    logprobs = F.log_softmax(logits, dim=-1)
    if top_p is None or top_p == 1:
        return logprobs
    left = (logprobs > -math.inf).sum(-1).max()  # after top-k, few are to be sorted
    likeliest = logprobs.topk(left).values  # likeliest first
    before = likeliest.exp().cumsum(-1) - likeliest.exp()  # what all that are likelier have together
    last = likeliest.gather(-1, (before < top_p).sum(-1, keepdim=True).clamp(min=1) - 1)
    return F.log_softmax(logprobs.masked_fill(logprobs < last, -math.inf), dim=-1)


def draw(logprobs, uniforms):
    """Draw one id per row by the inverse of the cumulative distribution in id order.

    logprobs: (B, V) on the CPU. uniforms: B numbers in [0, 1). Returns (B,) int64. One number a row and a fixed order
    make a draw reproducible on every device, whatever computed the logits.
    """
    ids = []
    for row, uniform in zip(logprobs, uniforms, strict=True):
        possible = (row > -math.inf).nonzero()[:, 0]  # in id order; after top-k and top-p these are few
        cdf = row[possible].double().exp().cumsum(0)
        place = torch.searchsorted(cdf / cdf[-1], uniform, right=True)  # rounding left the total a little off 1
        ids.append(possible[place])
    return torch.stack(ids)


class GPT(nn.Module):
    """A GPT language model: (B, T) token ids in, a distribution over the next token out.

    gelu: 'tanh' for GPT-2's approximation of GELU, 'none' for the exact one, which models trained by nanoGPT have.
    n_ids: how many of the vocab_size ids are real; the rest are padding and get probability 0. None for all.
    """

    def __init__(self, config, gelu='tanh', n_ids=None):
        super().__init__()
        self.config = config
        self.gelu = gelu
        self.n_ids = config.vocab_size if n_ids is None else n_ids
        self.gradient_checkpointing = False  # keep no layer's insides for the backward, compute them again: less memory
        self.transformer = nn.ModuleDict(
            {
                'wte': nn.Embedding(config.vocab_size, config.n_embd),  # what each token is
                'wpe': nn.Embedding(config.block_size, config.n_embd),  # where it stands
                'drop': nn.Dropout(config.dropout),
                'h': nn.ModuleList([Block(config, gelu) for _ in range(config.n_layer)]),
                'ln_f': nn.LayerNorm(config.n_embd, bias=config.bias),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.tie_weights()
        self.apply(self._init_weights)
        for block in self.transformer.h:
            # 2 * n_layer of these add to the stream; GPT-2 shrinks them so that its variance stays that of one.
            for layer in (block.attn.c_proj, block.mlp.c_proj):
                nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * config.n_layer))

    def tie_weights(self):
        """Read tokens in and out with the same matrix (Press & Wolf 2017, https://arxiv.org/abs/1608.05859)."""
        self.lm_head.weight = self.transformer.wte.weight

    @staticmethod
    def _init_weights(module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    @classmethod
    def from_pretrained(cls, name_or_folder, override_args=None):
        """Load GPT-2 weights from the hub or a folder; override_args may hold `dropout`, as in nanoGPT."""
        from checkpoint import load_pretrained  # here, so that the model itself needs nothing but torch

        return load_pretrained(name_or_folder, **(override_args or {}))

    def save_pretrained(self, folder, tokenizer=None):
        """Write a Hugging Face GPT-2 folder, which `transformers` loads too."""
        from checkpoint import save_pretrained

        save_pretrained(self, folder, tokenizer)

    # From token ids to logits ---------------------------------------------------------------------------------------

    def hidden(self, idx, caches=None):
        """Run all layers: (B, T) ids, after what `caches` (one a layer) have seen, to (B, T, C) hidden states."""
        start = caches[0].filled if caches else 0
        if start + idx.size(1) > self.config.block_size:
            raise ValueError(f'{start + idx.size(1)} tokens are more than block_size={self.config.block_size}')
        positions = torch.arange(start, start + idx.size(1), device=idx.device)
        x = self.transformer.drop(self.transformer.wte(idx) + self.transformer.wpe(positions))  # (B, T, C)
        for layer, block in enumerate(self.transformer.h):
            if self.gradient_checkpointing and self.training:
                x = recompute_in_backward(block, x, use_reentrant=False)
            else:
                x = block(x, caches[layer] if caches else None)
        return self.transformer.ln_f(x)

    def logits(self, x):
        """(..., C) hidden states to (..., V) logits; the padding ids have -inf and so take no part in any softmax."""
        logits = self.lm_head(x)
        if self.n_ids < self.config.vocab_size:
            logits[..., self.n_ids :] = -math.inf
        return logits

    def forward(self, idx, targets=None, want_logits=True):
        """Predict, as nanoGPT does.

        idx: (B, T) ids with T <= block_size. targets: (B, T) the id that follows each, -1 where none counts.
        Returns (logits (B, 1, V) at the last position, None) without targets, (logits (B, T, V), mean cross-entropy in
        nats) with them, and (None, the same loss) if want_logits is False, which never holds all the logits at once.
        """
        x = self.hidden(idx)
        if targets is None:
            return self.logits(x[:, [-1]]), None
        if not want_logits:
            from loss import lean_cross_entropy

            return None, lean_cross_entropy(x.flatten(0, 1), self.lm_head.weight, targets.flatten(), self.n_ids)
        logits = self.logits(x)
        return logits, F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-1)

    # From logits to tokens and their probabilities ------------------------------------------------------------------

    def prefill(self, idx, length):
        """Read a prompt, (B, T) ids; return its last logits, (B, V), and caches with room for `length` tokens."""
        like = self.transformer.wte.weight
        caches = [LayerCache(self.config, idx.size(0), length, like) for _ in range(self.config.n_layer)]
        return self.logits(self.hidden(idx, caches)[:, -1]), caches

    def decode(self, ids, caches):
        """Read one more token per row, (B,) ids; return the logits that follow, (B, V)."""
        return self.logits(self.hidden(ids[:, None], caches)[:, -1])

    def next_logits(self, text, caches, length):
        """Return the logits after text, (B, T), and the caches to come back with when it has a token more; first None.

        length: of the text in the end. Once it is longer than block_size, all positions change with every token and no
        cache holds: the last block_size tokens are read again each time.
        """
        block_size = self.config.block_size
        if caches is not None and text.size(1) <= block_size:
            return self.decode(text[:, -1], caches), caches
        return self.prefill(text[:, -block_size:], min(length, block_size))

    @torch.no_grad()
    def steps(self, idx, max_new_tokens=None, temperature=1.0, top_k=None, fixed_response=None, seed=None, top_p=None):
        """Generate token by token, yielding a `Step` for each, so that a reader sees every choice and may stop early.

        idx: (B, T) prompt ids, T >= 1, on the model's device. fixed_response: ids to be said instead of drawn ones, the
        same for each row; temperature applies to them, top_k and top_p do not. seed: row r draws with a random
        generator of its own, made from (seed, r), so its text does not depend on the rows around it; None takes a new
        seed from torch's. Where the text is longer than block_size, the model sees its last block_size tokens.
        Raises ValueError for what cannot be meant: no prompt, unknown ids, no length, a negative temperature.
        """
        B, T = idx.shape
        n = len(fixed_response) if fixed_response is not None else max_new_tokens
        if n is None or n < 0:
            raise ValueError(f'max_new_tokens={n}: say how many tokens to generate, or give a fixed_response')
        self.check_ids(idx.flatten().tolist() + list(fixed_response or []), 'the prompt and the fixed response')
        if T == 0:
            raise ValueError('an empty prompt: begin with the id of <|endoftext|>')
        if fixed_response is not None:
            top_k = top_p = None
        logits_to_logprobs(torch.zeros(1), temperature, top_k, top_p)  # a bad setting is told of before the work
        seed = torch.randint(2**31, ()).item() if seed is None else seed
        generators = [random.Random(f'{seed} {row}') for row in range(B)]  # hashes the text: near seeds, far numbers
        text, caches = F.pad(idx, (0, n)), None  # (B, T + n)
        for end in range(T, T + n):
            logits, caches = self.next_logits(text[:, :end], caches, T + n)
            sampler = logits_to_logprobs(logits, temperature, top_k, top_p).cpu()
            if fixed_response is not None:
                ids = torch.full((B,), fixed_response[end - T])
            else:
                ids = draw(sampler, [generator.random() for generator in generators])
            text[:, end] = ids.to(text.device)
            of_model = logits_to_logprobs(logits).cpu()
            yield Step(ids, *(of.gather(-1, ids[:, None])[:, 0].double() for of in (sampler, of_model)), logits)

    def generate(
        self, idx, max_new_tokens=None, temperature=1.0, top_k=None, fixed_response=None, seed=None, top_p=None
    ):
        """Generate a whole response and say how likely it was; the arguments are those of `steps`.

        Returns the ids, (B, T + n), and the sampler probability of each row's response: a float for one row, a (B,)
        float64 CPU tensor for more. It underflows to 0.0 for long responses; the sum of the steps' logprobs does not.
        """
        ids, logprob = [idx], torch.zeros(idx.size(0), dtype=torch.float64)
        for step in self.steps(idx, max_new_tokens, temperature, top_k, fixed_response, seed, top_p):
            ids.append(step.ids[:, None].to(idx.device))
            logprob += step.logprob
        prob = logprob.exp()
        return torch.cat(ids, dim=1), prob.item() if len(prob) == 1 else prob

    def score(self, prompts, responses, temperature=1.0):
        """Log-probabilities of many fixed responses, each batch in one forward pass instead of a loop over tokens.

        prompts, responses: lists of lists of ids, prompts not empty. temperature: 1 for model probabilities. Returns
        for each pair the logprob of each response token, (len(response),) float64 on the CPU, equal to what `steps`
        gives for it as fixed_response, also where the window slides because the text is longer than block_size.
        """
        from scoring import score_pairs

        pairs = list(zip(prompts, responses, strict=True))
        for number, (prompt, response) in enumerate(pairs):
            self.check_ids([*prompt, *response], f'pair {number}')
            if not prompt:
                raise ValueError(f'pair {number} has an empty prompt: begin with the id of <|endoftext|>')
        return [score.sampler_logprobs for score in score_pairs(self, pairs, temperature)]

    def check_ids(self, ids, where):
        """Raise ValueError if the model does not know one of these ids, the list of which is called `where`."""
        unknown = sorted({id for id in ids if not 0 <= id < self.n_ids})
        if unknown:
            raise ValueError(f'{where}: ids {unknown[:5]} are not among the {self.n_ids} that this model knows')

    # What only training needs ---------------------------------------------------------------------------------------

    def get_num_params(self, non_embedding=True):
        """Count the parameters, as nanoGPT does: without the position embeddings, but with the tied token ones."""
        positions = self.transformer.wpe.weight.numel() if non_embedding else 0
        return sum(parameter.numel() for parameter in self.parameters()) - positions

    def crop_block_size(self, block_size):
        """Forget the positions from block_size on, to fine-tune a pretrained model on shorter texts."""
        if not 1 <= block_size <= self.config.block_size:
            raise ValueError(f'block_size={block_size}: this model has room for 1 to {self.config.block_size} tokens')
        self.config.block_size = block_size
        self.transformer.wpe.weight = nn.Parameter(self.transformer.wpe.weight[:block_size].detach().clone())
        self.transformer.wpe.num_embeddings = block_size

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        """AdamW that decays matrices and embeddings but neither biases nor LayerNorm gains, fused where it can be."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups = [
            {'params': [p for p in parameters if p.dim() >= 2], 'weight_decay': weight_decay},
            {'params': [p for p in parameters if p.dim() < 2], 'weight_decay': 0.0},
        ]
        fused = device_type in ('cpu', 'cuda', 'mps', 'xpu')
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused)

    def estimate_mfu(self, fwdbwd_per_iter, dt, peak_flops=None):
        """Model FLOPs utilisation (Chowdhery et al. 2022, PaLM, appendix B) of fwdbwd_per_iter sequences in dt seconds.

        peak_flops: what the device could do at most, in FLOP/s; None looks it up or measures it for this model's.
        """
        if peak_flops is None:
            from hardware import peak_flops as peak_of

            peak_flops = peak_of(self.lm_head.weight.device, self.lm_head.weight.dtype)
        L, C, T = self.config.n_layer, self.config.n_embd, self.config.block_size
        # Forward and backward: 6 FLOPs a parameter and token, and 12 a channel, layer and pair of positions.
        flops_per_token = 6 * self.get_num_params() + 12 * L * C * T
        return flops_per_token * T * fwdbwd_per_iter / dt / peak_flops
