"""Goldens of the SDXL UNet, with and without PuLID's identity attention. Witness: diffusers."""

import copy
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import torch
from common import deterministic, fresh, half_error, randn, randomise, save_case, save_weights
from diffusers import UNet2DConditionModel
from pulid_reference import IdSettings, adapter_layers_state_dict, id_attention_layers, install_id_attention

SEED = 1000
TEXT, POOLED, TIME_IDS = 32, 20, 8

SHARED = dict(
    in_channels=4,
    out_channels=4,
    sample_size=16,
    layers_per_block=2,
    cross_attention_dim=TEXT,
    addition_embed_type="text_time",
    addition_time_embed_dim=TIME_IDS,
    projection_class_embeddings_input_dim=6 * TIME_IDS + POOLED,
    use_linear_projection=True,
    norm_num_groups=4,
)
CONFIGS = {
    # SDXL's three levels, the number of heads and the transformer depth as lists.
    "lists": dict(
        block_out_channels=(8, 16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(1, 1, 2),
    ),
    # Two levels, scalars, attention in the first level too, one layer per block.
    "scalars": dict(
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        transformer_layers_per_block=1,
        attention_head_dim=2,
    ),
    # Written in several files with an index, in float32 beyond float16's precision; one head of 16 channels.
    "sharded": dict(
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1),
        attention_head_dim=(1, 1),
    ),
}
# name: (weights, batch, height, width, timesteps)
PLAIN = {
    "even": ("lists", 1, 16, 12, [999]),
    "odd-9x7": ("lists", 2, 9, 7, [999, 42]),
    "odd-13x10": ("lists", 1, 13, 10, [59]),
    "scalar-heads": ("scalars", 2, 8, 11, [0, 749]),
    "sharded": ("sharded", 1, 8, 8, [427]),
}
# name: (weights, batch, identity tokens, settings)
ADAPTED = {
    "id-off": ("lists", 2, 32, dict(id_scale=0.8, num_zero=0, ortho="off")),
    "id-off-zeros": ("lists", 1, 32, dict(id_scale=1.0, num_zero=8, ortho="off")),
    "id-v1": ("lists", 2, 10, dict(id_scale=1.0, num_zero=16, ortho="v1")),
    "id-v1-strong": ("scalars", 1, 32, dict(id_scale=2.0, num_zero=0, ortho="v1")),
    "id-v2": ("lists", 2, 32, dict(id_scale=0.8, num_zero=20, ortho="v2")),
    "id-v2-v1-tokens": ("lists", 1, 10, dict(id_scale=0.8, num_zero=8, ortho="v2")),
    "id-v2-few-tokens": ("scalars", 2, 3, dict(id_scale=1.0, num_zero=0, ortho="v2")),
    "id-zero-scale": ("lists", 1, 32, dict(id_scale=0.0, num_zero=20, ortho="v2")),
}


def inputs_for(seed: int, batch: int, height: int, width: int, timesteps: list[int]) -> dict:
    size = [8.0 * height, 8.0 * width]
    time_ids = torch.tensor([size + [0.0, 0.0] + size]).repeat(batch, 1)
    time_ids[-1, 2] = 64.0 * (batch - 1)
    return {
        "sample": randn(seed, batch, 4, height, width),
        "timestep": torch.tensor(timesteps, dtype=torch.float32),
        "encoder_hidden_states": randn(seed + 1, batch, 77, TEXT),
        "text_embeds": randn(seed + 2, batch, POOLED),
        "time_ids": time_ids,
    }


def run(unet, inputs: dict, dtype=torch.float32, id_scale: float | None = None) -> dict:
    x = {key: value.to(dtype) for key, value in inputs.items()}
    extra = {}
    if "id_embedding" in x:
        extra["cross_attention_kwargs"] = {"id_embedding": x["id_embedding"], "id_scale": id_scale}
    sample = unet(
        x["sample"],
        inputs["timestep"],
        x["encoder_hidden_states"],
        added_cond_kwargs={"text_embeds": x["text_embeds"], "time_ids": x["time_ids"]},
        **extra,
    ).sample
    return {"sample": sample}


def half_note(unet, inputs: dict, outputs: dict, **extra) -> str:
    error = half_error(lambda: run(copy.deepcopy(unet).half(), inputs, torch.float16, **extra), outputs)
    return f"PyTorch's own f16 run differs by {error:.1e}."


def main() -> None:
    deterministic()
    models = {}
    for index, (name, config) in enumerate(CONFIGS.items()):
        sharded = name == "sharded"
        unet = randomise(UNet2DConditionModel(**{**SHARED, **config}), SEED + index, half=not sharded)
        stored = unet if sharded else copy.deepcopy(unet).half()
        stored.save_pretrained(fresh("unet", "weights", name), max_shard_size="100KB" if sharded else "1GB")
        models[name] = unet

    for index, (name, (weights, batch, height, width, timesteps)) in enumerate(PLAIN.items()):
        seed = SEED + 100 + 10 * index
        inputs = inputs_for(seed, batch, height, width, timesteps)
        outputs = run(models[weights], inputs)
        note = f"{weights} config, latent {height}x{width}. " + half_note(models[weights], inputs, outputs)
        save_case(fresh("unet", name), "unet", f"../weights/{weights}", outputs, inputs=inputs, seed=seed, note=note)

    settings = {name: IdSettings() for name in ("lists", "scalars")}
    for index, name in enumerate(settings):
        install_id_attention(models[name], settings[name])
        # A gain above one makes the identity attention peaked, so that a wrong softmax shows.
        randomise(id_attention_layers(models[name]), SEED + 60 + index, gain=1.2)
        folder = fresh("unet", "adapters", name)
        save_weights(folder / "adapter.safetensors", adapter_layers_state_dict(models[name]))

    for index, (name, (weights, batch, tokens, chosen)) in enumerate(ADAPTED.items()):
        seed = SEED + 300 + 10 * index
        for key, value in chosen.items():
            setattr(settings[weights], key, value)
        inputs = inputs_for(seed, batch, 9, 8, [786, 249][:batch])
        without = run(models[weights], inputs)
        inputs["id_embedding"] = randn(seed + 5, batch, tokens, TEXT)
        outputs = run(models[weights], inputs, id_scale=chosen["id_scale"])
        moved = (outputs["sample"] - without["sample"]).std() / without["sample"].std()
        if chosen["id_scale"] == 0.0:
            assert moved == 0.0
        else:
            assert moved > 0.05, f"{name}: identity moves the output by {moved:.3f} only"
        note = f"Identity moves the output by {moved:.2f} standard deviations. "
        note += half_note(models[weights], inputs, outputs, id_scale=chosen["id_scale"])
        save_case(
            fresh("unet", name),
            "unet",
            f"../weights/{weights}",
            outputs,
            inputs=inputs,
            adapter=f"../adapters/{weights}/adapter.safetensors",
            settings=chosen,
            seed=seed,
            note=note,
        )


if __name__ == "__main__":
    main()
