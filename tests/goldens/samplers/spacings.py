"""Goldens of diffusers' timestep spacings, and of its Karras, exponential and beta levels, as saved schedulers have them.

Witness: diffusers' EulerDiscreteScheduler, DPMSolverMultistepScheduler, DDIMScheduler and DPMSolverSDEScheduler (the last for its levels
alone: its noise comes from a Brownian tree). The network is a closed formula of what a network is given: scaled latents and timestep. The
configurations are those that a folder's scheduler_config.json would hold. The quantiles of beta levels are scipy's.
"""

import pathlib
import sys
import types

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import torch
from common import deterministic, randn, versions, write_json
from diffusers import DDIMParallelScheduler, DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from scipy.stats import beta

# Needed for noise alone, of which there is none here.
sys.modules.setdefault("torchsde", types.ModuleType("torchsde"))
from diffusers.schedulers.scheduling_dpmsolver_sde import DPMSolverSDEScheduler  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
A, B = 0.7, 0.4
FORMULA = "F(x_in, t) = a x_in + b cos(t / 100); x_in has variance one"
SHAPE = (1, 4, 2, 1)
SEED = 6700
STEPS = (1, 4, 25, 50)
SDXL = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
LEADING = dict(**SDXL, timestep_spacing="leading", steps_offset=1)
LINSPACE = dict(**SDXL, timestep_spacing="linspace")
TRAILING = dict(**SDXL, timestep_spacing="trailing")
DDIM = dict(**LEADING, clip_sample=False)
V = dict(prediction_type="v_prediction")
KARRAS = dict(use_karras_sigmas=True)
EXPONENTIAL = dict(use_exponential_sigmas=True)
BETA = dict(use_beta_sigmas=True)
ZERO_SNR = dict(**SDXL, **V, rescale_betas_zero_snr=True, clip_sample=False)
CONFIGS = [
    (EulerDiscreteScheduler, LEADING),
    (EulerDiscreteScheduler, {**LEADING, "steps_offset": 0}),
    (EulerDiscreteScheduler, {**LEADING, **V, "final_sigmas_type": "sigma_min"}),
    (EulerDiscreteScheduler, LINSPACE),
    (EulerDiscreteScheduler, {**LEADING, **KARRAS}),
    (EulerDiscreteScheduler, {**LINSPACE, **KARRAS}),
    (EulerDiscreteScheduler, {**TRAILING, **KARRAS}),
    (EulerDiscreteScheduler, dict(timestep_spacing="leading")),
    (DPMSolverMultistepScheduler, LEADING),
    (DPMSolverMultistepScheduler, {**LEADING, "steps_offset": 0, "final_sigmas_type": "sigma_min"}),
    (DPMSolverMultistepScheduler, {**LINSPACE, **V}),
    (DPMSolverMultistepScheduler, {**LEADING, **KARRAS}),
    (DPMSolverMultistepScheduler, {**LEADING, "algorithm_type": "deis", "solver_type": "bh2", "lambda_min_clipped": -5.1, "final_sigmas_type": "sigma_min"}),
    (DDIMScheduler, {**DDIM, "set_alpha_to_one": False}),
    (DDIMScheduler, {**DDIM, **V, "set_alpha_to_one": True}),
    (DDIMScheduler, {**ZERO_SNR, "timestep_spacing": "trailing", "set_alpha_to_one": False}),
    (DDIMScheduler, {**ZERO_SNR, "timestep_spacing": "trailing"}),
    (DDIMScheduler, {**ZERO_SNR, "timestep_spacing": "leading", "steps_offset": 1}),
    (DDIMScheduler, {**TRAILING, "clip_sample": False, "set_alpha_to_one": False}),
    (DDIMScheduler, {**LINSPACE, **V, "clip_sample": False, "set_alpha_to_one": False}),
    (DDIMParallelScheduler, {**ZERO_SNR, "timestep_spacing": "trailing"}),
    (EulerDiscreteScheduler, {**LEADING, **EXPONENTIAL}),
    (EulerDiscreteScheduler, {**TRAILING, **BETA}),
    (EulerDiscreteScheduler, {**LINSPACE, **V, **BETA, "final_sigmas_type": "sigma_min"}),
    (DPMSolverMultistepScheduler, {**LEADING, **EXPONENTIAL}),
    (DPMSolverMultistepScheduler, {**LEADING, **BETA, "final_sigmas_type": "sigma_min"}),
    (DPMSolverSDEScheduler, {**LEADING, **EXPONENTIAL}),
    (DPMSolverSDEScheduler, {**LINSPACE, **BETA}),
    (DPMSolverSDEScheduler, LEADING),
    (DPMSolverSDEScheduler, LINSPACE),
    (DPMSolverSDEScheduler, {**LEADING, **KARRAS}),
]


def run(scheduler, noise: torch.Tensor) -> torch.Tensor:
    if scheduler.timesteps[:2].unique().numel() < len(scheduler.timesteps[:2]):
        # Of equal timesteps it would take the second for the first, and run out of levels in the end.
        scheduler.set_begin_index(0)
    x = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x_in = scheduler.scale_model_input(x, t)
        x = scheduler.step(A * x_in + B * torch.cos(t / 100), t, x).prev_sample
    return x


def main() -> None:
    deterministic()
    cases = []
    for kind, config in CONFIGS:
        # Where the training timesteps are no multiple of the steps, DDIM's do not end where the next begin.
        for steps in (*STEPS, 7, 30) if kind is DDIMScheduler else STEPS:
            scheduler = kind(**config)
            scheduler.set_timesteps(steps)
            noise = randn(SEED + steps, *SHAPE)
            case = {
                "config": {"_class_name": kind.__name__, **config},
                "steps": steps,
                "timesteps": scheduler.timesteps.tolist(),
                "start": float(scheduler.init_noise_sigma),
            }
            if kind is DPMSolverSDEScheduler:
                # Each level but the ends is there twice, for both calls of a step.
                case["sigmas"] = [*scheduler.sigmas[:1].tolist(), *scheduler.sigmas[1:-1:2].tolist(), 0.0]
            else:
                # Of others the timesteps tell as much.
                if any(scheduler.config.get(f"use_{curve}_sigmas") for curve in ("karras", "exponential", "beta")):
                    case["sigmas"] = scheduler.sigmas.tolist()
                latents = run(scheduler, noise)
                assert latents.isfinite().all() and latents.std() > 0.005, (kind, config, steps)
                case |= {"noise": noise.flatten().tolist(), "latents": latents.flatten().tolist()}
            cases.append(case)
    note = "Latents are the finished ones. " + FORMULA
    shares = [0.0, 1e-9, 1e-6, 1e-3, 0.01, *(i / 24 for i in range(1, 24)), 0.999, 1 - 1e-6, 1.0]
    quantiles = [[share, float(beta.ppf(share, 0.6, 0.6))] for share in shares]
    value = {"a": A, "b": B, "cases": cases, "beta_quantiles": quantiles, "versions": versions(), "note": note}
    write_json(HERE / "spacings.json", value)
    for case in cases:
        print(case["config"]["_class_name"], case["steps"], case["start"], case["timesteps"][:3], case["timesteps"][-1])


if __name__ == "__main__":
    main()
