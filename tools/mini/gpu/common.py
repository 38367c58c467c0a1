"""What the parts of the training share: the device, budgets, checkpoints of at most 16 MiB, losses seen by a network."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# What networks compute in; CPUs without matrix units are slower in bf16, but a rehearsal may want to see that types agree.
HALF = torch.bfloat16 if DEVICE.type == "cuda" or os.environ.get("PULID_MINI_BF16") else torch.float32
START = time.time()


def said(*words) -> None:
    print(f"[{time.time() - START:6.1f}s]", *words, flush=True)


def autocast():
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=HALF == torch.bfloat16)


class Budget:
    """A part's share of the time: `part` is the progress 0..1, `over` when it is used up."""

    def __init__(self, seconds: float):
        self.seconds, self.start = seconds, time.time()

    @property
    def part(self) -> float:
        return min(1.0, (time.time() - self.start) / max(self.seconds, 1e-6))

    @property
    def over(self) -> bool:
        return self.part >= 1.0


def save(module, path: Path, leave: str = "\0") -> None:
    """A checkpoint in half precision without the tensors whose names hold `leave`, written whole or not at all."""
    state = {k: v.detach().half().contiguous().cpu() for k, v in module.state_dict().items() if v.is_floating_point() and leave not in k}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file(state, part)
    os.replace(part, path)


def load(module, path: Path) -> bool:
    """Takes over a checkpoint where it exists."""
    if not path.exists():
        return False
    state = {k: v.float() for k, v in load_file(path).items()}
    missing, unexpected = module.load_state_dict(state, strict=False)
    missing = [k for k in missing if not k.endswith(("num_batches_tracked", "position_ids"))]
    if missing or unexpected:
        raise ValueError(f"{path} is of another network: missing {missing[:3]}, unexpected {unexpected[:3]}")
    return True


def perceived(net, estimate, clean, focus=None):
    """The distance of two batches as `net` sees them, [B]: of its features, and of each stage's activations per place.

    `net` gives features of unit length and activations; `focus` [B,1,H,W] says how much a place counts (LPIPS, arXiv 1801.03924;
    of latents: arXiv 2411.04873).
    """
    whole, stages = net(estimate)
    with torch.no_grad():
        want, wanted = net(clean)
    total = 1 - (whole * want).sum(-1)
    for a, b in zip(stages, wanted):
        apart = (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1)
        if focus is None:
            total = total + apart.mean((1, 2))
        else:
            weight = F.adaptive_avg_pool2d(focus.float(), a.shape[-2:])[:, 0] + 1e-3
            total = total + (apart * weight).mean((1, 2)) / weight.mean((1, 2))
    return total


def supervised_contrastive(features, identity, temperature=0.1):
    """SupCon (arXiv 2004.11362) of unit-length features over one batch that holds several pictures per identity."""
    logits = features @ features.t() / temperature
    itself = torch.eye(len(features), dtype=torch.bool, device=features.device)
    same = (identity[:, None] == identity[None, :]) & ~itself
    log_probability = logits - torch.logsumexp(logits.masked_fill(itself, -1e9), 1, keepdim=True)
    return -(log_probability * same).sum(1).div(same.sum(1).clamp(min=1)).mean()


def to_u8(x) -> np.ndarray:
    """[B,3,H,W] in -1..1 -> u8 [B,H,W,3]."""
    return x.float().clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def sheet(pictures: np.ndarray, columns: int, path: Path) -> None:
    """Writes u8 [N,H,W,3] as a grid."""
    n, h, w, _ = pictures.shape
    rows = -(-n // columns)
    grid = np.zeros((rows * h, columns * w, 3), np.uint8)
    for i, p in enumerate(pictures):
        r, c = divmod(i, columns)
        grid[r * h : (r + 1) * h, c * w : (c + 1) * w] = p
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid).save(path, quality=90)
