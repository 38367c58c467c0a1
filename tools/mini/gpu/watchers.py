"""Networks that look at pictures or latents: the recogniser of latents for training; the judge and the classifier for evaluation."""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from common import DEVICE, Budget, autocast, said, supervised_contrastive
from faces import FACEXLIB_512, crop, jittered
from networks import ROOT, AttributeNet, LatentRecogniser
from optimizer import Optimizer, averaged, flat_then_decay

sys.path.insert(0, str(ROOT / "tools" / "mini"))
from render.vocabulary import BACKGROUNDS, STYLES  # noqa: E402
from second_recogniser import INPUT_SIZE, SecondRecogniser  # noqa: E402

ROUGH = 0.5  # the largest deviation of the noise that the recogniser of latents learns to look through


def people_rows(store, people, pictures):
    """`pictures` different rows each of `people` random people [people * pictures], and whose they are."""
    who = torch.randint(store.people, (people,), device=DEVICE)
    order = torch.rand(people, store.rows.shape[1], device=DEVICE).argsort(1)[:, :pictures]
    return store.rows[who].gather(1, order).flatten(), who.repeat_interleave(pictures)


def roughened(z):
    """Latents with noise, and moved by up to one place."""
    z = z + torch.randn_like(z) * (torch.rand(len(z), 1, 1, 1, device=z.device) * ROUGH)
    dy, dx = torch.randint(-1, 2, (2,)).tolist()
    side = z.shape[-1]
    return F.pad(z, (1, 1, 1, 1), mode="replicate")[..., 1 + dy : 1 + side + dy, 1 + dx : 1 + side + dx]


def train_latent_recogniser(net, store, seconds, people):
    """SupCon over people, the training recogniser's embedding of another photo, and the landmarks."""
    budget, step = Budget(seconds), 0
    optimizer = Optimizer(net.named_parameters(), 2e-3, 1e-3, weight_decay=0.05, ema=0.99)
    while not budget.over:
        rows, who = people_rows(store, people, 4)
        z = store.z[rows].float()
        with autocast():
            features, _ = net(roughened(z))
            said_to_be = net.embedding(features.to(z.dtype)).float()
            points = net.landmarks(z + torch.randn_like(z) * 0.2 * torch.rand(len(z), 1, 1, 1, device=z.device))
        loss = supervised_contrastive(features.float(), who)
        condition, _ = store.other_photo(rows)
        has = (store.photos[store.person[rows]] > 0).float()
        embedding = ((1 - F.cosine_similarity(said_to_be, condition[:, :512], dim=-1)) * has).mean()
        place = (points - store.landmarks[rows] / 128).abs().mean()
        (loss + embedding + 10 * place).backward()
        optimizer.step(flat_then_decay(step, budget.part, 30, 0.4))
        step += 1
        if step % 200 == 0:
            said(f"recogniser of latents, step {step} {budget.part:.0%} contrast {float(loss):.3f} embedding {float(embedding):.3f} landmarks {128 * float(place):.2f} px")
    return averaged(net, optimizer)


@torch.no_grad()
def nearest(features, store):
    """The share of pictures whose nearest picture of another style shows the same person."""
    n = store.count
    cosine = features @ features.t()
    cosine = cosine.masked_fill(store.style[:n, None] == store.style[None, :n], -2)
    return float((store.identity[:n][cosine.argmax(1)] == store.identity[:n]).float().mean())


def photometric(x):
    """Pictures in -1..1 with other exposure, contrast, colour cast, blur and noise."""
    b = len(x)
    r = lambda *shape: torch.randn(b, *shape, device=x.device)
    x = x * (1 + 0.12 * r(1, 1, 1) + 0.04 * r(3, 1, 1)) + 0.08 * r(1, 1, 1)
    gray = x.mean(1, keepdim=True)
    mix = (torch.rand(b, 1, 1, 1, device=x.device) < 0.15).float() * torch.rand(b, 1, 1, 1, device=x.device)
    x = x + (gray - x) * mix
    kind = torch.rand(b, 1, 1, 1, device=x.device)
    soft = F.interpolate(F.avg_pool2d(x, 2), x.shape[-2:], mode="bilinear")
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.where(kind < 0.2, soft, torch.where(kind < 0.4, blurred, x))
    x = x + r(3, x.shape[-2], x.shape[-1]) * 0.03 * (torch.rand(b, 1, 1, 1, device=x.device) < 0.25)
    return x.clamp(-1, 1)


def judge_input(pictures, points):
    """Pictures in -1..1 to the judge's input: facexlib's crop at 96, RGB / 255 - 0.5."""
    border = torch.tensor((135.0, 133.0, 132.0)) / 127.5 - 1
    return crop(pictures, points, FACEXLIB_512 * (INPUT_SIZE / 512), INPUT_SIZE, border) / 2


def train_judge(store, seconds, people):
    """The second recogniser, which no training of any other network sees."""
    torch.manual_seed(90210)
    net = SecondRecogniser().to(DEVICE)
    budget, step = Budget(seconds), 0
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.03)
    while not budget.over:
        rows, who = people_rows(store, people, 4)
        x = judge_input(photometric(store.pictures(rows)), jittered(store.landmarks[rows], 0.04))
        flip = torch.rand(len(x), 1, 1, 1, device=DEVICE) < 0.5
        with autocast():
            features = net(torch.where(flip, x.flip(-1), x))
        loss = supervised_contrastive(features.float(), who)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * flat_then_decay(step, budget.part, 50, 0.3, 0.01)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        step += 1
        if step % 200 == 0:
            said(f"judge, step {step} {budget.part:.0%} contrast {float(loss):.3f}")
    said(f"judge: {step} steps of {people} people")
    return net.eval().requires_grad_(False)


def train_attributes(store, seconds, batch=256):
    """The classifier of style and background."""
    net = AttributeNet(len(STYLES), len(BACKGROUNDS)).to(DEVICE)
    budget, step = Budget(seconds), 0
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.01)
    while not budget.over:
        rows = torch.randint(store.count, (batch,), device=DEVICE)
        x = store.pictures(rows)
        half = batch // 2  # generated pictures are softer than renders
        x = torch.cat([F.interpolate(F.avg_pool2d(x[:half], 2), scale_factor=2, mode="bilinear"), x[half:]])
        with autocast():
            style, background, _ = net(x)
        loss = F.cross_entropy(style.float(), store.style[rows], label_smoothing=0.05) + F.cross_entropy(background.float(), store.background[rows], label_smoothing=0.05)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * flat_then_decay(step, budget.part, 30, 0.3, 0.01)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
    return net.eval().requires_grad_(False)


def latent_recogniser():
    return LatentRecogniser().to(DEVICE)
