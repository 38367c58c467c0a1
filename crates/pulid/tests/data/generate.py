"""Writes the reference data of the `pulid` crate's unit tests: `python generate.py [PART]...` (see `PARTS`).

Needs torch, numpy, diffusers, scikit-image, pillow and opencv-python-headless 4.x; the 4.x line matters, because 5.0
changed `warpAffine` to another interpolation than the one that PuLID's published pipeline runs on.
Each file names the versions it came from in `versions.json`.
"""

import importlib.metadata
import json
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent


def save(name: str, value) -> None:
    (HERE / name).write_text(json.dumps(value) + "\n", encoding="utf-8")


def floats(values) -> list[float]:
    """Shortest decimals that give the same float32."""
    return [float(str(np.float32(v))) for v in np.asarray(values).ravel()]


def picture(width: int, height: int, seed: int) -> np.ndarray:
    """A uint8 RGB picture [H, W, 3] with smooth parts, hard edges and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    smooth = [127 + 90 * np.sin(x / 7 + k) * np.cos(y / (5 + k)) for k in range(3)]
    image = np.stack(smooth, -1) + rng.normal(0, 12, (height, width, 3))
    image[height // 4 : height // 2, width // 3 : width // 2] = (250, 5, 120)
    return np.clip(image, 0, 255).astype(np.uint8)


def hexed(image: np.ndarray) -> dict:
    height, width = image.shape[:2]
    return {"width": width, "height": height, "hex": np.ascontiguousarray(image).tobytes().hex()}


def randn() -> None:
    import torch

    runs = []
    for seed, counts in [
        (0, [1, 5, 15, 16, 17, 31, 1024, 16384]),
        (42, [16384, 3, 3, 100, 1, 1, 40]),
        (2**32 - 1, [15, 15, 47, 16]),
        (123456789012345, [4096, 7, 8]),
    ]:
        generator = torch.Generator().manual_seed(seed)
        draws = [torch.randn(count, generator=generator).numpy() for count in counts]
        runs.append({
            "seed": seed,
            "counts": counts,
            "head": [floats(d[:40]) for d in draws],
            "tail": [floats(d[-17:]) for d in draws],
            "sum": [float(d.astype(np.float64).sum()) for d in draws],
        })
    save("randn.json", runs)


PARTS = {"randn": randn}


def main() -> None:
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
    names = ["torch", "numpy", "diffusers", "scikit-image"]
    versions = {name: importlib.metadata.version(name) for name in names}
    import cv2

    versions["opencv-python-headless"] = cv2.__version__
    save("versions.json", versions)


if __name__ == "__main__":
    main()
