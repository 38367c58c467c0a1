"""Who a synthetic person is: shape, skin, hair, eyes, facial hair and glasses, all drawn from the identity's number."""

from dataclasses import dataclass, field

import numpy as np

from . import assets

# Strength (standard deviation) of paired morphs; the names are `folder/stem` with the two endings of the pair.
PAIRS = [
    ("nose/nose-scale-horiz", "decr", "incr", 0.65), ("nose/nose-scale-vert", "decr", "incr", 0.55),
    ("nose/nose-scale-depth", "decr", "incr", 0.55), ("nose/nose-hump", "decr", "incr", 0.5),
    ("nose/nose-greek", "decr", "incr", 0.45), ("nose/nose-curve", "concave", "convex", 0.5),
    ("nose/nose-point", "down", "up", 0.5), ("nose/nose-point-width", "decr", "incr", 0.55),
    ("nose/nose-volume", "decr", "incr", 0.5), ("nose/nose-nostrils-width", "decr", "incr", 0.55),
    ("nose/nose-width1", "decr", "incr", 0.5), ("nose/nose-width2", "decr", "incr", 0.5),
    ("nose/nose-width3", "decr", "incr", 0.55), ("nose/nose-base", "down", "up", 0.4),
    ("nose/nose-trans", "down", "up", 0.4), ("nose/nose-septumangle", "decr", "incr", 0.35),
    ("mouth/mouth-scale-horiz", "decr", "incr", 0.6), ("mouth/mouth-scale-vert", "decr", "incr", 0.5),
    ("mouth/mouth-upperlip-height", "decr", "incr", 0.6), ("mouth/mouth-lowerlip-height", "decr", "incr", 0.6),
    ("mouth/mouth-upperlip-volume", "decr", "incr", 0.5), ("mouth/mouth-lowerlip-volume", "decr", "incr", 0.5),
    ("mouth/mouth-cupidsbow", "decr", "incr", 0.5), ("mouth/mouth-trans", "down", "up", 0.4),
    ("mouth/mouth-angles", "down", "up", 0.3), ("mouth/mouth-philtrum-volume", "decr", "incr", 0.4),
    ("mouth/mouth-laugh-lines", "in", "out", 0.4), ("mouth/mouth-dimples", "in", "out", 0.3),
    ("chin/chin-height", "decr", "incr", 0.55), ("chin/chin-width", "decr", "incr", 0.6),
    ("chin/chin-prominent", "decr", "incr", 0.5), ("chin/chin-bones", "decr", "incr", 0.55),
    ("chin/chin-prognathism", "decr", "incr", 0.3), ("chin/chin-cleft", "decr", "incr", 0.4),
    ("chin/chin-jaw-drop", "decr", "incr", 0.45),
    ("forehead/forehead-scale-vert", "decr", "incr", 0.25), ("forehead/forehead-temple", "decr", "incr", 0.3),
    ("forehead/forehead-trans", "backward", "forward", 0.4), ("forehead/forehead-nubian", "decr", "incr", 0.3),
    ("eyebrows/eyebrows-trans", "down", "up", 0.55), ("eyebrows/eyebrows-angle", "down", "up", 0.6),
    ("eyebrows/eyebrows-trans", "backward", "forward", 0.5),
    ("head/head-scale-horiz", "decr", "incr", 0.45), ("head/head-scale-vert", "decr", "incr", 0.2),
    ("head/head-fat", "decr", "incr", 0.5), ("head/head-angle", "in", "out", 0.3),
    ("neck/neck-scale-horiz", "decr", "incr", 0.4), ("neck/neck-double", "decr", "incr", 0.3),
]
SIDED = [
    ("eyes/{}-eye-scale", "decr", "incr", 0.6), ("eyes/{}-eye-height1", "decr", "incr", 0.5),
    ("eyes/{}-eye-height2", "decr", "incr", 0.6), ("eyes/{}-eye-height3", "decr", "incr", 0.5),
    ("eyes/{}-eye-corner1", "down", "up", 0.45), ("eyes/{}-eye-corner2", "down", "up", 0.6),
    ("eyes/{}-eye-trans", "in", "out", 0.5), ("eyes/{}-eye-trans", "down", "up", 0.35),
    ("eyes/{}-eye-bag", "decr", "incr", 0.5), ("eyes/{}-eye-epicanthus", "in", "out", 0.4),
    ("eyes/{}-eye-eyefold", "concave", "convex", 0.4), ("eyes/{}-eye-push1", "in", "out", 0.3),
    ("cheek/{}-cheek-bones", "decr", "incr", 0.65), ("cheek/{}-cheek-volume", "decr", "incr", 0.6),
    ("cheek/{}-cheek-inner", "decr", "incr", 0.4), ("cheek/{}-cheek-trans", "down", "up", 0.35),
    ("ears/{}-ear-scale", "decr", "incr", 0.45), ("ears/{}-ear-wing", "decr", "incr", 0.5),
    ("ears/{}-ear-lobe", "decr", "incr", 0.4),
]
FACE_SHAPES = ("oval", "rectangular", "round", "square", "triangular", "invertedtriangular", "diamond")

HAIR_STYLES = ("bald", "buzz", "short", "spiky", "side", "slick", "bob", "long", "wavy", "curly", "afro", "bun", "fringe",
               "horseshoe", "pixie")
HAIR_COLOURS = {  # linear RGB
    "black": (0.010, 0.009, 0.010), "brown": (0.050, 0.025, 0.012), "chestnut": (0.115, 0.043, 0.018),
    "blond": (0.42, 0.27, 0.11), "platinum": (0.66, 0.58, 0.42), "red": (0.30, 0.072, 0.018),
    "grey": (0.26, 0.26, 0.27), "white": (0.68, 0.68, 0.68), "darkbrown": (0.024, 0.013, 0.008),
}
EYE_COLOURS = {"brown": (0.10, 0.042, 0.015), "dark": (0.035, 0.017, 0.009), "blue": (0.10, 0.24, 0.46),
               "green": (0.11, 0.23, 0.10), "hazel": (0.20, 0.12, 0.035), "grey": (0.24, 0.29, 0.33)}
GLASSES = ("none", "round", "square", "cat", "thin")


@dataclass
class Identity:
    """Everything that stays the same from one picture of a person to the next."""

    number: int
    seed: int
    morphs: dict = field(default_factory=dict)
    scale: float = 1.0
    sex: float = 0.0  # 0 female, 1 male
    age: float = 0.5  # 0.5 young adult, 1 old
    skin: np.ndarray = None  # linear RGB
    skin_detail: dict = field(default_factory=dict)
    brow: dict = field(default_factory=dict)
    hair_style: str = "short"
    hair: dict = field(default_factory=dict)
    hair_colour: np.ndarray = None
    brow_colour: np.ndarray = None
    eye_colour: np.ndarray = None
    facial_hair: str = "none"
    beard_length: float = 0.0
    glasses: str = "none"
    glasses_colour: np.ndarray = None
    earrings: bool = False


def _macro(rng, sex, age, races):
    """Weights of the age, sex, ethnicity, muscle and weight morphs."""
    out = {}
    ages = {"young": 1 - (age - 0.5) * 2, "old": (age - 0.5) * 2}
    muscle, weight = rng.uniform(0.15, 0.9), float(np.clip(rng.normal(0.45, 0.22), 0.05, 0.9))
    if sex < 0.5:
        muscle *= 0.7
    steps = lambda x: {"min": max(0, 1 - 2 * x), "average": 1 - abs(2 * x - 1), "max": max(0, 2 * x - 1)}
    for s, ws in (("female", 1 - sex), ("male", sex)):
        for a, wa in ages.items():
            if ws * wa == 0:
                continue
            for race, wr in races.items():
                out[f"macro/{race}-{s}-{a}"] = ws * wa * wr
            for m, wm in steps(muscle).items():
                for w, ww in steps(weight).items():
                    if wm * ww > 0:
                        out[f"macro/universal-{s}-{a}-{m}muscle-{w}weight"] = ws * wa * wm * ww
    return out


def _spread(rng, sigma):
    """Mostly moderate, sometimes strong: keeps every person inside the human while a few traits stand out."""
    s = sigma * (1.15 if rng.random() < 0.4 else 0.55)
    return float(np.clip(rng.normal(0, s), -0.9, 0.9))


def sample(number, world=2024):
    """The `Identity` with this number; the same number gives the same person in every run."""
    a = assets.load()
    rng = np.random.default_rng([world, 7, int(number)])
    who = Identity(number=int(number), seed=int(rng.integers(1 << 30)))
    who.sex = float(np.clip(rng.choice([rng.normal(0.06, 0.07), rng.normal(0.94, 0.07)]), 0, 1))
    male = who.sex > 0.5
    who.age = float(np.clip(0.5 + abs(rng.normal(0, 0.19)) if rng.random() < 0.84 else rng.uniform(0.75, 1.0), 0.5, 1))
    p = rng.dirichlet([0.28, 0.28, 0.36])
    races = dict(zip(assets.MACRO_RACES, p))
    morphs = _macro(rng, who.sex, who.age, races)

    def add(stem, low, high, value):
        name = f"{stem}-{high if value > 0 else low}"
        if name in a.index:
            morphs[name] = morphs.get(name, 0) + abs(value)

    for stem, low, high, sigma in PAIRS:
        add(stem, low, high, _spread(rng, sigma))
    for stem, low, high, sigma in SIDED:
        value, skew = _spread(rng, sigma), rng.normal(0, 0.05)
        if "eye-height" in stem or "eye-scale" in stem:
            value = max(value, -0.25) + 0.12  # small slits hide the eyes at this resolution
        for side in "lr":
            add(stem.format(side), low, high, value + (skew if side == "l" else -skew))
    for shape in rng.choice(FACE_SHAPES, 2, replace=False):
        morphs[f"head/head-{shape}"] = float(rng.uniform(0, 0.3 if "triangular" in shape else 0.6))
    if who.age > 0.7:
        morphs["head/head-age-incr"] = float(rng.uniform(0.1, 0.5))
    if male:
        morphs["chin/chin-bones-incr"] = morphs.get("chin/chin-bones-incr", 0) + 0.25
    who.morphs = {k: v for k, v in morphs.items() if k in a.index and abs(v) > 1e-4}
    who.scale = float(rng.uniform(0.97, 1.03))

    # Skin: from fair to deep, tied loosely to the shape so that every combination occurs.
    depth = np.clip(p @ [0.82, 0.30, 0.16] + rng.normal(0, 0.14), 0.0, 1.0)
    tones = np.array([[0.74, 0.50, 0.405], [0.64, 0.41, 0.295], [0.50, 0.29, 0.18], [0.30, 0.155, 0.085],
                      [0.135, 0.064, 0.036], [0.070, 0.034, 0.021]])
    at = depth * 5
    k = min(int(at), 4)
    skin = tones[k] * (1 - (at - k)) + tones[k + 1] * (at - k)
    who.skin = (skin * np.exp(rng.normal(0, 0.035, 3))).astype(np.float32)
    fair = depth < 0.35
    moles = int(rng.choice([0, 0, 0, 0, 1, 2]))
    who.skin_detail = dict(
        freckles=float(rng.uniform(0.5, 1.0)) if fair and rng.random() < 0.35 else 0.0,
        blush=float(rng.uniform(0.15, 1.0)) * (1.0 if depth < 0.6 else 0.4), wrinkles=float(np.clip((who.age - 0.6) * 2.4, 0, 1)),
        moles=[(float(rng.uniform(-0.5, 0.5)), float(rng.uniform(6.4, 7.9)), float(rng.uniform(0.011, 0.022))) for _ in range(moles)],
        lips=float(rng.uniform(0.25, 1.0)), lipstick=float(rng.uniform(0.5, 1)) if not male and rng.random() < 0.45 else 0.0,
        lipstick_colour=[(0.42, 0.03, 0.05), (0.45, 0.09, 0.14), (0.30, 0.02, 0.08), (0.50, 0.13, 0.09)][int(rng.integers(4))],
        eyeshadow=float(rng.uniform(0.3, 1)) if not male and rng.random() < 0.4 else 0.0, oil=float(rng.uniform(0.6, 1.4)),
        lashes=float(rng.uniform(0.2, 0.45) if male else rng.uniform(0.6, 1.0)), dark=float(depth), seed=float(rng.uniform(0, 500)))

    if who.age > 0.8 and rng.random() < 0.8:
        colour = rng.choice(["grey", "white", "grey"])
    else:
        light = p[2] > 0.5 and fair
        w = np.array([1, 1.5, 1.2, 2.0, 0.6, 1.1, 0.15, 0.08, 1]) if light else np.array([3, 1.4, 0.7, 0.18, 0.08, 0.12, 0.15, 0.06, 2.5])
        colour = rng.choice(list(HAIR_COLOURS), p=w / w.sum())
    who.hair_colour = (np.array(HAIR_COLOURS[colour]) * np.exp(rng.normal(0, 0.16)) * np.exp(rng.normal(0, 0.05, 3))).astype(np.float32)
    who.brow_colour = (who.hair_colour * rng.uniform(0.35, 0.9) if colour != "white" else np.array([0.35, 0.34, 0.33])).astype(np.float32)
    light_eyes = p[2] > 0.45
    w = np.array([1, 0.6, 1.8, 1.0, 1.0, 0.8]) if light_eyes else np.array([2, 3, 0.1, 0.12, 0.3, 0.08])
    who.eye_colour = (np.array(EYE_COLOURS[rng.choice(list(EYE_COLOURS), p=w / w.sum())]) * np.exp(rng.normal(0, 0.18, 3))).astype(np.float32)

    if male:
        styles = dict(bald=1.1, buzz=1.3, short=2.6, spiky=1.3, side=2.0, slick=1.2, curly=1.0, afro=0.6, long=0.5, wavy=0.5,
                      fringe=0.7, horseshoe=0.2 + 2.5 * (who.age > 0.7), bun=0.25)
    else:
        styles = dict(bob=2.2, long=2.2, wavy=2.0, curly=1.3, afro=0.8, bun=1.8, fringe=1.8, pixie=1.4, short=0.6, slick=0.6, buzz=0.15, side=0.5)
    w = np.array(list(styles.values()))
    who.hair_style = str(rng.choice(list(styles), p=w / w.sum()))
    who.hair = dict(length=float(rng.uniform(0.75, 1.3)), volume=float(rng.uniform(0.6, 1.4)), part=float(rng.choice([-1, 1]) * rng.uniform(0.12, 0.4)),
                    line=float(rng.normal(0, 0.05) + (0.08 if male and who.age > 0.65 else 0.0)), recede=float(rng.uniform(0, 0.25 if male else 0.05)),
                    curl=float(rng.uniform(0.6, 1.4)), messy=float(rng.uniform(0.4, 1.3)))
    who.brow = dict(thick=float(rng.uniform(0.030, 0.066) if male else rng.uniform(0.020, 0.046)), arch=float(rng.uniform(-0.02, 0.07)),
                    tilt=float(rng.normal(0, 0.035)), inner=float(rng.uniform(0.075, 0.15)), outer=float(rng.uniform(0.49, 0.57)),
                    lift=float(rng.normal(0, 0.015)), dense=float(rng.uniform(0.6, 1.0)))
    if male:
        who.facial_hair = str(rng.choice(["none", "stubble", "moustache", "goatee", "beard", "long beard"], p=[0.42, 0.18, 0.09, 0.09, 0.15, 0.07]))
    who.beard_length = float(rng.uniform(0.8, 1.25))
    if rng.random() < 0.24:
        who.glasses = str(rng.choice(GLASSES[1:]))
    who.glasses_colour = np.array([(0.012, 0.012, 0.014), (0.10, 0.035, 0.012), (0.35, 0.26, 0.12), (0.30, 0.02, 0.03), (0.02, 0.05, 0.16)][int(rng.integers(5))], np.float32)
    who.earrings = bool(not male and rng.random() < 0.3)
    return who
