"""SDXL's noise schedule and the samplers of training and evaluation."""

from __future__ import annotations

import numpy as np
import torch

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
CUMULATIVE = torch.cumprod(1 - BETAS, 0)
SIGMAS = ((1 - CUMULATIVE) / CUMULATIVE).sqrt()
STEPS = 8  # of generation, trailing; Karras' lowest levels spoil faces


def trailing_times(steps: int):
    return (np.round(np.arange(1000, 0, -1000 / steps)).astype(int) - 1).tolist()


def timestep_of(sigma: float) -> int:
    return int((SIGMAS.log() - np.log(max(sigma, 1e-10))).abs().argmin())


@torch.no_grad()
def dpmpp_2m(denoise, x, sigmas):
    """DPM-Solver++(2M) on variance-exploding x; `denoise(x, sigma)` gives the predicted clean latents."""
    previous = None
    for i in range(len(sigmas) - 1):
        s, n = sigmas[i], sigmas[i + 1]
        d = denoise(x, s)
        if n == 0:
            return d
        h = np.log(s / n)
        mixed = d
        if previous is not None:
            r = np.log(sigmas[i - 1] / s) / h
            mixed = (1 + 1 / (2 * r)) * d - (1 / (2 * r)) * previous
        x = (n / s) * x - float(np.expm1(-h)) * mixed
        previous = d
    return x


@torch.no_grad()
def sample(net, ids, empty, noise, steps=STEPS, guidance=2.4, identity=None, start=None, left=None):
    """Normalised latents for token ids [B,2,77]; `empty` [1,2,77] is the negative prompt.

    `identity`: None, or identity tokens of the prompt and of the negative prompt, each [B,N,D]. With `start`, clean latents get
    the noise that the `left` last steps begin with, and only these are taken.
    """
    b = len(ids)
    context = [torch.cat(pair) for pair in zip(net.context(ids), net.context(empty.expand(b, -1, -1)))]
    tokens = () if identity is None else (torch.cat(identity),)
    dtype = net.unet.conv_in.weight.dtype

    def denoise(x, s):
        scaled = x / (s * s + 1) ** 0.5
        t = torch.full((2 * b,), timestep_of(s), device=x.device)
        both = net(torch.cat([scaled, scaled]).to(dtype), t, *context, *tokens).float()
        return x - s * (both[b:] + guidance * (both[:b] - both[b:]))

    sigmas = [float(SIGMAS[t]) for t in trailing_times(steps)] + [0.0]
    if start is not None:
        sigmas = sigmas[steps - left :]
    return dpmpp_2m(denoise, noise * sigmas[0] + (0 if start is None else start), sigmas).float()
