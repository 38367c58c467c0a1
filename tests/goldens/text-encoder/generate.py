"""Goldens of the two CLIP text encoders. Witness: transformers."""

import copy
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import torch
from common import deterministic, fresh, generator, half_error, randomise, save_case, save_weights, write_json
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

SEED = 3000
VOCAB = 128
BOS, EOS = VOCAB - 2, VOCAB - 1
PREFIX = "text_model."

SHARED = dict(vocab_size=VOCAB, max_position_embeddings=77, bos_token_id=BOS, pad_token_id=1)
# name: (class, config). The published text_encoder says eos_token_id 2, which transformers reads as "the position
# of the largest id"; the real id means "the first position of that id".
CONFIGS = {
    "quick-gelu": (
        CLIPTextModel,
        dict(
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=3,
            hidden_act="quick_gelu",
            eos_token_id=2,
            projection_dim=48,
        ),
    ),
    "gelu-projected": (
        CLIPTextModelWithProjection,
        dict(
            hidden_size=40,
            intermediate_size=120,
            num_hidden_layers=4,
            num_attention_heads=2,
            hidden_act="gelu",
            eos_token_id=2,
            projection_dim=28,
        ),
    ),
    "real-eos": (
        CLIPTextModelWithProjection,
        dict(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            hidden_act="gelu",
            eos_token_id=EOS - 5,
            projection_dim=36,
        ),
    ),
}


def published_state_dict(model) -> dict[str, torch.Tensor]:
    """Keys as in the published files, `text_model.*` and `text_projection.weight`, whatever the class calls them."""
    state = {}
    for key, value in model.state_dict().items():
        if key.endswith("position_ids"):
            continue
        state[key if key.startswith((PREFIX, "text_projection")) else PREFIX + key] = value
    # Older files hold this buffer; a loader has to pass over it.
    state[PREFIX + "embeddings.position_ids"] = torch.arange(77)[None]
    return state


def save_encoder(model, folder: pathlib.Path, half: bool = True) -> None:
    """A diffusers `text_encoder/` folder with the published file layout and key names."""
    save_weights(folder / "model.safetensors", published_state_dict(model), half=half)
    config = json.loads(model.config.to_json_string())
    config["architectures"] = [type(model).__name__]
    config["torch_dtype"] = "float16" if half else "float32"
    write_json(folder / "config.json", config)


def encode(model, inputs: dict) -> dict:
    out = model(inputs["input_ids"], output_hidden_states=True)
    pooled = out.text_embeds if "text_embeds" in out else out.pooler_output
    return {"hidden_states": out.hidden_states[-2], "pooled": pooled}


def prompts(seed: int, lengths: list[int], eos: int, pad: int) -> torch.Tensor:
    """Token rows [len(lengths), 77]: start, `length` words, end, padding."""
    g = generator(seed)
    rows = torch.full((len(lengths), 77), pad, dtype=torch.int64)
    for row, length in zip(rows, lengths):
        row[0] = BOS
        row[1 : 1 + length] = torch.randint(2, EOS - 5, (length,), generator=g)
        row[1 + length] = eos
    return rows


def main() -> None:
    deterministic()
    models = {}
    for index, (name, (kind, config)) in enumerate(CONFIGS.items()):
        models[name] = randomise(kind(CLIPTextConfig(**SHARED, **config)), SEED + index)
        save_encoder(models[name], fresh("text-encoder", "weights", name))

    # name: (weights, token rows)
    cases = {
        "quick-gelu": ("quick-gelu", prompts(SEED + 100, [12, 75], EOS, pad=EOS)),
        "quick-gelu-empty": ("quick-gelu", prompts(SEED + 101, [0], EOS, pad=EOS)),
        "gelu-projected": ("gelu-projected", prompts(SEED + 102, [20, 1, 60], EOS, pad=0)),
        # The end token is not the largest id of the row, and it repeats as padding.
        "real-eos": ("real-eos", prompts(SEED + 103, [9, 40], EOS - 5, pad=EOS - 5)),
        "real-eos-larger-pad": ("real-eos", prompts(SEED + 104, [5], EOS - 5, pad=EOS)),
    }
    for index, (name, (weights, ids)) in enumerate(cases.items()):
        model, inputs = models[weights], {"input_ids": ids}
        outputs = encode(model, inputs)
        error = half_error(lambda: encode(copy.deepcopy(model).half(), inputs), outputs)
        note = f"{weights} weights, {len(ids)} rows. PyTorch's own f16 run differs by {error:.1e}."
        save_case(
            fresh("text-encoder", name),
            "text-encoder",
            f"../weights/{weights}",
            outputs,
            inputs=inputs,
            seed=SEED + 100 + index,
            note=note,
        )


if __name__ == "__main__":
    main()
