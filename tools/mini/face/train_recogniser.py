"""Trains the ArcFace-shaped recogniser: CosFace over the training identities, every style of each."""

import numpy as np
import torch

from data import arcface_crop, jittered, photometric
from iresnet import CosFace, IResNet
from training import FIRST_HELD_OUT, Progress, arguments, prepare, renders, resume, save, verification

SIZE = 112


def normalised(crops):
    return (torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() - 127.5) / 127.5


def batch(data, rng, size):
    rows = rng.integers(len(data), size=size)
    crops = []
    for row in rows:
        crop = arcface_crop(data.image(row), jittered(data.all_landmarks[row], rng, 0.025), SIZE)
        if rng.random() < 0.5:
            crop = np.ascontiguousarray(crop[:, ::-1])
        crops.append(photometric(crop, rng))
    return normalised(crops), torch.from_numpy(data.identity[rows])


def embed(model, data, rows, jitter=0.01, seed=1):
    rng = np.random.default_rng(seed)
    model.eval()
    out = []
    with torch.no_grad():
        for part in np.array_split(rows, max(1, len(rows) // 64)):
            crops = [arcface_crop(data.image(r), jittered(data.all_landmarks[r], rng, jitter), SIZE) for r in part]
            out.append(model(normalised(crops)))
    return torch.cat(out)


def evaluate(model, data, count=1024, seed=1):
    rows = np.random.default_rng(seed).permutation(len(data))[:count]
    result = verification(embed(model, data, rows), data.identity[rows], data.style[rows])
    photos = np.flatnonzero(data.style == 0)[:count]
    result["photo_rank1"] = verification(embed(model, data, photos), data.identity[photos])["rank1"]
    return result


def main():
    parser = arguments(__doc__, steps=2500, batch=64, rate=2e-3, seed=21)
    parser.add_argument("--margin", type=float, default=0.3)
    args = parser.parse_args()
    rng = prepare(args)
    data, heldout = renders(args, "train"), renders(args, "heldout")
    model = IResNet().to(memory_format=torch.channels_last)
    head = CosFace(512, FIRST_HELD_OUT, margin=args.margin)
    resume(model, args)
    if args.resume is not None:
        head.load_state_dict(torch.load(args.resume, weights_only=True)["head"])
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": parameters, "weight_decay": 0.02}, {"params": head.parameters(), "weight_decay": 0.02, "lr": 3 * args.rate}],
        lr=args.rate,
    )
    network = torch.compile(model) if args.compile else model
    progress = Progress(args, optimizer, refresh=data.refresh)
    margin = head.margin
    for step in range(args.steps):
        progress.before(step)
        # The margin grows over the first fifth: from the start it keeps a small network from finding any order.
        head.margin = margin * min(1.0, 5 * step / args.steps) if args.resume is None else margin
        model.train()
        x, identity = batch(data, rng, args.batch)
        with torch.autocast("cpu", torch.bfloat16):
            features = network(x.contiguous(memory_format=torch.channels_last))
        loss = head(features, identity)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        progress.after(step, args.batch, loss=loss)
        if (step + 1) % 500 == 0:
            save(model, args.work / "recogniser.pt", head=head.state_dict())
            print(evaluate(model, heldout, 512), flush=True)
    save(model, args.work / "recogniser.pt", head=head.state_dict())
    print(evaluate(model, heldout))


if __name__ == "__main__":
    main()
