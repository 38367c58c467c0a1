#!/usr/bin/env python3
"""Renders a data set of synthetic people with exact ground truth.

    python tools/mini/dataset.py --out DIR --identities 0:3000 --pictures-per-identity 8 --size 128

Shards `shard-00000.npz` of `--shard-size` pictures hold images u8 [N,S,S,3] RGB, labels u8 [N,S,S] (19 classes in
CelebAMask order), landmarks f32 [N,5,2] (viewer's left eye, right eye, nose tip, left and right mouth corner), bbox f32
[N,4] (x0, y0, x1, y1 of the face), identity i32 [N], and the scene as indices into the lists of `render/vocabulary.py`:
style, background, expression, light, clothes i8 [N]. `shard-00000.captions.json` lists the captions of a shard and
`captions.json` those of all shards, written when the last shard is done. Coordinates count pixel centres from 0.

Identity i is the same person in every run; a picture depends on its identity, its number and `--seed` alone.
Identities 0..2999 are for training, 3000..3099 are kept for evaluation.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

DEFAULT_MIX = "photo=0.45,pencil sketch=0.11,oil painting=0.11,neon=0.11,comic=0.11,watercolor=0.11"


def parse_mix(text):
    """`name=weight,...` as a list of names and their probabilities."""
    from render import vocabulary

    names, weights = [], []
    for part in text.split(","):
        name, _, weight = part.partition("=")
        if name.strip() not in vocabulary.STYLES:
            sys.exit(f"--style-mix: unknown style {name.strip()!r}; styles are {', '.join(vocabulary.STYLES)}")
        names.append(name.strip())
        weights.append(float(weight or 1))
    weights = np.array(weights)
    return names, weights / weights.sum()


def order(first, last, per, seed):
    """All (identity, number) pairs: people in a random order in rounds, so that every shard shows many people."""
    ids = np.arange(first, last)
    pairs = []
    block = 125  # people per shard when a shard holds 1000 pictures of 8 each
    ids = np.random.default_rng([seed, 11]).permutation(ids)
    for s in range(0, len(ids), block):
        part = [(int(i), k) for i in ids[s : s + block] for k in range(per)]
        pairs += part
    return pairs


def one(identity, number, seed, size, names, weights, framing):
    """One picture: its arrays, the scene and the caption."""
    from render import picture, vocabulary

    rng = np.random.default_rng([seed, 23, identity, number])
    scene = picture.sample_scene(rng, style=names[int(rng.choice(len(names), p=weights))], framing=framing)
    result = picture.render(picture.person(identity), scene, size)
    text = vocabulary.caption(scene.style, scene.background, scene.expression, scene.light, scene.clothes, rng)
    return result, scene, text


def write_shard(out, index, pairs, args, names, weights):
    from render import vocabulary

    n, s = len(pairs), args.size
    data = {"images": np.empty((n, s, s, 3), np.uint8), "labels": np.empty((n, s, s), np.uint8), "landmarks": np.empty((n, 5, 2), np.float32),
            "bbox": np.empty((n, 4), np.float32), "identity": np.empty(n, np.int32)}
    lists = {"style": vocabulary.STYLES, "background": vocabulary.BACKGROUNDS, "expression": vocabulary.EXPRESSIONS,
             "light": vocabulary.LIGHTS, "clothes": vocabulary.CLOTHES}
    for name in lists:
        data[name] = np.empty(n, np.int8)
    captions = []
    for k, (identity, number) in enumerate(pairs):
        result, scene, text = one(identity, number, args.seed, s, names, weights, args.framing)
        data["images"][k], data["labels"][k] = result["image"], result["labels"]
        data["landmarks"][k], data["bbox"][k], data["identity"][k] = result["landmarks"], result["bbox"], identity
        for name, words in lists.items():
            data[name][k] = words.index(getattr(scene, name))
        captions.append(text)
    path = out / f"shard-{index:05d}.npz"
    part = out / f".part-{os.getpid()}.npz"
    np.savez(part, **data)
    (out / f"shard-{index:05d}.captions.json").write_text(json.dumps(captions))
    os.replace(part, path)  # a shard that can be seen is complete


def main():
    parser = argparse.ArgumentParser(description="Render a data set of synthetic people.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--identities", default="0:3000", help="first:last+1 identity number")
    parser.add_argument("--pictures-per-identity", type=int, default=8)
    parser.add_argument("--style-mix", default=DEFAULT_MIX, help="style=weight,... (default: %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="width and height in pixels")
    parser.add_argument("--framing", default="close", choices=("close", "wide"), help="how near the camera is (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-size", type=int, default=1000)
    parser.add_argument("--limit", type=int, default=0, help="stop after this many pictures (0: all)")
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="this process renders every N-th shard, from the I-th")
    args = parser.parse_args()
    import cv2

    cv2.setNumThreads(1)
    first, last = (int(x) for x in args.identities.split(":"))
    names, weights = parse_mix(args.style_mix)
    args.out.mkdir(parents=True, exist_ok=True)
    pairs = order(first, last, args.pictures_per_identity, args.seed)
    if args.limit:
        pairs = pairs[: args.limit]
    start, done = time.time(), 0
    shards = range(0, len(pairs), args.shard_size)
    for index in range(args.part[0], len(shards), args.part[1]):
        at = index * args.shard_size
        if (args.out / f"shard-{index:05d}.npz").exists():
            continue
        write_shard(args.out, index, pairs[at : at + args.shard_size], args, names, weights)
        done += len(pairs[at : at + args.shard_size])
        print(f"shard {index + 1}/{len(shards)}: {done / (time.time() - start):.1f} pictures/s", flush=True)
    texts = [args.out / f"shard-{index:05d}.captions.json" for index in range(len(shards))]
    if all(path.exists() for path in texts):
        captions = [text for path in texts for text in json.loads(path.read_text())]
        (args.out / "captions.json").write_text(json.dumps(captions))


if __name__ == "__main__":
    main()
