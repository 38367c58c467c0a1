"""Renders of synthetic people: reading, alignment and photometric augmentation.

A data folder holds uncompressed or compressed ``.npz`` shards with ``images`` (u8 [N,128,128,3] RGB), ``labels``
(u8 [N,128,128], 19 parsing classes), ``landmarks`` (f32 [N,5,2], ArcFace order), ``bbox`` (f32 [N,4]), ``identity``
(i32 [N]) and small integer attributes. Shards are unpacked once to ``.npy`` files, so that training reads them
through the page cache instead of holding them in memory.
"""

import os
import pathlib

import cv2
import numpy as np

cv2.setNumThreads(1)

# Five points (left eye, right eye, nose, left and right mouth corner, seen from the camera) in a 112 x 112 crop.
ARCFACE_112 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float32
)
# The same five points in facexlib's 512 x 512 crop.
FACEXLIB_512 = np.array(
    [[192.98138, 239.94708], [318.90277, 240.1936], [256.63416, 314.01935], [201.26117, 371.41043], [313.08905, 371.15118]],
    np.float32,
)
# What facexlib paints where the crop leaves the photo (RGB).
CROP_BORDER = (135, 133, 132)
# Parsing classes that PuLID paints white: background, ears, earring, neck, necklace, cloth, hat.
WHITENED = (0, 7, 8, 9, 14, 15, 16, 18)

ATTRIBUTES = ("identity", "style", "background", "expression", "light", "clothes")


class Renders:
    """All shards of one folder as one indexable collection."""

    def __init__(self, folder, cache):
        self.folder, self.cache = pathlib.Path(folder), pathlib.Path(cache)
        self.names = []
        self.images, self.labels, self.landmarks, self.bbox = [], [], [], []
        self.attributes = {name: [] for name in ATTRIBUTES}
        self.refresh()

    def refresh(self):
        """Takes in shards that have appeared since; answers the number of renders."""
        for shard in sorted(self.folder.glob("*.npz")):
            if shard.name in self.names:
                continue
            unpacked = self.cache / self.folder.name / shard.stem
            try:
                _unpack(shard, unpacked)
            except (OSError, ValueError, KeyError, EOFError) as error:  # a shard that is still being written
                print(f"skipped {shard.name}: {error}", flush=True)
                continue
            self.names.append(shard.name)
            self.images.append(np.load(unpacked / "images.npy", mmap_mode="r"))
            self.labels.append(np.load(unpacked / "labels.npy", mmap_mode="r"))
            meta = np.load(unpacked / "meta.npz")
            self.landmarks.append(meta["landmarks"])
            self.bbox.append(meta["bbox"])
            for name in ATTRIBUTES:
                self.attributes[name].append(meta[name].astype(np.int64))
        self.starts = np.cumsum([0] + [len(i) for i in self.images])
        if self.names:
            self.all_landmarks = np.concatenate(self.landmarks).astype(np.float32)
            self.all_bbox = np.concatenate(self.bbox).astype(np.float32)
            for name in ATTRIBUTES:
                setattr(self, name, np.concatenate(self.attributes[name]))
            order = np.argsort(self.identity, kind="stable")
            ids, first = np.unique(self.identity[order], return_index=True)
            self.rows_of = dict(zip(ids.tolist(), np.split(order, first[1:])))
        return len(self)

    def __len__(self):
        return int(self.starts[-1])

    def rows_of_people(self, rng, people, pictures):
        """Rows of `people` random people, `pictures` of each, some twice where a person has fewer."""
        ids = rng.choice(np.fromiter(self.rows_of, np.int64), people, replace=False)
        return np.concatenate([rng.choice(self.rows_of[i], pictures, replace=len(self.rows_of[i]) < pictures) for i in ids])

    def image(self, row):
        shard = int(np.searchsorted(self.starts, row, side="right")) - 1
        return np.asarray(self.images[shard][row - self.starts[shard]])

    def label(self, row):
        shard = int(np.searchsorted(self.starts, row, side="right")) - 1
        return np.asarray(self.labels[shard][row - self.starts[shard]])


def _unpack(shard, folder):
    if (folder / "meta.npz").exists():
        return
    with np.load(shard) as arrays:
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "images.npy", arrays["images"])
        np.save(folder / "labels.npy", arrays["labels"])
        meta = {name: arrays[name] for name in ("landmarks", "bbox") + ATTRIBUTES if name in arrays}
        # Written last, under another name first: its presence says that the folder is whole.
        np.savez(folder / "meta.tmp.npz", **meta)
    os.replace(folder / "meta.tmp.npz", folder / "meta.npz")


def similarity(source, target):
    """The 2 x 3 least-squares similarity (rotation, one scale, translation) that takes `source` [n,2] to `target` [n,2]."""
    mean_s, mean_t = source.mean(0), target.mean(0)
    s, t = source - mean_s, target - mean_t
    norm = float((s * s).sum()) + 1e-9
    a = float((s * t).sum()) / norm
    b = float((s[:, 0] * t[:, 1] - s[:, 1] * t[:, 0]).sum()) / norm
    matrix = np.array([[a, -b, 0.0], [b, a, 0.0]], np.float32)
    matrix[:, 2] = mean_t - matrix[:, :2] @ mean_s
    return matrix


def jittered(landmarks, rng, std=0.02):
    """Landmarks as a detector would give them: noise in units of the distance between the eyes."""
    unit = float(np.linalg.norm(landmarks[1] - landmarks[0])) + float(np.linalg.norm(landmarks[3] - landmarks[0]))
    common = rng.normal(0, std * 0.5, (1, 2))
    return (landmarks + 0.5 * unit * (rng.normal(0, std, (5, 2)) + common)).astype(np.float32)


def arcface_crop(image, landmarks, size=112):
    """The recogniser's aligned crop: ArcFace's template, black outside the picture."""
    matrix = similarity(landmarks, ARCFACE_112 * (size / 112))
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderValue=(0, 0, 0))


def facexlib_matrix(landmarks, size=128):
    return similarity(landmarks, FACEXLIB_512 * (size / 512))


def facexlib_crop(image, landmarks, size=128, labels=None):
    """The parser's aligned crop: facexlib's template scaled to `size`; with `labels`, the aligned labels too."""
    matrix = facexlib_matrix(landmarks, size)
    crop = cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderValue=CROP_BORDER)
    if labels is None:
        return crop
    return crop, cv2.warpAffine(labels, matrix, (size, size), flags=cv2.INTER_NEAREST, borderValue=0)


def photometric(image, rng, strength=1.0):
    """Exposure, contrast, colour cast, blur or loss of resolution, noise and JPEG, each now and then."""
    if rng.random() < 0.7 * strength:
        gain = 1 + rng.normal(0, 0.12, 1) + rng.normal(0, 0.04, 3)
        bias = rng.normal(0, 10)
        image = np.clip(image * gain.astype(np.float32) + bias, 0, 255).astype(np.uint8)
    if rng.random() < 0.15 * strength:
        gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
        mix = rng.uniform(0.3, 1.0)
        image = (image * (1 - mix) + gray * mix).astype(np.uint8)
    kind = rng.random()
    if kind < 0.2 * strength:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 1.5)))
    elif kind < 0.4 * strength:
        size = image.shape[:2]
        scale = rng.uniform(0.3, 0.8)
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, (size[1], size[0]), interpolation=int(rng.choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC])))
    if rng.random() < 0.2 * strength:
        image = np.clip(image + rng.standard_normal(image.shape, np.float32) * rng.uniform(1, 8), 0, 255).astype(np.uint8)
    if rng.random() < 0.15 * strength:
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(40, 95))])
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    return image
