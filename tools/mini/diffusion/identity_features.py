"""Precomputes the identity condition of photo-style pictures: what the pipeline would read from each photo.

Alignment and parsing come from the renderer's exact labels (with a detector's jitter and a parser's rough edges), the
recogniser and the tower are the trained mini networks.

    python identity_features.py [--per-person 3]
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import common  # noqa: F401
import numpy as np
import torch
import torch.nn.functional as F
from common import CACHE, WORK

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "face"))
PHOTO = 0  # the style "photo"


class IdentityFeatures:
    """Features of one split: `rows` are indices into the split's pictures in shard order."""

    def __init__(self, split: str):
        folder = WORK / "identity" / split
        self.rows = np.load(folder / "rows.npy")
        self.identity = np.load(folder / "identity.npy")
        self.condition = np.load(folder / "condition.npy")
        self.hidden = np.load(folder / "hidden.npy", mmap_mode="r")
        order = np.argsort(self.identity, kind="stable")
        ids, first = np.unique(self.identity[order], return_index=True)
        self.of = dict(zip(ids.tolist(), np.split(order, first[1:])))

    def take(self, i):
        """condition [B,768] and five hidden states [B,65,192] of feature numbers i."""
        hidden = torch.from_numpy(np.stack([self.hidden[j] for j in i]).astype(np.float32))
        return torch.from_numpy(self.condition[i]), list(hidden.unbind(1))


def main():
    from data import Renders, arcface_crop, facexlib_crop, jittered
    from export import trained
    from iresnet import IResNet
    from train_tower import coarse, gray_face, normalised, tower

    a = argparse.ArgumentParser()
    a.add_argument("--face", type=Path, default=CACHE / "face")
    a.add_argument("--per-person", type=int, default=3)
    a.add_argument("--batch", type=int, default=32)
    a = a.parse_args()
    torch.set_num_threads(1)
    recogniser, eva = trained(IResNet(), a.face / "recogniser.pt"), trained(tower(), a.face / "tower.pt")
    rng = np.random.default_rng(3)
    for split in ("heldout", "train"):
        data = Renders(CACHE / "data" / split, WORK / "unpacked_faces")
        rows = []
        for person, own in data.rows_of.items():
            photos = [r for r in own if data.style[r] == PHOTO]
            rows += photos[: a.per_person] if split == "train" else photos
        rows = np.array(sorted(rows))
        conditions, hiddens = [], []
        for part in np.array_split(rows, max(1, len(rows) // a.batch)):
            faces, crops = [], []
            for r in part:
                points = jittered(data.all_landmarks[r], rng, 0.01)
                crop, labels = facexlib_crop(data.image(r), points, 128, data.label(r))
                faces.append(gray_face(crop, coarse(labels, rng) if rng.random() < 0.5 else labels))
                crops.append(arcface_crop(data.image(r), points))
            x = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float()
            with torch.no_grad():
                arc = recogniser((x - 127.5) / 127.5)
                cls, hidden = eva(normalised(faces))
            conditions.append(torch.cat([arc, F.normalize(cls, dim=-1)], -1).numpy())
            hiddens.append(torch.stack(hidden, 1).half().numpy())
        folder = WORK / "identity" / split
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "rows.npy", rows)
        np.save(folder / "identity.npy", data.identity[rows])
        np.save(folder / "condition.npy", np.concatenate(conditions).astype(np.float32))
        np.save(folder / "hidden.npy", np.concatenate(hiddens))
        print(split, len(rows), "photos of", len(set(data.identity[rows].tolist())), "people", flush=True)


if __name__ == "__main__":
    main()
