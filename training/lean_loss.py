"""The training loss without all its logits in memory: cross-entropy and its gradient, a few hundred tokens at a time.

With 50,257 ids the logits of 1,024 tokens are 206 MB in float32, and a plain backward keeps several copies of them. But
the gradient of cross-entropy with respect to the logits is softmax minus one-hot, which is known as soon as they are:
so each part's share of the gradients is taken at once, and its logits are forgotten (as in Hsu et al. 2024, Liger
Kernel, https://arxiv.org/abs/2410.10989). No product is computed twice.
"""

import torch
import torch.nn as nn
from torch.nn import functional as F

TOKENS = 256  # at a time


class LeanLoss(nn.Module):
    """A GPT and its loss: (B, T) ids and targets in, the mean cross-entropy in nats out.

    A module, since DistributedDataParallel and torch.compile want all of a training step inside one forward.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, idx, targets):
        """idx: (B, T) ids. targets: (B, T) the id that follows each, -1 where none counts."""
        x, model = self.model.hidden(idx), self.model
        return lean_cross_entropy(x.flatten(0, 1), model.lm_head.weight, targets.flatten(), model.n_ids)


def lean_cross_entropy(x, weight, targets, n_ids):
    """Return the mean cross-entropy in nats of hidden states x, (N, C), whose logits are x @ weight.T, (V, C).

    targets: (N,) ids, -1 where none counts. n_ids: ids from there on are padding and take no part in the softmax. Under
    autocast, products are computed in its dtype and sums in float32, as they are for a Linear layer.
    """
    return SummedCrossEntropy.apply(x, weight, targets, n_ids) / (targets != -1).sum()


class SummedCrossEntropy(torch.autograd.Function):
    """The sum over all tokens, whose gradients are computed in the forward pass and only scaled in the backward."""

    @staticmethod
    def forward(ctx, x, weight, targets, n_ids):
        """Return the sum, a float32 scalar; the arguments are those of `lean_cross_entropy`."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        x_gradient = torch.empty_like(x) if wants_x else None
        weight_gradient = torch.zeros_like(weight) if wants_weight else None
        total = torch.zeros((), device=x.device)
        with torch.autocast(device, enabled=False):
            matrix = weight.to(dtype)
            for start in range(0, len(x), TOKENS):
                part, ids = x[start : start + TOKENS].to(dtype), targets[start : start + TOKENS]
                counted, ids = (ids != -1)[:, None], ids.clamp(min=0)[:, None]  # (n, 1)
                logits = F.linear(part, matrix).float()  # (n, V)
                logits[:, n_ids:] = -torch.inf
                logprobs = logits.log_softmax(-1)
                total -= logprobs.gather(-1, ids).masked_select(counted).sum()
                if not (wants_x or wants_weight):
                    continue
                gradient = logprobs.exp_().scatter_add_(-1, ids, -torch.ones_like(logprobs[:, :1]))
                gradient = gradient.mul_(counted).to(dtype)  # of the logits
                if wants_x:
                    x_gradient[start : start + TOKENS] = gradient @ matrix
                if wants_weight:
                    weight_gradient += gradient.T @ part
        ctx.gradients = x_gradient, weight_gradient
        return total

    @staticmethod
    def backward(ctx, scale):
        """Return the gradients of x and weight, scaled where they lie; so it can be called only once."""
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError('the lean loss can go backward only once; use model(idx, targets) to do it twice')
        return *(None if gradient is None else gradient.mul_(scale) for gradient in gradients), None, None
