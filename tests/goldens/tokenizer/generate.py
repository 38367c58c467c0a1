"""Goldens of the CLIP tokenizer. Witness: transformers' CLIPTokenizer, checked against open_clip's."""

import gzip
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import bpe
import torch
from common import deterministic, fresh, save_case
from open_clip.tokenizer import SimpleTokenizer
from transformers import CLIPTokenizer

SEED = 0
LENGTH = 77
# SDXL's first tokenizer pads with the end token, its second with "!", which has id 0.
PADS = {"clip-l": bpe.EOS, "bigg": "!"}

TEXTS = {
    "plain": "a photo of a smiling woman in the garden",
    "empty": "",
    "capitals": "Portrait, COLOR, Cinematic, In Garden, Soft Light, Detailed Face",
    "contractions": "It's the man's hat; they're smiling, we've won, I'll paint, you'd, I'm, isn't",
    "digits": "portrait of 2 men, 1024x1152, 35mm f/1.4, 1999",
    "punctuation": 'oil painting (masterpiece:1.4), [sketch] -- "neon"!!! ... #face @home 50% & more_',
    "whitespace": "  a   sketch\tof\n\na   man  ",
    "accents": "Café, naïve façade; Über Straße, ñandú",
    "scripts": "東京の女性 привет мир ภาษาไทย عربى",
    "emoji": "a happy person 😀👩‍🎨 ♥",
    "unseen-bytes": "ꙮ ∀x∈ℝ ½ ²",
    "long": "a portrait of a person in the garden with soft light, " * 12,
    "long-one-word": "smilingportrait" * 40,
    "exactly-full": "man " * 75,
    "one-too-many": "man " * 76,
    "special-in-text": "a photo <|endoftext|> of a man",
    "decomposed": "cafe\u0301 u\u0308ber",
}
# open_clip takes special tokens in a prompt for text. transformers splits them out wherever they stand, and for the
# second tokenizer "!" is one: it becomes id 0, never "!</w>".
SPECIAL_IN_TEXT = {("special-in-text", "clip-l"), ("punctuation", "bigg")}


def open_clip_ids(tokenizer: SimpleTokenizer, text: str, pad: int) -> list[int]:
    row = tokenizer([text], context_length=LENGTH)[0].tolist()
    end = row.index(tokenizer.eot_token_id)
    return row[: end + 1] + [pad] * (LENGTH - end - 1)


def main() -> None:
    deterministic()
    for variant, pad in PADS.items():
        folder = fresh("tokenizer", "weights", variant)
        bpe.write(folder, pad)
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        with tempfile.TemporaryDirectory() as scratch:
            packed = pathlib.Path(scratch) / "merges.txt.gz"
            packed.write_bytes(gzip.compress((folder / "merges.txt").read_text().rstrip("\n").encode()))
            other = SimpleTokenizer(bpe_path=str(packed))
        for name, text in TEXTS.items():
            if variant != "clip-l" and name not in ("plain", "empty", "long", "punctuation"):
                continue
            ids = tokenizer(
                text, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
            ).input_ids
            assert ids.shape == (1, LENGTH)
            pad_id = tokenizer.convert_tokens_to_ids(pad)
            note = f"{variant}: {name}."
            if (name, variant) in SPECIAL_IN_TEXT:
                note += " Special tokens inside the text are split out."
            if (name, variant) not in SPECIAL_IN_TEXT:
                second = open_clip_ids(other, text, pad_id)
                assert second == ids[0].tolist(), (name, tokenizer.convert_ids_to_tokens(ids[0]), second)
                note += " open_clip's tokenizer gives the same."
            case = fresh("tokenizer", name if variant == "clip-l" else f"{name}-{variant}")
            save_case(
                case,
                "tokenizer",
                f"../weights/{variant}",
                {"input_ids": ids.to(torch.int64)},
                settings={"text": text},
                seed=SEED,
                note=note,
            )


if __name__ == "__main__":
    main()
