"""PyTorch reference writing of PuLID's own modules.

Parameter names and shapes are those of the published checkpoints, so a state dict moves in either
direction without renaming. Every width is an argument (or is read from the state dict's shapes), so the
same classes serve the published sizes, small trained models and tiny random goldens. All modules are
differentiable: training uses them as they are.
"""

from .eva_clip import EvaClipTower
from .id_attention import (
    IdCrossAttention,
    IdSettings,
    PlainAttention,
    adapter_layers_state_dict,
    id_attention_layers,
    install_id_attention,
    load_adapter_layers,
)
from .id_encoder import IDEncoder
from .id_former import IDFormer

__all__ = [
    "EvaClipTower",
    "IDEncoder",
    "IDFormer",
    "IdCrossAttention",
    "IdSettings",
    "PlainAttention",
    "adapter_layers_state_dict",
    "id_attention_layers",
    "install_id_attention",
    "load_adapter_layers",
]
