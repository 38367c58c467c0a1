"""IDFormer, PuLID v1.1's identity encoder: a perceiver resampler over face and vision-tower features.

Published sizes: dim 1024, 10 layers, 16 heads of 64, 32 queries, 5 identity tokens per photo, output 2048.
"""

import torch
import torch.nn.functional as F
from torch import nn


def mapping(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Three linear layers with LayerNorm (eps 1e-5) and LeakyReLU (slope 0.01) between them."""
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.LayerNorm(hidden),
        nn.LeakyReLU(0.01),
        nn.Linear(hidden, hidden),
        nn.LayerNorm(hidden),
        nn.LeakyReLU(0.01),
        nn.Linear(hidden, outputs),
    )


def feed_forward(dim: int, inner: int) -> nn.Sequential:
    """Pre-norm feed-forward block without biases, exact GELU."""
    return nn.Sequential(
        nn.LayerNorm(dim),
        nn.Linear(dim, inner, bias=False),
        nn.GELU(),
        nn.Linear(inner, dim, bias=False),
    )


class PerceiverAttention(nn.Module):
    """Latents attend to [context, latents]; the two parts are normalised by separate LayerNorms."""

    def __init__(self, dim: int, heads: int, dim_head: int):
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, context: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """context [B, n, dim], latents [B, m, dim] -> update of the latents [B, m, dim]."""
        latents = self.norm2(latents)
        keys = torch.cat((self.norm1(context), latents), dim=1)
        k, v = self.to_kv(keys).chunk(2, dim=-1)
        out = F.scaled_dot_product_attention(self._split(self.to_q(latents)), self._split(k), self._split(v))
        return self.to_out(out.transpose(1, 2).flatten(2))


class IDFormer(nn.Module):
    """Maps the identity condition and five vision-tower scales to identity tokens.

    `depth` counts all layers; each of the five scales owns depth / 5 consecutive ones.
    """

    SCALES = 5

    def __init__(
        self,
        dim: int = 1024,
        depth: int = 10,
        dim_head: int = 64,
        heads: int = 16,
        num_id_token: int = 5,
        num_queries: int = 32,
        output_dim: int = 2048,
        ff_mult: float = 4,
        vit_dim: int = 1024,
        id_dim: int = 1280,
        mapping_dim: int = 1024,
    ):
        super().__init__()
        if depth % self.SCALES:
            raise ValueError(f"depth {depth} must be a multiple of {self.SCALES}, the number of scales")
        self.dim = dim
        self.num_id_token = num_id_token
        self.num_queries = num_queries
        self.latents = nn.Parameter(torch.randn(1, num_queries, dim) * dim**-0.5)
        self.proj_out = nn.Parameter(torch.randn(dim, output_dim) * dim**-0.5)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(dim, heads, dim_head), feed_forward(dim, int(dim * ff_mult))])
            for _ in range(depth)
        )
        for scale in range(self.SCALES):
            setattr(self, f"mapping_{scale}", mapping(vit_dim, mapping_dim, dim))
        self.id_embedding_mapping = mapping(id_dim, mapping_dim, dim * num_id_token)

    @classmethod
    def from_state_dict(cls, state: dict[str, torch.Tensor], dim_head: int = 64) -> "IDFormer":
        """Builds the module whose sizes the tensors tell; only the head size (64) is convention."""
        _, queries, dim = state["latents"].shape
        last = state["id_embedding_mapping.6.weight"].shape[0]
        inner = state["layers.0.0.to_q.weight"].shape[0]
        model = cls(
            dim=dim,
            depth=1 + max(int(key.split(".")[1]) for key in state if key.startswith("layers.")),
            dim_head=dim_head,
            heads=inner // dim_head,
            num_id_token=last // dim,
            num_queries=queries,
            output_dim=state["proj_out"].shape[1],
            ff_mult=state["layers.0.1.1.weight"].shape[0] / dim,
            vit_dim=state["mapping_0.0.weight"].shape[1],
            id_dim=state["id_embedding_mapping.0.weight"].shape[1],
            mapping_dim=state["mapping_0.0.weight"].shape[0],
        )
        model.load_state_dict(state)
        return model

    def forward(self, id_cond: torch.Tensor, hidden: list[torch.Tensor]) -> torch.Tensor:
        """id_cond [B, n, id_dim] (or [B, id_dim] for one photo), hidden 5 x [B, n * tokens, vit_dim].

        Several photos are concatenated along the token axis of `hidden`. Returns [B, num_queries, output_dim].
        """
        if id_cond.ndim == 2:
            id_cond = id_cond[:, None]
        batch = id_cond.shape[0]
        identity = self.id_embedding_mapping(id_cond).reshape(batch, -1, self.dim)
        latents = torch.cat((self.latents.expand(batch, -1, -1), identity), dim=1)
        per_scale = len(self.layers) // self.SCALES
        for scale in range(self.SCALES):
            context = torch.cat((identity, getattr(self, f"mapping_{scale}")(hidden[scale])), dim=1)
            for attention, feed in self.layers[scale * per_scale : (scale + 1) * per_scale]:
                latents = latents + attention(context, latents)
                latents = latents + feed(latents)
        return latents[:, : self.num_queries] @ self.proj_out
