"""Trains the recogniser on, so that it says of a disturbed picture what it says of the person.

    python steady_recogniser.py --data DIR --work DIR --resume recogniser.pt --steps 1500

The recogniser of `train_recogniser.py` saw renders under gentle light: on photographs, harder lit, sharper and compressed,
its embeddings of one person lie apart. Here the checkpoint `--resume` is the teacher. Its embeddings of undisturbed pictures, mixed
with the mean over the person's photos, are what the student learns to say of pictures as `gpu/degradation.py` disturbs
them. So embeddings keep their meaning, and an adapter that was trained on the teacher's reads the student's as well. A
contrastive loss beside it keeps people apart. Norms keep their statistics: they are the teacher's.
"""

import pathlib
import sys

import numpy as np
import torch
import torch.nn.functional as F

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "gpu"))

from data import arcface_crop, jittered
from degradation import blur, photographed
from iresnet import IResNet
from second_recogniser import supervised_contrastive
from training import Progress, arguments, prepare, renders, resume, save, verification
from train_recogniser import SIZE, embed, evaluate, normalised

PHOTO = 0  # the style "photo"
PICTURES = 4  # of each person in a batch
# What the detector's landmarks are off by on photographs, as deviations: each by itself and all together, in distances between
# the eyes; in size, as a logarithm; in radians.
EACH, SHIFT, GROWTH, TURN = 0.04, 0.1, 0.1, 0.06
# How often `photographed` disturbs, at most. Wholly disturbed pictures lose what colours of skin and hair tell of a person: trained on
# those alone, the network finds photographs of different people too like each other.
HARDEST = 0.8


@torch.no_grad()
def targets(teacher, data, person):
    """The teacher's embedding of every picture, mixed with its person's mean over photos by the share `person`; of unit length, [N,512]."""
    teacher.eval()
    own = torch.empty(len(data), 512)
    for rows in np.array_split(np.arange(len(data)), max(1, len(data) // 64)):
        crops = [arcface_crop(data.image(r), data.all_landmarks[r], SIZE) for r in rows]
        own[rows] = F.normalize(teacher(normalised(crops)))
    mixed = own.clone()
    for rows in data.rows_of.values():
        photos = rows[data.style[rows] == PHOTO]
        mean = F.normalize(own[photos if len(photos) else rows].mean(0), dim=0)
        mixed[rows] = F.normalize((1 - person) * own[rows] + person * mean)
    return mixed


def sharpened(x, there):
    """As a camera's sharpening, and detail that no render has: the difference to a blurred picture, enlarged; bool [B,1,1,1]."""
    amount = torch.empty(len(x), 1, 1, 1).uniform_(0.3, 1.5)
    return torch.where(there, (x + amount * (x - blur(x, torch.full((len(x), 1, 1, 1), 1.0)))).clamp(0, 1), x)


def lit_from_a_side(x, there):
    """Brightness that changes smoothly over the face, as no render's light does: a field of 3 x 3 values, enlarged; bool [B,1,1,1]."""
    field = F.interpolate(torch.randn(len(x), 1, 3, 3) * 0.35, x.shape[-2:], mode="bicubic", align_corners=True)
    return torch.where(there, (x * field.exp()).clamp(0, 1), x)


def disturbed(pictures, rng):
    """u8 [S,S,3] renders as photographs might show them, [B,3,S,S] in 0..1; three of ten remain as they are."""
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    n = len(x)
    often = lambda share: torch.from_numpy(rng.random((n, 1, 1, 1)) < share)
    untouched = often(0.1)  # at least
    y = lit_from_a_side(sharpened(x, often(0.3)), often(0.25))
    y = photographed(y, torch.from_numpy(rng.random(n).astype(np.float32) * HARDEST), torch.zeros(n, dtype=torch.bool))
    return torch.where(untouched, x, y)


def misplaced(landmarks, rng):
    """Landmarks as the detector may place them on a photograph, [5,2]."""
    centre = landmarks.mean(0)
    angle, size = rng.normal(0, TURN), np.exp(rng.normal(0, GROWTH))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * size
    shift = rng.normal(0, SHIFT, 2) * np.linalg.norm(landmarks[1] - landmarks[0])
    return jittered(((landmarks - centre) @ turn.T + centre + shift).astype(np.float32), rng, EACH)


def disturbed_crops(data, rows, rng):
    """Disturbed pictures, cut out by misplaced landmarks, u8 [112,112,3] each."""
    pictures = (disturbed([data.image(r) for r in rows], rng) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [arcface_crop(picture, misplaced(data.all_landmarks[r], rng), SIZE) for r, picture in zip(rows, pictures)]


def batch(data, rng, people):
    rows = data.rows_of_people(rng, people, PICTURES)
    crops = [np.ascontiguousarray(c[:, ::-1]) if rng.random() < 0.5 else c for c in disturbed_crops(data, rows, rng)]
    return normalised(crops), torch.from_numpy(rows)


def disturbed_embeddings(model, data, rows, seed=1):
    """Embeddings of disturbed pictures, the same for every model."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model.eval()
    out = []
    with torch.no_grad():
        for part in np.array_split(rows, max(1, len(rows) // 64)):
            out.append(model(normalised(disturbed_crops(data, part, rng))))
    return torch.cat(out)


def report(model, heldout, wanted):
    """Verification on held-out people, plain and disturbed, and how near the embeddings stayed to the teacher's."""
    photos = np.flatnonzero(heldout.style == PHOTO)
    state = torch.random.get_rng_state()
    hard = verification(disturbed_embeddings(model, heldout, photos), heldout.identity[photos])
    torch.random.set_rng_state(state)
    kept = F.cosine_similarity(embed(model, heldout, photos, jitter=0.0), wanted[photos], dim=-1).mean()
    print("plain", evaluate(model, heldout, 512), flush=True)
    print("disturbed photos", hard, f"cosine to the teacher's {float(kept):.3f}", flush=True)


def main():
    parser = arguments(__doc__, steps=1500, batch=64, rate=6e-4, seed=31)
    parser.add_argument("--teacher", type=pathlib.Path, help="the teacher's checkpoint, should training begin at another one")
    parser.add_argument("--person", type=float, default=0.6, help="share of the person's mean in what is to be said")
    parser.add_argument("--contrast", type=float, default=0.3, help="weight of the contrastive loss")
    args = parser.parse_args()
    if args.resume is None:
        parser.error("--resume names the teacher")
    rng = prepare(args)
    data, heldout = renders(args, "train"), renders(args, "heldout")
    model = IResNet()
    resume(model, args)
    teacher = model
    if args.teacher is not None:
        teacher = IResNet()
        teacher.load_state_dict(torch.load(args.teacher, weights_only=True)["model"])
    wanted, kept = targets(teacher, data, args.person), targets(teacher, heldout, 0.0)
    report(model, heldout, kept)
    model.dropout.p = 0.0
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=args.rate, weight_decay=0.02)
    network = torch.compile(model) if args.compile else model
    progress = Progress(args, optimizer)
    for step in range(args.steps):
        progress.before(step)
        model.eval()
        x, rows = batch(data, rng, args.batch // PICTURES)
        with torch.autocast("cpu", torch.bfloat16):
            features = network(x.contiguous())  # in channels_last torch 2.15 writes past its memory in the backward pass
        features = F.normalize(features.float())
        apart = 1 - (features * wanted[rows]).sum(-1).mean()
        contrast = supervised_contrastive(features, torch.from_numpy(data.identity[rows.numpy()]))
        loss = apart + args.contrast * contrast
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        progress.after(step, args.batch, apart=apart, contrast=contrast)
        if (step + 1) % 250 == 0 or step + 1 == args.steps:
            save(model, args.work / "recogniser.pt")
            report(model, heldout, kept)


if __name__ == "__main__":
    main()
