"""Scenes for the detector, composed in batches on the device: rendered faces on textures and photographs without people.

What is where is planned with NumPy, drawn with PyTorch. Four kinds of scenes: a plain render as the pipeline letterboxes it, a portrait,
a group, and one without a face, which holds what is nearly one: clothes, suits, hair around nothing, cats.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import degradation
import numpy as np
import textures
import torch
import torch.nn.functional as F
from textures import chance, colours, log_uniform, skin, uniform

RENDER = 128
PATCH = 256  # faces are dressed at this size before they are placed
MOST = 6  # faces in a scene
PHOTO_SIDE = 640
KINDS = {"plain": 0.07, "portrait": 0.35, "group": 0.33, "negative": 0.25}
FACE = (1, 2, 3, 4, 5, 6, 10, 11, 12, 13)  # labels: skin, brows, eyes, glasses, nose, mouth, lips
EARS, HAIR = (7, 8), 17


class Pictures:
    """Finished renders of one folder on the device: images u8 [N,128,128,3], labels u8; boxes and landmarks on the host."""

    def __init__(self, folder: Path, device, capacity: int):
        self.folder, self.device, self.capacity = folder, device, capacity
        self.known, self.count = set(), 0
        self.images = torch.zeros(capacity, RENDER, RENDER, 3, dtype=torch.uint8, device=device)
        self.labels = torch.zeros(capacity, RENDER, RENDER, dtype=torch.uint8, device=device)
        self.boxes, self.points = np.zeros((capacity, 4), np.float32), np.zeros((capacity, 5, 2), np.float32)
        self.style = np.zeros(capacity, np.int64)

    def refresh(self, most: int = 8) -> int:
        """Takes in at most so many shards that have appeared since; answers the number of renders."""
        new = [p for p in sorted(self.folder.glob("shard-*.npz")) if p.name not in self.known]
        for path in new[: most if self.count < self.capacity else 0]:
            self.known.add(path.name)
            with np.load(path) as shard:
                at = slice(self.count, min(self.count + len(shard["images"]), self.capacity))
                n = at.stop - at.start
                self.images[at].copy_(torch.from_numpy(shard["images"][:n]))
                self.labels[at].copy_(torch.from_numpy(shard["labels"][:n]))
                self.boxes[at], self.points[at], self.style[at] = shard["bbox"][:n], shard["landmarks"][:n], shard["style"][:n]
            self.count = at.stop
        return self.count

    def draw(self, rng) -> int:
        """A random row; in half of the cases one in the style of photos."""
        row = int(rng.integers(self.count))
        for _ in range(8 if rng.random() < 0.5 else 0):
            if self.style[row] == 0:
                break
            row = int(rng.integers(self.count))
        return row


def photographs(folder: Path, device):
    """Photographs of a folder as u8 [P,3,640,640], squeezed to squares; None where there are none."""
    read = [cv2.imread(str(p), cv2.IMREAD_COLOR) for p in sorted(folder.glob("*.jpg"))] if folder.is_dir() else []
    squares = [cv2.resize(i, (PHOTO_SIDE, PHOTO_SIDE), interpolation=cv2.INTER_AREA)[..., ::-1].copy() for i in read if i is not None]
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).contiguous().to(device) if squares else None


@dataclass
class Piece:
    """One render to be placed: `face` says whether its face shows; `matrix` [2,3] takes its pixels to the scene's."""

    row: int
    mirrored: bool
    matrix: np.ndarray
    face: bool
    whole: bool  # with its background
    endless: bool  # whole, and its border goes on over all of the scene
    dressed: bool  # with a suit and a neck below
    plain: bool  # as it was rendered


@dataclass
class Batch:
    """Pictures u8-rounded [B,3,S,S] in 0..1, boxes [B,6,4], points [B,6,10], and how many of them each scene has, [B]."""

    pictures: torch.Tensor
    boxes: torch.Tensor
    points: torch.Tensor
    count: torch.Tensor
    kinds: list

    def normalised(self):
        """As the detector takes them."""
        return ((self.pictures * 255 - 127.5) / 128).contiguous(memory_format=torch.channels_last)


class Plan:
    """What one scene shows: its kind, the photo's extent within the square, and its pieces, from the hindmost."""

    def __init__(self, kind, data: Pictures, size, rng):
        self.kind, self.size, self.data, self.rng = kind, size, data, rng
        self.width = self.height = size
        self.pieces, self.boxes, self.points = [], [], []
        if kind != "plain" and rng.random() < 0.6:
            aspect = float(np.exp(rng.normal(0, 0.3)))
            self.width, self.height = (size, int(size / aspect)) if aspect >= 1 else (int(size * aspect), size)
            self.width, self.height = max(self.width, size // 3), max(self.height, size // 3)
        getattr(self, kind)()

    def extent(self, row):
        box = self.data.boxes[row]
        return box[2:] - box[:2]

    def place(self, row, pixels, centre, angle, **how):
        """A piece whose face has so many pixels and lies at `centre`."""
        box, mirrored = self.data.boxes[row], bool(self.rng.random() < 0.5)
        middle, extent = (box[:2] + box[2:]) / 2, self.extent(row)
        points = self.data.points[row].copy()
        if mirrored:
            middle = np.array([RENDER - 1 - middle[0], middle[1]], np.float32)
            points[:, 0] = RENDER - 1 - points[:, 0]
            points = points[[1, 0, 2, 4, 3]]
        scale = pixels / float(extent.max())
        linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = np.concatenate([linear, (np.asarray(centre) - linear @ middle)[:, None]], 1).astype(np.float32)
        options = {"face": True, "whole": False, "endless": False, "dressed": False, "plain": False} | how
        self.pieces.append(Piece(row, mirrored, matrix, **options))
        if options["face"]:
            half = extent * scale / 2
            self.boxes.append(np.concatenate([np.asarray(centre) - half, np.asarray(centre) + half]).astype(np.float32))
            self.points.append((points @ matrix[:, :2].T + matrix[:, 2]).reshape(-1).astype(np.float32))

    def plain(self):
        row = self.data.draw(self.rng)
        box = self.data.boxes[row]
        face = float(self.extent(row).max()) / RENDER * self.size
        centre = ((box[:2] + box[2:]) / 2 + 0.5) / RENDER * self.size - 0.5
        self.place(row, face, centre, 0.0, whole=True, endless=True, plain=True)
        # Mirrored, the face is elsewhere.
        piece = self.pieces[0]
        if piece.mirrored:
            shift = self.size - 1 - 2 * centre[0]
            piece.matrix[0, 2] += shift
            self.boxes[0][[0, 2]] += shift
            self.points[0][0::2] += shift

    def portrait(self):
        rng, low = self.rng, min(self.width, self.height)
        row = self.data.draw(rng)
        # A wide face may have no room in a narrow photo.
        face = min(float(np.exp(rng.uniform(np.log(0.12 * self.size), np.log(0.8 * self.size)))), 0.9 * low)
        room = np.maximum(np.array([self.width, self.height]) - face, 0)
        centre = face / 2 + rng.random(2) * room
        if rng.random() < 0.5:  # as portraits are framed
            centre = np.clip(np.array([0.5, 0.4]) * (self.width, self.height) + rng.normal(0, 0.08, 2) * low, face / 2, face / 2 + room)
        whole = rng.random() < 0.4
        self.place(row, face, centre, rng.normal(0, 0.17), whole=whole, endless=whole and rng.random() < 0.5, dressed=not whole and rng.random() < 0.7)

    def group(self):
        rng, low = self.rng, min(self.width, self.height)
        for _ in range(int(rng.integers(1, MOST + 1))):
            face = min(float(np.exp(rng.uniform(np.log(20.0), np.log(0.45 * self.size)))), 0.7 * low)
            for _ in range(8):
                centre = face * 0.5 + rng.random(2) * np.maximum(np.array([self.width, self.height]) - face, 1)
                if all((np.abs(centre - (b[:2] + b[2:]) / 2) > 0.78 * (face + (b[2:] - b[:2]).max())).any() for b in self.boxes):
                    self.place(self.data.draw(rng), face, centre, rng.normal(0, 0.2), whole=rng.random() < 0.15, dressed=rng.random() < 0.5)
                    break

    def negative(self):
        rng = self.rng
        if rng.random() < 0.35:  # clothes alone, their head outside or hidden
            pixels = float(np.exp(rng.uniform(np.log(0.1 * self.size), np.log(0.7 * self.size))))
            centre = (rng.uniform(0.2, 0.8) * self.width, rng.uniform(-0.4 * pixels, 0.5 * self.height))
            self.place(self.data.draw(rng), pixels, centre, rng.normal(0, 0.1), face=False, dressed=True)
        for _ in range(int(rng.integers(0, MOST))):
            face = float(np.exp(rng.uniform(np.log(30.0), np.log(0.8 * self.size))))
            centre = rng.random(2) * (self.width, self.height)
            angle = rng.normal(0, 0.2) if rng.random() < 0.5 else rng.uniform(-np.pi, np.pi)
            self.place(self.data.draw(rng), face, centre, angle, face=False, whole=rng.random() < 0.4, dressed=rng.random() < 0.4)


def ellipse(u, v, soft=12.0):
    return ((1 - u.square() - v.square()) * soft).clamp(0, 1)


class Composer:
    """Makes batches of scenes of one size from `data`."""

    def __init__(self, data: Pictures, size: int, photos=None):
        self.data, self.size, self.photos, self.device = data, size, photos, data.device
        member = torch.zeros(256, dtype=torch.bool, device=self.device)
        self.is_face, self.is_ear = member.clone(), member.clone()
        self.is_face[list(FACE)], self.is_ear[list(EARS)] = True, True

    def patches(self, pieces, points):
        """Patches [n,4,256,256], colours and opacity; `points` [n,5,2] are the landmarks within the renders, as mirrored."""
        n, device = len(pieces), self.device
        flag = lambda values: torch.tensor(values, device=device).view(n, 1, 1, 1)
        rows = torch.tensor([p.row for p in pieces], device=device)
        image = self.data.images[rows].permute(0, 3, 1, 2).float() / 255
        label = self.data.labels[rows].long()[:, None]
        mirrored, whole, face, plain = (flag([getattr(p, k) for p in pieces]) for k in ("mirrored", "whole", "face", "plain"))
        image, label = (torch.where(mirrored, t.flip(-1), t) for t in (image, label))
        features = self.is_face[label]
        # A head that shows no face: what was one is filled with the colour of the hair, or is not there.
        hair = (label == HAIR).float()
        mean = (image * hair).sum((2, 3), keepdim=True) / hair.sum((2, 3), keepdim=True).clamp(min=1)
        hidden = F.max_pool2d(features.float(), 5, 1, 2)
        filled = chance(0.5, n, device) & (hair.sum((2, 3), keepdim=True) > 150)
        opacity = torch.where(whole, 1.0, (label > 0).float())
        opacity = torch.where(face | filled, opacity, opacity * (1 - hidden))
        opacity = torch.where(~face & ~filled & self.is_ear[label], 0.0, opacity)
        big = lambda t, mode: F.interpolate(t, (PATCH, PATCH), mode=mode, align_corners=False)
        grown = big(image, "bicubic").clamp(0, 1)
        opacity, hidden, features = (big(t, "bilinear") for t in (opacity, hidden, features.float()))
        brushed = mean * (1 + 0.25 * textures.streaks(n, 1, PATCH, device))
        dressed = self.dressed_up(grown, features, points)
        out = torch.where(face, torch.where(plain, grown, dressed), torch.lerp(grown, brushed, hidden * filled))
        return torch.cat([out.clamp(0, 1), opacity], 1)

    def dressed_up(self, x, features, points):
        """Skin of another tone and grain, a hard light from one side, glasses, a hat, a hand or a thing before the face."""
        n, device = len(x), self.device
        often = lambda probability: chance(probability, n, device)
        tone = torch.exp(torch.randn(n, 1, 1, 1, device=device) * 0.3) * torch.exp(torch.randn(n, 3, 1, 1, device=device) * 0.08)
        x = torch.where(often(0.5), torch.lerp(x, x * tone, features), x)
        gamma = torch.exp(torch.randn(n, 1, 1, 1, device=device) * 0.3)
        x = torch.where(often(0.3), torch.lerp(x, x.clamp(1e-4, 1).pow(gamma), features), x)
        detail = textures.noise(n, 1, PATCH, device, uniform(-0.2, 0.6, n, 1, 1, 1, device=device))
        x = x * (1 + detail * torch.where(often(0.5), 0.07, 0.0))
        crisp = x + (x - F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), 5, 1)) * uniform(0.5, 2.0, n, 1, 1, 1, device=device)
        x = torch.where(often(0.4), crisp, x)
        p = ((points + 0.5) * (PATCH / RENDER) - 0.5).view(n, 5, 2, 1, 1, 1)
        left, right, nose, mouth = p[:, 0], p[:, 1], p[:, 2], (p[:, 3] + p[:, 4]) / 2
        eyes = (left + right) / 2
        down = mouth - eyes
        length = down.norm(dim=1, keepdim=True).clamp(min=8)
        down = down / length
        length = length[:, 0]
        gx, gy = textures.coordinates(PATCH, device)
        # Across and down the face from between the eyes; the mouth is at v = 1.
        u = ((gx - eyes[:, 0]) * down[:, 1] - (gy - eyes[:, 1]) * down[:, 0]) / length
        v = ((gx - eyes[:, 0]) * down[:, 0] + (gy - eyes[:, 1]) * down[:, 1]) / length
        middle = (nose[:, 0] - eyes[:, 0]) * down[:, 1] / length - (nose[:, 1] - eyes[:, 1]) * down[:, 0] / length
        angle = uniform(0, 6.3, n, 1, 1, 1, device=device)
        edge = ((u - middle) * angle.cos() + (v - 0.4) * angle.sin() + uniform(-0.4, 0.5, n, 1, 1, 1, device=device)) * log_uniform(1.5, 30, n, 1, 1, 1, device=device)
        x = x * (1 - torch.where(often(0.35), uniform(0.2, 0.85, n, 1, 1, 1, device=device), 0.0) * torch.sigmoid(edge))
        # Glasses: rims, now and then dark lenses, and a bridge.
        reach, high = uniform(0.36, 0.52, n, 1, 1, 1, device=device), uniform(0.22, 0.4, n, 1, 1, 1, device=device)
        spread = (right - left).norm(dim=1) / length / 2
        rim, lens = 0.0, 0.0
        for side in (-1, 1):
            a, b = (u - side * spread) / reach, v / high
            radius = (a.square() + b.square()).sqrt()
            rim = torch.maximum(torch.as_tensor(rim, device=device), ((0.12 - (radius - 1).abs()) * 20).clamp(0, 1))
            lens = torch.maximum(torch.as_tensor(lens, device=device), ellipse(a, b))
        rim = torch.maximum(rim, ((0.04 - v.abs()) * 40).clamp(0, 1) * (u.abs() < spread - reach).float())
        worn, dark = often(0.18).float(), uniform(0.2, 0.95, n, 1, 1, 1, device=device) * often(0.35)
        x = torch.lerp(x, colours(n, device) * 0.6, rim * worn)
        x = torch.lerp(x, colours(n, device) * 0.2, lens * worn * dark)
        # A hat or a hood's edge: all above a bent line over the brows, its brim a shade darker.
        cloth = textures.between(textures.streaks(n, 1, PATCH, device) * 0.2 + 0.5, n, device)
        line = uniform(-1.0, -0.45, n, 1, 1, 1, device=device) + uniform(-0.15, 0.3, n, 1, 1, 1, device=device) * u.square()
        hat = ((line - v) * 12).clamp(0, 1) * ((1.25 - u.abs()) * 12).clamp(0, 1) * ((v + 2.2) * 6).clamp(0, 1)
        x = torch.lerp(x, cloth * (1 - 0.4 * (v > line - 0.15)), hat * often(0.15))
        # Something before a part of it: a hand, a cup, a scarf over the chin.
        size_u, size_v = uniform(0.2, 0.55, n, 1, 1, 1, device=device), uniform(0.2, 0.7, n, 1, 1, 1, device=device)
        away = uniform(0, 6.3, n, 1, 1, 1, device=device)
        blob = ellipse((u - away.cos() * 0.95) / size_u, (v - 0.45 - away.sin() * 0.95) / size_v)
        x = torch.lerp(x, torch.where(often(0.6), skin(n, device) * (1 + 0.15 * u), cloth), blob * often(0.15))
        return x.clamp(0, 1)

    def paste(self, canvas, patch, pieces):
        """`canvas` [n,3,S,S] with `patch` over it."""
        n, size = len(pieces), self.size
        matrix = torch.from_numpy(np.stack([p.matrix for p in pieces]))
        inverse = torch.linalg.inv(matrix[:, :, :2].double()).float()
        theta = torch.empty(n, 2, 3)
        theta[:, :, :2] = inverse * (size / RENDER)
        centre = (inverse @ ((size - 1) / 2 - matrix[:, :, 2:]))[..., 0]
        theta[:, :, 2] = (2 * centre + 1) / RENDER - 1
        scale = torch.linalg.det(matrix[:, :, :2]).sqrt() * (RENDER / PATCH)
        level = (-torch.log2(scale)).round().clamp(0, 5).view(n, 1, 1, 1)
        sharp, most, level = patch, int(level.max()), level.to(self.device)
        for step in range(1, 1 + most):  # grid_sample does not average
            small = F.interpolate(F.avg_pool2d(sharp, 2**step), (PATCH, PATCH), mode="bilinear", align_corners=False)
            patch = torch.where(level == step, small, patch)
        grid = F.affine_grid(theta.to(self.device), (n, 4, size, size), align_corners=False)
        endless = torch.tensor([p.endless for p in pieces]).view(n, 1, 1, 1).to(self.device)
        inside = 1 - 1 / PATCH
        grid = torch.where(endless, grid.clamp(-inside, inside), grid)
        found = F.grid_sample(patch, grid, align_corners=False)
        return torch.lerp(canvas, found[:, :3], found[:, 3:])

    def clothe(self, canvas, cloth, pieces):
        """Suits and necks under the pieces that want them."""
        boxes = np.stack([self.data.boxes[p.row] for p in pieces])
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2
        middle[:, 0] = np.where([p.mirrored for p in pieces], RENDER - 1 - middle[:, 0], middle[:, 0])
        extent = boxes[:, 2:] - boxes[:, :2]
        linear = np.stack([p.matrix[:, :2] for p in pieces])
        scale = np.sqrt(np.linalg.det(linear))
        centre = np.einsum("nij,nj->ni", linear, middle) + np.stack([p.matrix[:, 2] for p in pieces])
        to = lambda values: torch.from_numpy(np.asarray(values, np.float32)).to(self.device)
        there = to([p.dressed for p in pieces])
        chin = to(centre[:, 1] + scale * extent[:, 1] * 0.5)
        width = to(scale * extent[:, 0] * 1.15)
        x = textures.neck(canvas, to(centre[:, 0]), chin, width, there, skin(len(pieces), self.device))
        return textures.suit(x, cloth, to(centre[:, 0]), chin + 0.12 * width, width, there)

    @torch.no_grad()
    def batch(self, n: int, rng, kind=None) -> Batch:
        """`n` scenes; all of one `kind` where it is given."""
        size, device = self.size, self.device
        names, shares = list(KINDS), np.array(list(KINDS.values()))
        plans = [Plan(kind or names[int(rng.choice(len(names), p=shares))], self.data, size, rng) for _ in range(n)]
        canvas = textures.textures(n, size, device, self.photos)
        # Cloths and fillings; every second scene shares its own with the one before.
        other = textures.textures(-(-n // 2), size, device, self.photos).repeat_interleave(2, 0)[:n]
        busy = torch.from_numpy(np.flatnonzero(rng.random(n) < 0.55)).to(device)
        if len(busy):
            canvas[busy] = textures.shapes(canvas[busy], other[busy])
        for slot in range(max((len(p.pieces) for p in plans), default=0)):
            which = [i for i, p in enumerate(plans) if slot < len(p.pieces)]
            pieces = [plans[i].pieces[slot] for i in which]
            rows = torch.tensor(which, device=device)
            points = np.stack([self.data.points[p.row] for p in pieces])
            flipped = points.copy()
            flipped[..., 0] = RENDER - 1 - points[..., 0]
            points = np.where(np.array([p.mirrored for p in pieces])[:, None, None], flipped[:, [1, 0, 2, 4, 3]], points)
            below = canvas[rows]
            if any(p.dressed for p in pieces):
                below = self.clothe(below, other[rows].roll(1, 0), pieces)
            canvas[rows] = self.paste(below, self.patches(pieces, torch.from_numpy(points).to(device)), pieces)
        smallest = [min((float((b[2:] - b[:2]).max()) for b in p.boxes), default=size) for p in plans]
        soft = torch.tensor([p.kind in ("portrait", "negative", "plain") and s > 110 for p, s in zip(plans, smallest)], device=device)
        strength = torch.tensor([0.35 if p.kind == "plain" else 1.0 for p in plans], device=device)
        pictures = degradation.photographed(canvas, strength, soft)
        x, y = textures.coordinates(size, device)
        limit = lambda values: torch.tensor(values, device=device).view(n, 1, 1, 1)
        pictures = pictures * (x < limit([p.width for p in plans])) * (y < limit([p.height for p in plans]))
        boxes, points = np.ones((n, MOST, 4), np.float32), np.ones((n, MOST, 10), np.float32)
        for i, p in enumerate(plans):
            if p.boxes:
                boxes[i, : len(p.boxes)], points[i, : len(p.points)] = np.stack(p.boxes), np.stack(p.points)
        return Batch(
            (pictures * 255).round() / 255, torch.from_numpy(boxes).to(device), torch.from_numpy(points).to(device),
            torch.tensor([len(p.boxes) for p in plans], device=device), [p.kind for p in plans],
        )
