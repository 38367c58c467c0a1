"""PuLID's identity cross-attention for a diffusers UNet.

Beside the text attention a second attention reads the identity tokens through `id_to_k` and `id_to_v`; its
result is added before the output projection:

    out = text + id_scale * identity                                   ortho "off"
    out = text + id_scale * (identity - p)                             ortho "v1"
    out = text + id_scale * (identity + (a - 1) * p)                   ortho "v2"

    p = sum_seq(text * identity) / sum_seq(text * text) * text         per channel
    a = mean over heads of softmax(q k_id^T), unscaled, summed over the first five identity tokens

`num_zero` zero tokens are appended to the identity tokens; as the projections have no bias they become zero
keys and zero values, which give attention somewhere harmless to go.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

ORTHO_MODES = ("off", "v1", "v2")
# "v2" keeps the part along the text features in proportion to the attention on the global identity tokens.
GLOBAL_ID_TOKENS = 5


@dataclass
class IdSettings:
    """Settings shared by all layers of one UNet. `capture`, when a list, receives (name, query, text_key)."""

    id_scale: float = 1.0
    num_zero: int = 20
    ortho: str = "v2"
    capture: list | None = None

    def __post_init__(self):
        if self.ortho not in ORTHO_MODES:
            raise ValueError(f"ortho is {self.ortho!r}; use one of {ORTHO_MODES}")


def _heads(x: torch.Tensor, count: int) -> torch.Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def _merge(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).flatten(2)


class PlainAttention(nn.Module):
    """Ordinary attention; holds no parameters and keeps the layer numbering of the published files.

    `__call__` is overridden, not `forward`: diffusers passes a processor only the keyword arguments which the
    signature of its `__call__` names.
    """

    def __call__(
        self,
        attn,
        hidden_states,
        encoder_hidden_states=None,
        attention_mask=None,
        temb=None,
        id_embedding=None,
        id_scale=None,
    ):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q = _heads(attn.to_q(hidden_states), attn.heads)
        k = _heads(attn.to_k(context), attn.heads)
        v = _heads(attn.to_v(context), attn.heads)
        out = _merge(F.scaled_dot_product_attention(q, k, v))
        return attn.to_out[1](attn.to_out[0](out))


class IdCrossAttention(nn.Module):
    """Text cross-attention plus identity cross-attention of one transformer block."""

    def __init__(self, hidden_size: int, id_dim: int, settings: IdSettings, name: str = ""):
        super().__init__()
        self.id_to_k = nn.Linear(id_dim, hidden_size, bias=False)
        self.id_to_v = nn.Linear(id_dim, hidden_size, bias=False)
        self.settings = settings
        self.name = name

    def __call__(
        self,
        attn,
        hidden_states,
        encoder_hidden_states=None,
        attention_mask=None,
        temb=None,
        id_embedding=None,
        id_scale=None,
    ):
        """id_embedding [B, N, id_dim] or None; id_scale overrides the shared setting."""
        settings = self.settings
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q = _heads(attn.to_q(hidden_states), attn.heads)
        k = _heads(attn.to_k(context), attn.heads)
        v = _heads(attn.to_v(context), attn.heads)
        if settings.capture is not None:
            settings.capture.append((self.name, q, k))
        out = _merge(F.scaled_dot_product_attention(q, k, v))
        if id_embedding is not None:
            scale = settings.id_scale if id_scale is None else id_scale
            out = self.add_identity(out, q, id_embedding, attn.heads, scale)
        return attn.to_out[1](attn.to_out[0](out))

    def add_identity(self, text, q, id_embedding, heads: int, id_scale: float) -> torch.Tensor:
        """text [B, L, C] and q [B, heads, L, C / heads] -> text with the identity attention added."""
        tokens = F.pad(id_embedding, (0, 0, 0, self.settings.num_zero))
        k = _heads(self.id_to_k(tokens).to(q.dtype), heads)
        v = _heads(self.id_to_v(tokens).to(q.dtype), heads)
        identity = _merge(F.scaled_dot_product_attention(q, k, v))
        if self.settings.ortho == "off":
            return text + id_scale * identity
        # Sums over thousands of positions overflow half precision, hence float32 throughout.
        with torch.autocast(text.device.type, enabled=False):
            h, i = text.float(), identity.float()
            along = (h * i).sum(dim=1, keepdim=True) / (h * h).sum(dim=1, keepdim=True) * h
            if self.settings.ortho == "v1":
                i = i - along
            else:
                weights = (q.float() @ k.float().transpose(-2, -1)).softmax(dim=-1).mean(dim=1)
                kept = weights[:, :, :GLOBAL_ID_TOKENS].sum(dim=-1, keepdim=True)
                i = i + (kept - 1.0) * along
            return (h + id_scale * i).to(text.dtype)


def install_id_attention(unet, settings: IdSettings | None = None, id_dim: int | None = None) -> nn.ModuleList:
    """Replaces all attention processors of a diffusers UNet and returns them in checkpoint order.

    diffusers lists processors as down, up, mid; the published files number `id_adapter_attn_layers` the same
    way, with parameterless self-attention layers counted. `id_dim` defaults to the text width.
    Pass `cross_attention_kwargs={"id_embedding": ..., "id_scale": ...}` to the UNet.
    """
    settings = settings or IdSettings()
    id_dim = id_dim or unet.config.cross_attention_dim
    processors = {}
    for name in unet.attn_processors:
        if name.endswith("attn1.processor"):
            processors[name] = PlainAttention()
            continue
        attention = unet.get_submodule(name.removesuffix(".processor"))
        processors[name] = IdCrossAttention(attention.to_q.out_features, id_dim, settings, name)
    # set_attn_processor empties the mapping it is given.
    unet.set_attn_processor(dict(processors))
    return nn.ModuleList(processors.values()).to(unet.device)


def id_attention_layers(unet) -> nn.ModuleList:
    """The installed processors of `unet`, in checkpoint order."""
    return nn.ModuleList(unet.attn_processors.values())


def adapter_layers_state_dict(unet) -> dict[str, torch.Tensor]:
    """`id_adapter_attn_layers.N.id_to_{k,v}.weight`, as in the published files."""
    state = id_attention_layers(unet).state_dict()
    return {f"id_adapter_attn_layers.{key}": value for key, value in state.items()}


def load_adapter_layers(unet, state: dict[str, torch.Tensor]) -> None:
    """Loads `id_adapter_attn_layers.*` of a PuLID file (other keys are ignored) into the installed processors."""
    prefix = "id_adapter_attn_layers."
    layers = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    id_attention_layers(unet).load_state_dict(layers)
