"""Encodes every shard with the averaged VAE of the latest checkpoint; measures the latents' mean and deviation once.

    python encode_latents.py [--fresh]     (--fresh forgets latents of an older encoder)
"""
from __future__ import annotations

import argparse
import os
import shutil

import common  # noqa: F401
import numpy as np
import torch
from common import CACHE, WORK
from latents import FIELDS
from sampling import load_vae

FEATURES = (2, 3, 4, 5, 6, 10, 11, 12, 13)  # parsing classes: brows, eyes, glasses, nose, mouth, lips
SKIN = (1, 7, 8)
HAIR = (17,)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--fresh", action="store_true")
    a.add_argument("--batch", type=int, default=20)
    a.add_argument("--part", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="this process takes every N-th shard, from the I-th")
    a = a.parse_args()
    if a.fresh:
        shutil.rmtree(WORK / "latents", ignore_errors=True)
        (WORK / "latent_stats.pt").unlink(missing_ok=True)
    vae = load_vae()
    for split in ("train", "heldout"):
        target = WORK / "latents" / split
        target.mkdir(parents=True, exist_ok=True)
        for shard in sorted((CACHE / "data" / split).glob("*.npz"))[a.part[0] :: a.part[1]]:
            if (target / shard.name).exists():
                continue
            try:
                with np.load(shard) as d:
                    images, labels, fields = d["images"], d["labels"], {f: d[f] for f in FIELDS}
            except (OSError, ValueError, EOFError, KeyError):
                continue  # still being written
            out = []
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                for i in range(0, len(images), a.batch):
                    x = torch.from_numpy(images[i : i + a.batch]).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
                    out.append(vae.encode(x).latent_dist.mean.float())
            z = torch.cat(out)
            person = np.isin(labels, FEATURES) + 0.6 * np.isin(labels, SKIN) + 0.4 * np.isin(labels, HAIR)
            person = person.reshape(-1, 16, 8, 16, 8).mean((2, 4)) * 255
            stats = WORK / "latent_stats.pt"
            if not stats.exists():
                torch.save(dict(mean=z.mean((0, 2, 3)), std=z.std((0, 2, 3))), stats)
                print("latent mean", z.mean((0, 2, 3)).tolist(), "deviation", z.std((0, 2, 3)).tolist())
            temporary = target / f"{shard.stem}.tmp"
            with open(temporary, "wb") as f:
                np.savez(f, latents=z.numpy().astype(np.float16), person=person.astype(np.uint8), **fields)
            os.replace(temporary, target / shard.name)
            print(split, shard.name, len(z), flush=True)


if __name__ == "__main__":
    main()
