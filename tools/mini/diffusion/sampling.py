"""Samplers of the trainers' and the evaluation's side, and loaders of the trained networks."""
from __future__ import annotations

import numpy as np
import torch
from common import MODELS, WORK
from diffusers.models.attention_processor import AttnProcessor
from networks import build_vae
from parallel import load_averaged
from transformers import CLIPTokenizer


def load_tokenizers():
    return tuple(CLIPTokenizer.from_pretrained(MODELS / "sdxl" / name) for name in ("tokenizer", "tokenizer_2"))


def load_vae(path=None, which: str = "ema"):
    """The VAE of a checkpoint, not folded: its latents are raw."""
    vae = build_vae()
    vae.set_attn_processor(AttnProcessor())
    load_averaged(vae.named_parameters(), torch.load(path or WORK / "vae.pt", weights_only=True), which)
    return vae.eval().requires_grad_(False)


def alphas_cumprod() -> torch.Tensor:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


def all_sigmas() -> torch.Tensor:
    c = alphas_cumprod()
    return ((1 - c) / c).sqrt()


def karras(steps: int, rho: float = 7.0) -> torch.Tensor:
    s = all_sigmas()
    low, high = float(s[0]) ** (1 / rho), float(s[-1]) ** (1 / rho)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])


def trailing_timesteps(steps: int) -> np.ndarray:
    return np.round(np.arange(1000, 0, -1000 / steps)).astype(int) - 1


def trailing(steps: int) -> torch.Tensor:
    return torch.cat([all_sigmas()[trailing_timesteps(steps)].double(), torch.zeros(1, dtype=torch.float64)])


def timestep_of(sigma: float) -> int:
    return int((all_sigmas().log() - np.log(max(sigma, 1e-10))).abs().argmin())


@torch.no_grad()
def dpmpp_2m(denoise, x: torch.Tensor, sigmas: torch.Tensor, callback=None) -> torch.Tensor:
    """DPM-Solver++(2M) on variance-exploding x; `denoise(x, sigma)` gives the predicted clean latents."""
    previous = None
    for i in range(len(sigmas) - 1):
        s, n = float(sigmas[i]), float(sigmas[i + 1])
        d = denoise(x, s)
        if n == 0:
            return d
        h = np.log(s / n)
        if previous is None:
            mixed = d
        else:
            r = np.log(float(sigmas[i - 1]) / s) / h
            mixed = (1 + 1 / (2 * r)) * d - (1 / (2 * r)) * previous
        x = (n / s) * x - float(np.expm1(-h)) * mixed
        previous = d
    return x


def seeded_noise(seed: int, count: int) -> torch.Tensor:
    """One generator per picture, so that a picture does not depend on its batch."""
    return torch.stack([torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(seed + i)) for i in range(count)])


def sample(net, tokenizers, prompts, seed=0, steps=20, guidance=3.0, spacing="karras", negative="", noise=None, identity=None):
    """Normalised latents [B,4,16,16] for prompts; `net` is a TextToLatent.

    `identity`: None or the identity tokens (own, unconditional), each [B,N,D]; needs the identity attention installed.
    With guidance, rows 0..B of each batch are the prompt's and rows B..2B the negative prompt's.
    """
    ids = lambda texts: [torch.tensor(t(list(texts), padding="max_length", max_length=77, truncation=True).input_ids) for t in tokenizers]
    with torch.no_grad():
        context = net.context(*ids(prompts))
        if identity is not None:
            context = (*context, identity[0])
        if guidance != 1.0:
            other = net.context(*ids([negative] * len(prompts)))
            if identity is not None:
                other = (*other, identity[1])
            context = tuple(torch.cat(pair) for pair in zip(context, other))
    b = len(prompts)
    noise = seeded_noise(seed, b) if noise is None else noise
    sigmas = karras(steps) if spacing == "karras" else trailing(steps)

    def denoise(x, s):
        scaled = x / (s * s + 1) ** 0.5
        t = torch.full((b,), timestep_of(s))
        if guidance == 1.0:
            e = net(scaled, t, *context).float()
        else:
            both = net(torch.cat([scaled, scaled]), torch.cat([t, t]), *context).float()
            e = both[b:] + guidance * (both[:b] - both[b:])
        return x - s * e

    return dpmpp_2m(denoise, noise * float(sigmas[0]), sigmas).float()
