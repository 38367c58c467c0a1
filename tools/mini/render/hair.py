"""Hair and beards as ribbons grown from the head: every strand is a short strip of triangles."""

from dataclasses import dataclass

import numpy as np
from numba import njit

from .raster import FAST, smooth

LINE_ANGLE = np.array([0, 0.35, 0.65, 0.85, 1.05, 1.22, 1.36, 1.5, 1.75, 2.0, 2.4, 3.2])
LINE_HEIGHT = np.array([8.04, 8.06, 8.07, 7.93, 7.62, 7.2, 7.12, 7.5, 7.45, 6.95, 6.7, 6.62])
CENTRE_Z = 0.55


@dataclass
class Strips:
    """Triangles of a bundle of strands, with the place on the skin where each strand starts."""

    pos: np.ndarray  # [V,3]
    normal: np.ndarray  # [V,3]
    canon: np.ndarray  # [V,3] across, along, strand tone
    attr: np.ndarray  # [V,4] tangent, depth shade
    tri: np.ndarray  # [T,3]
    root_tri: np.ndarray  # [V] triangle of the skin
    root_bary: np.ndarray  # [V,3]


def hairline(canon, hair):
    """Height of a canonical point above the hairline (positive on the scalp)."""
    angle = np.arctan2(np.abs(canon[:, 0]), canon[:, 2] - CENTRE_Z)
    return canon[:, 1] - line_height(angle, hair)


def line_height(angle, hair):
    base = np.interp(angle, LINE_ANGLE, LINE_HEIGHT)
    front = np.clip(1 - angle / 1.1, 0, 1)
    temple = np.exp(-(((angle - 0.62) / 0.25) ** 2))
    return base + hair["line"] * front + hair["recede"] * temple


@njit(**FAST)
def beard_mask(x, y, z, kind):
    """How much beard grows at a canonical point; kind 1 full, 2 moustache, 3 goatee."""
    ax = abs(x)
    if z < 0.35:
        return 0.0
    moustache = smooth(6.865, 6.83, y) * smooth(6.66, 6.69, y) * smooth(0.36, 0.28, ax) * smooth(1.2, 1.3, z)
    if kind == 2:
        return moustache
    chin = smooth(6.57, 6.50, y + 0.35 * max(0.0, 0.12 - ax)) * smooth(5.98, 6.1, y) * smooth(0.95, 1.1, z)
    if kind == 3:
        around = smooth(0.40, 0.34, ax) * smooth(0.255, 0.285, ax) * smooth(6.80, 6.7, y) * smooth(6.3, 6.4, y) * smooth(1.1, 1.2, z)
        return max(moustache, max(around, chin * smooth(0.34, 0.26, ax)))
    top = 6.60 + max(0.0, ax - 0.30) * 1.05
    jaw = smooth(top + 0.05, top - 0.05, y) * smooth(5.98, 6.12, y + 0.12 * ax) * smooth(0.27, 0.31, ax) * smooth(0.86, 0.78, ax) * smooth(0.45, 0.6, z)
    side = smooth(0.62, 0.68, ax) * smooth(7.25, 7.15, y) * smooth(6.6, 6.7, y) * smooth(0.58, 0.66, z) * smooth(0.98, 0.9, z)
    return max(max(moustache, chin), max(jaw, side))


@njit(**FAST)
def beard_weights(canon, kind):
    out = np.zeros(canon.shape[0], np.float32)
    for i in range(canon.shape[0]):
        out[i] = beard_mask(canon[i, 0], canon[i, 1], canon[i, 2], kind)
    return out


def _unit(v):
    return v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-8)


def _scatter(rng, pos, tri, choose, count):
    """`count` random points on the chosen triangles, spread by area and weight."""
    p = pos[tri]
    area = np.linalg.norm(np.cross(p[:, 1] - p[:, 0], p[:, 2] - p[:, 0]), axis=1) * choose
    if area.sum() <= 1e-9:
        return np.zeros(0, np.int64), np.zeros((0, 3))
    t = rng.choice(len(tri), count, p=area / area.sum())
    b = rng.dirichlet([1, 1, 1], count)
    return t, b


def _skull(points):
    """Centre and radii of the axis-aligned ellipsoid closest to the points (symmetric in x)."""
    q = points
    m = np.stack([q[:, 0] ** 2, q[:, 1] ** 2, q[:, 2] ** 2, q[:, 1], q[:, 2]], 1)
    a, b, c, d, e = np.linalg.lstsq(m, np.ones(len(q)), rcond=None)[0]
    y0, z0 = -d / (2 * b), -e / (2 * c)
    k = 1 + b * y0 ** 2 + c * z0 ** 2
    return np.array([0, y0, z0]), np.sqrt(np.array([k / a, k / b, k / c]))


def ribbons(path, width, outward, tone, shade, root_tri, root_bary, taper=0.75):
    """Strips from strand centre lines `path` [N,K,3]; `outward` [N,K,3] is the side the strips face."""
    n, k, _ = path.shape
    tangent = _unit(np.gradient(path, axis=1))
    side = _unit(np.cross(tangent, outward))
    v = np.linspace(0, 1, k)[None, :, None]
    w = width[:, None, None] * (1 - taper * v ** 2.5) * np.minimum(1, 0.55 + 3 * v)
    both = np.stack([path - side * w, path + side * w], 2)  # N K 2 3
    face = _unit(np.cross(side, tangent))
    normal = _unit(outward * 0.75 + face * 0.5)
    bend = np.stack([normal - side * 0.55, normal + side * 0.55], 2)
    canon = np.empty((n, k, 2, 3), np.float32)
    canon[..., 0, 0], canon[..., 1, 0] = 0, 1
    canon[..., 1] = v
    canon[..., 2] = tone[:, None, None]
    attr = np.empty((n, k, 2, 4), np.float32)
    attr[..., :3] = tangent[:, :, None]
    attr[..., 3] = shade[..., None]
    i = np.arange(n * k * 2).reshape(n, k, 2)
    a, b, c, d = i[:, :-1, 0], i[:, :-1, 1], i[:, 1:, 0], i[:, 1:, 1]
    tri = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([b, d, c], -1).reshape(-1, 3)])
    rep = lambda x: np.repeat(x, k * 2, axis=0)
    return Strips(both.reshape(-1, 3).astype(np.float32), _unit(bend).reshape(-1, 3).astype(np.float32), canon.reshape(-1, 3),
                  attr.reshape(-1, 4), tri.astype(np.int32), rep(root_tri), rep(root_bary).astype(np.float32))


def join(parts):
    """One `Strips` of several."""
    parts = [p for p in parts if p is not None and len(p.pos)]
    if not parts:
        return None
    offset, tris = 0, []
    for p in parts:
        tris.append(p.tri + offset)
        offset += len(p.pos)
    cat = lambda name: np.concatenate([getattr(p, name) for p in parts])
    return Strips(cat("pos"), cat("normal"), cat("canon"), cat("attr"), np.concatenate(tris), cat("root_tri"), cat("root_bary"))


def scalp_hair(who, pos, canon, tri, normals, ear):
    """The hair of an identity on its neutral head; None for a bald one."""
    style, h = who.hair_style, who.hair
    if style == "bald":
        return None
    rng = np.random.default_rng([who.seed, 1])
    above = hairline(canon, h)
    on = np.clip(above[tri].min(1) / 0.06 + 0.5, 0, 1) * (ear[tri].max(1) < 0.3) * (canon[tri].mean(1)[:, 1] > 6.4)
    if style == "horseshoe":
        on *= np.clip((7.78 - canon[tri].mean(1)[:, 1]) / 0.08, 0, 1) * (canon[tri].mean(1)[:, 2] < 0.95)
    skull = (above > 0) & (ear < 0.3) & (canon[:, 1] > 7.1)
    centre, radii = _skull(pos[skull].astype(np.float64))
    longs = style in ("bob", "long", "wavy", "curly")
    count = {"buzz": 1500, "afro": 1700, "curly": 1500, "long": 1250, "wavy": 1250, "bob": 1250, "horseshoe": 700}.get(style, 1350)
    t, b = _scatter(rng, pos, tri, on, count)
    root = np.einsum("nk,nkd->nd", b, pos[tri[t]]).astype(np.float64)
    rc = np.einsum("nk,nkd->nd", b, canon[tri[t]])
    nrm = _unit(np.einsum("nk,nkd->nd", b, normals[tri[t]]))
    n = len(t)
    clumps = 46 if style not in ("curly", "afro") else 130
    seeds = root[rng.integers(0, n, clumps)]
    clump = np.argmin(((root[:, None] - seeds[None]) ** 2).sum(-1), 1)
    cr = rng.uniform(-1, 1, (clumps, 4))[clump]
    jitter = rng.normal(0, 1, (n, 3))
    front = np.clip((rc[:, 2] - 0.85) / 0.4, 0, 1) * np.clip((rc[:, 1] - 7.6) / 0.3, 0, 1)
    top = np.clip((rc[:, 1] - 7.75) / 0.4, 0, 1)
    part = h["part"] if style not in ("curly", "afro") else 0.0
    away = np.tanh((root[:, 0] - part) / 0.12)
    side_sign = np.sign(root[:, 0] + 1e-6)
    crown = np.array([0.05, centre[1] + radii[1], centre[2] - 0.35 * radii[2]])
    radial = _unit(root - crown)
    down = np.array([0, -1.0, 0])
    K, volume, length = 9, 0.03 + 0.03 * h["volume"], h["length"]
    gravity, stiff, wave, freq, width, lift = 0.0, 0.55, 0.0, 9.0, 0.038, 0.0
    d = nrm.copy()
    L = np.full(n, 0.3)
    comb = radial.copy()
    fringe_on = np.zeros(n, bool)
    if style == "buzz":
        L[:] = 0.055
        K, width, comb = 3, 0.02, nrm
    elif style in ("short", "pixie"):
        L = (0.16 + 0.20 * top) * length * (1.5 if style == "pixie" else 1)
        comb = _unit(radial * 0.9 + front[:, None] * np.array([0.7 * np.sign(part), 0.35, 0.25]) + nrm * 0.3 + cr[:, :3] * 0.35 * h["messy"])
        d = _unit(nrm * 0.6 + comb)
        lift = 0.05 * h["volume"]
    elif style == "spiky":
        L = (0.13 + 0.27 * top) * length
        comb = _unit(nrm + np.array([0, 0.35, 0.15]) + cr[:, :3] * 0.5 * h["messy"])
        d, stiff, width = comb, 0.9, 0.034
    elif style == "side":
        L = 0.14 + 0.85 * top * length
        comb = _unit(np.stack([away * 1.0, 0.1 - 0.3 * (1 - top), 0.35 * front - 0.5 * (1 - front)], 1) + radial * (1 - top)[:, None] + cr[:, :3] * 0.15)
        d = _unit(nrm * (0.4 + 0.8 * front[:, None] * h["volume"]) + comb)
        gravity, lift, K = 0.10, 0.10 * h["volume"], 10
    elif style == "slick":
        L = 0.25 + 0.75 * top * length
        comb = _unit(np.array([0, 0.1, -1.0]) + radial * 0.4 * (1 - top)[:, None] + cr[:, :3] * 0.12)
        d = _unit(nrm * 0.8 + comb)
        lift, K = 0.07 * h["volume"], 10
    elif style == "bun":
        knot = np.array([0, centre[1] + radii[1] * 0.93, centre[2] - radii[2] * 0.42])
        L = np.linalg.norm(root - knot, axis=1) * 1.12
        comb = _unit(knot - root)
        d = _unit(nrm * 0.3 + comb)
        stiff, volume, K, width = 0.25, 0.02, 9, 0.04
    elif style == "horseshoe":
        L = np.full(n, 0.2 * length)
        comb = _unit(radial + down * 0.5 + nrm * 0.4 + cr[:, :3] * 0.3)
    elif style == "afro":
        L = (0.36 + 0.22 * top) * length
        comb, d, stiff, wave, freq, K, width = nrm, nrm, 0.8, 0.05, 16, 9, 0.030
    elif style == "fringe":
        short = who.sex > 0.5
        L = np.full(n, 0.55 * length) if short else np.full(n, 1.75 * length)
        fringe_on = (front > 0.02) & (np.abs(rc[:, 0]) < 0.62)
        comb = _unit(radial + down * 0.3)
        d = _unit(nrm * 0.5 + comb)
        gravity, K, lift, stiff = 0.22, 14 if not short else 10, 0.05 * h["volume"], 0.6
        L[fringe_on] = (rc[fringe_on, 1] - 7.60) * 1.12 + 0.12 * rng.random(fringe_on.sum()) + 0.05
    elif longs:
        L = np.full(n, {"bob": 1.75, "long": 3.0, "wavy": 2.7, "curly": 1.7}[style] * length)
        comb = _unit(np.stack([away, 0.05 * np.ones(n), -0.35 * np.ones(n)], 1) + cr[:, :3] * 0.12)
        d = _unit(nrm * 0.9 + comb)
        gravity, K, stiff = 0.20, 16, 0.62
        wave = {"bob": 0.01, "long": 0.012, "wavy": 0.075, "curly": 0.085}[style] * h["curl"]
        freq = {"wavy": 17, "curly": 34}.get(style, 6)
        lift = {"curly": 0.16, "wavy": 0.07}.get(style, 0.04) * h["volume"]
        width = 0.05 if style != "curly" else 0.034
        K = 24 if style == "curly" else 18 if style == "wavy" else 16
    L = L * rng.uniform(0.86, 1.08, n)
    shell = rng.uniform(0, 1, n)  # inner to outer layer
    offset = volume * shell + lift * np.clip(shell + 0.2, 0, 1) + 0.012
    p = root.copy()
    path = np.empty((n, K, 3))
    path[:, 0] = root - nrm * 0.02
    step = (L / (K - 1))[:, None]
    clings = longs or style in ("fringe", "side", "slick", "bun")
    surface = style not in ("spiky", "afro", "buzz")
    for k in range(1, K):
        pull = comb
        if longs or (style == "fringe" and who.sex <= 0.5):
            # Past the widest point of the head hair hangs; until then it follows the parting.
            hang = np.clip((centre[1] + 0.62 - p[:, 1]) / 0.5, 0, 1)[:, None]
            pull = _unit(comb * (1 - hang) + (down + side_sign[:, None] * np.array([0.03, 0, 0])) * hang * 1.5)
        if fringe_on.any():
            f = np.array([0, -0.75, 0.5])
            pull = np.where(fringe_on[:, None], _unit(f + np.array([0.25 * np.sign(part), 0, 0]) + cr[:, :3] * 0.1), pull)
        d = _unit(d * stiff + pull * (1 - stiff) + down * gravity + jitter * 0.02 + cr[:, :3] * 0.035 * h["messy"])
        p = p + d * step
        if surface:
            e = (p - centre) / radii
            r = np.linalg.norm(e, axis=1)
            room = 1 + offset / radii.mean()
            inside = r < room
            out = centre + radii * e / r[:, None] * room[:, None]
            p = np.where(inside[:, None], out, p)
            g = _unit(e / radii)
            inward = np.minimum((d * g).sum(1), 0)[:, None]
            d = np.where(inside[:, None], _unit(d - g * inward), d)
            # Combed hair clings to the head until it hangs: what strays farther than the style allows is drawn back.
            cling = room * (1.03 + 0.05 * volume) + 0.5 * lift
            far = (r > cling) & (p[:, 1] > centre[1] - 0.1) & ~fringe_on & bool(clings)
            p = np.where(far[:, None], centre + radii * e / r[:, None] * cling[:, None], p)
            outward_speed = np.maximum((d * g).sum(1), 0)[:, None]
            d = np.where(far[:, None], _unit(d - g * outward_speed), d)
            if longs or style == "fringe":
                # The face stays free: hair in front of the ears is kept beside the cheeks.
                low = np.clip((8.0 - p[:, 1]) / 0.5, 0, 1) * np.clip((p[:, 2] - 0.45) / 0.25, 0, 1) * ~fringe_on
                limit = (0.70 + 0.05 * shell) * radii[0] / 0.74 * low
                p[:, 0] = np.where(np.abs(p[:, 0]) < limit, np.where(p[:, 0] >= 0, 1, -1) * limit, p[:, 0])
                back = (p[:, 1] < 7.6) & ~fringe_on
                p[back, 2] = np.minimum(p[back, 2], 0.80 + 0.25 * shell[back])
                # Neck and shoulders hold it off.
                q = p - np.array([0, 0, 0.05])
                rr = np.hypot(q[:, 0], q[:, 2])
                tight = (rr < 0.62) & (p[:, 1] < 6.8)
                s = np.where(tight, 0.62 / np.maximum(rr, 1e-3), 1)
                p[:, 0], p[:, 2] = p[:, 0] * s, 0.05 + q[:, 2] * s
                te = (p - np.array([0, 4.55, 0.1])) / np.array([2.1, 1.32 + 0.03, 0.98])
                tr = np.linalg.norm(te, axis=1)
                hit = tr < 1 + 0.05 * shell
                p = np.where(hit[:, None], np.array([0, 4.55, 0.1]) + te / tr[:, None] * np.array([2.1, 1.35, 0.98]) * (1 + 0.05 * shell)[:, None], p)
        path[:, k] = p
    outward = _unit(((path - centre) / radii ** 2) * np.array([1, np.where(longs, 0.25, 1.0), 1]))
    if longs:
        low = np.clip((centre[1] - path[..., 1:2]) / 0.6, 0, 1)
        flat = _unit(path * np.array([1, 0, 1]) - np.array([0, 0, 0.1]) + 1e-6)
        outward = _unit(outward * (1 - low) + flat * low)
    if wave > 0:
        v = np.linspace(0, 1, K)[None, :]
        tangent = _unit(np.gradient(path, axis=1))
        side = _unit(np.cross(tangent, outward))
        phase = cr[:, 3:4] * 9 + jitter[:, :1] * (0.9 if style == "curly" else 0.35)
        s = v * freq * h["curl"] + phase
        amp = wave * np.minimum(1, v * 3) * (1 + 0.3 * jitter[:, 1:2])
        path = path + side * (np.sin(s) * amp)[..., None] + outward * (np.cos(s) * amp * 0.8)[..., None]
        outward = _unit(outward + side * (np.cos(s) * 0.5)[..., None])
    tone = np.clip(0.5 + 0.28 * cr[:, 0] + 0.18 * jitter[:, 2], 0, 1)
    v = np.linspace(0, 1, K)[None, :]
    shade = (0.45 + 0.55 * shell[:, None]) * (0.62 + 0.38 * np.minimum(1, v * 2.2)) * np.ones((n, K))
    widths = width * rng.uniform(0.7, 1.2, n)
    out = [ribbons(path, widths, outward, tone, shade, t, b)]
    if style == "bun":
        out.append(_bun_ball(rng, centre, radii, h, t[0], b[0]))
    return join(out)


def _bun_ball(rng, centre, radii, h, t0, b0):
    """A knot of hair on top of the head: loops around a ball."""
    n, k, r = 240, 10, 0.27 * h["volume"] ** 0.5
    c = np.array([0, centre[1] + radii[1] * 1.0 + r * 0.45, centre[2] - radii[2] * 0.32])
    axis = _unit(rng.normal(0, 1, (n, 3)) * (0.5, 1, 0.5) + (0, 1.2, 0))
    u = _unit(np.cross(axis, rng.normal(0, 1, (n, 3))))
    w = np.cross(axis, u)
    a = np.linspace(0, 1.9, k)[None, :, None] + rng.uniform(0, 6.28, (n, 1, 1))
    lat = rng.uniform(-0.9, 0.9, (n, 1, 1))
    unit = np.sqrt(1 - lat ** 2) * (u[:, None] * np.cos(a) + w[:, None] * np.sin(a)) + lat * axis[:, None]
    layer = rng.uniform(0.86, 1.03, (n, 1, 1))
    path = c + unit * r * layer * (1.05, 0.9, 1.0)
    shade = np.clip((layer[..., 0] - 0.8) * 4, 0.3, 1) * np.ones((n, k))
    return ribbons(path, np.full(n, 0.045), unit, rng.uniform(0.3, 0.8, n), shade, np.full(n, t0), np.repeat(b0[None], n, 0), taper=0.3)


def beard_hair(who, pos, canon, tri, normals, lips):
    """Moustache or beard as short strands; None where the identity has none (stubble is painted)."""
    kind = {"moustache": 2, "goatee": 3, "beard": 1, "long beard": 1}.get(who.facial_hair)
    if kind is None:
        return None
    rng = np.random.default_rng([who.seed, 2])
    weight = beard_weights(canon.astype(np.float32), kind) * (lips < 0.15)
    on = weight[tri].min(1)
    count = {1: 1500, 2: 380, 3: 700}[kind]
    t, b = _scatter(rng, pos, tri, on, count)
    if len(t) == 0:
        return None
    root = np.einsum("nk,nkd->nd", b, pos[tri[t]]).astype(np.float64)
    rc = np.einsum("nk,nkd->nd", b, canon[tri[t]])
    nrm = _unit(np.einsum("nk,nkd->nd", b, normals[tri[t]]))
    n, k = len(t), 5
    lip = (rc[:, 1] > 6.66) & (np.abs(rc[:, 0]) < 0.36) & (rc[:, 2] > 1.2)
    long = who.facial_hair == "long beard"
    length = np.where(lip, 0.10, (0.42 if long else 0.13) * np.where(rc[:, 1] < 6.5, 1.0, 0.6)) * who.beard_length * rng.uniform(0.75, 1.15, n)
    sideways = np.sign(root[:, 0])[:, None] * np.array([1.0, 0, 0])
    d = np.where(lip[:, None], nrm * 0.5 + sideways * 0.8 + np.array([0, -0.55, 0]), nrm * 0.4 + np.array([0, -1.0, 0.15]))
    d = _unit(d + rng.normal(0, 0.16, (n, 3)))
    path = np.empty((n, k, 3))
    path[:, 0] = root - nrm * 0.01
    p = root.copy()
    for i in range(1, k):
        d = _unit(d + np.array([0, -0.22, 0]))
        p = p + d * (length / (k - 1))[:, None]
        path[:, i] = p
    outward = np.repeat(_unit(nrm + np.array([0, 0.1, 0.3]))[:, None], k, 1)
    v = np.linspace(0, 1, k)[None, :]
    shade = (0.6 + 0.4 * v) * np.ones((n, k))
    return ribbons(path, rng.uniform(0.010, 0.019, n), outward, rng.uniform(0.2, 0.8, n), shade, t, b)
