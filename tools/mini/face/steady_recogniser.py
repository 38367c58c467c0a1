"""Trains the recogniser further so that photographs disturb it less, without moving what it says of clean renders.

    python steady_recogniser.py --data DATA --work WORK --resume WORK/recogniser.pt [--steps 2500]

The adapter was trained on this recogniser's embeddings, so they have to stay where they are. The recogniser as it was is the
teacher: it sees a clean render by exact landmarks; the student sees the same face after what cameras and files do
(`../gpu/degradation.py`) by landmarks that are off, and must say what the teacher said, and what it says of the person's other
photos. Batch norms keep their statistics.
"""

import copy
import pathlib
import sys

import numpy as np
import torch
import torch.nn.functional as F

from data import arcface_crop, jittered
from iresnet import IResNet
from train_recogniser import SIZE, evaluate, normalised
from training import Progress, arguments, prepare, renders, save

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "gpu"))
from degradation import photographed  # noqa: E402

JITTER = 0.06  # of landmarks, in distances between the eyes: photographs' are that far off
PERSON = 0.4  # how much the mean over the person's photos counts in what is to be said
CLEAN = 0.2  # the share of crops that stay as rendered


def teacher_embeddings(teacher, data, rows, batch=64):
    """The teacher's embeddings of clean renders by exact landmarks, [rows, 512]."""
    out = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for part in np.array_split(rows, max(1, len(rows) // batch)):
            out.append(teacher(normalised([arcface_crop(data.image(r), data.all_landmarks[r], SIZE) for r in part])).float())
    return torch.cat(out)


def spoiled(images, rng):
    """Crops u8 [112,112,3] with a camera's and a file's losses, as the recogniser's input."""
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    n = len(x)
    strength = torch.from_numpy((rng.random(n) > CLEAN).astype(np.float32) * rng.uniform(0.6, 1.4, n).astype(np.float32))
    soft = torch.from_numpy(rng.random(n) < 0.3)
    return photographed(x, strength, soft) * 2 - 1


def main():
    parser = arguments(__doc__, steps=2500, batch=48, rate=5e-4, seed=22)
    args = parser.parse_args()
    if args.resume is None:
        parser.error("--resume: the recogniser to start from, which is also the teacher")
    rng = prepare(args)
    data, heldout = renders(args, "train"), renders(args, "heldout")
    teacher = IResNet().to(memory_format=torch.channels_last)
    teacher.load_state_dict(torch.load(args.resume, weights_only=True)["model"])
    teacher.eval().requires_grad_(False)
    model = copy.deepcopy(teacher).requires_grad_(True)
    photos = np.flatnonzero(data.style == 0)
    said = teacher_embeddings(teacher, data, photos)
    unit = F.normalize(said, dim=-1)
    people, place = np.unique(data.identity[photos], return_inverse=True)
    mean = torch.zeros(len(people), 512).index_add_(0, torch.from_numpy(place), unit)
    wanted = F.normalize((1 - PERSON) * unit + PERSON * F.normalize(mean, dim=-1)[place], dim=-1)
    print("before", evaluate(teacher, heldout, 512), flush=True)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=args.rate, weight_decay=0.0)
    progress = Progress(args, optimizer)
    for step in range(args.steps):
        progress.before(step)
        at = rng.integers(len(photos), size=args.batch)
        crops = [arcface_crop(data.image(photos[i]), jittered(data.all_landmarks[photos[i]], rng, JITTER * rng.random()), SIZE) for i in at]
        mirrored = rng.random(args.batch) < 0.3
        crops = [np.ascontiguousarray(c[:, ::-1]) if m else c for c, m in zip(crops, mirrored)]
        x = spoiled(crops, rng).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            found = model(x).float()
        apart = (1 - F.cosine_similarity(found, wanted[at], dim=-1)).mean()
        # PuLID takes the embedding as it is, not normalised: its length has to stay too.
        length = (found.norm(dim=-1) / said[at].norm(dim=-1) - 1).square().mean()
        optimizer.zero_grad()
        (apart + 0.3 * length).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        progress.after(step, args.batch, apart=apart, length=length)
        if (step + 1) % 500 == 0:
            save(model, args.work / "recogniser_steady.pt")
    save(model, args.work / "recogniser_steady.pt")
    rows = np.flatnonzero(heldout.style == 0)
    moved = F.cosine_similarity(teacher_embeddings(model, heldout, rows), teacher_embeddings(teacher, heldout, rows), dim=-1)
    print(f"clean photos of held-out people: cosine to what was said before {float(moved.mean()):.3f}", evaluate(model, heldout), flush=True)


if __name__ == "__main__":
    main()
