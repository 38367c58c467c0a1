"""Goldens of whole runs of training (`crates/train`): the losses of the first twenty steps of each stage.
Witness: PyTorch's autograd in float64 as in `generate.py`, `torch.optim.AdamW`, `clip_grad_norm_` and a `LambdaLR` for the warm-up.

PyTorch trains an adapter of its own from the published one on. What goes into each step (noise, latents, timesteps, prompts) is what
`pulid train --export-steps` wrote of it; nothing of what came out is read:

    pulid train --data tests/goldens/training/cache --out RUN --resolution 128 --dtype f32 FLAGS
    python tests/goldens/training/trajectory.py STAGE RUN

FLAGS are those of `SHARED` and of the stage below, which `trajectory-STAGE.json` repeats for the test. It has of each step the losses, the
crop matrices, which a face detector found in the pictures, and of what was drawn the sums by which a test knows that it is the same."""

import json
import pathlib
import sys

import torch
from generate import FOLDER, Step, deterministic, load_file, versions

COUNT, WARMUP, WEIGHT_DECAY, CLIP = 20, 5, 0.01, 1.0
SHARED = {
    "steps": COUNT, "export-steps": COUNT, "seed": 3, "warmup": WARMUP, "weight-decay": WEIGHT_DECAY, "clip": CLIP,
    "drop-id": 0.1, "drop-text": 0.1, "drop-both": 0.1,
}  # fmt: skip
# The rates of L_id's runs were lowered until they agree to 1e-4: at 2e-4 the losses of stage 2 differed by 2.6e-4 in the end, at 5e-5 by 1.3e-4,
# at both by 4e-6 or less in the first four steps. The difference grows from step to step, as rounding that Adam amplifies would, but PyTorch's own f32
# run stays within 2.5e-6 at 2e-4, so that more than rounding of that size is in it: what a device rounds elsewhere moves 8-bit pixels of the
# picture, and so the crop that its detector finds, by thousandths of a pixel; L_id changes by up to 0.07 for each pixel, and gradients with it. Single
# steps are sensitive besides (step 17 of stages 2 and 3: 1.3e-4 off at 2e-5, its neighbours 1e-5; of stage 3 still 9e-5 at 1e-5).
STAGES = {
    "1": {"lr": 2e-4, "batch": 2},
    "2": {"lr": 1e-5, "batch": 1, "stage": 2, "branch-steps": 4, "backprop-steps": 1},
    "one-step": {"lr": 2e-5, "batch": 2, "stage": 2, "id-from": "one-step"},
    "3": {"lr": 5e-6, "batch": 1, "stage": 3, "branch-steps": 4, "backprop-steps": 1, "align-steps": 1},
}
WEIGHTS = {
    "1": {"diff": 1.0},
    "2": {"diff": 1.0, "id": 1.0},
    "one-step": {"diff": 1.0, "id": 1.0},
    "3": {"diff": 1.0, "id": 1.0, "align_sem": 0.6, "align_layout": 0.1},
}
# What depends on nothing but seed and step.
DRAWN = ("sample", "target", "timestep", "noise")


def exported(run: pathlib.Path) -> list[dict]:
    return [load_file(run / "steps" / f"{step}.safetensors") for step in range(1, COUNT + 1)]


def train(steps: list[dict], weights: dict, flags: dict, dtype: torch.dtype) -> list[dict]:
    """The losses of each step."""
    network = Step(steps[0], dtype, flags.get("branch-steps", 4), "id-from" in flags)
    parameters = list(network.parameters.values())
    optimizer = torch.optim.AdamW(parameters, lr=flags["lr"], weight_decay=WEIGHT_DECAY)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: min(1.0, (done + 1) / WARMUP))
    history = []
    for step in steps:
        network.take(step)
        rate, said = optimizer.param_groups[0]["lr"], float(step["lr"])
        if flags["lr"] and abs(rate / said - 1) > 1e-6:
            raise ValueError(f"the run's rate is {said}, PyTorch's {rate}")
        losses, total = network.losses(weights, flags.get("backprop-steps", 0))
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        warmup.step()
        history.append({name: float(loss.detach()) for name, loss in losses.items()})
    return history


def furthest(some: list[dict], others: list[dict]) -> tuple[float, str]:
    """The largest relative difference of losses, and where."""
    pairs = zip(some, others, strict=True)
    return max((abs(a[key] / b[key] - 1), f"{key} of step {i + 1}") for i, (a, b) in enumerate(pairs) for key in a)


def main() -> None:
    deterministic()
    torch.set_num_threads(1)
    torch.set_grad_enabled(True)
    name, folder = sys.argv[1:]
    flags, weights, steps = STAGES[name], WEIGHTS[name], exported(pathlib.Path(folder))
    history = train(steps, weights, flags, torch.float64)
    ours = [{key: float(step[f"loss.{key}"]) for key in losses} for step, losses in zip(steps, history)]
    print(f"stage {name}: the run that was exported differs by %.1e in %s" % furthest(ours, history))
    single = train(steps, weights, flags, torch.float32)
    untrained = train(steps, weights, {**flags, "lr": 0.0}, torch.float32)
    moved = furthest(untrained, history)[0]
    note = "PyTorch's own f32 run differs by %.1e in %s" % furthest(single, history)
    note += f"; untrained, losses would differ by {moved:.1e}"
    print(note)
    if moved < 1e-3:
        raise ValueError("so little is learnt that an optimiser which does nothing would pass")
    lines = []
    for losses, step in zip(history, steps, strict=True):
        drawn = {key: float(step[key].double().sum()) for key in DRAWN if key in step}
        crop = step["crop_matrix"].flatten().tolist() if "crop_matrix" in step else None
        lines.append({"losses": losses, "drawn": drawn, "crop_matrix": crop})
    golden = {"versions": versions(), "flags": {**SHARED, **flags}, "note": note, "steps": lines}
    (FOLDER / f"trajectory-{name}.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
