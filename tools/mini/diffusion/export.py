"""Writes the trained networks as the diffusers SDXL folder and the PuLID v1.1-shaped adapter, in f16 safetensors.

    python export.py [--models models/mini] [--adapter adapter_3.pt]

The latents' measured mean and deviation per channel are folded into quant_conv and post_quant_conv, so that the
exported VAE needs SDXL's plain `scaling_factor` and nothing else.
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path

import common  # noqa: F401
import numpy as np
import torch
from common import CACHE, MODELS, WORK
from networks import SCHEDULER_CONFIG, build_vae
from parallel import load_averaged
from safetensors.torch import load_file, save_file
from sampling import load_vae
from train_adapter import Adapter, IdSettings, load_base

MODEL_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.25.0",
    "force_zeros_for_empty_prompt": True,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


@torch.no_grad()
def folded_vae(checkpoint=None):
    """The VAE whose latents times `scaling_factor` have mean 0 and deviation 1 in every channel."""
    vae = load_vae(checkpoint)
    stats = torch.load(WORK / "latent_stats.pt", weights_only=True)
    mean, std = stats["mean"], stats["std"]
    size = float(std.square().mean().sqrt())  # latents keep their overall size; only the channels are evened out
    gain = size / std
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:4] *= gain.view(4, 1, 1, 1)
    quant.bias[:4] = (quant.bias[:4] - mean) * gain
    quant.bias[4:] += 2 * gain.log()
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
    post.weight /= gain.view(1, 4, 1, 1)
    vae.register_to_config(scaling_factor=1 / size)
    return vae


def preview_map(shards: int = 4) -> list[list[float]]:
    """Rows per latent channel and for 1, columns red, green, blue: the least squares from normalised latents to pictures.

    A picture counts as the means of its 8 x 8 squares, in [-1, 1]; previews of an unfinished generation are made with it.
    """
    latents, pictures = [], []
    stats = torch.load(WORK / "latent_stats.pt", weights_only=True)
    for path in sorted((WORK / "latents" / "train").glob("*.npz"))[:shards]:
        with np.load(path) as encoded, np.load(CACHE / "data" / "train" / path.name) as rendered:
            z = torch.from_numpy(encoded["latents"].astype(np.float32))
            x = torch.from_numpy(rendered["images"]).permute(0, 3, 1, 2).float() / 127.5 - 1
        latents.append(((z - stats["mean"].view(1, 4, 1, 1)) / stats["std"].view(1, 4, 1, 1)).permute(0, 2, 3, 1).reshape(-1, 4))
        pictures.append(torch.nn.functional.avg_pool2d(x, 8).permute(0, 2, 3, 1).reshape(-1, 3))
    z, x = torch.cat(latents).double(), torch.cat(pictures).double()
    z = torch.cat([z, torch.ones(len(z), 1, dtype=z.dtype)], 1)
    found = torch.linalg.lstsq(z, x).solution
    left = (x - z @ found).square().sum() / (x - x.mean(0)).square().sum()
    print(f"previews: {1 - float(left):.3f} of the pictures' variance")
    return [[round(v, 4) for v in row] for row in found.tolist()]


def write_preview_map(path: Path) -> None:
    """Puts the map into the generation defaults, a row of it per line."""
    values = json.loads(path.read_text())
    rows = ",\n".join(f"    {json.dumps(row)}" for row in preview_map())
    lines = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in values.items() if k != "latent_rgb"]
    path.write_text("{\n" + ",\n".join([*lines, f'  "latent_rgb": [\n{rows}\n  ]']) + "\n}\n")


def compact(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v.detach().to(torch.float16).contiguous() for k, v in state.items() if v.is_floating_point()}


def tidy(path: Path, values: dict) -> None:
    """JSON with sorted keys and no paths of the training machine."""
    values = {k: v for k, v in values.items() if k not in ("_name_or_path", "transformers_version", "_use_default_values", "id2label", "label2id", "chunk_size_feed_forward", "is_encoder_decoder", "output_attentions", "output_hidden_states", "return_dict")}
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def write_network(folder: Path, file: str, state, config: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(compact(state), folder / file, metadata={"format": "pt"})
    tidy(folder / "config.json", config)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--models", type=Path, default=MODELS)
    a.add_argument("--adapter", type=Path, default=WORK / "adapter_3.pt")
    a = a.parse_args()
    sdxl = a.models / "sdxl"

    net = load_base()
    weights = "diffusion_pytorch_model.safetensors"
    write_network(sdxl / "unet", weights, net.unet.state_dict(), {**net.unet.config, "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.25.0"})
    for name, kind in (("text_encoder", "CLIPTextModel"), ("text_encoder_2", "CLIPTextModelWithProjection")):
        module = getattr(net, name)
        config = {**module.config.to_dict(), "architectures": [kind], "dtype": None, "torch_dtype": "float16"}
        state = {k if k.startswith(("text_model.", "text_projection.")) else f"text_model.{k}": v for k, v in module.state_dict().items()}
        write_network(sdxl / name, "model.safetensors", state, {k: v for k, v in config.items() if v is not None})
    vae = folded_vae()
    write_network(sdxl / "vae", weights, vae.state_dict(), {**vae.config, "_class_name": "AutoencoderKL", "_diffusers_version": "0.25.0"})
    write_preview_map(a.models / "generation_defaults.json")
    (sdxl / "scheduler").mkdir(parents=True, exist_ok=True)
    tidy(sdxl / "scheduler" / "scheduler_config.json", SCHEDULER_CONFIG)
    (sdxl / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n")

    if a.adapter.exists():
        adapter = Adapter(net.unet, IdSettings())
        load_averaged(adapter.named_parameters(), torch.load(a.adapter, weights_only=True))
        save_file(compact(adapter.state_dict()), a.models / "pulid_v1.1.safetensors")

    # The folding must not change a picture.
    x = torch.rand(2, 3, 128, 128) * 2 - 1
    with torch.no_grad():
        wanted = load_vae().decode(load_vae().encode(x).latent_dist.mean).sample
        again = build_vae()
        again.load_state_dict({k: v.float() for k, v in load_file(sdxl / "vae" / weights).items()})
        found = again.decode(again.encode(x).latent_dist.mean).sample
    print("vae: folded f16 file against checkpoint", float((found - wanted).abs().max() / wanted.std()), "scaling factor", vae.config.scaling_factor)
    for path in sorted(a.models.rglob("*")):
        if path.suffix in (".safetensors", ".onnx"):
            print(f"{path.stat().st_size / 1e6:8.2f} MB  {path.relative_to(a.models)}")


if __name__ == "__main__":
    main()
