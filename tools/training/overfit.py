"""Overfits the published mini adapter to eight people and judges pictures of them by a recogniser that no training saw.

    cargo build --release -p pulid-cli
    python tools/training/overfit.py --work WORK

The people are example portraits as the mini VAE shows them, encoded and decoded once by diffusers: of the portraits themselves it lets only 0.4 to
0.9 through by the same judge, so that no picture of this family can be more like them. Each is trained on and judged as such a picture, which the
VAE shows again nearly as it is (0.97 to 0.99). Prints each person's similarity without identity, before and after; fails below `--goal`.

The goal was not reached yet, in short runs on a busy machine: before training the mean is 0.69, after 160 steps of four at a rate of 4e-4 by L_diff it was
0.34, after 45 steps of eight at 1e-4 by L_diff 0.61, after 20 steps of four at 1e-4 with L_id 0.58, though L_id itself fell from 0.66 to 0.52. The defaults are the second of these
for longer, untried."""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
MINI = ROOT / "models" / "mini"
# Chosen by how alike the VAE's picture stays when it goes through once more. Left out: ada, in whose picture no face is found, ben, where the
# detector finds another part of it, cleo, 0.89, and lars, 0.975, as eight are enough.
PEOPLE = ("dan", "eva", "finn", "gia", "hugo", "jon", "nils", "omar")
CAPTION = "a photo of a person"


def pass_through(photos: list[pathlib.Path], out: pathlib.Path, side: int = 128) -> None:
    """The pictures as the VAE shows them."""
    import numpy as np
    import torch
    from diffusers import AutoencoderKL
    from PIL import Image

    vae = AutoencoderKL.from_pretrained(MINI / "sdxl" / "vae").float().eval()
    out.mkdir(parents=True)
    for photo in photos:
        small = Image.open(photo).convert("RGB").resize((side, side), Image.Resampling.BOX)
        x = torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            y = vae.decode(vae.encode(x).latent_dist.mean).sample[0].clamp(-1, 1)
        Image.fromarray(((y + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).save(out / f"{photo.stem}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="a new folder, or that of the same run to go on with")
    parser.add_argument("--pulid", type=pathlib.Path, default=ROOT / "target/release/pulid")
    parser.add_argument("--device", default="", help="as pulid's own flag")
    parser.add_argument("--stage", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--goal", type=float, default=0.9, help="mean similarity that is to be exceeded")
    args = parser.parse_args()
    device = ["--device", args.device] if args.device else []

    def pulid(*flags, **more):
        command = [args.pulid.resolve(), *flags, *device]
        return subprocess.run([*map(str, command)], check=True, **more)

    own = ["--models-dir", MINI]
    work = args.work.resolve()
    people, data, run = work / "people", work / "data", work / "run"
    if not people.exists():
        part = work / "people.part"
        shutil.rmtree(part, ignore_errors=True)
        pass_through([ROOT / "examples/faces" / f"{name}.jpg" for name in PEOPLE], part)
        part.rename(people)
    data.mkdir(exist_ok=True)
    for picture in people.glob("*.png"):
        shutil.copy(picture, data)
        (data / f"{picture.stem}.txt").write_text(CAPTION)
    pulid("train", "prepare", "--data", data, "--out", work / "cache", "--resolution", 128, *own)
    adapter = run / f"adapter-{args.steps}.safetensors"
    if not adapter.exists():
        if (run / "run.toml").exists():
            pulid("train", "--resume", run)
        else:
            sizes = ["--resolution", 128, "--batch", args.batch, "--steps", args.steps, "--save-every", 20, "--keep", 1, "--dtype", "f32"]
            # Guidance needs the prediction without identity and text as it was.
            rates = ["--lr", args.lr, "--warmup", 10, "--schedule", "cosine", "--drop-text", 0, "--drop-id", 0, "--drop-both", 0.1]
            flags = ["--data", work / "cache", "--out", run, "--stage", args.stage, "--num-zero", 8, *sizes, *rates]
            pulid("train", *flags, *own)
    (work / "prompts.txt").write_text(CAPTION + "\n")
    judge = ["--recogniser", ROOT / "tools/training/judge.onnx"]
    named = ["--adapter", f"before={MINI / 'pulid_v1.1.safetensors'}", "--adapter", f"after={adapter}"]
    out = work / "evaluation"
    flags = ["--faces", people, "--prompts", work / "prompts.txt", "--images", 1, *judge, *named, "--output", out, "--json"]
    pulid("evaluate", *flags, *own, stdout=subprocess.DEVNULL)
    report = json.loads((out / "evaluation.json").read_text())
    before, after = report["adapters"]
    for i, name in enumerate(PEOPLE):
        shown = [a["per_person"][i]["face_sim"] for a in (report["without_identity"], before, after)]
        print(name, *("no face" if value is None else f"{value:.3f}" for value in shown))
    means = [a["mean"]["face_sim_with_missing_as_zero"] for a in (report["without_identity"], before, after)]
    print("mean (without identity, before, after)", *(f"{value:.3f}" for value in means))
    if means[-1] <= args.goal:
        sys.exit(f"{means[-1]:.3f} does not exceed {args.goal}")


if __name__ == "__main__":
    main()
