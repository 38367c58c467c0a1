"""Goldens of PuLID v1's identity encoder. Witness: the reference writing in tools/pulid_reference."""

import copy
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import torch
from common import deterministic, fresh, half_error, randn, randomise, save_case, save_weights
from pulid_reference import IDEncoder

SEED = 5500
SIZES = dict(width=28, context_dim=24, num_token=5, vit_dim=20, hidden_dim=16)
VIT_TOKENS = 17
# name: (batch, `id_adapter.` prefix)
CASES = {"pulid-file": (2, True), "bare-module": (1, False)}


def run(model: IDEncoder, inputs: dict, dtype=torch.float32) -> dict:
    hidden = [inputs[f"hidden_{index}"].to(dtype) for index in range(5)]
    return {"id_embedding": model(inputs["id_cond"].to(dtype), hidden)}


def main() -> None:
    deterministic()
    for index, (name, (batch, prefixed)) in enumerate(CASES.items()):
        seed = SEED + 20 * index
        model = randomise(IDEncoder(**SIZES), seed)
        folder = fresh("id-encoder", name)
        prefix = "id_adapter." if prefixed else ""
        save_weights(folder / "weights.safetensors", {prefix + key: value for key, value in model.state_dict().items()})
        inputs = {"id_cond": randn(seed + 1, batch, SIZES["width"])}
        for scale in range(5):
            inputs[f"hidden_{scale}"] = randn(seed + 2 + scale, batch, VIT_TOKENS, SIZES["vit_dim"])
        outputs = run(model, inputs)
        error = half_error(lambda: run(copy.deepcopy(model).half(), inputs, torch.float16), outputs)
        note = f"Batch {batch}. PyTorch's own f16 run differs by {error:.1e}."
        save_case(folder, "id-encoder", "weights.safetensors", outputs, inputs=inputs, seed=seed, note=note)


if __name__ == "__main__":
    main()
