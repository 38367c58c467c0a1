"""IDEncoder, PuLID v1's identity encoder: plain MLPs, five global tokens and one token per vision scale."""

import torch
from torch import nn

from .id_former import mapping


class IDEncoder(nn.Module):
    """Published sizes: width 1280, context 2048, five global tokens, vision tower 1024, hidden layers 1024."""

    SCALES = 5

    def __init__(
        self,
        width: int = 1280,
        context_dim: int = 2048,
        num_token: int = 5,
        vit_dim: int = 1024,
        hidden_dim: int = 1024,
    ):
        super().__init__()
        self.context_dim = context_dim
        self.num_token = num_token
        self.body = mapping(width, hidden_dim, context_dim * num_token)
        for scale in range(self.SCALES):
            setattr(self, f"mapping_{scale}", mapping(vit_dim, hidden_dim, context_dim))
            setattr(self, f"mapping_patch_{scale}", mapping(vit_dim, hidden_dim, context_dim))

    @classmethod
    def from_state_dict(cls, state: dict[str, torch.Tensor]) -> "IDEncoder":
        """Builds the module whose sizes the tensors tell."""
        context = state["mapping_0.6.weight"].shape[0]
        model = cls(
            width=state["body.0.weight"].shape[1],
            context_dim=context,
            num_token=state["body.6.weight"].shape[0] // context,
            vit_dim=state["mapping_0.0.weight"].shape[1],
            hidden_dim=state["mapping_0.0.weight"].shape[0],
        )
        model.load_state_dict(state)
        return model

    def forward(self, id_cond: torch.Tensor, hidden: list[torch.Tensor]) -> torch.Tensor:
        """id_cond [B, width], hidden 5 x [B, 1 + patches, vit_dim] -> [B, num_token + 5, context_dim]."""
        tokens = [self.body(id_cond).unflatten(-1, (self.num_token, self.context_dim))]
        for scale, features in enumerate(hidden):
            global_part = getattr(self, f"mapping_{scale}")(features[:, :1])
            patch_part = getattr(self, f"mapping_patch_{scale}")(features[:, 1:]).mean(dim=1, keepdim=True)
            tokens.append(global_part + patch_part)
        return torch.cat(tokens, dim=1)
