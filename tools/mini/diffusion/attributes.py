"""A classifier of style and background, trained on renders, and the features that picture similarity is measured in.

    python attributes.py [--minutes 4]
"""
from __future__ import annotations

import argparse
from pathlib import Path

import common  # noqa: F401
import numpy as np
import torch
import torch.nn.functional as F
from common import CACHE, WORK, load_fields
from torch import nn


class AttributeNet(nn.Module):
    """[B,3,128,128] in [-1,1], read at 64 x 64 -> logits of style and background, features [B,128]."""

    def __init__(self, styles: int, backgrounds: int):
        super().__init__()
        layers, width = [], 3
        for w in (24, 48, 96, 128):
            layers += [nn.Conv2d(width, w, 3, 2, 1, bias=False), nn.BatchNorm2d(w), nn.ReLU(), nn.Conv2d(w, w, 3, 1, 1, bias=False), nn.BatchNorm2d(w), nn.ReLU()]
            width = w
        self.body = nn.Sequential(*layers)
        self.style, self.background = nn.Linear(width, styles), nn.Linear(width, backgrounds)

    def forward(self, x):
        f = self.body(F.avg_pool2d(x, 2)).mean((2, 3))
        return self.style(f), self.background(f), f


def load_attributes(path=None) -> AttributeNet:
    state = torch.load(path or WORK / "attributes.pt", weights_only=True)
    net = AttributeNet(len(state["style.bias"]), len(state["background.bias"]))
    net.load_state_dict(state)
    return net.eval()


def main():
    from latents import BACKGROUNDS, STYLES

    a = argparse.ArgumentParser()
    a.add_argument("--data", type=Path, default=CACHE / "data")
    a.add_argument("--epochs", type=float, default=2.0)
    a = a.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(2)
    images, fields, _ = load_fields(a.data / "train")
    held, held_fields, _ = load_fields(a.data / "heldout")
    net = AttributeNet(len(STYLES), len(BACKGROUNDS))
    rng = np.random.default_rng(2)
    steps = int(a.epochs * len(images) / 64)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.01)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    net.train()
    for step in range(steps):
        i = rng.integers(len(images), size=64)
        x = torch.from_numpy(images[i]).permute(0, 3, 1, 2).float() / 127.5 - 1
        # Generated pictures are softer than renders, so half of the batch is seen at half resolution.
        x[:32] = F.interpolate(F.avg_pool2d(x[:32], 2), scale_factor=2, mode="bilinear")
        with torch.autocast("cpu", torch.bfloat16):
            style, background, _ = net(x)
        loss = F.cross_entropy(style.float(), torch.from_numpy(fields["style"][i]).long(), label_smoothing=0.05)
        loss = loss + F.cross_entropy(background.float(), torch.from_numpy(fields["background"][i]).long(), label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        plan.step()
        if step % 50 == 0:
            print(step, steps, float(loss.detach()), flush=True)
    net.eval()
    with torch.no_grad():
        x = torch.from_numpy(held).permute(0, 3, 1, 2).float() / 127.5 - 1
        style, background, _ = net(x)
    print("held-out renders: style", float((style.argmax(1).numpy() == held_fields["style"]).mean()), "background", float((background.argmax(1).numpy() == held_fields["background"]).mean()))
    torch.save(net.state_dict(), WORK / "attributes.pt")


if __name__ == "__main__":
    main()
