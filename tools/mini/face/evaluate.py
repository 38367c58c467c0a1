"""Figures of all face networks on the held-out people, each alone and chained as the pipeline chains them.

    python evaluate.py --data DATA --work WORK
"""

import argparse
import json
import pathlib

import numpy as np
import torch

import train_detector
import train_parser
import train_recogniser
import train_second
import train_tower
from identity import FaceModels
from training import renders, verification


def chained(models, data, rows):
    """The whole path: detect, align, parse, embed. Recognition by each embedding with detected landmarks alone."""
    found, first, second, cls = [], [], [], []
    for row in rows:
        image = data.image(row)
        face = models.find(image)
        if face is None:
            continue
        condition, _ = models.identity(image, face.points)
        found.append(row)
        first.append(condition[:512])
        cls.append(condition[512:])
        if models.second_recogniser is not None:
            second.append(models.second(image, face.points))
    if len(found) < 2:
        return {"found": len(found) / len(rows)}
    people, style = data.identity[found], data.style[found]
    out = {"found": len(found) / len(rows), "recogniser": verification(torch.stack(first), people, style)}
    out["tower"] = verification(torch.stack(cls), people, style)
    if second:
        out["second"] = verification(torch.stack(second), people, style)
    return out


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--data", type=pathlib.Path, required=True)
    parse.add_argument("--work", type=pathlib.Path, required=True)
    parse.add_argument("--count", type=int, default=768)
    args = parse.parse_args()
    torch.set_num_threads(1)
    data, models = renders(args, "heldout"), FaceModels(args.work)
    result = {
        "detector": train_detector.evaluate(models.detector, train_detector.heldout_collections(args)),
        "recogniser": train_recogniser.evaluate(models.recogniser, data, args.count),
        "parser": train_parser.evaluate(models.parser, data, args.count),
        "tower": train_tower.evaluate(models.tower, data, args.count),
    }
    if models.second_recogniser is not None:
        result["second"] = train_second.evaluate(models.second_recogniser, data, args.count)
    rows = np.random.default_rng(5).permutation(len(data))[: args.count]
    result["chained"] = chained(models, data, rows)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
