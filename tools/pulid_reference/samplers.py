"""Schedules and samplers of PuLID-SDXL, from the published algorithms.

The samplers work on noise levels: `x = x0 + sigma * noise`, `denoise(x, sigma) -> x0`. Each yields the state after
every step, so that another implementation can be compared step by step.
"""

from collections.abc import Callable, Iterator

import torch

Denoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

TRAIN_STEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012


def training_sigmas() -> torch.Tensor:
    """SDXL's 1000 noise levels, rising from 0.0292 to 14.61, float32."""
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, TRAIN_STEPS, dtype=torch.float64) ** 2
    kept = (1.0 - betas).cumprod(dim=0).float()
    return ((1 - kept) / kept) ** 0.5


def karras_sigmas(steps: int, rho: float = 7.0) -> torch.Tensor:
    """`steps` levels from the largest to the smallest training level after Karras et al., then 0."""
    table = training_sigmas()
    low, high = table[0] ** (1 / rho), table[-1] ** (1 / rho)
    ramp = torch.linspace(0, 1, steps)
    return torch.cat(((high + ramp * (low - high)) ** rho, torch.zeros(1)))


def trailing_timesteps(steps: int) -> torch.Tensor:
    """Integer timesteps counted back from the last one in equal strides: 999, 749, 499, 249 for four steps."""
    stride = TRAIN_STEPS / steps
    return torch.tensor([round(TRAIN_STEPS - index * stride) - 1 for index in range(steps)])


def trailing_sigmas(steps: int) -> torch.Tensor:
    """The training levels at the trailing timesteps, then 0."""
    return torch.cat((training_sigmas()[trailing_timesteps(steps)], torch.zeros(1)))


def nearest_timestep(sigma: torch.Tensor) -> torch.Tensor:
    """Integer timestep whose training level is nearest in logarithm; the first of equals."""
    distance = sigma.log().reshape(1, -1) - training_sigmas().log()[:, None]
    return distance.abs().argmin(dim=0).reshape(sigma.shape)


def dpmpp_2m(denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor) -> Iterator[torch.Tensor]:
    """DPM-Solver++(2M): second order from the previous step's result; the first and last steps are first order."""
    before, before_h = None, None
    for sigma, following in zip(sigmas[:-1], sigmas[1:]):
        x0 = denoise(x, sigma)
        h = sigma.log() - following.log()
        guess = x0
        if before is not None and following > 0:
            ratio = before_h / h
            guess = x0 + (x0 - before) / (2 * ratio)
        x = (following / sigma) * x - torch.expm1(-h) * guess
        before, before_h = x0, h
        yield x


def _ancestral(sigma: torch.Tensor, following: torch.Tensor, eta: float):
    """Splits the way down into a deterministic level and the size of the noise put back."""
    up = eta * (following**2 * (sigma**2 - following**2) / sigma**2) ** 0.5
    up = torch.minimum(following, up)
    return (following**2 - up**2) ** 0.5, up


def dpmpp_sde(
    denoise: Denoise,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    noise: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    eta: float = 1.0,
    r: float = 0.5,
) -> Iterator[torch.Tensor]:
    """DPM-Solver++ (stochastic), two model calls per step and an Euler step to 0.

    `noise(sigma, following)` gives the unit-variance increment of one Brownian path between two levels.
    """
    for sigma, following in zip(sigmas[:-1], sigmas[1:]):
        x0 = denoise(x, sigma)
        if following == 0:
            yield x0 if sigma == 0 else x + (x - x0) / sigma * (following - sigma)
            return
        middle = (sigma.log() + r * (following.log() - sigma.log())).exp()
        down, up = _ancestral(sigma, middle, eta)
        h = sigma.log() - down.log()
        probe = (down / sigma) * x - torch.expm1(-h) * x0 + up * noise(sigma, middle)
        weight = 1 / (2 * r)
        guess = (1 - weight) * x0 + weight * denoise(probe, middle)
        down, up = _ancestral(sigma, following, eta)
        h = sigma.log() - down.log()
        x = (down / sigma) * x - torch.expm1(-h) * guess + up * noise(sigma, following)
        yield x


def euler(denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor) -> Iterator[torch.Tensor]:
    """Explicit Euler steps along the probability flow."""
    for sigma, following in zip(sigmas[:-1], sigmas[1:]):
        x = x + (x - denoise(x, sigma)) / sigma * (following - sigma)
        yield x
