"""Goldens of training's losses (`crates/models/src/training`) with their gradients: L_diff, L_align and L_id of PuLID. Witness:
PyTorch's autograd in float64, over diffusers' UNet and VAE and the recogniser's ONNX nodes.

A case is `case.json`, which says what is built, `inputs.safetensors` by the graph's names, and `outputs.safetensors`: each loss [B] and
the gradients `d.NAME` of the sum of upstream times loss. Images are NCHW here, as PyTorch has them."""

import importlib.util
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import onnx
import torch
import torch.nn.functional as F
from common import ROOT, deterministic, fresh, randn, relative_error, save_tensors, versions, write_json
from diffusers import AutoencoderKL, UNet2DConditionModel
from pulid_reference import IdSettings, id_attention_layers, install_id_attention, load_adapter_layers
from safetensors.torch import load_file

SEED = 12000
TEXT = 32
TOKENS = 6
BATCH, HEIGHT, WIDTH = 2, 12, 8
SETTINGS = dict(id_scale=0.8, num_zero=3, ortho="v2")
# Under the roots of the norms, as in the Rust: 0 is where they have no gradient.
EPSILON = 1e-12
MINI = ROOT.parent.parent / "models" / "mini"

spec = importlib.util.spec_from_file_location("gradients", ROOT / "gradients" / "generate.py")
gradients = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gradients)


def save(name: str, inputs: dict, outputs: dict, note: str, **case) -> None:
    folder = fresh("losses", name)
    for key, value in outputs.items():
        if not torch.isfinite(value).all() or (value.numel() > 2 and value.std() < 1e-3):
            raise ValueError(f"{name}: {key} is flat or not finite")
    save_tensors(folder / "inputs.safetensors", inputs)
    save_tensors(folder / "outputs.safetensors", outputs)
    write_json(folder / "case.json", {**case, "versions": versions(), "note": note})
    print(name, {key: [round(float(v), 4) for v in value] for key, value in outputs.items() if value.ndim == 1}, len(outputs))


class Branch:
    """The UNet with identity: keys and values of the identity are leaves, queries and text keys are kept."""

    def __init__(self, dtype: torch.dtype, given: dict):
        weights = ROOT / "unet" / "weights" / "lists"
        self.dtype = dtype
        self.unet = UNet2DConditionModel.from_pretrained(weights).eval()
        self.plain = UNet2DConditionModel.from_pretrained(weights).to(dtype).eval()
        install_id_attention(self.unet, IdSettings(**SETTINGS))
        load_adapter_layers(self.unet, load_file(ROOT / "unet" / "adapters" / "lists" / "adapter.safetensors"))
        self.unet.to(dtype).requires_grad_(False)
        self.plain.requires_grad_(False)
        self.given, self.kept, self.heads = {}, {}, {}
        for key, value in given.items():
            self.given[key] = value.detach().to(dtype).requires_grad_()
        for number, layer in enumerate(id_attention_layers(self.unet)):
            for part, module in layer.named_children():
                module.register_forward_hook(lambda _, __, result, key=f"{part[-1]}.{number}": self.exchange(key, result))
        for unet in (self.unet, self.plain):
            for number, name in enumerate(unet.attn_processors):
                if "attn2" not in name:
                    continue
                attention = unet.get_submodule(name.removesuffix(".processor"))
                self.heads[number] = attention.heads
                for key, module in (("q", attention.to_q), ("text_k", attention.to_k)):
                    module.register_forward_hook(
                        lambda _, __, result, key=f"{key}.{number}": self.kept.__setitem__(key, result)
                    )

    def exchange(self, key: str, result: torch.Tensor) -> torch.Tensor:
        """The leaf in the place of the projection's result; the zero tokens behind stay."""
        if key not in self.given:
            value = result[:, :TOKENS].detach().float().to(self.dtype)
            self.given[key] = value.requires_grad_()
        return torch.cat([self.given[key], result[:, TOKENS:]], dim=1)

    def run(self, inputs: dict, identity: bool) -> torch.Tensor:
        x = {key: value.to(self.dtype) for key, value in inputs.items()}
        added = {"text_embeds": x["text_embeds"], "time_ids": x["time_ids"]}
        arguments = dict(added_cond_kwargs=added)
        if identity:
            arguments["cross_attention_kwargs"] = {"id_embedding": x["id_embedding"], "id_scale": SETTINGS["id_scale"]}
        unet = self.unet if identity else self.plain
        return unet(x["sample"], x["timestep"], x["encoder_hidden_states"], **arguments).sample


def unet_inputs(seed: int) -> dict:
    size = [8.0 * HEIGHT, 8.0 * WIDTH]
    return {
        "sample": randn(seed, BATCH, 4, HEIGHT, WIDTH),
        "timestep": torch.tensor([786.0, 249.0]),
        "encoder_hidden_states": randn(seed + 1, BATCH, 77, TEXT),
        "text_embeds": randn(seed + 2, BATCH, 20),
        "time_ids": torch.tensor([size + [0.0, 0.0] + size]).repeat(BATCH, 1),
        "id_embedding": randn(seed + 3, BATCH, TOKENS, TEXT),
    }


def given(inputs: dict, branch: Branch, losses: dict, more: dict) -> dict:
    """The graph's inputs: keys and values in place of the identity's tokens."""
    inputs = {key: value for key, value in inputs.items() if key != "id_embedding"}
    upstream = {f"upstream.{key}": torch.tensor([300.0, 500.0]) * (1 + i) for i, key in enumerate(losses)}
    scale = {"id_scale": torch.full([BATCH], SETTINGS["id_scale"])}
    return {**inputs, **scale, **{key: value.detach() for key, value in branch.given.items()}, **upstream, **more}


def save_unet(name: str, inputs: dict, losses_of, note: str, **case) -> None:
    """Writes the case of losses over the UNet; `losses_of` gives them for a branch, and further inputs of the graph."""

    def run(dtype: torch.dtype, leaves: dict):
        branch = Branch(dtype, leaves)
        losses, more = losses_of(branch)
        all_inputs = given(inputs, branch, losses, more)
        total = sum((all_inputs[f"upstream.{key}"].to(dtype) * value).sum() for key, value in losses.items())
        found = torch.autograd.grad(total, list(branch.given.values()), allow_unused=True)
        gradients = {f"d.{key}": value for key, value in zip(branch.given, found, strict=True) if value is not None}
        return all_inputs, {**{key: value.detach() for key, value in losses.items()}, **gradients}, branch.given

    all_inputs, outputs, leaves = run(torch.float64, {})
    single = run(torch.float32, leaves)[1]
    error, key = max((relative_error(single[key], value), key) for key, value in outputs.items() if key.startswith("d."))
    note = f"{note} PyTorch's own f32 run differs by {error:.1e} ({key})."
    save(name, all_inputs, outputs, note, unet="../../unet/weights/lists", tokens=TOKENS, **SETTINGS, **case)


def diffusion(name: str, seed: int, velocity: bool) -> None:
    inputs = unet_inputs(seed)
    noise, clean = randn(seed + 10, BATCH, 4, HEIGHT, WIDTH), randn(seed + 11, BATCH, 4, HEIGHT, WIDTH)
    alpha, sigma = torch.tensor([0.28, 0.85]), torch.tensor([0.96, 0.53])
    more = {"noise": noise}
    if velocity:
        more |= {"clean": clean, "alpha": alpha, "sigma": sigma}

    def losses_of(branch: Branch):
        target = noise.to(branch.dtype)
        if velocity:
            scale = [v.to(branch.dtype).reshape(-1, 1, 1, 1) for v in (alpha, sigma)]
            target = scale[0] * target - scale[1] * clean.to(branch.dtype)
        predicted = branch.run(inputs, True)
        return {"diffusion": F.mse_loss(predicted, target, reduction="none").mean(dim=(1, 2, 3))}, more

    save_unet(name, inputs, losses_of, "L_diff.", kind="diffusion", velocity=velocity)


def alignment(name: str, seed: int, norm: str) -> None:
    inputs = unet_inputs(seed)
    with torch.no_grad():
        plain = Branch(torch.float64, {})
        plain.run(inputs, False)
    # What the branch without identity gives is stored in single precision.
    reference = {key: value.float() for key, value in plain.kept.items() if key.startswith("q.")}

    def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        square = ((a - b) ** 2).mean(dim=(1, 2))
        if norm == "relative":
            square = square / ((b**2).mean(dim=(1, 2)) + EPSILON)
        return torch.sqrt(square + EPSILON)

    def attend(text: torch.Tensor, queries: torch.Tensor, heads: int) -> torch.Tensor:
        split = lambda x: x.unflatten(2, (heads, -1)).transpose(1, 2)
        result = F.scaled_dot_product_attention(split(text), split(queries), split(queries))
        return result.transpose(1, 2).flatten(2)

    def losses_of(branch: Branch):
        branch.run(inputs, True)
        semantic, layout = [], []
        for number, heads in branch.heads.items():
            q, text = branch.kept[f"q.{number}"], branch.kept[f"text_k.{number}"]
            other = reference[f"q.{number}"].to(branch.dtype)
            semantic.append(distance(attend(text, q, heads), attend(text, other, heads)))
            layout.append(distance(q, other))
        losses = {"semantic": torch.stack(semantic).mean(0), "layout": torch.stack(layout).mean(0)}
        return losses, {f"reference.{key}": value for key, value in reference.items()}

    save_unet(name, inputs, losses_of, "L_align.", kind="alignment", norm=norm)


def margin(run) -> float:
    """How far the values that a recogniser's PReLUs read stay from their kink, in standard deviations of a layer: rounding that
    carries one of half a million over it changes the gradient by far more than rounding does."""
    found, where = [], torch.where

    def watch(condition, x, other):
        found.append(float((x.abs() / x.std()).min()))
        return where(condition, x, other)

    torch.where = watch
    try:
        run()
    finally:
        torch.where = where
    return min(found)


def identity(name: str, seed: int) -> None:
    vae = AutoencoderKL.from_pretrained(MINI / "sdxl" / "vae").eval().requires_grad_(False)
    model = onnx.load(MINI / "antelopev2" / "glintr100.onnx")
    batch, height, width = 3, 7, 6
    # From the crop's pixels to the picture's: turned and shrunk, one partly outside, one mirrored.
    crop = torch.tensor(
        [
            [[0.375, -0.0625, 5.0], [0.0625, 0.375, 3.0]],
            [[0.5, 0.125, -4.0], [-0.125, 0.5, 6.0]],
            [[-0.25, 0.0, 40.0], [0.0, 0.25, 20.5]],
        ]
    )
    target = randn(seed + 1, batch, 512)
    # Nobody was found in the second picture.
    upstream = torch.tensor([4000.0, 0.0, 2500.0])

    def faces(x: torch.Tensor) -> torch.Tensor:
        image = vae.to(x.dtype).decode(x / vae.config.scaling_factor).sample
        columns, rows = torch.meshgrid(torch.arange(112.0), torch.arange(112.0), indexing="xy")
        pixels = torch.stack([columns, rows, torch.ones_like(rows)]).to(x.dtype)
        places = torch.einsum("bij,jhw->bhwi", crop.to(x.dtype), pixels)
        extents = torch.tensor([image.shape[3] - 1, image.shape[2] - 1]).to(x.dtype)
        # Black outside.
        grid = 2 * places / extents - 1
        return F.grid_sample(image + 1, grid, mode="bilinear", padding_mode="zeros", align_corners=True) - 1

    def run(latent: torch.Tensor, dtype: torch.dtype) -> dict:
        x = latent.to(dtype).requires_grad_()
        loss = 1 - F.cosine_similarity(gradients.recogniser(model, faces(x)), target.to(dtype))
        (found,) = torch.autograd.grad((upstream.to(dtype) * loss).sum(), [x])
        return {"identity": loss.detach(), "d.latent": found}

    def apart(latent: torch.Tensor) -> float:
        with torch.no_grad():
            face = faces(latent.double())[upstream != 0]
            return margin(lambda: gradients.recogniser(model, face))

    latents = [randn(seed + 2 + i, batch, 4, height, width) for i in range(40)]
    margins = [apart(latent) for latent in latents]
    # Of those furthest from kinks the one whose gradient PyTorch itself finds most nearly in f32.
    furthest = sorted(range(len(latents)), key=margins.__getitem__)[-6:]
    runs = {i: run(latents[i], torch.float64) for i in furthest}
    rounded = {i: relative_error(run(latents[i], torch.float32)["d.latent"], runs[i]["d.latent"]) for i in furthest}
    best = min(furthest, key=rounded.__getitem__)
    latent, outputs, single = latents[best], runs[best], rounded[best]
    inputs = {"latent": latent, "crop": crop, "target": target, "upstream.identity": upstream}
    note = f"L_id. PyTorch's own f32 run differs by {single:.1e}; PReLUs' operands stay {margins[best]:.1e} off their kinks."
    save(
        name,
        inputs,
        outputs,
        note,
        kind="identity",
        vae="../../../../models/mini/sdxl/vae",
        recogniser="../../../../models/mini/antelopev2/glintr100.onnx",
    )


def main() -> None:
    deterministic()
    torch.set_grad_enabled(True)
    diffusion("diffusion-noise", SEED, False)
    diffusion("diffusion-velocity", SEED + 100, True)
    alignment("alignment-rms", SEED + 200, "rms")
    alignment("alignment-relative", SEED + 300, "relative")
    identity("identity", SEED + 400)


if __name__ == "__main__":
    main()
