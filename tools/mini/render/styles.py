"""The looks a portrait can have, as operations on the deferred buffers."""

from dataclasses import dataclass

import cv2
import numpy as np
from numba import njit

from . import assets
from .raster import FAST


@dataclass
class Buffers:
    """What `picture.render` hands to a style: all at the supersampled size; `out` is the picture's size."""

    colour: np.ndarray
    albedo: np.ndarray
    normal: np.ndarray
    label: np.ndarray
    depth: np.ndarray
    material: np.ndarray
    occlusion: np.ndarray
    key: np.ndarray
    lamps: np.ndarray
    to_light: np.ndarray
    back: np.ndarray
    glass: np.ndarray
    face_px: float
    rng: np.random.Generator
    light: str
    out: int


def tone(x):
    """Linear light to display values in [0,1] with a soft shoulder (curve of Hable's and Narkowicz's kind, then sRGB)."""
    x = np.maximum(x, 0) * 0.92
    y = x * (2.51 * x + 0.12) / (x * (2.43 * x + 0.62) + 0.16)
    return np.clip(y, 0, 1) ** (1 / 2.2)


def _down(img, size):
    return cv2.resize(img, (size, size), interpolation=cv2.INTER_AREA)


def _bytes(img):
    return (np.clip(img, 0, 1) * 255 + 0.5).astype(np.uint8)


def _lit_background(b):
    """The background under the scene's lamp (a lamp's colour tints it, dramatic light darkens it)."""
    tint = {"soft light": (1.0, 1.0, 1.0), "warm light": (1.10, 0.96, 0.78), "cold light": (0.78, 0.92, 1.12), "dramatic side light": (0.62, 0.60, 0.60)}[b.light]
    return b.back * np.array(tint, np.float32)


def _photo(b, full=False):
    """The photo at the supersampled size."""
    front = (b.material >= 0).astype(np.float32)[..., None]
    person = tone(b.colour)
    if b.glass is not None:
        g = b.glass[..., None]
        ramp = np.linspace(1, 0, b.glass.shape[0], dtype=np.float32)[:, None, None]
        person = np.where(g, person * 0.93 + 0.05 * ramp + 0.015, person)
    img = person * front + _lit_background(b) * (1 - front)
    if full:
        glow = cv2.GaussianBlur(img, (0, 0), b.face_px * 0.03)
        img = img + 0.10 * np.maximum(glow - 0.55, 0)
    return np.clip(img, 0, 1).astype(np.float32)


def photo(b):
    img = _down(_photo(b, True), b.out)
    s = b.out
    yy, xx = np.mgrid[0:s, 0:s].astype(np.float32) / s - 0.5
    img = img * (1.02 - 0.30 * (xx * xx + yy * yy))[..., None]
    grain = b.rng.normal(0, 0.009, (s, s, 1)) + b.rng.normal(0, 0.004, (s, s, 3))
    return _bytes(img + grain)


def _edges(b, thick):
    """Lines in [0,1] along depth steps, creases and changes of part, `thick` pixels wide."""
    d = np.where(b.material >= 0, b.depth, b.depth[b.material >= 0].min() - 1.5).astype(np.float32)
    gx, gy = cv2.Sobel(d, cv2.CV_32F, 1, 0, ksize=3), cv2.Sobel(d, cv2.CV_32F, 0, 1, ksize=3)
    hairy = np.isin(b.material, (assets.HAIR, assets.BEARD))
    step = np.clip(np.hypot(gx, gy) / 1.6, 0, 1)
    step = np.where(hairy, step * 0.25, step)
    lab = b.label.astype(np.float32) * 13.0
    part = np.hypot(cv2.Sobel(lab, cv2.CV_32F, 1, 0, ksize=3), cv2.Sobel(lab, cv2.CV_32F, 0, 1, ksize=3)) > 1
    same = np.isin(b.label, (10,))
    part = part & ~cv2.dilate(same.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    n = b.normal
    crease = sum(np.abs(cv2.Sobel(n[..., c], cv2.CV_32F, 1, 0, ksize=3)) + np.abs(cv2.Sobel(n[..., c], cv2.CV_32F, 0, 1, ksize=3)) for c in range(3))
    crease = np.where(hairy | (b.material < 0), 0, np.clip(crease / 4.0 - 0.35, 0, 1))
    e = np.maximum(np.maximum(step, part * 0.9), crease * 0.8).astype(np.float32)
    if thick > 1:
        e = cv2.dilate(e, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (int(thick), int(thick))))
    return e


def _luma(img):
    return img @ np.array([0.30, 0.59, 0.11], np.float32)


def pencil_sketch(b):
    res = b.back.shape[0]
    unit = res / 256
    img = _photo(b)
    g = _luma(img)
    # Ink by the local darkness, so that hair, brows and skin keep their order.
    flat = cv2.GaussianBlur(g, (0, 0), 1.1 * unit)
    dog = np.clip(1 - 7.0 * np.maximum(cv2.GaussianBlur(g, (0, 0), 2.6 * unit) - cv2.GaussianBlur(g, (0, 0), 0.8 * unit), 0), 0, 1)
    yy, xx = np.mgrid[0:res, 0:res].astype(np.float32) / unit
    wob = cv2.resize(b.rng.random((24, 24)).astype(np.float32), (res, res), interpolation=cv2.INTER_CUBIC) * 3
    h1 = 0.5 + 0.5 * np.sin((xx + yy) * 1.25 + wob)
    h2 = 0.5 + 0.5 * np.sin((xx - yy) * 1.35 + wob)
    dark = 1 - flat
    tone_ = 1 - 0.30 * np.clip(dark * 1.5 - 0.35, 0, 1)
    hatch = 1 - 0.42 * np.clip(dark * 2.2 - 0.75 - h1 * 0.5, 0, 1) - 0.40 * np.clip(dark * 2.4 - 1.35 - h2 * 0.5, 0, 1)
    lines = 1 - 0.70 * cv2.GaussianBlur(_edges(b, 1.0), (0, 0), 0.55 * unit)
    out = dog * tone_ * hatch * lines
    back = b.material < 0
    out = np.where(back, 1 - (1 - out) * 0.72, out)
    grain = cv2.GaussianBlur(b.rng.normal(0, 1, (res, res)).astype(np.float32), (0, 0), 0.8) * 0.045
    out = np.clip(out * (1 + grain * (1.4 - out)), 0.05, 1)
    paper = np.array([0.965, 0.955, 0.925], np.float32)
    lead = np.array([0.16, 0.16, 0.18], np.float32)
    return _bytes(_down(lead + (paper - lead) * out[..., None].astype(np.float32), b.out))


@njit(**FAST)
def _kuwahara(img, sums, squares, r, out):
    """Edge-preserving smoothing: the mean of the calmest of four quadrants, from integral images."""
    h, w, _ = img.shape
    for y in range(h):
        for x in range(w):
            best = 1e30
            for qy in range(2):
                for qx in range(2):
                    y0, y1 = (max(0, y - r), y) if qy == 0 else (y, min(h - 1, y + r))
                    x0, x1 = (max(0, x - r), x) if qx == 0 else (x, min(w - 1, x + r))
                    n = (y1 - y0 + 1) * (x1 - x0 + 1)
                    v = 0.0
                    for c in range(3):
                        s = sums[y1 + 1, x1 + 1, c] - sums[y0, x1 + 1, c] - sums[y1 + 1, x0, c] + sums[y0, x0, c]
                        q = squares[y1 + 1, x1 + 1, c] - squares[y0, x1 + 1, c] - squares[y1 + 1, x0, c] + squares[y0, x0, c]
                        v += q / n - (s / n) ** 2
                    if v < best:
                        best = v
                        for c in range(3):
                            s = sums[y1 + 1, x1 + 1, c] - sums[y0, x1 + 1, c] - sums[y1 + 1, x0, c] + sums[y0, x0, c]
                            out[y, x, c] = s / n


def kuwahara(img, r):
    sums, squares = cv2.integral2(img, sdepth=cv2.CV_64F, sqdepth=cv2.CV_64F)
    out = np.empty_like(img)
    _kuwahara(img, sums, squares, r, out)
    return out


def oil_painting(b):
    res = b.back.shape[0]
    unit = res / 256
    img = _photo(b)
    # Colours richer and warmer in the lights, as on canvas.
    g = _luma(img)[..., None]
    img = np.clip(g + (img - g) * 1.55, 0, 1)
    img = np.clip(img * np.array([1.06, 1.0, 0.88], np.float32), 0, 1)
    # Brush strokes: colours are taken from a place shifted along a flowing field.
    field_ = cv2.resize(b.rng.normal(0, 1, (40, 40, 2)).astype(np.float32), (res, res), interpolation=cv2.INTER_LINEAR)
    yy, xx = np.mgrid[0:res, 0:res].astype(np.float32)
    calm = np.where(np.isin(b.label, (4, 5, 6, 11, 12, 13, 2, 3)), 0.35, 1.0).astype(np.float32)
    calm = cv2.GaussianBlur(calm, (0, 0), 2 * unit)
    img = cv2.remap(img.astype(np.float32), xx + field_[..., 0] * 1.7 * unit * calm, yy + field_[..., 1] * 1.7 * unit * calm, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    broad = kuwahara(np.ascontiguousarray(img), max(2, int(round(3 * unit))))
    fine = kuwahara(np.ascontiguousarray(img), max(1, int(round(1.2 * unit))))
    k = np.clip((calm - 0.45) / 0.5, 0, 1)[..., None]
    img = broad * k + fine * (1 - k)
    lum = _luma(img)
    # Bristle relief: noise smeared along the local direction of the picture.
    noise = b.rng.normal(0, 1, (res, res)).astype(np.float32)
    s = cv2.GaussianBlur(lum, (0, 0), 5 * unit)
    gx, gy = cv2.Sobel(s, cv2.CV_32F, 1, 0), cv2.Sobel(s, cv2.CV_32F, 0, 1)
    a = np.arctan2(gx, -gy) + field_[..., 0] * 0.25
    k = int(9 * unit) | 1
    hor = cv2.GaussianBlur(noise, (k, 1), 0)
    ver = cv2.GaussianBlur(noise, (1, k), 0)
    d1 = np.eye(k, dtype=np.float32) / k
    dia, did = cv2.filter2D(noise, -1, d1), cv2.filter2D(noise, -1, np.ascontiguousarray(d1[:, ::-1]))
    c2, s2 = np.cos(2 * a), np.sin(2 * a)
    relief = np.maximum(c2, 0) * hor + np.maximum(-c2, 0) * ver + np.maximum(s2, 0) * dia + np.maximum(-s2, 0) * did
    img = img * (1 + 0.16 * relief[..., None])
    img = (img - 0.5) * 1.12 + 0.5
    return _bytes(_down(np.clip(img, 0, 1).astype(np.float32), b.out))


def neon(b):
    res = b.back.shape[0]
    unit = res / 256
    base = _photo(b)
    g = _luma(base)
    two = [((1.0, 0.10, 0.75), (0.05, 0.85, 1.0)), ((1.0, 0.25, 0.35), (0.25, 0.45, 1.0)), ((0.75, 0.2, 1.0), (0.1, 1.0, 0.75))][int(b.rng.integers(3))]
    n = b.normal
    t = np.clip(0.5 + 0.75 * n[..., :1] * (1 if b.to_light[0] > 0 else -1), 0, 1)
    hue = np.array(two[0], np.float32) * t + np.array(two[1], np.float32) * (1 - t)
    front = (b.material >= 0)[..., None]
    body = np.where(front, base * (0.14 + 0.72 * g[..., None]) * 0.35 + hue * (g[..., None] ** 1.5) * 0.62, 0)
    sat = _lit_background(b)
    gb = _luma(sat)[..., None]
    sat = np.clip(gb + (sat - gb) * 2.0, 0, 1)
    body = np.where(front, body, sat * 0.26)
    e = _edges(b, max(1, unit))
    pb = _luma(b.back)
    eb = np.clip(np.hypot(cv2.Sobel(pb, cv2.CV_32F, 1, 0), cv2.Sobel(pb, cv2.CV_32F, 0, 1)) * 2.2 - 0.15, 0, 1)
    lines = np.where(front, hue * 1.15 * e[..., None], np.clip(sat * 1.9, 0, 1) * eb[..., None])
    # Outline of hair strands by the light on them.
    hairy = (b.material == assets.HAIR)[..., None]
    dg = np.clip((g - cv2.GaussianBlur(g, (0, 0), 2 * unit)) * 7, 0, 1)[..., None]
    lines = np.where(hairy, np.maximum(lines, hue * dg), lines).astype(np.float32)
    glow = cv2.GaussianBlur(lines, (0, 0), 2.2 * unit) * 1.0 + cv2.GaussianBlur(lines, (0, 0), 7 * unit) * 0.9
    img = body + lines * 0.85 + glow + np.clip(lines - 0.6, 0, 1) * 0.5
    # Dark eyes in a patch of light, two levels wide enough for an f8 VAE: bright outlines of two pixels are lost in it.
    eyes = np.isin(b.label, (4, 5)).astype(np.uint8)
    grown = lambda by: cv2.dilate(eyes, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (int(2 * by * unit) | 1,) * 2)).astype(np.float32)
    img = np.maximum(img, cv2.GaussianBlur(grown(8), (0, 0), 4.5 * unit)[..., None] * (0.12 + 0.85 * hue) * front)
    lid = cv2.GaussianBlur(grown(2.5), (0, 0), 0.8 * unit)[..., None]
    white = np.clip((_luma(b.albedo) - 0.14) / 0.20, 0, 1)[..., None] * eyes[..., None]
    img = img * (1 - lid) + lid * (0.03 + white * (0.25 + 0.35 * hue) + 0.5 * eyes[..., None] * (1 - white) * np.clip(b.albedo, 0, 1))
    img = img + np.array([0.03, 0.01, 0.07], np.float32)
    return _bytes(_down(np.clip(img, 0, 1).astype(np.float32), b.out))


def comic(b):
    res = b.back.shape[0]
    unit = res / 256
    img = _photo(b)
    img = cv2.bilateralFilter(img, 0, 0.12, 2.5 * unit) if res <= 300 else kuwahara(np.ascontiguousarray(img), int(2 * unit))
    front = b.material >= 0
    g = _luma(img)
    flat = np.clip(b.albedo, 0, 1) ** (1 / 2.2)
    flat = np.clip(flat * 1.18, 0, 1)
    bands = np.where(g / (_luma(flat) + 0.05) > 0.78, 1.0, np.where(g / (_luma(flat) + 0.05) > 0.52, 0.78, 0.54)).astype(np.float32)
    bands = cv2.GaussianBlur(bands, (0, 0), 0.7 * unit)
    person = flat * bands[..., None]
    tint = np.array({"soft light": (1, 1, 1), "warm light": (1.10, 0.98, 0.80), "cold light": (0.80, 0.95, 1.15), "dramatic side light": (0.95, 0.95, 0.95)}[b.light], np.float32)
    person = person * tint
    back = kuwahara(np.ascontiguousarray(_lit_background(b)), max(2, int(2.5 * unit)))
    gl = _luma(back)[..., None]
    q = (np.floor(gl * 5) + 0.5) / 5
    back = np.clip(back * (q / (gl + 1e-3)), 0, 1)
    out = np.where(front[..., None], person, back)
    gl = _luma(out)[..., None]
    out = np.clip(gl + (out - gl) * 1.55, 0, 1)
    # Halftone dots in the shadows.
    yy, xx = np.mgrid[0:res, 0:res].astype(np.float32) / unit
    dots = np.cos((xx + yy) * 1.1) * np.cos((xx - yy) * 1.1)
    dark = np.clip(0.62 - bands, 0, 1) * front + np.clip(0.42 - _luma(back), 0, 1) * ~front
    out = out * (1 - 0.30 * (dots > 0.25) * np.clip(dark * 8, 0, 1))[..., None]
    ink = np.clip(_edges(b, max(2, round(2.0 * unit))) * 1.5, 0, 1)
    hairy = np.isin(b.material, (assets.HAIR, assets.BEARD))
    line = np.clip((cv2.GaussianBlur(g, (0, 0), 1.6 * unit) - g) * 9 - 0.35, 0, 1) * hairy
    be = np.clip(np.hypot(cv2.Sobel(gl[..., 0], cv2.CV_32F, 1, 0), cv2.Sobel(gl[..., 0], cv2.CV_32F, 0, 1)) * 0.9 - 0.25, 0, 0.85) * ~front
    ink = np.maximum(np.maximum(ink, line * 0.8), be)
    fine = cv2.dilate(np.isin(b.label, (2, 3, 4, 5, 12, 13)).astype(np.uint8), np.ones((3, 3), np.uint8), iterations=max(1, int(2 * unit)))
    ink = ink * (1 - 0.75 * cv2.GaussianBlur(fine.astype(np.float32), (0, 0), unit))
    ink = cv2.GaussianBlur(ink.astype(np.float32), (0, 0), 0.5 * unit)
    out = out * (1 - 0.95 * ink[..., None])
    return _bytes(_down(np.clip(out, 0, 1).astype(np.float32), b.out))


def watercolour(b):
    res = b.back.shape[0]
    unit = res / 256
    front = (b.material >= 0).astype(np.float32)
    img = _photo(b)
    field_ = cv2.resize(b.rng.normal(0, 1, (30, 30, 2)).astype(np.float32), (res, res), interpolation=cv2.INTER_CUBIC)
    features = np.isin(b.label, (2, 3, 4, 5, 6, 11, 12, 13)).astype(np.float32)
    calm = 1 - 0.75 * cv2.GaussianBlur(features, (0, 0), 3 * unit)
    yy, xx = np.mgrid[0:res, 0:res].astype(np.float32)
    warped = cv2.remap(img, xx + field_[..., 0] * 1.8 * unit * calm, yy + field_[..., 1] * 1.8 * unit * calm, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    broad = kuwahara(np.ascontiguousarray(warped), max(2, int(round(3 * unit))))
    fine = kuwahara(np.ascontiguousarray(warped), max(1, int(round(1.2 * unit))))
    k = np.clip((calm - 0.4) / 0.5, 0, 1)[..., None]
    img = broad * k + fine * (1 - k)
    g = _luma(img)[..., None]
    img = np.clip(g + (img - g) * 1.55, 0.02, 1)
    # Pigment is thin on the person and thinner on the ground behind; it pools in blotches and at the rims of washes.
    blot = cv2.resize(b.rng.random((9, 9)).astype(np.float32), (res, res), interpolation=cv2.INTER_CUBIC)
    blot = 0.6 * blot + 0.4 * cv2.resize(b.rng.random((34, 34)).astype(np.float32), (res, res), interpolation=cv2.INTER_CUBIC)
    halo = cv2.GaussianBlur(front, (0, 0), 2.5 * unit)
    rim = np.clip(1 - np.abs(halo - 0.35) * 5, 0, 1) * (1 - front)
    wash = np.floor(_luma(img) * 6) / 6
    pool = np.clip(np.abs(cv2.GaussianBlur(wash, (0, 0), 0.8 * unit) - cv2.GaussianBlur(wash, (0, 0), 2.2 * unit)) * 4, 0, 0.35)
    amount = (0.80 * front + 0.62 * (1 - front)) * (0.72 + 0.5 * blot) + pool
    amount = amount * (1 - 0.75 * rim)
    x, y = xx / res - 0.5, yy / res - 0.5
    far = (np.abs(x) ** 3 + np.abs(y) ** 3) ** (1 / 3) + (blot - 0.5) * 0.16
    amount = amount * np.clip((0.50 - far) / 0.07, 0, 1)
    density = -np.log(np.clip(img, 0.03, 1))
    paper = np.array([0.985, 0.975, 0.945], np.float32)
    out = paper * np.exp(-density * amount[..., None] * 0.95)
    # A thin sepia line holds the drawing together.
    line = cv2.GaussianBlur(_edges(b, 1.0), (0, 0), 0.5 * unit)[..., None]
    out = out * (1 - 0.42 * line * (1 - np.array([0.35, 0.25, 0.18], np.float32)))
    grain = cv2.GaussianBlur(b.rng.normal(0, 1, (res, res)).astype(np.float32), (0, 0), 0.9)[..., None]
    out = out * (1 + 0.05 * grain * (1.25 - out))
    return _bytes(_down(np.clip(out, 0, 1).astype(np.float32), b.out))


PAINTERS = {"photo": photo, "pencil sketch": pencil_sketch, "oil painting": oil_painting, "neon": neon, "comic": comic, "watercolor": watercolour}


def draw(style, buffers):
    """The finished picture u8 [S,S,3] in a style of `vocabulary.STYLES`."""
    return PAINTERS[style](buffers)
