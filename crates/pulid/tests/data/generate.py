"""Writes the reference data of the `pulid` crate's unit tests: `python generate.py [PART]...` (see `PARTS`).

Needs torch, numpy, diffusers, scikit-image, pillow and opencv-python-headless 4.x; the 4.x line matters, because 5.0
changed `warpAffine` to another interpolation than the one that PuLID's published pipeline runs on.
Each file names the versions it came from in `versions.json`.
"""

import importlib.metadata
import itertools
import json
import pathlib
import struct
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


def table() -> np.ndarray:
    """Sigmas of SDXL's 1000 training timesteps, from diffusers."""
    from diffusers import EulerDiscreteScheduler

    alphas = EulerDiscreteScheduler(**SDXL).alphas_cumprod
    return (((1 - alphas) / alphas) ** 0.5).numpy().astype(np.float64)


SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def nearest(sigmas: np.ndarray, sigma: float) -> int:
    return int(np.abs(np.log(sigma) - np.log(sigmas)).argmin())


def karras(sigmas: np.ndarray, steps: int) -> np.ndarray:
    ramp = np.linspace(0, 1, steps)
    top, bottom = sigmas[-1] ** (1 / 7), sigmas[0] ** (1 / 7)
    return np.append((top + ramp * (bottom - top)) ** 7, 0.0)


def trailing(steps: int):
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(**SDXL, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    return scheduler


def schedule() -> None:
    sigmas = table()
    save("schedule.json", {
        "table": floats(sigmas),
        "karras": [
            {"steps": n, "sigmas": k.tolist(), "timesteps": [nearest(sigmas, s) for s in k[:-1]]}
            for n in (1, 2, 5, 8, 25, 60) for k in [karras(sigmas, n)]
        ],
        "trailing": [
            {"steps": n, "sigmas": floats(s.sigmas), "timesteps": s.timesteps.tolist()}
            for n in (1, 2, 4, 5, 7, 8, 16, 30, 75) for s in [trailing(n)]
        ],
    })


def toy(x_in: np.ndarray, timestep: int) -> np.ndarray:
    i = np.arange(x_in.size)
    return np.tanh(1.1 * x_in + 0.3 * np.sin(i)) * (0.9 - 0.0003 * timestep)


def step_noise(sigma: float, following: float) -> np.ndarray:
    return 1.3 * np.sin(12.9898 * np.arange(1, 9) + 3.1 * np.log(sigma) + 1.7 * np.log(following))


def exponential_form(kind: str, levels: np.ndarray, timesteps, x: np.ndarray, prediction: str, train: np.ndarray):
    """The samplers as the papers write them, in f64 with t = -log sigma."""
    told = []

    def denoise(x, sigma, timestep):
        told.append(int(timestep))
        out = toy(x / np.sqrt(sigma**2 + 1), timestep)
        if prediction == "epsilon":
            return x - sigma * out
        return x / (sigma**2 + 1) - out * sigma / np.sqrt(sigma**2 + 1)

    def ancestral(start, stop):
        up = min(stop, np.sqrt(stop**2 * (start**2 - stop**2) / start**2))
        return np.sqrt(stop**2 - up**2), up

    old = None
    for i, t in enumerate(timesteps):
        sigma, following = levels[i], levels[i + 1]
        clean = denoise(x, sigma, t)
        if kind == "euler" or (kind == "dpmpp_sde" and following == 0):
            x = x + (x - clean) / sigma * (following - sigma)
        elif kind == "dpmpp_2m":
            if old is None or following == 0:
                x = clean if following == 0 else following / sigma * x - np.expm1(np.log(following / sigma)) * clean
            else:
                h, h_last = np.log(sigma / following), np.log(levels[i - 1] / sigma)
                r = h_last / h
                x = following / sigma * x - np.expm1(-h) * ((1 + 1 / (2 * r)) * clean - old / (2 * r))
            old = clean
        else:
            middle = np.exp((np.log(sigma) + np.log(following)) / 2)
            down, up = ancestral(sigma, middle)
            x2 = down / sigma * x - np.expm1(np.log(down / sigma)) * clean + up * step_noise(sigma, middle)
            clean2 = denoise(x2, middle, nearest(train, middle))
            down, up = ancestral(sigma, following)
            x = down / sigma * x - np.expm1(np.log(down / sigma)) * clean2 + up * step_noise(sigma, following)
    return x, told


def samplers() -> None:
    import torch
    from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler

    train, cases = table(), []
    noise = np.random.default_rng(3).normal(size=8).astype(np.float32)

    def case(kind, spacing, steps, prediction, latents, timesteps):
        cases.append({
            "sampler": kind, "spacing": spacing, "steps": steps, "prediction_type": prediction,
            "noise": floats(noise), "latents": floats(latents), "timesteps": [int(t) for t in timesteps],
        })

    for kind in ("dpmpp_2m", "dpmpp_sde", "euler"):
        for steps, prediction in ((1, "epsilon"), (5, "epsilon"), (25, "epsilon"), (6, "v_prediction")):
            levels = karras(train, steps)
            timesteps = [nearest(train, s) for s in levels[:-1]]
            x = noise.astype(np.float64) * levels[0]
            case(kind, "karras", steps, prediction, *exponential_form(kind, levels, timesteps, x, prediction, train))

    levels = np.append(train[[999, 749, 499, 249]], 0.0)
    x = noise.astype(np.float64) * levels[0]
    sde = exponential_form("dpmpp_sde", levels, [999, 749, 499, 249], x, "epsilon", train)
    case("dpmpp_sde", "trailing", 4, "epsilon", *sde)

    for kind, scheduler_class in (("dpmpp_2m", DPMSolverMultistepScheduler), ("euler", EulerDiscreteScheduler)):
        for steps, prediction in ((1, "epsilon"), (4, "epsilon"), (5, "v_prediction"), (20, "epsilon")):
            scheduler = scheduler_class(**SDXL, timestep_spacing="trailing", prediction_type=prediction)
            scheduler.set_timesteps(steps)
            x = torch.from_numpy(noise) * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                x_in = scheduler.scale_model_input(x, t)
                out = torch.from_numpy(toy(x_in.double().numpy(), int(t)).astype(np.float32))
                x = scheduler.step(out, t, x).prev_sample
            case(kind, "trailing", steps, prediction, x, scheduler.timesteps)
    save("samplers.json", cases)


def resize() -> None:
    import cv2

    cases = []
    for width, height, lanczos, bilinear in [
        (40, 30, [(25, 19), (17, 13), (61, 30)], [(20, 15), (25, 19), (64, 48), (7, 3)]),
        (31, 47, [(21, 32), (8, 9)], [(42, 64), (15, 23), (13, 20)]),
    ]:
        image = picture(width, height, width)

        def resized(sizes, how):
            return [hexed(cv2.resize(image, size, interpolation=how)) for size in sizes]

        cases.append({
            "image": hexed(image),
            "lanczos4": resized(lanczos, cv2.INTER_LANCZOS4),
            "bilinear": resized(bilinear, cv2.INTER_LINEAR),
        })
    save("resize.json", cases)


def bicubic() -> None:
    import torch

    cases = []
    for source, target in [((12, 9), (8, 6)), ((7, 11), (7, 11)), ((5, 6), (17, 10)), ((16, 16), (11, 5)), ((1, 3), (4, 4))]:
        image = torch.rand((1, 2, *source), generator=torch.Generator().manual_seed(sum(source)))
        resized = torch.nn.functional.interpolate(image, size=target, mode="bicubic", align_corners=False)
        cases.append({
            "from": source,
            "to": target,
            "image": floats(image.permute(0, 2, 3, 1).numpy()),
            "resized": floats(resized.permute(0, 2, 3, 1).numpy()),
        })
    save("bicubic.json", cases)


def photos() -> None:
    import io

    import cv2
    from PIL import Image, ImageOps

    cases = []
    image = picture(24, 18, 1)
    rgb = Image.fromarray(image)

    def case(name, file, expected, tolerance=0):
        cases.append({"name": name, "file": file.hex(), "expected": hexed(np.asarray(expected)), "tolerance": tolerance})

    def written(picture, kind, **options):
        stream = io.BytesIO()
        picture.save(stream, kind, **options)
        return stream.getvalue()

    def opened(file):
        return Image.open(io.BytesIO(file)).convert("RGB")

    def stored(array):
        ok, file = cv2.imencode(".png", array[..., ::-1] if array.shape[-1] == 3 else array[..., [2, 1, 0, 3]])
        assert ok
        return file.tobytes()

    case("rgb.png", written(rgb, "PNG"), image)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(written(rgb, "PNG", exif=exif)))))
        case(f"orientation-{orientation}.png", written(rgb, "PNG", exif=exif), upright)
    exif = Image.Exif()
    exif[0x0112] = 6
    # Decoders differ in the last bits of the cosine transform and in how they interpolate subsampled colour.
    for name, options, tolerance in [
        ("rgb.jpg", {"subsampling": 0}, 4), ("progressive.jpg", {"subsampling": 0, "progressive": True}, 4),
        ("restart.jpg", {"subsampling": 0, "restart_marker_blocks": 2}, 4), ("rotated.jpg", {"subsampling": 0, "exif": exif}, 4),
        ("subsampled.jpg", {"subsampling": 2}, 6),
    ]:
        file = written(rgb, "JPEG", quality=90, **options)
        case(name, file, ImageOps.exif_transpose(Image.open(io.BytesIO(file))), tolerance)
    gray = rgb.convert("L")
    file = written(gray, "JPEG", quality=90)
    case("gray.jpg", file, opened(file), 4)
    case("gray.png", written(gray, "PNG"), gray.convert("RGB"))
    case("rotated.webp", written(rgb, "WEBP", lossless=True, exif=exif), np.rot90(image, 3))
    file = written(rgb, "WEBP", quality=80)
    case("lossy.webp", file, opened(file), 4)
    file = written(rgb.convert("CMYK"), "JPEG", quality=95, subsampling=0)
    case("cmyk.jpg", file, opened(file), 6)
    palette = rgb.quantize(16)
    case("palette.png", written(palette, "PNG"), palette.convert("RGB"))

    rng = np.random.default_rng(5)
    alpha = rng.integers(0, 256, image.shape[:2]).astype(np.float64)
    alpha[:3], alpha[-3:] = 0, 255

    def on_white(colour, opacity):
        return np.floor(colour * opacity[..., None] + 255 * (1 - opacity[..., None]) + 0.5).astype(np.uint8)

    rgba = np.dstack([image, alpha.astype(np.uint8)])
    case("alpha.png", written(Image.fromarray(rgba), "PNG"), on_white(image, alpha / 255))
    case("alpha.webp", written(Image.fromarray(rgba), "WEBP", lossless=True, exact=True), on_white(image, alpha / 255))
    luma = np.asarray(gray).astype(np.float64)
    both = Image.merge("LA", [gray, Image.fromarray(alpha.astype(np.uint8))])
    case("gray-alpha.png", written(both, "PNG"), np.repeat(on_white(luma[..., None], alpha / 255), 3, -1))
    deep = rng.integers(0, 65536, (18, 24, 4)).astype(np.uint16)
    eight = np.floor(deep.astype(np.float64) / 257 + 0.5)
    case("deep.png", stored(deep[..., :3]), eight[..., :3].astype(np.uint8))
    case("deep-alpha.png", stored(deep), on_white(deep[..., :3] / 257.0, deep[..., 3] / 65535.0), 1)
    case("deep-gray.png", written(Image.fromarray(deep[..., 0]), "PNG"), np.repeat(eight[..., :1], 3, -1).astype(np.uint8))
    save("photos.json", cases)


def profile(space: str, primaries=None, gamma=2.2, table=None, version=2, intent=b"A2B0") -> bytes:
    """An ICC profile of version 2, or another: a matrix and a curve (RGB), a curve (GRAY) or a table of Lab (CMYK, RGB)."""

    def fixed(value) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(values) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(fixed(v) for v in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78)
    tags = [(b"desc", text), (b"cprt", b"text\0\0\0\0none\0"), (b"wtpt", xyz(D50))]
    if primaries is not None:
        tags += [(name, xyz(column)) for name, column in zip([b"rXYZ", b"gXYZ", b"bXYZ"], primaries.T)]
        tags += [(name, curve) for name in [b"rTRC", b"gTRC", b"bTRC"]]
    if space == "GRAY":
        tags.append((b"kTRC", curve))
    if table is not None:
        tags.append((intent, table))
    body, index = b"", b""
    for name, value in tags:
        value += bytes(-len(value) % 4)
        index += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(value))
        body += value
    pcs = b"Lab " if table is not None else b"XYZ "
    kind = b"prtr" if space == "CMYK" else b"mntr"
    head = struct.pack(">I4sI4s4s4s", 132 + len(index) + len(body), b"none", version << 24 | 0x400000, kind, space.encode().ljust(4), pcs)
    head += struct.pack(">6H4s", 2026, 11, 27, 0, 0, 0, b"acsp") + bytes(28) + b"".join(fixed(v) for v in D50)
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + index + body


D50 = np.array([0.9642, 1.0, 0.8249])


def colorants(chromaticities, white) -> np.ndarray:
    """XYZ of the primaries as columns, from x and y, moved to D50 by Bradford's matrix."""
    xyz = np.array([[x / y, 1, (1 - x - y) / y] for x, y in chromaticities]).T
    white = np.array([white[0] / white[1], 1, (1 - white[0] - white[1]) / white[1]])
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    adapted = np.linalg.inv(bradford) @ np.diag((bradford @ D50) / (bradford @ white)) @ bradford
    return adapted @ (xyz * np.linalg.solve(xyz, white))


D65 = (0.3127, 0.3290)
ADOBE_RGB = colorants([(0.64, 0.33), (0.21, 0.71), (0.15, 0.06)], D65)
DISPLAY_P3 = colorants([(0.68, 0.32), (0.265, 0.69), (0.15, 0.06)], D65)
PROPHOTO = colorants([(0.734699, 0.265301), (0.159597, 0.840403), (0.036598, 0.000105)], (0.345704, 0.358540))
SRGB = colorants([(0.64, 0.33), (0.30, 0.60), (0.15, 0.06)], D65)


def inks() -> bytes:
    """A table from CMYK to Lab on 5 points an axis: colours of darkening and reddening inks, not those of any press."""
    entries = bytearray()
    for c, m, y, k in itertools.product(np.linspace(0, 1, 5), repeat=4):
        # Nearly linear and all within sRGB, so that two ways to interpolate and to clip agree.
        light = (88 - 22 * c - 25 * m - 6 * y) * (1 - 0.5 * k)
        a, b = (26 * m - 16 * c) * (1 - 0.6 * k), (26 * y - 18 * c - 4 * m) * (1 - 0.6 * k)
        entries += bytes([round(light * 2.55), round(a + 128), round(b + 128)])
    line = bytes(range(256))
    identity = b"".join(struct.pack(">i", round(v * 65536)) for v in np.eye(3).ravel())
    return b"mft1\0\0\0\0" + bytes([4, 3, 5, 0]) + identity + line * 4 + bytes(entries) + line * 3


def lab_table(kind: bytes, exponent: float, points: int) -> bytes:
    """A table from Adobe RGB, less saturated so that nothing is clipped, to Lab: behind curves of this exponent, in 8 or 16 bits."""
    grid = np.array(list(itertools.product(np.linspace(0, 1, points), repeat=3))) ** (1 / exponent)
    ratio = (grid**2.2 @ ADOBE_RGB.T) / D50
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    light, a, b = 116 * f[:, 1] - 16, 200 * (f[:, 0] - f[:, 1]), 80 * (f[:, 1] - f[:, 2])
    identity = b"".join(struct.pack(">i", round(v * 65536)) for v in np.eye(3).ravel())
    head = kind + bytes(4) + bytes([3, 3, points, 0]) + identity
    if kind == b"mft1":
        curve = np.round(np.linspace(0, 1, 256) ** exponent * 255).astype(np.uint8).tobytes()
        entries = np.round(np.stack([light * 2.55, a + 128, b + 128], -1)).astype(np.uint8).tobytes()
        return head + curve * 3 + entries + bytes(range(256)) * 3
    curve = np.round(np.linspace(0, 1, 1024) ** exponent * 65535).astype(">u2").tobytes()
    entries = np.round(np.stack([light * 652.8, (a + 128) * 256, (b + 128) * 256], -1)).astype(">u2").tobytes()
    return head + struct.pack(">HH", 1024, 2) + curve * 3 + entries + np.array([0, 65535], ">u2").tobytes() * 3


def colours() -> None:
    import io
    import zlib

    from PIL import Image, ImageCms

    cases = []
    image = picture(24, 18, 3)
    rgb = Image.fromarray(image)

    def case(name, file, expected, tolerance):
        cases.append({"name": name, "file": file.hex(), "expected": hexed(np.asarray(expected)), "tolerance": tolerance})

    def written(picture, kind, **options):
        stream = io.BytesIO()
        picture.save(stream, kind, **options)
        return stream.getvalue()

    def opened(file):
        return Image.open(io.BytesIO(file))

    def shown(file_or_image, icc, **options):
        """By LittleCMS."""
        picture = opened(file_or_image) if isinstance(file_or_image, bytes) else file_or_image
        source, target = ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB")
        # Colorimetric: for perceptual tables LittleCMS moves black, which browsers do not.
        how = ImageCms.Intent.RELATIVE_COLORIMETRIC
        return ImageCms.profileToProfile(picture, source, target, renderingIntent=how, outputMode="RGB", **options)

    adobe, p3 = profile("RGB ", ADOBE_RGB, 2.19921875), profile("RGB ", DISPLAY_P3, 2.2)
    for name, icc in [("adobe-rgb", adobe), ("display-p3", p3)]:
        case(f"{name}.png", written(rgb, "PNG", icc_profile=icc), shown(rgb, icc), 1)
        file = written(rgb, "WEBP", lossless=True, icc_profile=icc)
        case(f"{name}.webp", file, shown(rgb, icc), 1)
    file = written(rgb, "JPEG", quality=98, subsampling=0, icc_profile=adobe)
    # A decoder's rounding, made larger by the profile.
    case("adobe-rgb.jpg", file, shown(file, adobe), 6)
    opacity = np.linspace(0, 255, image.shape[1]).astype(np.uint8)[None].repeat(image.shape[0], 0)
    over = np.asarray(shown(rgb, p3)).astype(np.float64) * opacity[..., None] / 255 + 255.0 - opacity[..., None]
    case("display-p3-alpha.png", written(Image.fromarray(np.dstack([image, opacity])), "PNG", icc_profile=p3),
         np.floor(over + 0.5).astype(np.uint8), 1)
    palette = rgb.quantize(16)
    case("adobe-rgb-palette.png", written(palette, "PNG", icc_profile=adobe), shown(palette.convert("RGB"), adobe), 1)
    gray, icc = rgb.convert("L"), profile("GRAY", gamma=1.0)
    case("linear-gray.png", written(gray, "PNG", icc_profile=icc), shown(gray, icc), 1)
    file = written(gray, "JPEG", quality=98, icc_profile=icc)
    case("linear-gray.jpg", file, shown(file, icc), 16)

    # Tables, step by step: what LittleCMS samples on a grid before is up to a level off itself.
    exactly = {"flags": ImageCms.Flags.NOOPTIMIZE}
    for name, kind, exponent, points, options, tolerance in [
        ("table", b"mft2", 1.0, 17, {}, 1),
        # Between points far apart, in the dark behind curves or where there are few, and of Lab in steps of 1 it shows that LittleCMS
        # interpolates in tetrahedra, moxcms from Lab always in cubes: by itself this is up to 3 levels in the first of these.
        ("table-behind-curves", b"mft2", 2.2, 17, {}, 2),
        ("table-of-version-4", b"mft2", 1.0, 9, {"version": 4}, 2),
        ("table-colorimetric", b"mft2", 1.0, 9, {"intent": b"A2B1"}, 2),
        ("table-of-8-bits", b"mft1", 1.0, 9, {}, 3),
    ]:
        icc = profile("RGB ", table=lab_table(kind, exponent, points), **options)
        case(f"{name}.png", written(rgb, "PNG", icc_profile=icc), shown(rgb, icc, **exactly), tolerance)

    # 16 bits by the formula, since Pillow has them of gray alone.
    deep = np.random.default_rng(6).integers(0, 65536, (18, 24, 3)).astype(np.uint16)
    linear = np.linalg.solve(SRGB, PROPHOTO @ (deep.reshape(-1, 3) / 65535.0).T ** 1.8).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055).T.reshape(deep.shape)

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    icc = profile("RGB ", PROPHOTO, 1.8)
    parts = [
        chunk(b"IHDR", struct.pack(">IIBBBBB", 24, 18, 16, 2, 0, 0, 0)),
        chunk(b"iCCP", b"test\0\0" + zlib.compress(icc)), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""),
    ]
    case("prophoto-deep.png", b"\x89PNG\r\n\x1a\n" + b"".join(parts), np.round(encoded * 255).astype(np.uint8), 1)

    # What PNG says beside a profile, by its order: cICP, iCCP, sRGB, then gAMA with cHRM. LittleCMS has no names of spaces: it is given the
    # profile that they stand for.
    def labelled(*chunks, picture=rgb, **options):
        file = written(picture, "PNG", **options)
        end = file.index(b"IHDR") + 4 + 13 + 4
        return file[:end] + b"".join(chunk(*c) for c in chunks) + file[end:]

    def numbers(*values):
        return struct.pack(f">{len(values)}I", *values)

    adobe_points = (b"cHRM", numbers(31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000))
    srgb_points = (b"cHRM", numbers(31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))
    adobe_gamma, usual_gamma, linear = [(b"gAMA", numbers(value)) for value in (45471, 45455, 100000)]
    p3_named = (b"cICP", bytes([12, 13, 0, 1]))
    case("gamma-primaries.png", labelled(adobe_gamma, adobe_points), shown(rgb, adobe), 1)
    case("gamma.png", labelled(linear), shown(rgb, profile("RGB ", SRGB, 1.0)), 1)
    case("gamma-gray.png", labelled(linear, picture=gray), shown(gray, profile("GRAY", gamma=1.0)), 1)
    case("gamma-of-srgb.png", labelled(usual_gamma, srgb_points), image, 0)
    case("gamma-beside-srgb.png", labelled((b"sRGB", b"\0"), linear, adobe_points), image, 0)
    case("gamma-beside-profile.png", labelled(linear, adobe_points, icc_profile=p3), shown(rgb, p3), 1)
    case("gamma-of-nothing.png", labelled((b"gAMA", numbers(0)), adobe_points), image, 0)
    named = np.linalg.solve(SRGB, DISPLAY_P3 @ np.where(
        image <= 0.04045 * 255, image / 255 / 12.92, ((image / 255 + 0.055) / 1.055) ** 2.4).reshape(-1, 3).T).clip(0, 1)
    named = np.where(named <= 0.0031308, 12.92 * named, 1.055 * named ** (1 / 2.4) - 0.055).T.reshape(image.shape)
    named = np.round(named * 255).astype(np.uint8)
    case("named-p3.png", labelled(p3_named), named, 1)
    case("named-p3-before-all.png", labelled(p3_named, (b"sRGB", b"\0"), linear, icc_profile=adobe), named, 1)
    case("named-srgb-before-profile.png", labelled((b"cICP", bytes([1, 13, 0, 1])), icc_profile=adobe), image, 0)
    # No name of RGB: what comes next counts.
    case("named-nothing.png", labelled((b"cICP", bytes([2, 2, 0, 1])), icc_profile=adobe), shown(rgb, adobe), 1)
    # Adobe RGB by DCF's rule, as cameras write it: EXIF's colour space is none, its option file is R03.
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 0xFFFF
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    uncalibrated = Image.Exif()
    uncalibrated.get_ifd(0x8769)[0xA001] = 0xFFFF
    file = written(rgb, "JPEG", quality=98, subsampling=0, exif=exif)
    case("adobe-rgb-camera.jpg", file, shown(file, adobe), 6)
    case("adobe-rgb-camera-profile.jpg", written(rgb, "JPEG", quality=98, subsampling=0, exif=exif, icc_profile=p3),
         shown(file, p3), 6)
    case("uncalibrated.jpg", written(rgb, "JPEG", quality=98, subsampling=0, exif=uncalibrated), opened(file), 4)
    case("adobe-rgb-camera.webp", written(rgb, "WEBP", lossless=True, exif=exif), shown(rgb, adobe), 1)

    # Colour means nothing here: an sRGB profile, one of another kind of pixels, one that is broken, PNG's own words for sRGB.
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    case("srgb.png", written(rgb, "PNG", icc_profile=srgb), image, 0)
    case("gray-profile-of-colours.png", written(rgb, "PNG", icc_profile=profile("GRAY", gamma=1.0)), image, 0)
    case("broken-profile.png", written(rgb, "PNG", icc_profile=adobe[:200]), image, 0)

    # Other JPEGs.
    file = written(rgb, "JPEG", quality=98, keep_rgb=True)
    case("rgb-coded.jpg", file, opened(file), 2)
    at = file.index(b"Adobe") - 4
    bare = file[:at] + file[at + 16:]
    frame, scan = bare.index(b"\xff\xc0"), bare.index(b"\xff\xda")
    assert [bare[frame + 10 + 3 * i] for i in range(3)] == [82, 71, 66], "components are named R, G, B"
    assert scan > frame
    case("rgb-coded-unmarked.jpg", bare, opened(bare), 2)
    inked = Image.fromarray(np.dstack([image, picture(24, 18, 4)[..., 0] // 2]), "CMYK")
    icc = profile("CMYK", table=inks())
    file = written(inked, "JPEG", quality=98, subsampling=0)
    case("cmyk.jpg", file, opened(file).convert("RGB"), 4)
    file = written(inked, "JPEG", quality=98, subsampling=0, icc_profile=icc)
    case("cmyk-profile.jpg", file, shown(file, icc), 6)
    # The same planes, called YCCK: what Pillow writes as inks, inverted, are then luma and chroma.
    for name, profiled in [("ycck.jpg", {}), ("ycck-profile.jpg", {"icc_profile": icc})]:
        file = bytearray(written(inked, "JPEG", quality=98, subsampling=0, **profiled))
        file[file.index(b"Adobe") + 11] = 2
        file = bytes(file)
        case(name, file, shown(file, icc) if profiled else opened(file).convert("RGB"), 6)
    file = written(rgb, "JPEG", quality=98, subsampling=0)
    # A gain map is a second image behind the first.
    case("gain-map.jpg", file + written(gray, "JPEG"), opened(file).convert("RGB"), 4)

    # Of an animation the first frame.
    other = Image.fromarray(255 - image)
    case("animation.webp", written(rgb, "WEBP", lossless=True, save_all=True, append_images=[other]), image, 0)
    case("animation.png", written(rgb, "PNG", save_all=True, append_images=[other], duration=100), image, 0)
    for bits in [1, 2, 4]:
        few = rgb.quantize(2**bits)
        case(f"palette-{bits}.png", written(few, "PNG", bits=bits), few.convert("RGB"), 0)
    few = rgb.quantize(16)
    clear = np.where((np.asarray(few) == 3)[..., None], 255, np.asarray(few.convert("RGB")))
    case("palette-transparent.png", written(few, "PNG", transparency=3), clear.astype(np.uint8), 0)
    save("colours.json", cases)


ARCFACE = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])
FACEXLIB = np.array([
    [192.98138, 239.94708], [318.90277, 240.1936], [256.63416, 314.01935], [201.26117, 371.41043], [313.08905, 371.15118],
])


def points(values) -> list:
    return [[float(str(np.float32(x))), float(str(np.float32(y)))] for x, y in values]


def faces_like(template: np.ndarray, rng, noise: float) -> np.ndarray:
    """Landmarks of a turned, scaled, shifted and imperfect face, as float32."""
    angle, scale = rng.uniform(-0.6, 0.6), rng.uniform(0.2, 2)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    extent = np.ptp(template)
    moved = (template - template.mean(0)) @ turn * scale + rng.uniform(0, 4 * extent, 2)
    return (moved + rng.normal(0, noise * extent * scale, (5, 2))).astype(np.float32)


def umeyama() -> None:
    from skimage.transform import SimilarityTransform

    rng, cases = np.random.default_rng(11), []
    for noise in (0, 0.01, 0.03, 0.1, 0.5) * 3:
        source = faces_like(ARCFACE, rng, noise)
        transform = SimilarityTransform.from_estimate(source.astype(np.float64), ARCFACE.astype(np.float32).astype(np.float64))
        cases.append({
            "from": points(source), "to": points(ARCFACE), "matrix": transform.params[:2].tolist(),
        })
    # Exact decimals of the float32 inputs, so that both sides fit the same numbers.
    for case in cases:
        case["from"] = [[float(np.float32(v)) for v in p] for p in case["from"]]
        case["to"] = [[float(np.float32(v)) for v in p] for p in case["to"]]
    save("umeyama.json", cases)


def lmeds() -> None:
    import cv2

    rng, cases = np.random.default_rng(12), []
    for i in range(40):
        source = faces_like(FACEXLIB, rng, (0.003, 0.02, 0.06)[i % 3])
        if i % 2:
            source[rng.integers(5)] += rng.normal(0, 40, 2).astype(np.float32)
        matrix, inliers = cv2.estimateAffinePartial2D(source, FACEXLIB, method=cv2.LMEDS)
        cases.append({
            "from": points(source), "to": points(FACEXLIB), "matrix": matrix.tolist(), "inliers": int(inliers.sum()),
        })
    save("lmeds.json", cases)


def warp() -> None:
    import cv2

    rng, cases = np.random.default_rng(13), []
    for i in range(6):
        image = picture(int(rng.integers(25, 50)), int(rng.integers(25, 50)), 100 + i)
        angle, scale = rng.uniform(-1, 1), rng.uniform(0.4, 2.5)
        cos, sin = scale * np.cos(angle), scale * np.sin(angle)
        matrix = np.array([[cos, -sin, rng.uniform(-20, 20)], [sin, cos, rng.uniform(-20, 20)]])
        border = [int(v) for v in rng.integers(0, 256, 3)]
        size = (int(rng.integers(16, 40)), int(rng.integers(16, 40)))
        warped = cv2.warpAffine(image, matrix, size, borderMode=cv2.BORDER_CONSTANT, borderValue=border)
        cases.append({"image": hexed(image), "matrix": matrix.tolist(), "border": border, "warped": hexed(warped)})
    save("warp.json", cases)


def crops() -> None:
    import cv2
    from skimage.transform import SimilarityTransform

    rng = np.random.default_rng(14)
    photo = picture(90, 80, 9)
    landmarks = ((FACEXLIB - 256) * 0.13 + [48, 38] + rng.normal(0, 0.4, (5, 2))).astype(np.float32)
    landmarks[1] += (6, 14)
    fitted = SimilarityTransform.from_estimate(landmarks.astype(np.float64), ARCFACE.astype(np.float32).astype(np.float64))
    arcface = cv2.warpAffine(photo, fitted.params[:2], (112, 112), borderValue=0.0)
    side = 64
    matrix, inliers = cv2.estimateAffinePartial2D(landmarks, FACEXLIB * (side / 512.0), method=cv2.LMEDS)
    assert inliers.sum() < 5
    # facexlib works in BGR order.
    bgr = cv2.warpAffine(photo[..., ::-1], matrix, (side, side), borderMode=cv2.BORDER_CONSTANT, borderValue=(135, 133, 132))
    save("crops.json", {
        "photo": hexed(photo), "landmarks": points(landmarks), "arcface": hexed(arcface), "facexlib": hexed(bgr[..., ::-1]),
    })


def letterbox() -> None:
    import cv2

    cases = []
    for width, height, side in [(50, 33, 32), (33, 50, 64), (40, 40, 32), (21, 17, 32)]:
        photo = picture(width, height, width + height)
        ratio = height / width
        new_width, new_height = (int(side / ratio), side) if ratio > 1 else (side, int(side * ratio))
        canvas = np.zeros((side, side, 3), np.uint8)
        canvas[:new_height, :new_width] = cv2.resize(photo, (new_width, new_height))
        cases.append({
            "photo": hexed(photo), "side": side, "scale": float(np.float32(new_height / height)), "image": hexed(canvas),
        })
    save("letterbox.json", cases)


def scrfd() -> None:
    """Random detector outputs, and the faces in them by plain loops over boxes in f64."""
    rng, side, scale = np.random.default_rng(15), 64, 0.8
    outputs, found = {1: [], 4: [], 10: []}, []
    for stride in (8, 16, 32):
        cells = side // stride
        count = cells * cells * 2
        scores = np.round(rng.beta(0.4, 1.6, (count, 1)), 6).astype(np.float32)
        boxes = np.round(rng.uniform(0.3, 2.2, (count, 4)), 3).astype(np.float32)
        offsets = np.round(rng.uniform(-1.5, 1.5, (count, 10)), 3).astype(np.float32)
        for width, values in ((1, scores), (4, boxes), (10, offsets)):
            outputs[width].append({"width": width, "values": floats(values)})
        for i in np.flatnonzero(scores[:, 0] >= 0.5):
            y, x = divmod(i // 2, cells)
            centre = np.array([x, y], np.float64) * stride
            low, high = centre - boxes[i, :2].astype(np.float64) * stride, centre + boxes[i, 2:].astype(np.float64) * stride
            marks = centre + offsets[i].reshape(5, 2).astype(np.float64) * stride
            found.append((float(scores[i, 0]), np.concatenate([low, high]) / scale, marks / scale))
    kept = []
    for score, box, marks in sorted(found, key=lambda f: -f[0]):
        def overlap(other):
            size = np.maximum(0, np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]) + 1).prod()
            areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, other)]
            return size / (sum(areas) - size)

        if all(overlap(other) <= 0.4 for _, other, _ in kept):
            kept.append((score, box, marks))
    assert 4 <= len(kept) < len(found)
    save("scrfd.json", {
        "side": side, "scale": scale, "outputs": outputs[1] + outputs[4] + outputs[10],
        "faces": [
            {"score": float(str(np.float32(s))), "bbox": box.tolist(), "landmarks": marks.tolist()} for s, box, marks in kept
        ],
    })


PARTS = {
    function.__name__: function
    for function in (
        randn, schedule, samplers, resize, bicubic, photos, colours, umeyama, lmeds, warp, crops, letterbox, scrfd,
    )
}


def main() -> None:
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
    # What is not installed was not used.
    versions = json.loads((HERE / "versions.json").read_text(encoding="utf-8"))
    for name in ["torch", "numpy", "diffusers", "scikit-image", "opencv-python-headless", "pillow"]:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    save("versions.json", versions)


if __name__ == "__main__":
    main()
