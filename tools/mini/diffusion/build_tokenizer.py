"""Writes tokenizer/ and tokenizer_2/ of the mini family: CLIP's byte-level BPE with a small vocabulary.

The merges make every word of the caption vocabulary one token; all 256 bytes are in the
vocabulary twice (inside and at the end of a word), so any text can be tokenised.

    python build_tokenizer.py [--out models/mini/sdxl]
"""
from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from common import MODELS

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def byte_letters() -> list[str]:
    """The 256 printable stand-ins of bytes in CLIP's order, which begins at '!'."""
    kept = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in kept]
    return [chr(b) for b in kept] + [chr(256 + i) for i in range(len(others))]


def learn_merges(words: Counter) -> list[tuple[str, str]]:
    """Byte-pair merges by falling pair count (ties by spelling) until each word is one symbol."""
    split = {w: [*w[:-1], w[-1] + "</w>"] for w in words}
    merges = []
    while True:
        pairs = Counter()
        for w, symbols in split.items():
            for pair in zip(symbols, symbols[1:]):
                pairs[pair] += words[w]
        if not pairs:
            return merges
        best = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(best)
        for w, symbols in split.items():
            joined, i = [], 0
            while i < len(symbols):
                if i + 1 < len(symbols) and (symbols[i], symbols[i + 1]) == best:
                    joined.append(symbols[i] + symbols[i + 1])
                    i += 2
                else:
                    joined.append(symbols[i])
                    i += 1
            split[w] = joined


def write(folder: Path, vocab: dict[str, int], merges, pad: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    token = lambda text: dict(content=text, lstrip=False, normalized=True, rstrip=False, single_word=False)
    special = dict(bos_token=token("<|startoftext|>"), eos_token=token("<|endoftext|>"), pad_token=pad, unk_token=token("<|endoftext|>"))
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    added = {"!": vocab["!"]} if pad == "!" else {}
    added |= {t: vocab[t] for t in ("<|startoftext|>", "<|endoftext|>")}
    config = dict(
        add_prefix_space=False,
        added_tokens_decoder={str(i): dict(content=t, lstrip=False, normalized=t != "!", rstrip=False, single_word=False, special=True) for t, i in added.items()},
        bos_token="<|startoftext|>", clean_up_tokenization_spaces=True, do_lower_case=True, eos_token="<|endoftext|>",
        errors="replace", model_max_length=77, pad_token=pad, tokenizer_class="CLIPTokenizer", unk_token="<|endoftext|>",
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--out", type=Path, default=MODELS / "sdxl")
    a = a.parse_args()
    from render.vocabulary import vocabulary

    # CLIP splits at letters / digits / other signs, so hyphenated words arrive in parts.
    words = Counter(part for word in vocabulary() for part in word.replace("-", " - ").split())
    letters = byte_letters()
    merges = learn_merges(words)
    symbols = [*letters, *(s + "</w>" for s in letters)]
    for pair in merges:
        joined = "".join(pair)
        if joined not in symbols:
            symbols.append(joined)
    symbols += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {s: i for i, s in enumerate(symbols)}
    write(a.out / "tokenizer", vocab, merges, "<|endoftext|>")
    write(a.out / "tokenizer_2", vocab, merges, "!")
    print(len(words), "words,", len(merges), "merges, vocabulary", len(vocab))


if __name__ == "__main__":
    main()
