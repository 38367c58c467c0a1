"""Trains the UNet, both text encoders and the identity adapter in one run.

    python encode_latents.py && python identity_features.py && python train_joint.py --minutes 60 [--fresh-adapter]

About half of each batch carries the identity tokens of another picture of the same person; for the rest the identity
attention adds nothing, so that the UNet stays a plain text-to-image model. Without identity a face cannot be foretold
and the gradient through it is small; with it the base learns features, and the adapter learns in every step.

With `--branch N`, half of the micro-batches also make N pictures from pure noise in four steps, and L_id asks that the
recognisers of latents find the person in them, with noise over them that hides what only a network would notice. L_diff
only sees what is left of the person's own picture in its noise; here all of the face has to come from the identity. The
gradient runs through the last three steps: where a face's parts lie is decided there.

Continues from `unet.pt` and, where it exists, `adapter_1.pt`, and writes both.
"""
from __future__ import annotations

import argparse
import os

import common  # noqa: F401  (sets the thread environment first)
import numpy as np
import torch
import torch.nn.functional as F
from common import WORK, sheet, to_u8
from identity_features import IdentityFeatures
from latent_recogniser import load_latent_recognisers, perceived, roughened
from latents import Latents, favoured
from networks import time_ids
from parallel import Team, flat_then_decay
from sampling import all_sigmas, alphas_cumprod, load_tokenizers, load_vae, sample, trailing_timesteps
from torch.nn.attention import SDPBackend, sdpa_kernel
from train_adapter import NUM_ZERO, Adapter, IdSettings, nothing
from train_unet import TextToLatent

PREFIX = "adapter."
PARTS = ("params", "momentum", "second", "ema")
BASE, ADAPTER = WORK / "unet.pt", WORK / "adapter_1.pt"

# Shares of the samples with identity attention.
IDENTITY = 0.6  # have it at all (a whole number of every micro-batch, so that its shapes stay the same)
NO_PERSON = 0.1  # of these, the zero identity of guidance's other half, ...
NO_WORDS = 0.6  # ... which mostly goes with the empty prompt
DROP = 0.08  # empty prompts among all others

# Timesteps are drawn by this distribution function: at either end of the schedule little is decided.
OFTEN = (0.0, 0.08, 0.92, 1.0), (0.0, 180.0, 860.0, 1000.0)

# With `--steps`, the share of timesteps that are a generation's own; the others keep every other number of steps usable.
OWN_STEPS = 0.75

# Above this noise (sigma) the estimate of the clean latents is a mean over faces, which no recogniser should judge.
PERCEIVED_BELOW = 2.5

# The branch's timesteps: the schedule's last, then three drawn as far as this around 750, 500 and 250.
BRANCH_SPREAD = 120


def timesteps(count, steps, rng):
    """`count` timesteps that cover the schedule, in an order that says nothing about the batch's rows."""
    u = rng.permutation((np.arange(count) + rng.random(count)) / count)
    t = np.interp(u, *OFTEN)
    if steps:
        own = trailing_timesteps(steps)
        t = np.where(rng.random(count) < OWN_STEPS, own[(u * steps).astype(int)], t)
    return torch.from_numpy(t.astype(np.int64))


def joined(base: dict, adapter: dict) -> dict:
    """One checkpoint of both parts."""
    names = base["names"] + [PREFIX + n for n in adapter["names"]]
    return dict(step=base["step"], names=names, **{k: torch.cat([base[k], adapter[k]]) for k in PARTS})


def parted(state: dict, base_size: int) -> tuple[dict, dict]:
    """The checkpoint's two parts, each as its own trainer and `load_averaged` read it."""
    base = [n for n in state["names"] if not n.startswith(PREFIX)]
    adapter = [n.removeprefix(PREFIX) for n in state["names"] if n.startswith(PREFIX)]
    return (
        dict(step=state["step"], names=base, **{k: state[k][:base_size].clone() for k in PARTS}),
        dict(step=state["step"], names=adapter, **{k: state[k][base_size:].clone() for k in PARTS}),
    )


class JointTeam(Team):
    """A team that keeps its two parts in two files."""

    base_size = 0

    def save(self, path) -> None:
        for state, target in zip(parted(self.state(), self.base_size), (BASE, ADAPTER)):
            temporary = target.with_suffix(".tmp")
            torch.save(state, temporary)
            os.replace(temporary, target)


class Joint:
    """Both networks and their parameters under the names of the joined checkpoint."""

    text_learns = True

    def __init__(self, tokenizer):
        self.net = TextToLatent(len(tokenizer))
        base = list(self.net.named_parameters())  # before the adapter puts its layers into the UNet
        self.base_size = sum(p.numel() for _, p in base)
        self.adapter = Adapter(self.net.unet, IdSettings(num_zero=NUM_ZERO, ortho="off"))
        self.named = base + [(PREFIX + n, p) for n, p in self.adapter.named_parameters()]

    def context(self, ids_one, ids_two):
        with torch.set_grad_enabled(self.text_learns and torch.is_grad_enabled()):
            return self.net.context(ids_one, ids_two)

    def tokens(self, count, identified, condition, hidden):
        """Identity tokens [count,N,D] and scales [count,1,1] of a batch; rows outside `identified` have neither."""
        own = self.adapter.id_adapter(condition, hidden)
        tokens = own.new_zeros(count, *own.shape[1:]).index_copy(0, identified, own)
        return tokens, own.new_zeros(count, 1, 1).index_fill(0, identified, 1.0)

    def noise_of(self, x, t, context, pooled, tokens, scale):
        return self.net.unet(
            x, t, encoder_hidden_states=context, added_cond_kwargs=dict(text_embeds=pooled, time_ids=time_ids(len(x))),
            cross_attention_kwargs=dict(id_embedding=tokens, id_scale=scale), return_dict=False,
        )[0]

    def predict(self, x, t, ids_one, ids_two, identified, condition, hidden):
        """`identified`: the rows whose identity `condition` and `hidden` describe; the others go without."""
        return self.noise_of(x, t, *self.context(ids_one, ids_two), *self.tokens(len(x), identified, condition, hidden))


def branch(noise_of, noise, times, context, pooled, tokens, scale):
    """The clean latents of a few-step run from pure noise, with gradient through all steps but the first."""
    sigmas = [float(s) for s in all_sigmas()[times]] + [0.0]
    x = noise * sigmas[0]
    for i, (t, s, n) in enumerate(zip(times, sigmas, sigmas[1:])):
        with torch.set_grad_enabled(i > 0):
            e = noise_of(x / (s * s + 1) ** 0.5, torch.full((len(x),), t), context, pooled, tokens, scale).float()
        clean = x - s * e
        x = clean + (n / s) * (x - clean)
    return x


def person_features(watcher, data, people, pictures=4):
    """Each person's mean features by the latent recogniser, of unit length, [largest number + 1, F]."""
    rows = {}
    for row, person in enumerate(data.fields["identity"].tolist()):
        if person in people and len(rows.setdefault(person, [])) < pictures:
            rows[person].append(row)
    numbers = torch.tensor([p for p, r in rows.items() for _ in r])
    places = np.array([row for r in rows.values() for row in r])
    with torch.no_grad():
        seen = torch.cat([
            watcher(data.normalise(torch.from_numpy(data.z[part].astype(np.float32))))[0]
            for part in np.array_split(places, max(1, len(places) // 128))
        ])
    return F.normalize(torch.zeros(int(numbers.max()) + 1, seen.shape[1]).index_add_(0, numbers, seen), dim=-1)


def drawn(data, photos, rng, count, more):
    """A batch: latents, prompts' ids, rows with identity, their conditions and the pictures' places; a share are `more`'s."""
    rows = favoured(rng, rng.integers(len(data), size=count), more)
    identified = sorted(rng.choice(count, round(IDENTITY * count), replace=False))
    for i in identified:
        while int(data.fields["identity"][rows[i]]) not in photos.of:
            rows[i] = rng.integers(len(data))
    features = [photos.other(rng, int(data.fields["identity"][rows[i]]), data.key[rows[i]]) for i in identified]
    condition, hidden = photos.take(features)
    empty = rng.random(len(identified)) < NO_PERSON
    keep = torch.from_numpy(~empty).float()
    condition, hidden = condition * keep[:, None], [h * keep[:, None, None] for h in hidden]
    drop = np.full(count, DROP)
    drop[identified] = np.where(empty, NO_WORDS, DROP / 2)
    texts = ["" if rng.random() < d else data.text(r, rng) for r, d in zip(rows, drop)]
    z = data.normalise(torch.from_numpy(data.z[rows].astype(np.float32)))
    return z, *data.tokens(texts), torch.tensor(np.array(identified)), condition, hidden, rows


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--minutes", type=float, default=60)
    a.add_argument("--workers", type=int, default=2)
    a.add_argument("--micro", type=int, default=2)
    a.add_argument("--micro-batch", type=int, default=12)
    a.add_argument("--lr", type=float, default=2e-3)
    a.add_argument("--steps", type=int, default=0, help="draw most timesteps from those of a generation of this many trailing steps (0: none)")
    a.add_argument("--favour", default="", help="a style that a fifth of the pictures are drawn from beside its own share")
    a.add_argument("--person", type=float, default=3.0, help="how much more a face counts than the background")
    a.add_argument("--perceive", type=float, default=0.05, help="weight of the latent recogniser's distance (0: none)")
    a.add_argument("--branch", type=int, default=0, help="pictures of the few-step branch per micro-batch that has it (0: no L_id)")
    a.add_argument("--identify", type=float, default=0.1, help="weight of L_id")
    a.add_argument("--compile", action="store_true", help="a fifth faster, after minutes of compiling")
    a.add_argument("--freeze-text", action="store_true", help="leave the text encoders as they are: a tenth faster")
    a.add_argument("--look-every", type=int, default=600)
    a.add_argument("--fresh-adapter", action="store_true")
    a.add_argument("--no-decay", action="store_true", help="hold the learning rate (a run that will be continued)")
    a.add_argument("--decay-from", type=float, default=0.7, help="the part of the run after which the learning rate falls")
    a = a.parse_args()

    torch.manual_seed(0)
    tokenizers = load_tokenizers()
    joint = Joint(tokenizers[0])
    data, photos = Latents("train", *tokenizers), IdentityFeatures("train")
    more = data.of_style(a.favour)
    held, held_photos = Latents("heldout", *tokenizers), IdentityFeatures("heldout")
    team = JointTeam(joint.named, a.workers, muon_lr=a.lr, adam_lr=a.lr * 0.5)
    team.base_size = joint.base_size
    if a.freeze_text:
        team.freeze(lambda name: name.startswith("text_encoder"))
    joint.text_learns = not a.freeze_text
    base = torch.load(BASE, weights_only=True)
    if ADAPTER.exists() and not a.fresh_adapter:
        team.load(joined(base, torch.load(ADAPTER, weights_only=True)))
    else:
        fresh = parted(team.state(), joint.base_size)[1]
        team.load(joined(base, fresh))
    print("pictures", len(data), "photos", len(photos), "from step", team.step, flush=True)
    cumulative = alphas_cumprod()
    snr = cumulative / (1 - cumulative)

    def noised(z, t, rng):
        noise = torch.from_numpy(rng.standard_normal(z.shape, np.float32))
        c = cumulative[t].view(-1, 1, 1, 1)
        return c.sqrt() * z + (1 - c).sqrt() * noise, noise

    def error(e, noise, person):
        focus = 1 + a.person * person
        return ((e.float() - noise).square() * focus).mean((1, 2, 3)) / focus.mean((1, 2, 3))

    watchers = load_latent_recognisers() if a.perceive or a.branch else []
    people = [person_features(watcher, data, photos.of) for watcher in watchers] if a.branch else []
    print(len(watchers), "recognisers of latents", flush=True)

    def make_loss(rank):
        fixed = lambda f: torch.compile(f, dynamic=False) if a.compile else f
        context_of, tokens_of, noise_of = fixed(joint.context), fixed(joint.tokens), fixed(joint.noise_of)

        def loss(step, k, extra):
            rng = np.random.default_rng((step, k, 17))
            z, ids_one, ids_two, identified, condition, hidden, rows = drawn(data, photos, rng, a.micro_batch, more)
            t = timesteps(len(z), a.steps, rng)
            x, noise = noised(z, t, rng)
            with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
                context = context_of(ids_one, ids_two)
                e = noise_of(x, t, *context, *tokens_of(len(x), identified, condition, hidden))
            each = error(e, noise, data.person(rows))
            # min-SNR: steps at low noise hardly matter. Those at high noise decide where a face's parts lie, but their error
            # in the noise is small: they count more, up to four times.
            weight = (snr[t].clamp(max=5.0) / snr[t]).clamp(min=0.05) * (1 + 1 / snr[t]).sqrt().clamp(max=4.0)
            extra[0] += float(each.detach().mean())
            extra[1] += float(each.detach()[t > 500].mean())
            total = (each * weight).mean() / weight.mean()
            near = snr[t] > PERCEIVED_BELOW**-2
            if a.perceive and near.any():
                c = cumulative[t[near]].view(-1, 1, 1, 1)
                estimate = (x[near] - (1 - c).sqrt() * e[near].float()) / c.sqrt()
                with torch.autocast("cpu", torch.bfloat16):
                    apart = perceived(watchers[k % len(watchers)], estimate, z[near], 1 + a.person * data.person(rows[near.numpy()]))
                total = total + a.perceive * apart.sum() / len(z)
                extra[2] += float(apart.detach().mean())
            if a.branch and k < a.micro // 2:
                lost = lost_person(rng, identified, condition, hidden, context, rows)
                extra[3] += 2 * float(lost.detach())
                total = total + a.identify * lost
            return total

        def lost_person(rng, identified, condition, hidden, context, rows):
            """L_id: 1 - cos of the person's features and those of pictures that the branch makes for these rows' captions."""
            who = (condition.abs().sum(-1) > 0).nonzero()[:, 0]  # not the zero identity
            who = who[torch.from_numpy(rng.permutation(len(who))[: a.branch])]
            who = who.repeat(a.branch)[: a.branch]  # should fewer be left, some are made twice
            at = identified[who]
            times = [999] + [int(t) for t in np.array([749, 499, 249]) + rng.integers(-BRANCH_SPREAD, BRANCH_SPREAD + 1, 3)]
            noise = torch.from_numpy(rng.standard_normal((a.branch, *data.z.shape[1:]), np.float32))
            with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
                own = tokens_of(a.branch, torch.arange(a.branch), condition[who], [h[who] for h in hidden])
                made = branch(noise_of, noise, times, *(c[at] for c in context), *own)
                seen = roughened(made, rng)
                person = data.fields["identity"][rows[at.numpy()]]
                lost = [1 - (watcher(seen)[0] * wanted[person]).sum(-1) for watcher, wanted in zip(watchers, people)]
            return torch.stack(lost).mean()

        return loss

    looked = {"at": team.step // a.look_every}

    def look(step, team):
        """By the averaged weights: what the right identity is worth on held-out faces, and a sheet of pictures."""
        if step // a.look_every == looked["at"]:
            return
        looked["at"] = step // a.look_every
        kept = [p.detach().clone() for _, p in team.named]
        for (_, p), (start, end) in zip(team.named, team.spans):
            p.data.copy_(team.ema[start:end].view_as(p))
        rng = np.random.default_rng(5)
        rows = rng.permutation(len(held))[:96]
        z = held.normalise(torch.from_numpy(held.z[rows].astype(np.float32)))
        t = torch.from_numpy(np.linspace(150, 900, len(rows)).astype(np.int64))
        x, noise = noised(z, t, rng)
        ids = held.tokens([held.text(r) for r in rows])
        people = held.fields["identity"][rows]
        own = [held_photos.other(rng, int(p), held.key[r]) for p, r in zip(people, rows)]
        wrong = own[1:] + own[:1]
        everyone = torch.arange(len(rows))
        found = []
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            for features in (own, wrong, None):
                if features is None:
                    e = joint.net(x, t, *joint.net.context(*ids))
                else:
                    e = joint.predict(x, t, *ids, everyone, *held_photos.take(features))
                squares = (e.float() - noise).square().mean(1, keepdim=True)
                person = held.person(rows)
                found.append(float((squares * person).sum() / person.sum()))
            pictures = shown(joint, tokenizers, held, held_photos)
        sheet(pictures, 9, WORK / "sheets" / "joint.png", 2)
        print("held-out error on faces: own {:.4f} another's {:.4f} none {:.4f}".format(*found), flush=True)
        # The workers hold the raw weights in the same shared memory; put them back before the next step.
        for (_, p), k in zip(team.named, kept):
            p.data.copy_(k)

    schedule = (lambda s, p: min(1.0, (s + 1) / 100)) if a.no_decay else (lambda s, p: flat_then_decay(s, p, 100, a.decay_from))
    team.train(make_loss, 10**9, a.micro, schedule, BASE, look, seconds=60 * a.minutes, save_every=240)


PROMPTS = (
    "a photo of a person", "a photo of a person, smiling, in a garden, wearing a white shirt", "a photo of a person, at the beach",
    "a pencil sketch of a person, in a library", "an oil painting of a person, in a city street", "a neon picture of a person, under a night sky",
    "a comic picture of a person, in a garden", "a watercolor painting of a person, in the snow",
)


def shown(joint, tokenizers, held, photos, people=3, ortho="off"):
    """A row without identity, then rows of held-out people: the photo (as the VAE returns it) and a picture per prompt."""
    vae = load_vae()
    joint.adapter.id_adapter_attn_layers[1].settings.ortho = ortho
    none = joint.adapter.id_adapter(*nothing(1)).expand(len(PROMPTS), -1, -1)
    decode = lambda z: to_u8(vae.decode(held.denormalise(z)).sample)
    plain = decode(sample(joint.net, tokenizers, PROMPTS, seed=3, steps=12, guidance=3.0))
    rows = [np.concatenate([np.zeros_like(plain[:1]), plain])]
    for person in list(photos.of)[:people]:
        i = photos.of[person][:1]
        own = joint.adapter.id_adapter(*photos.take(i)).expand(len(PROMPTS), -1, -1)
        z = sample(joint.net, tokenizers, PROMPTS, seed=3, steps=12, guidance=3.0, identity=(own, none))
        photo = held.normalise(torch.from_numpy(held.z[held.rows(photos.key[i])].astype(np.float32)))
        rows.append(decode(torch.cat([photo, z])))
    return np.concatenate(rows)


if __name__ == "__main__":
    main()
