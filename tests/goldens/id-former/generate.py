"""Goldens of PuLID v1.1's IDFormer. Witness: the reference writing in tools/pulid_reference."""

import copy
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import torch
from common import deterministic, fresh, half_error, randn, randomise, save_case, save_weights
from pulid_reference import IDFormer

SEED = 5000
VIT_TOKENS = 17
# name: (sizes, `id_adapter.` prefix as in the published file)
WEIGHTS = {
    # Two layers per scale and two heads of 64, as published but narrower.
    "pulid-file": (
        dict(dim=24, depth=10, heads=2, output_dim=40, ff_mult=2, vit_dim=20, id_dim=28, mapping_dim=16),
        True,
    ),
    "bare": (
        dict(
            dim=32,
            depth=5,
            heads=1,
            num_queries=7,
            num_id_token=3,
            output_dim=24,
            ff_mult=4,
            vit_dim=24,
            id_dim=36,
            mapping_dim=20,
        ),
        False,
    ),
}
# name: (weights, batch, photos, zeros)
CASES = {
    "one-photo": ("pulid-file", 1, 1, False),
    "one-photo-batch-2": ("pulid-file", 2, 1, False),
    "four-photos": ("pulid-file", 1, 4, False),
    "four-photos-batch-2": ("pulid-file", 2, 4, False),
    "unconditional": ("pulid-file", 1, 1, True),
    "bare-module": ("bare", 1, 2, False),
}


def run(model: IDFormer, inputs: dict, dtype=torch.float32) -> dict:
    hidden = [inputs[f"hidden_{index}"].to(dtype) for index in range(5)]
    return {"id_embedding": model(inputs["id_cond"].to(dtype), hidden)}


def main() -> None:
    deterministic()
    models = {}
    for index, (name, (sizes, prefixed)) in enumerate(WEIGHTS.items()):
        model = randomise(IDFormer(**sizes), SEED + index)
        # Parameters that are no weight of a layer: unit queries, an output projection of unit gain.
        model.latents.copy_(randn(SEED + 20 + index, *model.latents.shape).half().float())
        model.proj_out.copy_((randn(SEED + 30 + index, *model.proj_out.shape) * model.dim**-0.5).half().float())
        models[name] = model
        prefix = "id_adapter." if prefixed else ""
        state = {prefix + key: value for key, value in model.state_dict().items()}
        save_weights(fresh("id-former", "weights", name) / "weights.safetensors", state)

    for index, (name, (weights, batch, photos, zeros)) in enumerate(CASES.items()):
        seed = SEED + 100 + 10 * index
        model = models[weights]
        vit_dim, id_dim = model.mapping_0[0].in_features, model.id_embedding_mapping[0].in_features
        inputs = {"id_cond": randn(seed, batch, photos, id_dim)}
        for scale in range(5):
            inputs[f"hidden_{scale}"] = randn(seed + 1 + scale, batch, photos * VIT_TOKENS, vit_dim)
        if zeros:
            inputs = {key: torch.zeros_like(value) for key, value in inputs.items()}
        outputs = run(model, inputs)
        error = half_error(lambda: run(copy.deepcopy(model).half(), inputs, torch.float16), outputs)
        note = f"{photos} photos of {VIT_TOKENS} tokens, batch {batch}. PyTorch's own f16 run differs by {error:.1e}."
        save_case(
            fresh("id-former", name),
            "id-former",
            f"../weights/{weights}/weights.safetensors",
            outputs,
            inputs=inputs,
            seed=seed,
            note=note,
        )


if __name__ == "__main__":
    main()
