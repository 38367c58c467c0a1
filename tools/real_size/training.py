"""Holds a training step of SDXL and PuLID v1.1 at their real sizes, with random weights, to PyTorch's autograd over diffusers' UNet.

    cargo xtask random-model sdxl pulid eva DIR
    cargo build --release --package pulid-cli
    python tools/real_size/training.py DIR [--case diffusion] [--side 512] [--forms f16 f32] [--stored] [--device NAME]

| case | losses | what bounds it |
|---|---|---|
| diffusion | L_diff, stage 1 | |
| one-step | and L_id of the one-step estimate | at a timestep of little noise, where the estimate still shows the photo's face |
| align | L_diff, L_id and L_align, stage 3 | a branch of one step; random weights make a picture without a face, in which L_id has no part |

`pulid train --export-steps` makes one step, of which `Step` of `tests/goldens/training` computes the losses and gradients anew, in f32 on the
weights as they are stored, with blocks computed again. Networks that random weights would make blind (VAE, detector, recogniser) are the mini
models', which prepare a portrait; text states and the vision tower's are drawn, of the real extents.

Printed of the gradients of each kind of parameter: the root mean square and the maximum of what differs, over the root mean square of
PyTorch's gradient, of all parameters together and of the worst one. Of the update: the largest difference from `torch.optim.AdamW` on the
exported gradients, over the rate. Memory is the most that a process held besides pages of files: 20 GB at 512, of which 6 are what pulid exports,
and 19 with PyTorch, which never run at once. pulid is ended before it writes a checkpoint. What was exported is kept in
DIR/training/run-CASE-SIDE-FORM, and not made again. `--stored` tells what half precision does in PyTorch itself.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "models" / "mini"
PHOTO = ROOT / "examples" / "faces" / "ada.jpg"

# Seeds whose first timestep is 500 and 31.
DRAWN, LITTLE_NOISE = 77, 16
BRANCH = ["--branch-steps", 1, "--align-steps", 1]
CASES = {
    "diffusion": ["--stage", 1, "--seed", DRAWN],
    "one-step": ["--stage", 2, "--seed", LITTLE_NOISE, "--id-from", "one-step"],
    "align": ["--stage", 3, "--seed", DRAWN, *BRANCH],
}
WEIGHTS = {
    "diffusion": {"diff": 1.0},
    "one-step": {"diff": 1.0, "id": 1.0},
    "align": {"diff": 1.0, "id": 1.0, "align_sem": 0.6, "align_layout": 0.1},
}
FIXED = ["--batch", 1, "--steps", 1, "--export-steps", 1, "--drop-text", 0, "--drop-id", 0, "--drop-both", 0]
# Of half precision's first step.
LOSS_SCALE = 65536.0
KINDS = {"IDFormer": "id_adapter.", "id_to_k": "id_to_k", "id_to_v": "id_to_v"}
# Of what the cache's networks give at their real sizes.
EXTENTS = {"encoder_hidden_states": (1, 77, 2048), "text_embeds": (1, 1280), "id_cond": (1, 1280)}
EXTENTS |= {f"hidden_{i}": (1, 577, 1024) for i in range(5)}


def models(folder: Path) -> Path:
    """The real-size UNet, text encoders and adapter beside the mini models' VAE and face networks, by links."""
    mixed = folder / "training" / "models"
    if not mixed.exists():
        (mixed / "sdxl").mkdir(parents=True)
        (mixed / "antelopev2").symlink_to(MINI / "antelopev2")
        (mixed / "pulid_v1.1.safetensors").symlink_to(folder / "pulid_v1.1.safetensors")
        for part in (folder / "sdxl").iterdir():
            (mixed / "sdxl" / part.name).symlink_to(MINI / "sdxl" / "vae" if part.name == "vae" else part)
    return mixed


def cache(folder: Path, side: int, pulid: Path) -> Path:
    """A portrait as the mini models prepare it, with what has other extents at the real size drawn."""
    import torch
    from safetensors.torch import load_file, save_file

    made = folder / "training" / f"cache-{side}"
    if made.exists():
        return made
    photos, being = folder / "training" / "photos", made.with_suffix(".part")
    photos.mkdir(parents=True, exist_ok=True)
    shutil.copy(PHOTO, photos)
    shutil.rmtree(being, ignore_errors=True)
    command = [pulid, "train", "prepare", "--data", photos, "--out", being, "--resolution", side, "--models-dir", MINI]
    subprocess.run([str(word) for word in command], check=True)
    torch.manual_seed(side)
    for file in [being / "empty-prompt.safetensors", *(being / "items").iterdir()]:
        tensors = load_file(file)
        drawn = {name: torch.randn(EXTENTS[name]).to(tensors[name].dtype) for name in EXTENTS.keys() & tensors.keys()}
        save_file(tensors | drawn, file)
    being.rename(made)
    return made


def watch(process: subprocess.Popen, done=lambda: False) -> int:
    """Waits until a process has ended, or is done and killed. Gives the most bytes that it held besides pages of files."""
    most, status = 0, Path(f"/proc/{process.pid}/status")
    while process.poll() is None and not done():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        most = max(most, sum(int(lines[key].split()[0]) for key in ("RssAnon", "RssShmem") if key in lines) * 1024)
        time.sleep(0.2)
    process.kill()
    if process.wait() > 0:
        sys.exit(f"{process.args[0]} failed")
    return most


def export(args, form: str) -> Path:
    """The folder of a run of one step."""
    out = args.folder / "training" / f"run-{args.case}-{args.side}-{form}"
    metrics, report = out / "metrics.jsonl", out / "report.json"
    if report.exists():
        return out
    shutil.rmtree(out, ignore_errors=True)
    flags = ["--data", cache(args.folder, args.side, args.pulid), "--resolution", args.side, "--models-dir", models(args.folder)]
    flags += ["--out", out, "--dtype", form, "--checkpointing", "block", "--memory", args.memory, "--device", args.device, "--autotune", "off"]
    command = [args.pulid, "train", *flags, *FIXED, *CASES[args.case]]
    process = subprocess.Popen([str(word) for word in command])
    # A line is written once the step's tensors are.
    peak = watch(process, lambda: metrics.exists() and metrics.read_text().endswith("\n"))
    step = json.loads(metrics.read_text())
    if step["skipped"]:
        sys.exit(f"the step was left out: {step}")
    report.write_text(json.dumps({"seconds": 1 / step["images_per_second"], "peak": peak, **step}))
    return out


def differences(given, gradients: dict) -> dict:
    """How the gradient that `given` has of a name differs, of each kind of parameter: of all, the worst one's root mean square, the worst maximum."""
    kinds = {}
    for kind, sign in KINDS.items():
        lack = whole = most = count = 0
        mean = (0.0, "")
        for name, want in ((name, value) for name, value in gradients.items() if sign in name):
            off = given(name) - want
            scale = float(want.square().mean().sqrt())
            lack, whole, count = lack + float(off.square().sum()), whole + float(want.square().sum()), count + 1
            mean = max(mean, (float(off.square().mean().sqrt()) / scale, name))
            most = max(most, float(off.abs().max()) / scale)
        kinds[kind] = {"parameters": count, "all": (lack / whole) ** 0.5, "mean": mean, "most": most}
    return kinds


def update(file, names) -> float:
    """The largest difference of a changed parameter from PyTorch's, over the rate, for the exported gradients clipped to a norm of 1."""
    import torch

    norm = sum(float(file.get_tensor(f"d.{name}").double().square().sum()) for name in names) ** 0.5
    rate, worst = float(file.get_tensor("lr")), 0.0
    for name in names:
        parameter = torch.nn.Parameter(file.get_tensor(f"before.{name}"))
        parameter.grad = file.get_tensor(f"d.{name}") * min(1.0, 1.0 / (norm + 1e-6))
        torch.optim.AdamW([parameter], lr=rate, weight_decay=0.01).step()
        worst = max(worst, float((parameter.detach() - file.get_tensor(f"after.{name}")).abs().max()) / rate)
    return worst


def store_in_half(network, factor: float) -> None:
    """Rounds what every layer gives, and the gradient in it times `factor`, to half precision, as a device stores values between operators."""
    import torch

    class Stored(torch.autograd.Function):
        @staticmethod
        def forward(_, x):
            return x.half().float()

        @staticmethod
        def backward(_, gradient):
            return (gradient * factor).half().float() / factor

    for layer in network.modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda _, __, y: Stored.apply(y))


def pytorch(args, runs: list[Path]) -> None:
    """Prints how each run's step differs; in a process of its own, for its memory."""
    sys.path.insert(0, str(ROOT / "tests" / "goldens" / "training"))
    import torch
    from generate import Step
    from safetensors import safe_open

    torch.set_num_threads(args.threads)
    step = inputs = None
    for run in runs:
        file = safe_open(run / "steps" / "1.safetensors", "pt")
        given = {key: file.get_tensor(key) for key in file.keys() if not key.startswith(("d.", "before.", "after.", "loss.", "lr"))}
        step = step or Step(given, torch.float32, 1, args.case == "one-step", models(args.folder))
        step.unet.enable_gradient_checkpointing()
        if inputs is None or any(not torch.equal(given[key], inputs[key]) for key in inputs):
            inputs = given
            step.take(given)
            begun = time.perf_counter()
            losses, gradients = step.run(WEIGHTS[args.case], 1)
            seconds = time.perf_counter() - begun
        off = {name: (float(loss), abs(float(file.get_tensor(f"loss.{name}") / loss) - 1)) for name, loss in losses.items()}
        kinds = differences(lambda name: file.get_tensor(f"d.{name}"), gradients)
        answer = {"losses": off, "kinds": kinds, "update": update(file, list(gradients)), "seconds": seconds}
        answer["timestep"] = float(given["timestep"])
        print(json.dumps(answer), flush=True)
    if args.stored:
        store_in_half(step.unet, LOSS_SCALE)
        of_stored, others = step.run(WEIGHTS[args.case], 1)
        off = {name: (float(loss), abs(float(of_stored[name] / loss) - 1)) for name, loss in losses.items()}
        print(json.dumps({"losses": off, "kinds": differences(others.__getitem__, gradients)}))


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("folder", type=Path)
    parse.add_argument("--case", choices=CASES, default="diffusion")
    parse.add_argument("--side", type=int, default=512, help="pixels")
    parse.add_argument("--forms", nargs="+", choices=["f16", "f32"], default=["f16"], help="of the frozen networks")
    parse.add_argument("--pulid", type=Path, default=ROOT / "target" / "release" / "pulid")
    parse.add_argument("--device", default="auto")
    parse.add_argument("--memory", default="5GiB", help="as pulid's own flag, of which the UNet needs 4.4 GiB in f32")
    parse.add_argument("--threads", type=int, default=2, help="PyTorch's")
    parse.add_argument("--stored", action="store_true", help="also PyTorch with each layer's result stored in half precision, to know what that does")
    parse.add_argument("--pytorch", nargs="+", type=Path, metavar="RUN", help=argparse.SUPPRESS)
    args = parse.parse_args()
    args.folder = args.folder.resolve()
    if args.pytorch:
        pytorch(args, args.pytorch)
        return
    # One after the other: both hold a UNet.
    runs = [export(args, form) for form in args.forms]
    flags = [args.folder, "--case", args.case, "--threads", args.threads, *["--stored"] * args.stored, "--pytorch", *runs]
    process = subprocess.Popen([sys.executable, __file__, *map(str, flags)], stdout=subprocess.PIPE, text=True)
    peak = watch(process)
    answers = [json.loads(line) for line in process.stdout.read().splitlines()]
    for form, run, answer in zip(args.forms, runs, answers):
        own = json.loads((run / "report.json").read_text())
        print(f"\n{args.case} at {args.side} x {args.side}, {form}, timestep {answer['timestep']:.0f}")
        print(f"step: {own['seconds']:.0f} s, {own['peak'] / 1e9:.1f} GB; PyTorch: {answer['seconds']:.0f} s, {peak / 1e9:.1f} GB")
        tell(answer)
        print(f"update: off by {answer['update']:.1e} of the rate")
    if args.stored:
        print("\nPyTorch with values stored in half precision")
        tell(answers[-1])


def tell(answer: dict) -> None:
    for name, (loss, off) in answer["losses"].items():
        print(f"loss {name}: {loss:.6f}, off by {off:.1e}")
    print("| gradients | parameters | root mean square | of the worst parameter | maximum |\n|---|---:|---:|---:|---:|")
    for kind, of in answer["kinds"].items():
        mean, whose = of["mean"]
        print(f"| {kind} | {of['parameters']} | {of['all']:.1e} | {mean:.1e} ({whose}) | {of['most']:.1e} |")


if __name__ == "__main__":
    main()
