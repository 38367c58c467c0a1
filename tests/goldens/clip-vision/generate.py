"""Goldens of CLIP's image encoder, a whole tiny CLIP for `pulid evaluate`, and CLIP's preprocessing. Witness: transformers.

The whole CLIP's tokenizer is `../tokenizer/weights`'s. `preprocess.json` holds what transformers' CLIPImageProcessor (its PIL backend)
makes of an image, as 8-bit levels before the normalisation, and the cosines that the whole CLIP gives these images among each other and
with some texts.
"""

import copy
import json
import pathlib
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy
import torch
from common import ROOT, deterministic, fresh, half_error, randn, randomise, save_case, save_weights, write_json
from PIL import Image
from safetensors.numpy import save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

SEED = 3500
TEXTS = ["a photo of a person, smiling, in a garden", "an oil painting of a person", ""]
# name: (config, batch)
ALONE = {
    # Published ones are quick_gelu (OpenAI) and gelu (LAION); 30 pixels are no whole patches of 8.
    "quick-gelu": (
        dict(hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=3, image_size=32, patch_size=8,
             hidden_act="quick_gelu", projection_dim=28),
        2,
    ),
    "gelu-cut-patches": (
        dict(hidden_size=40, intermediate_size=120, num_hidden_layers=2, num_attention_heads=2, image_size=30, patch_size=8,
             hidden_act="gelu", projection_dim=36),
        1,
    ),
}  # fmt: skip


def state_dict(model) -> dict[str, torch.Tensor]:
    """Keys as in the published files, whatever the class calls them, with the buffers that older files hold."""
    state = {}
    for key, value in model.state_dict().items():
        if not key.endswith("position_ids"):
            state[key] = value
    assert any(key.startswith("vision_model.") for key in state), list(state)[:3]
    positions = state["vision_model.embeddings.position_embedding.weight"].shape[0]
    state["vision_model.embeddings.position_ids"] = torch.arange(positions)[None]
    return state


def save(model, folder: pathlib.Path) -> None:
    save_weights(folder / "model.safetensors", state_dict(model))
    config = json.loads(model.config.to_json_string())
    config["architectures"] = [type(model).__name__]
    write_json(folder / "config.json", config)


def run(model, image: torch.Tensor) -> dict:
    out = model(pixel_values=image)
    return {"image_embeds": out.image_embeds, "last_hidden_state": out.last_hidden_state}


def alone() -> None:
    for index, (name, (config, batch)) in enumerate(ALONE.items()):
        seed = SEED + 10 * index
        model = randomise(CLIPVisionModelWithProjection(CLIPVisionConfig(**config)), seed)
        # Alone it is a vector, which `randomise` would take for a bias.
        model.vision_model.embeddings.class_embedding.data = randn(seed + 1, config["hidden_size"]).half().float()
        image = randn(seed + 2, batch, 3, config["image_size"], config["image_size"])
        outputs = run(model, image)
        error = half_error(lambda: run(copy.deepcopy(model).half(), image.half()), outputs)
        save(model, fresh("clip-vision", "weights", name))
        note = f"PyTorch's own f16 run differs by {error:.1e}."
        save_case(fresh("clip-vision", name), "clip-vision", f"../weights/{name}", outputs, inputs={"pixel_values": image},
                  seed=seed, note=note)  # fmt: skip


def whole():
    """A CLIP with both encoders, tokenizer and preprocessor in one folder, as `pulid evaluate --clip` reads it."""
    tokenizer = ROOT / "tokenizer" / "weights" / "clip-l"
    vocabulary = json.loads((tokenizer / "vocab.json").read_text(encoding="utf-8"))
    vision, _ = ALONE["quick-gelu"]
    text = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, projection_dim=28,
                vocab_size=len(vocabulary), max_position_embeddings=77, hidden_act="quick_gelu",
                bos_token_id=vocabulary["<|startoftext|>"], eos_token_id=vocabulary["<|endoftext|>"],
                pad_token_id=vocabulary["<|endoftext|>"])  # fmt: skip
    config = CLIPConfig(text_config=CLIPTextConfig(**text), vision_config=CLIPVisionConfig(**vision), projection_dim=28)
    model = randomise(CLIPModel(config), SEED + 100)
    model.logit_scale.data = torch.tensor(2.5)
    folder = fresh("clip-vision", "weights", "whole")
    save(model, folder)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        if (tokenizer / name).exists():
            shutil.copy(tokenizer / name, folder / name)
    side = vision["image_size"]
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(folder)
    image = randn(SEED + 101, 1, 3, side, side)
    out = model.vision_model(pixel_values=image)
    outputs = {"image_embeds": model.visual_projection(out.pooler_output), "last_hidden_state": out.last_hidden_state}
    save_case(fresh("clip-vision", "whole"), "clip-vision", "../weights/whole", outputs, inputs={"pixel_values": image},
              seed=SEED + 100, note="The image encoder of a whole CLIP, whose projection_dim counts.")  # fmt: skip
    return model, folder


def preprocess(model, clip: pathlib.Path) -> None:
    """Images of all proportions through the processor; edges at full contrast make the filter overshoot."""
    folder = fresh("clip-vision", "preprocess")
    rng = numpy.random.default_rng(SEED)
    tensors, cases = {}, []
    # Pillow 13 takes columns before rows in some images more than twice as high as wide, and older versions do not: none is here.
    # Width, height and side; larger, smaller, wide, tall, and odd numbers of pixels to crop.
    for index, (width, height, side) in enumerate([(97, 64, 32), (50, 97, 32), (24, 19, 32), (64, 64, 32), (33, 32, 32)]):
        blocks = rng.integers(0, 2, (height // 6 + 1, width // 6 + 1, 3)) * 255
        pixels = numpy.kron(blocks, numpy.ones((6, 6, 1), int))[:height, :width]
        noisy = numpy.where(rng.random((height, width, 1)) < 0.5, pixels, rng.integers(0, 256, (height, width, 3)))
        noisy = noisy.astype(numpy.uint8)
        processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        levels = processor(Image.fromarray(noisy), do_normalize=False, do_rescale=False, return_tensors="np")
        normal = processor(Image.fromarray(noisy), return_tensors="np")
        tensors[f"image.{index}"] = noisy
        tensors[f"levels.{index}"] = numpy.ascontiguousarray(levels["pixel_values"][0].transpose(1, 2, 0)).astype(numpy.uint8)
        tensors[f"pixel_values.{index}"] = normal["pixel_values"][0].astype(numpy.float32)
        cases.append(dict(side=side))
    save_file(tensors, folder / "images.safetensors")
    tokens = CLIPTokenizer.from_pretrained(clip)(TEXTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    out = model.text_model(input_ids=tokens["input_ids"])
    words = torch.nn.functional.normalize(model.text_projection(out.pooler_output), dim=-1)
    seen = torch.stack([torch.from_numpy(tensors[f"pixel_values.{i}"]) for i in range(len(cases))])
    seen = model.visual_projection(model.vision_model(pixel_values=seen).pooler_output)
    seen = torch.nn.functional.normalize(seen, dim=-1)
    scores = dict(image_text=(seen @ words.T).tolist(), image_image=(seen @ seen.T).tolist())
    note = "images as 8-bit [H, W, 3], what CLIPImageProcessor makes of them as 8-bit levels and normalised [3, S, S]"
    write_json(folder / "preprocess.json", dict(note=note, cases=cases, texts=TEXTS, **scores))


if __name__ == "__main__":
    deterministic()
    alone()
    preprocess(*whole())
