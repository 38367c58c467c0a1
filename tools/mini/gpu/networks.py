"""Sizes and builders of the mini SDXL family: SDXL's layout, with an f4 VAE, so that a face of 100 pixels keeps its eyes."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path[:0] = [str(HERE), str(HERE.parent / "diffusion"), str(HERE.parent), str(ROOT / "tools")]

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: E402
from pulid_reference import IDFormer, IdSettings, install_id_attention  # noqa: E402
from torch import nn  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer  # noqa: E402

MODELS = ROOT / "models" / "mini"
RESOLUTION, FACTOR = 128, 4
LATENT = RESOLUTION // FACTOR
TEXT_HIDDEN, TEXT2_HIDDEN = 96, 160
CROSS_DIM = TEXT_HIDDEN + TEXT2_HIDDEN
TIME_IDS_DIM = 32
NUM_ZERO = 8

VAE_CONFIG = dict(
    in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    block_out_channels=(32, 64, 96), layers_per_block=1, act_fn="silu", latent_channels=4, norm_num_groups=32,
    sample_size=RESOLUTION, scaling_factor=1.0, force_upcast=False,
)

UNET_CONFIG = dict(
    sample_size=LATENT, in_channels=4, out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), block_out_channels=(96, 96, 128), layers_per_block=1,
    transformer_layers_per_block=[1, 2, 1],
    attention_head_dim=[3, 3, 4],  # diffusers' name for the number of heads; 32 channels each
    cross_attention_dim=CROSS_DIM, addition_embed_type="text_time", addition_time_embed_dim=TIME_IDS_DIM,
    projection_class_embeddings_input_dim=TEXT2_HIDDEN + 6 * TIME_IDS_DIM, use_linear_projection=True, norm_num_groups=32, act_fn="silu",
    flip_sin_to_cos=True, freq_shift=0, downsample_padding=1, mid_block_scale_factor=1,
)

ID_FORMER = dict(
    dim=160, depth=5, dim_head=64, heads=3, num_id_token=5, num_queries=16, output_dim=CROSS_DIM, ff_mult=2,
    vit_dim=192, id_dim=768, mapping_dim=192,
)


def load_tokenizers():
    return tuple(CLIPTokenizer.from_pretrained(MODELS / "sdxl" / name) for name in ("tokenizer", "tokenizer_2"))


def text_config(vocab, hidden, layers, heads, act):
    return CLIPTextConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=4 * hidden, projection_dim=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=77, hidden_act=act, bos_token_id=0,
        eos_token_id=2,  # SDXL's own value; it makes CLIP pool at the largest id, which is <|endoftext|>
        pad_token_id=1, initializer_factor=1.0, attn_implementation="eager",
    )


class TextToLatent(nn.Module):
    """UNet and text encoders under the names of their folders."""

    def __init__(self, vocab: int):
        super().__init__()
        self.text_encoder = CLIPTextModel(text_config(vocab, TEXT_HIDDEN, 2, 3, "quick_gelu"))
        self.text_encoder_2 = CLIPTextModelWithProjection(text_config(vocab, TEXT2_HIDDEN, 2, 5, "gelu"))
        self.unet = UNet2DConditionModel(**UNET_CONFIG)
        with torch.no_grad():  # CLIP starts its embeddings at 0.02; narrow encoders trained for minutes need to hear the words
            for e in (self.text_encoder, self.text_encoder_2):
                e.get_input_embeddings().weight.mul_(10)

    def context(self, ids):
        """Token ids [B,2,77] of both tokenizers -> (context [B,77,CROSS_DIM], pooled [B,TEXT2_HIDDEN]), SDXL's recipe."""
        ids = ids.long()
        one = self.text_encoder(ids[:, 0], output_hidden_states=True)
        two = self.text_encoder_2(ids[:, 1], output_hidden_states=True)
        return torch.cat([one.hidden_states[-2], two.hidden_states[-2]], -1), two.text_embeds

    def forward(self, x, t, context, pooled, tokens=None, scale=None):
        """The noise in `x` [B,4,H,W]; identity `tokens` [B,N,CROSS_DIM] and their strength `scale` [B,1,1], or neither."""
        side = torch.tensor([RESOLUTION, RESOLUTION, 0, 0, RESOLUTION, RESOLUTION], dtype=torch.float32, device=x.device).expand(len(x), 6)
        extra = {} if tokens is None else dict(cross_attention_kwargs=dict(id_embedding=tokens, id_scale=1.0 if scale is None else scale))
        added = dict(text_embeds=pooled, time_ids=side)
        return self.unet(x, t, encoder_hidden_states=context, added_cond_kwargs=added, return_dict=False, **extra)[0]


class Adapter(nn.Module):
    """Parameter names are those of the published v1.1 file."""

    def __init__(self, unet, settings: IdSettings):
        super().__init__()
        self.id_adapter = IDFormer(**ID_FORMER)
        self.id_adapter_attn_layers = install_id_attention(unet, settings)
        for layer in self.id_adapter_attn_layers:
            if hasattr(layer, "id_to_v"):
                nn.init.zeros_(layer.id_to_v.weight)  # training starts at the base model


def build_vae():
    return AutoencoderKL(**VAE_CONFIG)


class ResidualBlock(nn.Module):
    def __init__(self, before, channels, stride):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, before), nn.Conv2d(before, channels, 3, stride, 1)
        self.norm2, self.conv2 = nn.GroupNorm(8, channels), nn.Conv2d(channels, channels, 3, 1, 1)
        plain = before == channels and stride == 1
        self.short = nn.Identity() if plain else nn.Sequential(nn.AvgPool2d(stride, stride), nn.Conv2d(before, channels, 1))

    def forward(self, x):
        return self.short(x) + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class LatentRecogniser(nn.Module):
    """Normalised latents [B,4,32,32] to features of unit length [B,192], five landmarks [B,5,2] in 0..1 and stages' activations."""

    def __init__(self, widths=(64, 96, 128, 192), features=192):
        super().__init__()
        self.stem = nn.Conv2d(4, widths[0], 3, 1, 1)
        stages, before = [], widths[0]
        for i, width in enumerate(widths):
            stages.append(nn.Sequential(ResidualBlock(before, width, 1 if i == 0 else 2), ResidualBlock(width, width, 1)))
            before = width
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(before * 16)
        self.head, self.points = nn.Linear(before * 16, features), nn.Linear(before * 16, 10)
        self.embedding = nn.Linear(features, 512)

    def forward(self, z):
        x, seen = self.stem(z), []
        for stage in self.stages:
            x = stage(x)
            seen.append(x)
        x = self.norm(x.flatten(1))
        return F.normalize(self.head(x).float(), dim=-1), seen

    def landmarks(self, z):
        x = self.stem(z)
        for stage in self.stages:
            x = stage(x)
        return 0.5 + self.points(self.norm(x.flatten(1))).float().reshape(-1, 5, 2)


class AttributeNet(nn.Module):
    """[B,3,128,128] in -1..1, read at 64 x 64 -> logits of style and background, features [B,128]."""

    def __init__(self, styles: int, backgrounds: int):
        super().__init__()
        layers, width = [], 3
        for w in (24, 48, 96, 128):
            layers += [nn.Conv2d(width, w, 3, 2, 1, bias=False), nn.BatchNorm2d(w), nn.ReLU(), nn.Conv2d(w, w, 3, 1, 1, bias=False), nn.BatchNorm2d(w), nn.ReLU()]
            width = w
        self.body = nn.Sequential(*layers)
        self.style, self.background = nn.Linear(width, styles), nn.Linear(width, backgrounds)

    def forward(self, x):
        f = self.body(F.avg_pool2d(x, 2)).mean((2, 3))
        return self.style(f), self.background(f), f


class PatchCritic(nn.Module):
    """Judges overlapping patches (30 pixels wide) as real or decoded."""

    def __init__(self, width: int = 48):
        super().__init__()
        conv = lambda i, o, s: nn.utils.parametrizations.spectral_norm(nn.Conv2d(i, o, 4, s, 1))
        self.layers = nn.ModuleList([conv(3, width, 2), conv(width, 2 * width, 2), conv(2 * width, 4 * width, 1), conv(4 * width, 1, 1)])

    def forward(self, x):
        features = []
        for layer in self.layers[:-1]:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.layers[-1](x), features
