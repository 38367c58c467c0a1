"""Weights in 8-bit floats as they are published, and what PyTorch says they stand for.

codes.safetensors and codes.pth hold every code of both types; scaled.safetensors holds weights beside their scales under the
names of ComfyUI's files, old and new, and of others. The files named `values` hold the same keys in f32.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import torch
from common import ROOT, deterministic, randn
from safetensors.torch import save_file

SEED = 21000
FOLDER = ROOT / "fp8"


def text(value) -> torch.Tensor:
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def main() -> None:
    deterministic()
    torch.manual_seed(SEED)
    codes = torch.arange(256, dtype=torch.uint8)
    stored = {"e4m3": codes.view(torch.float8_e4m3fn), "e5m2": codes.clone().view(torch.float8_e5m2)}
    save_file(stored, FOLDER / "codes.safetensors")
    torch.save({"state_dict": stored}, FOLDER / "codes.pth")
    save_file({key: value.float() for key, value in stored.items()}, FOLDER / "codes.values.safetensors")

    files, values = {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}, {}

    def layer(name, shape, dtype, scale_name, scale, extra=()):
        weight = randn(SEED + len(values), *shape).mul(3).to(dtype)
        files[f"{name}.weight"] = weight
        files[f"{name}.bias"] = randn(SEED + 100 + len(values), shape[0]).half()
        if scale_name:
            files[f"{name}.{scale_name}"] = scale
        for key, tensor in extra:
            files[f"{name}.{key}"] = tensor
        rows = scale.float().reshape([-1] + [1] * (len(shape) - 1)) if scale.numel() > 1 else scale.float().reshape(())
        values[f"{name}.weight"] = weight.float() * rows
        values[f"{name}.bias"] = files[f"{name}.bias"]

    e4m3, e5m2 = torch.float8_e4m3fn, torch.float8_e5m2
    one = torch.tensor(1.0)
    layer("comfy", (6, 5), e4m3, "scale_weight", torch.tensor(0.0123), [("scale_input", torch.tensor(0.5))])
    layer("comfy_list", (6, 5), e5m2, "scale_weight", torch.tensor([0.37]))
    layer("tensor", (4, 3), e4m3, "weight_scale", torch.tensor(0.7), [("input_scale", torch.tensor(2.0))])
    layer("rows", (5, 7), e4m3, "weight_scale", torch.rand(5) + 0.1)
    layer("columns_of_one", (5, 7), e5m2, "weight_scale", torch.rand(5, 1) + 0.1)
    layer("filters", (5, 2, 3, 3), e4m3, "weight_scale", (torch.rand(5, 1, 1, 1) + 0.1).bfloat16())
    layer("quant", (4, 3), e4m3, "weight_scale", torch.tensor(1.7), [("comfy_quant", text({"format": "float8_e4m3fn"}))])
    layer("plain", (4, 3), e4m3, None, one)
    layer("half", (4, 3), torch.float16, "scale_weight", torch.tensor(3.0))
    save_file(files, FOLDER / "scaled.safetensors")
    torch.save(files, FOLDER / "scaled.pth")
    save_file(values, FOLDER / "scaled.values.safetensors")


if __name__ == "__main__":
    main()
