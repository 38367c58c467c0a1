"""A whole tiny SDXL with adapters of PuLID v1.1 and v1, in the published folder layout, and the pictures it makes.

Witness: diffusers, transformers and tools/pulid_reference/pipeline.py. The weights are random, so the pictures show
nothing; they pin the way from a prompt, a seed and an identity to pixels. The cases are named case.json because they
are runs of the whole program, not of one network.
"""

import copy
import importlib.util
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(1, str(ROOT / "tokenizer"))

import bpe
import torch
from common import (
    deterministic,
    fresh,
    randn,
    randomise,
    relative_error,
    save_tensors,
    save_weights,
    versions,
    write_json,
)
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from pulid_reference import (
    IDEncoder,
    IDFormer,
    IdSettings,
    adapter_layers_state_dict,
    id_attention_layers,
    install_id_attention,
)
from pulid_reference.pipeline import Request, TextEncoders, generate
from pulid_reference.samplers import training_sigmas
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

SEED = 9000
WIDTHS = (24, 32)
POOLED, TIME_IDS = 20, 8
ID_DIM, VIT_DIM, PHOTO_TOKENS = 28, 20, 17
MODEL = "model"


def text_encoder_writer():
    spec = importlib.util.spec_from_file_location("text_goldens", ROOT / "text-encoder" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.save_encoder


def sharpen_text(unet: UNet2DConditionModel) -> None:
    """Raises the gain of what reads the texts, so that prompts, guidance and identity show in the picture.

    The residual branches of the last block shrink: the noise in the skip connection has to get through.
    """
    for name, parameter in unet.named_parameters():
        if ".attn2.to_v." in name or ".attn2.to_k." in name:
            parameter.mul_(1.5).copy_(parameter.half().float())
        if name.startswith("up_blocks.1.") and ".conv2." in name:
            parameter.mul_(0.2).copy_(parameter.half().float())
        if name.startswith("up_blocks.1.") and name.endswith("conv_shortcut.weight"):
            # The last 16 input channels are the skip connection.
            parameter[:, :-16].mul_(0.2)
            parameter.copy_(parameter.half().float())


def fit_noise(unet: UNet2DConditionModel) -> None:
    """Chooses the last convolution so that the network predicts noise as well as its random features allow.

    Without this nothing would remove the starting noise, and latents would hardly depend on the network.
    """
    features, targets = [], []
    hook = unet.conv_out.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    table = training_sigmas()
    for index, timestep in enumerate([999, 990, 970, 950, 900, 850, 800, 700, 600, 400] * 8):
        noise, content = randn(SEED + 200 + index, 2, 4, 8, 8), randn(SEED + 400 + index, 2, 4, 8, 8)
        sigma = table[timestep]
        unet(
            (content + sigma * noise) / (sigma**2 + 1) ** 0.5,
            timestep,
            randn(SEED + 600 + index, 2, 77, sum(WIDTHS)),
            added_cond_kwargs={
                "text_embeds": randn(SEED + 800 + index, 2, POOLED),
                "time_ids": torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]]).repeat(2, 1),
            },
        )
        targets.append(noise)
    hook.remove()
    patches = torch.nn.functional.unfold(torch.cat(features), 3, padding=1).transpose(1, 2).flatten(0, 1)
    wanted = torch.cat(targets).flatten(2).transpose(1, 2).flatten(0, 1)
    columns = torch.cat((patches, torch.ones(len(patches), 1)), dim=1).double()
    ridge = 1e-5 * len(columns) * torch.eye(columns.shape[1], dtype=torch.float64)
    fit = torch.linalg.solve(columns.T @ columns + ridge, columns.T @ wanted.double()).float()
    residual = wanted - columns.float() @ fit
    print(f"the last convolution explains {1 - residual.var() / wanted.var():.2f} of the noise")
    kept = 0.1 * unet.conv_out.weight
    unet.conv_out.weight.copy_((fit[:-1].T.reshape(unet.conv_out.weight.shape) + kept).half().float())
    unet.conv_out.bias.copy_(fit[-1].half().float())


def build(folder: pathlib.Path):
    """Writes the model folder and returns its networks."""
    sizes = []
    for name, pad in (("tokenizer", bpe.EOS), ("tokenizer_2", "!")):
        (folder / name).mkdir()
        sizes.append(bpe.write(folder / name, pad, merges=120))
    tokenizers = [CLIPTokenizer.from_pretrained(folder / name) for name in ("tokenizer", "tokenizer_2")]

    common = dict(
        vocab_size=sizes[0],
        max_position_embeddings=77,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=2,
        bos_token_id=0,
        pad_token_id=1,
    )
    encoders = [
        CLIPTextModel(
            CLIPTextConfig(
                hidden_size=WIDTHS[0], intermediate_size=48, hidden_act="quick_gelu", projection_dim=WIDTHS[0], **common
            )
        ),
        CLIPTextModelWithProjection(
            CLIPTextConfig(
                hidden_size=WIDTHS[1], intermediate_size=64, hidden_act="gelu", projection_dim=POOLED, **common
            )
        ),
    ]
    save_encoder = text_encoder_writer()
    for index, (name, encoder) in enumerate(zip(("text_encoder", "text_encoder_2"), encoders)):
        (folder / name).mkdir()
        save_encoder(randomise(encoder, SEED + index), folder / name)

    unet = UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(16, 24),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1),
        attention_head_dim=(1, 1),
        cross_attention_dim=sum(WIDTHS),
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_IDS,
        projection_class_embeddings_input_dim=6 * TIME_IDS + POOLED,
        use_linear_projection=True,
        norm_num_groups=4,
    )
    randomise(unet, SEED + 2)
    sharpen_text(unet)
    fit_noise(unet)
    vae = randomise(
        AutoencoderKL(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            sample_size=64,
            block_out_channels=(8, 8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            norm_num_groups=4,
            scaling_factor=0.13025,
        ),
        SEED + 3,
    )
    copy.deepcopy(unet).half().save_pretrained(folder / "unet")
    copy.deepcopy(vae).half().save_pretrained(folder / "vae")
    (folder / "scheduler").mkdir()
    write_json(
        folder / "scheduler" / "scheduler_config.json",
        {
            "_class_name": "EulerDiscreteScheduler",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "num_train_timesteps": 1000,
            "prediction_type": "epsilon",
            "interpolation_type": "linear",
            "timestep_spacing": "leading",
            "steps_offset": 1,
            "use_karras_sigmas": False,
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
            "clip_sample": False,
            "trained_betas": None,
            "sample_max_value": 1.0,
        },
    )
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "StableDiffusionXLPipeline",
            "_diffusers_version": versions()["diffusers"],
            "force_zeros_for_empty_prompt": True,
            "scheduler": ["diffusers", "EulerDiscreteScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )
    return TextEncoders(tokenizers, encoders), unet, vae


def write_adapter(folder: pathlib.Path, unet) -> IDFormer:
    """A PuLID v1.1 file: `id_adapter.*` and `id_adapter_attn_layers.*`, for this UNet."""
    former = randomise(
        IDFormer(
            dim=24, depth=5, heads=1, output_dim=sum(WIDTHS), ff_mult=2, vit_dim=VIT_DIM, id_dim=ID_DIM, mapping_dim=16
        ),
        SEED + 4,
    )
    former.latents.copy_(randn(SEED + 5, *former.latents.shape).half().float())
    former.proj_out.copy_((0.15 * randn(SEED + 6, *former.proj_out.shape)).half().float())
    randomise(id_attention_layers(unet), SEED + 7, gain=1.2)
    state = {f"id_adapter.{key}": value for key, value in former.state_dict().items()}
    save_weights(folder / "adapter.safetensors", state | adapter_layers_state_dict(unet))
    return former


def write_v1(folder: pathlib.Path, unet) -> dict[str, torch.Tensor]:
    """A PuLID v1 file for this UNet with the same identity attention, and an identity of two photos by its encoder."""
    encoder = randomise(IDEncoder(ID_DIM, sum(WIDTHS), 5, VIT_DIM, 16), SEED + 20)
    state = {f"id_adapter.{key}": value for key, value in encoder.state_dict().items()}
    save_weights(folder / "adapter_v1.safetensors", state | adapter_layers_state_dict(unet))
    photos = []
    for photo in range(2):
        seed = SEED + 30 + 10 * photo
        hidden = [randn(seed + 1 + scale, 1, PHOTO_TOKENS, VIT_DIM) for scale in range(5)]
        photos.append(encoder(randn(seed, 1, ID_DIM), hidden))
    nobody = encoder(torch.zeros(1, ID_DIM), [torch.zeros(1, PHOTO_TOKENS, VIT_DIM)] * 5)
    # A further photo adds its first five tokens.
    identity = {
        "id_embedding": torch.cat([photos[0], photos[1][:, :5]], 1),
        "uncond_id_embedding": torch.cat([nobody, nobody[:, :5]], 1),
    }
    save_tensors(folder / "identity_v1.safetensors", identity)
    return identity


def write_identity(folder: pathlib.Path, former: IDFormer) -> dict[str, torch.Tensor]:
    face = randn(SEED + 8, 1, 512)
    cond = randn(SEED + 9, 1, ID_DIM)
    hidden = [randn(SEED + 10 + scale, 1, PHOTO_TOKENS, VIT_DIM) for scale in range(5)]
    identity = {
        "id_embedding": former(cond, hidden),
        "uncond_id_embedding": former(torch.zeros_like(cond), [torch.zeros_like(h) for h in hidden]),
        "face_embedding": face,
    }
    save_tensors(folder / "identity.safetensors", identity)
    return identity


def main() -> None:
    deterministic()
    text, unet, vae = build(fresh("pipeline", MODEL))
    settings = IdSettings()
    install_id_attention(unet, settings)
    former = write_adapter(ROOT / "pipeline" / MODEL, unet)
    identity = write_identity(ROOT / "pipeline" / MODEL, former)
    v1_identity = write_v1(ROOT / "pipeline" / MODEL, unet)

    prompt = "a portrait of a woman with glasses, oil painting, soft light"
    cases = {
        "plain": (Request(prompt, "a sketch", 64, 64, 4, 2.0, seed=42), None),
        "identity-v2": (Request(prompt, "", 64, 64, 4, 2.0, seed=42), dict(num_zero=20, ortho="v2", id_scale=0.8)),
        "identity-off": (
            Request("photo of a man in the snow", "", 56, 72, 5, 1.2, seed=7),
            dict(num_zero=8, ortho="off", id_scale=1.0),
        ),
        "identity-v1": (
            Request(prompt, "sad", 40, 64, 6, 3.0, seed=2**32 + 5),
            dict(num_zero=16, ortho="v1", id_scale=1.0),
        ),
        "euler": (Request("neon city at night", "", 64, 48, 5, 1.5, seed=3, sampler="euler"), None),
        "trailing": (
            Request(prompt, "", 64, 64, 4, 1.2, seed=11, spacing="trailing"),
            dict(num_zero=8, ortho="v2", id_scale=0.8),
        ),
        # All pictures of a batch come from one draw, as `num_images_per_prompt` has it.
        "batch": (
            Request(prompt, "sad", 64, 48, 4, 2.0, seed=19, batch=3),
            dict(num_zero=8, ortho="v2", id_scale=0.8),
        ),
        "window": (
            Request(prompt, "", 64, 64, 8, 2.0, seed=42, id_start=0.25, id_end=0.75),
            dict(num_zero=8, ortho="v2", id_scale=1.0),
        ),
        "no-guidance": (
            Request(prompt, "not read", 48, 64, 4, 1.0, seed=23),
            dict(num_zero=8, ortho="v1", id_scale=0.8),
        ),
    }
    # What `--preset NAME` has to set by itself. dpmpp_sde's noise is our own, so its preset has no witness here.
    presets = {
        "preset-v1-fidelity": ("v1-fidelity", v1_identity, 8, "v2", 4, 1.2, "trailing"),
        "preset-v1-style": ("v1-style", v1_identity, 16, "v1", 4, 1.2, "trailing"),
        "preset-v1.1-base": ("v1.1-base", identity, 20, "v2", 25, 7.0, "karras"),
    }
    for index, (name, (_, _, num_zero, ortho, steps, guidance, spacing)) in enumerate(presets.items()):
        request = Request(prompt, "a sketch", 64, 64, steps, guidance, seed=50 + index, spacing=spacing)
        cases[name] = (request, dict(num_zero=num_zero, ortho=ortho, id_scale=0.8))
    plain = None
    for name, (request, id_settings) in cases.items():
        preset, tokens = presets[name][:2] if name in presets else (None, identity)
        if id_settings:
            for key, value in id_settings.items():
                setattr(settings, key, value)
            request.id_scale = id_settings["id_scale"]
            request.id_embedding = tokens["id_embedding"]
            request.uncond_id_embedding = tokens["uncond_id_embedding"]
        out = generate(unet, vae, text, request)
        # The same in float64 tells how far a faithful float32 run may be from this one.
        precise = generate(copy.deepcopy(unet).double(), copy.deepcopy(vae).double(), text, request)
        spread = relative_error(out["latents"], precise["latents"])
        steps = int((out["picture"].int() - precise["picture"].int()).abs().max())
        assert spread < 1e-3 and steps <= 1, (name, spread, steps)
        # A batch is one picture above the other.
        picture = out["picture"].flatten(0, 1)
        assert picture.float().std() > 20, (name, picture.float().std())
        if name == "identity-v2":
            moved = (picture.int() - plain.int()).abs().float().mean()
            assert moved > 3, moved
        plain = picture if plain is None else plain

        folder = fresh("pipeline", name)
        save_tensors(folder / "outputs.safetensors", {key: out[key] for key in ("latents", "picture")})
        Image.fromarray(picture.numpy()).save(folder / "picture.png", optimize=True)
        arguments = {
            "prompt": request.prompt,
            "negative-prompt": request.negative_prompt,
            "width": request.width,
            "height": request.height,
            "steps": request.steps,
            "guidance": request.guidance,
            "seed": request.seed,
            "sampler": request.sampler,
            "spacing": request.spacing,
        }
        if id_settings:
            arguments |= {key.replace("_", "-"): value for key, value in id_settings.items()}
        for key, usual in (("batch", 1), ("id_start", 0.0), ("id_end", 1.0)):
            if getattr(request, key) != usual:
                arguments[key.replace("_", "-")] = getattr(request, key)
        if preset:
            arguments = {key: arguments[key] for key in ("prompt", "negative-prompt", "width", "height", "seed")}
            arguments["preset"] = preset
        version = "_v1" if tokens is v1_identity else ""
        write_json(
            folder / "case.json",
            {
                "model": f"../{MODEL}",
                "adapter": f"../{MODEL}/adapter{version}.safetensors" if id_settings else None,
                "identity": f"../{MODEL}/identity{version}.safetensors" if id_settings else None,
                "arguments": arguments,
                "outputs": "outputs.safetensors",
                "picture": "picture.png",
                "versions": versions(),
                "note": f"A float64 run differs by {spread:.1e} in the latents, {steps} of 255 in the picture.",
            },
        )
        start = randn(request.seed, *out["latents"].shape)
        kept = torch.corrcoef(torch.stack([start.flatten(), out["latents"].flatten()]))[0, 1]
        print(
            name,
            f"noise kept {kept:.2f}",
            "latents std",
            round(out["latents"].std().item(), 3),
            "picture std",
            round(picture.float().std().item(), 1),
            f"f64 {spread:.1e} {steps}",
        )


if __name__ == "__main__":
    main()
