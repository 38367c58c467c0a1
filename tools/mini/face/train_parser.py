"""Trains the BiSeNet-shaped parser on aligned crops of all styles with the renderer's labels."""

import numpy as np
import torch
import torch.nn.functional as F

from bisenet import CLASSES, MEAN, STD, BiSeNet, enlarged_at
from data import WHITENED, facexlib_crop, jittered, photometric
from training import Progress, arguments, prepare, renders, resume, save

SIZE = 128


def normalised(crops):
    x = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def batch(data, rng, size):
    crops, labels = [], []
    for row in rng.integers(len(data), size=size):
        crop, label = facexlib_crop(data.image(row), jittered(data.all_landmarks[row], rng, 0.03), SIZE, data.label(row))
        if rng.random() < 0.5:
            # Mirrored: paired classes (brows, eyes, ears) change sides.
            swap = np.arange(256, dtype=np.uint8)
            swap[[2, 3, 4, 5, 7, 8]] = [3, 2, 5, 4, 8, 7]
            crop, label = crop[:, ::-1], swap[label[:, ::-1]]
        crops.append(photometric(np.ascontiguousarray(crop), rng))
        labels.append(label)
    return normalised(crops), torch.from_numpy(np.stack(labels).astype(np.int64))


def losses(model, x, labels, rng, weight):
    rows = torch.arange(int(rng.integers(2)), SIZE, 2)
    columns = torch.arange(int(rng.integers(2)), SIZE, 2)
    target = labels[:, rows][:, :, columns]
    with torch.autocast("cpu", torch.bfloat16):
        maps = model.maps(x)
    total = 0
    for index, one in enumerate(maps):
        logits = enlarged_at(one, SIZE, rows, columns)
        share = F.cross_entropy(logits, target, weight=weight) * (1.0 if index == 0 else 0.3)
        total = total + share
    return total


def evaluate(model, data, count=1024, seed=1):
    """Intersection over union per class, and of what PuLID keeps (neither background nor whitened)."""
    rng = np.random.default_rng(seed)
    confusion = np.zeros((CLASSES, CLASSES), np.int64)
    keep = np.zeros(2, np.int64)
    whitened = np.isin(np.arange(CLASSES), WHITENED)
    model.eval()
    with torch.no_grad():
        for rows in np.array_split(rng.permutation(len(data))[:count], max(1, count // 64)):
            pairs = [
                facexlib_crop(data.image(r), jittered(data.all_landmarks[r], rng, 0.01), SIZE, data.label(r)) for r in rows
            ]
            found = model(normalised([p[0] for p in pairs])).argmax(1).numpy()
            true = np.stack([p[1] for p in pairs]).astype(np.int64)
            confusion += np.bincount((true * CLASSES + found).ravel(), minlength=CLASSES**2).reshape(CLASSES, CLASSES)
            a, b = ~whitened[true], ~whitened[found]
            keep += [(a & b).sum(), (a | b).sum()]
    inter = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - inter
    present = confusion.sum(1) > 0
    iou = inter / np.maximum(union, 1)
    return {
        "mean_iou": float(iou[present].mean()),
        "pixel_accuracy": float(inter.sum() / confusion.sum()),
        "kept_iou": float(keep[0] / keep[1]),
        "iou": {int(c): round(float(iou[c]), 3) for c in np.flatnonzero(present)},
    }


def main():
    parser = arguments(__doc__, steps=1500, batch=48, rate=3e-3, seed=11)
    args = parser.parse_args()
    rng = prepare(args)
    data = renders(args, "train")
    model = BiSeNet().to(memory_format=torch.channels_last)
    resume(model, args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, weight_decay=1e-3)
    # Small parts count for more than their area.
    weight = torch.full((CLASSES,), 1.0)
    weight[[2, 3, 4, 5, 6, 9, 11, 12, 13, 15]] = 2.0
    progress = Progress(args, optimizer, refresh=data.refresh)
    for step in range(args.steps):
        progress.before(step)
        model.train()
        x, labels = batch(data, rng, args.batch)
        loss = losses(model, x.contiguous(memory_format=torch.channels_last), labels, rng, weight)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        progress.after(step, args.batch, loss=loss)
        if (step + 1) % 250 == 0:
            save(model, args.work / "parser.pt")
    save(model, args.work / "parser.pt")
    print(evaluate(model, renders(args, "heldout")))


if __name__ == "__main__":
    main()
