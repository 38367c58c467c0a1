"""Trains a small CLIP on renders and their captions, for CLIP-T and CLIP-I of the mini models, which bring none.

    python tools/training/clip.py --renders DIR --out CLIP --minutes 10

Contrastive as CLIP's own (arXiv 2103.00020), transformers' `CLIPModel` from drawn weights, the mini models' tokenizer; the folder is in
transformers' layout, as `pulid evaluate --clip` takes it. It knows the renderer's words and pictures alone: its cosines stand beside each
other, not beside those of a published CLIP. Images of the last tenth of the people are kept out, and what it makes of them is printed."""

import argparse
import json
import pathlib
import shutil
import time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

TOKENIZER = pathlib.Path(__file__).resolve().parents[2] / "models" / "mini" / "sdxl" / "tokenizer"
SIDE, WIDTH = 96, 192


def network(vocabulary: dict) -> CLIPModel:
    size = dict(hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_attention_heads=6, projection_dim=128, hidden_act="quick_gelu")
    end = vocabulary["<|endoftext|>"]
    marks = dict(bos_token_id=vocabulary["<|startoftext|>"], eos_token_id=end, pad_token_id=end)
    text = CLIPTextConfig(**size, num_hidden_layers=2, vocab_size=len(vocabulary), max_position_embeddings=77, **marks)
    vision = CLIPVisionConfig(**size, num_hidden_layers=4, image_size=SIDE, patch_size=12)
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128))


def features(model: CLIPModel, pixels: torch.Tensor, ids: torch.Tensor) -> list[torch.Tensor]:
    seen = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    read = model.text_projection(model.text_model(input_ids=ids).pooler_output)
    return [F.normalize(x, dim=-1) for x in (seen, read)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--renders", type=pathlib.Path, required=True, help="shards of tools/mini/dataset.py")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    torch.manual_seed(11)
    rng = np.random.default_rng(11)
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    shards = sorted(args.renders.glob("shard-*.npz"))
    loaded = [np.load(path) for path in shards]
    images = np.concatenate([shard["images"] for shard in loaded])
    who = np.concatenate([shard["identity"] for shard in loaded])
    captions = [text for path in shards for text in json.loads(path.with_suffix("").with_suffix(".captions.json").read_text())]
    pixels = processor([*images], return_tensors="pt")["pixel_values"]
    ids = tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt")["input_ids"]
    kept_out = np.isin(who, np.unique(who)[-max(1, len(np.unique(who)) // 10) :])
    rows, held = np.flatnonzero(~kept_out), np.flatnonzero(kept_out)
    model = network(json.loads((TOKENIZER / "vocab.json").read_text()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    begun, step = time.time(), 0
    while (part := (time.time() - begun) / (60 * args.minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 50) * (1 - part)
        chosen = torch.from_numpy(rng.choice(rows, min(args.batch, len(rows)), replace=False))
        x = pixels[chosen]
        x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(-1), x)
        seen, read = features(model, x, ids[chosen])
        scores = model.logit_scale.exp() * seen @ read.T
        # Images of one caption are each right for it.
        same = (ids[chosen][:, None] == ids[chosen][None]).all(-1).float()
        wanted = same / same.sum(1, keepdim=True)
        loss = (F.cross_entropy(scores, wanted) + F.cross_entropy(scores.T, wanted)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=np.log(100))
        step += 1
    model.eval()
    with torch.no_grad():
        seen, read = features(model, pixels[held], ids[held])
        first = float(((seen @ read.T).argmax(1) == torch.arange(len(held))).float().mean())
    print(f"{step} steps, loss {float(loss):.3f}; of {len(held)} captions of people kept out the image's own comes first in {first:.2f}")
    part = args.out.with_name(args.out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, part / "model.safetensors", {"format": "pt"})
    (part / "config.json").write_text(model.config.to_json_string())
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(TOKENIZER / name, part / name)
    processor.save_pretrained(part)
    part.rename(args.out)


if __name__ == "__main__":
    main()
