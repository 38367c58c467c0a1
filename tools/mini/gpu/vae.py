"""The autoencoder: L1 and gradient losses over scales, a light KL, what the recogniser sees, and late a patch critic.

A share of the batches decodes latents that were made smaller to pictures made smaller (EQ-VAE, arXiv 2502.09509): latents
then vary as smoothly as pictures do, which a diffusion model learns much sooner.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from common import DEVICE, HALF, Budget, autocast, perceived, said, sheet, to_u8
from networks import PatchCritic, build_vae
from optimizer import Optimizer, averaged, flat_then_decay
from sharpness import criticise

KL = 5e-4
SIDES = (16, 24)  # of the latents that are made smaller
RECOGNISER, CRITIC, MATCH = 0.15, 0.02, 0.1
# How much a pixel counts: everywhere, and more by how much of the person it shows.
EVERYWHERE, PERSON = 0.7, 4.0


def gradients(x):
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def reconstruction(y, x, weight):
    """Weighted L1 at five scales (the coarse ones settle colour and shade early) plus L1 of gradients at three."""
    total = 0.0
    for scale in range(5):
        total = total + ((y - x).abs() * weight).mean()
        if scale < 3:
            for g, h in zip(gradients(y), gradients(x)):
                total = total + ((g - h).abs() * weight[..., : g.shape[-2], : g.shape[-1]]).mean()
        y, x, weight = F.avg_pool2d(y, 2), F.avg_pool2d(x, 2), F.avg_pool2d(weight, 2)
    return total


def in_half(vae):
    """Puts the network into HALF but for its last convolution: eight bits would show in a picture."""
    vae.to(HALF)
    last = vae.decoder.conv_out.float()
    last.register_forward_pre_hook(lambda _, x: (x[0].to(last.weight.dtype),))
    return vae


class Critic:
    """A patch critic and its optimizer."""

    def __init__(self, net):
        self.net = net.to(DEVICE)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=3e-4, betas=(0.5, 0.99))

    def __call__(self, y, x):
        """What `criticise` answers."""
        return criticise(self.net, self.optimizer, y, x, autocast)


def smaller(x, side):
    return F.interpolate(x, (side, side), mode="bilinear", antialias=True, align_corners=False)


def train(vae, store, refresh, faces, seconds, batch, sheets):
    """Trains `vae` for `seconds` and returns a frozen copy with averaged weights. `refresh` takes in new pictures."""
    budget = Budget(seconds)
    in_half(vae)
    optimizer = Optimizer(vae.named_parameters(), 2e-3, 1.5e-3, ema=0.99)
    critic, step, shown = Critic(PatchCritic()), 0, {}
    while not budget.over:
        if step % 25 == 0:
            refresh()
        rows = torch.randint(store.count, (batch,), device=DEVICE)
        x, weight = store.pictures(rows), EVERYWHERE + PERSON * store.weight[store.labels[rows].long()][:, None]
        points = store.landmarks[rows]
        if step % 2:  # mirrored; the points change sides
            x, weight = x.flip(-1), weight.flip(-1)
            points = (points * points.new_tensor([-1.0, 1.0]) + points.new_tensor([x.shape[-1] - 1.0, 0.0]))[:, [1, 0, 2, 4, 3]]
        side = SIDES[step // 4 % 2] if step % 4 == 3 else None  # every fourth
        latents = vae.encode(x.to(HALF)).latent_dist
        mean, logvar = latents.mean.float(), latents.logvar.float()
        z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        y = vae.decode((smaller(z, side) if side else z).to(HALF)).sample
        if side:
            x, weight = smaller(x, 4 * side), smaller(weight, 4 * side)
        rec = reconstruction(y, x, weight)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        total = rec + KL * kl
        if not side and budget.part > 0.2:
            with autocast():
                far = perceived(lambda p: faces.embedding(p, points), y, x).mean()
            total = total + RECOGNISER * far
            shown["recogniser"] = far.detach()
        if not side and budget.part > 0.45:
            fooled, match, loss = critic(y, x)
            total = total + CRITIC * fooled + MATCH * match
            shown |= {"critic": loss, "match": match.detach()}
        total.backward()
        optimizer.step(flat_then_decay(step, budget.part, 30, 0.5, 0.03))
        step += 1
        if step % 50 == 0 or step in (1, 5, 20):
            shown |= {"L1": (y - x).abs().mean().detach(), "kl": kl.detach()}
            said(f"vae step {step} {budget.part:.0%} pictures {store.count}", {k: round(float(v), 4) for k, v in shown.items()})
    out = averaged(vae, optimizer)
    x = store.pictures(torch.arange(8, device=DEVICE))
    with torch.no_grad():
        y = out.decode(out.encode(x).latent_dist.mean).sample
    sheet(to_u8(torch.cat([x, y])), 8, sheets / "vae.jpg")
    said(f"vae: {step} steps of {batch}, L1 of averaged weights {float((y - x).abs().mean()):.4f}")
    return out


class Coder:
    """A frozen VAE whose latents are normalised per channel, as the exported one's are by its `scaling_factor`."""

    def __init__(self, vae):
        self.mean, self.std = None, None
        self.take(vae)

    def take(self, vae):
        """Goes on with this VAE, whose encoder must be the same once latents were measured."""
        self.vae, self.fast = vae, in_half(copy.deepcopy(vae)).requires_grad_(False)

    @torch.no_grad()
    def measure(self, store, count=4096):
        z = self._encode(store, torch.arange(min(count, store.count), device=DEVICE))
        self.mean, self.std = z.mean((0, 2, 3)).view(1, 4, 1, 1), z.std((0, 2, 3)).view(1, 4, 1, 1)
        said("latents: mean", self.mean.flatten().tolist(), "deviation", self.std.flatten().tolist())

    def _encode(self, store, rows, batch=256):
        return torch.cat([self.vae.encode(store.pictures(part)).latent_dist.mean.float() for part in rows.split(batch)])

    @torch.no_grad()
    def encode(self, store):
        """Encodes the pictures that have come since."""
        if store.encoded < store.count:
            rows = torch.arange(store.encoded, store.count, device=DEVICE)
            store.z[rows] = ((self._encode(store, rows) - self.mean) / self.std).half()
            store.encoded = store.count

    def decode(self, z):
        """Normalised latents to pictures; differentiable."""
        return self.fast.decode((z * self.std + self.mean).to(HALF)).sample


def fresh():
    return build_vae().to(DEVICE)
