#!/usr/bin/env python3
"""Writes the checkpoints of a run as the published files: the diffusers SDXL folder and the PuLID v1.1-shaped adapter, in f16.

    python tools/mini/gpu/export.py --from OUT [--models models/mini] [--adapter adapter_aligned]

The latents' measured mean and deviation per channel are folded into quant_conv and post_quant_conv, so that the exported VAE
needs SDXL's plain `scaling_factor` and nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import networks  # noqa: E402  (the paths first)
import numpy as np  # noqa: E402
import torch  # noqa: E402
from common import load  # noqa: E402
from networks import FACTOR, MODELS, NUM_ZERO, Adapter, IdSettings, TextToLatent, build_vae, load_tokenizers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

VERSION = "0.25.0"
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler", "_diffusers_version": VERSION, "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "prediction_type": "epsilon", "interpolation_type": "linear",
    "sample_max_value": 1.0, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "timestep_spacing": "leading",
    "trained_betas": None, "use_karras_sigmas": False, "clip_sample": False,
}
INDEX = {
    "_class_name": "StableDiffusionXLPipeline", "_diffusers_version": VERSION, "force_zeros_for_empty_prompt": True,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
}
OF_THE_MACHINE = ("_name_or_path", "transformers_version", "_use_default_values", "id2label", "label2id", "chunk_size_feed_forward",
                  "is_encoder_decoder", "output_attentions", "output_hidden_states", "return_dict")


@torch.no_grad()
def fold(vae, mean, std):
    """Latents times `scaling_factor` then have mean 0 and deviation 1 in every channel."""
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


def preview_map(z, pictures):
    """Rows per latent channel and for 1, columns red, green, blue: least squares from normalised latents [N,4,H,W] to pictures.

    A picture counts as the means of its squares of FACTOR x FACTOR, in -1..1; previews of an unfinished generation are made with it.
    """
    z = z.permute(0, 2, 3, 1).reshape(-1, 4).double()
    x = torch.nn.functional.avg_pool2d(pictures, FACTOR).permute(0, 2, 3, 1).reshape(-1, 3).double()
    z = torch.cat([z, torch.ones(len(z), 1, dtype=z.dtype)], 1)
    found = torch.linalg.lstsq(z, x).solution
    left = (x - z @ found).square().sum() / (x - x.mean(0)).square().sum()
    print(f"previews: {1 - float(left):.3f} of the pictures' variance")
    return [[round(v, 4) for v in row] for row in found.tolist()]


def write_preview_map(path, rows):
    values = json.loads(path.read_text())
    text = ",\n".join(f"    {json.dumps(row)}" for row in rows)
    lines = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in values.items() if k != "latent_rgb"]
    path.write_text("{\n" + ",\n".join([*lines, f'  "latent_rgb": [\n{text}\n  ]']) + "\n}\n")


def compact(state):
    return {k: v.detach().to(torch.float16).contiguous() for k, v in state.items() if v.is_floating_point()}


def tidy(path, values):
    """JSON with sorted keys and no paths of the training machine."""
    path.write_text(json.dumps({k: v for k, v in values.items() if k not in OF_THE_MACHINE}, indent=2, sort_keys=True) + "\n")


def write_network(folder, file, state, config):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(compact(state), folder / file, metadata={"format": "pt"})
    tidy(folder / "config.json", config)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--from", dest="start", type=Path, required=True)
    a.add_argument("--models", type=Path, default=MODELS)
    a.add_argument("--adapter", default="adapter_aligned")
    a.add_argument("--renders", type=Path, help="a folder of shards, for the map of previews")
    a = a.parse_args()
    sdxl, weights = a.models / "sdxl", "diffusion_pytorch_model.safetensors"

    net = TextToLatent(len(load_tokenizers()[0]))
    vae = build_vae()
    for module, name in ((net.unet, "unet"), (net.text_encoder, "text_encoder"), (net.text_encoder_2, "text_encoder_2"), (vae, "vae")):
        if not load(module, a.start / f"{name}.safetensors"):
            sys.exit(f"{a.start / name}.safetensors is missing")
    write_network(sdxl / "unet", weights, net.unet.state_dict(), {**net.unet.config, "_class_name": "UNet2DConditionModel", "_diffusers_version": VERSION})
    for name, kind in (("text_encoder", "CLIPTextModel"), ("text_encoder_2", "CLIPTextModelWithProjection")):
        module = getattr(net, name)
        config = {**module.config.to_dict(), "architectures": [kind], "dtype": None, "torch_dtype": "float16"}
        state = {k if k.startswith(("text_model.", "text_projection.")) else f"text_model.{k}": v for k, v in module.state_dict().items()}
        write_network(sdxl / name, "model.safetensors", state, {k: v for k, v in config.items() if v is not None})
    stats = json.loads((a.start / "latents.json").read_text())
    mean, std = torch.tensor(stats["mean"]), torch.tensor(stats["std"])
    x = torch.rand(2, 3, 128, 128) * 2 - 1
    with torch.no_grad():
        wanted = vae.decode(vae.encode(x).latent_dist.mean).sample
    if a.renders:
        images = np.concatenate([np.load(p)["images"] for p in sorted(a.renders.glob("*.npz"))[:4]])
        pictures = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            z = torch.cat([vae.encode(p).latent_dist.mean for p in pictures.split(32)])
        rows = preview_map((z - mean.view(1, 4, 1, 1)) / std.view(1, 4, 1, 1), pictures)
        write_preview_map(a.models / "generation_defaults.json", rows)
    fold(vae, mean, std)
    write_network(sdxl / "vae", weights, vae.state_dict(), {**vae.config, "_class_name": "AutoencoderKL", "_diffusers_version": VERSION})
    (sdxl / "scheduler").mkdir(parents=True, exist_ok=True)
    tidy(sdxl / "scheduler" / "scheduler_config.json", SCHEDULER)
    (sdxl / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")
    adapter = Adapter(net.unet, IdSettings(num_zero=NUM_ZERO))
    if load(adapter, a.start / f"{a.adapter}.safetensors"):
        save_file(compact(adapter.state_dict()), a.models / "pulid_v1.1.safetensors")

    # The folding must not change a picture.
    again = build_vae()
    again.load_state_dict({k: v.float() for k, v in load_file(sdxl / "vae" / weights).items()})
    with torch.no_grad():
        found = again.decode(again.encode(x).latent_dist.mean).sample
    print(f"vae: folded f16 file against checkpoint {float((found - wanted).abs().max() / wanted.std()):.1e}, scaling factor {vae.config.scaling_factor:.4f}")
    files = [p for p in sorted(a.models.rglob("*")) if p.suffix in (".safetensors", ".onnx")]
    for path in files:
        print(f"{path.stat().st_size / 1e6:8.2f} MB  {path.relative_to(a.models)}")
    print(f"{sum(p.stat().st_size for p in files) / 1e6:8.2f} MB")


if __name__ == "__main__":
    main()
