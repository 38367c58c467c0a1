#!/usr/bin/env python3
"""Trains the mini models' diffusion family on one GPU (or, slowly, on a CPU), from nothing to the published files' checkpoints.

    python tools/mini/gpu --out OUT --minutes 8              everything, by shares of the time
    python tools/mini/gpu --out OUT --tiny                   a rehearsal: every part for seconds, tiny batches
    python tools/mini/gpu --out OUT --from OLD               goes on from the checkpoints of an earlier run

Renderers run beside the training on all other cores; what they finish is taken in between steps. Parts, each with its share
of the time and a checkpoint in OUT: the VAE, the recogniser of latents, UNet with text encoders and adapter, the adapter alone
(L_diff, L_id, L_align), the decoder on what the UNet leaves of pictures, the judge, the evaluation. `export.py` makes the published files of OUT.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

TEXT = ("text_encoder", "text_encoder_2")
SHARES = {"vae": 0.17, "watcher": 0.05, "joint": 0.55, "adapter": 0.07, "decoder": 0.09, "judge": 0.05, "attributes": 0.02}


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--out", type=Path, required=True, help="folder for checkpoints, pictures and figures")
    a.add_argument("--from", dest="start", type=Path, help="folder of an earlier run's checkpoints")
    a.add_argument("--data", type=Path, default=Path("/tmp/pulid-mini-data"), help="folder for renders; those found there are used")
    a.add_argument("--minutes", type=float, default=7.0, help="of training in all, without start and evaluation")
    a.add_argument("--shares", default="", help="part=share,... to change a part's share of the time")
    a.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="renderers")
    a.add_argument("--pictures", type=int, default=100_000, help="at most so many on the device")
    a.add_argument("--first", type=int, default=1500, help="pictures to wait for before the training begins")
    a.add_argument("--batch", type=int, default=512)
    a.add_argument("--branch", type=int, default=96, help="pictures of the few-step branch")
    a.add_argument("--lr", type=float, default=2e-3)
    a.add_argument("--compile", action="store_true")
    a.add_argument("--skip", nargs="*", default=[], choices=[*SHARES, "evaluation"])
    a.add_argument("--tiny", action="store_true")
    a = a.parse_args()
    if a.tiny:
        a.minutes, a.workers, a.pictures, a.first, a.batch, a.branch = min(a.minutes, 1.5), 1, 800, 90, 8, 4
    from renders import Reader, Renderers, Store

    a.out.mkdir(parents=True, exist_ok=True)
    renderers = Renderers(a.data, a.workers, 60 * a.minutes + 60)
    try:
        run(a, renderers, Reader, Store)
    finally:
        renderers.stop()


def run(a, renderers, Reader, Store):
    import networks  # noqa: F401  (the paths first)
    import numpy as np
    import torch
    from common import DEVICE, load, said, save
    from decoder import train as train_decoder
    from evaluation import TEXTS, evaluate
    from faces import Faces
    from joint import Joint, person_sheet
    from networks import LATENT, NUM_ZERO, Adapter, IdSettings, TextToLatent, load_tokenizers
    from renders import tokens
    from vae import Coder, fresh
    from vae import train as train_vae
    from watchers import latent_recogniser, nearest, train_attributes, train_judge, train_latent_recogniser

    torch.manual_seed(0)
    np.random.seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    shares = SHARES | {k: float(v) for k, v in (s.split("=") for s in a.shares.split(",") if s)}
    seconds = {k: 60 * a.minutes * v / sum(shares.values()) for k, v in shares.items()}
    said("device", torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU", "seconds", {k: round(v) for k, v in seconds.items()})
    tokenizers = load_tokenizers()
    faces = Faces(DEVICE)
    data, held = Store(DEVICE, a.pictures, LATENT), Store(DEVICE, 520, LATENT)
    reader, held_reader = Reader(a.data / "train", tokenizers), Reader(a.data / "heldout", tokenizers)
    coder = None

    def refresh():
        for shard in held_reader.waiting():
            held.add(shard, faces)
        for shard in reader.waiting():
            data.add(shard, faces)
        if coder is not None:
            coder.encode(data)
            coder.encode(held)

    while data.count < a.first:
        if not renderers.running:
            sys.exit(f"the renderers ended after {data.count} pictures of {a.first}")
        refresh()
        time.sleep(0.2)
    said(f"{data.count} pictures, {held.count} held out")
    if DEVICE.type == "cuda":
        begin = time.time()
        refresh()
        torch.cuda.synchronize()
        said(f"taking in shards: {time.time() - begin:.2f} s for at most 8")

    start = a.start or a.out
    vae = fresh().to(memory_format=torch.channels_last)
    load(vae, start / "vae.safetensors")
    if "vae" not in a.skip:
        vae = train_vae(vae, data, refresh, faces, seconds["vae"], 6 if a.tiny else 128, a.out)
        save(vae, a.out / "vae.safetensors")
    vae.eval().requires_grad_(False)
    coder = Coder(vae)
    stats = start / "latents.json"
    if "vae" in a.skip and stats.exists():
        known = json.loads(stats.read_text())
        coder.mean, coder.std = (torch.tensor(known[k], device=DEVICE).view(1, 4, 1, 1) for k in ("mean", "std"))
    else:
        coder.measure(data)
    (a.out / "latents.json").write_text(json.dumps({"mean": coder.mean.flatten().tolist(), "std": coder.std.flatten().tolist()}))
    refresh()

    watcher = latent_recogniser()
    load(watcher, start / "watcher.safetensors")
    if "watcher" not in a.skip:
        watcher = train_latent_recogniser(watcher, data, seconds["watcher"], 8 if a.tiny else 96)
        save(watcher, a.out / "watcher.safetensors")
        with torch.no_grad():
            features = torch.cat([watcher(z.float())[0] for z in held.z[: held.count].split(256)])
        said(f"recogniser of latents: nearest picture of another style is the same person's in {nearest(features, held):.3f} of {held.count}")
    watcher.eval().requires_grad_(False)

    net = TextToLatent(len(tokenizers[0])).to(DEVICE)
    settings = IdSettings(num_zero=NUM_ZERO, ortho="off")
    for part in ("unet", *TEXT):
        load(getattr(net, part), start / f"{part}.safetensors")
    net.unet.to(memory_format=torch.channels_last)
    adapter = Adapter(net.unet, settings).to(DEVICE)
    load(adapter, start / "adapter.safetensors")
    ids = lambda texts: torch.from_numpy(np.stack([tokens(t, texts) for t in tokenizers], 1)).to(DEVICE)
    joint = Joint(net, adapter, settings, data, coder, watcher, faces, ids([""])[0])
    if a.compile:
        joint.noise_of = torch.compile(net, dynamic=False)

    def look(name):
        person_sheet(joint, held, ids(TEXTS), a.out / f"{name}.jpg", 2 if a.tiny else 6)
        if name.startswith("joint"):
            keep()  # should the run be ended early

    def keep(name="adapter"):
        save(net.unet, a.out / "unet.safetensors", leave=".processor.")  # the identity layers are the adapter's
        for part in TEXT:
            save(getattr(net, part), a.out / f"{part}.safetensors")
        save(adapter, a.out / f"{name}.safetensors")

    if "joint" not in a.skip:
        joint.train(seconds["joint"], a.batch, a.branch, refresh, a.lr, 0.45, 0.75, look)
        keep()
    if "adapter" not in a.skip:
        look("before_adapter")
        settings.ortho = "v2"
        if not a.tiny:
            renderers.stop()
        joint.train_adapter(seconds["adapter"], a.batch // 2, a.branch, ids(["a photo of a person"])[0], a.lr / 10)
        save(adapter, a.out / "adapter_aligned.safetensors")
    settings.ortho = "v2"
    if "decoder" not in a.skip:
        vae = train_decoder(joint, seconds["decoder"], 6 if a.tiny else 96, a.out)
        save(vae, a.out / "vae.safetensors")
        coder.take(vae)
    net.float(), adapter.float()
    look("final")
    if "evaluation" in a.skip:
        return
    net.eval()
    judge = train_judge(data, seconds["judge"], 8 if a.tiny else 128)
    save(judge, a.out / "judge.safetensors")
    attributes = train_attributes(data, seconds["attributes"], 16 if a.tiny else 256)
    save(attributes, a.out / "attributes.safetensors")
    report = {"pictures": data.count, "aligned": evaluate(joint, held, tokenizers, judge, attributes, 4 if a.tiny else 64)}
    if (a.out / "adapter.safetensors").exists() and "adapter" not in a.skip:
        load(adapter, a.out / "adapter.safetensors")
        report["joint"] = evaluate(joint, held, tokenizers, judge, attributes, 4 if a.tiny else 64)
    (a.out / "figures.json").write_text(json.dumps(report, indent=2) + "\n")
    said("done")


if __name__ == "__main__":
    main()
