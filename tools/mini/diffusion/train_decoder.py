"""Trains the VAE's decoder alone on what the UNet leaves of a picture, so that it draws what generated latents are vague about.

    python encode_latents.py && python identity_features.py && python train_decoder.py --minutes 60

Latents of a render get the noise of one of the last steps, the base with the person's identity takes it away again by the
steps that generation would take, and the decoder learns to make the render of the result. A mean over what could be
there has no eyes; so beside the differences of pixels count those that the recogniser and the parser see of the aligned
face, and two critics tell decoded from rendered patches: of the picture, and of the aligned face.

The encoder stays as it is, so encoded latents, UNet and adapter stay valid. Continues from `vae.pt` and writes it.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import common  # noqa: F401  (sets the thread environment first)
import numpy as np
import torch
import torch.nn.functional as F
from common import CACHE, WORK, sheet, to_u8
from diffusers.models.attention_processor import AttnProcessor
from identity_features import IdentityFeatures
from latent_recogniser import perceived
from latents import Latents, favoured
from networks import build_vae
from parallel import Team, flat_then_decay, load_averaged
from sampling import dpmpp_2m, load_tokenizers, timestep_of, trailing
from torch.nn.attention import SDPBackend, sdpa_kernel
from train_adapter import NUM_ZERO, Adapter, IdSettings, aligned, load_base, load_recogniser, nothing
from train_vae import EVERYWHERE, WEIGHTS, reconstruction

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "face"))
from bisenet import BiSeNet  # noqa: E402
from data import FACEXLIB_512, Renders  # noqa: E402
from export import trained  # noqa: E402
from sharpness import GUIDANCE, LEFT, ParserStages, WidePatchCritic, combined, criticise, distance  # noqa: E402

STEPS = 8  # of generation; the grid that noise is taken from
WARM_CRITIC = 100  # steps in which the critics learn alone


class Critic:
    """A patch critic and its optimizer, kept in a file between runs."""

    def __init__(self, path: Path, seed: int):
        torch.manual_seed(seed)
        self.net, self.path = WidePatchCritic(), path
        if path.exists():
            self.net.load_state_dict(torch.load(path, weights_only=True))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=3e-4, betas=(0.5, 0.9))

    def __call__(self, y, x):
        """What `criticise` answers, the critic's own loss as a number."""
        fooled, match, own = criticise(self.net, self.optimizer, y, x, lambda: torch.autocast("cpu", torch.bfloat16))
        return fooled, match, float(own)


class Vague:
    """Latents as generation leaves them in its last steps."""

    def __init__(self, data, photos):
        self.data, self.photos = data, photos
        self.net = load_base()
        self.adapter = Adapter(self.net.unet, IdSettings(num_zero=NUM_ZERO, ortho="v2"))
        load_averaged(self.adapter.named_parameters(), torch.load(WORK / "adapter_1.pt", weights_only=True))
        self.sigmas = trailing(STEPS)
        with torch.no_grad():
            self.empty = [c[:1] for c in self.net.context(*data.tokens([""]))]
            self.none = self.adapter.id_adapter(*nothing(1))

    @torch.no_grad()
    def __call__(self, rows, left: int, rng, guidance: float = 2.4):
        """Normalised latents of these pictures after noise and the `left` last steps."""
        data, b = self.data, len(rows)
        z = data.normalise(torch.from_numpy(data.z[rows].astype(np.float32)))
        if not left:
            return z
        photos = [self.photos.other(rng, int(data.fields["identity"][r]), data.key[r]) for r in rows]
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            context = self.net.context(*data.tokens([data.text(r, rng) for r in rows]))
            own = self.adapter.id_adapter(*self.photos.take(photos))
            context = [torch.cat([c, e.expand(b, *e.shape[1:])]) for c, e in zip((*context, own), (*self.empty, self.none))]

            def denoise(x, s):
                scaled, t = x / (s * s + 1) ** 0.5, torch.full((2 * b,), timestep_of(s))
                both = self.net(torch.cat([scaled, scaled]), t, *context).float()
                return x - s * (both[b:] + guidance * (both[:b] - both[b:]))

            sigmas = self.sigmas[STEPS - left :]
            noise = torch.from_numpy(rng.standard_normal(z.shape, np.float32))
            return dpmpp_2m(denoise, z + float(sigmas[0]) * noise, sigmas).float()


def crops(pictures, landmarks):
    """Aligned faces as the parser sees them, [B,3,128,128]."""
    return torch.cat([aligned(p[None], points, FACEXLIB_512 / 4, 128) for p, points in zip(pictures, landmarks)])


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--minutes", type=float, default=60)
    a.add_argument("--workers", type=int, default=2)
    a.add_argument("--micro", type=int, default=2)
    a.add_argument("--micro-batch", type=int, default=4)
    a.add_argument("--lr", type=float, default=1.5e-3)
    a.add_argument("--favour", default="", help="a style that a fifth of the pictures are drawn from beside its own share")
    a.add_argument("--identify", type=float, default=0.5, help="the recogniser's gradient, as a share of the pixels'")
    a.add_argument("--parse", type=float, default=0.6, help="the parser's")
    a.add_argument("--match", type=float, default=0.25, help="that of the differences of the critics' activations")
    a.add_argument("--critic", type=float, default=0.08, help="each critic's")
    a.add_argument("--no-decay", action="store_true", help="hold the learning rate (a run that will be continued)")
    a = a.parse_args()

    torch.manual_seed(0)
    vae = build_vae()
    vae.set_attn_processor(AttnProcessor())
    tokenizers = load_tokenizers()
    data, photos = Latents("train", *tokenizers), IdentityFeatures("train")
    renders = Renders(CACHE / "data" / "train", WORK / "unpacked_faces")
    if not np.array_equal(renders.identity[: len(data)], data.fields["identity"]):
        raise SystemExit("the latents are not those of the renders: run encode_latents.py")
    known = np.flatnonzero(np.isin(data.fields["identity"], list(photos.of)))
    more = np.intersect1d(known, data.of_style(a.favour))
    print("pictures", len(known), flush=True)
    out = WORK / "vae.pt"
    team = Team(list(vae.named_parameters()), a.workers, muon_lr=a.lr, adam_lr=a.lr / 2)
    team.load(torch.load(out, weights_only=True))
    frozen = ("encoder.", "quant_conv.")
    team.freeze(lambda n: n.startswith(frozen))
    table = torch.full((256,), EVERYWHERE)
    table[list(WEIGHTS)] = torch.tensor(list(WEIGHTS.values()))
    names = list(LEFT)

    def make_loss(rank):
        parser = trained(BiSeNet(), CACHE / "face" / "parser.pt").requires_grad_(False)
        vague, recogniser, seen = Vague(data, photos), load_recogniser(CACHE / "face"), ParserStages(parser)
        critics = [Critic(WORK / f"critic_{kind}{rank}.pt", i) for i, kind in enumerate(("picture", "face"))]
        decode = lambda z: vae.decoder(vae.post_quant_conv(z))
        first = team.step

        def embedded(faces):
            embedding, stages = recogniser.with_stages(faces)
            return F.normalize(embedding.float(), dim=-1), stages

        def loss(step, k, extra):
            rng = np.random.default_rng((step, k, 41))
            rows = favoured(rng, known[rng.integers(len(known), size=a.micro_batch)], more)
            left = int(rng.choice(names, p=[LEFT[n][0] for n in names]))
            z = data.denormalise(vague(rows, left, rng, rng.uniform(*GUIDANCE)))
            x = torch.from_numpy(np.stack([renders.image(r) for r in rows])).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
            weight = table[torch.from_numpy(np.stack([renders.label(r) for r in rows])).long()][:, None]
            points = renders.all_landmarks[rows]
            with torch.autocast("cpu", torch.bfloat16):
                y = decode(z).float()
            pixels = reconstruction(y, x, weight)
            faces, true_faces = crops(y, points), crops(x, points)
            with torch.autocast("cpu", torch.bfloat16):
                small, true_small = (torch.cat([aligned(p[None], at) for p, at in zip(v, points)]) for v in (y, x))
                far = perceived(embedded, small, true_small).mean()
                parsed = distance(seen(faces), seen(true_faces))
            others = [(far, a.identify), (parsed, a.parse)]
            extra[0] += float((y - x).detach().abs().mean())
            extra[1] += float(far.detach())
            extra[2] += float(parsed.detach())
            for i, (critic, made, true) in enumerate(zip(critics, (y, faces), (x, true_faces))):
                fooled, match, own = critic(made, true)
                if step - first >= WARM_CRITIC:
                    others += [(match, LEFT[left][1] * a.match), (fooled, a.critic)]
                extra[3 + 2 * i] += own
                extra[4 + 2 * i] += float(match.detach())
                if k == 0 and step % 100 == 99:
                    torch.save(critic.net.state_dict(), critic.path)
            return LEFT[left][1] ** 0.5 * combined(y, pixels, others)

        return loss

    shown = {"at": team.step // 100}

    def look(step, team):
        """Every now and then a sheet: renders, their estimates by the weights at the start and by the averaged ones."""
        if step // 100 == shown["at"]:
            return
        shown["at"] = step // 100
        rng = np.random.default_rng(5)
        if "z" not in shown:
            rows = known[rng.permutation(len(known))[:10]]
            vague = Vague(data, photos)
            shown["z"] = [data.denormalise(vague(rows, left, rng)) for left in (0, 1, 3)]
            shown["true"] = np.stack([renders.image(r) for r in rows])
            shown["before"] = copy_of(torch.load(out, weights_only=True))
        after = copy_of(team.state())
        rows = [shown["true"]]
        with torch.no_grad():
            for z in shown["z"]:
                rows += [to_u8(net.decode(z).sample) for net in (shown["before"], after)]
        sheet(np.concatenate(rows), 10, WORK / "sheets" / f"decoder_{step:06d}.png")

    def copy_of(state):
        copy = build_vae()
        load_averaged(copy.named_parameters(), state)
        return copy.eval()

    schedule = (lambda s, p: min(1.0, (s + 1) / 50)) if a.no_decay else (lambda s, p: flat_then_decay(s, p, 50, 0.6))
    team.train(make_loss, 10**9, a.micro, schedule, out, look, seconds=60 * a.minutes, save_every=240)


if __name__ == "__main__":
    main()
