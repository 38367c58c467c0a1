#!/usr/bin/env python3
"""Makes the trainers' checkpoints from the published files, so that training continues where the files stand.

    python tools/mini/recover.py [--only recogniser tower parser vae unet adapter]

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
    """The ONNX exporter folds a batch norm that follows a convolution into it, and keeps the names of the other norms."""
    import numpy as np
    import onnx
    from iresnet import IResNet

    graph = onnx.load(MODELS / "antelopev2" / "glintr100.onnx").graph
    tensors = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).astype(np.float32)) for t in graph.initializer}
    model = IResNet().eval()
    # Both lists are in the order of execution.
    layers = []
    hooks = [
        m.register_forward_hook(lambda m, *_, name=name: layers.append((name, m)))
        for name, m in model.named_modules()
        if isinstance(m, (torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.PReLU, torch.nn.Linear, torch.nn.BatchNorm1d))
    ]
    with torch.no_grad():
        model(torch.zeros(1, 3, 112, 112))
    for hook in hooks:
        hook.remove()
    nodes = iter([n for n in graph.node if n.op_type in ("Conv", "BatchNormalization", "PRelu", "Gemm")])
    node = next(nodes, None)
    previous = None
    for name, layer in layers:
        if isinstance(layer, (torch.nn.BatchNorm2d, torch.nn.BatchNorm1d)):
            if node is not None and node.op_type == "BatchNormalization" and node.input[1] == f"{name}.weight":
                scale, bias, mean, variance = (tensors[i] for i in node.input[1:])
                node = next(nodes, None)
            else:  # folded: what is left of it is the convolution's bias
                count = layer.num_features
                scale, mean, variance = torch.ones(count), torch.zeros(count), torch.ones(count) - layer.eps
                bias = previous
            layer.weight.data, layer.bias.data = scale.clone(), bias.clone()
            layer.running_mean, layer.running_var = mean.clone(), variance.clone()
            continue
        values = [tensors[i] for i in node.input if i in tensors]
        node = next(nodes, None)
        if isinstance(layer, torch.nn.PReLU):
            layer.weight.data = values[0].reshape(-1).clone()
            continue
        assert values[0].shape == layer.weight.shape, (layer, values[0].shape)
        layer.weight.data = values[0].clone()
        if isinstance(layer, torch.nn.Linear):
            layer.bias.data = values[1].clone()
        previous = values[1] if len(values) > 1 else None
    if node is not None:
        raise ValueError("the graph has layers that the network lacks")
    import onnxruntime

    x = torch.randn(2, 3, 112, 112)
    session = onnxruntime.InferenceSession(str(MODELS / "antelopev2" / "glintr100.onnx"), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        difference = (torch.from_numpy(session.run(None, {"input.1": x.numpy()})[0]) - model(x)).abs().max()
    print(f"recogniser: largest difference to the file {float(difference):.1e}")
    if difference > 1e-3:
        raise ValueError("the recovered recogniser differs from the file")
    keep(FACE / "recogniser.pt", {"model": model.state_dict()})


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
    every = {"recogniser": recogniser, "tower": tower, "parser": parser, "vae": vae, "unet": unet, "adapter": adapter}
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--only", nargs="+", choices=every, default=list(every))
    args = parse.parse_args()
    torch.set_num_threads(1)
    for name in args.only:
        every[name]()


if __name__ == "__main__":
    main()
