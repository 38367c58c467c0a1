"""PuLID v1.1's text-to-image loop around diffusers' and transformers' networks.

As in the official pipeline: latents are drawn on the CPU in float32, both guidance passes are conditioned by a text
(the empty one too is encoded), identity enters both passes, the model input is `x / sqrt(sigma^2 + 1)`, and the
timestep is the integer whose noise level is nearest.
"""

from dataclasses import dataclass, field

import torch

from . import samplers


@dataclass
class TextEncoders:
    """SDXL's two tokenizers and text encoders; the second has a projection."""

    tokenizers: list
    encoders: list
    length: int = 77

    def encode(self, text: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Text to (hidden states [1, 77, sum of widths], pooled [1, projection])."""
        hidden, pooled = [], None
        for tokenizer, encoder in zip(self.tokenizers, self.encoders):
            ids = tokenizer(
                text, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
            ).input_ids
            out = encoder(ids, output_hidden_states=True)
            hidden.append(out.hidden_states[-2])
            pooled = out.text_embeds if "text_embeds" in out else out.pooler_output
        return torch.cat(hidden, dim=-1), pooled


@dataclass
class Request:
    """What `generate` needs beside the networks; sizes in pixels."""

    prompt: str
    negative_prompt: str = ""
    width: int = 64
    height: int = 64
    steps: int = 4
    guidance: float = 2.0
    seed: int = 0
    sampler: str = "dpmpp_2m"
    spacing: str = "karras"
    id_scale: float = 1.0
    id_embedding: torch.Tensor | None = field(default=None, repr=False)
    uncond_id_embedding: torch.Tensor | None = field(default=None, repr=False)
    id_start: float = 0.0
    id_end: float = 1.0
    batch: int = 1


@torch.no_grad()
def generate(unet, vae, text: TextEncoders, request: Request) -> dict[str, torch.Tensor]:
    """Returns `latents` as the sampler leaves them and `picture`, uint8 [B, H, W, 3]. `unet` holds the adapter.

    Identity takes part in step i of n where id_start <= i / n < id_end.
    """
    dtype = unet.dtype
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    sigmas = samplers.karras_sigmas(request.steps)
    if request.spacing == "trailing":
        sigmas = samplers.trailing_sigmas(request.steps)
    shape = (request.batch, 4, request.height // factor, request.width // factor)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(request.seed))
    sigmas, noise = sigmas.to(dtype), noise.to(dtype)
    start = noise * sigmas[0]
    if request.spacing == "trailing":
        # diffusers starts trailing schedules from unit variance, noise alone being taken for the noised picture.
        start = noise * (sigmas[0] ** 2 + 1) ** 0.5

    size = [request.height, request.width]
    rows = lambda tensor: tensor.to(dtype).repeat(request.batch, *[1] * (tensor.dim() - 1))
    time_ids = rows(torch.tensor([[*size, 0, 0, *size]]))
    passes = []
    for prompt, identity in (
        (request.prompt, request.id_embedding),
        (request.negative_prompt, request.uncond_id_embedding),
    ):
        hidden, pooled = text.encode(prompt)
        arguments = {
            "encoder_hidden_states": rows(hidden),
            "added_cond_kwargs": {"text_embeds": rows(pooled), "time_ids": time_ids},
        }
        if identity is not None:
            arguments["cross_attention_kwargs"] = {"id_embedding": rows(identity)}
        passes.append(arguments)

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        scaled = x / (sigma**2 + 1) ** 0.5
        timestep = samplers.nearest_timestep(sigma.float().reshape(1))
        step = int((sigmas >= sigma).sum()) - 1
        taking_part = request.id_start <= step / request.steps < request.id_end
        for arguments in passes:
            if "cross_attention_kwargs" in arguments:
                arguments["cross_attention_kwargs"]["id_scale"] = request.id_scale if taking_part else 0.0
        with_text, without = (unet(scaled, timestep, return_dict=False, **arguments)[0] for arguments in passes)
        return x - sigma * (without + request.guidance * (with_text - without))

    latents = start
    for latents in getattr(samplers, request.sampler)(denoise, start, sigmas):
        pass
    decoded = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
    picture = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return {"latents": latents, "decoded": decoded, "picture": picture}
