"""Trains the PuLID v1.1-shaped adapter (IDFormer and the identity keys and values) with the paper's losses.

    python identity_features.py
    python train_adapter.py --stage 1 --minutes 12                       L_diff
    python train_adapter.py --stage 2 --minutes 6  --from adapter_1.pt   L_diff + L_id         (without alignment)
    python train_adapter.py --stage 3 --minutes 6  --from adapter_2.pt   L_diff + L_id + L_align

L_diff sees another picture of the same person than the one to be denoised, so that the adapter learns the person and
not the photo. L_id and L_align go through the few-step branch: pure noise to picture in 4 steps without guidance.
"""
from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import common  # noqa: F401  (sets the thread environment first)
import numpy as np
import torch
import torch.nn.functional as F
from common import CACHE, WORK, sheet, to_u8
from identity_features import IdentityFeatures
from landmarks import load_landmarks
from latents import BACKGROUNDS, CLOTHES, EXPRESSIONS, STYLES, Latents, caption
from networks import CROSS_DIM, count
from parallel import Team, flat_then_decay, load_averaged
from sampling import alphas_cumprod, all_sigmas, load_tokenizers, load_vae, sample, timestep_of, trailing
from torch.nn.attention import SDPBackend, sdpa_kernel
from train_unet import TextToLatent

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tools" / "mini" / "face")]
from pulid_reference import IDFormer, IdSettings, install_id_attention  # noqa: E402

ID_FORMER = dict(
    dim=160, depth=5, dim_head=64, heads=3, num_id_token=5, num_queries=16, output_dim=CROSS_DIM, ff_mult=2,
    vit_dim=192, id_dim=768, mapping_dim=192,
)
NUM_ZERO = 8
BRANCH_STEPS = 4
ID_PROMPT = "a photo of a person"


class Adapter(torch.nn.Module):
    """Parameter names are those of the published v1.1 file."""

    def __init__(self, unet, settings: IdSettings):
        super().__init__()
        self.id_adapter = IDFormer(**ID_FORMER)
        self.id_adapter_attn_layers = install_id_attention(unet, settings)
        for layer in self.id_adapter_attn_layers:
            if hasattr(layer, "id_to_v"):
                torch.nn.init.zeros_(layer.id_to_v.weight)  # training starts at the base model


def load_base(checkpoint=None) -> TextToLatent:
    one, _ = load_tokenizers()
    net = TextToLatent(len(one))
    load_averaged(net.named_parameters(), torch.load(checkpoint or WORK / "unet.pt", weights_only=True))
    return net.eval().requires_grad_(False)


def load_recogniser(folder: Path):
    from iresnet import IResNet

    recogniser = IResNet()
    recogniser.load_state_dict(torch.load(folder / "recogniser.pt", weights_only=True)["model"])
    return recogniser.eval().requires_grad_(False)


def nothing(batch: int):
    """The unconditional identity's input: zeros."""
    return torch.zeros(batch, ID_FORMER["id_dim"]), [torch.zeros(batch, 65, ID_FORMER["vit_dim"]) for _ in range(5)]


class Branch:
    """The few-step branch and its two losses."""

    def __init__(self, net, settings, data, vae, recogniser, landmarks):
        self.net, self.settings, self.data, self.vae = net, settings, data, vae
        self.recogniser, self.landmarks = recogniser, landmarks
        self.sigmas = trailing(BRANCH_STEPS)

    def predict(self, x, s, context, identity):
        scaled = x / math.sqrt(s * s + 1)
        e = self.net(scaled, torch.full((len(x),), timestep_of(s)), *context, identity).float()
        return x - s * e

    def run(self, noise, context, identity, align: bool, last: int = 1):
        """The clean latents, with gradient through the last steps, and the alignment loss over all layers and steps.

        Every step starts from detached latents, so L_align's gradient stays within its step.
        """
        x = plain = noise * float(self.sigmas[0])
        losses = []
        steps = len(self.sigmas) - 1
        for i in range(steps):
            s, n = float(self.sigmas[i]), float(self.sigmas[i + 1])
            wanted = []
            if align:
                with torch.no_grad():
                    self.settings.capture = wanted
                    d = self.predict(plain, s, context, None)
                    plain = d + (n / s) * (plain - d)
            own = []
            self.settings.capture = own if align else None
            if i < steps - last:
                x = x.detach()
            with torch.set_grad_enabled(align or i >= steps - last):
                d = self.predict(x, s, context, identity)
            x = d + (n / s) * (x - d)
            for (_, q_id, k), (_, q, _) in zip(own, wanted):
                losses.append(alignment(q_id.float(), q.float(), k.float()))
        self.settings.capture = None
        return x, torch.stack(losses).mean(0) if losses else None

    def id_loss(self, z, wanted):
        """1 - cos of the recogniser's embeddings of the decoded latents and of the photos."""
        pictures = self.vae.decode(self.data.denormalise(z)).sample.float()
        points = self.landmarks(z.detach()).float().numpy().reshape(-1, 5, 2) * pictures.shape[-1]
        crops = torch.cat([aligned(p[None], found) for p, found in zip(pictures, points)])
        return (1 - F.cosine_similarity(self.recogniser(crops).float(), wanted, dim=-1)).mean()


def aligned(picture, points, template=None, size=112):
    """Differentiable similarity crop [1,3,size,size] of a picture in [-1,1] that takes five points to `template` (without one ArcFace's)."""
    from data import ARCFACE_112, similarity

    matrix = np.vstack([similarity(points.astype(np.float32), ARCFACE_112 if template is None else template), [0, 0, 1]])
    inverse = torch.from_numpy(np.linalg.inv(matrix)[:2].astype(np.float32))
    y, x = torch.meshgrid(torch.arange(float(size)), torch.arange(float(size)), indexing="ij")
    source = torch.stack([x, y, torch.ones_like(x)], -1) @ inverse.T
    grid = (source * 2 + 1) / picture.shape[-1] - 1
    return F.grid_sample(picture + 1, grid[None], mode="bilinear", padding_mode="zeros", align_corners=False) - 1


def alignment(q_id, q, k):
    """(L_sem, L_layout) of one layer; q [B,heads,L,d], k [B,heads,T,d]. Mean squares, relative to Q's own mean square,

    so that layers with small activations count as much as those with large ones (the paper leaves this open).
    """
    unit = q.square().mean() + 1e-6
    attend = lambda query: torch.softmax(k @ query.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1) @ query
    return torch.stack([(attend(q_id) - attend(q)).square().mean() / unit, (q_id - q).square().mean() / unit])


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--stage", type=int, choices=(1, 2, 3), required=True)
    a.add_argument("--out", type=Path)
    a.add_argument("--from", dest="start", type=Path, help="weights of an earlier stage")
    a.add_argument("--face", type=Path, default=CACHE / "face")
    a.add_argument("--minutes", type=float, default=10)
    a.add_argument("--workers", type=int, default=2)
    a.add_argument("--micro", type=int, default=2)
    a.add_argument("--micro-batch", type=int, default=12)
    a.add_argument("--branch-batch", type=int, default=3)
    a.add_argument("--lr", type=float, default=1e-3)
    a.add_argument("--resume", action="store_true")
    a.add_argument("--no-decay", action="store_true")
    a = a.parse_args()
    out = a.out or WORK / f"adapter_{a.stage}.pt"

    torch.manual_seed(0)
    one, two = load_tokenizers()
    net = load_base()
    settings = IdSettings(num_zero=NUM_ZERO, ortho="v2")
    adapter = Adapter(net.unet, settings)
    print("adapter parameters", count(adapter), flush=True)
    named = list(adapter.named_parameters())
    team = Team(named, a.workers, muon_lr=a.lr, adam_lr=a.lr)
    if a.resume and out.exists():
        team.load(torch.load(out, weights_only=True))
    elif a.start:
        state = torch.load(a.start if a.start.exists() else WORK / a.start, weights_only=True)
        load_averaged(named, state)
        team.ema.copy_(state["ema"])
    data = Latents("train", one, two)
    photos = IdentityFeatures("train")
    # Targets are the pictures of people of whom a photo is known.
    known = np.isin(data.fields["identity"], list(photos.of))
    targets = np.flatnonzero(known)
    cumulative = alphas_cumprod()
    snr = cumulative / (1 - cumulative)

    def make_loss(rank):
        branch = None
        if a.stage > 1:
            branch = Branch(net, settings, data, load_vae(), load_recogniser(a.face), load_landmarks())

        def loss(step, k, extra):
            rng = np.random.default_rng((step, k, 13 + a.stage))
            b = a.micro_batch
            rows = targets[rng.integers(len(targets), size=b)]
            z, ids_one, ids_two, _ = data.take(rng, b, drop=0.1, indices=rows)
            condition, hidden = photos.take([photos.other(rng, int(data.fields["identity"][r]), data.key[r]) for r in rows])
            keep = torch.from_numpy((rng.random(b) >= 0.1).astype(np.float32))
            condition = condition * keep[:, None]
            hidden = [h * keep[:, None, None] for h in hidden]
            u = (np.arange(b) + rng.random(b)) / b
            t = torch.from_numpy((u * 1000).astype(np.int64))
            noise = torch.from_numpy(rng.standard_normal(z.shape, np.float32))
            c = cumulative[t].view(-1, 1, 1, 1)
            x = c.sqrt() * z + (1 - c).sqrt() * noise
            with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
                with torch.no_grad():
                    context = net.context(ids_one, ids_two)
                e = net(x, t, *context, adapter.id_adapter(condition, hidden))
            focus = 0.5 + 2 * data.person(rows)
            each = ((e.float() - noise).square() * focus).mean((1, 2, 3)) / focus.mean((1, 2, 3))
            weight = (snr[t].clamp(max=5.0) / snr[t]).clamp(min=0.05)
            diffusion = (each * weight).mean() / weight.mean()
            extra[0] += float(each.detach().mean())
            extra[1] += float(each.detach()[t > 500].mean())
            if branch is None:
                return diffusion
            b = a.branch_batch
            people = rng.integers(len(photos), size=b)
            condition, hidden = photos.take(people)
            noise = torch.from_numpy(rng.standard_normal((b, 4, 16, 16), np.float32))
            total = diffusion
            with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
                identity = adapter.id_adapter(condition, hidden)
                with torch.no_grad():
                    fixed = net.context(*data.tokens([ID_PROMPT] * b))
                z, _ = branch.run(noise, fixed, identity, align=False, last=2)
                same = branch.id_loss(z, condition[:, :512])
                total = total + 0.3 * same
                extra[2] += float(same.detach())
                if a.stage == 3:
                    pick = lambda names: names[int(rng.integers(len(names)))]
                    texts = [caption(pick(STYLES), pick(BACKGROUNDS), pick(EXPRESSIONS), None, pick(CLOTHES), rng) for _ in range(b)]
                    with torch.no_grad():
                        styled = net.context(*data.tokens(texts))
                    _, parts = branch.run(noise, styled, adapter.id_adapter(condition, hidden), align=True)
                    total = total + 0.6 * parts[0] + 0.1 * parts[1]
                    extra[3] += float(parts[0].detach())
                    extra[4] += float(parts[1].detach())
            return total

        return loss

    shown_photos = IdentityFeatures("heldout")
    heldout = Latents("heldout", one, two)
    prompts = [ID_PROMPT, "a photo of a person, smiling, in a garden", "a pencil sketch of a person", "an oil painting of a person, at the beach",
               "a neon picture of a person", "a comic picture of a person, in a city street", "a watercolor painting of a person, in the snow"]
    state = {"at": -1}

    def look(step, team):
        if step // 300 == state["at"]:
            return
        state["at"] = step // 300
        sheet_of(adapter, net, team, heldout, shown_photos, prompts, (one, two), WORK / "sheets" / f"adapter_{a.stage}.png")

    schedule = (lambda s, p: min(1.0, (s + 1) / 50)) if a.no_decay else (lambda s, p: flat_then_decay(s, p, 50, 0.6))
    team.train(make_loss, 10**9, a.micro, schedule, out, look, seconds=60 * a.minutes, save_every=180)


def sheet_of(adapter, net, team, heldout, photos, prompts, tokenizers, path):
    """Rows of held-out people: their photo, then one picture per prompt, by the averaged weights."""
    kept = [p.detach().clone() for _, p in team.named]
    load_averaged(adapter.named_parameters(), team.state())
    vae = load_vae()
    rows = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        none = adapter.id_adapter(*nothing(1))
        for person in list(photos.of)[:4]:
            i = photos.of[person][:1]
            own = adapter.id_adapter(*photos.take(i)).expand(len(prompts), -1, -1)
            z = sample(net, tokenizers, prompts, seed=3, steps=10, guidance=2.5, identity=(own, none.expand(len(prompts), -1, -1)))
            photo = torch.from_numpy(heldout.z[heldout.rows(photos.key[i])].astype(np.float32))
            rows.append(to_u8(vae.decode(torch.cat([photo, heldout.denormalise(z)])).sample))
    sheet(np.concatenate(rows), len(prompts) + 1, path, 2)
    # The workers hold the raw weights in the same shared memory; put them back before the next step.
    for (_, p), k in zip(team.named, kept):
        p.data.copy_(k)


if __name__ == "__main__":
    main()
