"""Muon for hidden matrices and Adam for everything else, batched so that a step is few launches; averaged weights."""

from __future__ import annotations

import copy
import math

import torch
from common import HALF


def orthogonalise(g, steps: int = 5):
    """Newton-Schulz iteration of matrices [K,R,C] towards the nearest (semi-)orthogonal ones, in half precision (Muon's coefficients)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.to(HALF)
    flip = x.shape[-2] > x.shape[-1]
    if flip:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return (x.mT if flip else x).float()


def uses_muon(name: str, p) -> bool:
    """Hidden matrices only: no embeddings, no first or last convolution, no vectors."""
    if p.ndim < 2 or "embedding" in name and "linear" not in name:
        return False
    outer = ("conv_in", "conv_out", "quant_conv", "latents", "position", "proj_out_id")
    return min(p.shape[0], p.numel() // p.shape[0]) >= 16 and not any(o in name for o in outer)


class Optimizer:
    """Parameters may be in bf16: the optimizer works on f32 copies of them."""

    def __init__(self, named, muon_lr=2e-3, adam_lr=1e-3, weight_decay=0.01, clip=1.0, ema=0.995):
        named = [(n, p) for n, p in named if p.requires_grad]
        self.parameters = [p for _, p in named]
        self.muon_lr, self.adam_lr, self.weight_decay, self.clip, self.ema_max = muon_lr, adam_lr, weight_decay, clip, ema
        self.master = [p.detach().float().clone() for p in self.parameters]
        self.grads = [torch.zeros_like(m) for m in self.master]
        groups, self.adam = {}, []
        for i, (n, p) in enumerate(named):
            if uses_muon(n, p):
                groups.setdefault((p.shape[0], p.numel() // p.shape[0]), []).append(i)
            else:
                self.adam.append(i)
        self.muon = [(shape, at, torch.zeros(len(at), *shape, device=self.master[0].device)) for shape, at in groups.items()]
        self.first = [torch.zeros_like(self.master[i]) for i in self.adam]
        self.second = [torch.zeros_like(self.master[i]) for i in self.adam]
        self.average = [m.clone() for m in self.master]
        self.step_number = 0

    @torch.no_grad()
    def step(self, scale: float):
        """One update with both learning rates times `scale`; gradients are freed. Answers the gradient's norm."""
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        torch._foreach_copy_(self.grads, [p.grad for p in self.parameters])
        norm = torch.stack(torch._foreach_norm(self.grads)).norm()
        torch._foreach_mul_(self.grads, (self.clip / (norm + 1e-6)).clamp(max=1.0))
        self.step_number += 1
        t = self.step_number
        lr = self.muon_lr * scale
        for shape, at, momentum in self.muon:
            g = torch.stack([self.grads[i].reshape(shape) for i in at])
            momentum.mul_(0.95).add_(g)
            u = orthogonalise(g.add_(momentum, alpha=0.95)).mul_(0.2 * math.sqrt(max(shape)) * lr)
            masters = [self.master[i] for i in at]
            torch._foreach_mul_(masters, 1 - lr * self.weight_decay)
            torch._foreach_sub_(masters, [x.view_as(m) for x, m in zip(u.unbind(), masters)])
        if self.adam:
            g = [self.grads[i] for i in self.adam]
            torch._foreach_lerp_(self.first, g, 0.1)
            torch._foreach_mul_(self.second, 0.99)
            torch._foreach_addcmul_(self.second, g, g, 0.01)
            down = torch._foreach_div(self.second, 1 - 0.99**t)
            torch._foreach_sqrt_(down)
            torch._foreach_add_(down, 1e-8)
            torch._foreach_addcdiv_([self.master[i] for i in self.adam], self.first, down, -self.adam_lr * scale / (1 - 0.9**t))
        torch._foreach_lerp_(self.average, self.master, 1 - min(self.ema_max, (1 + t) / (10 + t)))
        torch._foreach_copy_(self.parameters, self.master)
        for p in self.parameters:
            p.grad = None
        return norm

    @torch.no_grad()
    def use(self, average: bool):
        """Puts the averaged, or again the present, weights into the parameters."""
        torch._foreach_copy_(self.parameters, self.average if average else self.master)


def averaged(module, optimizer):
    """A frozen copy of `module` in f32 with the averaged weights."""
    module.float()
    optimizer.use(True)
    out = copy.deepcopy(module).eval().requires_grad_(False)
    optimizer.use(False)
    return out


def flat_then_decay(step: int, progress: float, warmup: int = 50, decay_from: float = 0.5, floor: float = 0.03) -> float:
    """Warm up over steps, hold, then fall linearly to `floor` over the last part of the time."""
    up = min(1.0, (step + 1) / warmup)
    down = 1.0 if progress < decay_from else 1.0 - (1.0 - floor) * (progress - decay_from) / (1.0 - decay_from)
    return up * down
