"""A person's geometry: the neutral head with hair and glasses once per identity, posed and dressed for every picture."""

from dataclasses import dataclass

import numpy as np

from . import assets, hair, wear
from .raster import vertex_normals

HEAD_PIVOT = np.array([0.0, 6.35, 0.15], np.float32)
BODY_PIVOT = np.array([0.0, 5.6, 0.0], np.float32)


def rotation(yaw, pitch, roll):
    """Rotation matrix; positive yaw turns the face to the picture's right, positive pitch looks down, roll is in the image."""
    cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    rx = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    rz = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return (rz @ ry @ rx).astype(np.float32)


@dataclass
class Mesh:
    pos: np.ndarray
    normal: np.ndarray
    canon: np.ndarray
    attr: np.ndarray
    tri: np.ndarray
    mat: np.ndarray
    cull: np.ndarray
    casts: np.ndarray


class Person:
    """The geometry of one `Identity`."""

    def __init__(self, who):
        a = assets.load()
        self.who, self.a = who, a
        base = a.base
        pos = a.morph(who.morphs)
        # One size and place for everybody: centre of the face and its height as in the base mesh, up to `who.scale`.
        self.face = (base[:, 1] > 6.1) & (base[:, 1] < 8.0) & (base[:, 2] > 0.8) & (a.eye_side == 0) & (a.inside_mouth < 0.5)
        ref = (base[:, 1] > 6.1) & (base[:, 1] < 8.4) & (a.head_weight > 0.9)
        k = np.ptp(base[ref, 1]) / np.ptp(pos[ref, 1]) * who.scale
        centre = pos[ref].mean(0)
        pos = (pos - centre) * k + base[ref].mean(0)
        self.scale = k
        self.neutral = pos.astype(np.float32)
        self.skin_tri = a.triangles[a.materials == assets.SKIN]
        normal = vertex_normals(self.neutral, self.skin_tri)
        self.scalp = hair.scalp_hair(who, self.neutral, base, self.skin_tri, normal, a.ears)
        self.beard = hair.beard_hair(who, self.neutral, base, self.skin_tri, normal, a.lips)
        self.body_tri = a.triangles
        front = base[:, 2] > 1.4
        nose = front & (np.abs(base[:, 0]) < 0.03) & (base[:, 1] > 6.85) & (base[:, 1] < 7.0)
        self.nose_tip = int(np.flatnonzero(nose)[np.argmax(base[nose, 2])])
        lips = np.flatnonzero((a.lips > 0.5) & (np.abs(base[:, 1] - 6.61) < 0.05))
        self.mouth = (int(lips[np.argmin(base[lips, 0])]), int(lips[np.argmax(base[lips, 0])]))
        self.eyes = [np.flatnonzero(a.eye_side == side) for side in (2, 1)]  # viewer's left is the person's right
        self.glasses = None
        if who.glasses != "none":
            c = [self.neutral[e].mean(0) for e in self.eyes]
            brow = (base[:, 2] > 1.0) & (base[:, 1] > 7.1) & (base[:, 1] < 7.55) & (np.abs(base[:, 0]) > 0.12) & (np.abs(base[:, 0]) < 0.5)
            z = self.neutral[brow, 2].max() + 0.035
            ear = [np.array([s * np.abs(self.neutral[a.ears > 0.5, 0]).min() * 1.03, c[0][1] + 0.02, 0.45]) for s in (-1, 1)]
            self.glasses = wear.glasses(who.glasses, c[0], c[1], z, ear[0], ear[1])
        self.earrings = None
        if who.earrings:
            lobes = []
            for s in (-1, 1):
                ear = np.flatnonzero((a.ears > 0.5) & (base[:, 0] * s > 0))
                lobes.append(self.neutral[ear[np.argmin(base[ear, 1])]])
            self.earrings = wear.earrings(np.array(lobes))
        # Attributes of the body that never change.
        n = len(base)
        self.canon = base.copy()
        self.attr = np.zeros((n, 4), np.float32)
        self.attr[:, 0], self.attr[:, 1], self.attr[:, 2] = a.lips, a.inside_mouth, a.ears
        for side, ids in enumerate(self.eyes):
            centre = base[ids].mean(0)
            self.canon[ids] = base[ids] - centre
            self.attr[ids, 0] = 1 + side

    def pose(self, expression, head, body, collar):
        """The `Mesh` and key points for expression weights (name -> amount), head and body rotations, and a collar kind."""
        a = self.a
        pos = self.neutral.copy()
        if expression:
            rows = [a.index[f"expression/{n}"] for n in expression]
            amounts = np.array(list(expression.values()), np.float32) * self.scale
            pos += (amounts @ a.flat[rows]).reshape(-1, 3)
        moved = pos - self.neutral
        normal = vertex_normals(pos, a.triangles)
        for ids in self.eyes:
            ball = pos[ids] - pos[ids].mean(0)
            normal[ids] = ball / np.linalg.norm(ball, axis=1, keepdims=True)
        # Clothes stand off the body.
        plane = (5.80 - 0.25 * (a.base[:, 2] - 0.2)) - a.base[:, 1]
        off = np.clip(plane / 0.15, 0, 1) * 0.05
        pos += normal * off[:, None]
        ring = wear.neckline(self.neutral, a.base) if collar else None

        pieces = [(pos, normal, self.canon, self.attr, a.triangles, a.materials, a.head_weight)]

        def head_part(part, material):
            pieces.append((part.pos, part.normal, part.canon, np.zeros((len(part.pos), 4), np.float32), part.tri,
                           np.full(len(part.tri), material, np.int32), np.ones(len(part.pos), np.float32)))

        for strips, material in ((self.scalp, assets.HAIR), (self.beard, assets.BEARD)):
            if strips is None:
                continue
            p = strips.pos
            if material == assets.BEARD:
                p = p + np.einsum("vk,vkd->vd", strips.root_bary, moved[self.skin_tri[strips.root_tri]])
            w = np.clip((p[:, 1] - 4.9) / 1.5, 0, 1)
            pieces.append((p, strips.normal, strips.canon, strips.attr, strips.tri, np.full(len(strips.tri), material, np.int32), w * w * (3 - 2 * w)))
        if self.glasses is not None:
            head_part(self.glasses[0], assets.FRAME)
        if self.earrings is not None:
            head_part(self.earrings, assets.EARRING)
        if collar:
            part = wear.collar(collar, ring)
            pieces.append((part.pos, part.normal, part.canon, np.zeros((len(part.pos), 4), np.float32), part.tri,
                           np.full(len(part.tri), assets.COLLAR, np.int32), np.full(len(part.pos), 0.06, np.float32)))
        tris, offset = [], 0
        for piece in pieces:
            tris.append(piece[4] + offset)
            offset += len(piece[0])
        cat = lambda k: np.concatenate([p[k] for p in pieces]).astype(np.float32)
        P, N, w = cat(0), cat(1), cat(6)[:, None]
        attr = cat(3)
        turn = head @ body.T
        q = P + w * ((P - HEAD_PIVOT) @ (turn - np.eye(3, dtype=np.float32)).T)
        n = N + w * (N @ (turn - np.eye(3, dtype=np.float32)).T)
        P = (q - BODY_PIVOT) @ body.T + BODY_PIVOT
        N = n @ body.T
        mat = np.concatenate([p[5] for p in pieces]).astype(np.int32)
        strands = [i for i, p in enumerate(pieces) if p[5][0] in (assets.HAIR, assets.BEARD)]
        starts = np.cumsum([0] + [len(p[0]) for p in pieces])
        for i in strands:
            sl = slice(starts[i], starts[i + 1])
            attr[sl, :3] = attr[sl, :3] @ head.T
        tri = np.concatenate(tris).astype(np.int32)
        lash = mat == assets.LASH
        lashes = (tri[lash], P)
        tri, mat = tri[~lash], mat[~lash]
        mesh = Mesh(P.astype(np.float32), N.astype(np.float32), cat(2), attr, tri, mat,
                    (mat == assets.SKIN) | (mat == assets.EYE) | (mat == assets.TEETH), np.ones(len(mat), np.bool_))
        lens = None
        if self.glasses is not None:
            l = self.glasses[1]
            p = l.pos + ((l.pos - HEAD_PIVOT) @ (turn - np.eye(3, dtype=np.float32)).T)
            lens = ((p - BODY_PIVOT) @ body.T + BODY_PIVOT, l.tri)
        eye_points = []
        for ids in self.eyes:
            eye = P[ids]
            c = eye.mean(0)
            front = head @ np.array([0, 0, 1.0])
            eye_points.append(c + front * 0.15 * self.scale)
        marks = np.stack(eye_points + [P[self.nose_tip], P[self.mouth[0]], P[self.mouth[1]]])
        return mesh, lens, lashes[0], marks, P[: len(self.face)][self.face]
