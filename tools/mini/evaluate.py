"""The figures of models/mini/MODEL_CARD.md: 64 held-out identities x 8 prompts, with and without identity.

    python tools/mini/evaluate.py [--adapters adapter_1.pt adapter_2.pt adapter_3.pt] [--people 64] [--gallery 64] [--out table.json]
    python tools/mini/evaluate.py --renders      what the judge tells from true pictures of these people, and what the VAE leaves

Identity is judged by the second recogniser, which no training saw, on the face that the detector finds (a picture
without a found face counts as cosine 0 and as a wrong person). Style and background are judged by a classifier trained
on renders. Every adapter sees the same noise, prompts and photos.
"""
from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Both folders have an export.py; the one meant here is the face networks'.
sys.path[:0] = [str(HERE / "face"), str(HERE / "diffusion"), str(HERE), str(HERE.parent)]

import common  # noqa: E402  (sets the thread environment first)
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from attributes import load_attributes  # noqa: E402
from common import CACHE, WORK, load_fields, sheet, to_u8  # noqa: E402
from identity import FaceModels  # noqa: E402
from latents import BACKGROUNDS, STYLES, Latents  # noqa: E402
from parallel import load_averaged  # noqa: E402
from sampling import load_tokenizers, load_vae, sample  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from train_adapter import Adapter, IdSettings, load_base, nothing  # noqa: E402

PROMPTS = (
    ("a photo of a person, smiling, in a garden", "photo", "garden"),
    ("a photo of a person, in a library, wearing a black suit", "photo", "library"),
    ("a photo of a person, surprised, at the beach", "photo", "beach"),
    ("a pencil sketch of a person, in an autumn forest", "pencil sketch", "autumn forest"),
    ("an oil painting of a person, sad, in a city street", "oil painting", "city street"),
    ("a neon picture of a person, under a night sky", "neon", "night sky"),
    ("a comic picture of a person, angry, in a garden, wearing a yellow raincoat", "comic", "garden"),
    ("a watercolor painting of a person, in the snow", "watercolor", "snow"),
)


def judged(models, picture, points):
    """The judging recogniser's embedding, of unit length: the second one's, or for a first look, while that one is not
    trained yet, the training recogniser's (the report says which)."""
    if models.second_recogniser is not None:
        return models.second(picture, points)
    return F.normalize(models.embedding(picture, points), dim=-1)


def condition_of(models, picture):
    """The identity condition by the whole photo path (detector, alignment, parser, tower), as the program does it."""
    face = models.find(picture)
    if face is None:
        return None
    return models.identity(picture, face.points), judged(models, picture, face.points)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--adapters", type=Path, nargs="*", default=[WORK / f"adapter_{i}.pt" for i in (1, 2, 3)])
    a.add_argument("--face", type=Path, default=CACHE / "face")
    a.add_argument("--people", type=int, default=64, help="people that pictures are made of")
    a.add_argument("--gallery", type=int, default=64, help="people among whom the right one must be found")
    a.add_argument("--defaults", type=Path, default=common.MODELS / "generation_defaults.json")
    a.add_argument("--out", type=Path, default=WORK / "table.json")
    a.add_argument("--renders", action="store_true", help="only judge the renders themselves, as they are and through the VAE")
    a.add_argument("--threads", type=int, default=2)
    a = a.parse_args()
    torch.set_num_threads(a.threads)
    started = time.time()
    settings = json.loads(a.defaults.read_text())
    images, fields, _ = load_fields(CACHE / "data" / "heldout")
    models = FaceModels(a.face)
    vae = load_vae()

    people, conditions, references, rows = [], [], [], []
    for person in np.unique(fields["identity"]):
        for row in np.flatnonzero((fields["identity"] == person) & (fields["style"] == 0)):
            got = condition_of(models, images[row])
            if got is not None:
                people.append(int(person))
                conditions.append(got[0])
                references.append(got[1])
                rows.append(row)
                break
        if len(people) == max(a.people, a.gallery):
            break
    references = torch.stack(references)
    n = min(a.people, len(people))
    print(f"{len(people)} people with a found photo; reference photos among each other: {off_diagonal(references @ references.T):.3f}", flush=True)

    if a.renders:
        for label, way in (("true renders", lambda picture: picture), ("through the VAE", lambda picture: decoded(vae, picture))):
            found = judged_renders(models, images, fields, np.array(people), references, set(rows), way)
            print(label, json.dumps(found), f"{time.time() - started:.0f}s", flush=True)
        return

    judge = load_attributes()
    tokenizers = load_tokenizers()
    data = Latents("heldout", *tokenizers)
    texts = [p[0] for p in PROMPTS]
    noise = torch.randn(n, len(PROMPTS), 4, 16, 16, generator=torch.Generator().manual_seed(2024))
    report, plain = {}, None
    runs = [("without identity", None)] + [(p.stem, p if p.exists() else WORK / p) for p in a.adapters]
    for label, path in runs:
        if path is not None and not path.exists():
            print(f"{label}: {path} is not there, skipped")
            continue
        net = load_base()
        adapter = None
        if path is not None:
            id_settings = IdSettings(id_scale=settings["id_scale"], num_zero=settings["num_zero"], ortho=settings["ortho"])
            adapter = Adapter(net.unet, id_settings).eval()
            load_averaged(adapter.named_parameters(), torch.load(path, weights_only=True))
        pictures = []
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            for i in range(n):
                identity = None
                if adapter is not None:
                    own = adapter.id_adapter(conditions[i][0][None], [h[None] for h in conditions[i][1]])
                    none = adapter.id_adapter(*nothing(1))
                    identity = tuple(x.expand(len(texts), -1, -1) for x in (own, none))
                z = sample(
                    net, tokenizers, texts, steps=settings["steps"], guidance=settings["guidance_scale"], spacing=settings["spacing"],
                    negative=settings["negative_prompt"], noise=noise[i], identity=identity,
                )
                pictures.append(vae.decode(data.denormalise(z)).sample.float())
        pictures = torch.stack(pictures)  # [n, prompts, 3, 128, 128]
        plain = pictures if plain is None else plain
        report[label] = row = measure(pictures, plain, models, judge, references if adapter is not None else None)
        print(label, json.dumps(row), f"{time.time() - started:.0f}s", flush=True)
        shown = [np.concatenate([images[rows[i]][None], to_u8(pictures[i])]) for i in range(min(n, 10))]
        sheet(np.concatenate(shown), len(texts) + 1, WORK / "sheets" / f"evaluation_{label.replace(' ', '_')}.png")
    judge_name = "second recogniser" if models.second_recogniser is not None else "training recogniser (no independent judge)"
    a.out.write_text(json.dumps(dict(judge=judge_name, settings=settings, people=n, gallery=len(people), prompts=texts, rows=report), indent=2) + "\n")


@torch.no_grad()
def decoded(vae, picture):
    """A picture u8 [H,W,3] as the VAE gives it back."""
    x = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.autocast("cpu", torch.bfloat16):
        return to_u8(vae.decode(vae.encode(x).latent_dist.mean).sample)[0]


def judged_renders(models, images, fields, people, references, left_out, way):
    """The share of renders whose person is first among `references`, by style and weighted as the prompts are."""
    hits = {}
    for row, picture in enumerate(images):
        place = np.flatnonzero(people == fields["identity"][row])
        if row in left_out or not len(place):
            continue
        picture = way(picture)
        face = models.find(picture)
        right = face is not None and int((references @ judged(models, picture, face.points)).argmax()) == place[0]
        hits.setdefault(STYLES[fields["style"][row]], []).append(right)
    shares = {style: float(np.mean(h)) for style, h in hits.items()}
    return shares | {"as the prompts": float(np.mean([shares[style] for _, style, _ in PROMPTS])), "renders": sum(map(len, hits.values()))}


def off_diagonal(m):
    return float((m.sum() - m.diagonal().sum()) / (m.numel() - len(m)))


@torch.no_grad()
def measure(pictures, plain, models, judge, references):
    n, p = pictures.shape[:2]
    flat = pictures.clamp(-1, 1).flatten(0, 1)
    style, background, features = judge(flat)
    _, _, other = judge(plain.clamp(-1, 1).flatten(0, 1))
    want_style = torch.tensor([STYLES.index(s) for _, s, _ in PROMPTS]).repeat(n)
    want_background = torch.tensor([BACKGROUNDS.index(b) for _, _, b in PROMPTS]).repeat(n)
    row = {
        "style right": float((style.argmax(1) == want_style).float().mean()),
        "background right": float((background.argmax(1) == want_background).float().mean()),
    }
    if references is None:
        return row
    small = [F.adaptive_avg_pool2d(x.flatten(0, 1), 32).flatten(1) for x in (pictures, plain)]
    small = [x - x.mean(1, keepdim=True) for x in small]
    row["feature similarity to without identity"] = float(F.cosine_similarity(features, other).mean())
    row["picture correlation to without identity"] = float(F.cosine_similarity(*small).mean())
    embedded = torch.zeros(n * p, references.shape[1])
    found = torch.zeros(n * p, dtype=torch.bool)
    for i, picture in enumerate(to_u8(flat)):
        face = models.find(picture)
        if face is not None:
            embedded[i], found[i] = judged(models, picture, face.points), True
    cosine = (embedded @ references.T).view(n, p, len(references))
    own = torch.stack([cosine[i, :, i] for i in range(n)])
    others = (cosine.sum(2) - own) / (len(references) - 1)
    first = torch.stack([cosine[i].argmax(1) == i for i in range(n)]) & found.view(n, p)
    photo = torch.tensor([s == "photo" for _, s, _ in PROMPTS])
    row |= {
        "face found": float(found.float().mean()),
        "cosine to own photo": float(own.mean()),
        "cosine to own photo where a face is found": float(own[found.view(n, p)].mean()),
        "cosine to others": float(others.mean()),
        "first among all": float(first.float().mean()),
        "cosine to own photo, photo prompts": float(own[:, photo].mean()),
        "cosine to others, photo prompts": float(others[:, photo].mean()),
        "first among all, photo prompts": float(first[:, photo].float().mean()),
    }
    return row


if __name__ == "__main__":
    main()
