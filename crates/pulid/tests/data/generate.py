"""Writes the reference data of the `pulid` crate's unit tests: `python generate.py [PART]...` (see `PARTS`).

Needs torch, numpy, diffusers, scikit-image, pillow and opencv-python-headless 4.x; the 4.x line matters, because 5.0
changed `warpAffine` to another interpolation than the one that PuLID's published pipeline runs on.
Each file names the versions it came from in `versions.json`.
"""

import importlib.metadata
import json
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent


def save(name: str, value) -> None:
    (HERE / name).write_text(json.dumps(value) + "\n", encoding="utf-8")


def floats(values) -> list[float]:
    """Shortest decimals that give the same float32."""
    return [float(str(np.float32(v))) for v in np.asarray(values).ravel()]


def picture(width: int, height: int, seed: int) -> np.ndarray:
    """A uint8 RGB picture [H, W, 3] with smooth parts, hard edges and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    smooth = [127 + 90 * np.sin(x / 7 + k) * np.cos(y / (5 + k)) for k in range(3)]
    image = np.stack(smooth, -1) + rng.normal(0, 12, (height, width, 3))
    image[height // 4 : height // 2, width // 3 : width // 2] = (250, 5, 120)
    return np.clip(image, 0, 255).astype(np.uint8)


def hexed(image: np.ndarray) -> dict:
    height, width = image.shape[:2]
    return {"width": width, "height": height, "hex": np.ascontiguousarray(image).tobytes().hex()}


def randn() -> None:
    import torch

    runs = []
    for seed, counts in [
        (0, [1, 5, 15, 16, 17, 31, 1024, 16384]),
        (42, [16384, 3, 3, 100, 1, 1, 40]),
        (2**32 - 1, [15, 15, 47, 16]),
        (123456789012345, [4096, 7, 8]),
    ]:
        generator = torch.Generator().manual_seed(seed)
        draws = [torch.randn(count, generator=generator).numpy() for count in counts]
        runs.append({
            "seed": seed,
            "counts": counts,
            "head": [floats(d[:40]) for d in draws],
            "tail": [floats(d[-17:]) for d in draws],
            "sum": [float(d.astype(np.float64).sum()) for d in draws],
        })
    save("randn.json", runs)


def table() -> np.ndarray:
    """Sigmas of SDXL's 1000 training timesteps, from diffusers."""
    from diffusers import EulerDiscreteScheduler

    alphas = EulerDiscreteScheduler(**SDXL).alphas_cumprod
    return (((1 - alphas) / alphas) ** 0.5).numpy().astype(np.float64)


SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def nearest(sigmas: np.ndarray, sigma: float) -> int:
    return int(np.abs(np.log(sigma) - np.log(sigmas)).argmin())


def karras(sigmas: np.ndarray, steps: int) -> np.ndarray:
    ramp = np.linspace(0, 1, steps)
    top, bottom = sigmas[-1] ** (1 / 7), sigmas[0] ** (1 / 7)
    return np.append((top + ramp * (bottom - top)) ** 7, 0.0)


def trailing(steps: int):
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(**SDXL, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    return scheduler


def schedule() -> None:
    sigmas = table()
    save("schedule.json", {
        "table": floats(sigmas),
        "karras": [
            {"steps": n, "sigmas": k.tolist(), "timesteps": [nearest(sigmas, s) for s in k[:-1]]}
            for n in (1, 2, 5, 8, 25, 60) for k in [karras(sigmas, n)]
        ],
        "trailing": [
            {"steps": n, "sigmas": floats(s.sigmas), "timesteps": s.timesteps.tolist()}
            for n in (1, 2, 4, 5, 7, 8, 16, 30, 75) for s in [trailing(n)]
        ],
    })


def toy(x_in: np.ndarray, timestep: int) -> np.ndarray:
    i = np.arange(x_in.size)
    return np.tanh(1.1 * x_in + 0.3 * np.sin(i)) * (0.9 - 0.0003 * timestep)


def step_noise(sigma: float, following: float) -> np.ndarray:
    return 1.3 * np.sin(12.9898 * np.arange(1, 9) + 3.1 * np.log(sigma) + 1.7 * np.log(following))


def exponential_form(kind: str, levels: np.ndarray, timesteps, x: np.ndarray, prediction: str, train: np.ndarray):
    """The samplers as the papers write them, in f64 with t = -log sigma."""
    told = []

    def denoise(x, sigma, timestep):
        told.append(int(timestep))
        out = toy(x / np.sqrt(sigma**2 + 1), timestep)
        if prediction == "epsilon":
            return x - sigma * out
        return x / (sigma**2 + 1) - out * sigma / np.sqrt(sigma**2 + 1)

    def ancestral(start, stop):
        up = min(stop, np.sqrt(stop**2 * (start**2 - stop**2) / start**2))
        return np.sqrt(stop**2 - up**2), up

    old = None
    for i, t in enumerate(timesteps):
        sigma, following = levels[i], levels[i + 1]
        clean = denoise(x, sigma, t)
        if kind == "euler" or (kind == "dpmpp_sde" and following == 0):
            x = x + (x - clean) / sigma * (following - sigma)
        elif kind == "dpmpp_2m":
            if old is None or following == 0:
                x = clean if following == 0 else following / sigma * x - np.expm1(np.log(following / sigma)) * clean
            else:
                h, h_last = np.log(sigma / following), np.log(levels[i - 1] / sigma)
                r = h_last / h
                x = following / sigma * x - np.expm1(-h) * ((1 + 1 / (2 * r)) * clean - old / (2 * r))
            old = clean
        else:
            middle = np.exp((np.log(sigma) + np.log(following)) / 2)
            down, up = ancestral(sigma, middle)
            x2 = down / sigma * x - np.expm1(np.log(down / sigma)) * clean + up * step_noise(sigma, middle)
            clean2 = denoise(x2, middle, nearest(train, middle))
            down, up = ancestral(sigma, following)
            x = down / sigma * x - np.expm1(np.log(down / sigma)) * clean2 + up * step_noise(sigma, following)
    return x, told


def samplers() -> None:
    import torch
    from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler

    train, cases = table(), []
    noise = np.random.default_rng(3).normal(size=8).astype(np.float32)

    def case(kind, spacing, steps, prediction, latents, timesteps):
        cases.append({
            "sampler": kind, "spacing": spacing, "steps": steps, "prediction_type": prediction,
            "noise": floats(noise), "latents": floats(latents), "timesteps": [int(t) for t in timesteps],
        })

    for kind in ("dpmpp_2m", "dpmpp_sde", "euler"):
        for steps, prediction in ((1, "epsilon"), (5, "epsilon"), (25, "epsilon"), (6, "v_prediction")):
            levels = karras(train, steps)
            timesteps = [nearest(train, s) for s in levels[:-1]]
            x = noise.astype(np.float64) * levels[0]
            case(kind, "karras", steps, prediction, *exponential_form(kind, levels, timesteps, x, prediction, train))

    levels = np.append(train[[999, 749, 499, 249]], 0.0)
    x = noise.astype(np.float64) * levels[0]
    sde = exponential_form("dpmpp_sde", levels, [999, 749, 499, 249], x, "epsilon", train)
    case("dpmpp_sde", "trailing", 4, "epsilon", *sde)

    for kind, scheduler_class in (("dpmpp_2m", DPMSolverMultistepScheduler), ("euler", EulerDiscreteScheduler)):
        for steps, prediction in ((1, "epsilon"), (4, "epsilon"), (5, "v_prediction"), (20, "epsilon")):
            scheduler = scheduler_class(**SDXL, timestep_spacing="trailing", prediction_type=prediction)
            scheduler.set_timesteps(steps)
            x = torch.from_numpy(noise) * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                x_in = scheduler.scale_model_input(x, t)
                out = torch.from_numpy(toy(x_in.double().numpy(), int(t)).astype(np.float32))
                x = scheduler.step(out, t, x).prev_sample
            case(kind, "trailing", steps, prediction, x, scheduler.timesteps)
    save("samplers.json", cases)


PARTS = {"randn": randn, "schedule": schedule, "samplers": samplers}


def main() -> None:
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
    names = ["torch", "numpy", "diffusers", "scikit-image"]
    versions = {name: importlib.metadata.version(name) for name in names}
    import cv2

    versions["opencv-python-headless"] = cv2.__version__
    save("versions.json", versions)


if __name__ == "__main__":
    main()
