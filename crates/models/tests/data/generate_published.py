"""Writes `published.json`: keys and shapes of the published networks, and their configurations.

diffusers, transformers and timm build the networks from the published configurations without memory for the weights;
PuLID's modules are built by `tools/pulid_reference`. Layout of the result:
{network: {"config": {...} or null, "tensors": {key: shape}}}.
"""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[3] / "tools"))

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from facexlib.detection.retinaface import RetinaFace
from facexlib.parsing.bisenet import BiSeNet
from pulid_reference import EvaClipTower, IDEncoder, IDFormer, adapter_layers_state_dict, install_id_attention
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

UNET = dict(
    sample_size=128,
    block_out_channels=(320, 640, 1280),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    layers_per_block=2,
    transformer_layers_per_block=(1, 2, 10),
    attention_head_dim=(5, 10, 20),
    cross_attention_dim=2048,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
    use_linear_projection=True,
)
VAE = dict(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
    sample_size=1024,
    scaling_factor=0.13025,
)
CLIP_L = dict(
    hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12, hidden_act="quick_gelu",
    projection_dim=768, eos_token_id=2,
)
CLIP_G = dict(
    hidden_size=1280, intermediate_size=5120, num_attention_heads=20, num_hidden_layers=32, hidden_act="gelu",
    projection_dim=1280, eos_token_id=2,
)


def shapes(state: dict, prefix: str = "") -> dict:
    # Batch norm counts its batches in an integer that nothing reads.
    kept = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    return {prefix + key: list(value.shape) for key, value in sorted(kept.items())}


def main() -> None:
    published = {}
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNET)
        published["unet"] = {"config": dict(unet.config), "tensors": shapes(unet.state_dict())}
        install_id_attention(unet)
        former = shapes(IDFormer().state_dict(), "id_adapter.")
        layers = shapes(adapter_layers_state_dict(unet))
        published["pulid_v1.1"] = {"config": None, "tensors": {**former, **layers}}
        published["pulid_v1"] = {"config": None, "tensors": {**shapes(IDEncoder().state_dict(), "id_adapter."), **layers}}
        vae = AutoencoderKL(**VAE)
        published["vae"] = {"config": dict(vae.config), "tensors": shapes(vae.state_dict())}
        for name, kind, sizes in [
            ("text_encoder", CLIPTextModel, CLIP_L),
            ("text_encoder_2", CLIPTextModelWithProjection, CLIP_G),
        ]:
            config = CLIPTextConfig(**sizes)
            tensors = shapes(kind(config).state_dict())
            prefixed = {
                key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}": shape
                for key, shape in tensors.items()
            }
            published[name] = {"config": config.to_dict(), "tensors": prefixed}
        published["bisenet"] = {"config": None, "tensors": shapes(BiSeNet(19).state_dict())}
    # These two compute with what they make, so they need real memory.
    detector = RetinaFace("resnet50", device="cpu").state_dict()
    published["retinaface"] = {"config": None, "tensors": shapes(detector, "module.")}
    tower = EvaClipTower()
    published["eva_clip"] = {"config": None, "tensors": shapes(tower.official_state_dict())}
    for entry in published.values():
        if entry["config"]:
            entry["config"] = {key: value for key, value in entry["config"].items() if not key.startswith("_")}
    lines = []
    for name, entry in published.items():
        tensors = ",\n".join(f"  {json.dumps(key)}: {json.dumps(shape)}" for key, shape in entry["tensors"].items())
        config = json.dumps(entry["config"], sort_keys=True)
        lines.append(f"{json.dumps(name)}: {{\"config\": {config}, \"tensors\": {{\n{tensors}}}}}")
    (HERE / "published.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
