"""Trains the mini VAE on shards: L1 and picture-gradient losses over scales, a light KL, and late a patch critic.

With `--equivariance P` a share P of the micro-batches decodes latents that were made smaller to pictures made smaller
(EQ-VAE, arXiv 2502.09509): latents then vary as smoothly as pictures do, which a diffusion model learns much sooner.

With `--identify W` the distance of decoded and true faces, as the training recogniser sees them, counts W: the mean
difference of pixels leaves a face that is a little too soft to be told from its likes.

    python train_vae.py --data DIR --minutes 25 [--resume] [--critic] [--decoder-only]
"""
from __future__ import annotations

import argparse
from pathlib import Path

import common  # noqa: F401  (sets the thread environment first)
import numpy as np
import torch
import torch.nn.functional as F
from common import CACHE, WORK, Shards, sheet, to_u8
from diffusers.models.attention_processor import AttnProcessor
from latent_recogniser import perceived
from networks import build_vae, count
from parallel import Team, flat_then_decay, load_averaged
from sharpness import criticise
from torch import nn
from train_adapter import aligned, load_recogniser

# How much a pixel counts. Brows, eyes, glasses, nose, mouth, lips are small, and what tells people apart.
EVERYWHERE, FACE_AND_HAIR, FEATURES = 0.7, 1.5, 6.0
WEIGHTS = {c: FEATURES for c in (2, 3, 4, 5, 6, 10, 11, 12, 13)} | {c: FACE_AND_HAIR for c in (1, 7, 8, 17)}


class PatchCritic(nn.Module):
    """Judges overlapping patches (30 pixels wide) as real or decoded."""

    def __init__(self, width: int = 32):
        super().__init__()
        conv = lambda i, o, s: nn.utils.parametrizations.spectral_norm(nn.Conv2d(i, o, 4, s, 1))
        self.layers = nn.ModuleList([conv(3, width, 2), conv(width, 2 * width, 2), conv(2 * width, 4 * width, 1), conv(4 * width, 1, 1)])

    def forward(self, x):
        features = []
        for layer in self.layers[:-1]:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.layers[-1](x), features


def gradients(x):
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def reconstruction(y, x, weight):
    """Weighted L1 at five scales (the coarse ones settle colour and shade early) plus L1 of gradients at three."""
    total = 0.0
    for scale in range(5):
        total = total + ((y - x).abs() * weight).mean()
        if scale < 3:
            for g, h in zip(gradients(y), gradients(x)):
                w = weight[..., : g.shape[-2], : g.shape[-1]]
                total = total + ((g - h).abs() * w).mean()
        y, x, weight = F.avg_pool2d(y, 2), F.avg_pool2d(x, 2), F.avg_pool2d(weight, 2)
    return total


def smaller(x, side):
    return F.interpolate(x, (side, side), mode="bilinear", antialias=True, align_corners=False)


def cropped(x, labels, rng, size):
    """One random square per picture, mostly about the head: many small crops teach more than few whole pictures."""
    out, marks = [], []
    for i in range(len(x)):
        high = x.shape[-1] - size
        top, left = (int(min(high, max(0, rng.normal(0.4, 0.35) * high))) for _ in range(2))
        out.append(x[i, :, top : top + size, left : left + size])
        marks.append(labels[i, top : top + size, left : left + size])
    return torch.stack(out), torch.stack(marks)


def apart(recogniser, y, x, landmarks):
    """How far apart the training recogniser finds the faces of two batches with the same landmarks."""
    crops = lambda pictures: torch.cat([aligned(p[None], points) for p, points in zip(pictures, landmarks)])

    def seen(faces):
        embedding, stages = recogniser.with_stages(faces)
        return F.normalize(embedding.float(), dim=-1), stages

    with torch.autocast("cpu", torch.bfloat16):
        return perceived(seen, crops(y), crops(x)).mean()


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--data", type=Path, default=CACHE / "data" / "train")
    a.add_argument("--out", type=Path, default=WORK / "vae.pt")
    a.add_argument("--minutes", type=float, default=25)
    a.add_argument("--workers", type=int, default=2)
    a.add_argument("--micro", type=int, default=2)
    a.add_argument("--micro-batch", type=int, default=4)
    a.add_argument("--lr", type=float, default=2e-3)
    a.add_argument("--kl", type=float, default=5e-4)
    a.add_argument("--resume", action="store_true")
    a.add_argument("--decoder-only", action="store_true", help="freeze the encoder, so that encoded latents stay valid")
    a.add_argument("--critic", type=float, default=0.0, help="weight of the patch critic's loss")
    a.add_argument("--identify", type=float, default=0.0, help="weight of the recogniser's distance (with whole pictures)")
    a.add_argument("--equivariance", type=float, default=0.0, help="share of micro-batches with latents made smaller")
    a.add_argument("--crop", type=int, default=64, help="train on crops of this size (128: whole pictures)")
    a.add_argument("--compile", action="store_true", help="a third faster, after minutes of compiling")
    a.add_argument("--no-decay", action="store_true", help="hold the learning rate (a run that will be resumed)")
    a = a.parse_args()
    if a.identify and (a.crop != 128 or a.equivariance):
        raise SystemExit("--identify needs whole pictures: --crop 128, no --equivariance")

    torch.manual_seed(0)
    vae = build_vae()
    vae.set_attn_processor(AttnProcessor())
    print("parameters", count(vae), flush=True)
    data = Shards(a.data, labels=True, landmarks=bool(a.identify))
    # The critic lives in every worker; its gradient step rides on the same team as a second network.
    team = Team(list(vae.named_parameters()), a.workers, muon_lr=a.lr, adam_lr=a.lr)
    if a.resume and a.out.exists():
        team.load(torch.load(a.out, weights_only=True))
    if a.decoder_only:
        frozen = ("encoder.", "quant_conv.")
        team.freeze(lambda n: n.startswith(frozen))
    compiled = team.ctx.Barrier(a.workers)

    def make_loss(rank):
        table = torch.full((256,), EVERYWHERE)
        table[list(WEIGHTS)] = torch.tensor(list(WEIGHTS.values()))

        def forward(x, eps, side=None):
            moments = vae.quant_conv(vae.encoder(x))
            mean, logvar = moments.chunk(2, 1)
            logvar = logvar.clamp(-30, 20)
            z = mean + (0.5 * logvar).exp() * eps
            if side:
                z = smaller(z.float(), side)
            return vae.decoder(vae.post_quant_conv(z)), mean, logvar

        recogniser = load_recogniser(CACHE / "face") if a.identify else None

        run = forward
        if a.compile:

            def warm():
                x = torch.zeros(a.micro_batch, 3, 128, 128)
                with torch.autocast("cpu", torch.bfloat16):
                    y, m, lv = run(x, torch.zeros(a.micro_batch, 4, 16, 16))
                (y.float().mean() + m.float().mean() + lv.float().mean()).backward()

            run = torch.compile(forward)
            if rank == 0:
                warm()
            compiled.wait()  # the others find the kernels in the compiler's cache
            if rank != 0:
                warm()

        critic = optimizer = None
        if a.critic:
            torch.manual_seed(1)
            critic = PatchCritic()
            path = a.out.with_name(f"critic{rank}.pt")
            if path.exists():
                critic.load_state_dict(torch.load(path, weights_only=True))
            optimizer = torch.optim.Adam(critic.parameters(), lr=3e-4, betas=(0.5, 0.99))

        def loss(step, k, extra):
            data.refresh()
            rng = np.random.default_rng((step, k, 7))
            x, labels, landmarks = data.take_with_landmarks(rng, a.micro_batch)
            if a.crop < x.shape[-1]:
                x, labels = cropped(x, labels, rng, a.crop)
            if rng.random() < 0.5:
                x, labels = x.flip(-1), labels.flip(-1)
                if landmarks is not None:
                    landmarks = (np.array([x.shape[-1] - 1, 0]) + np.array([-1, 1]) * landmarks)[:, [1, 0, 2, 4, 3]]
            weight = table[labels][:, None]
            eps = torch.from_numpy(rng.standard_normal((a.micro_batch, 4, a.crop // 8, a.crop // 8), np.float32))
            with torch.autocast("cpu", torch.bfloat16):
                side = int(rng.integers(a.crop // 16, a.crop // 8)) if rng.random() < a.equivariance else None
                y, mean, logvar = run(x, eps, side)
            y, mean, logvar = y.float(), mean.float(), logvar.float()
            if side:
                x, weight = smaller(x, 8 * side), smaller(weight, 8 * side)
            rec = reconstruction(y, x, weight)
            kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
            total = rec + a.kl * kl
            extra[0] += float((y - x).detach().abs().mean())
            extra[1] += float(kl.detach())
            if recogniser is not None:
                far = apart(recogniser, y, x, landmarks)
                total = total + a.identify * far
                extra[2] += float(far.detach())
            if critic is not None:
                unlike, match, own = criticise(critic, optimizer, y, x, lambda: torch.autocast("cpu", torch.bfloat16))
                total = total + a.critic * (unlike + 4.0 * match)
                extra[3] += float(own)
                extra[4] += float(match)
                if k == 0 and step % 200 == 199:
                    torch.save(critic.state_dict(), a.out.with_name(f"critic{rank}.pt"))
            return total

        return loss

    def look(step, team):
        """Every now and then a sheet: pictures above their reconstructions by the averaged weights."""
        if step % 100:
            return
        copy = build_vae()
        load_averaged(copy.named_parameters(), team.state())
        x, _ = data.take(np.random.default_rng(5), 8)
        with torch.no_grad():
            y = copy.decode(copy.encode(x).latent_dist.mean).sample
        print("averaged weights: L1", float((y - x).abs().mean()), flush=True)
        sheet(np.concatenate([to_u8(x), to_u8(y)]), 8, WORK / "sheets" / "vae.png", 2)

    schedule = (lambda s, p: min(1.0, (s + 1) / 50)) if a.no_decay else (lambda s, p: flat_then_decay(s, p, 30, 0.5))
    team.train(make_loss, 10**9, a.micro, schedule, a.out, look, seconds=60 * a.minutes, save_every=240)


if __name__ == "__main__":
    main()
