"""Goldens of the VAE's two halves. Witness: diffusers' AutoencoderKL."""

import copy
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import torch
from common import deterministic, fresh, half_error, randn, randomise, save_case
from diffusers import AutoencoderKL

SEED = 2000
CONFIGS = {
    # SDXL's four levels: a factor of eight, attention in the middle.
    "f8": dict(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.13025,
    ),
    # Two levels, two layers per block, another number of groups and another scaling factor.
    "f2": dict(
        block_out_channels=(12, 24),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=2,
        norm_num_groups=6,
        scaling_factor=0.18215,
    ),
}
# name: (weights, batch, latent height, latent width)
DECODE = {
    "decode-even": ("f8", 1, 8, 6),
    "decode-odd": ("f8", 2, 5, 7),
    "decode-f2": ("f2", 1, 9, 13),
}
# name: (weights, batch, picture height, picture width)
ENCODE = {
    "encode-even": ("f8", 2, 64, 40),
    "encode-odd-latent": ("f8", 1, 40, 56),
    "encode-odd-picture": ("f8", 1, 45, 35),
    "encode-f2": ("f2", 1, 18, 25),
}


def decode(vae, inputs: dict, dtype=torch.float32) -> dict:
    return {"sample": vae.decode(inputs["latent"].to(dtype)).sample}


def encode(vae, inputs: dict, dtype=torch.float32) -> dict:
    # `moments` before diffusers clamps the log variance to -30 .. 20; the golden stays inside those bounds.
    distribution = vae.encode(inputs["sample"].to(dtype)).latent_dist
    return {"mean": distribution.mean, "logvar": distribution.logvar}


def main() -> None:
    deterministic()
    models = {}
    for index, (name, config) in enumerate(CONFIGS.items()):
        vae = AutoencoderKL(in_channels=3, out_channels=3, latent_channels=4, sample_size=32, **config)
        models[name] = randomise(vae, SEED + index)
        copy.deepcopy(models[name]).half().save_pretrained(fresh("vae", "weights", name))

    cases = [(name, "vae-decoder", decode, "latent", 4, *case) for name, case in DECODE.items()]
    cases += [(name, "vae-encoder", encode, "sample", 3, *case) for name, case in ENCODE.items()]
    for index, (name, network, run, key, channels, weights, batch, height, width) in enumerate(cases):
        seed = SEED + 100 + index
        vae = models[weights]
        inputs = {key: randn(seed, batch, channels, height, width)}
        if key == "sample":
            inputs[key] = inputs[key].tanh()
        outputs = run(vae, inputs)
        error = half_error(lambda: run(copy.deepcopy(vae).half(), inputs, torch.float16), outputs)
        note = f"{weights} config, {key} {height}x{width}. PyTorch's own f16 run differs by {error:.1e}."
        save_case(fresh("vae", name), network, f"../weights/{weights}", outputs, inputs=inputs, seed=seed, note=note)


if __name__ == "__main__":
    main()
