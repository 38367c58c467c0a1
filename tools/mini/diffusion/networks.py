"""Configurations and builders of the mini SDXL family (diffusers / transformers classes).

Every size here is a choice of this project; every *name* and every structural
switch is SDXL's, so that the exported folder reads like the real download.
"""
from __future__ import annotations

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

RESOLUTION = 128
LATENT = RESOLUTION // 8
TEXT_HIDDEN = 96
TEXT2_HIDDEN = 160
CROSS_DIM = TEXT_HIDDEN + TEXT2_HIDDEN
TIME_IDS_DIM = 32  # sinusoidal width of each of the six size numbers

VAE_CONFIG = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(32, 32, 64, 128),
    layers_per_block=2,
    act_fn="silu",
    latent_channels=4,
    norm_num_groups=32,
    sample_size=RESOLUTION,
    scaling_factor=1.0,  # measured after training and written at export
    force_upcast=False,
)

UNET_CONFIG = dict(
    sample_size=LATENT,
    in_channels=4,
    out_channels=4,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(96, 96, 96),
    layers_per_block=1,
    transformer_layers_per_block=[1, 2, 1],
    attention_head_dim=[3, 3, 3],  # diffusers' name for the number of heads; 32 channels each
    cross_attention_dim=CROSS_DIM,
    addition_embed_type="text_time",
    addition_time_embed_dim=TIME_IDS_DIM,
    projection_class_embeddings_input_dim=TEXT2_HIDDEN + 6 * TIME_IDS_DIM,
    use_linear_projection=True,
    norm_num_groups=32,
    act_fn="silu",
    flip_sin_to_cos=True,
    freq_shift=0,
    downsample_padding=1,
    mid_block_scale_factor=1,
)

SCHEDULER_CONFIG = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.25.0",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "interpolation_type": "linear",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
    "clip_sample": False,
}


def build_vae() -> AutoencoderKL:
    return AutoencoderKL(**VAE_CONFIG)


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(**UNET_CONFIG)


def text_config(vocab: int, hidden: int, layers: int, heads: int, act: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        projection_dim=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=77,
        hidden_act=act,
        # SDXL's own values; id 2 makes CLIP pool at the largest id, which is <|endoftext|>.
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
        # CLIP's default spread suits 768 channels and 12 layers; narrow encoders learn faster from a larger one.
        initializer_factor=1.0,
        attn_implementation="eager",
    )


def build_text_encoders(vocab: int) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    one = CLIPTextModel(text_config(vocab, TEXT_HIDDEN, 2, 3, "quick_gelu"))
    two = CLIPTextModelWithProjection(text_config(vocab, TEXT2_HIDDEN, 2, 5, "gelu"))
    return one, two


def encode_prompts(one, two, ids_one: torch.Tensor, ids_two: torch.Tensor):
    """ids [B,77] of both tokenizers -> context [B,77,CROSS_DIM], pooled [B,TEXT2_HIDDEN] (SDXL's recipe)."""
    out_one = one(ids_one, output_hidden_states=True)
    out_two = two(ids_two, output_hidden_states=True)
    context = torch.cat([out_one.hidden_states[-2], out_two.hidden_states[-2]], dim=-1)
    return context, out_two.text_embeds


def time_ids(batch: int) -> torch.Tensor:
    """SDXL's six size numbers [B,6]: original size, crop, target size."""
    return torch.tensor([[RESOLUTION, RESOLUTION, 0, 0, RESOLUTION, RESOLUTION]], dtype=torch.float32).expand(batch, 6)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
