"""Goldens of the steps between a photo and the networks: alignment, cropping, resizing, detection, masking.

Witnesses: scikit-image, OpenCV and PyTorch; SCRFD's decoding is written anew from insightface's published algorithm.
"""

import itertools
import math
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import cv2
import numpy
import torch
import torch.nn.functional as F
from common import deterministic, save_tensors, versions, write_json
from skimage.transform import SimilarityTransform

HERE = pathlib.Path(__file__).resolve().parent
SEED = 7000
ARCFACE = numpy.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
FACEXLIB = numpy.array(
    [
        [192.98138, 239.94708],
        [318.90277, 240.1936],
        [256.63416, 314.01935],
        [201.26117, 371.41043],
        [313.08905, 371.15118],
    ]
)
FACEXLIB_BORDER = (135, 133, 132)


def face_landmarks(random, template, scale, degrees, shift, noise) -> numpy.ndarray:
    """Landmarks of a face that the template's transform would have to undo."""
    angle = math.radians(degrees)
    turn = scale * numpy.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    points = (template - template.mean(axis=0)) @ turn.T + numpy.array(shift)
    return points + noise * random.standard_normal(points.shape)


def least_median(points: numpy.ndarray, template: numpy.ndarray) -> float:
    """Smallest median squared error over all pairs of landmarks, which OpenCV searches at random."""
    best = math.inf
    source, target = (p[:, 0] + 1j * p[:, 1] for p in (points, template))
    for i, j in itertools.combinations(range(len(points)), 2):
        turn = (target[j] - target[i]) / (source[j] - source[i])
        error = numpy.abs(turn * (source - source[i]) + target[i] - target) ** 2
        best = min(best, float(numpy.median(error)))
    return best


def similarity(random) -> None:
    cases = []
    for name, scale, degrees, shift, noise in [
        ("upright", 1.0, 0.0, (60.0, 70.0), 0.4),
        ("large-turned", 5.3, 24.0, (512.0, 400.0), 3.0),
        ("small-turned", 0.35, -41.0, (30.0, 28.0), 0.3),
        ("upside-down", 2.0, 178.0, (200.0, 150.0), 1.0),
        ("exact", 1.7, 12.0, (140.0, 90.0), 0.0),
        ("strong-noise", 1.5, 5.0, (100.0, 100.0), 9.0),
    ]:
        points = face_landmarks(random, ARCFACE, scale, degrees, shift, noise)
        fit = SimilarityTransform.from_estimate(points, ARCFACE)
        cases.append({"name": name, "landmarks": points.tolist(), "matrix": fit.params[:2].tolist()})
    mirrored = face_landmarks(random, ARCFACE, 1.2, 3.0, (90.0, 80.0), 0.5) * [-1, 1] + [300, 0]
    fit = SimilarityTransform.from_estimate(mirrored, ARCFACE)
    cases.append({"name": "mirrored", "landmarks": mirrored.tolist(), "matrix": fit.params[:2].tolist()})
    value = {
        "template": ARCFACE.tolist(),
        "cases": cases,
        "versions": versions(),
        "note": "Least-squares similarity, landmarks to template; matrix [2, 3] maps photo to crop.",
    }
    write_json(HERE / "similarity.json", value)

    robust = []
    for name, size, scale, degrees, shift, noise, outlier in [
        ("upright", 512, 0.8, 2.0, (300.0, 320.0), 1.5, 0.0),
        ("turned", 512, 0.4, -18.0, (150.0, 120.0), 0.8, 0.0),
        ("small-crop", 128, 1.1, 9.0, (80.0, 90.0), 0.7, 0.0),
        ("outlier", 512, 0.7, 6.0, (250.0, 260.0), 0.6, 40.0),
        ("slight-outlier", 512, 0.7, -7.0, (240.0, 230.0), 0.2, 5.0),
        ("exact", 512, 0.6, 15.0, (200.0, 210.0), 0.0, 0.0),
    ]:
        template = FACEXLIB * (size / 512)
        points = face_landmarks(random, template, scale, degrees, shift, noise)
        points[2, 0] += outlier
        matrix, inliers = cv2.estimateAffinePartial2D(points, template, method=cv2.LMEDS)
        mapped = points @ matrix[:, :2].T + matrix[:, 2]
        plain = SimilarityTransform.from_estimate(points, template).params[:2]
        robust.append(
            {
                "name": name,
                "size": size,
                "landmarks": points.tolist(),
                "matrix": matrix.tolist(),
                "inliers": inliers[:, 0].astype(bool).tolist(),
                "median_squared_error": float(numpy.median(((mapped - template) ** 2).sum(axis=1))),
                "least_median_of_pairs": least_median(points, template),
                "distance_to_least_squares": float(numpy.abs(matrix - plain).max()),
            }
        )
        print("LMEDS", name, robust[-1]["inliers"], round(robust[-1]["distance_to_least_squares"], 5))
    value = {
        "template_512": FACEXLIB.tolist(),
        "cases": robust,
        "versions": versions(),
        "note": "cv2.estimateAffinePartial2D(landmarks, template * size / 512, method=LMEDS).",
    }
    write_json(HERE / "robust_similarity.json", value)


def picture(random, height: int, width: int) -> numpy.ndarray:
    """A smooth coloured picture with some grain, uint8 [H, W, 3]."""
    coarse = random.uniform(0, 255, (5, 4, 3)).astype(numpy.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return numpy.clip(smooth + 6 * random.standard_normal((height, width, 3)), 0, 255).round().astype(numpy.uint8)


def exact_warp(image: numpy.ndarray, matrix: numpy.ndarray, size: int, border) -> numpy.ndarray:
    """Bilinear warp in float64 with a constant border, float64 [size, size, 3]."""
    full = numpy.vstack([matrix, [0, 0, 1]])
    inverse = numpy.linalg.inv(full)[:2]
    y, x = numpy.mgrid[:size, :size].astype(numpy.float64)
    source = inverse @ numpy.stack([x.ravel(), y.ravel(), numpy.ones(size * size)])
    left, top = numpy.floor(source).astype(int)
    fx, fy = source[0] - left, source[1] - top
    out = numpy.zeros((size * size, 3))
    for dy, dx, weight in ((0, 0, (1 - fx) * (1 - fy)), (0, 1, fx * (1 - fy)), (1, 0, (1 - fx) * fy), (1, 1, fx * fy)):
        row, column = top + dy, left + dx
        inside = (row >= 0) & (row < image.shape[0]) & (column >= 0) & (column < image.shape[1])
        value = numpy.tile(numpy.array(border, dtype=numpy.float64), (size * size, 1))
        value[inside] = image[row[inside], column[inside]]
        out += weight[:, None] * value
    return out.reshape(size, size, 3)


def crops(random) -> None:
    tensors, cases = {}, []
    for index, (name, source, size, scale, degrees, border) in enumerate(
        [
            ("arcface-inside", (60, 52), 28, 0.7, 10.0, (0, 0, 0)),
            ("arcface-over-the-edge", (40, 48), 28, 1.2, -25.0, (0, 0, 0)),
            ("facexlib-over-the-edge", (44, 36), 32, 1.0, 30.0, FACEXLIB_BORDER),
            ("enlarging", (24, 20), 32, 0.3, 5.0, FACEXLIB_BORDER),
        ]
    ):
        image = picture(random, *source)
        template = ARCFACE * (size / 112)
        points = face_landmarks(random, template, scale, degrees, (source[1] / 2, source[0] / 2), 0.2)
        matrix = SimilarityTransform.from_estimate(points, template).params[:2]
        warped = cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderValue=border)
        exact = exact_warp(image, matrix, size, border)
        difference = float(numpy.abs(warped - exact).max())
        assert difference < 12, (name, difference)
        tensors |= {f"image_{index}": image, f"crop_{index}": warped, f"exact_{index}": exact}
        cases.append(
            {
                "name": name,
                "image": f"image_{index}",
                "matrix": matrix.tolist(),
                "size": size,
                "border": list(border),
                "crop": f"crop_{index}",
                "exact": f"exact_{index}",
                "largest_difference": difference,
                "mean_difference": float(numpy.abs(warped - exact).mean()),
            }
        )
        print("warp", name, "OpenCV differs from exact bilinear by at most", round(difference, 2))
    save_tensors(HERE / "crops.safetensors", tensors)
    note = (
        "cv2.warpAffine, bilinear, uint8 [H, W, 3]; `exact` is the same in float64. OpenCV 4, unlike 5, rounds "
        "positions to 1/32 pixel; channels in the order of `border`."
    )
    write_json(HERE / "crops.json", {"cases": cases, "versions": versions(), "note": note})


def resizes(random) -> None:
    tensors, cases = {}, []
    for index, (height, width, out) in enumerate(
        [(32, 32, (21, 21)), (16, 16, (21, 21)), (20, 14, (9, 11)), (8, 8, (8, 8))]
    ):
        image = torch.from_numpy(random.random((1, 3, height, width), dtype=numpy.float32))
        tensors[f"bicubic_in_{index}"] = image
        tensors[f"bicubic_out_{index}"] = F.interpolate(
            image, out, mode="bicubic", align_corners=False, antialias=False
        )
        cases.append({"kind": "bicubic", "in": f"bicubic_in_{index}", "out": f"bicubic_out_{index}", "size": out})
    for kind, flag in (("bilinear", cv2.INTER_LINEAR), ("lanczos4", cv2.INTER_LANCZOS4)):
        for index, (height, width, out) in enumerate([(48, 40, (32, 26)), (31, 45, (20, 29)), (20, 20, (32, 32))]):
            image = picture(random, height, width)
            resized = cv2.resize(image, (out[1], out[0]), interpolation=flag)
            tensors |= {f"{kind}_in_{index}": image, f"{kind}_out_{index}": resized}
            cases.append({"kind": kind, "in": f"{kind}_in_{index}", "out": f"{kind}_out_{index}", "size": out})
    save_tensors(HERE / "resize.safetensors", tensors)
    note = (
        "bicubic: torch F.interpolate, align_corners False, no antialias, float32 NCHW. bilinear, lanczos4: "
        "cv2.resize of uint8 [H, W, 3], which rounds its weights; allow one step of 255. size is (height, width)."
    )
    write_json(HERE / "resize.json", {"cases": cases, "versions": versions(), "note": note})


def keep_best(boxes: numpy.ndarray, scores: numpy.ndarray, threshold: float) -> list[int]:
    """Greedy non-maximum suppression; sides count one pixel more than their difference."""
    order = list(numpy.argsort(-scores, kind="stable"))
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    area = sides[:, 0] * sides[:, 1]
    kept = []
    while order:
        best = order.pop(0)
        kept.append(best)
        rest = []
        for other in order:
            low = numpy.maximum(boxes[best, :2], boxes[other, :2])
            high = numpy.minimum(boxes[best, 2:], boxes[other, 2:])
            inter = numpy.prod(numpy.maximum(0, high - low + 1))
            if inter / (area[best] + area[other] - inter) <= threshold:
                rest.append(other)
        order = rest
    return kept


def detections(random) -> None:
    """Nine network outputs in a network-sized canvas, and the faces they mean in the photo's pixels."""
    tensors, cases = {}, []
    for index, (name, canvas, photo, faces) in enumerate(
        [
            ("two-faces-and-doubles", (96, 128), (192, 240), 2),
            ("overlapping", (64, 64), (50, 64), 3),
            ("none", (64, 96), (64, 96), 0),
        ]
    ):
        height, width = canvas
        # insightface's fit: keep the aspect, upper left corner, zeros around.
        if photo[0] / photo[1] > height / width:
            new_height = height
        else:
            new_height = int(width * (photo[0] / photo[1]))
        det_scale = new_height / photo[0]
        centres = [(random.uniform(0.25, 0.6) * width, random.uniform(0.25, 0.6) * height) for _ in range(faces)]
        if name == "overlapping":
            centres[1] = (centres[0][0] + 7.0, centres[0][1] + 5.0)
        all_boxes, all_scores, all_points = [], [], []
        for stride in (8, 16, 32):
            rows, columns = height // stride, width // stride
            anchor = numpy.array(
                [(x * stride, y * stride) for y in range(rows) for x in range(columns) for _ in range(2)],
                dtype=numpy.float32,
            )
            count = len(anchor)
            score = random.uniform(0.01, 0.45, (count, 1)).astype(numpy.float32)
            box = random.uniform(0.5, 2.0, (count, 4)).astype(numpy.float32)
            points = random.normal(0, 1, (count, 10)).astype(numpy.float32)
            for face, (x, y) in enumerate(centres):
                near = numpy.hypot(anchor[:, 0] - x, anchor[:, 1] - y) < 1.1 * stride
                half = 13.0 + 4 * face
                score[near, 0] = random.uniform(0.5, 0.99, near.sum())
                corners = numpy.array([x - half, y - half, x + half, y + half])
                sides = numpy.concatenate([anchor - corners[:2], corners[2:] - anchor], axis=1) / stride
                box[near] = (sides + 0.03 * random.standard_normal((count, 4)))[near]
            tensors |= {
                f"score_{stride}_{index}": score,
                f"box_{stride}_{index}": box,
                f"landmarks_{stride}_{index}": points,
            }
            chosen = score[:, 0] >= 0.5
            low, high = anchor - box[:, :2] * stride, anchor + box[:, 2:] * stride
            all_boxes.append(numpy.concatenate([low, high], axis=1)[chosen])
            all_scores.append(score[chosen, 0])
            all_points.append((anchor[:, None] + points.reshape(-1, 5, 2) * stride)[chosen])
        boxes = numpy.concatenate(all_boxes) / det_scale
        scores = numpy.concatenate(all_scores)
        points = numpy.concatenate(all_points) / det_scale
        kept = keep_best(boxes, scores, 0.4)
        assert len(set(scores.tolist())) == len(scores)
        areas = (boxes[kept, 2] - boxes[kept, 0]) * (boxes[kept, 3] - boxes[kept, 1])
        cases.append(
            {
                "name": name,
                "canvas": canvas,
                "photo": photo,
                "scale": det_scale,
                "candidates": len(boxes),
                "faces": [
                    {"box": boxes[k].tolist(), "score": float(scores[k]), "landmarks": points[k].tolist()} for k in kept
                ],
                "largest": int(areas.argmax()) if kept else None,
                "tensors": {
                    kind: [f"{kind}_{stride}_{index}" for stride in (8, 16, 32)]
                    for kind in ("score", "box", "landmarks")
                },
            }
        )
        print("SCRFD", name, len(boxes), "candidates,", len(kept), "faces")
    save_tensors(HERE / "detections.safetensors", tensors)
    note = (
        "SCRFD outputs before scaling by the stride; score threshold 0.5 (inclusive), overlap 0.4; faces in order of "
        "their scores, in photo pixels; sizes are (height, width); `largest` indexes faces."
    )
    write_json(HERE / "detections.json", {"cases": cases, "versions": versions(), "note": note})


def features_picture(random) -> None:
    """Parsing logits and an aligned crop to the picture that the vision tower sees."""
    white = (0, 7, 8, 9, 14, 15, 16, 18)
    crop = torch.from_numpy(random.random((1, 3, 32, 32), dtype=numpy.float32))
    logits = F.interpolate(
        torch.from_numpy(random.standard_normal((1, 19, 8, 8)).astype(numpy.float32)),
        (32, 32),
        mode="bilinear",
        align_corners=True,
    )
    labels = logits.argmax(dim=1, keepdim=True)
    background = torch.isin(labels, torch.tensor(white))
    gray = (
        (crop * torch.tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)).sum(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    )
    features = torch.where(background, torch.ones_like(crop), gray)
    resized = F.interpolate(features, (21, 21), mode="bicubic", align_corners=False)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).reshape(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).reshape(1, 3, 1, 1)
    imagenet_mean = torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
    imagenet_std = torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)
    tensors = {
        "crop": crop,
        "logits": logits,
        "labels": labels[:, 0],
        "features": features,
        "resized": resized,
        "tower_input": (resized - mean) / std,
        "parser_input": (crop - imagenet_mean) / imagenet_std,
    }
    save_tensors(HERE / "features.safetensors", tensors)
    note = (
        "crop [1, 3, H, W] in 0 .. 1, RGB; parser_input is what the parser gets of it, logits what it might answer, "
        "features the gray face on white, resized its bicubic reduction, tower_input the same normalised."
    )
    write_json(HERE / "features.json", {"white_labels": white, "versions": versions(), "note": note})


def main() -> None:
    deterministic()
    random = numpy.random.default_rng(SEED)
    cv2.setRNGSeed(0)
    for step in (similarity, crops, resizes, detections, features_picture):
        step(random)


if __name__ == "__main__":
    main()
