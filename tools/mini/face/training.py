"""What the training scripts share: arguments, one-cycle schedule, log lines and checkpoints."""

import argparse
import math
import pathlib
import time

import numpy as np
import torch

from data import Renders

FIRST_HELD_OUT = 3000


def arguments(description, steps, batch, rate, seed):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder with train/, heldout/ and large/")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for checkpoints and unpacked shards")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--rate", type=float, default=rate)
    parser.add_argument("--seed", type=int, default=seed)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", type=pathlib.Path, help="start from this checkpoint's weights")
    parser.add_argument("--compile", action="store_true", help="let TorchInductor fuse the element-wise layers")
    return parser


def prepare(args):
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    return np.random.default_rng(args.seed)


def renders(args, split):
    return Renders(args.data / split, args.work / "unpacked")


class Progress:
    """Sets the learning rate (linear warm-up, cosine to zero) and prints smoothed losses."""

    def __init__(self, args, optimizer, every=50, refresh=None):
        self.args, self.optimizer, self.every, self.refresh = args, optimizer, every, refresh
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.mean, self.cpu, self.wall, self.seen = {}, time.process_time(), time.time(), 0

    def before(self, step):
        warm = min(1.0, (step + 1) / max(1, self.args.steps // 30))
        factor = warm * 0.5 * (1 + math.cos(math.pi * step / self.args.steps))
        for group, rate in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = rate * factor

    def after(self, step, count, **losses):
        self.seen += count
        for name, value in losses.items():
            value = float(value.detach() if isinstance(value, torch.Tensor) else value)
            if not math.isfinite(value):
                raise FloatingPointError(f"{name} is {value} at step {step}: lower --rate")
            self.mean[name] = value if name not in self.mean else 0.97 * self.mean[name] + 0.03 * value
        if (step + 1) % self.every == 0 or step + 1 == self.args.steps:
            cpu = time.process_time() - self.cpu
            text = "  ".join(f"{name} {value:.4f}" for name, value in self.mean.items())
            print(f"step {step + 1}/{self.args.steps}  {text}  {self.seen / cpu:.0f}/s  "
                  f"cpu {cpu / 60:.1f} min  wall {(time.time() - self.wall) / 60:.1f} min", flush=True)
            if self.refresh is not None:
                self.refresh()


def save(model, path, **extra):
    path = pathlib.Path(path)
    temporary = path.with_suffix(".tmp")
    torch.save({"model": model.state_dict(), **extra}, temporary)
    temporary.replace(path)


def resume(model, args):
    """Takes over every weight of the checkpoint whose name and shape fit: sizes may have changed since."""
    if args.resume is None:
        return
    own = model.state_dict()
    found = torch.load(args.resume, weights_only=True)["model"]
    fitting = {name: value for name, value in found.items() if name in own and own[name].shape == value.shape}
    model.load_state_dict(fitting, strict=False)
    print(f"took over {len(fitting)} of {len(own)} tensors from {args.resume}", flush=True)


def verification(features, identity, style=None, gallery_style=None):
    """Area under the curve of same-identity against other pairs, and rank-1 with every picture as a probe.

    Rank-1 looks for each picture's nearest other picture; with `style`, only pictures of another style count, so that
    a shared style cannot help.
    """
    features = torch.nn.functional.normalize(torch.as_tensor(features).float())
    identity = torch.as_tensor(identity)
    cosine = features @ features.t()
    off = ~torch.eye(len(identity), dtype=torch.bool)
    same = identity[:, None] == identity[None, :]
    positive, negative = cosine[same & off], cosine[~same]
    order = torch.cat([positive, negative]).argsort().argsort().double() + 1
    auc = (order[: len(positive)].sum() - len(positive) * (len(positive) + 1) / 2) / (len(positive) * len(negative))
    allowed = off
    if style is not None:
        style = torch.as_tensor(style)
        allowed = allowed & (style[:, None] != style[None, :])
    nearest = cosine.masked_fill(~allowed, -2).argmax(1)
    rank1 = (identity[nearest] == identity).float().mean()
    return {
        "auc": float(auc),
        "rank1": float(rank1),
        "same": float(positive.mean()),
        "other": float(negative.mean()),
    }
