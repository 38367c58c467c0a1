"""Paths, shard reading, picture sheets shared by the trainers of the mini diffusion family."""
from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers are processes, see parallel.py
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

CACHE = Path(os.environ.get("PULID_MINI_CACHE", Path.home() / ".cache" / "pulid-mini"))
REPOSITORY = Path(__file__).resolve().parents[3]
MODELS = REPOSITORY / "models" / "mini"
WORK = CACHE / "diffusion"
FIELDS = ("labels", "landmarks", "bbox", "identity", "style", "background", "expression", "light", "clothes")


class Shards:
    """All shards of a folder; pictures are memory-mapped, so that workers share them. `refresh` finds new shards."""

    def __init__(self, folder: Path, labels: bool = False, landmarks: bool = False):
        self.folder, self.with_labels, self.with_landmarks = Path(folder), labels, landmarks
        self.store = WORK / "unpacked" / self.folder.name
        self.store.mkdir(parents=True, exist_ok=True)
        self.images, self.labels, self.landmarks, self.known, self.sizes, self.looked = [], [], [], [], [], 0.0
        self.refresh()

    def _unpack(self, shard: Path, field: str) -> np.ndarray:
        target = self.store / f"{shard.stem}.{field}.npy"
        if not target.exists() or target.stat().st_mtime < shard.stat().st_mtime:
            temporary = self.store / f"{shard.stem}.{field}.{os.getpid()}.tmp.npy"
            with np.load(shard) as data:
                np.save(temporary, data[field])
            os.replace(temporary, target)
        return np.load(target, mmap_mode="r")

    def refresh(self, every: float = 60.0) -> None:
        if time.time() - self.looked < every:
            return
        self.looked = time.time()
        for shard in sorted(self.folder.glob("*.npz")):
            if shard.name in self.known:
                continue
            try:
                images = self._unpack(shard, "images")
                labels = self._unpack(shard, "labels") if self.with_labels else None
                landmarks = self._unpack(shard, "landmarks") if self.with_landmarks else None
            except (OSError, ValueError, EOFError, KeyError):
                continue  # still being written
            self.known.append(shard.name)
            self.images.append(images)
            self.labels.append(labels)
            self.landmarks.append(landmarks)
            self.sizes.append(len(images))

    def __len__(self) -> int:
        return sum(self.sizes)

    def take(self, rng: np.random.Generator, count: int):
        """`count` random pictures [B,3,128,128] in [-1,1] and labels [B,128,128] (or None)."""
        return self.take_with_landmarks(rng, count)[:2]

    def take_with_landmarks(self, rng: np.random.Generator, count: int):
        """The same, and landmarks [B,5,2] in pixels (or None)."""
        bounds = np.cumsum(self.sizes)
        pictures, labels, points = [], [], []
        for i in rng.integers(bounds[-1], size=count):
            s = int(np.searchsorted(bounds, i, side="right"))
            j = int(i - (bounds[s] - self.sizes[s]))
            pictures.append(self.images[s][j])
            if self.with_labels:
                labels.append(self.labels[s][j])
            if self.with_landmarks:
                points.append(self.landmarks[s][j])
        x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        labels = torch.from_numpy(np.stack(labels)).long() if self.with_labels else None
        return x, labels, np.stack(points) if self.with_landmarks else None


def load_fields(folder: Path) -> tuple[np.ndarray, dict[str, np.ndarray], list[str]]:
    """Every shard of a folder in name order: images, the small fields, the captions (where the folder has them)."""
    images, fields, captions = [], {}, []
    for shard in sorted(Path(folder).glob("*.npz")):
        with np.load(shard) as data:
            images.append(data["images"])
            for name in FIELDS:
                if name in data:
                    fields.setdefault(name, []).append(data[name])
        words = shard.with_name(shard.stem + ".captions.json")
        if words.exists():
            captions.extend(json.loads(words.read_text()))
    return np.concatenate(images), {k: np.concatenate(v) for k, v in fields.items()}, captions


def to_u8(x: torch.Tensor) -> np.ndarray:
    """[B,3,H,W] in [-1,1] -> u8 [B,H,W,3]."""
    return x.float().clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def sheet(pictures: np.ndarray, columns: int, path: Path, scale: int = 1) -> None:
    """Writes u8 [N,H,W,3] as a grid."""
    n, h, w, _ = pictures.shape
    rows = -(-n // columns)
    grid = np.zeros((rows * h, columns * w, 3), np.uint8)
    for i, p in enumerate(pictures):
        r, c = divmod(i, columns)
        grid[r * h : (r + 1) * h, c * w : (c + 1) * w] = p
    image = Image.fromarray(grid)
    if scale != 1:
        image = image.resize((grid.shape[1] * scale, grid.shape[0] * scale), Image.NEAREST)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
