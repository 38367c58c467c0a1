"""From an identity and a scene to a picture with its ground truth."""

from dataclasses import dataclass

import cv2
import numpy as np

from . import assets, backgrounds, shade, styles, vocabulary
from .person import Person, rotation
from .raster import depth_only, rasterise

CAMERA_DISTANCE = 13.0
SHADOW_SIZE = 176

EXPRESSION_UNITS = {
    "neutral": {},
    "smiling": {"mouth-corner-puller": 0.95, "mouth-parling": 0.5, "mouth-retraction": 0.35, "eye-left-slit": 0.2, "eye-right-slit": 0.2, "mouth-elevation": 0.15},
    "surprised": {"mouth-open": 0.75, "eyebrows-left-up": 1.0, "eyebrows-right-up": 1.0, "eyebrows-left-extern-up": 0.5, "eyebrows-right-extern-up": 0.5,
                  "eye-left-opened-up": 1.2, "eye-right-opened-up": 1.2},
    "sad": {"mouth-depression": 1.1, "mouth-depression-retraction": 0.35, "eyebrows-left-inner-up": 1.3, "eyebrows-right-inner-up": 1.3, "eye-left-slit": 0.25, "eye-right-slit": 0.25},
    "angry": {"eyebrows-left-down": 1.3, "eyebrows-right-down": 1.3, "mouth-compression": 0.7, "nose-left-elevation": 0.9, "nose-right-elevation": 0.9,
              "mouth-depression": 0.35, "eye-left-slit": 0.15, "eye-right-slit": 0.15, "nose-left-dilatation": 1.0, "nose-right-dilatation": 1.0},
}

# Clothes: pattern, neck line, collar, colours (linear RGB).
CLOTHES = {
    "red sweater": (shade.KNIT, shade.N_CREW, "crew", (0.52, 0.025, 0.025), (0, 0, 0)),
    "white shirt": (shade.SHIRT, shade.N_SHIRT, "shirt", (0.74, 0.74, 0.75), (0.6, 0.6, 0.6)),
    "black suit": (shade.SUIT, shade.N_SUIT, "shirt", (0.014, 0.014, 0.017), (0.25, 0.012, 0.02)),
    "blue hoodie": (shade.HOODIE, shade.N_HOOD, "hood", (0.035, 0.12, 0.46), (0.7, 0.7, 0.7)),
    "green t-shirt": (shade.PLAIN, shade.N_CREW, "crew", (0.035, 0.27, 0.07), (0, 0, 0)),
    "yellow raincoat": (shade.COAT, shade.N_HOOD, "hood", (0.80, 0.50, 0.02), (0, 0, 0)),
    "striped shirt": (shade.STRIPES, shade.N_CREW, "crew", (0.70, 0.70, 0.70), (0.02, 0.04, 0.16)),
    "grey turtleneck": (shade.KNIT, shade.N_TURTLE, "turtle", (0.22, 0.22, 0.23), (0, 0, 0)),
}


@dataclass
class Scene:
    """What changes from one picture of a person to the next; names are those of `vocabulary`."""

    style: str
    background: str
    expression: str
    light: str
    clothes: str
    yaw: float
    pitch: float
    roll: float
    face: float  # height of the face (chin to hairline) as a fraction of the picture's
    middle: float  # height of the face's middle, from the top, as a fraction of the picture's
    shift: tuple
    gaze: tuple
    strength: float
    light_turn: float
    seed: int


@dataclass(frozen=True)
class Framing:
    """How near the camera is, and how far heads turn: ranges of `Scene`'s fields (angles: deviation and limit in degrees)."""

    face: tuple
    yaw: tuple
    pitch: tuple
    roll: tuple
    middle: float  # height of the face's middle, from the top, as a fraction of the picture's


FRAMINGS = {
    # Head and shoulders, as in snapshots: what the face networks must cope with.
    "wide": Framing(face=(0.53, 0.65), yaw=(15, 36), pitch=(6, 15), roll=(4.5, 13), middle=0.515),
    # A head that fills the picture. An eye is then wider than one latent of an f8 VAE at 128 pixels, in `wide` it is not.
    "close": Framing(face=(0.71, 0.81), yaw=(10, 25), pitch=(4.5, 11), roll=(3.5, 10), middle=0.535),
}


def sample_scene(rng, style=None, background=None, expression=None, light=None, clothes=None, framing="wide"):
    """A random `Scene`; given names are kept. The same draws give the same scene in every framing, but for its camera."""
    near = FRAMINGS[framing]
    turn = lambda limits: float(np.radians(np.clip(rng.normal(0, limits[0]), -limits[1], limits[1])))
    pick = lambda names, given: given if given is not None else names[int(rng.integers(len(names)))]
    return Scene(
        style=pick(vocabulary.STYLES, style), background=pick(vocabulary.BACKGROUNDS, background),
        expression=pick(vocabulary.EXPRESSIONS, expression), light=pick(vocabulary.LIGHTS, light), clothes=pick(vocabulary.CLOTHES, clothes),
        yaw=turn(near.yaw), pitch=turn(near.pitch), roll=turn(near.roll), face=float(rng.uniform(*near.face)), middle=near.middle,
        shift=(float(rng.normal(0, 0.018)), float(rng.normal(0, 0.012))), gaze=(float(rng.normal(0, 0.05)), float(rng.normal(0, 0.03))),
        strength=float(rng.uniform(0.8, 1.1)), light_turn=float(rng.choice([-1, 1])), seed=int(rng.integers(1 << 30)))


def _lamps(scene, rng):
    """Direction to the key light and rows key, sky, ground, rim of linear colours."""
    t = scene.light_turn
    if scene.light == "soft light":
        d, rows, wrap = (0.45 * t, 0.55, 1.0), [(0.82, 0.80, 0.77), (0.52, 0.53, 0.55), (0.33, 0.31, 0.29), (0.25, 0.25, 0.27)], 0.32
    elif scene.light == "warm light":
        d, rows, wrap = (0.75 * t, 0.42, 0.75), [(1.42, 0.88, 0.44), (0.40, 0.31, 0.25), (0.30, 0.19, 0.10), (0.70, 0.40, 0.14)], 0.22
    elif scene.light == "cold light":
        d, rows, wrap = (0.55 * t, 0.7, 0.85), [(0.58, 0.82, 1.25), (0.25, 0.36, 0.56), (0.14, 0.19, 0.30), (0.25, 0.45, 0.85)], 0.22
    else:
        d, rows, wrap = (1.25 * t, 0.35, 0.22), [(1.95, 1.82, 1.66), (0.085, 0.09, 0.105), (0.05, 0.05, 0.055), (0.10, 0.11, 0.13)], 0.10
    d = np.array(d) + rng.normal(0, 0.10, 3)
    rows = np.array(rows, np.float32) * rng.uniform(0.92, 1.08)
    rim = np.array([-0.85 * t, 0.35, -0.45])
    return (d / np.linalg.norm(d)).astype(np.float32), rows, wrap, (rim / np.linalg.norm(rim)).astype(np.float32)


def _parameters(who, scene, size):
    q = np.zeros(28, np.float64)
    s = who.skin_detail
    q[shade.SEED], q[shade.FRECKLES], q[shade.BLUSH], q[shade.WRINKLES] = s["seed"], s["freckles"], s["blush"], s["wrinkles"]
    q[shade.LIPS], q[shade.LIPSTICK], q[shade.EYESHADOW], q[shade.OIL], q[shade.DARK] = s["lips"], s["lipstick"], s["eyeshadow"], s["oil"], s["dark"]
    b = who.brow
    q[shade.BROW_THICK], q[shade.BROW_ARCH], q[shade.BROW_TILT], q[shade.BROW_IN], q[shade.BROW_OUT] = b["thick"], b["arch"], b["tilt"], b["inner"], b["outer"]
    q[shade.BROW_LIFT], q[shade.BROW_DENSE] = b["lift"], b["dense"]
    stubble = {"none": 0.10 if who.sex > 0.5 else 0.0, "stubble": 0.62, "moustache": 0.25, "goatee": 0.3, "beard": 0.75, "long beard": 0.8}[who.facial_hair]
    kind = {"moustache": 1, "goatee": 3}.get(who.facial_hair, 1)
    q[shade.STUBBLE], q[shade.BEARD_KIND] = stubble, kind
    q[shade.SCALP] = {"bald": 0.0, "buzz": 0.75}.get(who.hair_style, 1.0)
    q[shade.HORSESHOE] = 1.0 if who.hair_style == "horseshoe" else 0.0
    q[shade.LINE], q[shade.RECEDE], q[shade.LASHES] = who.hair["line"], who.hair["recede"], s["lashes"]
    pattern, neck, _, _, _ = CLOTHES[scene.clothes]
    q[shade.CLOTH], q[shade.NECK] = pattern, neck
    q[shade.DETAIL] = np.clip(size / 256, 0.4, 1.0)
    q[shade.GAZE_X], q[shade.GAZE_Y] = scene.gaze
    return q


def _occlusion(depth, face_px):
    """Screen-space ambient occlusion: how far a pixel lies behind its surroundings."""
    inside = (depth > -50).astype(np.float32)
    d = np.where(inside > 0, depth, 0).astype(np.float32)
    out = np.ones_like(d)
    for scale, gain, cap in ((0.035, 3.2, 0.10), (0.11, 0.9, 0.45)):
        k = int(max(3, face_px * scale)) | 1
        w = cv2.blur(inside, (k, k)) + 1e-4
        around = cv2.blur(cv2.blur(np.minimum(d, 99), (k, k)) / w * (w > 1e-3), (3, 3))
        out *= 1 - np.clip(np.clip(around - d, 0, cap) * gain, 0, 0.72)
    return out


def _camera(points, scene, size):
    """Scale and shift that give the face its height and place: x_px = size / 2 + f (x - cx) / (D - z)."""
    def project(p, f, cx, cy):
        w = f / (CAMERA_DISTANCE - p[:, 2])
        return np.stack([size / 2 + (p[:, 0] - cx) * w, size / 2 - (p[:, 1] - cy) * w], 1)

    p = project(points, 1.0, 0.0, 0.0) - size / 2
    f = scene.face * size / np.ptp(p[:, 1])
    lo, hi = p.min(0), p.max(0)
    w = f / (CAMERA_DISTANCE - points[:, 2].mean())
    mid = (lo + hi) / 2 * f
    tx, ty = size * (0.5 + scene.shift[0]), size * (scene.middle + scene.shift[1])
    # A turned head keeps its skull in the picture: shift towards the middle of head and face.
    cx = (mid[0] + size / 2 - tx) / w - 0.12 * np.sin(scene.yaw)
    cy = -(mid[1] + size / 2 - ty) / w
    return lambda q: project(q, f, cx, cy)


def render(person, scene, size, supersample=2):
    """Renders `scene` of a `Person`: dict of image u8 [S,S,3], labels u8 [S,S], landmarks f32 [5,2], bbox f32 [4].

    Landmarks and box are in pixels with the centre of the first pixel at 0, as OpenCV and ArcFace count.
    """
    who = person.who
    rng = np.random.default_rng([scene.seed, 5])
    res = size * supersample
    _, _, collar, cloth, cloth2 = CLOTHES[scene.clothes]
    units = {k: v * scene.strength for k, v in EXPRESSION_UNITS[scene.expression].items()}
    if rng.random() < 0.35 and scene.expression == "neutral":
        units = {"mouth-corner-puller": float(rng.uniform(0, 0.12))}
    head = rotation(scene.yaw, scene.pitch, scene.roll)
    body = rotation(scene.yaw * 0.35 + rng.normal(0, 0.06), 0.0, scene.roll * 0.1)
    mesh, lens, lashes, marks, face = person.pose(units, head, body, collar)
    project = _camera(face, scene, res)
    screen = np.empty_like(mesh.pos)
    screen[:, :2] = project(mesh.pos)
    screen[:, 2] = mesh.pos[:, 2]
    depth = np.full((res, res), -100.0, np.float32)
    ident = np.full((res, res), -1, np.int32)
    bary = np.zeros((res, res, 2), np.float32)
    rasterise(screen, mesh.tri, mesh.cull, depth, ident, bary)

    q = _parameters(who, scene, size)
    col = np.zeros((8, 3), np.float64)
    col[shade.C_SKIN], col[shade.C_HAIR], col[shade.C_BROW], col[shade.C_EYE] = who.skin, who.hair_colour, who.brow_colour, who.eye_colour
    col[shade.C_LIPSTICK], col[shade.C_CLOTH], col[shade.C_CLOTH2], col[shade.C_FRAME] = who.skin_detail["lipstick_colour"], cloth, cloth2, who.glasses_colour
    col[shade.C_CLOTH] *= rng.uniform(0.85, 1.15)
    moles = np.array(who.skin_detail["moles"], np.float64).reshape(-1, 3)
    f3 = lambda: np.zeros((res, res, 3), np.float32)
    albedo, normal, tangent, colour = f3(), f3(), f3(), f3()
    label = np.zeros((res, res), np.uint8)
    gloss, shading = np.zeros((res, res), np.float32), np.ones((res, res), np.float32)
    material = np.empty((res, res), np.int32)
    shade.resolve(ident, bary, mesh.tri, mesh.mat, mesh.normal, mesh.canon, mesh.attr, q, col, moles, albedo, normal, label, gloss, material, tangent, shading)

    face_px = scene.face * res
    to_light, lamps, wrap, rim = _lamps(scene, rng)
    # Shadow map: orthographic view from the key light.
    z_axis = to_light
    x_axis = np.cross([0, 1, 0], z_axis)
    x_axis /= np.linalg.norm(x_axis)
    basis = np.stack([x_axis, np.cross(z_axis, x_axis), z_axis]).astype(np.float32)
    lit = mesh.pos @ basis.T
    near = mesh.pos[:, 1] > 4.9
    lo, hi = lit[near, :2].min(0), lit[near, :2].max(0)
    k = SHADOW_SIZE / max(hi - lo)
    scale = np.array([k, -lo[0] * k, -lo[1] * k], np.float32)
    smap = np.full((SHADOW_SIZE, SHADOW_SIZE), -100.0, np.float32)
    sm = np.stack([lit[:, 0] * k + scale[1], lit[:, 1] * k + scale[2], lit[:, 2]], 1).astype(np.float32)
    depth_only(sm, mesh.tri, mesh.casts, smap)
    # Positions of the pixels, by inverting the projection.
    a = project(np.array([[0.0, 0.0, 0.0], [1.0, -1.0, 0.0]], np.float32))
    w0 = a[1, 0] - a[0, 0]
    yy, xx = np.mgrid[0:res, 0:res].astype(np.float32) + 0.5
    points = f3()
    persp = (CAMERA_DISTANCE - depth) / CAMERA_DISTANCE / w0
    cx, cy = (res / 2 - a[0, 0]) / w0, (a[0, 1] - res / 2) / w0
    points[..., 0] = (xx - res / 2) * persp + cx
    points[..., 1] = -(yy - res / 2) * persp + cy
    points[..., 2] = depth
    key, shadow = np.zeros((res, res), np.float32), np.ones((res, res), np.float32)
    shade.key_light(material, normal, points, to_light, smap, basis, scale, SHADOW_SIZE, wrap, key, shadow)
    occlusion = _occlusion(depth, face_px)
    # Light scatters inside skin, red the farthest.
    skin = (material == assets.SKIN).astype(np.float32)
    e = key * shadow * skin
    scatter = f3()
    for c, s in enumerate((0.020, 0.009, 0.005)):
        sigma = max(0.5, s * face_px)
        scatter[..., c] = cv2.GaussianBlur(e, (0, 0), sigma) / (cv2.GaussianBlur(skin, (0, 0), sigma) + 1e-3)
    view = np.array([0, 0, 1], np.float32)
    shade.combine(material, normal, albedo, gloss, tangent, shading, occlusion, key, shadow, scatter, lamps, to_light, rim, view, label, colour)

    # Lashes are thin: they only darken what lies behind them, upper ones more.
    ld, li, lb = depth.copy(), np.full((res, res), -1, np.int32), np.zeros((res, res, 2), np.float32)
    rasterise(screen, lashes, np.zeros(len(lashes), np.bool_), ld, li, lb)
    hit = li >= 0
    if hit.any():
        upper = mesh.canon[lashes[li[hit], 0], 1] > 7.288
        keep = 1 - np.where(upper, 0.85, 0.22) * who.skin_detail["lashes"]
        colour[hit] *= keep[:, None].astype(np.float32)
        albedo[hit] *= keep[:, None].astype(np.float32)

    glass = None
    if lens is not None:
        gs = np.empty_like(lens[0], dtype=np.float32)
        gs[:, :2], gs[:, 2] = project(lens[0]), lens[0][:, 2]
        gd, gi, gb = depth.copy(), np.full((res, res), -1, np.int32), np.zeros((res, res, 2), np.float32)
        rasterise(gs, lens[1], np.zeros(len(lens[1]), np.bool_), gd, gi, gb)
        glass = gi >= 0

    back = backgrounds.paint(scene.background, rng, res)
    buffers = styles.Buffers(colour=colour, albedo=albedo, normal=normal, label=label, depth=depth, material=material, occlusion=occlusion, key=key * shadow,
                             lamps=lamps, to_light=to_light, back=back, glass=glass, face_px=face_px, rng=rng, light=scene.light, out=size)
    image = styles.draw(scene.style, buffers)
    if glass is not None:
        label[glass] = 6
    small = label[supersample // 2 :: supersample, supersample // 2 :: supersample]
    m = project(marks) / supersample - 0.5
    f = project(face) / supersample - 0.5
    box = np.concatenate([f.min(0), f.max(0)])
    return {"image": image, "labels": np.ascontiguousarray(small), "landmarks": m.astype(np.float32), "bbox": box.astype(np.float32)}


_PEOPLE = {}


def person(number):
    """The `Person` with this number (the last few are kept)."""
    from . import identity

    if number not in _PEOPLE:
        if len(_PEOPLE) > 8:
            _PEOPLE.clear()
        _PEOPLE[number] = Person(identity.sample(number))
    return _PEOPLE[number]
