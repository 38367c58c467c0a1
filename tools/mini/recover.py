#!/usr/bin/env python3
"""Makes the trainers' checkpoints from the published files, so that training continues where the files stand.

    python tools/mini/recover.py [--only recogniser tower parser judge vae unet adapter]

The published VAE has its latents' mean and deviation folded in already, so the recovered statistics are mean 0 and one
deviation for all channels. Optimizer moments start at zero; the averaged weights start at the published ones.
"""

import argparse
import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "face"), str(HERE / "diffusion"), str(HERE.parent)]

import common  # noqa: E402  (sets the thread environment first)
import torch  # noqa: E402
from common import CACHE, MODELS, WORK  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

FACE = CACHE / "face"


def read(path):
    return {name: tensor.float() for name, tensor in load_file(path).items()}


def keep(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB", flush=True)


def team_state(named):
    """A checkpoint of `parallel.Team` at step 0 with these weights and no momentum."""
    named = list(named)
    flat = torch.cat([p.detach().reshape(-1) for _, p in named])
    return dict(
        step=0, names=[n for n, _ in named], params=flat, momentum=torch.zeros_like(flat), second=torch.zeros_like(flat), ema=flat.clone()
    )


def recogniser():
    from iresnet import published

    keep(FACE / "recogniser.pt", {"model": published(MODELS / "antelopev2" / "glintr100.onnx").state_dict()})


def tower():
    from train_tower import tower as make

    model = make()
    model.load_official(read(MODELS / "eva_clip.safetensors"))
    keep(FACE / "tower.pt", {"model": model.state_dict()})


def parser():
    from bisenet import BiSeNet

    model = BiSeNet()
    missing, unexpected = model.load_state_dict(read(MODELS / "parsing_bisenet.safetensors"), strict=False)
    if unexpected or any("num_batches_tracked" not in name for name in missing):
        raise ValueError(f"parser: missing {missing}, unexpected {unexpected}")
    keep(FACE / "parser.pt", {"model": model.state_dict()})


def judge():
    """The recogniser that no training saw, for `evaluate.py`."""
    from second_recogniser import published

    keep(FACE / "second_recogniser.pt", {"model": published(HERE.parent / "training" / "judge.onnx").state_dict()})


def published_vae():
    """The VAE and its scaling factor. Residual blocks that the published one lacks begin as the identity."""
    from networks import build_vae

    model = build_vae()
    missing, unexpected = model.load_state_dict(read(MODELS / "sdxl" / "vae" / "diffusion_pytorch_model.safetensors"), strict=False)
    if unexpected or any(".resnets." not in name or "conv_shortcut" in name for name in missing):
        raise ValueError(f"vae: missing {missing}, unexpected {unexpected}")
    own = model.state_dict()
    for name in missing:
        if ".conv2." in name:
            own[name].zero_()
    return model, json.loads((MODELS / "sdxl" / "vae" / "config.json").read_text())["scaling_factor"]


def vae():
    model, factor = published_vae()
    keep(WORK / "vae.pt", team_state(model.named_parameters()))
    keep(WORK / "latent_stats.pt", dict(mean=torch.zeros(4), std=torch.full((4,), 1 / factor)))


def published_base():
    """UNet and text encoders."""
    from sampling import load_tokenizers
    from train_unet import TextToLatent

    net = TextToLatent(len(load_tokenizers()[0]))
    net.unet.load_state_dict(read(MODELS / "sdxl" / "unet" / "diffusion_pytorch_model.safetensors"))
    for name in ("text_encoder", "text_encoder_2"):
        module = getattr(net, name)
        state = read(MODELS / "sdxl" / name / "model.safetensors")
        own = module.state_dict()
        state = {key if key in own else key.removeprefix("text_model."): value for key, value in state.items()}
        missing, unexpected = module.load_state_dict(state, strict=False)
        if unexpected or any("position_ids" not in key for key in missing):
            raise ValueError(f"{name}: missing {missing}, unexpected {unexpected}")
    return net


def unet():
    keep(WORK / "unet.pt", team_state(published_base().named_parameters()))


def published_adapter(net, settings):
    """The adapter, installed in the UNet of `net`."""
    from train_adapter import Adapter

    adapter = Adapter(net.unet, settings)
    adapter.load_state_dict(read(MODELS / "pulid_v1.1.safetensors"))
    return adapter


def adapter():
    from train_adapter import IdSettings

    keep(WORK / "adapter_1.pt", team_state(published_adapter(published_base(), IdSettings()).named_parameters()))


def main():
    every = {"recogniser": recogniser, "tower": tower, "parser": parser, "judge": judge, "vae": vae, "unet": unet, "adapter": adapter}
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--only", nargs="+", choices=every, default=list(every))
    args = parse.parse_args()
    torch.set_num_threads(1)
    for name in args.only:
        every[name]()


if __name__ == "__main__":
    main()
