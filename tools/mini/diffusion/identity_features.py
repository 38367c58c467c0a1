"""Precomputes the identity condition of photo-style pictures: what the pipeline would read from each photo.

Alignment and parsing come from the renderer's exact labels (with a detector's jitter and a parser's rough edges), the
recogniser and the tower are the trained mini networks.

    python identity_features.py     (again, whenever there are new shards)
"""
from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import common  # noqa: F401
import numpy as np
import torch
import torch.nn.functional as F
from common import CACHE, WORK

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "face"))
PHOTO = 0  # the style "photo"


class IdentityFeatures:
    """Features of one split, shard by shard; `key` numbers the pictures as `Latents` does. `refresh` finds new shards."""

    def __init__(self, split: str):
        self.folder = WORK / "identity" / split
        self.known, self.parts, self.looked = [], [], 0.0
        self.refresh()

    def refresh(self, every: float = 60.0) -> None:
        if time.time() - self.looked < every:
            return
        self.looked = time.time()
        new = [p for p in sorted(self.folder.glob("*.npz")) if p.name not in self.known]
        for p in new:
            self.known.append(p.name)
            with np.load(p) as d:
                self.parts.append((d["key"], d["identity"], d["condition"], np.load(p.with_suffix(".npy"), mmap_mode="r")))
        if not new:
            return
        self.key, self.identity, self.condition = (np.concatenate([part[i] for part in self.parts]) for i in range(3))
        self.starts = np.cumsum([0] + [len(part[0]) for part in self.parts])
        order = np.argsort(self.identity, kind="stable")
        ids, first = np.unique(self.identity[order], return_index=True)
        self.of = dict(zip(ids.tolist(), np.split(order, first[1:])))

    def __len__(self) -> int:
        return len(self.key)

    def other(self, rng: np.random.Generator, person: int, key: int) -> int:
        """A feature number of this person, of another picture than `key` where there is one."""
        choices = self.of[person]
        different = choices[self.key[choices] != key]
        return int(rng.choice(different if len(different) else choices))

    def _hidden(self, i: int):
        part = int(np.searchsorted(self.starts, i, side="right")) - 1
        return self.parts[part][3][i - self.starts[part]]

    def take(self, i):
        """condition [B,768] and five hidden states [B,65,192] of feature numbers i."""
        hidden = torch.from_numpy(np.stack([self._hidden(j) for j in i]).astype(np.float32))
        return torch.from_numpy(self.condition[i]), list(hidden.unbind(1))


def main():
    from data import Renders, arcface_crop, facexlib_crop, jittered
    from export import trained
    from iresnet import IResNet
    from latents import keys
    from train_tower import coarse, gray_face, normalised, tower

    a = argparse.ArgumentParser()
    a.add_argument("--face", type=Path, default=CACHE / "face")
    a.add_argument("--batch", type=int, default=32)
    a.add_argument("--part", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="this process takes every N-th shard, from the I-th")
    a = a.parse_args()
    torch.set_num_threads(1)
    recogniser, eva = trained(IResNet(), a.face / "recogniser.pt"), trained(tower(), a.face / "tower.pt")
    for split in ("heldout", "train"):
        data = Renders(CACHE / "data" / split, WORK / "unpacked_faces")
        folder = WORK / "identity" / split
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(a.part[0], len(data.names), a.part[1]):
            path = folder / data.names[index]
            if path.exists():
                continue
            rng = np.random.default_rng([3, index])
            first, end = data.starts[index : index + 2]
            rows = first + np.flatnonzero(data.style[first:end] == PHOTO)
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
            np.save(path.with_suffix(".npy"), np.concatenate(hiddens))
            temporary = path.with_suffix(".tmp")
            with open(temporary, "wb") as f:
                np.savez(
                    f, key=keys(path, end - first)[rows - first], identity=data.identity[rows],
                    condition=np.concatenate(conditions).astype(np.float32),
                )
            os.replace(temporary, path)  # a shard that can be seen is complete
            print(split, path.name, len(rows), "photos", flush=True)


if __name__ == "__main__":
    main()
