"""Numba kernels: vertex normals, z-buffer, shadow map, value noise."""

import math

import numpy as np
from numba import njit

FAST = dict(cache=True, fastmath={"nsz", "arcp", "contract", "afn", "reassoc"}, nogil=True)


@njit(**FAST)
def vertex_normals(pos, tri):
    """Area-weighted unit normals [V,3] of a triangle mesh."""
    out = np.zeros_like(pos)
    for t in range(tri.shape[0]):
        a, b, c = tri[t, 0], tri[t, 1], tri[t, 2]
        ux, uy, uz = pos[b, 0] - pos[a, 0], pos[b, 1] - pos[a, 1], pos[b, 2] - pos[a, 2]
        vx, vy, vz = pos[c, 0] - pos[a, 0], pos[c, 1] - pos[a, 1], pos[c, 2] - pos[a, 2]
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for k in (a, b, c):
            out[k, 0] += nx
            out[k, 1] += ny
            out[k, 2] += nz
    for v in range(out.shape[0]):
        n = math.sqrt(out[v, 0] ** 2 + out[v, 1] ** 2 + out[v, 2] ** 2) + 1e-12
        out[v, 0] /= n
        out[v, 1] /= n
        out[v, 2] /= n
    return out


@njit(**FAST)
def rasterise(screen, tri, cull, depth, ident, bary):
    """Draws triangles into `depth` (larger is nearer), `ident` (triangle or -1) and `bary` (weights of corners 0 and 1).

    `screen` is [V,3]: x and y in pixels (centre of pixel i at i + 0.5) and a depth that grows towards the camera.
    Triangles with `cull` set are dropped when they face away.
    """
    h, w = depth.shape
    for t in range(tri.shape[0]):
        a, b, c = tri[t, 0], tri[t, 1], tri[t, 2]
        ax, ay = screen[a, 0], screen[a, 1]
        bx, by = screen[b, 0], screen[b, 1]
        cx, cy = screen[c, 0], screen[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area > 0 and cull[t]:  # y points down, so a front face has a negative area
            continue
        if abs(area) < 1e-9:
            continue
        x0 = max(0, int(math.ceil(min(ax, bx, cx) - 0.5)))
        x1 = min(w - 1, int(math.floor(max(ax, bx, cx) - 0.5)))
        if x0 > x1:
            continue
        y0 = max(0, int(math.ceil(min(ay, by, cy) - 0.5)))
        y1 = min(h - 1, int(math.floor(max(ay, by, cy) - 0.5)))
        inv = 1.0 / area
        za, zb, zc = screen[a, 2], screen[b, 2], screen[c, 2]
        for y in range(y0, y1 + 1):
            py = y + 0.5
            for x in range(x0, x1 + 1):
                px = x + 0.5
                w0 = ((bx - px) * (cy - py) - (by - py) * (cx - px)) * inv
                if w0 < 0:
                    continue
                w1 = ((cx - px) * (ay - py) - (cy - py) * (ax - px)) * inv
                w2 = 1.0 - w0 - w1
                if w1 < 0 or w2 < 0:
                    continue
                z = w0 * za + w1 * zb + w2 * zc
                if z > depth[y, x]:
                    depth[y, x] = z
                    ident[y, x] = t
                    bary[y, x, 0] = w0
                    bary[y, x, 1] = w1


@njit(**FAST)
def depth_only(screen, tri, use, depth):
    """The z-buffer alone, for the shadow map."""
    h, w = depth.shape
    for t in range(tri.shape[0]):
        if not use[t]:
            continue
        a, b, c = tri[t, 0], tri[t, 1], tri[t, 2]
        ax, ay = screen[a, 0], screen[a, 1]
        bx, by = screen[b, 0], screen[b, 1]
        cx, cy = screen[c, 0], screen[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if abs(area) < 1e-9:
            continue
        x0 = max(0, int(math.ceil(min(ax, bx, cx) - 0.5)))
        x1 = min(w - 1, int(math.floor(max(ax, bx, cx) - 0.5)))
        if x0 > x1:
            continue
        y0 = max(0, int(math.ceil(min(ay, by, cy) - 0.5)))
        y1 = min(h - 1, int(math.floor(max(ay, by, cy) - 0.5)))
        inv = 1.0 / area
        for y in range(y0, y1 + 1):
            py = y + 0.5
            for x in range(x0, x1 + 1):
                px = x + 0.5
                w0 = ((bx - px) * (cy - py) - (by - py) * (cx - px)) * inv
                if w0 < 0:
                    continue
                w1 = ((cx - px) * (ay - py) - (cy - py) * (ax - px)) * inv
                w2 = 1.0 - w0 - w1
                if w1 < 0 or w2 < 0:
                    continue
                z = w0 * screen[a, 2] + w1 * screen[b, 2] + w2 * screen[c, 2]
                if z > depth[y, x]:
                    depth[y, x] = z


@njit(**FAST)
def hash3(x, y, z):
    """A number in [0,1) from three lattice coordinates."""
    h = np.uint32(x) * np.uint32(374761393) + np.uint32(y) * np.uint32(668265263) + np.uint32(z) * np.uint32(2147483647)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(1274126177)
    h = h ^ (h >> np.uint32(16))
    return np.float32(h & np.uint32(0xFFFFFF)) / np.float32(16777216.0)


@njit(**FAST)
def noise3(x, y, z):
    """Smooth value noise in [-1,1]."""
    fx, fy, fz = math.floor(x), math.floor(y), math.floor(z)
    ix, iy, iz = int(fx), int(fy), int(fz)
    tx, ty, tz = x - fx, y - fy, z - fz
    tx, ty, tz = tx * tx * (3 - 2 * tx), ty * ty * (3 - 2 * ty), tz * tz * (3 - 2 * tz)
    c00 = hash3(ix, iy, iz) * (1 - tx) + hash3(ix + 1, iy, iz) * tx
    c10 = hash3(ix, iy + 1, iz) * (1 - tx) + hash3(ix + 1, iy + 1, iz) * tx
    c01 = hash3(ix, iy, iz + 1) * (1 - tx) + hash3(ix + 1, iy, iz + 1) * tx
    c11 = hash3(ix, iy + 1, iz + 1) * (1 - tx) + hash3(ix + 1, iy + 1, iz + 1) * tx
    return 2 * ((c00 * (1 - ty) + c10 * ty) * (1 - tz) + (c01 * (1 - ty) + c11 * ty) * tz) - 1


@njit(**FAST)
def smooth(a, b, x):
    """Smooth step from 0 at a to 1 at b (a may exceed b)."""
    t = (x - a) / (b - a)
    if t <= 0:
        return 0.0
    if t >= 1:
        return 1.0
    return t * t * (3 - 2 * t)
