"""Painted backgrounds, sRGB in [0,1], recognisable and a little out of focus as behind a portrait."""

import cv2
import numpy as np

SIZE = 320
VARIANTS = 28
_BANK = {}


def _noise(rng, shape, cells):
    """Smooth noise in [0,1] with about `cells` blobs across."""
    n = max(2, int(cells))
    small = rng.random((n + 2, n + 2)).astype(np.float32)
    return np.clip(cv2.resize(small, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC), 0, 1)


def _fractal(rng, shape, cells, octaves=4):
    out, amp, total = 0, 1.0, 0
    for _ in range(octaves):
        out = out + amp * _noise(rng, shape, cells)
        total += amp
        amp *= 0.55
        cells *= 2
    return out / total


def _mix(a, b, t):
    t = np.asarray(t, np.float32)
    if t.ndim == 2:
        t = t[..., None]
    return np.asarray(a, np.float32) * (1 - t) + np.asarray(b, np.float32) * t


def _gradient(top, bottom, s=SIZE):
    return _mix(np.array(top, np.float32)[None, None], np.array(bottom, np.float32)[None, None], np.linspace(0, 1, s)[:, None].repeat(s, 1))


def _blobs(rng, img, count, radius, colours, where, alpha=1.0):
    s = img.shape[0]
    out = img.copy()
    for _ in range(count):
        x, y = where(rng)
        r = rng.uniform(*radius) * s
        c = np.array(colours[int(rng.integers(len(colours)))]) * rng.uniform(0.75, 1.15)
        cv2.ellipse(out, (int(x * s), int(y * s)), (max(1, int(r)), max(1, int(r * rng.uniform(0.7, 1.1)))), rng.uniform(0, 180), 0, 360,
                    [float(v) for v in c], -1, cv2.LINE_AA)
    return _mix(img, out, alpha)


def garden(rng):
    s = SIZE
    img = _gradient((0.62, 0.83, 0.98), (0.80, 0.93, 0.85))
    h = _fractal(rng, (s, s), 6)
    line = (0.22 + 0.14 * h[0])[None]
    yy = np.linspace(0, 1, s)[:, None]
    leaf = _fractal(rng, (s, s), 12, 5)
    green = _mix((0.10, 0.30, 0.07), (0.45, 0.70, 0.20), np.clip((leaf - 0.3) * 2.2, 0, 1))
    img = _mix(img, green, np.clip((yy - line) * 40, 0, 1))
    img = _blobs(rng, img, 260, (0.012, 0.035), [(0.16, 0.42, 0.10), (0.30, 0.58, 0.16), (0.08, 0.25, 0.08)], lambda r: (r.random(), r.uniform(0.35, 1)))
    flowers = [[(0.95, 0.25, 0.45), (0.98, 0.55, 0.70)], [(0.95, 0.2, 0.2), (1, 0.85, 0.25)], [(0.75, 0.4, 0.9), (1, 0.95, 0.95)], [(1, 0.8, 0.2), (0.98, 0.45, 0.6)]][int(rng.integers(4))]
    img = _blobs(rng, img, 130, (0.012, 0.034), flowers, lambda r: (r.random(), r.uniform(0.34, 1)))
    return cv2.GaussianBlur(img, (0, 0), s * 0.006)


def beach(rng):
    s = SIZE
    horizon = rng.uniform(0.40, 0.52)
    yy = np.linspace(0, 1, s)[:, None] * np.ones((1, s))
    img = _gradient((0.30, 0.62, 0.95), (0.80, 0.93, 1.0))
    cloud = _fractal(rng, (s, s), 4, 5)
    img = _mix(img, (1, 1, 1), np.clip((cloud - 0.55) * 4, 0, 0.8) * np.clip((horizon - yy) * 6, 0, 1))
    sea = _mix((0.06, 0.42, 0.68), (0.25, 0.80, 0.82), np.clip((yy - horizon) / 0.25, 0, 1))
    wave = _noise(rng, (s, 12), 40)
    wave = cv2.resize(wave, (s, s))
    sea = sea * (0.92 + 0.16 * wave[..., None])
    img = _mix(img, sea, np.clip((yy - horizon) * 120, 0, 1))
    shore = horizon + rng.uniform(0.20, 0.27) + 0.035 * np.sin(np.linspace(0, rng.uniform(4, 9), s) + rng.random() * 6)[None] + rng.uniform(-0.08, 0.08) * np.linspace(-1, 1, s)[None]
    sand = _mix((0.93, 0.82, 0.60), (0.85, 0.70, 0.47), _fractal(rng, (s, s), 20))
    img = _mix(img, (0.97, 0.99, 1.0), np.exp(-(((yy - shore + 0.012) / 0.016) ** 2)))
    img = _mix(img, sand, np.clip((yy - shore) * 60, 0, 1))
    if rng.random() < 0.55:  # a palm at the side
        x = rng.choice([rng.uniform(0.03, 0.2), rng.uniform(0.8, 0.97)])
        pts = np.array([[x * s + 10 * np.sin(t * 2), s * (0.75 - 0.65 * t)] for t in np.linspace(0, 1, 12)], np.int32)
        cv2.polylines(img, [pts], False, (0.40, 0.28, 0.16), 7, cv2.LINE_AA)
        cx, cy = pts[-1]
        for a in np.linspace(0, 6.28, 9):
            leaf = np.array([[cx + np.cos(a) * r, cy + np.sin(a) * r * 0.55 + (r / 60) ** 2 * 16] for r in np.linspace(0, 70, 9)], np.int32)
            cv2.polylines(img, [leaf], False, (0.12, 0.42, 0.14), 8, cv2.LINE_AA)
    return cv2.GaussianBlur(img, (0, 0), s * 0.005)


def city_street(rng):
    s = SIZE
    img = _gradient((0.70, 0.77, 0.85), (0.90, 0.90, 0.88))
    vx = rng.uniform(0.35, 0.65)
    for side in (0, 1):
        x = 0.0
        while x < 1:
            w = rng.uniform(0.18, 0.30) * (1 - 0.45 * x)
            reach = vx if side == 0 else 1 - vx
            x0, x1 = x * reach, min(1.0, x + w) * reach
            top0, top1 = 0.52 * x + rng.uniform(-0.12, 0.06), 0.52 * min(1, x + w)
            top = max(-0.1, min(top0, top1) + rng.uniform(-0.05, 0.05))
            base = 0.62 + 0.0 * x
            colour = np.array([(0.58, 0.36, 0.28), (0.55, 0.53, 0.50), (0.70, 0.63, 0.52), (0.40, 0.44, 0.50), (0.48, 0.30, 0.26)][int(rng.integers(5))]) * rng.uniform(0.75, 1.1)
            a, b = (x0, x1) if side == 0 else (1 - x1, 1 - x0)
            cv2.rectangle(img, (int(a * s), int(top * s)), (int(b * s), int((base + 0.3 * (1 - x)) * s)), [float(c) for c in colour], -1)
            step = 0.052 * (1 - 0.4 * x)
            y = top + 0.035
            while y < base + 0.05:
                n = max(2, int((b - a) / 0.05))
                for i in range(n):
                    lit = rng.random() < 0.35
                    c = (1.0, 0.88, 0.55) if lit else (0.20, 0.26, 0.33)
                    wx = a + (i + 0.22) * (b - a) / n
                    cv2.rectangle(img, (int(wx * s), int(y * s)), (int((wx + 0.55 * (b - a) / n) * s), int((y + step * 0.58) * s)), c, -1)
                y += step * 1.25
            x += w
    road = np.array([[vx * s, 0.60 * s], [vx * s + 2, 0.60 * s], [1.15 * s, s], [-0.15 * s, s]], np.int32)
    cv2.fillPoly(img, [road], (0.33, 0.33, 0.35), cv2.LINE_AA)
    for t in np.linspace(0.1, 1, 6):
        y = 0.6 + 0.4 * t * t
        cv2.line(img, (int((vx + (0.5 - vx) * t * t) * s), int(y * s)), (int((vx + (0.5 - vx) * t * t) * s), int((y + 0.04 * t) * s)), (0.92, 0.90, 0.80), max(1, int(5 * t)))
    lights = [(1, 0.75, 0.35), (1, 0.35, 0.25), (0.45, 0.9, 0.5), (1, 0.92, 0.7)]
    img = _mix(img, _blobs(rng, img, 16, (0.010, 0.024), lights, lambda r: (r.random(), r.uniform(0.50, 0.72))), 0.85)
    return cv2.GaussianBlur(img, (0, 0), s * 0.0065)


def library(rng):
    s = SIZE
    img = np.ones((s, s, 3), np.float32) * np.array([0.16, 0.09, 0.05], np.float32)
    shelf = rng.uniform(0.15, 0.19)
    y = -rng.uniform(0, shelf)
    palette = [(0.50, 0.12, 0.10), (0.13, 0.22, 0.36), (0.15, 0.32, 0.19), (0.68, 0.54, 0.30), (0.32, 0.18, 0.10), (0.75, 0.68, 0.55), (0.30, 0.12, 0.25), (0.72, 0.40, 0.13)]
    while y < 1:
        x = rng.uniform(-0.03, 0)
        while x < 1:
            w = rng.uniform(0.016, 0.042)
            if rng.random() < 0.05:
                x += w
                continue
            h = shelf * rng.uniform(0.62, 0.86)
            c = np.array(palette[int(rng.integers(len(palette)))]) * rng.uniform(0.75, 1.25)
            y1 = y + shelf * 0.92
            cv2.rectangle(img, (int(x * s), int((y1 - h) * s)), (int((x + w * 0.93) * s), int(y1 * s)), [float(v) for v in np.clip(c, 0, 1)], -1)
            if rng.random() < 0.6:
                k = y1 - h * rng.uniform(0.65, 0.85)
                cv2.line(img, (int(x * s), int(k * s)), (int((x + w * 0.93) * s), int(k * s)), (0.85, 0.72, 0.40), 2)
            x += w
        cv2.rectangle(img, (0, int((y + shelf * 0.92) * s)), (s, int((y + shelf) * s)), (0.45, 0.27, 0.13), -1)
        y += shelf
    for x in rng.uniform(0.02, 0.98, int(rng.integers(1, 3))):
        cv2.rectangle(img, (int(x * s), 0), (int((x + 0.035) * s), s), (0.42, 0.25, 0.12), -1)
    glow = _noise(rng, (s, s), 2)[..., None]
    img = img * (0.75 + 0.5 * glow) * np.array([1.08, 1.0, 0.88], np.float32)
    return cv2.GaussianBlur(img, (0, 0), s * 0.0045)


def studio(rng):
    s = SIZE
    c = np.array([(0.62, 0.63, 0.65), (0.52, 0.55, 0.60), (0.70, 0.67, 0.64), (0.45, 0.46, 0.48), (0.76, 0.76, 0.77)][int(rng.integers(5))], np.float32) * rng.uniform(0.9, 1.05)
    yy, xx = np.mgrid[0:s, 0:s] / s
    d = np.hypot(xx - rng.uniform(0.35, 0.65), yy - rng.uniform(0.35, 0.55))
    img = c * (1.22 - 0.75 * np.clip(d, 0, 1))[..., None]
    img = img * (0.97 + 0.06 * _fractal(rng, (s, s), 5)[..., None])
    return img.astype(np.float32)


def night_sky(rng):
    s = SIZE
    img = _gradient((0.015, 0.02, 0.09), (0.07, 0.11, 0.30))
    n = _fractal(rng, (s, s), 3, 5)
    img = _mix(img, [(0.35, 0.20, 0.55), (0.15, 0.35, 0.60), (0.45, 0.22, 0.42)][int(rng.integers(3))], np.clip((n - 0.5) * 2.2, 0, 0.55))
    img = cv2.GaussianBlur(img, (0, 0), 2)
    for _ in range(int(rng.integers(150, 260))):
        x, y = rng.random(2) * s
        b = rng.random() ** 2
        cv2.circle(img, (int(x), int(y)), 1 if b < 0.6 else 2 if b < 0.93 else 3, [float(v) for v in np.array([0.85, 0.9, 1.0]) * (0.45 + 0.55 * b)], -1, cv2.LINE_AA)
    if rng.random() < 0.75:
        x, y = rng.choice([rng.uniform(0.08, 0.25), rng.uniform(0.75, 0.92)]), rng.uniform(0.08, 0.25)
        r = rng.uniform(0.05, 0.085)
        glow = np.exp(-(((np.mgrid[0:s, 0:s][1] / s - x) ** 2 + (np.mgrid[0:s, 0:s][0] / s - y) ** 2) / (2 * r) ** 2))
        img = _mix(img, (0.75, 0.80, 1.0), 0.5 * glow)
        cv2.circle(img, (int(x * s), int(y * s)), int(r * s), (0.97, 0.96, 0.86), -1, cv2.LINE_AA)
    return np.clip(img, 0, 1).astype(np.float32)


def snow(rng):
    s = SIZE
    img = _gradient((0.58, 0.72, 0.88), (0.88, 0.93, 0.98))
    yy = np.linspace(0, 1, s)[:, None]
    for k, (base, c) in enumerate(((0.25, (0.62, 0.70, 0.82)), (0.38, (0.74, 0.81, 0.90)))):
        ridge = base + 0.20 * (_fractal(rng, (2, s), 5, 5)[0] - 0.5) * 2
        img = _mix(img, c, np.clip((yy - ridge[None]) * 80, 0, 1))
        img = _mix(img, (0.97, 0.98, 1.0), np.clip((yy - ridge[None]) * 80, 0, 1) * np.clip((ridge[None] + 0.10 - yy) * 14, 0, 1) * (_fractal(rng, (s, s), 16) > 0.45))
    ground = 0.60 + 0.05 * (_noise(rng, (2, s), 4)[0] - 0.5)
    img = _mix(img, _mix((0.97, 0.98, 1.0), (0.80, 0.87, 0.97), _fractal(rng, (s, s), 5)), np.clip((yy - ground[None]) * 60, 0, 1))
    for _ in range(int(rng.integers(5, 9))):  # firs under snow
        x, y, h = rng.random(), rng.uniform(0.58, 0.72), rng.uniform(0.18, 0.36)
        for k in range(4):
            top, low, w = y - h * (1 - k * 0.2), y - h * (0.62 - k * 0.2), h * (0.10 + 0.07 * k)
            cv2.fillPoly(img, [np.array([[x * s, top * s], [(x - w) * s, low * s], [(x + w) * s, low * s]], np.int32)], (0.16, 0.30, 0.27), cv2.LINE_AA)
            cv2.fillPoly(img, [np.array([[x * s, top * s], [(x - w * 0.6) * s, (low * 0.55 + top * 0.45) * s], [(x + w * 0.5) * s, (low * 0.6 + top * 0.4) * s]], np.int32)], (0.93, 0.96, 1.0), cv2.LINE_AA)
    img = cv2.GaussianBlur(img, (0, 0), s * 0.005)
    return _blobs(rng, img, 150, (0.003, 0.010), [(1, 1, 1)], lambda r: (r.random(), r.random()), 0.85)


def autumn_forest(rng):
    s = SIZE
    img = _gradient((0.95, 0.80, 0.50), (0.62, 0.34, 0.12))
    leaf = _fractal(rng, (s, s), 7, 5)
    img = _mix(img, _mix((0.72, 0.26, 0.05), (0.98, 0.66, 0.16), leaf), 0.75)
    for _ in range(int(rng.integers(7, 12))):
        x, w = rng.random(), rng.uniform(0.012, 0.045)
        lean = rng.uniform(-0.04, 0.04)
        c = np.array([0.22, 0.13, 0.08]) * rng.uniform(0.7, 1.5)
        cv2.fillPoly(img, [np.array([[x * s, 0], [(x + w) * s, 0], [(x + w * 1.4 + lean) * s, 0.86 * s], [(x - w * 0.4 + lean) * s, 0.86 * s]], np.int32)], [float(v) for v in c], cv2.LINE_AA)
    colours = [(0.93, 0.50, 0.08), (0.85, 0.25, 0.05), (0.98, 0.75, 0.20), (0.62, 0.15, 0.04)]
    img = _blobs(rng, img, 330, (0.010, 0.030), colours, lambda r: (r.random(), r.uniform(0, 0.6) ** 1.2))
    img = _blobs(rng, img, 260, (0.008, 0.022), colours, lambda r: (r.random(), r.uniform(0.75, 1.0)))
    return cv2.GaussianBlur(img, (0, 0), s * 0.006)


PAINTERS = {"garden": garden, "beach": beach, "city street": city_street, "library": library, "studio": studio, "night sky": night_sky,
            "snow": snow, "autumn forest": autumn_forest}


def paint(name, rng, size):
    """A background [size,size,3]: one of the painted variants, cropped, flipped and tinted at random."""
    k = int(rng.integers(VARIANTS))
    key = (name, k)
    if key not in _BANK:
        seed = [99, list(PAINTERS).index(name), k]
        _BANK[key] = (np.clip(PAINTERS[name](np.random.default_rng(seed)), 0, 1) * 255 + 0.5).astype(np.uint8)
    img = _BANK[key]
    s = img.shape[0]
    c = int(s * rng.uniform(0.84, 1.0))
    x, y = int(rng.integers(s - c + 1)), int(rng.integers(s - c + 1))
    img = img[y : y + c, x : x + c]
    if rng.random() < 0.5:
        img = img[:, ::-1]
    img = cv2.resize(np.ascontiguousarray(img), (size, size), interpolation=cv2.INTER_CUBIC if size > c else cv2.INTER_AREA).astype(np.float32) / 255
    return np.clip(img * rng.uniform(0.92, 1.06), 0, 1)
