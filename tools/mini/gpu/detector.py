#!/usr/bin/env python3
"""Trains the face detector further on scenes composed on the GPU, beside the other training, from the published weights.

    python tools/mini/gpu/detector.py --data DATA --out OUT --seconds 240           reads DATA/train and DATA/heldout as the renderers fill them
    python tools/mini/gpu/detector.py --data DATA --out OUT --tiny                  a rehearsal on a CPU, two minutes
    python tools/mini/face/export.py --detector OUT/detector.safetensors --models models/mini --only detector

Writes OUT/detector.safetensors (f32, before norms are folded, 1.4 MB), OUT/detector.json (figures of the published and the new detector on
scenes of held-out people) and OUT/detector_scenes.jpg. Losses and assignment are those of `../face/train_detector.py`. Expected on a GPU: below
10 GB of its memory with batches of 32, one core and a half.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "face")]

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from common import DEVICE, Budget, autocast, load, said, sheet  # noqa: E402
from composition import KINDS, Batch, Composer, Pictures, photographs  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from scrfd import Scrfd, decode, iou, padded_loss, published  # noqa: E402
from train_detector import measure_norms, norms, weighed  # noqa: E402

PUBLISHED = HERE.parents[2] / "models" / "mini" / "antelopev2" / "scrfd_10g_bnkps.onnx"
DECAY_FROM = 0.55  # part of the time after which the rate falls
BINS = (20, 48, 96, 192, 700)  # sizes of faces in the figures, in pixels


def save(model, path: Path) -> None:
    """A checkpoint in single precision: norms' small variances are out of half precision's range. Written whole or not at all."""
    state = {k: v.detach().float().contiguous().cpu() for k, v in model.state_dict().items() if v.is_floating_point()}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file(state, part)
    os.replace(part, path)


def spread_norms(model, inputs) -> None:
    """Gives norms that begin as the identity the statistics of `inputs` without changing what the network computes.

    A file's norms are folded into its convolutions. To train with batch statistics, each norm takes its input's deviation for its weight
    and moves its bias by the input's mean.
    """
    before = [(norm.weight / (norm.running_var + norm.eps).sqrt(), norm.bias, norm.running_mean) for norm in norms(model)]
    # Measured in eval mode, so that each norm sees what the published network makes.
    sums = [[0.0, 0.0, 0] for _ in before]

    def watch(index):
        def hook(_, inputs):
            x, total = inputs[0].float(), sums[index]
            total[0], total[1], total[2] = total[0] + x.mean((0, 2, 3)), total[1] + x.square().mean((0, 2, 3)), total[2] + 1

        return hook

    hooks = [norm.register_forward_pre_hook(watch(i)) for i, norm in enumerate(norms(model))]
    model.eval()
    with torch.no_grad():
        for x in inputs:
            model.pyramid(x)
        for hook in hooks:
            hook.remove()
        for norm, (scale, bias, centre), (mean, square, count) in zip(norms(model), before, sums):
            mean, var = mean / count, (square / count - (mean / count).square()).clamp(min=1e-6)
            norm.bias.copy_(bias + (mean - centre) * scale)
            norm.weight.copy_(scale * (var + norm.eps).sqrt())
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(var)


class Average:
    """The exponential average of a network's weights, with a short memory at first."""

    def __init__(self, model, keep: float):
        self.model, self.keep, self.steps = copy.deepcopy(model).requires_grad_(False), keep, 0

    @torch.no_grad()
    def take(self, model):
        self.steps += 1
        keep = min(self.keep, self.steps / (self.steps + 10))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - keep)


@torch.no_grad()
def found(model, batch: Batch):
    """Scores, boxes and points on the host, of each scene."""
    model.eval()
    x = batch.normalised()
    return [decode([o.float().cpu() for o in model(x[i : i + 1])], *x.shape[2:]) for i in range(len(x))]


def figures(model, scenes) -> dict:
    """Of a detector on `scenes`, a list of batches: recall (intersection over union of one half) by size, false alarms, landmarks' error."""
    hits, faces = np.zeros(len(BINS) - 1, int), np.zeros(len(BINS) - 1, int)
    alarms, pictures, errors = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0), []
    recall, chosen = {k: [0, 0] for k in KINDS if k != "negative"}, [0, 0]
    for batch in scenes:
        for index, (score, boxes, points) in enumerate(found(model, batch)):
            kind, n = batch.kinds[index], int(batch.count[index])
            pictures[kind] += 1
            right = torch.zeros(len(score), dtype=torch.bool)
            for true, marks in zip(batch.boxes[index, :n].cpu(), batch.points[index, :n].cpu()):
                size = float((true[2:] - true[:2]).max())
                bin_ = int(np.clip(np.digitize(size, BINS) - 1, 0, len(BINS) - 2))
                overlaps = iou(true[None], boxes)[0] if len(score) else torch.zeros(0)
                hit = bool((overlaps > 0.5).any())
                right |= overlaps > 0.3
                hits[bin_] += hit
                faces[bin_] += 1
                recall[kind][0] += hit
                recall[kind][1] += 1
                if hit:
                    marks = marks.view(5, 2)
                    eyes = max(float((marks[1] - marks[0]).norm()), 0.5 * float((marks[3] - marks[0]).norm()))
                    errors.append(float((points[int(overlaps.argmax())] - marks).norm(dim=1).mean()) / eyes)
                if kind in ("plain", "portrait"):  # the pipeline takes the largest face
                    chosen[0] += len(score) > 0 and bool(overlaps[int((boxes[:, 2:] - boxes[:, :2]).prod(1).argmax())] > 0.5)
                    chosen[1] += 1
            alarms[kind] += int((~right).sum())
    return {
        "recall": {k: round(a / max(b, 1), 4) for k, (a, b) in recall.items()},
        "recall_by_size": {f"{a}-{b}": round(int(h) / max(int(f), 1), 4) for a, b, h, f in zip(BINS, BINS[1:], hits, faces)},
        "largest_is_the_face": round(chosen[0] / max(chosen[1], 1), 4),
        "alarms_per_scene": {k: round(alarms[k] / pictures[k], 4) for k in KINDS if pictures[k]},
        "landmark_error": round(float(np.mean(errors)), 4) if errors else None,
        "scenes": sum(pictures.values()), "faces": int(faces.sum()),
    }


def show(batch: Batch, path: Path, count: int = 12) -> None:
    """A sheet of scenes with their boxes and points."""
    drawn = []
    for picture, boxes, points, n in zip(batch.pictures[:count], batch.boxes, batch.points, batch.count):
        image = np.ascontiguousarray((picture.permute(1, 2, 0) * 255).byte().cpu().numpy())
        for box, marks in zip(boxes[:n].int().tolist(), points[:n].int().tolist()):
            cv2.rectangle(image, box[:2], box[2:], (255, 0, 0), 2)
            for k in range(0, 10, 2):
                cv2.circle(image, marks[k : k + 2], 3, (0, 255, 0), -1)
        drawn.append(cv2.resize(image, (320, 320), interpolation=cv2.INTER_AREA))
    sheet(np.stack(drawn), 4, path)


def train(model, composer: Composer, a, refresh) -> Scrfd:
    """Trains `model` for `a.seconds`; answers the averaged network with its norms measured anew."""
    rng = np.random.default_rng(a.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=a.rate, weight_decay=1e-3, fused=DEVICE.type == "cuda")
    average, budget, steps, looked = Average(model, 0.998), Budget(a.seconds), 0, time.time()
    sums, told = torch.zeros(3, device=DEVICE), 0
    while not budget.over:
        part = budget.part
        rate = a.rate * min(1.0, (steps + 1) / 50) * min(1.0, (1 - part) / (1 - DECAY_FROM))
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = composer.batch(a.batch, rng)
        model.train()
        if a.steady:
            for norm in norms(model):
                norm.eval()
        with autocast():
            maps = model.pyramid(batch.normalised())
        losses = padded_loss(maps, batch.boxes, batch.points, batch.count, composer.size, composer.size)
        optimizer.zero_grad()
        weighed(*losses).backward()
        size = torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        if bool(torch.isfinite(size)):
            optimizer.step()
            average.take(model)
        sums += torch.stack([l.detach() for l in losses])
        steps += 1
        if a.pace:
            time.sleep(max(0.0, steps / a.pace - budget.part * budget.seconds))
        if time.time() - looked > 2:
            refresh()
            looked = time.time()
        if steps % a.every == 0:
            score, box, point = (sums / (steps - told)).tolist()
            told = steps
            sums.zero_()
            memory = torch.cuda.max_memory_allocated() / 2**30 if DEVICE.type == "cuda" else 0
            said(f"detector step {steps}  score {score:.4f}  box {box:.4f}  points {point:.4f}  rate {rate:.1e}  {composer.data.count} renders  "
                 f"{steps / max(budget.part * budget.seconds, 1e-6):.1f} steps/s  {memory:.1f} GiB")
            # What is there should the run be ended early; its norms are the last batches'.
            for own, other in zip(average.model.buffers(), model.buffers()):
                own.copy_(other)
            save(average.model, a.out / "detector.safetensors")
    said(f"detector: {steps} steps, {steps * a.batch} scenes")
    if not a.steady:
        measure_norms(average.model, (composer.batch(a.batch, rng).normalised() for _ in range(a.measure)))
    return average.model


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, default=Path("/tmp/pulid-mini-data"), help="folder with train/ and heldout/, which may still be filled")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--seconds", type=float, default=240, help="of training, without start and figures")
    p.add_argument("--photos", type=Path, help="folder of JPEGs without people, for backgrounds")
    p.add_argument("--from", dest="start", type=Path, default=PUBLISHED, help="an ONNX file or an earlier detector.safetensors")
    p.add_argument("--size", type=int, default=640, help="of scenes; the pipeline's is 640")
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--pace", type=float, default=0, help="steps a second at most, so that other training keeps the device (0: no limit)")
    p.add_argument("--steady", action="store_true", help="norms keep the statistics measured first, as batches of few scenes need")
    p.add_argument("--rate", type=float, default=3e-3)
    p.add_argument("--seed", type=int, default=71)
    p.add_argument("--first", type=int, default=800, help="renders to wait for before the training begins")
    p.add_argument("--wait", type=float, default=180, help="seconds to wait for them at most")
    p.add_argument("--capacity", type=int, default=40_000, help="renders on the device, 64 KiB each")
    p.add_argument("--scenes", type=int, default=96, help="held-out scenes of each kind, for the figures")
    p.add_argument("--tiny", action="store_true")
    a = p.parse_args()
    a.every, a.measure = 100, 60
    if a.tiny:
        a.batch, a.first, a.scenes, a.every, a.capacity, a.seconds = 4, 90, 8, 20, 1000, min(a.seconds, 90)
        a.size, a.rate, a.steady = 320, a.rate / 6, True
    a.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(a.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    data, held = Pictures(a.data / "train", DEVICE, a.capacity), Pictures(a.data / "heldout", DEVICE, 520)

    def refresh():
        held.refresh()
        return data.refresh()

    waited = Budget(a.wait)
    while refresh() < a.first or held.count == 0:
        if waited.over:
            sys.exit(f"{a.data} holds {data.count} renders to train with and {held.count} held out after {a.wait:.0f} s; {a.first} and one are needed")
        time.sleep(0.3)
    photos = photographs(a.photos, DEVICE) if a.photos else None
    composer = Composer(data, a.size, photos)
    said(f"detector: {data.count} renders, {held.count} held out, {0 if photos is None else len(photos)} photographs without people")

    if a.start.suffix == ".onnx":
        model = published(a.start).to(DEVICE, memory_format=torch.channels_last)
        rng = np.random.default_rng(1)
        spread_norms(model, (composer.batch(a.batch, rng).normalised() for _ in range(20)))
    else:
        model = Scrfd().to(DEVICE, memory_format=torch.channels_last)
        if not load(model, a.start):
            sys.exit(f"{a.start} is missing")
    show(composer.batch(4 if a.tiny else 12, np.random.default_rng(2)), a.out / "detector_scenes.jpg")
    trained = train(model, composer, a, refresh)
    save(trained, a.out / "detector.safetensors")

    refresh()
    torch.manual_seed(5)
    rng, judge = np.random.default_rng(5), Composer(held, a.size, None)
    scenes = [judge.batch(8, rng, kind) for kind in KINDS for _ in range(max(1, a.scenes // 8))]
    report = {"published": figures(published(PUBLISHED).to(DEVICE), scenes), "new": figures(trained, scenes)}
    (a.out / "detector.json").write_text(json.dumps(report, indent=2) + "\n")
    said(json.dumps(report))


if __name__ == "__main__":
    main()
