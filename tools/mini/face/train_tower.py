"""Trains the EVA02-CLIP-shaped tower to encode identity and appearance from the parsed, gray face.

Losses: supervised contrastive on the class token's output over pictures of the same person in all styles; from the same
output the person's canonical portrait at 16 x 16; from the patch tokens after the second and the fifth sixth of the
depth the patch's own pixels and its parsing classes, so that the hidden states that PuLID reads keep local detail.
"""

import pathlib
import sys

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from data import WHITENED, facexlib_crop, jittered, photometric  # noqa: E402
from pulid_reference.eva_clip import EvaClipTower  # noqa: E402
from second_recogniser import supervised_contrastive  # noqa: E402
from training import Progress, arguments, prepare, renders, resume, save, verification  # noqa: E402

SIZE, PATCH, CROP = 112, 14, 128
GRID = SIZE // PATCH
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CANONICAL = 16
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
IS_WHITENED = np.isin(np.arange(256), WHITENED)


def tower():
    return EvaClipTower(SIZE, PATCH, 192, 6, 3, 512, 256, GRID)


class Readers(nn.Module):
    """Small readers of the tower's outputs; training only."""

    def __init__(self):
        super().__init__()
        self.canonical = nn.Sequential(nn.Linear(256, 384), nn.GELU(), nn.Linear(384, 3 * CANONICAL**2))
        self.local = nn.ModuleList([nn.Sequential(nn.LayerNorm(192), nn.Linear(192, 49 + 19)) for _ in range(2)])


def gray_face(crop, labels):
    """The crop with PuLID's treatment: whitened where `labels` say so, gray elsewhere; f32 [H,W] in 0..1."""
    gray = crop.astype(np.float32) @ LUMA / 255
    gray[IS_WHITENED[labels]] = 1.0
    return gray


def coarse(labels, rng):
    """Labels with the kept region's edge as rough as a parser's: rounded at an eighth of the resolution."""
    kept = (~IS_WHITENED[labels]).astype(np.float32)
    step = int(rng.choice([4, 8]))
    small = cv2.resize(kept, None, fx=1 / step, fy=1 / step, interpolation=cv2.INTER_AREA)
    rough = cv2.resize(small, labels.shape[::-1], interpolation=cv2.INTER_LINEAR) > rng.uniform(0.35, 0.65)
    # Class 1 and 0 stand for any kept and any whitened class here.
    return rough.astype(np.uint8)


def normalised(faces):
    """Gray faces [n][128,128] to the tower's input [n,3,112,112]: bicubic without antialias, CLIP's mean and deviation."""
    x = torch.from_numpy(np.stack(faces))[:, None]
    x = F.interpolate(x, (SIZE, SIZE), mode="bicubic", align_corners=False, antialias=False)
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def canonical_portraits(data):
    """Per identity its first photo-style portrait at 16 x 16 RGB on white, and which identities have one."""
    size = int(data.identity.max()) + 1
    portraits, known = np.zeros((size, 3 * CANONICAL**2), np.float32), np.zeros(size, bool)
    for row in np.flatnonzero((data.style == 0) & (data.expression == 0)):
        person = data.identity[row]
        if known[person]:
            continue
        crop, labels = facexlib_crop(data.image(row), data.all_landmarks[row], CROP, data.label(row))
        crop = crop.astype(np.float32) / 255
        crop[IS_WHITENED[labels]] = 1.0
        portraits[person] = cv2.resize(crop, (CANONICAL, CANONICAL), interpolation=cv2.INTER_AREA).reshape(-1)
        known[person] = True
    return portraits, known


def batch(data, rng, people, pictures):
    ids = rng.choice(np.fromiter(data.rows_of, np.int64), people, replace=False)
    rows = np.concatenate([rng.choice(data.rows_of[i], pictures, replace=len(data.rows_of[i]) < pictures) for i in ids])
    faces, classes = [], []
    for row in rows:
        crop, labels = facexlib_crop(
            photometric(data.image(row), rng, 0.6), jittered(data.all_landmarks[row], rng, 0.025), CROP, data.label(row)
        )
        if rng.random() < 0.5:
            crop, labels = crop[:, ::-1], labels[:, ::-1]
        used = coarse(labels, rng) if rng.random() < 0.5 else labels
        faces.append(gray_face(crop, used))
        classes.append(labels)
    x = normalised(faces)
    classes = torch.from_numpy(np.stack(classes).astype(np.int64))
    share = F.one_hot(classes, 19).reshape(-1, GRID, CROP // GRID, GRID, CROP // GRID, 19).float().mean((2, 4))
    return x, share.reshape(len(rows), GRID * GRID, 19), data.identity[rows]


def pixels(x):
    """Each patch's own gray pixels, halved: [B,64,49]."""
    gray = F.avg_pool2d(x.mean(1, keepdim=True), 2)
    return gray.unfold(2, 7, 7).unfold(3, 7, 7).reshape(len(x), GRID * GRID, 49)


def embed(model, data, rows, jitter=0.01, seed=1):
    rng = np.random.default_rng(seed)
    model.eval()
    out = []
    with torch.no_grad():
        for part in np.array_split(rows, max(1, len(rows) // 64)):
            faces = [
                gray_face(*facexlib_crop(data.image(r), jittered(data.all_landmarks[r], rng, jitter), CROP, data.label(r)))
                for r in part
            ]
            out.append(model(normalised(faces))[0])
    return torch.cat(out)


def evaluate(model, data, count=1024, seed=1):
    rows = np.random.default_rng(seed).permutation(len(data))[:count]
    return verification(embed(model, data, rows), data.identity[rows], data.style[rows])


def main():
    parser = arguments(__doc__, steps=1500, batch=96, rate=1e-3, seed=41)
    parser.add_argument("--pictures", type=int, default=4, help="pictures per identity in a batch")
    args = parser.parse_args()
    rng = prepare(args)
    data, heldout = renders(args, "train"), renders(args, "heldout")
    model, readers = tower(), Readers()
    resume(model, args)
    parameters = [*model.parameters(), *readers.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.rate, weight_decay=0.03, betas=(0.9, 0.98))
    portraits, known = canonical_portraits(data)
    middle = portraits[known].mean(0)
    deviation = portraits[known].std(0) + 0.02
    network = torch.compile(model) if args.compile else model
    progress = Progress(args, optimizer)
    for step in range(args.steps):
        progress.before(step)
        model.train()
        x, share, identity = batch(data, rng, args.batch // args.pictures, args.pictures)
        with torch.autocast("cpu", torch.bfloat16):
            cls, hidden = network(x)
            shown = readers.canonical(cls).float()
            local = [reader(hidden[index][:, 1:]).float() for reader, index in zip(readers.local, (1, 4))]
        contrast = supervised_contrastive(F.normalize(cls.float()), torch.from_numpy(identity))
        has = torch.from_numpy(known[identity])
        wanted = torch.from_numpy((portraits[identity] - middle) / deviation)
        canonical = (shown - wanted)[has].pow(2).mean() if has.any() else cls.sum() * 0
        own = pixels(x)
        pixel = sum((o[..., :49] - own).pow(2).mean() for o in local) / 2
        parsed = sum(-(share * o[..., 49:].log_softmax(-1)).sum(-1).mean() for o in local) / 2
        loss = contrast + canonical + 0.5 * pixel + 0.3 * parsed
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 2.0)
        optimizer.step()
        progress.after(step, args.batch, contrast=contrast, canonical=canonical, pixel=pixel, parsed=parsed)
        if (step + 1) % 400 == 0:
            save(model, args.work / "tower.pt")
            print(evaluate(model, heldout, 512), flush=True)
    save(model, args.work / "tower.pt")
    print(evaluate(model, heldout))


if __name__ == "__main__":
    main()
