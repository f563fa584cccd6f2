"""The training loss in little memory: cross-entropy and its gradient, computed a few hundred tokens at a time.

With 50,257 ids, the logits of 1,024 tokens take 206 MB in float32, and an ordinary backward pass keeps several copies
of them. But the gradient of cross-entropy with respect to the logits is softmax minus one-hot, which the forward pass
knows already. So each chunk of tokens adds its share of the gradients at once, and its logits are freed (as in Hsu et
al. 2024, Liger Kernel, https://arxiv.org/abs/2410.10989). Nothing is computed twice.
"""

import torch
import torch.nn as nn
from torch.nn import functional as F

from model import GPT

CHUNK = 256  # tokens computed at a time


class LeanLoss(nn.Module):
    """A model with its loss: ids and targets in, mean cross-entropy in nats out; the same as model(idx, targets)[1].

    It is a module so that DistributedDataParallel and torch.compile see the loss as part of the forward pass.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, idx, targets):
        """idx: (B, T) ids. targets: (B, T), the id that follows each; -1 is left out. Returns a float32 scalar."""
        model, targets = self.model, targets.flatten()
        x = model.hidden(idx).flatten(0, 1)  # (N, C)
        if isinstance(model, GPT):
            return lean_cross_entropy(x, model.lm_head.weight, targets, model.n_ids)
        if model.whole:  # x are logits already
            return F.cross_entropy(x[:, : model.n_ids].float(), targets, ignore_index=-1)
        weights = tuple(model.network.get_output_embeddings().parameters())
        return ChunkedLoss.apply(x, targets, model, *weights) / (targets != -1).sum()


def lean_cross_entropy(x, weight, targets, n_ids):
    """Return the mean cross-entropy in nats of hidden states x, (N, C), whose logits are x @ weight.T, (V, C).

    targets: (N,) ids; -1 is left out. n_ids: ids from here on are padding and take no part in the softmax. Under
    autocast, matrix products use its dtype and sums use float32, as in a Linear layer.
    """
    return SummedCrossEntropy.apply(x, weight, targets, n_ids) / (targets != -1).sum()


class SummedCrossEntropy(torch.autograd.Function):
    """The sum over all tokens. The forward pass computes the gradients, too; the backward pass only scales them."""

    @staticmethod
    def forward(ctx, x, weight, targets, n_ids):
        """Return the sum, a float32 scalar. The arguments are those of `lean_cross_entropy`."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        x_gradient = torch.empty_like(x) if wants_x else None
        weight_gradient = torch.zeros_like(weight) if wants_weight else None
        total = torch.zeros((), device=x.device)
        with torch.autocast(device, enabled=False):
            matrix = weight.to(dtype)
            for start in range(0, len(x), CHUNK):
                chunk, ids = x[start : start + CHUNK].to(dtype), targets[start : start + CHUNK]
                counted, ids = (ids != -1)[:, None], ids.clamp(min=0)[:, None]  # (n, 1)
                logits = F.linear(chunk, matrix).float()  # (n, V)
                logits[:, n_ids:] = -torch.inf
                logprobs = logits.log_softmax(-1)
                total -= logprobs.gather(-1, ids).masked_select(counted).sum()
                if not (wants_x or wants_weight):
                    continue
                gradient = logprobs.exp_().scatter_add_(-1, ids, -torch.ones_like(logprobs[:, :1]))
                gradient = gradient.mul_(counted).to(dtype)  # with respect to the logits, (n, V)
                if wants_x:
                    x_gradient[start : start + CHUNK] = gradient @ matrix
                if wants_weight:
                    weight_gradient += gradient.T @ chunk
        ctx.gradients = x_gradient, weight_gradient
        return total

    @staticmethod
    def backward(ctx, scale):
        """Return the gradients of x and weight, scaled in place, which is why a second call is an error."""
        return *_scale_once(ctx, scale), None, None


class ChunkedLoss(torch.autograd.Function):
    """The same sum for any output layer, also with biases, scaled or capped: autograd differentiates each chunk."""

    @staticmethod
    @torch.compiler.disable  # which cannot trace a backward pass within a forward pass
    def forward(ctx, x, targets, model, *weights):
        """Return the sum, a float32 scalar. x: (N, C). targets: (N,). weights: those that model.logits uses."""
        wanted = [place for place, needed in enumerate((ctx.needs_input_grad[0], *ctx.needs_input_grad[3:])) if needed]
        gradients, total = [None] * (1 + len(weights)), torch.zeros((), device=x.device)
        if 0 in wanted:
            gradients[0] = torch.empty_like(x)
        for start in range(0, len(x), CHUNK):
            part = slice(start, start + CHUNK)
            chunk = x[part].detach().requires_grad_(0 in wanted)
            with torch.set_grad_enabled(bool(wanted)):
                logits = model.logits(chunk)[:, : model.n_ids].float()
                loss = F.cross_entropy(logits, targets[part], ignore_index=-1, reduction='sum')
            total += loss.detach()
            sources = [chunk, *weights]
            found = torch.autograd.grad(loss, [sources[place] for place in wanted]) if wanted else ()
            for place, gradient in zip(wanted, found, strict=True):
                if place == 0:
                    gradients[0][part] = gradient
                else:
                    gradients[place] = gradient if gradients[place] is None else gradients[place].add_(gradient)
        ctx.gradients = gradients
        return total

    @staticmethod
    def backward(ctx, scale):
        """Return the gradients of x and the weights, scaled in place, which is why a second call is an error."""
        x_gradient, *gradients = _scale_once(ctx, scale)
        return x_gradient, None, None, *gradients


def _scale_once(ctx, scale):
    """Return the gradients that a forward pass has left, times `scale`; a second call is an error."""
    gradients, ctx.gradients = ctx.gradients, None
    if gradients is None:
        raise RuntimeError('the lean loss allows only one backward pass; use model(idx, targets)[1] for two')
    return [None if gradient is None else gradient.mul_(scale) for gradient in gradients]
