"""The small tokenizers as transformers 5 saves them, tokenizer.json and tokenizer_config.json alone, and what it reads with them."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import torch
from common import ROOT, deterministic, fresh, save_case
from transformers import CLIPTokenizer

TEXTS = {
    "plain": "a photo of a smiling woman in the garden",
    "punctuation": 'oil painting (masterpiece:1.4), [sketch] -- "neon"!!! ... #face @home 50% & more_',
    "special-in-text": "a photo <|endoftext|> of a man!",
    "long": "a portrait of a person in the garden with soft light, " * 12,
}


def main() -> None:
    deterministic()
    for variant in ("clip-l", "bigg"):
        folder = fresh("tokenizer", "weights", f"saved-{variant}")
        CLIPTokenizer.from_pretrained(ROOT / "tokenizer" / "weights" / variant).save_pretrained(folder)
        assert sorted(path.name for path in folder.iterdir()) == ["tokenizer.json", "tokenizer_config.json"], list(folder.iterdir())
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        for name, text in TEXTS.items():
            ids = tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
            case = fresh("tokenizer", f"saved-{name}-{variant}")
            save_case(
                case,
                "tokenizer",
                f"../weights/saved-{variant}",
                {"input_ids": ids.to(torch.int64)},
                settings={"text": text},
                seed=0,
                note=f"{variant} from tokenizer.json: {name}.",
            )


if __name__ == "__main__":
    main()
