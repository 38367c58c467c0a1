"""Holds a step of `pulid train` against the same step in PyTorch on the same cores in the same run; prints a Markdown table.

    cargo build --release -p pulid-cli
    python tools/bench/training.py --pulid target/release/pulid --device llvmpipe --threads 2 [--stages 1 2 3] [--batch 2]

The networks are the mini models, in f32, on the cache of `tests/goldens/training`; PyTorch runs what `pulid train --export-steps` wrote of one step
by the modules of `tests/goldens/training/generate.py` (diffusers' UNet and VAE, the adapter, losses by autograd), clips and takes a step of
AdamW. In stages 2 and 3 both run the face detector on each picture and the recogniser on each photo, PyTorch's side by ONNX Runtime, on numbers of
the right shapes. Each side's first step is not counted, and medians of the others are shown; both take turns. Not in PyTorch's
time: drawing the batch, and fitting pictures into the detector and reading its boxes, all of which are in ours.
Memory is the peak of the process, which on a software device holds the device's too. The ratio is PyTorch's time over ours."""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDENS = ROOT / "tests" / "goldens" / "training"
FLAGS = {1: [], 2: ["--branch-steps", "4"], 3: ["--branch-steps", "4"]}
WEIGHTS = {1: {"diff": 1.0}, 2: {"diff": 1.0, "id": 1.0}, 3: {"diff": 1.0, "id": 1.0, "align_sem": 0.6, "align_layout": 0.1}}


def pytorch(stage: int, exported: pathlib.Path, steps: int, threads: int) -> None:
    """Prints the seconds of each step but the first; in a process of its own, for its memory."""
    sys.path.insert(0, str(GOLDENS))
    import torch
    from generate import Step, load_file

    torch.set_num_threads(threads)
    torch.set_grad_enabled(True)
    step = load_file(exported)
    network = Step(step, torch.float32)
    parameters = list(network.parameters.values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01)
    look = faces(len(step["sample"]), threads) if stage > 1 else lambda: None
    times = []
    for _ in range(steps + 1):
        begun = time.perf_counter()
        look()
        _, total = network.losses(WEIGHTS[stage], 4)
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        times.append(time.perf_counter() - begun)
    print(json.dumps(times[1:]))


def faces(batch: int, threads: int):
    """What L_id asks of networks that nothing is differentiated through: a face in each picture, an embedding of each photo."""
    import numpy
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    parts = []
    for name, extents in [("scrfd_10g_bnkps", [1, 3, 640, 640]), ("glintr100", [batch, 3, 112, 112])]:
        session = onnxruntime.InferenceSession(ROOT / "models/mini/antelopev2" / f"{name}.onnx", options, ["CPUExecutionProvider"])
        numbers = numpy.random.default_rng(0).standard_normal(extents, dtype=numpy.float32)
        parts.append((session, {session.get_inputs()[0].name: numbers}, batch // extents[0]))
    return lambda: [session.run(None, given) for session, given, times in parts for _ in range(times)]


def peak(command: list, **more) -> tuple[bytes, float]:
    """What a command prints, and the most MiB that it held."""
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, **more)
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command[0]} failed with {process.returncode}")
    return said, usage.ru_maxrss / 1024


def ours(args, stage: int, out: pathlib.Path) -> tuple[list[float], float]:
    flags = ["--data", GOLDENS / "cache", "--resolution", "128", "--dtype", "f32", "--batch", args.batch, "--stage", stage, *FLAGS[stage]]
    drops = ["--drop-text", "0", "--drop-id", "0", "--drop-both", "0", "--export-steps", "1", "--steps", args.steps + 1]
    command = [args.pulid, "train", *flags, *drops, "--out", out, "--models-dir", ROOT / "models" / "mini", "--autotune", args.autotune]
    _, memory = peak([*command, *(["--device", args.device] if args.device else []), "--json"])
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    if stage > 1 and any(line["faces"] < 1 for line in lines[:1]):
        print(f"note: stage {stage}: not all of the exported step's pictures show a face", file=sys.stderr)
    # The exported step is the first.
    return [args.batch / line["images_per_second"] for line in lines[1:]], memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pulid", type=pathlib.Path, default=ROOT / "target/release/pulid")
    parser.add_argument("--device", default="", help="as pulid's own flag")
    parser.add_argument("--autotune", default="off")
    parser.add_argument("--threads", type=int, default=2, help="PyTorch's")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5, help="that are timed")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side on each stage")
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--pytorch", nargs=2, metavar=("STAGE", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.pytorch:
        pytorch(int(args.pytorch[0]), pathlib.Path(args.pytorch[1]), args.steps, args.threads)
        return
    print(f"Batch {args.batch} at 128 x 128, {args.threads} threads\n")
    print("| stage | images/s | PyTorch images/s | ratio | peak MiB | PyTorch peak MiB |")
    print("|---:|---:|---:|---:|---:|---:|")
    for stage in args.stages:
        mine, theirs, memory, theirs_memory = [], [], 0.0, 0.0
        for _ in range(args.rounds):
            with tempfile.TemporaryDirectory() as folder:
                run = pathlib.Path(folder) / "run"
                seconds, most = ours(args, stage, run)
                mine, memory = mine + seconds, max(memory, most)
                command = [sys.executable, __file__, "--pytorch", stage, run / "steps" / "1.safetensors"]
                said, most = peak([*command, "--steps", args.steps, "--threads", args.threads], stderr=subprocess.DEVNULL)
                theirs, theirs_memory = theirs + json.loads(said.splitlines()[-1]), max(theirs_memory, most)
        own, theirs = statistics.median(mine), statistics.median(theirs)
        row = f"| {stage} | {args.batch / own:.3f} | {args.batch / theirs:.3f} | {theirs / own:.2f} | {memory:.0f} | {theirs_memory:.0f} |"
        print(row, flush=True)


if __name__ == "__main__":
    main()
