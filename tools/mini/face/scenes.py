"""Scenes for the detector: renders pasted on plain and cluttered canvases, portraits as the pipeline letterboxes them,
and canvases without any face."""

import cv2
import numpy as np

from data import photometric


def _colour(rng):
    return tuple(int(c) for c in rng.integers(0, 256, 3))


def clutter(size, rng):
    """A face-free canvas: flat, gradient, soft noise, shapes, stripes, or several of them."""
    kind = rng.random()
    if kind < 0.2:
        canvas = np.full((size, size, 3), _colour(rng), np.uint8)
    elif kind < 0.4:
        corners = rng.integers(0, 256, (2, 2, 3)).astype(np.uint8)
        canvas = cv2.resize(corners, (size, size), interpolation=cv2.INTER_LINEAR)
    else:
        cells = int(rng.integers(2, 24))
        canvas = cv2.resize(
            rng.integers(0, 256, (cells, cells, 3)).astype(np.uint8),
            (size, size),
            interpolation=int(rng.choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_NEAREST])),
        )
    if rng.random() < 0.6:
        for _ in range(int(rng.integers(1, 40))):
            centre = tuple(int(v) for v in rng.integers(0, size, 2))
            extent = int(size * rng.uniform(0.02, 0.3))
            shape = rng.random()
            if shape < 0.4:
                axes = (extent, int(extent * rng.uniform(0.5, 1.5)) + 1)
                # Some are skin coloured ovals, with or without dark dots: nearly, but not quite, a face.
                skin = rng.random() < 0.4
                tone = rng.uniform(0.3, 1.0)
                colour = (int(230 * tone), int(180 * tone), int(150 * tone)) if skin else _colour(rng)
                cv2.ellipse(canvas, centre, axes, float(rng.uniform(0, 180)), 0, 360, colour, -1, cv2.LINE_AA)
                if skin and rng.random() < 0.4:
                    for _ in range(int(rng.integers(1, 3))):
                        dot = (np.array(centre) + rng.integers(-extent, extent + 1, 2) // 2).tolist()
                        cv2.circle(canvas, tuple(dot), max(1, extent // 8), _colour(rng), -1, cv2.LINE_AA)
            elif shape < 0.7:
                far = tuple(int(c + v) for c, v in zip(centre, rng.integers(-extent, extent + 1, 2)))
                cv2.rectangle(canvas, centre, far, _colour(rng), -1 if rng.random() < 0.8 else 2)
            else:
                far = tuple(int(v) for v in rng.integers(0, size, 2))
                cv2.line(canvas, centre, far, _colour(rng), int(rng.integers(1, 12)), cv2.LINE_AA)
    if rng.random() < 0.3:
        canvas = cv2.GaussianBlur(canvas, (0, 0), float(rng.uniform(1, 8)))
    if rng.random() < 0.5:
        grain = rng.standard_normal((size, size, 1), np.float32) * rng.uniform(2, 20)
        canvas = np.clip(canvas + grain, 0, 255).astype(np.uint8)
    return canvas


def _without_face(data, rng):
    """A piece of a render that holds no face: background, hair or clothes."""
    row = int(rng.integers(len(data)))
    image, box = data.image(row), data.all_bbox[row]
    side = image.shape[0]
    x0, y0, x1, y1 = (int(round(v)) for v in np.clip(box, 0, side))
    options = [(0, 0, side, y0), (0, y1, side, side), (0, 0, x0, side), (x1, 0, side, side)]
    options = [o for o in options if o[2] - o[0] >= side // 16 and o[3] - o[1] >= side // 16]
    if not options:
        return None
    a, b, c, d = options[int(rng.integers(len(options)))]
    return image[b:d, a:c]


def negative(data, size, rng):
    canvas = clutter(size, rng)
    for _ in range(int(rng.integers(0, 6))):
        piece = _without_face(data, rng)
        if piece is None:
            continue
        height = int(size * rng.uniform(0.15, 1.0))
        width = int(height * piece.shape[1] / piece.shape[0])
        width, height = min(max(width, 8), size), min(max(height, 8), size)
        x, y = int(rng.integers(0, size - width + 1)), int(rng.integers(0, size - height + 1))
        canvas[y : y + height, x : x + width] = cv2.resize(piece, (width, height), interpolation=cv2.INTER_LINEAR)
    return canvas, np.zeros((0, 4), np.float32), np.zeros((0, 10), np.float32)


def _place(canvas, data, row, face, centre, angle, rng, whole):
    """Pastes one render so that its face has `face` pixels and lies at `centre`; answers its box and points."""
    image, box = data.image(row), data.all_bbox[row]
    middle, extent = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
    scale = face / float(extent.max())
    mirrored = rng.random() < 0.5
    points = data.all_landmarks[row].copy()
    label = None if whole else data.label(row)
    if mirrored:
        image, side = np.ascontiguousarray(image[:, ::-1]), image.shape[1]
        label = None if label is None else np.ascontiguousarray(label[:, ::-1])
        middle = np.array([side - middle[0], middle[1]])
        points[:, 0] = side - points[:, 0]
        points = points[[1, 0, 2, 4, 3]]
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    matrix = np.array([[cos, -sin, 0], [sin, cos, 0]], np.float32)
    matrix[:, 2] = np.asarray(centre) - matrix[:, :2] @ middle
    size = (canvas.shape[1], canvas.shape[0])
    kind = cv2.INTER_LINEAR if scale > 0.7 else cv2.INTER_AREA
    if scale <= 0.7:  # warpAffine does not average, so shrink first
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=kind)
        shrink = small.shape[0] / image.shape[0]
        inner = matrix.copy()
        inner[:, :2] /= shrink
        warped = cv2.warpAffine(small, inner, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    else:
        warped = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    mask = np.full(image.shape[:2], 255, np.uint8) if label is None else (label > 0).astype(np.uint8) * 255
    mask = cv2.warpAffine(mask, matrix, size, flags=cv2.INTER_LINEAR)
    if label is not None:
        mask = cv2.GaussianBlur(mask, (0, 0), max(0.5, 0.4 * scale))
    if whole and rng.random() < 0.6:
        canvas[:] = warped  # the replicated border stands for a longer photo
    else:
        alpha = mask[..., None].astype(np.float32) / 255
        canvas[:] = (canvas * (1 - alpha) + warped * alpha).astype(np.uint8)
    half = extent * scale / 2
    new_box = np.concatenate([np.asarray(centre) - half, np.asarray(centre) + half])
    new_points = points @ matrix[:, :2].T + matrix[:, 2]
    return new_box.astype(np.float32), new_points.reshape(-1).astype(np.float32)


def portrait(data, size, rng):
    """One large face, as the pipeline shows it: a photo of some aspect letterboxed to the top left, zeros elsewhere."""
    row = int(rng.integers(len(data)))
    aspect = float(np.exp(rng.normal(0, 0.25))) if rng.random() < 0.6 else 1.0
    width, height = (size, int(size / aspect)) if aspect >= 1 else (int(size * aspect), size)
    canvas = clutter(size, rng)[:height, :width].copy()
    side = data.image(row).shape[0]
    box = data.all_bbox[row]
    full = float((box[2:] - box[:2]).max()) / side * max(width, height)
    if rng.random() < 0.5 and aspect == 1.0:
        face, angle = full, 0.0
        centre = (box[:2] + box[2:]) / 2 / side * size
        centre = centre + rng.normal(0, 0.01, 2) * size
    else:
        face = float(np.clip(full * np.exp(rng.uniform(-0.9, 0.35)), 0.1 * size, 0.88 * min(width, height)))
        angle = rng.normal(0, 0.12)
        room = np.array([width, height]) - face
        centre = face / 2 + rng.random(2) * room
    boxes, points = _place(canvas, data, row, face, centre, angle, rng, whole=rng.random() < 0.75)
    out = np.zeros((size, size, 3), np.uint8)
    out[:height, :width] = photometric(canvas, rng, 0.7)
    return out, boxes[None], points[None]


def group(data, size, rng, smallest, largest):
    """One to five faces on clutter."""
    canvas = clutter(size, rng)
    boxes, points = [], []
    for _ in range(int(rng.integers(1, 6))):
        face = float(np.exp(rng.uniform(np.log(smallest), np.log(largest))))
        for _ in range(8):
            centre = face * 0.55 + rng.random(2) * (size - 1.1 * face)
            apart = all(
                (np.abs(centre - (b[:2] + b[2:]) / 2) > 0.8 * (face + (b[2:] - b[:2]).max()) * 0.95).any() for b in boxes
            )
            if apart:
                row = int(rng.integers(len(data)))
                b, p = _place(canvas, data, row, face, centre, rng.normal(0, 0.15), rng, whole=False)
                boxes.append(b)
                points.append(p)
                break
    return photometric(canvas, rng, 0.7), np.stack(boxes), np.stack(points)


def close_up(data, size, rng):
    """A part of a portrait at the pipeline's scale, 640 pixels for the whole, cut to `size` around its one face."""
    row = int(rng.integers(len(data)))
    box = data.all_bbox[row]
    full = float((box[2:] - box[:2]).max()) / data.image(row).shape[0] * 640
    face = float(np.clip(full * np.exp(rng.normal(0, 0.25)), 0.15 * size, 0.92 * size))
    centre = face / 2 + rng.random(2) * (size - face)
    canvas = clutter(size, rng)
    boxes, points = _place(canvas, data, row, face, centre, rng.normal(0, 0.1), rng, whole=rng.random() < 0.85)
    return photometric(canvas, rng, 0.7), boxes[None], points[None]


def scene(collections, size, rng):
    """A random scene from one of the `collections` of renders: picture, boxes [n,4], points [n,10].

    At 320 mostly groups of small faces, at 448 a part of a portrait at the pipeline's scale, at 640 the whole of it; at
    each size also canvases without a face.
    """
    data = collections[int(rng.integers(len(collections)))]
    kind = rng.random()
    if size == 448:
        return close_up(data, size, rng) if kind < 0.82 else negative(data, size, rng)
    if size >= 512:
        if kind < 0.7:
            return portrait(data, size, rng)
        return group(data, size, rng, 40, 400) if kind < 0.85 else negative(data, size, rng)
    return group(data, size, rng, 36, 0.55 * size) if kind < 0.65 else negative(data, size, rng)
