"""The VAE's decoder alone, on what the UNet leaves of a picture: it draws what generated latents are vague about.

Latents of a render get the noise of one of generation's last steps, the base with the person's identity takes it away again,
and the decoder learns to make the render of the result. A mean over what could be there has no eyes; so beside the
differences of pixels count those that the recogniser and the parser see of the aligned face, and two critics tell decoded
from rendered patches: of the picture, and of the aligned face. The encoder stays as it is, so latents stay valid.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from common import DEVICE, HALF, Budget, autocast, perceived, said, sheet, to_u8
from faces import FACEXLIB_512, crop
from optimizer import Optimizer, averaged, flat_then_decay
from sampling import sample
from sharpness import GUIDANCE, LEFT, ParserStages, WidePatchCritic, combined, distance
from vae import EVERYWHERE, PERSON, Critic, in_half, reconstruction

RECOGNISER, PARSER, CRITIC, MATCH = 0.5, 0.6, 0.08, 0.25  # gradients, as shares of the pixels'
CRITIC_FROM = 0.05  # the critics learn alone before


def vague(joint, rows, ids, condition, hidden, left, guidance):
    """Normalised latents of some pictures, by their prompts and identities, after noise and the `left` last steps."""
    z = joint.store.z[rows].float()
    if not left:
        return z
    with torch.no_grad():
        identity = joint.identity(condition, hidden), joint.nobody().expand(len(rows), -1, -1)
        return sample(joint.net, ids, joint.empty, torch.randn_like(z), guidance=guidance, identity=identity, start=z, left=left)


def train(joint, seconds, batch, sheets):
    """Trains the decoder of `joint.coder` for `seconds`; returns a frozen VAE with averaged weights. Base and adapter stay as they are."""
    store, coder, faces = joint.store, joint.coder, joint.faces
    joint.net.to(HALF), joint.adapter.to(HALF)
    vae = in_half(copy.deepcopy(coder.vae))
    for name, p in vae.named_parameters():
        p.requires_grad_(name.startswith(("decoder.", "post_quant_conv.")))
    optimizer = Optimizer(vae.named_parameters(), 1.5e-3, 7.5e-4, ema=0.99)
    seen, critics = ParserStages(faces.parser), [Critic(WidePatchCritic()) for _ in range(2)]
    aligned = lambda pictures, points: crop(pictures, points, FACEXLIB_512 / 4, 128)
    lefts, shares = list(LEFT), [v[0] for v in LEFT.values()]
    budget, step, shown = Budget(seconds), 0, {}
    while not budget.over:
        rows, ids, _, condition, hidden, _ = joint.drawn(batch, 1.0)
        left = int(np.random.choice(lefts, p=shares))
        z = vague(joint, rows, ids, condition, hidden, left, float(np.random.uniform(*GUIDANCE)))
        x, weight = store.pictures(rows), EVERYWHERE + PERSON * store.weight[store.labels[rows].long()][:, None]
        points = store.landmarks[rows]
        y = vae.decode((z * coder.std + coder.mean).to(HALF)).sample.float()
        made, true = aligned(y, points), aligned(x, points)
        with autocast():
            far = perceived(lambda p: faces.embedding(p, points), y, x).mean()
            parsed = distance(seen(made), seen(true))
        others = [(far, RECOGNISER), (parsed, PARSER)]
        shown |= {"recogniser": far.detach(), "parser": parsed.detach()}
        for name, critic, a, b in zip(("picture", "face"), critics, (y, made), (x, true)):
            fooled, match, own = critic(a, b)
            if budget.part > CRITIC_FROM:
                others += [(match, LEFT[left][1] * MATCH), (fooled, CRITIC)]
            shown[f"critic of the {name}"] = own
        (LEFT[left][1] ** 0.5 * combined(y, reconstruction(y, x, weight), others)).backward()
        optimizer.step(flat_then_decay(step, budget.part, 30, 0.6, 0.03))
        step += 1
        if step % 50 == 0 or step in (1, 5, 20):
            said(f"decoder step {step} {budget.part:.0%}", {k: round(float(v), 4) for k, v in shown.items()})
    out = averaged(vae, optimizer)
    rows, ids, _, condition, hidden, _ = joint.drawn(8, 1.0)
    pictures = [store.pictures(rows)]
    with torch.no_grad():
        for left in (0, 1, 3):
            z = vague(joint, rows, ids, condition, hidden, left, 2.4) * coder.std + coder.mean
            pictures += [network.decode(z).sample for network in (coder.vae, out)]
    sheet(to_u8(torch.cat([p.to(DEVICE) for p in pictures])), 8, sheets / "decoder.jpg")
    said(f"decoder: {step} steps of {batch}")
    return out
