"""Trains the mini UNet and both text encoders together on encoded pictures (epsilon prediction, SDXL's noise schedule).

    python encode_latents.py && python train_unet.py --minutes 40 [--resume]
"""
from __future__ import annotations

import argparse
from pathlib import Path

import common  # noqa: F401  (sets the thread environment first)
import numpy as np
import torch
from common import WORK, sheet, to_u8
from diffusers.models.attention_processor import AttnProcessor
from latents import Latents
from networks import build_text_encoders, build_unet, count, encode_prompts, time_ids
from parallel import Team, flat_then_decay, load_averaged
from sampling import alphas_cumprod, load_tokenizers, load_vae, sample


class TextToLatent(torch.nn.Module):
    """The three networks under the names of their folders, so that one checkpoint holds them all."""

    def __init__(self, vocab: int):
        super().__init__()
        self.text_encoder, self.text_encoder_2 = build_text_encoders(vocab)
        self.unet = build_unet()
        # The fused attention's backward pass is several times slower on a CPU than plain products at these sizes.
        self.unet.set_attn_processor(AttnProcessor())

    def context(self, ids_one, ids_two):
        return encode_prompts(self.text_encoder, self.text_encoder_2, ids_one, ids_two)

    def forward(self, x, t, context, pooled, id_embedding=None):
        """`id_embedding` [B,N,CROSS_DIM] needs the identity attention installed."""
        added = dict(text_embeds=pooled, time_ids=time_ids(len(x)))
        extra = {} if id_embedding is None else dict(cross_attention_kwargs=dict(id_embedding=id_embedding))
        return self.unet(x, t, encoder_hidden_states=context, added_cond_kwargs=added, return_dict=False, **extra)[0]


SHEET_PROMPTS = (
    "a photo of a person, smiling, wearing a red sweater, in a garden",
    "a pencil sketch of a person, neutral expression, in a library",
    "an oil painting of a person, sad, at the beach, warm light",
    "a neon picture of a person, under a night sky",
    "a comic picture of a person, angry, in a city street, wearing a yellow raincoat",
    "a watercolor painting of a person, surprised, in the snow",
    "a photo of a person, in a studio, dramatic side light, wearing a black suit",
    "a photo of a person, in an autumn forest, wearing a blue hoodie",
)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--out", type=Path, default=WORK / "unet.pt")
    a.add_argument("--minutes", type=float, default=40)
    a.add_argument("--workers", type=int, default=2)
    a.add_argument("--micro", type=int, default=4)
    a.add_argument("--micro-batch", type=int, default=12)
    a.add_argument("--lr", type=float, default=2e-3)
    a.add_argument("--resume", action="store_true")
    a.add_argument("--no-decay", action="store_true")
    a = a.parse_args()

    torch.manual_seed(0)
    one, two = load_tokenizers()
    net = TextToLatent(len(one))
    with torch.no_grad():  # CLIP starts its embeddings at 0.02; narrow encoders trained for minutes need to hear the words
        for e in (net.text_encoder, net.text_encoder_2):
            e.get_input_embeddings().weight.mul_(10)
    print("parameters: unet", count(net.unet), "text", count(net.text_encoder), count(net.text_encoder_2), flush=True)
    data = Latents("train", one, two)
    # The text encoders' last layers and the first one's pooling feed nothing; they stay as they were.
    named = [(n, p) for n, p in net.named_parameters()]
    team = Team(named, a.workers, muon_lr=a.lr, adam_lr=a.lr * 0.5)
    if a.resume and a.out.exists():
        team.load(torch.load(a.out, weights_only=True))
    cumulative = alphas_cumprod()
    snr = cumulative / (1 - cumulative)

    def make_loss(rank):
        def loss(step, k, extra):
            data.refresh()
            rng = np.random.default_rng((step, k, 11))
            z, ids_one, ids_two, i = data.take(rng, a.micro_batch, drop=0.1)
            # Stratified timesteps: every micro-batch covers the schedule.
            u = (np.arange(a.micro_batch) + rng.random(a.micro_batch)) / a.micro_batch
            t = torch.from_numpy((u * 1000).astype(np.int64))
            noise = torch.from_numpy(rng.standard_normal(z.shape, np.float32))
            c = cumulative[t].view(-1, 1, 1, 1)
            x = c.sqrt() * z + (1 - c).sqrt() * noise
            with torch.autocast("cpu", torch.bfloat16):
                context, pooled = net.context(ids_one, ids_two)
                e = net(x, t, context, pooled)
            # The person counts twice: faces are small, and what is looked at.
            focus = 1 + data.person(i)
            each = ((e.float() - noise).square() * focus).mean((1, 2, 3)) / focus.mean((1, 2, 3))
            weight = (snr[t].clamp(max=5.0) / snr[t]).clamp(min=0.05)  # min-SNR: steps at low noise hardly matter
            extra[0] += float(each.mean())
            extra[1] += float(each[t > 500].mean())
            return (each * weight).mean() / weight.mean()

        return loss

    def look(step, team):
        if step % 300:
            return
        copy = TextToLatent(len(one))
        load_averaged(copy.named_parameters(), team.state())
        copy.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            z = sample(copy, (one, two), SHEET_PROMPTS * 2, seed=1, steps=15, guidance=3.0)
            pictures = to_u8(load_vae().decode(data.denormalise(z)).sample)
        sheet(pictures, 8, WORK / "sheets" / "unet.png", 2)

    schedule = (lambda s, p: min(1.0, (s + 1) / 100)) if a.no_decay else (lambda s, p: flat_then_decay(s, p, 100, 0.6))
    team.train(make_loss, 10**9, a.micro, schedule, a.out, look, seconds=60 * a.minutes, save_every=240)


if __name__ == "__main__":
    main()
