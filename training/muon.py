"""Muon: an optimizer that makes the updates of matrices orthogonal, which trains on fewer tokens than AdamW.

A matrix changes by its momentum with all singular values brought close to 1 (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/), scaled to the size of AdamW's updates, so that learning rate and weight
decay mean the same for both (Liu et al. 2025, Muon is Scalable for LLM Training, https://arxiv.org/abs/2502.16982). It
is for the weight matrices inside the layers; embeddings, biases and LayerNorm gains keep AdamW.

torch.optim.Muon always computes in bfloat16, for which many CPUs have no instructions.
"""

import torch

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Jordan's polynomial: small singular values grow fastest
STEPS = 5  # of the iteration
UPDATE_SIZE = 0.2  # root mean square of AdamW's updates


class MuonAdamW(torch.optim.AdamW):
    """AdamW, but Muon for the parameter groups that have `parts`."""

    @torch.no_grad()
    def step(self):
        """Update all parameters once from their gradients."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group['parts']]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            for weight in group['params'] if group['parts'] else ():
                if weight.grad is not None:
                    state = self.state[weight]
                    if not state:  # AdamW expects to find `step` when it loads a state
                        state |= {'step': torch.zeros(()), 'momentum': torch.zeros_like(weight)}
                    state['step'] += 1
                    momentum = state['momentum'].lerp_(weight.grad, 1 - MOMENTUM)
                    ahead = weight.grad.lerp(momentum, MOMENTUM)  # Nesterov's
                    update = torch.cat([orthogonalize(part) for part in ahead.chunk(group['parts'])])
                    scale = UPDATE_SIZE * max(weight.size(0) // group['parts'], weight.size(1)) ** 0.5
                    weight.mul_(1 - group['lr'] * group['weight_decay'])
                    weight.add_(update, alpha=-group['lr'] * scale)


def orthogonalize(matrix):
    """Return a matrix with the same singular vectors and all singular values between about 0.7 and 1.2.

    Newton and Schulz's iteration with Jordan's coefficients: no decomposition, only products of matrices.
    """
    a, b, c = COEFFICIENTS
    x = matrix.T if matrix.size(0) > matrix.size(1) else matrix  # the smaller side makes the smaller product
    x = x / x.norm().clamp(min=1e-7)  # so that no singular value is above 1
    for _ in range(STEPS):
        product = x @ x.T
        x = torch.addmm(x, torch.addmm(product, product, product, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.size(0) > matrix.size(1) else x


def make_muon(model, weight_decay, learning_rate, betas, device_type):
    """Return the optimizer of a GPT; the arguments are those of GPT.configure_optimizers.

    c_attn is three matrices in one, for queries, keys and values: each is made orthogonal on its own.
    """
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    inside = [(name, weight) for name, weight in named if weight.dim() == 2 and name.startswith('transformer.h.')]
    of_attention = [weight for name, weight in inside if name.endswith('c_attn.weight')]
    of_others = [weight for name, weight in inside if not name.endswith('c_attn.weight')]
    chosen = {id(weight) for _, weight in inside}
    rest = [weight for _, weight in named if id(weight) not in chosen]
    groups = [
        {'params': of_attention, 'weight_decay': weight_decay, 'parts': 3},
        {'params': of_others, 'weight_decay': weight_decay, 'parts': 1},
        {'params': [weight for weight in rest if weight.dim() >= 2], 'weight_decay': weight_decay, 'parts': 0},
        {'params': [weight for weight in rest if weight.dim() < 2], 'weight_decay': 0.0, 'parts': 0},
    ]
    fused = device_type in ('cpu', 'cuda', 'mps', 'xpu')
    return MuonAdamW([group for group in groups if group['params']], lr=learning_rate, betas=betas, fused=fused)
