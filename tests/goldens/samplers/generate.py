"""Goldens of random numbers, schedules and samplers.

Witnesses: PyTorch's CPU generator, diffusers' schedulers, and step-by-step runs of tools/pulid_reference/samplers.py,
which are themselves checked against diffusers where it has the same sampler. The denoiser is a closed formula.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import saved_schedulers
import scheduler_defaults
import spacings
import torch
import zero_snr
from common import deterministic, generator, randn, relative_error, save_tensors, versions, write_json
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler
from pulid_reference import samplers

HERE = pathlib.Path(__file__).resolve().parent
A, B = 0.6, 0.3
FORMULA = "eps(x, sigma) = a x / sqrt(sigma^2 + 1) + b sin(sigma); x0 = x - sigma eps"
SHAPE = (1, 4, 5, 3)
SEED = 6000
BETAS = dict(
    beta_start=samplers.BETA_START,
    beta_end=samplers.BETA_END,
    beta_schedule="scaled_linear",
    num_train_timesteps=samplers.TRAIN_STEPS,
)

# (seed, shapes drawn one after the other from one generator)
DRAWS = [
    (0, [(1,)]),
    (1, [(5,)]),
    (2, [(15,)]),
    (42, [(16,)]),
    (42, [(17,)]),
    (3, [(31,)]),
    (4, [(3, 7)]),
    (0, [(1, 4, 8, 8)]),
    (1234, [(1, 4, 9, 7)]),
    (2**32 - 1, [(2, 4, 16, 16)]),
    (2**40 + 7, [(1, 4, 13, 10)]),
    (7, [(5,), (5,), (20,), (3,), (17,)]),
    (2024, [(1, 4, 48, 40)]),
]


def eps(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return A * x / (sigma**2 + 1) ** 0.5 + B * torch.sin(sigma)


def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return x - sigma * eps(x, sigma)


def random_numbers() -> None:
    tensors, cases = {}, []
    for index, (seed, shapes) in enumerate(DRAWS):
        source = generator(seed)
        names = []
        for part, shape in enumerate(shapes):
            names.append(f"draw_{index}_{part}")
            tensors[names[-1]] = torch.randn(shape, generator=source)
        cases.append({"seed": seed, "shapes": shapes, "tensors": names})
    save_tensors(HERE / "randn.safetensors", tensors)
    note = "torch.randn on the CPU, float32. The shapes of a case are drawn in order from one generator."
    write_json(HERE / "randn.json", {"cases": cases, "versions": versions(), "note": note})


def schedules() -> None:
    table = samplers.training_sigmas()
    karras = []
    for steps in (1, 4, 5, 8, 25):
        sigmas = samplers.karras_sigmas(steps)
        karras.append(
            {
                "steps": steps,
                "sigmas": sigmas.tolist(),
                "timesteps": samplers.nearest_timestep(sigmas[:-1]).tolist(),
                # The official pipeline runs in half precision and looks the rounded level up.
                "timesteps_of_half_sigmas": samplers.nearest_timestep(sigmas[:-1].half().float()).tolist(),
            }
        )
    trailing = []
    for steps in (1, 3, 4, 5, 6, 8, 25):
        scheduler = DPMSolverMultistepScheduler(**BETAS, timestep_spacing="trailing")
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps.tolist() == samplers.trailing_timesteps(steps).tolist(), steps
        # diffusers squares its betas in float32, PuLID's pipeline in float64.
        error = (samplers.trailing_sigmas(steps)[:-1] / scheduler.sigmas[:-1] - 1).abs().max()
        assert error < 1e-4 and scheduler.sigmas[-1] == 0, (steps, error)
        trailing.append(
            {"steps": steps, "timesteps": scheduler.timesteps.tolist(), "sigmas": scheduler.sigmas.tolist()}
        )
    value = {
        "sigma_min": table[0].item(),
        "sigma_max": table[-1].item(),
        "sigmas_every_100": table[::100].tolist(),
        "karras": karras,
        "trailing": trailing,
        "versions": versions(),
    }
    write_json(HERE / "schedules.json", value)
    print("five Karras steps", karras[2]["timesteps"], karras[2]["timesteps_of_half_sigmas"])


def record(start: torch.Tensor, states) -> torch.Tensor:
    return torch.stack([start, *states])


def own_trajectories(tensors: dict, cases: list) -> None:
    for index, (sampler, spacing, steps) in enumerate(
        [
            ("dpmpp_2m", "karras", 4),
            ("dpmpp_2m", "karras", 25),
            ("dpmpp_2m", "trailing", 4),
            ("euler", "karras", 5),
            ("euler", "trailing", 8),
            ("dpmpp_sde", "karras", 5),
            ("dpmpp_sde", "trailing", 4),
        ]
    ):
        seed = SEED + index
        sigmas = samplers.karras_sigmas(steps) if spacing == "karras" else samplers.trailing_sigmas(steps)
        start = randn(seed, *SHAPE) * sigmas[0]
        name = f"{sampler}_{spacing}_{steps}"
        case = {
            "name": name,
            "sampler": sampler,
            "spacing": spacing,
            "steps": steps,
            "sigmas": sigmas.tolist(),
            "states": f"{name}_states",
            "space": "variance exploding",
        }
        if sampler == "dpmpp_sde":
            noises = randn(seed + 100, 2 * (steps - 1), *SHAPE)
            draws = iter(noises)
            states = record(start, samplers.dpmpp_sde(denoise, start, sigmas, lambda a, b: next(draws)))
            tensors[f"{name}_noise"] = noises
            case["noise"] = f"{name}_noise"
            case["noise_order"] = "per step: sigma to middle, then sigma to next; unit variance"
        else:
            states = record(start, getattr(samplers, sampler)(denoise, start, sigmas))
        assert len(states) == steps + 1 and states.isfinite().all()
        tensors[case["states"]] = states
        cases.append(case)


def diffusers_trajectories(tensors: dict, cases: list) -> None:
    """Lightning's setting: states are variance preserving, x / sqrt(sigma^2 + 1), and start as plain unit noise."""
    for steps, final in ((4, "zero"), (8, "zero"), (4, "sigma_min"), (25, "zero"), (16, "sigma_min")):
        scheduler = DPMSolverMultistepScheduler(**BETAS, timestep_spacing="trailing", final_sigmas_type=final)
        scheduler.set_timesteps(steps)
        start = randn(SEED + 50 + steps, *SHAPE)
        x, states = start, []
        for t, sigma in zip(scheduler.timesteps, scheduler.sigmas):
            noise = eps(x * (sigma**2 + 1) ** 0.5, sigma)
            x = scheduler.step(noise, t, x).prev_sample
            states.append(x)
        states = record(start, states)
        sigmas = scheduler.sigmas
        if final == "zero":
            scale = ((sigmas**2 + 1) ** 0.5).reshape(-1, 1, 1, 1, 1)
            own = record(start * scale[0], samplers.dpmpp_2m(denoise, start * scale[0], sigmas)) / scale
            error = relative_error(own, states)
            assert error < 1e-5, (steps, error)
        name = f"diffusers_dpmpp_2m_trailing_{steps}_{final}"
        tensors[f"{name}_states"] = states
        cases.append(
            {
                "name": name,
                "sampler": "dpmpp_2m",
                "spacing": "trailing",
                "steps": steps,
                "sigmas": sigmas.tolist(),
                "timesteps": scheduler.timesteps.tolist(),
                "states": f"{name}_states",
                "space": "variance preserving",
                "final_sigma": final,
            }
        )

    # Not written: the reference's Euler against diffusers'.
    scheduler = EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing")
    scheduler.set_timesteps(8)
    start = randn(SEED + 99, *SHAPE) * scheduler.sigmas[0]
    x = start
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas):
        x = scheduler.step(eps(x, sigma), t, x).prev_sample
    assert relative_error(list(samplers.euler(denoise, start, scheduler.sigmas))[-1], x) < 1e-5


def main() -> None:
    deterministic()
    random_numbers()
    zero_snr.main()
    saved_schedulers.main()
    scheduler_defaults.main()
    spacings.main()
    schedules()
    tensors, cases = {}, []
    own_trajectories(tensors, cases)
    diffusers_trajectories(tensors, cases)
    save_tensors(HERE / "trajectories.safetensors", tensors)
    note = "states[0] is the start, states[k] the state after step k. " + FORMULA
    write_json(HERE / "trajectories.json", {"a": A, "b": B, "cases": cases, "versions": versions(), "note": note})
    for case in cases:
        print(case["name"], "last state std", round(tensors[case["states"]][-1].std().item(), 4))


if __name__ == "__main__":
    main()
