"""Goldens of diffusers' timestep spacings, and of its Karras levels, as saved schedulers have them.

Witness: diffusers' EulerDiscreteScheduler, DPMSolverMultistepScheduler, DDIMScheduler and DPMSolverSDEScheduler (the last for its levels
alone: its noise comes from a Brownian tree). The network is a closed formula of what a network is given: scaled latents and timestep. The
configurations are those that a folder's scheduler_config.json would hold.
"""

import pathlib
import sys
import types

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import torch
from common import deterministic, randn, versions, write_json
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

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
    (DPMSolverSDEScheduler, LEADING),
    (DPMSolverSDEScheduler, LINSPACE),
    (DPMSolverSDEScheduler, {**LEADING, **KARRAS}),
]


def run(scheduler, noise: torch.Tensor) -> torch.Tensor:
    x = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x_in = scheduler.scale_model_input(x, t)
        x = scheduler.step(A * x_in + B * torch.cos(t / 100), t, x).prev_sample
    return x


def main() -> None:
    deterministic()
    cases = []
    for kind, config in CONFIGS:
        for steps in STEPS:
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
                if scheduler.config.get("use_karras_sigmas"):
                    case["sigmas"] = scheduler.sigmas.tolist()
                latents = run(scheduler, noise)
                assert latents.isfinite().all() and latents.std() > 0.005, (kind, config, steps)
                case |= {"noise": noise.flatten().tolist(), "latents": latents.flatten().tolist()}
            cases.append(case)
    note = "Latents are the finished ones. " + FORMULA
    write_json(HERE / "spacings.json", {"a": A, "b": B, "cases": cases, "versions": versions(), "note": note})
    for case in cases:
        print(case["config"]["_class_name"], case["steps"], case["start"], case["timesteps"][:3], case["timesteps"][-1])


if __name__ == "__main__":
    main()
