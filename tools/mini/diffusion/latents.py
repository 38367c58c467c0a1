"""Encoded pictures and their captions."""
from __future__ import annotations

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import sys
import time
from pathlib import Path

import numpy as np
import torch
from common import WORK

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from render.vocabulary import BACKGROUNDS, CLOTHES, EXPRESSIONS, LIGHTS, STYLES, caption  # noqa: E402

FIELDS = ("identity", "style", "background", "expression", "light", "clothes")

FAVOURED = 0.2  # the share of a batch that `favoured` draws anew


def keys(shard: Path, count: int) -> np.ndarray:
    """Numbers of a shard's pictures that stay the same however many shards are known: shard * 100000 + place."""
    return int(shard.stem.split("-")[1]) * 100_000 + np.arange(count)


def favoured(rng: np.random.Generator, rows: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """`rows` with a share of `FAVOURED` replaced by random `candidates` (of which there may be none)."""
    if not len(candidates):
        return rows
    return np.where(rng.random(len(rows)) < FAVOURED, rng.choice(candidates, len(rows)), rows)


class Latents:
    """The encoded shards of one split, normalised per channel to mean 0 and deviation 1."""

    def __init__(self, split: str, tokenizer, tokenizer_2):
        self.folder = WORK / "latents" / split
        self.tokenizers = (tokenizer, tokenizer_2)
        stats = torch.load(WORK / "latent_stats.pt", weights_only=True)
        self.mean, self.std = stats["mean"].view(1, 4, 1, 1), stats["std"].view(1, 4, 1, 1)
        self.known, self.parts, self.looked = [], [], 0.0
        self.z = np.zeros((0, 4, 16, 16), np.float16)
        self.fields = {}
        self.refresh()

    def refresh(self, every: float = 60.0) -> None:
        if time.time() - self.looked < every:
            return
        self.looked = time.time()
        new = [p for p in sorted(self.folder.glob("*.npz")) if p.name not in self.known]
        for p in new:
            with np.load(p) as d:
                self.parts.append({k: d[k] for k in d.files} | {"key": keys(p, len(d["latents"]))})
            self.known.append(p.name)
        if new:
            self.z = np.concatenate([p["latents"] for p in self.parts])
            self.key = np.concatenate([p["key"] for p in self.parts])
            self.mask = np.concatenate([p["person"] for p in self.parts])
            self.fields = {f: np.concatenate([p[f] for p in self.parts]).astype(np.int64) for f in FIELDS}

    def __len__(self) -> int:
        return len(self.z)

    def rows(self, key) -> np.ndarray:
        """The places of pictures with these keys."""
        order = np.argsort(self.key)
        return order[np.searchsorted(self.key[order], key)]

    def person(self, i) -> torch.Tensor:
        """How much of the person each latent cell shows: features whole, skin and hair in part, [B,1,16,16] in 0..1."""
        return torch.from_numpy(self.mask[i].astype(np.float32) / 255)[:, None]

    def normalise(self, z):
        return (z - self.mean) / self.std

    def denormalise(self, z):
        return z * self.std + self.mean

    def tokens(self, texts):
        return tuple(
            torch.tensor(t(list(texts), padding="max_length", max_length=77, truncation=True).input_ids) for t in self.tokenizers
        )

    def text(self, i: int, rng=None) -> str:
        f = self.fields
        return caption(
            STYLES[f["style"][i]], BACKGROUNDS[f["background"][i]], EXPRESSIONS[f["expression"][i]],
            LIGHTS[f["light"][i]], CLOTHES[f["clothes"][i]], rng,
        )

    def of_style(self, style: str) -> np.ndarray:
        """The places of pictures of this style; '' has none."""
        return np.flatnonzero(self.fields["style"] == STYLES.index(style)) if style else np.zeros(0, np.int64)

    def take(self, rng: np.random.Generator, count: int, drop: float = 0.0, indices=None):
        """Normalised latents [B,4,16,16], both token id tensors [B,77] and the indices; `drop` is the share of empty captions."""
        i = rng.integers(len(self), size=count) if indices is None else indices
        texts = ["" if rng.random() < drop else self.text(j, rng) for j in i]
        z = self.normalise(torch.from_numpy(self.z[i].astype(np.float32)))
        return (z, *self.tokens(texts), i)
