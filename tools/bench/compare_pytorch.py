"""Holds `pulid bench` against PyTorch's CPU f32 on the same cores in the same run; prints a Markdown table.

    python tools/bench/compare_pytorch.py --pulid target/release/pulid --device llvmpipe --threads 2

Every size is timed by both, one right after the other, so that a busy machine slows both alike. The ratio is PyTorch's time
over ours: 1 is as fast as PyTorch, 0.1 takes ten times as long.
"""

import argparse
import json
import re
import statistics
import subprocess
import time

import torch
import torch.nn.functional as F

KERNELS = [
    "matmul/m=1024;k=1024;n=1024",
    "matmul/m=4096;k=640;n=640",
    "matmul/m=77;k=2048;n=1280",
    "conv2d/x=1x64x64x320;kernel=3x3;out=320;stride=1,1;",
    "conv2d/x=1x32x32x640;kernel=3x3;out=640;stride=1,1;",
    "conv2d/x=1x64x64x640;kernel=1x1;out=320;stride=1,1;",
    "conv2d/x=1x128x128x4;kernel=3x3;out=320;stride=1,1;",
    "attention/b=1;tq=4096;tk=4096;h=10;d=64",
    "attention/b=1;tq=1024;tk=1024;h=20;d=64",
    "attention/b=1;tq=4096;tk=77;h=10;d=64",
]


def numbers(case: str) -> dict[str, int]:
    """The `name=number` parts of a case's name."""
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)(?=;|$)", case)}


def workload(kernel: str):
    """The same work in PyTorch, as a function to time."""
    operator, case = kernel.split("/", 1)
    n = numbers(case)
    if operator == "matmul":
        a, b = torch.randn(n["m"], n["k"]), torch.randn(n["k"], n["n"])
        return lambda: a @ b
    if operator == "conv2d":
        batch, height, width, channels = map(int, re.search(r"x=(\d+)x(\d+)x(\d+)x(\d+)", case).groups())
        size = int(re.search(r"kernel=(\d+)", case).group(1))
        # PyTorch's own default layout: it is the faster one for f32 on a CPU.
        x = torch.randn(batch, channels, height, width)
        w, bias = torch.randn(n["out"], channels, size, size), torch.randn(n["out"])
        return lambda: F.conv2d(x, w, bias, padding=size // 2)
    q = torch.randn(n["b"], n["h"], n["tq"], n["d"])
    k, v = torch.randn(n["b"], n["h"], n["tk"], n["d"]), torch.randn(n["b"], n["h"], n["tk"], n["d"])
    return lambda: F.scaled_dot_product_attention(q, k, v)


def seconds(work, repeats: int) -> float:
    """Median time after one warm-up."""
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pulid", default="target/release/pulid", help="the program to measure")
    parser.add_argument("--device", default="auto", help="passed to pulid bench")
    parser.add_argument("--threads", type=int, default=2, help="PyTorch's threads")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--autotune", default="off", help="off: the variants that capabilities choose; on: measured first")
    parser.add_argument("--filter", default="", help="only kernels whose name contains this")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    header = None
    for kernel in (k for k in KERNELS if args.filter in k):
        command = [args.pulid, "bench", "--json", "--autotune", args.autotune, "--device", args.device, "--repeats", str(args.repeats)]
        report = json.loads(subprocess.check_output([*command, "--filter", kernel]))
        if header is None:
            header = f"{report['device']} ({report['driver']}) against PyTorch {torch.__version__}, {args.threads} threads, f32"
            print(header, end="\n\n")
            print("| kernel | variant | ms | GFLOP/s | PyTorch ms | PyTorch GFLOP/s | ratio |")
            print("|---|---|---:|---:|---:|---:|---:|")
        theirs = seconds(workload(kernel), args.repeats)
        for row in report["kernels"]:
            ours = row["milliseconds"] / 1e3
            flops = row["gflops"] * ours
            print(
                f"| {kernel.rstrip(';')} | {row['variant']} | {ours * 1e3:.1f} | {row['gflops']:.1f} "
                f"| {theirs * 1e3:.1f} | {flops / theirs:.1f} | {theirs / ours:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
