"""Whole pictures of the mini models in models/mini: trained weights, the defaults that the program takes for them.

Witness: diffusers, transformers and tools/pulid_reference/pipeline.py, with the identity of tests/goldens/identity, which is
written first. To be written anew whenever the models change.
"""

import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common import deterministic, fresh, save_tensors, versions, write_json
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from pulid_reference import IdSettings, install_id_attention
from pulid_reference.id_attention import load_adapter_layers
from pulid_reference.pipeline import Request, TextEncoders, generate
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

MODELS = ROOT.parents[1] / "models" / "mini"
SDXL = MODELS / "sdxl"
RELATIVE = "../../../../models/mini"
CASES = {
    "somebody": ("an oil painting of a person, at the beach, warm light", 5, False),
    "person": ("a photo of a person, smiling, in a garden", 6, True),
}


def main() -> None:
    deterministic()
    text = TextEncoders(
        [CLIPTokenizer.from_pretrained(SDXL / name) for name in ("tokenizer", "tokenizer_2")],
        [
            CLIPTextModel.from_pretrained(SDXL / "text_encoder").float().eval(),
            CLIPTextModelWithProjection.from_pretrained(SDXL / "text_encoder_2").float().eval(),
        ],
    )
    vae = AutoencoderKL.from_pretrained(SDXL / "vae").float().eval()
    defaults = json.loads((MODELS / "generation_defaults.json").read_text())
    identity = load_file(ROOT / "identity" / "one-photo" / "outputs.safetensors")
    adapter = {key: value.float() for key, value in load_file(MODELS / "pulid_v1.1.safetensors").items()}
    for name, (prompt, seed, with_identity) in CASES.items():
        unet = UNet2DConditionModel.from_pretrained(SDXL / "unet").float().eval()
        request = Request(
            prompt,
            defaults["negative_prompt"],
            defaults["width"],
            defaults["height"],
            defaults["steps"],
            defaults["guidance_scale"],
            seed,
            defaults["sampler"],
            defaults["spacing"],
            defaults["id_scale"],
        )
        if with_identity:
            settings = IdSettings(num_zero=defaults["num_zero"], ortho=defaults["ortho"], id_scale=defaults["id_scale"])
            install_id_attention(unet, settings, id_dim=identity["id_embedding"].shape[-1])
            load_adapter_layers(unet, {k: v for k, v in adapter.items() if k.startswith("id_adapter_attn_layers.")})
            request.id_embedding, request.uncond_id_embedding = identity["id_embedding"], identity["uncond_id_embedding"]
        out = generate(unet, vae, text, request)
        folder = fresh("mini", name)
        save_tensors(folder / "outputs.safetensors", {"latents": out["latents"]})
        Image.fromarray(out["picture"][0].numpy()).save(folder / "picture.png", optimize=True)
        write_json(
            folder / "case.json",
            {
                "model": f"{RELATIVE}/sdxl",
                "adapter": f"{RELATIVE}/pulid_v1.1.safetensors" if with_identity else None,
                "identity": "../../identity/one-photo/outputs.safetensors" if with_identity else None,
                "arguments": {"prompt": prompt, "seed": seed},
                "outputs": "outputs.safetensors",
                "picture": "picture.png",
                "versions": versions(),
                "note": "everything else by models/mini/generation_defaults.json",
            },
        )
        print(name, "latents std", float(out["latents"].std()), "picture std", float(out["picture"].float().std()))


if __name__ == "__main__":
    main()
