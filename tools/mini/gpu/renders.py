"""Renders of synthetic people, made by processes beside the training and kept on the device.

    python renders.py --out DIR --worker I N --seconds S      one renderer of N

A renderer writes shards of twelve people's eight pictures each. Held-out people come first, so that they are there when
the training ends. Identity numbers as in `dataset.py`: 3000 to 3063 are held out, all others train.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import sys
import threading
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

HELD_OUT = range(3000, 3064)
PEOPLE, PICTURES = 12, 8  # of a shard
CAPTIONS = 3  # phrasings kept of each picture's caption

# How much of the person a pixel shows. Brows, eyes, glasses, nose, mouth and lips tell people apart.
FEATURES, FACE_AND_HAIR = (2, 3, 4, 5, 6, 10, 11, 12, 13), (1, 7, 8, 17)


def blocks():
    """People by shards: (split, identities), held-out people first, training people without end."""
    for first in range(HELD_OUT.start, HELD_OUT.stop, PEOPLE // 3):
        yield "heldout", range(first, min(first + PEOPLE // 3, HELD_OUT.stop))
    first = 0
    while True:
        people = range(first, first + PEOPLE)
        first += PEOPLE
        if not set(people) & set(range(HELD_OUT.start, HELD_OUT.start + 100)):
            yield "train", people


def render(out: Path, worker: int, workers: int, seconds: float, seed: int = 0) -> None:
    import cv2
    import dataset
    from render import vocabulary

    cv2.setNumThreads(1)
    os.nice(5)
    names, weights = dataset.parse_mix(dataset.DEFAULT_MIX)
    lists = {"style": vocabulary.STYLES, "background": vocabulary.BACKGROUNDS}
    end = time.time() + seconds
    for index, (split, people) in enumerate(blocks()):
        if index % workers != worker:
            continue
        if time.time() > end:
            return
        pairs = [(person, k) for person in people for k in range(PICTURES)]
        data = {"images": [], "labels": [], "landmarks": [], "bbox": [], "identity": [], "style": [], "background": []}
        captions = []
        for person, k in pairs:
            result, scene, _ = dataset.one(person, k, seed, 128, names, weights, "close")
            data["images"].append(result["image"])
            data["labels"].append(result["labels"])
            data["landmarks"].append(result["landmarks"])
            data["bbox"].append(result["bbox"])
            data["identity"].append(person)
            for name, words in lists.items():
                data[name].append(words.index(getattr(scene, name)))
            rng = np.random.default_rng([seed, 31, person, k])
            told = (scene.style, scene.background, scene.expression, scene.light, scene.clothes)
            captions.append([vocabulary.caption(*told, rng) for _ in range(CAPTIONS)])
        folder = out / split
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".part-{index}.npz"
        np.savez(part, captions=json.dumps(captions), **{k: np.asarray(v) for k, v in data.items()})
        os.replace(part, folder / f"shard-{index:05d}.npz")  # a shard that can be seen is complete


class Renderers:
    """The processes, ended with `stop` or by their own time."""

    def __init__(self, out: Path, workers: int, seconds: float):
        import subprocess

        threads = {name: "1" for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        self.processes = [
            subprocess.Popen(
                [sys.executable, __file__, "--out", str(out), "--worker", str(i), str(workers), "--seconds", str(seconds)],
                env={**os.environ, **threads},
            )
            for i in range(workers)
        ]

    @property
    def running(self) -> bool:
        """Whether some of them still render."""
        return any(p.poll() is None for p in self.processes)

    def stop(self) -> None:
        for p in self.processes:
            p.terminate()


class Reader(threading.Thread):
    """Reads finished shards of a folder and tokenises their captions, on a thread of its own."""

    def __init__(self, folder: Path, tokenizers, left_out=()):
        super().__init__(daemon=True)
        self.folder, self.tokenizers = folder, tokenizers
        self.known, self.queue, self.running = set(left_out), queue.Queue(maxsize=64), True
        self.start()

    def run(self):
        while self.running:
            new = [p for p in sorted(self.folder.glob("shard-*.npz")) if p.name not in self.known]
            for path in new:
                self.known.add(path.name)
                with np.load(path) as d:
                    shard = {k: d[k] for k in d.files if k != "captions"}
                    texts = [t for phrasings in json.loads(str(d["captions"])) for t in phrasings]
                shard["ids"] = np.stack([tokens(t, texts) for t in self.tokenizers], 1).reshape(-1, CAPTIONS, 2, 77)
                self.queue.put(shard)
            if not new:
                time.sleep(0.3)

    def waiting(self, most: int = 4):
        """At most so many shards of those that have been read since, without waiting."""
        for _ in range(most):
            if self.queue.empty():
                return
            yield self.queue.get()


def tokens(tokenizer, texts) -> np.ndarray:
    """Token ids i16 [N,77]."""
    return np.asarray(tokenizer(list(texts), padding="max_length", max_length=77, truncation=True).input_ids, np.int16)


class Store:
    """All pictures of one split on the device, and what the networks make of them.

    images u8 [N,128,128,3], labels u8 [N,128,128], landmarks f32 [N,5,2], ids i16 [N,3,2,77], identity, style, background.
    Photos (style 0) also have `slot`, their place among the identity conditions. `table` [people,8] lists each person's
    photos by slot, `photos` [people] counts them; `person` [N] is a picture's row there.
    """

    def __init__(self, device, capacity: int, latent: int):
        import torch

        self.torch, self.device, self.capacity, self.count, self.latent = torch, device, capacity, 0, latent
        make = lambda *shape, dtype: torch.zeros(capacity, *shape, dtype=dtype, device=device)
        self.images, self.labels = make(128, 128, 3, dtype=torch.uint8), make(128, 128, dtype=torch.uint8)
        self.landmarks = make(5, 2, dtype=torch.float32)
        self.ids = make(CAPTIONS, 2, 77, dtype=torch.int16)
        self.identity, self.person, self.slot = (make(dtype=torch.int64) for _ in range(3))
        self.style, self.background = make(dtype=torch.int64), make(dtype=torch.int64)
        self.focus = make(1, latent, latent, dtype=torch.float16)
        self.z = make(4, latent, latent, dtype=torch.float16)
        self.encoded = 0
        share = capacity * 6 // 10
        self.condition = torch.zeros(share, 768, device=device)
        self.hidden = torch.zeros(share, 5, 65, 192, dtype=torch.float16, device=device)
        self.slots = 0
        people = capacity // 4 + 8
        self.table = torch.zeros(people, PICTURES, dtype=torch.int64, device=device)
        self.photos = torch.zeros(people, dtype=torch.int64, device=device)
        self.rows = torch.zeros(people, PICTURES, dtype=torch.int64, device=device)
        self.people = 0
        weight = torch.zeros(256, device=device)
        weight[list(FACE_AND_HAIR)] = 0.5
        weight[list(FEATURES)] = 1.0
        self.weight = weight

    def add(self, shard, faces) -> None:
        """Takes in a shard; `faces(images, labels, landmarks)` gives the condition and hidden states of its photos."""
        torch = self.torch
        n = len(shard["images"])
        if self.count + n > self.capacity:
            return
        at = slice(self.count, self.count + n)
        put = lambda to, name: to[at].copy_(torch.from_numpy(np.ascontiguousarray(shard[name])).to(self.device))
        put(self.images, "images"), put(self.labels, "labels"), put(self.landmarks, "landmarks"), put(self.ids, "ids")
        put(self.identity, "identity"), put(self.style, "style"), put(self.background, "background")
        mask = self.weight[self.labels[at].long()][:, None]
        self.focus[at] = torch.nn.functional.adaptive_avg_pool2d(mask, self.latent).half()
        photo = np.flatnonzero(shard["style"] == 0)
        if len(photo):
            rows = torch.from_numpy(photo).to(self.device) + self.count
            condition, hidden = faces(self.images[rows], self.landmarks[rows])
            slots = slice(self.slots, self.slots + len(photo))
            self.condition[slots], self.hidden[slots] = condition, hidden.half()
            self.slot[rows] = torch.arange(self.slots, self.slots + len(photo), device=self.device)
        for who in np.unique(shard["identity"]):
            own = np.flatnonzero(shard["identity"] == who)
            places = [self.slots + int(np.searchsorted(photo, r)) for r in own if shard["style"][r] == 0]
            self.person[torch.from_numpy(own).to(self.device) + self.count] = self.people
            self.rows[self.people] = torch.from_numpy(np.resize(own, PICTURES)).to(self.device) + self.count
            self.photos[self.people] = len(places)
            if places:
                self.table[self.people, : len(places)] = torch.tensor(places, device=self.device)
            self.people += 1
        self.slots += len(photo)
        self.count += n

    def pictures(self, rows):
        """[B,3,128,128] in -1..1."""
        return self.images[rows].permute(0, 3, 1, 2).float().div_(127.5).sub_(1)

    def other_photo(self, rows):
        """Condition [B,768] and hidden states 5 x [B,65,192] of another photo of the same person, where there is one."""
        torch = self.torch
        person = self.person[rows]
        count = self.photos[person].clamp(min=1)
        table = self.table[person]
        own = (table == self.slot[rows][:, None]) & (torch.arange(PICTURES, device=self.device) < count[:, None])
        mine = (self.style[rows] == 0) & own.any(1)
        draw = torch.rand(len(rows), device=self.device)
        among = torch.where(mine, (count - 1).clamp(min=1), count)
        step = (draw * among).long()
        place = torch.where(mine, (own.long().argmax(1) + 1 + step) % count, step)
        slot = table.gather(1, place[:, None])[:, 0]
        return self.condition[slot], list(self.hidden[slot].float().unbind(1))


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--out", type=Path, required=True)
    a.add_argument("--worker", type=int, nargs=2, default=(0, 1))
    a.add_argument("--seconds", type=float, default=60)
    a = a.parse_args()
    render(a.out, *a.worker, a.seconds)


if __name__ == "__main__":
    main()
