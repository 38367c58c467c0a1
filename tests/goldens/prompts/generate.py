"""Prompts as diffusers' own StableDiffusionXLPipeline treats them, on the small SDXL of tests/goldens/pipeline/model: absent and empty
negative prompts, guidance that is none, and prompts longer than the text encoders read at once.

diffusers cuts long prompts. Those in chunks are cut here by hand, 75 tokens each, encoded chunk by chunk, joined along the tokens and
handed to the pipeline as `prompt_embeds`; a shorter prompt beside them gets empty chunks, and the pooled embedding is the first chunk's.
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy
import torch
from common import deterministic, fresh, save_tensors, versions, write_json
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

MODEL = ROOT / "pipeline" / "model"
FITS = 75
SHORT = "a portrait of a woman with glasses, oil painting, soft light"
LONG = SHORT + ", " + ", ".join(f"{who} {what}" for what in ("in the garden", "at night", "in the snow", "with a hat", "smiling")
                                for who in ("a man", "a person", "a woman", "a neon city"))
LONG_NEGATIVE = "a sketch, " * 60


def load() -> StableDiffusionXLPipeline:
    pipe = StableDiffusionXLPipeline(
        vae=AutoencoderKL.from_pretrained(MODEL / "vae").float().eval(),
        text_encoder=CLIPTextModel.from_pretrained(MODEL / "text_encoder").float().eval(),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(MODEL / "text_encoder_2").float().eval(),
        tokenizer=CLIPTokenizer.from_pretrained(MODEL / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(MODEL / "tokenizer_2"),
        unet=UNet2DConditionModel.from_pretrained(MODEL / "unet").float().eval(),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing"
        ),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def chunks(tokenizer, text: str) -> list[list[int]]:
    ids = tokenizer(text, add_special_tokens=False, truncation=False).input_ids
    rows = []
    for at in range(0, max(len(ids), 1), FITS):
        row = [tokenizer.bos_token_id, *ids[at : at + FITS], tokenizer.eos_token_id]
        rows.append(row + [tokenizer.pad_token_id] * (FITS + 2 - len(row)))
    return rows


def encode(pipe, texts: list[str]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Hidden states [1, 77 n, D] and pooled [1, P] of each text, n being the longest one's chunks."""
    both = [(pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)]
    most = max(len(chunks(tokenizer, text)) for tokenizer, _ in both for text in texts)
    made = []
    for text in texts:
        hidden, pooled = [], None
        for tokenizer, encoder in both:
            rows = chunks(tokenizer, text)
            rows += chunks(tokenizer, "") * (most - len(rows))
            outputs = [encoder(torch.tensor([row]), output_hidden_states=True) for row in rows]
            hidden.append(torch.cat([out.hidden_states[-2] for out in outputs], dim=1))
            pooled = outputs[0][0]
        made.append((torch.cat(hidden, dim=-1), pooled))
    return made


CASES = {
    "negative-absent": dict(prompt=SHORT, guidance=3.0),
    "negative-empty": dict(prompt=SHORT, negative="", guidance=3.0),
    "guidance-half": dict(prompt=SHORT, negative="not read", guidance=0.5),
    "guidance-zero": dict(prompt=SHORT, guidance=0.0),
    "chunks": dict(prompt=LONG, negative="a sketch", guidance=3.0, chunked=True),
    "chunks-of-the-negative": dict(prompt=SHORT, negative=LONG_NEGATIVE, guidance=3.0, chunked=True),
    "chunks-unguided": dict(prompt=LONG, guidance=1.0, chunked=True),
    "chunks-negative-absent": dict(prompt=LONG, guidance=3.0, chunked=True),
    "cut": dict(prompt=LONG, negative=LONG_NEGATIVE, guidance=3.0, long="cut"),
}


@torch.no_grad()
def main() -> None:
    deterministic()
    pipe = load()
    width, height, steps = 64, 56, 4
    seen = {}
    for name, case in CASES.items():
        prompt, negative, guidance = case["prompt"], case.get("negative"), case["guidance"]
        seed = 60
        noise = torch.randn(1, 4, height // pipe.vae_scale_factor, width // pipe.vae_scale_factor,
                            generator=torch.Generator().manual_seed(seed))
        told = dict(prompt=prompt, negative_prompt=negative)
        if case.get("chunked"):
            texts = [prompt] if negative is None else [prompt, negative]
            encoded = encode(pipe, texts)
            told = dict(prompt_embeds=encoded[0][0], pooled_prompt_embeds=encoded[0][1])
            if negative is not None:
                told |= dict(negative_prompt_embeds=encoded[1][0], negative_pooled_prompt_embeds=encoded[1][1])
        latents = pipe(**told, width=width, height=height, num_inference_steps=steps, guidance_scale=guidance,
                       latents=noise, output_type="latent").images
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
        picture = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        for other, was in seen.items():
            same = {other, name} == {"guidance-half", "guidance-zero"}
            assert ((latents - was).abs().max() < 1e-6) == same, (name, other)
        seen[name] = latents
        assert latents.isfinite().all() and picture.float().std() > 20, name
        folder = fresh("prompts", name)
        save_tensors(folder / "outputs.safetensors", {"latents": latents})
        Image.fromarray(numpy.asarray(picture[0])).save(folder / "picture.png", optimize=True)
        arguments = {"prompt": prompt, "width": width, "height": height, "steps": steps, "guidance": guidance, "seed": seed,
                     "sampler": "euler", "spacing": "trailing"}
        if negative is not None:
            arguments["negative-prompt"] = negative
        if "long" in case:
            arguments["long-prompt"] = case["long"]
        write_json(folder / "case.json", {
            "model": "../../pipeline/model", "adapter": None, "identity": None, "arguments": arguments,
            "outputs": "outputs.safetensors", "picture": "picture.png", "versions": versions(), "note": "",
        })
        print(name, "latents std", float(latents.std()), "picture std", float(picture.float().std()))


if __name__ == "__main__":
    main()
