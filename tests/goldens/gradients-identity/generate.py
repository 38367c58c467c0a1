"""Gradients of the UNet with identity and of both identity encoders, as `pulid run --gradient` gives them. Witness: PyTorch's
autograd in float64."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import torch
from common import ROOT, deterministic, fresh, randn, randomise, relative_error, save_case, save_weights
from diffusers import UNet2DConditionModel
from pulid_reference import IDEncoder, IDFormer, IdSettings, id_attention_layers, install_id_attention, load_adapter_layers
from safetensors.torch import load_file

SEED = 9000
TEXT = 32
FORMER = dict(
    dim=8, depth=5, heads=1, num_queries=4, num_id_token=2, output_dim=12, ff_mult=2, vit_dim=6, id_dim=10, mapping_dim=12
)
ENCODER = dict(width=10, context_dim=12, num_token=5, vit_dim=8, hidden_dim=7)
# name: (identity tokens, settings)
UNETS = {
    "unet-v2": (10, dict(id_scale=0.8, num_zero=8, ortho="v2")),
    "unet-v1": (10, dict(id_scale=0.7, num_zero=16, ortho="v1")),
}


def gradients_of(loss: torch.Tensor, named: dict) -> dict:
    """The gradient in each value; all must be on the loss's way."""
    gradients = torch.autograd.grad(loss, list(named.values()))
    return {f"d.{key}": gradient for key, gradient in zip(named, gradients, strict=True)}


def run_unet(settings: IdSettings, inputs: dict, dtype: torch.dtype) -> dict:
    unet = UNet2DConditionModel.from_pretrained(ROOT / "unet" / "weights" / "lists").to(dtype).eval()
    install_id_attention(unet, settings)
    load_adapter_layers(unet, load_file(ROOT / "unet" / "adapters" / "lists" / "adapter.safetensors"))
    unet.to(dtype).requires_grad_(False)
    x = {key: value.to(dtype).requires_grad_() for key, value in inputs.items()}
    upstream = x.pop("upstream.sample").detach()
    named = dict(x)
    # The identity's keys and values, as the layers' projections give them.
    kept = {}
    for number, layer in enumerate(id_attention_layers(unet)):
        for part, module in layer.named_children():
            named[f"id_adapter_attn_layers.{number}.{part}.weight"] = module.weight.requires_grad_()
            key = f"{part[-1]}.{number}"
            module.register_forward_hook(lambda _, __, result, key=key: kept.__setitem__(key, result))
    sample = unet(
        x["sample"],
        x["timestep"],
        x["encoder_hidden_states"],
        added_cond_kwargs={"text_embeds": x["text_embeds"], "time_ids": x["time_ids"]},
        cross_attention_kwargs={"id_embedding": x["id_embedding"], "id_scale": settings.id_scale},
    ).sample
    outputs = {"sample": sample, **kept, **gradients_of((sample * upstream).sum(), {**named, **kept})}
    # Zero tokens have keys and values too, which no parameter reaches.
    tokens = inputs["id_embedding"].shape[1]
    return {
        key: (value[:, :tokens] if key.removeprefix("d.") in kept else value).detach() for key, value in outputs.items()
    }


def largest_error(values: dict, outputs: dict) -> str:
    error, key = max((relative_error(values[key], output), key) for key, output in outputs.items())
    return f"{error:.1e} ({key})"


def unet_case(index: int, name: str) -> None:
    tokens, chosen = UNETS[name]
    seed = SEED + 100 * index
    batch, height, width = 2, 16, 12
    size = [8.0 * height, 8.0 * width]
    inputs = {
        "sample": randn(seed, batch, 4, height, width),
        "timestep": torch.tensor([786.0, 249.0]),
        "encoder_hidden_states": randn(seed + 1, batch, 77, TEXT),
        "text_embeds": randn(seed + 2, batch, 20),
        "time_ids": torch.tensor([size + [0.0, 0.0] + size]).repeat(batch, 1),
        "id_embedding": randn(seed + 3, batch, tokens, TEXT),
        # So large that no gradient is small.
        "upstream.sample": randn(seed + 4, batch, 4, height, width, scale=8.0),
    }
    outputs = run_unet(IdSettings(**chosen), inputs, torch.float64)
    single = largest_error(run_unet(IdSettings(**chosen), inputs, torch.float32), outputs)
    # Brought into half precision's range.
    small = {**inputs, "upstream.sample": inputs["upstream.sample"] / 64}
    half = run_unet(IdSettings(**chosen), small, torch.float16)
    half = {key: value.float() * (64 if key.startswith("d.") else 1) for key, value in half.items()}
    save_case(
        fresh("gradients-identity", name),
        "unet",
        "../../unet/weights/lists",
        outputs,
        inputs=inputs,
        adapter="../../unet/adapters/lists/adapter.safetensors",
        settings=chosen,
        gradient=True,
        seed=seed,
        note=f"{tokens} tokens. PyTorch's own f32 run differs by {single}, its f16 run by {largest_error(half, outputs)}.",
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
    save_case(
        folder,
        name,
        "weights.safetensors",
        {"id_embedding": output.detach(), **gradients},
        inputs={**inputs, "upstream.id_embedding": upstream},
        gradient=True,
        seed=seed,
        note="All parameters.",
    )


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
