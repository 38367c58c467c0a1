"""Five face points read from latents, for the alignment of L_id's crops.

The few-step branch makes soft pictures, on which a detector may fail just where the loss is needed most; this reader
always answers. It is a tool of the training only.

    python landmarks.py
"""
from __future__ import annotations

import common  # noqa: F401
import numpy as np
import torch
from common import CACHE, WORK
from torch import nn


class LandmarkNet(nn.Sequential):
    """Normalised latents [B,4,16,16] -> points [B,10] in units of the picture's width, x and y in turn."""

    def __init__(self):
        conv = lambda i, o, s: (nn.Conv2d(i, o, 3, s, 1), nn.GroupNorm(8, o), nn.SiLU())
        super().__init__(*conv(4, 48, 1), *conv(48, 64, 2), *conv(64, 96, 2), nn.Flatten(), nn.Linear(96 * 16, 128), nn.SiLU(), nn.Linear(128, 10))


def load_landmarks() -> LandmarkNet:
    net = LandmarkNet()
    net.load_state_dict(torch.load(WORK / "landmarks.pt", weights_only=True))
    return net.eval().requires_grad_(False)


def points_of(folder, names) -> np.ndarray:
    parts = []
    for name in names:
        with np.load(folder / name) as d:
            parts.append(d["landmarks"])
    return np.concatenate(parts).reshape(-1, 10).astype(np.float32) / 128


def main():
    from latents import Latents
    from sampling import load_tokenizers

    torch.set_num_threads(1)
    torch.manual_seed(4)
    rng = np.random.default_rng(4)
    tokenizers = load_tokenizers()
    data, held = Latents("train", *tokenizers), Latents("heldout", *tokenizers)
    points, held_points = (points_of(CACHE / "data" / d.folder.name, d.known) for d in (data, held))
    net = LandmarkNet()
    steps = 600
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.01)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        i = rng.integers(len(data), size=48)
        z = data.normalise(torch.from_numpy(data.z[i].astype(np.float32)))
        z = z + torch.randn_like(z) * torch.rand(len(z), 1, 1, 1) * 0.3
        with torch.autocast("cpu", torch.bfloat16):
            found = net(z)
        loss = (found.float() - torch.from_numpy(points[i])).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        plan.step()
    net.eval()
    with torch.no_grad():
        found = net(held.normalise(torch.from_numpy(held.z.astype(np.float32))))
    print("held-out mean error in pixels of 128:", float((found.numpy() - held_points).__abs__().mean() * 128))
    torch.save(net.state_dict(), WORK / "landmarks.pt")


if __name__ == "__main__":
    main()
