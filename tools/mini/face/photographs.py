"""Prints, and draws, the faces that detectors find in photographs, surest first: a look by hand at what renders cannot show.

    python photographs.py PHOTOS... [--detector FILE.onnx ...] [--draw DIR]

PHOTOS are files or folders; several detectors are shown one after the other, without `--detector` the published one. No photograph lies in
this repository. Free ones ship in packages of PyPI: `skimage/data/astronaut.png` in scikit-image (NASA; the same folder's pictures without
people must give no face), `tests/test_images` in the source archive of face-recognition, `mpl-data/sample_data/grace_hopper.jpg` in matplotlib.
"""

import argparse
import pathlib

import cv2
import numpy as np
import onnxruntime

from scrfd import decode
from train_detector import letterbox

PUBLISHED = pathlib.Path(__file__).resolve().parents[3] / "models/mini/antelopev2/scrfd_10g_bnkps.onnx"
KINDS = (".jpg", ".jpeg", ".png", ".webp")
COLOURS = ((255, 64, 64), (64, 200, 64), (64, 128, 255), (255, 200, 0))


def photographs(paths):
    """Files of `paths` and of the folders among them, by name."""
    for path in paths:
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in KINDS) if path.is_dir() else [path]
        yield from inside


def read(path):
    """u8 [H,W,3] RGB; None with a word of why where it cannot be read."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if image is None:
        print(f"{path}: not a picture that can be read")
    return image


def faces(session, image):
    """Scores [n], boxes [n,4] and points [n,5,2] in pixels of the photo, as the pipeline letterboxes it."""
    picture, scale = letterbox(image)
    x = np.ascontiguousarray(((picture.astype(np.float32) - 127.5) / 128).transpose(2, 0, 1)[None])
    score, boxes, points = decode(session.run(None, {"input.1": x}), *picture.shape[:2])
    return score.numpy(), boxes.numpy() / scale, points.numpy() / scale


def draw(image, found, colour):
    width = max(1, round(max(image.shape[:2]) / 300))
    for score, box, points in zip(*found):
        a, b = (tuple(int(v) for v in corner) for corner in (box[:2], box[2:]))
        cv2.rectangle(image, a, b, colour, width)
        cv2.putText(image, f"{score:.2f}", (a[0], max(a[1], 12)), cv2.FONT_HERSHEY_SIMPLEX, 0.4 * width, colour, width)
        for x, y in points:
            cv2.circle(image, (int(x), int(y)), 2 * width, colour, -1)


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("photos", type=pathlib.Path, nargs="+", metavar="PHOTOS")
    parse.add_argument("--detector", type=pathlib.Path, nargs="+", default=[PUBLISHED], metavar="FILE.onnx")
    parse.add_argument("--draw", type=pathlib.Path, metavar="DIR", help="also write each photo with its boxes, a colour for each detector")
    args = parse.parse_args()
    for path in (*args.photos, *args.detector):
        if not path.exists():
            parse.error(f"{path} does not exist")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(str(p), options, providers=["CPUExecutionProvider"]) for p in args.detector]
    totals = [0] * len(sessions)
    for path in photographs(args.photos):
        image = read(path)
        if image is None:
            continue
        print(f"{path.name}  {image.shape[1]} x {image.shape[0]}")
        drawn = image.copy()
        for index, session in enumerate(sessions):
            found = faces(session, image)
            totals[index] += len(found[0])
            text = "; ".join(f"{s:.2f} [{' '.join(f'{v:.0f}' for v in b)}]" for s, b, _ in zip(*found))
            print(f"    {args.detector[index]}: {len(found[0])} {text}")
            draw(drawn, found, COLOURS[index % len(COLOURS)])
        if args.draw:
            args.draw.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(args.draw / f"{path.stem}.jpg"), cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))
    for file, total in zip(args.detector, totals):
        print(f"{file}: {total} faces in all")


if __name__ == "__main__":
    main()
