"""What happens inside a GPT while it reads: tensors of token ids in, the numbers behind visualize.py's pictures out.

Everything is seen as the model's own modules compute it (`watched`), or computed from that by the formula of the paper
that is named. Shapes in comments as in model.py: B rows of a batch, T tokens, C channels, nh heads of hs channels, V
token ids; and L layers.
"""

import inspect
import math
from typing import NamedTuple

import torch
from torch.nn import functional as F

from lm.alternatives import entropy, rank_tokens
from model import GPT, MLP, Block, CausalSelfAttention, attend, logits_to_logprobs


class Passed(NamedTuple):
    """What went into a module, and what came out."""

    into: torch.Tensor
    out: torch.Tensor


@torch.no_grad()
def capture_activations(model, idx, modules=None):
    """Run all layers over (B, T) ids, watching what passes through the modules, all of them if None.

    Returns the hidden states, (B, T, C), and {module: Passed}.
    """
    seen = {}

    def note(module, inputs, output):
        seen[module] = Passed(inputs[0], output)

    hooks = [module.register_forward_hook(note) for module in (model.modules() if modules is None else modules)]
    try:
        return model.hidden(idx), seen
    finally:
        for hook in hooks:
            hook.remove()


def residual_stream(model, idx):
    """Return the residual stream after the embedding and after each block, (L + 1, B, T, C), for (B, T) ids."""
    stops = [model.transformer.drop, *model.transformer.h]
    _, seen = capture_activations(model, idx, stops)
    return torch.stack([seen[stop].out for stop in stops])


# Attention ------------------------------------------------------------------------------------------------------------


def split_heads(qkv, n_head):
    """Return queries, keys and values by head, (B, nh, T, hs) each, of c_attn's output, (B, T, 3C)."""
    B, T, C = qkv.size(0), qkv.size(1), qkv.size(2) // 3
    return qkv.view(B, T, 3, n_head, C // n_head).permute(2, 0, 3, 1, 4).unbind(0)


def attention_weights(qkv, n_head):
    """Return how much each token takes from each: softmax(q k^T / sqrt(hs)), the future masked (Vaswani et al. 2017).

    qkv: (B, T, 3C), what c_attn gives. The fused attention of model.py never holds these weights, so they are computed
    here by the formula. Returns (B, nh, T, T) in float32 or better; each row sums to 1.
    """
    q, k, _ = split_heads(qkv.to(torch.promote_types(qkv.dtype, torch.float32)), n_head)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, nh, T, T)
    future = torch.ones_like(scores, dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -math.inf).softmax(-1)


def layer_attentions(model, idx):
    """Yield the attention weights of each layer, (B, nh, T, T), while the model reads (B, T) ids.

    One layer at a time: all at once they are 5 GB where GPT-2 XL reads 1,024 tokens.
    """
    matrices = [block.attn.c_attn for block in model.transformer.h]
    _, seen = capture_activations(model, idx, matrices)
    for matrix in matrices:
        yield attention_weights(seen[matrix].out, model.config.n_head)


def attention_rollout(means):
    """Follow attention through the layers, to say from which tokens each got what it holds.

    means: attention weights of each layer, the mean over its heads, L of (B, T, T). In each layer a token is taken to
    hold half of what it had, the residual stream, and half of what it gathered; what the MLPs do is left out (attention
    rollout, Abnar & Zuidema 2020, https://arxiv.org/abs/2005.00928). Returns (L, B, T, T): after each layer, the share
    of every token (last dimension) in every token; each row sums to 1.
    """
    shares = []
    for mean in means:
        half = (mean + torch.eye(mean.size(-1), dtype=mean.dtype, device=mean.device)) / 2
        shares.append(half @ shares[-1] if shares else half)
    return torch.stack(shares)


# What each layer would say --------------------------------------------------------------------------------------------


class Lens(NamedTuple):
    """What each layer would have said, first the embedding, last the model itself. Natural logarithms."""

    ids: torch.Tensor  # (L + 1, B, T) the likeliest next token after each position
    logprobs: torch.Tensor  # (L + 1, B, T) and how likely it is
    next_logprobs: torch.Tensor  # (L + 1, B, T - 1) how likely is the token that really came next
    next_ranks: torch.Tensor  # (L + 1, B, T - 1) and its rank, 1 for the likeliest


@torch.no_grad()
def logit_lens(model, idx):
    """Read the stream after every block as if it were the last: ln_f and lm_head, for (B, T) ids.

    The logit lens of nostalgebraist 2020, "interpreting GPT: the logit lens",
    https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens. Returns a Lens, whose last layer
    is what the model itself predicts.
    """
    following = idx[:, 1:, None]  # (B, T - 1, 1)
    layers = []
    for x in residual_stream(model, idx):  # one layer at a time: all logits of all layers at once would fill the memory
        logprobs = logits_to_logprobs(model.logits(model.transformer.ln_f(x)))  # (B, T, V)
        best = logprobs.max(-1)
        before = logprobs[:, :-1]
        of_next = before.gather(-1, following)
        layers.append((best.indices, best.values, of_next[..., 0], rank_tokens(before, following[..., 0])))
    return Lens(*map(torch.stack, zip(*layers, strict=True)))


# One distribution at several temperatures -----------------------------------------------------------------------------


class Kept(NamedTuple):
    """What a cut leaves: how many tokens, and their share of the probability before the cut."""

    tokens: int
    share: float


class Tempered(NamedTuple):
    """The distribution over the next token at one temperature, before top-k and top-p, and what these would leave."""

    temperature: float
    probs: torch.Tensor  # (V,)
    entropy: float  # nats
    by_top_k: Kept
    by_top_p: Kept
    by_both: Kept
    entropy_of_both: float  # of what both leave, nats


def temper_distribution(logits, temperature, top_k=None, top_p=None):
    """Return what (V,) logits say at a temperature, as a Tempered; top_k and top_p as in logits_to_logprobs."""
    plain, cut = logits_to_logprobs(logits, temperature), logits_to_logprobs(logits, temperature, top_k, top_p)
    probs = plain.double().exp()

    def kept(top_k, top_p):
        stays = logits_to_logprobs(logits, temperature, top_k, top_p) > -math.inf
        return Kept(stays.sum().item(), probs[stays].sum().item())

    return Tempered(
        temperature,
        probs,
        entropy(plain).item(),
        kept(top_k, None),
        kept(None, top_p),
        kept(top_k, top_p),
        entropy(cut).item(),
    )


# Embeddings -----------------------------------------------------------------------------------------------------------


def token_embeddings(model):
    """Return the embeddings of all real ids, (V, C)."""
    return model.transformer.wte.weight.detach()[: model.n_ids]


def nearest_neighbours(table, ids, k):
    """Return the k rows of a (V, C) table that point most nearly the same way as each of its rows `ids`, (N,).

    Returns their ids and cosines, both (N, k), the nearest first; a row is not its own neighbour.
    """
    unit = F.normalize(table.float(), dim=-1)
    cosines = unit[ids] @ unit.t()  # (N, V)
    cosines.scatter_(1, ids[:, None], -math.inf)
    best = cosines.topk(min(k, len(table) - 1))
    return best.indices, best.values


class Plane(NamedTuple):
    """Two directions, and where points lie along them."""

    points: torch.Tensor  # (N, 2)
    shares: torch.Tensor  # (2,) of the variance, that lies along each
    mean: torch.Tensor  # (C,)
    axes: torch.Tensor  # (2, C) of length 1, at right angles

    def project(self, x):
        """Return where further points, (M, C), lie: (M, 2)."""
        return (x.double() - self.mean) @ self.axes.t()


def pca(x):
    """Find the plane along which points, (N, C) with N and C at least 2, vary most.

    Principal component analysis (Pearson 1901, Hotelling 1933). The directions are the first right singular vectors of
    the centred points; each turned so that its largest number is positive, or a picture might be mirrored from one
    machine to the next.
    """
    x = x.double().cpu()
    mean = x.mean(0)
    _, sizes, axes = torch.linalg.svd(x - mean, full_matrices=False)
    variances = sizes**2
    axes = axes[:2] * axes[:2].gather(1, axes[:2].abs().argmax(1, keepdim=True)).sign()
    shares = variances[:2] / variances.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return Plane((x - mean) @ axes.t(), shares, mean, axes)


def lay_out(x, method, seed):
    """Lay (N, C) points out in a plane, (N, 2), so that those near by cosine stay near.

    method: 'tsne' (van der Maaten & Hinton 2008) or 'umap' (McInnes et al. 2018); neither keeps distances, and axes and
    gaps between groups mean nothing. Raises ImportError where scikit-learn or umap-learn is not installed.
    """
    x = x.float().cpu().numpy()
    if method == 'tsne':
        from sklearn.manifold import TSNE

        near = min(30, (len(x) - 1) / 3)
        layout = TSNE(perplexity=near, metric='cosine', init='random', random_state=seed)
    else:
        from umap import UMAP

        layout = UMAP(n_neighbors=min(15, len(x) - 1), metric='cosine', init='random', n_jobs=1, random_state=seed)
    return torch.from_numpy(layout.fit_transform(x)).double()


# One forward pass, step by step ---------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """One value on the way from ids to probabilities, in the words of model.py."""

    layer: int | None  # None outside the blocks
    function: str  # of model.py, in which it is computed
    line: int  # of model.py
    code: str  # that line
    name: str  # the value in the code's own words
    letters: str  # its shape: 'B, T, C'
    meaning: str
    value: torch.Tensor


def source_line(function, fragment):
    """Return the number and the text of the line of a function that holds `fragment`, its first line if none does."""
    lines, first = inspect.getsourcelines(function)
    place = next((place for place, line in enumerate(lines) if fragment in line), 0)
    return first + place, lines[place].strip()


@torch.no_grad()
def trace_forward(model, idx):
    """Return every step of one forward pass in the order of the code, a list of Seen, for (B, T) ids.

    What a module computes is taken from the module as it runs. What model.py holds in no module, the heads and their
    weights, is computed from it; the fused attention keeps its weights to itself.
    """
    x, seen = capture_activations(model, idx)
    steps = []

    def step(function, fragment, name, letters, meaning, value, layer=None):
        line, code = source_line(function, fragment)
        steps.append(Seen(layer, function.__qualname__, line, code, name, letters, meaning, value))

    of = model.transformer
    hidden, embeds = GPT.hidden, 'self.transformer.wte(idx)'
    step(hidden, 'def hidden', 'idx', 'B, T', 'the ids of the tokens', idx)
    step(hidden, 'positions = ', 'positions', 'T', 'where each token stands', seen[of.wpe].into)
    step(hidden, embeds, 'wte(idx)', 'B, T, C', 'what each token is', seen[of.wte].out)
    step(hidden, embeds, 'wpe(positions)', 'T, C', 'what its place is', seen[of.wpe].out)
    step(hidden, embeds, 'x', 'B, T, C', 'their sum: the stream begins', seen[of.drop].out)
    for layer, block in enumerate(of.h):
        for one in block_steps(block, seen, model.config.n_head):
            step(*one, layer=layer)
    step(hidden, 'ln_f(x)', 'ln_f(x)', 'B, T, C', 'the stream, scaled for reading out', seen[of.ln_f].out)
    logits, to_logprobs = model.logits(x), logits_to_logprobs
    step(GPT.logits, 'lm_head(x)', 'lm_head(x)', 'B, T, V', 'a score for each id', model.lm_head(x))
    if model.n_ids < model.config.vocab_size:
        step(GPT.logits, '-math.inf', 'logits', 'B, T, V', f'-inf from id {model.n_ids} on: padding', logits)
    step(to_logprobs, 'F.log_softmax(logits', 'logprobs', 'B, T, V', 'their logarithmic softmax', to_logprobs(logits))
    return steps


def block_steps(block, seen, n_head):
    """Yield what `trace` says of one block."""
    attn, mlp = block.attn, block.mlp
    qkv = seen[attn.c_attn].out
    q, k, v = split_heads(qkv, n_head)
    weights = attention_weights(qkv, n_head)
    gathered = weights.to(v.dtype) @ v
    normal = 'mean 0, variance 1, gain' + ', bias' * (block.ln_1.bias is not None)
    forward, heads, fused = CausalSelfAttention.forward, 'qkv = qkv.view(', 'F.scaled_dot_product_attention'
    yield Block.forward, 'self.ln_1(x)', 'ln_1(x)', 'B, T, C', normal, seen[block.ln_1].out
    yield forward, 'self.c_attn(x)', 'c_attn(x)', 'B, T, 3C', 'query, key, value side by side', qkv
    yield attend, heads, 'q = qkv[0]', 'B, nh, T, hs', 'what each token asks, by head', q
    yield attend, heads, 'k = qkv[1]', 'B, nh, T, hs', 'what it answers to', k
    yield attend, heads, 'v = qkv[2]', 'B, nh, T, hs', 'what it hands over', v
    yield attend, fused, 'softmax(q kᵀ / √hs)', 'B, nh, T, T', 'who takes how much from whom', weights
    yield attend, fused, 'y', 'B, nh, T, hs', 'the values, gathered by weight', gathered
    yield (
        attend,
        'y.transpose(1, 2)',
        'y, heads side by side',
        'B, T, C',
        'what all heads gathered',
        seen[attn.c_proj].into,
    )
    yield forward, 'self.c_proj(y)', 'c_proj(y)', 'B, T, C', 'the heads, mixed', seen[attn.c_proj].out
    yield Block.forward, 'x = x + self.attn', 'x', 'B, T, C', 'the stream, attention added', seen[block.ln_2].into
    yield Block.forward, 'self.ln_2(x)', 'ln_2(x)', 'B, T, C', normal, seen[block.ln_2].out
    yield MLP.forward, 'self.c_fc(x)', 'c_fc(x)', 'B, T, 4C', 'out to four times the width', seen[mlp.c_fc].out
    yield MLP.forward, 'self.gelu', 'gelu(c_fc(x))', 'B, T, 4C', 'negatives shrunk to nearly 0', seen[mlp.gelu].out
    yield MLP.forward, 'self.c_proj', 'c_proj(gelu(...))', 'B, T, C', 'and back', seen[mlp.c_proj].out
    yield Block.forward, 'x + self.mlp', 'x', 'B, T, C', 'the stream, the MLP added', seen[block].out
