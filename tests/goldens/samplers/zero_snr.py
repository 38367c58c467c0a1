"""Goldens of schedules with zero terminal SNR under networks that predict velocity.

Witness: diffusers' EulerDiscreteScheduler and DPMSolverMultistepScheduler with `rescale_betas_zero_snr`, `v_prediction` and trailing
timesteps. The network is a closed formula of what a network is given: scaled latents and timestep. The betas of other schedules
that diffusers knows are here too.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import torch
from common import deterministic, randn, versions, write_json
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler

HERE = pathlib.Path(__file__).resolve().parent
A, B = 0.7, 0.4
FORMULA = "v(x_in, t) = a x_in + b cos(t / 100)"
SHAPE = (1, 4, 3, 2)
SEED = 6300
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
ZERO_SNR = dict(**BETAS, rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")


def run(scheduler, steps: int, noise: torch.Tensor) -> torch.Tensor:
    scheduler.set_timesteps(steps)
    x = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x_in = scheduler.scale_model_input(x, t)
        x = scheduler.step(A * x_in + B * torch.cos(t / 100), t, x).prev_sample
    return x


def table(**config) -> list[float]:
    products = EulerDiscreteScheduler(**config).alphas_cumprod
    return ((1 - products) / products).sqrt()[::111].tolist()


def main() -> None:
    deterministic()
    cases = []
    for sampler, kind in (("euler", EulerDiscreteScheduler), ("dpmpp_2m", DPMSolverMultistepScheduler)):
        for steps in (1, 4, 9, 25):
            scheduler = kind(**ZERO_SNR)
            noise = randn(SEED + steps, *SHAPE)
            latents = run(scheduler, steps, noise)
            assert latents.isfinite().all() and latents.std() > 0.05, (sampler, steps)
            cases.append(
                {
                    "sampler": sampler,
                    "steps": steps,
                    "sigmas": scheduler.sigmas.tolist(),
                    "timesteps": scheduler.timesteps.tolist(),
                    "noise": noise.flatten().tolist(),
                    "latents": latents.flatten().tolist(),
                }
            )
    trained = (torch.linspace(0.02, 0.15, 300) ** 2).tolist()
    value = {
        "a": A,
        "b": B,
        "cases": cases,
        "tables": [
            {"config": config, "sigmas": table(**config)}
            for config in (
                dict(**BETAS, rescale_betas_zero_snr=True),
                dict(beta_start=0.0001, beta_end=0.02, beta_schedule="linear", num_train_timesteps=1000),
                dict(trained_betas=trained, num_train_timesteps=300),
            )
        ],
        "cosine": {
            "config": dict(beta_schedule="squaredcos_cap_v2", num_train_timesteps=1000),
            "alphas_cumprod": DPMSolverMultistepScheduler(beta_schedule="squaredcos_cap_v2")
            .alphas_cumprod[::111]
            .tolist(),
        },
        "versions": versions(),
        "note": "Latents are the finished ones. Tables hold sigma at every 111th training timestep. " + FORMULA,
    }
    write_json(HERE / "zero_snr.json", value)
    for case in cases:
        print(case["sampler"], case["steps"], case["sigmas"][:2], case["timesteps"][:3])


if __name__ == "__main__":
    main()
