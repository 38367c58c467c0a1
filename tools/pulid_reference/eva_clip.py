"""The EVA02-CLIP vision tower, with the hidden states PuLID reads.

Published sizes (EVA02-CLIP-L-14-336): 24 blocks, width 1024, 16 heads, SwiGLU hidden 2730, patch 14, image 336,
output 768. The stream is normalised before each half block, and inside it once more before the output projection
(`inner_attn_ln`) and before the last feed-forward layer (`ffn_ln`).
"""

import torch
import torch.nn.functional as F
from torch import nn

EPS = 1e-6
PREFIX = "visual."


def rope_tables(head_dim: int, grid: int, pretrained_grid: int = 16, theta: float = 1e4):
    """cos and sin [grid * grid, head_dim]: rows turn the first half of the head, columns the second.

    Positions are scaled to the grid of the pretraining. Neighbouring channels form a pair with one frequency.
    """
    axis = head_dim // 2
    frequency = theta ** -(torch.arange(0, axis, 2, dtype=torch.float32) / axis)
    position = torch.arange(grid, dtype=torch.float32) / grid * pretrained_grid
    angle = (position[:, None] * frequency).repeat_interleave(2, dim=-1)
    rows = angle[:, None].expand(grid, grid, axis)
    columns = angle[None].expand(grid, grid, axis)
    table = torch.cat((rows, columns), dim=-1).reshape(grid * grid, head_dim)
    return table.cos(), table.sin()


class Rope(nn.Module):
    """Rotary embedding of the patch tokens; buffers carry the official names `freqs_cos` and `freqs_sin`."""

    def __init__(self, head_dim: int, grid: int, pretrained_grid: int):
        super().__init__()
        cos, sin = rope_tables(head_dim, grid, pretrained_grid)
        self.register_buffer("freqs_cos", cos)
        self.register_buffer("freqs_sin", sin)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, heads, 1 + patches, head_dim]; the class token in front is not turned."""
        cls, patches = x[:, :, :1], x[:, :, 1:]
        even, odd = patches[..., ::2], patches[..., 1::2]
        turned = torch.stack((-odd, even), dim=-1).flatten(-2)
        patches = patches * self.freqs_cos + turned * self.freqs_sin
        return torch.cat((cls, patches.to(x.dtype)), dim=2)


class Attention(nn.Module):
    """Self-attention with biases on queries and values but not on keys."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.inner_attn_ln = nn.LayerNorm(width, eps=EPS)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, rope: Rope) -> torch.Tensor:
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in (self.q_proj(x) + self.q_bias, self.k_proj(x), self.v_proj(x) + self.v_bias)
        )
        out = F.scaled_dot_product_attention(rope(q), rope(k), v)
        return self.proj(self.inner_attn_ln(out.transpose(1, 2).flatten(2)))


class SwiGlu(nn.Module):
    """w3(norm(silu(w1 x) * w2 x))."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w1 = nn.Linear(width, hidden)
        self.w2 = nn.Linear(width, hidden)
        self.ffn_ln = nn.LayerNorm(hidden, eps=EPS)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w3(self.ffn_ln(F.silu(self.w1(x)) * self.w2(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = SwiGlu(width, hidden)

    def forward(self, x: torch.Tensor, rope: Rope) -> torch.Tensor:
        x = x + self.attn(self.norm1(x), rope)
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, patch: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.proj(image).flatten(2).transpose(1, 2)


class EvaClipTower(nn.Module):
    """State dict keys are the official ones without the `visual.` prefix."""

    SCALES = 5

    def __init__(
        self,
        image_size: int = 336,
        patch: int = 14,
        width: int = 1024,
        depth: int = 24,
        heads: int = 16,
        hidden: int = 2730,
        output_dim: int = 768,
        pretrained_grid: int = 16,
    ):
        super().__init__()
        if depth % (self.SCALES + 1):
            raise ValueError(f"depth {depth} must be a multiple of {self.SCALES + 1}")
        grid = image_size // patch
        self.image_size = image_size
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + grid * grid, width) * 0.02)
        self.patch_embed = PatchEmbed(patch, width)
        self.rope = Rope(width // heads, grid, pretrained_grid)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.head = nn.Linear(width, output_dim)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """image [B, 3, S, S], normalised -> (cls [B, output_dim], five hidden states [B, 1 + patches, width]).

        `cls` is not L2-normalised. Hidden state k (1..5) is the stream after k/6 of the blocks, without a norm.
        """
        x = self.patch_embed(image)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        step = len(self.blocks) // (self.SCALES + 1)
        hidden = []
        for index, block in enumerate(self.blocks, start=1):
            x = block(x, self.rope)
            if index % step == 0 and len(hidden) < self.SCALES:
                hidden.append(x)
        return self.head(self.norm(x[:, 0])), hidden

    def load_official(self, state: dict[str, torch.Tensor]) -> None:
        """Loads a checkpoint with or without the `visual.` prefix; the rotary tables it may hold are recomputed."""
        prefix = PREFIX if any(key.startswith(PREFIX) for key in state) else ""
        own = {
            key.removeprefix(prefix): value
            for key, value in state.items()
            if key.startswith(prefix) and "rope.freqs" not in key
        }
        missing, unexpected = self.load_state_dict(own, strict=False)
        missing = [key for key in missing if not key.startswith("rope.")]
        if missing or unexpected:
            raise KeyError(f"tower weights: missing {missing}, unexpected {unexpected}")

    def official_state_dict(self, with_rope: bool = True) -> dict[str, torch.Tensor]:
        """The weights under `visual.` keys."""
        return {
            PREFIX + key: value for key, value in self.state_dict().items() if with_rope or not key.startswith("rope.")
        }
