"""What happens inside a GPT while it reads: token ids in, the numbers that visualize.py draws out.

Everything is either captured from the model's own modules (`capture_activations`), or computed from that by the formula
of the paper that is named.
Shapes as in model.py: B rows of a batch, T tokens, C channels, nh heads of hs channels, V token ids; and L layers.
"""

import inspect
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn import functional as F

from lm import hub_internals
from lm.alternatives import entropy, rank_tokens
from model import GPT, MLP, Block, CausalSelfAttention, LanguageModel, attend, logits_to_logprobs


class Activation(NamedTuple):
    """What went into a module, and what came out."""

    input: Tensor
    output: Tensor


@torch.no_grad()
def capture_activations(
    model: GPT, idx: Int64[Tensor, 'B T'], modules=None
) -> tuple[Float[Tensor, 'B T C'], dict[torch.nn.Module, Activation]]:
    """Run all layers and record the input and output of the given modules; of all of them if None.

    Returns the hidden states and {module: Activation}.
    """
    seen = {}

    def record(module, inputs, output):
        seen[module] = Activation(inputs[0], output)

    hooks = [module.register_forward_hook(record) for module in (model.modules() if modules is None else modules)]
    try:
        return model.hidden(idx), seen
    finally:
        for hook in hooks:
            hook.remove()


def count_layers_and_heads(model: LanguageModel) -> tuple[int, int]:
    """Return how many blocks a model has, and how many attention heads each of them."""
    if isinstance(model, GPT):
        return model.config.n_layer, model.config.n_head
    return model.config.num_hidden_layers, model.config.num_attention_heads


def residual_stream(model: GPT, idx: Int64[Tensor, 'B T']) -> Float[Tensor, 'L_plus_1 B T C']:
    """Return the residual stream after the embedding and after each of the L blocks."""
    modules = [model.transformer.drop, *model.transformer.h]
    _, seen = capture_activations(model, idx, modules)
    return torch.stack([seen[module].output for module in modules])


# Attention ------------------------------------------------------------------------------------------------------------


def split_heads(qkv: Float[Tensor, 'B T three_C'], n_head: int) -> tuple[Float[Tensor, 'B nh T hs'], ...]:
    """Return queries, keys and values by head. qkv: the output of c_attn, all three side by side."""
    B, T, C = qkv.size(0), qkv.size(1), qkv.size(2) // 3
    return qkv.view(B, T, 3, n_head, C // n_head).permute(2, 0, 3, 1, 4).unbind(0)


def attention_weights(qkv: Float[Tensor, 'B T three_C'], n_head: int) -> Float[Tensor, 'B nh T T']:
    """Return how much each token takes from each: softmax(q k^T / sqrt(hs)), the future masked (Vaswani et al. 2017).

    qkv: the output of c_attn. The fused attention of model.py never stores these weights, so they are computed here by
    the formula, in float32 or float64; each row sums to 1.
    """
    q, k, _ = split_heads(qkv.to(torch.promote_types(qkv.dtype, torch.float32)), n_head)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, nh, T, T)
    future = torch.ones_like(scores, dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -math.inf).softmax(-1)


def layer_attentions(model: LanguageModel, idx: Int64[Tensor, 'B T']) -> Iterator[Float[Tensor, 'B nh T T']]:
    """Yield the attention weights of each layer, one at a time: all of GPT-2 XL's for 1,024 tokens take 5 GB."""
    if not isinstance(model, GPT):
        yield from hub_internals.layer_attentions(model, idx)
        return
    # A lm.fast.PackedBlock has the matrix itself.
    matrices = [getattr(block, 'attn', block).c_attn for block in model.transformer.h]
    _, seen = capture_activations(model, idx, matrices)
    for matrix in matrices:
        qkv = seen[matrix].output.flatten(0, -2)[: idx.numel()]  # packed matrices take more rows than there are tokens
        yield attention_weights(qkv.view(*idx.shape, -1), model.config.n_head)


def attention_rollout(means: Iterable[Float[Tensor, 'B T T']]) -> Float[Tensor, 'L B T T']:
    """Follow attention through the layers: from which tokens does each get its information?

    means: the attention weights of each layer, averaged over its heads. In each layer a token is assumed to keep half
    of what it had, the residual stream, and to gather the other half; MLPs are ignored (attention rollout, Abnar &
    Zuidema 2020, https://arxiv.org/abs/2005.00928).
    Returns, after each layer, the share of every token (last dimension) in every token; each row sums to 1.
    """
    shares = []
    for mean in means:
        half = (mean + torch.eye(mean.size(-1), dtype=mean.dtype, device=mean.device)) / 2
        shares.append(half @ shares[-1] if shares else half)
    return torch.stack(shares)


# What each layer would predict ----------------------------------------------------------------------------------------


class Lens(NamedTuple):
    """What each layer would predict: first the embedding, last the model itself. Logprobs are natural."""

    ids: Int64[Tensor, 'L_plus_1 B T']  # the likeliest next token after each position
    logprobs: Float[Tensor, 'L_plus_1 B T']  # and how likely it is
    next_logprobs: Float[Tensor, 'L_plus_1 B T_minus_1']  # how likely the token is that really came next
    next_ranks: Int64[Tensor, 'L_plus_1 B T_minus_1']  # and its rank, 1 for the likeliest


@torch.no_grad()
def logit_lens(model: LanguageModel, idx: Int64[Tensor, 'B T']) -> Lens:
    """Apply ln_f and lm_head to the residual stream after every block, as if it were the last.

    This is the logit lens of nostalgebraist 2020, "interpreting GPT: the logit lens",
    https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens. The last layer of the Lens is
    what the model itself predicts.
    """
    following = idx[:, 1:, None]  # (B, T - 1, 1)
    layers = []
    for logits in layer_logits(model, idx):  # one layer at a time: the logits of all layers would fill the memory
        logprobs = logits_to_logprobs(logits)  # (B, T, V)
        best = logprobs.max(-1)
        before = logprobs[:, :-1]
        of_next = before.gather(-1, following)
        layers.append((best.indices, best.values, of_next[..., 0], rank_tokens(before, following[..., 0])))
    return Lens(*map(torch.stack, zip(*layers, strict=True)))


def layer_logits(
    model: LanguageModel, idx: Int64[Tensor, 'B T'], last_only=False
) -> Iterator[Float[Tensor, 'B positions V']]:
    """Yield the logits that follow from the embedding, and from the residual stream after each block.

    last_only: after the last token only, (B, 1, V), instead of after each, (B, T, V).
    """
    first = -1 if last_only else 0
    if isinstance(model, GPT):
        yield from (model.logits(model.transformer.ln_f(x[:, first:])) for x in residual_stream(model, idx))
    else:
        streams = hub_internals.residual_stream(model, idx)
        yield from (hub_internals.logits_of_stream(model, idx, x)[:, first:] for x in streams)


# One distribution at several temperatures -----------------------------------------------------------------------------


class Kept(NamedTuple):
    """What top-k or top-p leaves: how many tokens, and the probability that they had together before."""

    tokens: int
    share: float


class Tempered(NamedTuple):
    """The distribution of the next token at one temperature, before top-k and top-p, and what these would leave."""

    temperature: float
    probs: Float64[Tensor, ' V']
    entropy: float  # in nats
    by_top_k: Kept
    by_top_p: Kept
    by_both: Kept
    entropy_of_both: float  # of what both leave, in nats


def temper_distribution(logits: Float[Tensor, ' V'], temperature, top_k=None, top_p=None) -> Tempered:
    """Return the distribution at a temperature; the settings are those of `model.logits_to_logprobs`.

    min_p and repetition_penalty are left out: nothing that is drawn here takes them.
    """
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


def token_embeddings(model: LanguageModel) -> Float[Tensor, 'V C']:
    """Return the embeddings of all real ids."""
    table = model.transformer.wte if isinstance(model, GPT) else model.network.get_input_embeddings()
    return table.weight.detach()[: model.n_ids]


def nearest_neighbours(
    table: Float[Tensor, 'V C'], ids: Int64[Tensor, ' N'], k: int
) -> tuple[Int64[Tensor, 'N k'], Float[Tensor, 'N k']]:
    """Return the ids and cosines of the k rows of a table nearest to each of the rows `ids`, nearest first.

    A row is not its own neighbour; there are fewer than k if the table has no more.
    """
    unit = F.normalize(table.float(), dim=-1)
    cosines = unit[ids] @ unit.t()  # (N, V)
    cosines.scatter_(1, ids[:, None], -math.inf)
    best = cosines.topk(min(k, len(table) - 1))
    return best.indices, best.values


class Plane(NamedTuple):
    """Points projected onto two directions."""

    points: Float64[Tensor, 'N 2']
    shares: Float64[Tensor, ' 2']  # of the variance along each
    mean: Float64[Tensor, ' C']
    axes: Float64[Tensor, '2 C']  # of length 1, at right angles

    def project(self, x: Float[Tensor, 'M C']) -> Float64[Tensor, 'M 2']:
        """Return further points in the same plane."""
        return (x.double() - self.mean) @ self.axes.t()


def pca(x: Float[Tensor, 'N C']) -> Plane:
    """Find the plane along which points vary most; N and C must be at least 2.

    Principal component analysis (Pearson 1901, Hotelling 1933). The directions are the first right singular vectors of
    the centred points. The sign of each is chosen so that its largest number is positive; otherwise a picture might be
    mirrored on another machine.
    """
    x = x.double().cpu()
    mean = x.mean(0)
    _, sizes, axes = torch.linalg.svd(x - mean, full_matrices=False)
    variances = sizes**2
    axes = axes[:2] * axes[:2].gather(1, axes[:2].abs().argmax(1, keepdim=True)).sign()
    shares = variances[:2] / variances.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return Plane((x - mean) @ axes.t(), shares, mean, axes)


def lay_out(x: Float[Tensor, 'N C'], method: str, seed: int) -> Float64[Tensor, 'N 2']:
    """Arrange points in a plane so that those with a high cosine similarity are close.

    method: 'tsne' (van der Maaten & Hinton 2008) or 'umap' (McInnes et al. 2018). Neither keeps distances: axes, and
    gaps between groups, mean nothing. Raises ImportError if scikit-learn or umap-learn is not installed.
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


class TraceStep(NamedTuple):
    """One value on the way from ids to probabilities, named as in model.py."""

    layer: int | None  # None outside the blocks
    function: str  # the function of model.py that computes it
    line: int  # of model.py
    code: str  # that line
    name: str  # the value as the code names it
    letters: str  # its shape: 'B, T, C'
    meaning: str
    value: Tensor


def source_line(function, fragment: str) -> tuple[int, str]:
    """Return the number and text of the line of a function that contains `fragment`; its first line if none does."""
    lines, first = inspect.getsourcelines(function)
    place = next((place for place, line in enumerate(lines) if fragment in line), 0)
    return first + place, lines[place].strip()


@torch.no_grad()
def trace_forward(model: GPT, idx: Int64[Tensor, 'B T']) -> list[TraceStep]:
    """Return every step of one forward pass, in the order of the code.

    What a module computes is captured as it runs. Queries, keys, values and attention weights are not in any module of
    model.py, so they are computed from what is.
    """
    x, seen = capture_activations(model, idx)
    steps = []

    def step(function, fragment, name, letters, meaning, value, layer=None):
        line, code = source_line(function, fragment)
        steps.append(TraceStep(layer, function.__qualname__, line, code, name, letters, meaning, value))

    modules = model.transformer
    out = {module: activation.output for module, activation in seen.items()}
    hidden, embeds = GPT.hidden, 'self.transformer.wte(idx)'
    step(hidden, 'def hidden', 'idx', 'B, T', 'the ids of the tokens', idx)
    step(hidden, 'positions = ', 'positions', 'T', 'where each token stands', seen[modules.wpe].input)
    step(hidden, embeds, 'wte(idx)', 'B, T, C', 'what each token is', out[modules.wte])
    step(hidden, embeds, 'wpe(positions)', 'T, C', 'what its position is', out[modules.wpe])
    step(hidden, embeds, 'x', 'B, T, C', 'their sum: the stream begins', out[modules.drop])
    for layer, block in enumerate(modules.h):
        for arguments in block_steps(block, seen, model.config.n_head):
            step(*arguments, layer=layer)
    step(hidden, 'ln_f(x)', 'ln_f(x)', 'B, T, C', 'the stream, normalised for output', out[modules.ln_f])
    logits, to_logprobs = model.logits(x), logits_to_logprobs
    step(GPT.logits, 'lm_head(x)', 'lm_head(x)', 'B, T, V', 'a score for each id', model.lm_head(x))
    if model.n_ids < model.config.vocab_size:
        step(GPT.logits, '-math.inf', 'logits', 'B, T, V', f'-inf from id {model.n_ids} on: padding', logits)
    step(to_logprobs, 'F.log_softmax(logits', 'logprobs', 'B, T, V', 'their log-softmax', to_logprobs(logits))
    return steps


def block_steps(block, seen, n_head):
    """Yield the arguments of `step` in `trace_forward` for each value in one block."""
    attn, mlp, ln_1, ln_2 = block.attn, block.mlp, block.ln_1, block.ln_2
    out = {module: activation.output for module, activation in seen.items()}
    qkv = out[attn.c_attn]
    q, k, v = split_heads(qkv, n_head)
    weights = attention_weights(qkv, n_head)
    gathered = weights.to(v.dtype) @ v
    together = seen[attn.c_proj].input
    normal = 'mean 0, variance 1, gain' + ', bias' * (ln_1.bias is not None)
    forward, heads, fused = CausalSelfAttention.forward, 'qkv = qkv.view(', 'F.scaled_dot_product_attention'
    yield Block.forward, 'self.ln_1(x)', 'ln_1(x)', 'B, T, C', normal, out[ln_1]
    yield forward, 'self.c_attn(x)', 'c_attn(x)', 'B, T, 3C', 'query, key, value side by side', qkv
    yield attend, heads, 'q = qkv[0]', 'B, nh, T, hs', 'what each token looks for, by head', q
    yield attend, heads, 'k = qkv[1]', 'B, nh, T, hs', 'what it is found by', k
    yield attend, heads, 'v = qkv[2]', 'B, nh, T, hs', 'what it passes on', v
    yield attend, fused, 'softmax(q kᵀ / √hs)', 'B, nh, T, T', 'how much each takes from each', weights
    yield attend, fused, 'y', 'B, nh, T, hs', 'the values, averaged by weight', gathered
    yield attend, 'y.transpose(1, 2)', 'y, heads side by side', 'B, T, C', 'what all heads gathered', together
    yield forward, 'self.c_proj(y)', 'c_proj(y)', 'B, T, C', 'the heads, combined', out[attn.c_proj]
    yield Block.forward, 'x = x + self.attn', 'x', 'B, T, C', 'the stream, attention added', seen[ln_2].input
    yield Block.forward, 'self.ln_2(x)', 'ln_2(x)', 'B, T, C', normal, out[ln_2]
    yield MLP.forward, 'self.c_fc(x)', 'c_fc(x)', 'B, T, 4C', 'widened to four times', out[mlp.c_fc]
    yield MLP.forward, 'self.gelu', 'gelu(c_fc(x))', 'B, T, 4C', 'negatives shrunk to nearly 0', out[mlp.gelu]
    yield MLP.forward, 'self.c_proj', 'c_proj(gelu(...))', 'B, T, C', 'and back', out[mlp.c_proj]
    yield Block.forward, 'x + self.mlp', 'x', 'B, T, C', 'the stream, the MLP added', out[block]
