"""Trains a tiny byte-pair vocabulary in the layout of CLIP's `vocab.json` and `merges.txt`."""

import collections
import json
import pathlib

import regex

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
WORD = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE)

CORPUS = """
a portrait of a person, photo of a woman smiling in the garden, a sketch of a man, oil painting of a face,
neon light portrait, comic style, clay figure of a man with glasses, photograph of the woman in the snow,
a smiling person in front of the sea, the portrait was painted in soft light, detailed face, cinematic, color,
it's a man's hat, they're smiling, you've seen the garden, we'll paint the woman, i'd say it isn't a sketch,
a cinematic photo of a person in the forest, night city street, the person's portrait in the studio,
background of mountains, a happy woman, a surprised man, a sad person, the angry man, watercolor painting
café naïve façade über straße ñandú 東京 東京 北京 привет мир 😀 😀
"""


def byte_alphabet() -> list[str]:
    """The 256 printable stand-ins for bytes, in the order of CLIP's vocabulary (index is not the byte)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def byte_symbols() -> dict[int, str]:
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    order = printable + [byte for byte in range(256) if byte not in printable]
    return dict(zip(order, byte_alphabet()))


def train(merges: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Greedy byte-pair merges over `CORPUS`, ties broken by the pair itself; stops when no pair repeats."""
    symbols = byte_symbols()
    words = collections.Counter()
    for word in WORD.findall(CORPUS.lower()):
        letters = [symbols[byte] for byte in word.encode()]
        words[tuple(letters[:-1] + [letters[-1] + WORD_END])] += 1
    learned = []
    while len(learned) < merges:
        pairs = collections.Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += count
        if not pairs:
            break
        best, count = min(pairs.items(), key=lambda item: (-item[1], item[0]))
        if count < 2:
            break
        learned.append(best)
        merged = collections.Counter()
        for word, number in words.items():
            out, index = [], 0
            while index < len(word):
                if word[index : index + 2] == best:
                    out.append("".join(best))
                    index += 2
                else:
                    out.append(word[index])
                    index += 1
            merged[tuple(out)] += number
        words = merged
    alphabet = byte_alphabet()
    tokens = alphabet + [symbol + WORD_END for symbol in alphabet] + ["".join(pair) for pair in learned] + [BOS, EOS]
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}, learned


def write(folder: pathlib.Path, pad: str, merges: int = 300) -> int:
    """Writes a diffusers `tokenizer/` folder and returns the size of its vocabulary."""
    vocab, learned = train(merges)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2"] + [" ".join(pair) for pair in learned]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def special(content: str, normalized: bool = True) -> dict:
        return {
            "__type": "AddedToken",
            "content": content,
            "lstrip": False,
            "normalized": normalized,
            "rstrip": False,
            "single_word": False,
        }

    config = {
        "add_prefix_space": False,
        "bos_token": special(BOS),
        "do_lower_case": True,
        "eos_token": special(EOS),
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": pad,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": special(EOS),
    }
    if pad != EOS:
        # The newer form of the file, which SDXL's second tokenizer has.
        ids = {vocab[pad]: special(pad, normalized=False), vocab[BOS]: special(BOS), vocab[EOS]: special(EOS)}
        for token in ids.values():
            del token["__type"]
            token["special"] = True
        config["added_tokens_decoder"] = {str(key): value for key, value in ids.items()}
        config.update(bos_token=BOS, eos_token=EOS, unk_token=EOS)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    plain = {"bos_token": BOS, "eos_token": EOS, "pad_token": pad, "unk_token": EOS}
    (folder / "special_tokens_map.json").write_text(json.dumps(plain, indent=2) + "\n")
    return len(vocab)
