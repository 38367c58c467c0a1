"""Trains the second recogniser, which only evaluation uses: supervised contrastive loss on a wider crop."""

import numpy as np
import torch

from data import facexlib_crop, jittered, photometric
from second_recogniser import INPUT_SIZE, SecondRecogniser, supervised_contrastive
from training import Progress, arguments, prepare, renders, resume, save, verification


def normalised(crops):
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255 - 0.5


def batch(data, rng, people, pictures):
    rows = data.rows_of_people(rng, people, pictures)
    crops = []
    for row in rows:
        crop = photometric(data.image(row), rng)
        crop = facexlib_crop(crop, jittered(data.all_landmarks[row], rng, 0.04), INPUT_SIZE)
        crops.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
    return normalised(crops), torch.from_numpy(data.identity[rows])


def embed(model, data, rows, jitter=0.01, seed=1):
    rng = np.random.default_rng(seed)
    model.eval()
    out = []
    with torch.no_grad():
        for part in np.array_split(rows, max(1, len(rows) // 64)):
            out.append(
                model(normalised([
                    facexlib_crop(data.image(r), jittered(data.all_landmarks[r], rng, jitter), INPUT_SIZE) for r in part
                ]))
            )
    return torch.cat(out)


def evaluate(model, data, count=1024, seed=1):
    rows = np.random.default_rng(seed).permutation(len(data))[:count]
    result = verification(embed(model, data, rows), data.identity[rows], data.style[rows])
    photos = np.flatnonzero(data.style == 0)[:count]
    result["photo_rank1"] = verification(embed(model, data, photos), data.identity[photos])["rank1"]
    return result


def main():
    parser = arguments(__doc__, steps=1200, batch=96, rate=1.5e-3, seed=90210)
    parser.add_argument("--pictures", type=int, default=4, help="pictures per identity in a batch")
    args = parser.parse_args()
    rng = prepare(args)
    data, heldout = renders(args, "train"), renders(args, "heldout")
    model = SecondRecogniser().to(memory_format=torch.channels_last)
    resume(model, args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, weight_decay=0.03)
    network = torch.compile(model) if args.compile else model
    progress = Progress(args, optimizer, refresh=data.refresh)
    for step in range(args.steps):
        progress.before(step)
        model.train()
        x, identity = batch(data, rng, args.batch // args.pictures, args.pictures)
        with torch.autocast("cpu", torch.bfloat16):
            features = network(x.contiguous(memory_format=torch.channels_last))
        loss = supervised_contrastive(features.float(), identity)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        progress.after(step, args.batch, loss=loss)
        if (step + 1) % 400 == 0:
            save(model, args.work / "second_recogniser.pt")
            print(evaluate(model, heldout, 512), flush=True)
    save(model, args.work / "second_recogniser.pt")
    print(evaluate(model, heldout))


if __name__ == "__main__":
    main()
