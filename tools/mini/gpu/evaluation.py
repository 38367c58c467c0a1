"""The model card's figures: 64 held-out people x 8 prompts, with and without identity, by the judge that no training saw.

A picture in which the detector finds no face counts as cosine 0 and as a wrong person.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from common import DEVICE, said, to_u8
from faces import MODELS
from networks import ROOT
from renders import tokens
from sampling import STEPS, sample
from watchers import BACKGROUNDS, STYLES, judge_input

sys.path.insert(0, str(ROOT / "tools" / "mini" / "face"))
from scrfd import decode  # noqa: E402

PROMPTS = (
    ("a photo of a person, smiling, in a garden", "photo", "garden"),
    ("a photo of a person, in a library, wearing a black suit", "photo", "library"),
    ("a photo of a person, surprised, at the beach", "photo", "beach"),
    ("a pencil sketch of a person, in an autumn forest", "pencil sketch", "autumn forest"),
    ("an oil painting of a person, sad, in a city street", "oil painting", "city street"),
    ("a neon picture of a person, under a night sky", "neon", "night sky"),
    ("a comic picture of a person, angry, in a garden, wearing a yellow raincoat", "comic", "garden"),
    ("a watercolor painting of a person, in the snow", "watercolor", "snow"),
)
TEXTS = [p[0] for p in PROMPTS]


class Detector:
    """The published detector on the CPU, several pictures at a time."""

    def __init__(self, path=MODELS / "antelopev2" / "scrfd_10g_bnkps.onnx", threads=8):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.pool = ThreadPoolExecutor(threads)

    def _find(self, picture):
        x = F.interpolate(torch.from_numpy(picture).permute(2, 0, 1)[None].float(), (640, 640), mode="bilinear", align_corners=False)
        x = (x.round() - 127.5) / 128
        score, boxes, points = decode(self.session.run(None, {"input.1": x.numpy()}), 640, 640, 0.5)
        if not len(score):
            return None
        return points[int((boxes[:, 2:] - boxes[:, :2]).prod(1).argmax())] * (picture.shape[0] / 640)

    def __call__(self, pictures: np.ndarray):
        """u8 [N,128,128,3] -> the largest face's points [5,2] or None, for each."""
        return list(self.pool.map(self._find, pictures))


def embedded(judge, pictures, points):
    """The judge's embeddings [N,256] of found faces; zeros elsewhere."""
    found = [i for i, p in enumerate(points) if p is not None]
    out = torch.zeros(len(points), 256, device=DEVICE)
    if found:
        at = torch.stack([points[i] for i in found]).to(DEVICE)
        out[found] = judge(judge_input(pictures[found].to(DEVICE), at)).float()
    return out


@torch.no_grad()
def photos_of(held, detector, judge, faces, limit):
    """Rows of one found photo of each person, the judge's embeddings and the identity conditions by the whole photo path."""
    rows, points = [], []
    for person in range(held.people):
        own = held.rows[person].unique()
        photo = own[held.style[own] == 0]
        for row, found in zip(photo, detector(held.images[photo].cpu().numpy()) if len(photo) else []):
            if found is not None:
                rows.append(int(row))
                points.append(found)
                break
        if len(rows) == limit:
            break
    at = torch.tensor(rows, device=DEVICE)
    condition, hidden = faces(held.images[at], torch.stack(points).to(DEVICE), 0)
    return at, embedded(judge, held.pictures(at), points), condition, hidden


@torch.no_grad()
def renders(held, coder, detector, judge, references, rows):
    """The share of held-out renders whose person the judge finds first: as they are, and through the VAE."""
    everything = torch.arange(held.count, device=DEVICE)
    known = torch.isin(held.identity[: held.count], held.identity[rows]) & ~torch.isin(everything, rows)
    left = everything[known]
    wanted = (held.identity[left][:, None] == held.identity[rows][None]).float().argmax(1)
    out = {}
    pictures = held.pictures(left)
    decoded = torch.cat([coder.decode(z.float()) for z in held.z[left].split(64)]).clamp(-1, 1)
    for name, x in (("true renders", pictures), ("through the VAE", decoded)):
        points = detector(to_u8(x))
        e = embedded(judge, x, points)
        right = ((e @ references.T).argmax(1) == wanted) & torch.tensor([p is not None for p in points], device=DEVICE)
        by_style = {s: round(float(right[held.style[left] == i].float().mean()), 3) for i, s in enumerate(STYLES) if (held.style[left] == i).any()}
        out[name] = {"first": round(float(right.float().mean()), 3), **by_style}
    out["VAE's mean difference"] = round(float((decoded - pictures).abs().mean()) / 2, 4)
    return out


@torch.no_grad()
def pictures_of(joint, tokenizers, condition, hidden, noise, guidance, steps, batch=128):
    """[N, prompts, 3, 128, 128]; without identity where `condition` is None."""
    ids = torch.from_numpy(np.stack([tokens(t, TEXTS) for t in tokenizers], 1)).to(DEVICE)
    n, p = noise.shape[:2]
    who = torch.arange(n, device=DEVICE).repeat_interleave(p)
    what = torch.arange(p, device=DEVICE).repeat(n)
    out = []
    for part in torch.arange(n * p, device=DEVICE).split(batch):
        identity = None
        if condition is not None:
            identity = (joint.identity(condition[who[part]], hidden[who[part]].unbind(1)), joint.nobody().expand(len(part), -1, -1))
        z = sample(joint.net, ids[what[part]], joint.empty, noise.flatten(0, 1)[part], steps, guidance, identity)
        out.append(joint.coder.decode(z).clamp(-1, 1))
    return torch.cat(out).unflatten(0, (n, p))


@torch.no_grad()
def measure(pictures, plain, detector, judge, attributes, references):
    n, p = pictures.shape[:2]
    flat = pictures.flatten(0, 1)
    style, background, features = attributes(flat)
    want_style = torch.tensor([STYLES.index(s) for _, s, _ in PROMPTS], device=DEVICE).repeat(n)
    want_background = torch.tensor([BACKGROUNDS.index(b) for _, _, b in PROMPTS], device=DEVICE).repeat(n)
    share = lambda x: round(float(x.float().mean()), 3)
    row = {"style right": share(style.argmax(1) == want_style), "background right": share(background.argmax(1) == want_background)}
    if references is None:
        return row
    _, _, other = attributes(plain.flatten(0, 1))
    small = [F.adaptive_avg_pool2d(x.flatten(0, 1), 32).flatten(1) for x in (pictures, plain)]
    small = [x - x.mean(1, keepdim=True) for x in small]
    row["feature similarity to without identity"] = share(F.cosine_similarity(features, other))
    row["picture correlation to without identity"] = share(F.cosine_similarity(*small))
    points = detector(to_u8(flat))
    found = torch.tensor([q is not None for q in points], device=DEVICE)
    cosine = (embedded(judge, flat, points) @ references.T).view(n, p, len(references))
    own = torch.stack([cosine[i, :, i] for i in range(n)])
    others = (cosine.sum(2) - own) / (len(references) - 1)
    first = torch.stack([cosine[i].argmax(1) == i for i in range(n)]) & found.view(n, p)
    row |= {"face found": share(found), "cosine to own photo": share(own), "where a face is found": share(own[found.view(n, p)]),
            "cosine to others": share(others), "first among all": share(first)}
    for i, (_, s, _) in enumerate(PROMPTS):
        row[f"first, {s} {i}"] = share(first[:, i])
    return row


def evaluate(joint, held, tokenizers, judge, attributes, people, guidance=2.4, steps=STEPS):
    detector = Detector()
    rows, references, condition, hidden = photos_of(held, detector, judge, joint.faces, people)
    report = {"people": len(rows), "renders": renders(held, joint.coder, detector, judge, references, rows)}
    said("renders:", report["renders"])
    noise = torch.randn(len(rows), len(TEXTS), *held.z.shape[1:], generator=torch.Generator().manual_seed(2024)).to(DEVICE)
    plain = pictures_of(joint, tokenizers, None, None, noise, guidance, steps)
    report["without identity"] = measure(plain, plain, detector, judge, attributes, None)
    said("without identity:", report["without identity"])
    pictures = pictures_of(joint, tokenizers, condition, hidden, noise, guidance, steps)
    report["with identity"] = measure(pictures, plain, detector, judge, attributes, references)
    said("with identity:", report["with identity"])
    return report
