"""A recogniser that reads latents, and a loss that sees with its eyes.

The mean square of a latent's error cares for a lock of hair as much as for an eye. This small network learns which
differences between latents tell people apart (SupCon over people, across styles, scenes and expressions); the distance of
its features then weighs the UNet's estimate of the clean latents by what makes a face recognisable. The idea is the latent
perceptual loss (arXiv 2411.04873), with features learned for identity in place of the decoder's.

    python encode_latents.py && python latent_recogniser.py --minutes 5
    python identity_features.py && python latent_recogniser.py --second --minutes 8

The second one is wider and also learns to say the training recogniser's mean embedding of the person. Two that learned
differently are harder to please with what only one of them takes for a likeness.
"""
from __future__ import annotations

import argparse
import os

import common  # noqa: F401  (sets the thread environment first)
import numpy as np
import torch
import torch.nn.functional as F
from common import WORK
from identity_features import IdentityFeatures
from latents import Latents
from parallel import Team, flat_then_decay, load_averaged
from sampling import load_tokenizers
from torch import nn

FILE, SECOND = WORK / "latent_recogniser.pt", WORK / "latent_recogniser_2.pt"
PEOPLE, PICTURES = 16, 3  # of one micro-batch
EMBEDDING = 512  # of the training recogniser
SOFT = 0.5  # the largest deviation of the noise that training adds: the UNet's estimates are soft and off
TEMPERATURE = 0.1


class Block(nn.Module):
    def __init__(self, before, channels, stride):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, before), nn.Conv2d(before, channels, 3, stride, 1)
        self.norm2, self.conv2 = nn.GroupNorm(8, channels), nn.Conv2d(channels, channels, 3, 1, 1)
        self.short = nn.Identity() if before == channels and stride == 1 else nn.Sequential(nn.AvgPool2d(stride, stride), nn.Conv2d(before, channels, 1))

    def forward(self, x):
        return self.short(x) + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class LatentRecogniser(nn.Module):
    """Normalised latents [B,4,16,16] to features of unit length [B,192], and the activations of every stage."""

    def __init__(self, widths=(64, 96, 160), features=192, embedding=0):
        super().__init__()
        self.stem = nn.Conv2d(4, widths[0], 3, 1, 1)
        stages, before = [], widths[0]
        for i, width in enumerate(widths):
            stages.append(nn.Sequential(Block(before, width, 1 if i == 0 else 2), Block(width, width, 1)))
            before = width
        self.stages = nn.ModuleList(stages)
        self.head = nn.Sequential(nn.LayerNorm(before * 16), nn.Linear(before * 16, features))
        if embedding:
            self.embedding = nn.Linear(features, embedding)

    def forward(self, z):
        x, seen = self.stem(z), []
        for stage in self.stages:
            x = stage(x)
            seen.append(x)
        return F.normalize(self.head(x.flatten(1)).float(), dim=-1), seen


def second_recogniser() -> LatentRecogniser:
    return LatentRecogniser(widths=(96, 128, 192), embedding=EMBEDDING)


def load_latent_recognisers() -> list[LatentRecogniser]:
    """Those that were trained, the first one at least."""
    nets = []
    for make, file in ((LatentRecogniser, FILE), (second_recogniser, SECOND)):
        if file == FILE or file.exists():
            nets.append(make())
            load_averaged(nets[-1].named_parameters(), torch.load(file, weights_only=True))
            nets[-1].eval().requires_grad_(False)
    return nets


def roughened(z, rng):
    """Latents with noise, and moved by up to one place."""
    z = z + torch.from_numpy(rng.standard_normal(z.shape, np.float32) * rng.uniform(0, SOFT, (len(z), 1, 1, 1)).astype(np.float32))
    dy, dx = rng.integers(-1, 2, 2)
    return F.pad(z, (1, 1, 1, 1), mode="replicate")[..., 1 + dy : 17 + dy, 1 + dx : 17 + dx]


def perceived(net, estimate, clean, focus=None):
    """The distance of two batches as `net` sees them, [B]; `net` gives features of unit length and stages' activations.

    Each stage's activations have unit length per place (as in LPIPS); `focus` [B,1,H,W] says how much a place counts.
    """
    focus = torch.ones_like(estimate[:, :1]) if focus is None else focus
    whole, stages = net(estimate)
    with torch.no_grad():
        want, wanted = net(clean)
    total = 1 - (whole * want).sum(-1)
    for a, b in zip(stages, wanted):
        weight = F.adaptive_avg_pool2d(focus, a.shape[-2:])[:, 0]
        apart = (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1)
        total = total + (apart * weight).mean((1, 2)) / weight.mean((1, 2))
    return total


def contrastive(features, identity):
    """SupCon (arXiv 2004.11362) over one micro-batch."""
    logits = features @ features.t() / TEMPERATURE
    itself = torch.eye(len(features), dtype=torch.bool)
    same = (identity[:, None] == identity[None, :]) & ~itself
    log_probability = logits - torch.logsumexp(logits.masked_fill(itself, -1e9), 1, keepdim=True)
    return -(log_probability * same).sum(1).div(same.sum(1).clamp(min=1)).mean()


def mean_embeddings(photos) -> dict[int, torch.Tensor]:
    """The training recogniser's mean embedding of each person's photos, of unit length."""
    embedding = F.normalize(torch.from_numpy(photos.condition[:, :EMBEDDING]), dim=-1)
    return {person: F.normalize(embedding[rows].sum(0), dim=0) for person, rows in photos.of.items()}


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--minutes", type=float, default=5)
    a.add_argument("--workers", type=int, default=2)
    a.add_argument("--lr", type=float, default=3e-3)
    a.add_argument("--second", action="store_true", help="train the second one")
    a = a.parse_args()
    torch.manual_seed(0)
    tokenizers = load_tokenizers()
    data, held = Latents("train", *tokenizers), Latents("heldout", *tokenizers)
    net, file = (second_recogniser(), SECOND) if a.second else (LatentRecogniser(), FILE)
    wanted = mean_embeddings(IdentityFeatures("train")) if a.second else {}
    team = Team(list(net.named_parameters()), a.workers, muon_lr=a.lr, adam_lr=a.lr, weight_decay=0.05)
    groups = [rows for rows in np.split(np.argsort(data.fields["identity"], kind="stable"), np.flatnonzero(np.diff(np.sort(data.fields["identity"]))) + 1) if len(rows) >= PICTURES]
    people = [rows for rows in groups if not a.second or int(data.fields["identity"][rows[0]]) in wanted]

    def make_loss(rank):
        def loss(step, k, extra):
            rng = np.random.default_rng((step, k, 29))
            rows = np.concatenate([rng.choice(people[p], PICTURES, replace=False) for p in rng.choice(len(people), PEOPLE, replace=False)])
            z = data.normalise(torch.from_numpy(data.z[rows].astype(np.float32)))
            z = roughened(z, rng)
            with torch.autocast("cpu", torch.bfloat16):
                features, _ = net(z)
            identity = data.fields["identity"][rows]
            total = contrastive(features, torch.from_numpy(identity))
            if a.second:
                said = F.cosine_similarity(net.embedding(features), torch.stack([wanted[i] for i in identity.tolist()]), dim=-1)
                extra[0] += float(said.detach().mean())
                total = total + 2 * (1 - said).mean()
            return total

        return loss

    schedule = lambda s, p: flat_then_decay(s, p, 50, 0.4)
    team.train(make_loss, 10**9, 2, schedule, file.with_suffix(".part"), every=50, seconds=60 * a.minutes)
    os.replace(file.with_suffix(".part"), file)
    net = load_latent_recognisers()[-1 if a.second else 0]
    with torch.no_grad():
        features, _ = net(held.normalise(torch.from_numpy(held.z.astype(np.float32))))
    identity, style = (torch.from_numpy(held.fields[n]) for n in ("identity", "style"))
    cosine = (features @ features.t()).masked_fill(style[:, None] == style[None, :], -2)
    first = (identity[cosine.argmax(1)] == identity).float().mean()
    print(f"held-out people: nearest picture of another style is the same person's in {float(first):.3f}", flush=True)


if __name__ == "__main__":
    main()
