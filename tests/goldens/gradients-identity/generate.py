"""Gradients of the UNet with identity and of both identity encoders. Witness: PyTorch's autograd in float64.

A case holds what a network was given, `upstream.NAME` for its output, and the gradients of the sum of upstream times output:
in inputs, in the identity's keys and values `k.N` and `v.N`, and in parameters by their names in the file.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import torch
from common import (
    ROOT,
    deterministic,
    fresh,
    randn,
    randomise,
    save_tensors,
    save_weights,
    versions,
    write_json,
)
from diffusers import UNet2DConditionModel
from pulid_reference import IDEncoder, IDFormer, IdSettings, id_attention_layers, install_id_attention, load_adapter_layers
from safetensors.torch import load_file

SEED = 9000
FORMER = dict(
    dim=8, depth=5, heads=1, num_queries=4, num_id_token=2, output_dim=12, ff_mult=2, vit_dim=6, id_dim=10, mapping_dim=12
)
ENCODER = dict(width=10, context_dim=12, num_token=5, vit_dim=8, hidden_dim=7)
# name: (identity tokens, settings)
UNETS = {
    "unet-v2": (10, dict(id_scale=0.8, num_zero=8, ortho="v2")),
    "unet-v1": (10, dict(id_scale=1.3, num_zero=16, ortho="v1")),
    "unet-off": (4, dict(id_scale=1.0, num_zero=0, ortho="off")),
}


def save(folder: pathlib.Path, network: str, inputs: dict, gradients: dict, seed: int, note: str, **files) -> None:
    for key, gradient in gradients.items():
        # Gradients may be small; a constant one would accept almost any answer.
        if not torch.isfinite(gradient).all() or gradient.std() < 1e-3 * max(g.std() for g in gradients.values()):
            raise ValueError(f"{folder.name}: the gradient in {key} has a standard deviation of {gradient.std():.2e}")
    save_tensors(folder / "inputs.safetensors", inputs)
    save_tensors(folder / "gradients.safetensors", gradients)
    about = {"network": network, **files, "seed": seed, "versions": versions(), "note": note}
    write_json(folder / "gradient.json", about)
    print(f"{folder.relative_to(ROOT)}: {len(gradients)} gradients")


def gradients_of(loss: torch.Tensor, named: dict) -> dict:
    """The gradient in each value; all must be on the loss's way."""
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def unet_case(index: int, name: str) -> None:
    tokens, chosen = UNETS[name]
    seed = SEED + 100 * index
    unet = UNet2DConditionModel.from_pretrained(ROOT / "unet" / "weights" / "lists").double().eval()
    settings = IdSettings(**chosen)
    install_id_attention(unet, settings)
    load_adapter_layers(unet, load_file(ROOT / "unet" / "adapters" / "lists" / "adapter.safetensors"))
    unet.double().requires_grad_(False)
    layers = id_attention_layers(unet)
    batch, height, width = 2, 9, 8
    size = [8.0 * height, 8.0 * width]
    inputs = {
        "sample": randn(seed, batch, 4, height, width),
        "timestep": torch.tensor([786.0, 249.0]),
        "encoder_hidden_states": randn(seed + 1, batch, 77, unet.config.cross_attention_dim),
        "text_embeds": randn(seed + 2, batch, 20),
        "time_ids": torch.tensor([size + [0.0, 0.0] + size]).repeat(batch, 1),
        "id_embedding": randn(seed + 3, batch, tokens, unet.config.cross_attention_dim),
        "upstream.sample": randn(seed + 4, batch, 4, height, width),
    }
    x = {key: value.double() for key, value in inputs.items()}
    named = {key: x[key].requires_grad_() for key in ("sample", "encoder_hidden_states", "id_embedding")}
    # The identity's keys and values, as the layers' projections give them.
    kept = {}
    for number, layer in enumerate(layers):
        for part, module in layer.named_children():
            named[f"id_adapter_attn_layers.{number}.{part}.weight"] = module.weight.requires_grad_()
            key = f"{part[-1]}.{number}"
            module.register_forward_hook(lambda _, __, result, key=key: kept.__setitem__(key, result))
    sample = unet(
        x["sample"],
        x["timestep"],
        x["encoder_hidden_states"],
        added_cond_kwargs={"text_embeds": x["text_embeds"], "time_ids": x["time_ids"]},
        cross_attention_kwargs={"id_embedding": x["id_embedding"], "id_scale": chosen["id_scale"]},
    ).sample
    gradients = gradients_of((sample * x["upstream.sample"]).sum(), {**named, **kept})
    # Zero tokens have keys and values too, which no parameter reaches.
    gradients = {key: value[:, :tokens] if key in kept else value for key, value in gradients.items()}
    save(
        fresh("gradients-identity", name),
        "unet",
        inputs,
        gradients,
        seed,
        f"Ortho {chosen['ortho']}, {tokens} tokens and {chosen['num_zero']} zeros.",
        weights="../../unet/weights/lists",
        adapter="../../unet/adapters/lists/adapter.safetensors",
        set=chosen,
    )


def encoder_case(name: str, model: torch.nn.Module, inputs: dict, seed: int) -> None:
    folder = fresh("gradients-identity", name)
    save_weights(folder / "weights.safetensors", model.state_dict())
    model = model.double()
    x = {key: value.double().requires_grad_() for key, value in inputs.items()}
    output = model(x["id_cond"], [x[f"hidden_{scale}"] for scale in range(5)])
    upstream = randn(seed + 9, *output.shape)
    named = {**x, **{key: value.requires_grad_() for key, value in model.named_parameters()}}
    gradients = gradients_of((output * upstream.double()).sum(), named)
    inputs = {**inputs, "upstream.id_embedding": upstream}
    save(folder, name, inputs, gradients, seed, "All parameters.", weights="weights.safetensors", set={})


def main() -> None:
    deterministic()
    for index, name in enumerate(UNETS):
        with torch.enable_grad():
            unet_case(index, name)

    seed = SEED + 1000
    former = randomise(IDFormer(**FORMER), seed)
    former.latents.copy_(randn(seed + 1, *former.latents.shape).half().float())
    former.proj_out.copy_((randn(seed + 2, *former.proj_out.shape) * former.dim**-0.5).half().float())
    inputs = {"id_cond": randn(seed + 3, 2, 2, FORMER["id_dim"])}
    for scale in range(5):
        inputs[f"hidden_{scale}"] = randn(seed + 4 + scale, 2, 9, FORMER["vit_dim"])
    with torch.enable_grad():
        encoder_case("id-former", former, inputs, seed)

    seed = SEED + 2000
    encoder = randomise(IDEncoder(**ENCODER), seed)
    inputs = {"id_cond": randn(seed + 3, 2, ENCODER["width"])}
    for scale in range(5):
        inputs[f"hidden_{scale}"] = randn(seed + 4 + scale, 2, 6, ENCODER["vit_dim"])
    with torch.enable_grad():
        encoder_case("id-encoder", encoder, inputs, seed)


if __name__ == "__main__":
    main()
