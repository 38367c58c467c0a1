"""Glasses, earrings and collars: small parts built to the size of a person."""

from dataclasses import dataclass

import numpy as np

NECK_AXIS_Z = 0.12


@dataclass
class Part:
    pos: np.ndarray
    normal: np.ndarray
    canon: np.ndarray
    tri: np.ndarray


def _unit(v):
    return v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-8)


def _grid(points, wrap):
    """Triangles and normals of a grid of points [A,B,3]; `wrap` closes the first direction."""
    a, b, _ = points.shape
    i = np.arange(a * b).reshape(a, b)
    if wrap:
        i = np.concatenate([i, i[:1]])
    q = [i[:-1, :-1], i[1:, :-1], i[1:, 1:], i[:-1, 1:]]
    tri = np.concatenate([np.stack([q[0], q[1], q[2]], -1).reshape(-1, 3), np.stack([q[0], q[2], q[3]], -1).reshape(-1, 3)])
    if wrap:
        du = np.roll(points, -1, 0) - np.roll(points, 1, 0)
    else:
        du = np.gradient(points, axis=0)
    normal = _unit(np.cross(du, np.gradient(points, axis=1)))
    return tri, normal.reshape(-1, 3)


def tube(path, radius, closed, sides=7):
    """A tube around a polyline [N,3]."""
    tangent = _unit(np.roll(path, -1, 0) - np.roll(path, 1, 0)) if closed else _unit(np.gradient(path, axis=0))
    up = np.where(np.abs(tangent[:, 2:3]) < 0.9, np.array([[0, 0, 1.0]]), np.array([[0, 1.0, 0]]))
    u = _unit(np.cross(tangent, up))
    w = np.cross(tangent, u)
    a = np.linspace(0, 2 * np.pi, sides)[None, :, None]
    normal = np.cos(a) * u[:, None] + np.sin(a) * w[:, None]
    points = path[:, None] + normal * radius
    tri, _ = _grid(points, closed)
    return points.reshape(-1, 3), normal.reshape(-1, 3), tri


def _join(parts):
    offset, tris = 0, []
    for p in parts:
        tris.append(p[2] + offset)
        offset += len(p[0])
    pos = np.concatenate([p[0] for p in parts]).astype(np.float32)
    return Part(pos, np.concatenate([p[1] for p in parts]).astype(np.float32), np.zeros_like(pos), np.concatenate(tris).astype(np.int32))


def glasses(kind, left, right, front_z, ear_left, ear_right):
    """Frame and lenses for eye centres `left` and `right` [3]; returns two `Part`s."""
    frames, lenses = [], []
    half = abs(left[0] - right[0]) / 2
    rx = {"round": 0.70, "square": 0.80, "cat": 0.80, "thin": 0.76}[kind] * half
    ry = {"round": 0.70, "square": 0.60, "cat": 0.56, "thin": 0.46}[kind] * half
    power = {"round": 2.0, "square": 4.5, "cat": 2.6, "thin": 3.2}[kind]
    radius = {"round": 0.020, "square": 0.034, "cat": 0.032, "thin": 0.014}[kind]
    a = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    centre_x = (left[0] + right[0]) / 2
    for eye, ear in ((left, ear_left), (right, ear_right)):
        side = np.sign(eye[0] - centre_x)
        c, s = np.cos(a), np.sin(a)
        scale = (np.abs(c) ** power + np.abs(s) ** power) ** (-1 / power)
        x, y = rx * c * scale, ry * s * scale
        if kind == "cat":
            y = y + 0.16 * half * np.clip(x * side / rx, 0, 1) * np.clip(y / ry + 0.3, 0, 1)
        ex = eye[0] + side * 0.03
        bend = 0.10 * np.clip((x * side + rx) / (2 * rx), 0, 1) ** 2  # rims follow the face
        rim = np.stack([ex + x, eye[1] - 0.02 + y, front_z - bend], 1)
        frames.append(tube(rim, radius, True))
        centre = rim.mean(0)
        pts = np.concatenate([centre[None], rim])
        n = len(rim)
        fan = np.stack([np.zeros(n), 1 + np.arange(n), 1 + (np.arange(n) + 1) % n], 1).astype(np.int64)
        lenses.append((pts, np.tile([[0, 0, 1.0]], (len(pts), 1)) + np.concatenate([[[0, 0, 0]], (rim - centre) * 0.5]), fan))
        outer = rim[np.argmax(rim[:, 0] * side * 1.0 + rim[:, 1] * 0.6)]
        path = np.linspace(outer, ear + np.array([side * 0.02, 0.06, 0.05]), 8)
        path[1:-1, 0] += side * 0.05
        frames.append(tube(path, max(radius * 0.85, 0.016), False))
    inner = 0.30 * half
    b = np.linspace(-1, 1, 9)[:, None]
    path = np.concatenate([centre_x + b * (half - rx + inner * 0.15 + 0.02), left[1] + 0.04 + 0.06 * (1 - b ** 2), front_z + 0.02 + 0.02 * (1 - b ** 2)], 1)
    frames.append(tube(path, max(radius * 0.9, 0.015), False))
    return _join(frames), _join(lenses)


def earrings(lobes, radius=0.055):
    """Small balls at the ear lobes [2,3]."""
    parts = []
    for lobe in lobes:
        u = np.linspace(0, 2 * np.pi, 10, endpoint=False)
        v = np.linspace(-np.pi / 2, np.pi / 2, 7)
        n = np.stack([np.cos(u)[:, None] * np.cos(v), np.ones((10, 1)) * np.sin(v), np.sin(u)[:, None] * np.cos(v)], -1)
        points = lobe + np.array([0, -0.05, 0]) + n * radius
        tri, _ = _grid(points, True)
        parts.append((points.reshape(-1, 3), n.reshape(-1, 3), tri))
    return _join(parts)


def neckline(pos, canon):
    """Radius [48] around the neck axis and height of the collar line, by angle from the front, on a person's body."""
    plane = canon[:, 1] - (5.80 - 0.25 * (canon[:, 2] - 0.2))
    near = (np.abs(plane) < 0.16) & (np.hypot(canon[:, 0], canon[:, 2] - NECK_AXIS_Z) < 1.25)
    p = pos[near]
    angle = np.arctan2(p[:, 0], p[:, 2] - NECK_AXIS_Z)
    r, y, w = np.hypot(p[:, 0], p[:, 2] - NECK_AXIS_Z), p[:, 1], np.exp(-((plane[near] / 0.08) ** 2))
    grid = np.linspace(-np.pi, np.pi, 48, endpoint=False)
    k = np.exp(-((np.angle(np.exp(1j * (grid[:, None] - angle[None]))) / 0.25) ** 2)) * w[None]
    k /= k.sum(1, keepdims=True) + 1e-9
    return grid, k @ r, k @ y


def collar(kind, ring):
    """The collar of a piece of clothing: a `Part` whose canon is (around, along profile, tint), or None."""
    angle, r, y = ring
    front = np.cos(angle) * 0.5 + 0.5  # 1 at the front
    if kind == "crew":
        profile = [(0.10, -0.12), (0.085, -0.02), (0.055, 0.07), (0.01, 0.08), (-0.03, 0.02)]
        points = [(r + dr + 0 * angle, y + dy) for dr, dy in profile]
        wrap = True
    elif kind == "turtle":
        profile = [(0.16, -0.14), (0.10, 0.0), (0.07, 0.12), (0.075, 0.28), (0.055, 0.38), (0.0, 0.40), (-0.05, 0.34)]
        shrink = lambda dy: np.clip(dy / 0.4, 0, 1)
        points = [(r * (1 - 0.22 * shrink(dy)) + dr, y + dy * (0.75 + 0.35 * (1 - front)) + 0 * angle) for dr, dy in profile]
        wrap = True
    elif kind == "hood":
        thick = 0.13 + 0.17 * (1 - front)
        ts = np.linspace(-0.6, 4.2, 9)
        points = [(r + 0.10 + thick * (0.55 + np.cos(t)), y + 0.02 + thick * (0.15 + 0.95 * np.sin(t)) - 0.10 * front) for t in ts]
        wrap = True
    elif kind == "shirt":
        keep = np.abs(np.angle(np.exp(1j * angle))) > 0.16
        order = np.argsort(angle % (2 * np.pi))
        order = order[keep[order]]
        angle, r, y, front = angle[order], r[order], y[order], front[order]
        tip = np.clip((front - 0.72) / 0.28, 0, 1) ** 2
        points = [(r * 0.97 + 0.02, y - 0.08), (r * 0.90 + 0.04, y + 0.16 - 0.10 * front), (r * 0.92 + 0.075, y + 0.17 - 0.10 * front),
                  (r + 0.11 + 0.05 * tip, y + 0.03 - 0.10 * front), (r + 0.16 + 0.10 * tip, y - 0.06 - 0.30 * tip)]
        wrap = False
    else:
        return None
    pts = np.stack([np.stack([np.sin(angle) * rr, yy, NECK_AXIS_Z + np.cos(angle) * rr], 1) for rr, yy in points], 1)
    tri, normal = _grid(pts, wrap)
    radial = _unit(pts.reshape(-1, 3) * np.array([1, 0, 1]) - np.array([0, 0, NECK_AXIS_Z]))
    normal = np.where((normal * radial).sum(1, keepdims=True) < -0.3, -normal, normal)
    canon = np.zeros((len(angle), len(points), 3), np.float32)
    canon[..., 0] = (angle * 1.0)[:, None]
    canon[..., 1] = np.linspace(0, 1, len(points))[None]
    return Part(pts.reshape(-1, 3).astype(np.float32), normal.astype(np.float32), canon.reshape(-1, 3), tri.astype(np.int32))
