#!/usr/bin/env python3
"""Draws docs/contact_sheet.jpg from the published files alone: a photo per row, then the person in six styles.

    python tools/mini/contact_sheet.py [--people ada ben ...] [--out docs/contact_sheet.jpg]
"""

import argparse
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "face"), str(HERE / "diffusion"), str(HERE), str(HERE.parent)]

import common  # noqa: E402  (sets the thread environment first)
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from bisenet import BiSeNet  # noqa: E402
from common import MODELS, REPOSITORY, to_u8  # noqa: E402
from data import arcface_crop, facexlib_crop  # noqa: E402
from identity import PublishedNetwork, read_photo  # noqa: E402
from PIL import Image  # noqa: E402
from recover import published_adapter, published_base, published_vae, read  # noqa: E402
from sampling import load_tokenizers, sample  # noqa: E402
from scrfd import decode  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from train_adapter import IdSettings, nothing  # noqa: E402
from train_detector import letterbox  # noqa: E402
from train_parser import normalised as parser_input  # noqa: E402
from train_tower import gray_face, tower  # noqa: E402
from train_tower import normalised as tower_input  # noqa: E402

PROMPTS = (
    "a photo of a person, smiling, in a garden, wearing a red sweater",
    "a pencil sketch of a person, in a library",
    "an oil painting of a person, at the beach, wearing a white shirt",
    "a neon picture of a person, under a night sky",
    "a comic picture of a person, in a city street, wearing a yellow raincoat",
    "a watercolor painting of a person, in the snow, wearing a blue hoodie",
)


class Reader:
    """A photo's identity condition, read with the published face networks."""

    def __init__(self):
        folder = MODELS / "antelopev2"
        self.detector, self.recogniser = (PublishedNetwork(folder / name) for name in ("scrfd_10g_bnkps.onnx", "glintr100.onnx"))
        self.parser, self.tower = BiSeNet().eval(), tower().eval()
        self.parser.load_state_dict(read(MODELS / "parsing_bisenet.safetensors"), strict=False)
        self.tower.load_official(read(MODELS / "eva_clip.safetensors"))

    @torch.no_grad()
    def __call__(self, image):
        picture, scale = letterbox(image)
        x = (torch.from_numpy(picture).permute(2, 0, 1)[None].float() - 127.5) / 128
        _, boxes, points = decode(self.detector(x), *picture.shape[:2])
        if len(boxes) == 0:
            raise ValueError("no face in this photo")
        points = points[int((boxes[:, 2:] - boxes[:, :2]).prod(1).argmax())].numpy() / scale
        x = (torch.from_numpy(arcface_crop(image, points)).permute(2, 0, 1)[None].float() - 127.5) / 127.5
        embedding = torch.from_numpy(self.recogniser(x)[0])
        crop = facexlib_crop(image, points, 128)
        labels = self.parser(parser_input([crop])).argmax(1)[0].numpy().astype(np.uint8)
        cls, hidden = self.tower(tower_input([gray_face(crop, labels)]))
        return torch.cat([embedding, F.normalize(cls, dim=-1)], -1), hidden


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--people", nargs="+", default=["ada", "ben", "cleo", "hugo", "lars", "omar"], help="names in examples/faces")
    parse.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "contact_sheet.jpg")
    parse.add_argument("--cell", type=int, default=172, help="width of one picture on the sheet")
    parse.add_argument("--seed", type=int, default=21)
    args = parse.parse_args()
    torch.set_num_threads(1)
    defaults = json.loads((MODELS / "generation_defaults.json").read_text())
    tokenizers, net, (vae, factor) = load_tokenizers(), published_base().eval(), published_vae()
    settings = IdSettings(id_scale=defaults["id_scale"], num_zero=defaults["num_zero"], ortho=defaults["ortho"])
    adapter, reader = published_adapter(net, settings).eval(), Reader()
    rows = []
    for name in args.people:
        photo = read_photo(REPOSITORY / "examples" / "faces" / f"{name}.jpg")
        condition, hidden = reader(photo)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            identity = tuple(adapter.id_adapter(*x).expand(len(PROMPTS), -1, -1) for x in ((condition, hidden), nothing(1)))
            z = sample(
                net, tokenizers, PROMPTS, seed=args.seed, steps=defaults["steps"], guidance=defaults["guidance_scale"],
                spacing=defaults["spacing"], negative=defaults["negative_prompt"], identity=identity,
            )
            pictures = to_u8(vae.decode(z / factor).sample)
        shown = [Image.fromarray(p).resize((args.cell, args.cell), Image.LANCZOS) for p in (photo, *pictures)]
        rows.append(np.concatenate([np.asarray(p) for p in shown], 1))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(args.out, quality=88)
    print(f"{args.out}: {args.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
