#!/usr/bin/env python3
"""Renders the example portraits: a dozen held-out people, photo style, 512 x 512, calm pose and light.

    python tools/mini/render/portraits.py --out examples/faces
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

FIRST = 3000
FEMALE = ("ada", "cleo", "eva", "gia", "ines", "kim", "maya", "olga", "rosa", "tara", "uma", "vera")
MALE = ("ben", "dan", "finn", "hugo", "jon", "lars", "nils", "omar", "paul", "sam", "theo", "yuri")
LIGHTS = ("soft light", "warm light", "soft light", "cold light")


def main():
    from render import picture, vocabulary

    parser = argparse.ArgumentParser(description="Render the example portraits.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--quality", type=int, default=88)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    names = {True: iter(MALE), False: iter(FEMALE)}
    for k in range(args.count):
        person = picture.person(FIRST + k)
        rng = np.random.default_rng([FIRST + k, 41])
        scene = picture.sample_scene(rng, style="photo", background=vocabulary.BACKGROUNDS[k % len(vocabulary.BACKGROUNDS)],
                                     expression=("neutral", "smiling")[k % 2], light=LIGHTS[k % 4], clothes=vocabulary.CLOTHES[(k * 3) % len(vocabulary.CLOTHES)])
        scene.yaw *= 0.6
        scene.pitch *= 0.6
        name = next(names[person.who.sex > 0.5])
        Image.fromarray(picture.render(person, scene, args.size)["image"]).save(args.out / f"{name}.jpg", quality=args.quality)
        print(f"{name}.jpg: identity {FIRST + k}")


if __name__ == "__main__":
    main()
