"""Trains the SCRFD-shaped detector on composed scenes, mostly portraits at the scale that the pipeline shows."""

import cv2
import numpy as np
import torch

from scenes import group, negative, scene
from scrfd import Scrfd, decode, loss
from training import Progress, arguments, prepare, renders, resume, save


def normalised(pictures):
    return (torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() - 127.5) / 128


def letterbox(image, side=640):
    scale = side / max(image.shape[:2])
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    out = np.zeros((side, side, 3), np.uint8)
    out[: size[1], : size[0]] = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    return out, scale


def detect(model, picture):
    with torch.no_grad():
        return decode(model(normalised([picture])), *picture.shape[:2])


def evaluate(model, collections, count=100, seed=1):
    """On held-out renders: recall, landmark error over the distance between the eyes, and false alarms."""
    rng = np.random.default_rng(seed)
    model.eval()
    out = {}
    for name, data in collections.items():
        found, errors, extra, overlap = 0, [], 0, []
        for row in rng.permutation(len(data))[:count]:
            picture, scale = letterbox(data.image(row))
            score, boxes, points = detect(model, picture)
            true, box = data.all_landmarks[row] * scale, data.all_bbox[row] * scale
            if len(score) == 0:
                continue
            largest = int((boxes[:, 2:] - boxes[:, :2]).prod(1).argmax())
            b = boxes[largest].numpy()
            inter = np.prod(np.clip(np.minimum(b[2:], box[2:]) - np.maximum(b[:2], box[:2]), 0, None))
            iou = inter / (np.prod(b[2:] - b[:2]) + np.prod(box[2:] - box[:2]) - inter)
            extra += len(score) - 1
            found += iou > 0.5
            overlap.append(iou)
            eyes = max(np.linalg.norm(true[1] - true[0]), 0.5 * np.linalg.norm(true[3] - true[0]))
            errors.append(np.linalg.norm(points[largest].numpy() - true, axis=1).mean() / eyes)
        n = min(count, len(data))
        out[name] = {
            "recall": found / n, "extra": extra / n, "iou": float(np.mean(overlap or [0])),
            "landmark_error": float(np.mean(errors or [9])), "landmark_error_p95": float(np.quantile(errors or [9], 0.95)),
        }
    data = next(iter(collections.values()))
    alarms = sum(len(detect(model, negative(data, 640, rng)[0])[0]) > 0 for _ in range(count // 2))
    hits = faces = wrong = 0
    for _ in range(count // 4):
        picture, boxes, _ = group(data, 640, rng, 40, 300)
        found = detect(model, picture)[1].numpy()
        faces += len(boxes)
        for box in boxes:
            inter = np.clip(np.minimum(found[:, 2:], box[2:]) - np.maximum(found[:, :2], box[:2]), 0, None).prod(1)
            union = (found[:, 2:] - found[:, :2]).prod(1) + np.prod(box[2:] - box[:2]) - inter
            hits += bool((inter / union > 0.5).any()) if len(found) else 0
        wrong += max(0, len(found) - len(boxes))
    out["negatives_with_alarm"] = alarms / (count // 2)
    out["group_recall"], out["group_extra_per_scene"] = hits / faces, wrong / (count // 4)
    return out


def batch(collections, rng, area):
    """Scenes of one random size, fewer of the larger sizes, so that every batch costs the same."""
    size = int(rng.choice([320, 448, 640], p=[0.2, 0.5, 0.3]))
    made = [scene(collections, size, rng) for _ in range(max(1, round(area * (320 / size) ** 2)))]
    x = normalised([m[0] for m in made]).contiguous(memory_format=torch.channels_last)
    return size, x, [torch.from_numpy(m[1]) for m in made], [torch.from_numpy(m[2]) for m in made]


def weighed(score, box, point):
    """The loss of its three parts."""
    return 2 * score + 2 * box + 8 * point


def norms(model):
    return [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def measure_norms(model, inputs):
    """Sets the batch norms' statistics to their plain average over `inputs`, batches of scenes."""
    for norm in norms(model):
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    with torch.no_grad():
        for x in inputs:
            with torch.autocast(x.device.type, torch.bfloat16):
                model.pyramid(x)


def main():
    parser = arguments(__doc__, steps=2400, batch=16, rate=4e-3, seed=31)
    parser.add_argument("--steady", action="store_true", help="measure the norms' statistics first and train with them fixed")
    args = parser.parse_args()
    rng = prepare(args)
    collections = [renders(args, "train")]
    if any((args.data / "large").glob("*.npz")):
        # The large renders may show held-out people too; those stay unseen.
        collections.append(training_rows(renders(args, "large")))
    model = Scrfd().to(memory_format=torch.channels_last)
    resume(model, args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, weight_decay=1e-3)
    progress = Progress(args, optimizer, refresh=collections[0].refresh)
    if args.steady:
        measure_norms(model, (batch(collections, rng, args.batch)[1] for _ in range(60)))
    for step in range(args.steps):
        progress.before(step)
        size, x, boxes, points = batch(collections, rng, args.batch)
        model.train()
        if args.steady:
            # A batch shows one kind of scene, so its own statistics are not those that the finished network uses.
            for norm in norms(model):
                norm.eval()
        with torch.autocast("cpu", torch.bfloat16):
            maps = model.pyramid(x)
        score, box, point = loss(maps, boxes, points, size, size)
        total = weighed(score, box, point)
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        progress.after(step, len(x), score=score, box=box, point=point)
        if (step + 1) % 200 == 0:
            save(model, args.work / "detector.pt")
    save(model, args.work / "detector.pt")
    print(evaluate(model, heldout_collections(args)))


class Subset:
    """Some rows of a collection, as a collection."""

    def __init__(self, data, rows):
        self.data, self.rows = data, rows
        self.all_landmarks, self.all_bbox = data.all_landmarks[rows], data.all_bbox[rows]

    def __len__(self):
        return len(self.rows)

    def image(self, row):
        return self.data.image(self.rows[row])

    def label(self, row):
        return self.data.label(self.rows[row])


def training_rows(data):
    return Subset(data, np.flatnonzero(data.identity < 3000))


def heldout_collections(args):
    out = {"heldout_128": renders(args, "heldout")}
    if any((args.data / "large").glob("*.npz")):
        large = renders(args, "large")
        rows = np.flatnonzero(large.identity >= 3000)
        if len(rows):
            out["heldout_large"] = Subset(large, rows)
    return out


if __name__ == "__main__":
    main()
