"""Tables 2 and 3 of the PuLID paper (arXiv 2404.16022) on the mini models: what each loss does, and what backpropagation through more steps takes.

    cargo build --release -p pulid-cli
    python tools/training/tables.py --work WORK [--people 120 --images 4 --steps 400 --clip-minutes 10]

Renders people, prepares them, trains four adapters from the same start, evaluates each on the example portraits, whom nobody was trained on,
times steps, and writes `docs/training-tables.md` (`--report`). It goes on where it was stopped: what is in WORK is not made again, a training run
goes on from its last checkpoint, an evaluation from its last picture. `--tiny` does all of it in minutes, for a look whether it works."""

import argparse
import json
import pathlib
import platform
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
TRAINING = ROOT / "tools" / "training"
# Table 2's rows, in its order, and the flags of each.
RUNS = {
    "diff": ("L_diff", ["--stage", "1"]),
    "naive": ("L_diff + naive L_id (one-step estimates)", ["--stage", "2", "--id-from", "one-step"]),
    "id": ("L_diff + L_id", ["--stage", "2"]),
    "align": ("L_diff + L_id + L_align", ["--stage", "3", "--align-steps", "1"]),
}
# Of the mini models' words; the first is for Face Sim as the paper's is, the others for whether prompts are followed.
PROMPTS = """face\ta photo of a person, in a garden, soft light
style\tan oil painting of a person, in the snow
style\ta watercolor painting of a person, at the beach
style\ta pencil sketch of a person, in a library
clothing\ta photo of a person, wearing a yellow raincoat, in a city street
expression\ta photo of a person, smiling, in an autumn forest
"""


class Work:
    def __init__(self, args):
        self.args, self.folder = args, args.work.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.said = self.folder / "settings.json"
        names = ("people", "images", "steps", "batch", "lr", "clip_minutes", "seeds", "faces", "start", "device")
        settings = {name: str(getattr(args, name)) for name in names}
        if self.said.exists() and json.loads(self.said.read_text()) != settings:
            sys.exit(f"{self.folder} was begun with other settings ({self.said}); name another folder")
        self.said.write_text(json.dumps(settings, indent=1))

    def spent(self, name: str, seconds: float | None = None) -> float:
        """Seconds that a part took, over all its starts."""
        path = self.folder / "seconds.json"
        all_ = json.loads(path.read_text()) if path.exists() else {}
        if seconds is not None:
            all_[name] = all_.get(name, 0.0) + seconds
            path.write_text(json.dumps(all_, indent=1))
        return all_.get(name, 0.0)

    def run(self, name: str, command: list, **more) -> None:
        print(f"== {name}: {' '.join(map(str, command))}", flush=True)
        begun = time.time()
        try:
            subprocess.run([*map(str, command)], check=True, **more)
        finally:
            self.spent(name, time.time() - begun)

    def pulid(self, *flags) -> list:
        device = ["--device", self.args.device] if self.args.device else []
        return [self.args.pulid.resolve(), *flags, "--models-dir", ROOT / "models" / "mini", *device]

    def data(self) -> pathlib.Path:
        """Renders of the people as a folder of each, with captions."""
        shards, images = self.folder / "renders", self.folder / "images"
        render = [sys.executable, ROOT / "tools/mini/dataset.py", "--out", shards, "--identities", f"0:{self.args.people}"]
        if not (shards / "captions.json").exists():
            render += ["--pictures-per-identity", self.args.images, "--size", 128, "--shard-size", 100]
            self.run("renders", render)
        if not images.exists():
            import numpy as np
            from PIL import Image

            part = self.folder / "images.part"
            shutil.rmtree(part, ignore_errors=True)
            for path in sorted(shards.glob("shard-*.npz")):
                shard, texts = np.load(path), json.loads(path.with_suffix("").with_suffix(".captions.json").read_text())
                for i, (image, who, text) in enumerate(zip(shard["images"], shard["identity"], texts)):
                    person = part / f"{who:04d}"
                    person.mkdir(parents=True, exist_ok=True)
                    name = f"{path.stem}-{i:04d}"
                    Image.fromarray(image).save(person / f"{name}.png")
                    (person / f"{name}.txt").write_text(text)
            part.rename(images)
        cache, done = self.folder / "cache", self.folder / "cache.done"
        if not done.exists():
            self.run("prepare", self.pulid("train", "prepare", "--data", images, "--out", cache, "--resolution", 128))
            done.touch()
        return cache

    def clip(self) -> pathlib.Path:
        clip = self.folder / "clip"
        if not clip.exists():
            command = [sys.executable, TRAINING / "clip.py", "--renders", self.folder / "renders", "--out", clip]
            with open(self.folder / "clip.log", "w") as log:
                self.run("clip", [*command, "--minutes", self.args.clip_minutes], stdout=log)
        return clip

    def flags(self, cache: pathlib.Path) -> list:
        start = ["--from", self.args.start] if self.args.start else []
        return ["--data", cache, "--resolution", 128, "--batch", self.args.batch, "--lr", self.args.lr, "--pair", "mix", "--num-zero", 8, *start]

    def train(self, name: str, cache: pathlib.Path) -> pathlib.Path:
        """One of the four runs; its adapter."""
        run = self.folder / f"run-{name}"
        adapter = run / f"adapter-{self.args.steps}.safetensors"
        if adapter.exists():
            return adapter
        if (run / "run.toml").exists():
            device = ["--device", self.args.device] if self.args.device else []
            command = [self.args.pulid.resolve(), "train", "--resume", run, *device]
        else:
            shutil.rmtree(run, ignore_errors=True)
            more = ["--steps", self.args.steps, "--warmup", self.args.steps // 20, "--save-every", 25, "--keep", 1]
            command = self.pulid("train", "--out", run, *self.flags(cache), *RUNS[name][1], *more)
        self.run(f"train {name}", command)
        return adapter

    def evaluate(self, adapters: dict, clip: pathlib.Path) -> dict:
        out, prompts = self.folder / "evaluation", self.folder / "prompts.txt"
        prompts.write_text(PROMPTS)
        faces = self.folder / "faces"
        if not faces.exists():
            part = self.folder / "faces.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            for photo in sorted((ROOT / "examples/faces").glob("*.jpg"))[: self.args.faces]:
                shutil.copy(photo, part / photo.name)
            part.rename(faces)
        named = [flag for name, file in adapters.items() for flag in ("--adapter", f"{name}={file}")]
        judges = ["--clip", clip, "--recogniser", TRAINING / "judge.onnx"]
        flags = ["--faces", faces, "--prompts", prompts, "--images", self.args.seeds, *judges, *named, "--output", out]
        self.run("evaluate", self.pulid("evaluate", *flags, "--json"), stdout=subprocess.DEVNULL)
        return json.loads((out / "evaluation.json").read_text())

    def steps(self, cache: pathlib.Path) -> list[dict]:
        """Table 3: L_id's gradient through the last 1 to 4 steps, whose values stay (`off`) or are computed again (`block`)."""
        rows = []
        for last in range(1, 5):
            row = {}
            for checkpointing in ("off", "block"):
                path = self.folder / f"backprop-{last}-{checkpointing}.json"
                if not path.exists():
                    flags = ["--stage", 2, "--backprop-steps", last, "--checkpointing", checkpointing, "--steps", 4, "--dry-run", "--json"]
                    begun = time.time()
                    command = self.pulid("train", *self.flags(cache), *flags)
                    path.write_bytes(subprocess.check_output([*map(str, command)]))
                    self.spent("table 3", time.time() - begun)
                row[checkpointing] = json.loads(path.read_text())
            rows.append(row)
        return rows


def shown_faces(run: pathlib.Path) -> str:
    """The share of the pictures of L_id that showed a face."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    faces = [line["faces"] for line in lines if "faces" in line]
    return f"{sum(faces) / len(faces):.2f}" if faces else ""


def report(work: Work, evaluation: dict, rows: list[dict]) -> str:
    args = work.args
    cell = lambda value, places=3: "" if value is None else f"{value:.{places}f}"
    hours = json.loads((work.folder / "seconds.json").read_text())
    total = sum(hours.values()) / 3600
    given = " ".join(sys.argv[1:])
    for flag, path in (("work", args.work), ("pulid", args.pulid), ("report", args.report)):
        given = given.replace(f"--{flag} {path}", "")
    command = " ".join(f"python tools/training/tables.py --work WORK {given}".split())
    text = f"""# Tables 2 and 3 of the paper, on the mini models

Written by `{command}`: {args.people} rendered people with {args.images} images each, {args.steps} steps of {args.batch} at a rate of {args.lr:g}
from {"`" + str(args.start) + "`" if args.start else "the published mini adapter"}, device {evaluation["device"]} on {platform.machine()},
{total:.1f} hours in all.

Face Sim is the cosine to the photo by a recogniser that no training saw (`tools/training/judge.py`), over the pictures in which a face was found; CLIP-T and CLIP-I are by
a small CLIP of the renderer's words and pictures (`tools/training/clip.py`: {(work.folder / "clip.log").read_text().strip()}). The figures stand beside each
other, not beside the paper's. Evaluated are {args.faces} example portraits, whom no training saw, by {len(PROMPTS.splitlines())} prompts with {args.seeds} seeds each.

| trained by | Face Sim | Face Sim, first prompt | faces found | CLIP-T | CLIP-I | faces in training |
|---|---:|---:|---:|---:|---:|---:|
"""
    titles = {"start": "the start, untrained further", **{name: title for name, (title, _) in RUNS.items()}}
    for row in [evaluation["without_identity"], *evaluation["adapters"]]:
        mean, first = row["mean"], row["per_prompt"][0]
        seen = shown_faces(work.folder / f"run-{row['name']}") if row["name"] in RUNS else ""
        found = mean["faces"] / mean["pictures"]
        text += (
            f"| {titles.get(row['name'], row['name'])} | {cell(mean['face_sim'])} | {cell(first['face_sim'])} | {found:.2f} "
            f"| {cell(mean['clip_t'], 2)} | {cell(mean['clip_i'])} | {seen} |\n"
        )
    text += """
The paper has for Face Sim, CLIP-T and CLIP-I on DivID-120: stage 1 0.561, 29.06, 0.736; naive L_id 0.652, 27.05, 0.683; L_id without
alignment 0.761, 24.91, 0.624; all 0.733, 31.31, 0.812.

## Backpropagation through more steps

Stage 2, branch of four steps, the mean of three steps each: where values of these steps stay until their backward passes (`--checkpointing off`), and where the
steps and their blocks are computed again one at a time (`block`). Memory is what is held on the device in all. The paper's grows by 7 to 8 GB a step.

| last steps | seconds a step | memory, MiB | seconds, computed again | memory, MiB | the paper's seconds | GB |
|---:|---:|---:|---:|---:|---:|---:|
"""
    for last, (row, theirs) in enumerate(zip(rows, ("2.6 | 41", "2.9 | 49", "3.1 | 56", "3.3 | 63")), 1):
        figures = " | ".join(f"{row[c]['seconds_a_step']:.2f} | {row[c]['memory'] / 2**20:.0f}" for c in ("off", "block"))
        text += f"| {last} | {figures} | {theirs} |\n"
    text += "\n## Time\n\n| part | minutes |\n|---|---:|\n"
    text += "".join(f"| {name} | {seconds / 60:.1f} |\n" for name, seconds in hours.items())
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--pulid", type=pathlib.Path, default=ROOT / "target/release/pulid")
    parser.add_argument("--device", default="", help="as pulid's own flag")
    parser.add_argument("--people", type=int, default=120)
    parser.add_argument("--images", type=int, default=4, help="of each person")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--start", type=pathlib.Path, help="a PuLID file [default: the mini adapter]")
    parser.add_argument("--clip-minutes", type=float, default=10)
    parser.add_argument("--seeds", type=int, default=2, help="images of each person and prompt")
    parser.add_argument("--faces", type=int, default=12, help="example portraits that are evaluated")
    parser.add_argument("--report", type=pathlib.Path, default=ROOT / "docs/training-tables.md")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if args.tiny:
        args.people, args.images, args.steps, args.clip_minutes, args.seeds, args.faces = 6, 2, 2, 0.2, 1, 2
        args.report = args.work / "training-tables.md"
    work = Work(args)
    cache, clip = work.data(), work.clip()
    adapters = {"start": args.start or ROOT / "models/mini/pulid_v1.1.safetensors"}
    adapters |= {name: work.train(name, cache) for name in RUNS}
    evaluation, rows = work.evaluate(adapters, clip), work.steps(cache)
    part = args.report.with_suffix(".part")
    part.write_text(report(work, evaluation, rows))
    part.replace(args.report)
    print(args.report)


if __name__ == "__main__":
    main()
