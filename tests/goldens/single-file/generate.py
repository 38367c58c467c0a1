"""A whole SDXL in one file, as most models are passed around, and the ids of CLIP's own tokenizer.

`sdxl.safetensors` holds the tensors of `pipeline/model` under the names of Stability's code; `published.json` the names and
shapes of the published SDXL so named. The names are put together here, against diffusers' way; the witness is diffusers' own
converter, which must give the folder's tensors back. `tokens.json`: transformers and open_clip with CLIP's vocabulary.
"""

import gzip
import json
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import open_clip.tokenizer
import torch
from common import deterministic, versions, write_json
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

FOLDER = ROOT / "single-file"
MODEL = ROOT / "pipeline" / "model"
PUBLISHED = ROOT.parent.parent / "crates" / "models" / "tests" / "data" / "published.json"

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
LAYERS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def unet_name(key: str, config: dict) -> str:
    """A UNet's key of diffusers in the names of Stability's code."""
    layers = config["layers_per_block"]
    for new, old in LAYERS.items():
        if key.startswith(new + "."):
            return old + key[len(new) :]
    block, *rest = key.split(".")
    if block == "mid_block":
        kind, index, *rest = rest
        where = f"middle_block.{ {'resnets': 2 * int(index), 'attentions': 1}[kind]}"
    else:
        level, kind, index, *rest = rest
        level, index = int(level), int(index)
        if block == "down_blocks":
            n = 1 + level * (layers + 1) + (layers if kind == "downsamplers" else index)
            where = f"input_blocks.{n}.{1 if kind == 'attentions' else 0}"
        else:
            attends = config["up_block_types"][level] == "CrossAttnUpBlock2D"
            n = level * (layers + 1) + (layers if kind == "upsamplers" else index)
            place = {"resnets": 0, "attentions": 1, "upsamplers": 2 if attends else 1}[kind]
            where = f"output_blocks.{n}.{place}"
    if kind == "resnets":
        rest[0] = RESNET[rest[0]]
    if kind == "downsamplers":
        rest[0] = "op"
    return ".".join([where, *rest])


def vae_name(key: str, levels: int) -> str:
    side, *rest = key.split(".")
    if side not in ("encoder", "decoder"):
        return key
    if rest[0] in ("down_blocks", "up_blocks"):
        direction = rest[0].removesuffix("_blocks")
        level = int(rest[1]) if direction == "down" else levels - 1 - int(rest[1])
        if rest[2] == "resnets":
            rest = [direction, str(level), "block", *rest[3:]]
        else:
            rest = [direction, str(level), f"{direction}sample", *rest[4:]]
    elif rest[0] == "mid_block" and rest[1] == "resnets":
        rest = ["mid", f"block_{int(rest[2]) + 1}", *rest[3:]]
    elif rest[0] == "mid_block":
        name = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}[rest[3]]
        rest = ["mid", "attn_1", name, rest[-1]]
    elif rest[0] == "conv_norm_out":
        rest[0] = "norm_out"
    return ".".join([side, *rest]).replace("conv_shortcut", "nin_shortcut")


def open_clip_state(state: dict) -> dict:
    """A text encoder's tensors of transformers in open_clip's names, attention fused and the projection transposed."""
    names = {
        "embeddings.position_embedding.weight": "positional_embedding",
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    }
    layers = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    layers["self_attn.out_proj"] = "attn.out_proj"
    out = {}
    for key, value in state.items():
        key = key.removeprefix("text_model.")
        if key == "text_projection.weight":
            out["text_projection"] = value.T
        elif key in names:
            out[names[key]] = value
        elif "_proj" in key and "out_proj" not in key:
            if ".q_proj." in key:
                kind = key.rsplit(".", 1)[1]
                block = key.split(".")[2]
                parts = [state[f"text_model.{key}".replace("q_proj", p)] for p in ("q_proj", "k_proj", "v_proj")]
                out[f"transformer.resblocks.{block}.attn.in_proj_{kind}"] = torch.cat(parts)
        elif not key.endswith("position_ids"):
            _, _, block, layer = key.split(".", 3)
            name, kind = layer.rsplit(".", 1)
            out[f"transformer.resblocks.{block}.{layers[name]}.{kind}"] = value
    return out


def single_file(unet: dict, config: dict, vae: dict, first: dict, second: dict) -> dict:
    levels = len({key.split(".")[2] for key in vae if key.startswith("decoder.up_blocks.")})
    out = {f"model.diffusion_model.{unet_name(k, config)}": v for k, v in unet.items()}
    for key, value in vae.items():
        matrix = "attentions" in key and value.ndim == 2
        out[f"first_stage_model.{vae_name(key, levels)}"] = value[:, :, None, None] if matrix else value
    out |= {f"conditioner.embedders.0.transformer.{k}": v for k, v in first.items()}
    out |= {f"conditioner.embedders.1.model.{k}": v for k, v in open_clip_state(second).items()}
    # What files hold besides.
    length = first["text_model.embeddings.position_embedding.weight"].shape[0]
    out["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = torch.arange(length)[None]
    out["conditioner.embedders.1.model.logit_scale"] = torch.tensor(4.6055)
    return out


def converted_back(file: dict, unet_config: dict, vae_config: dict, encoder) -> tuple[dict, dict, dict, dict]:
    """What diffusers makes of the file."""
    unet = single_file_utils.convert_ldm_unet_checkpoint(dict(file), unet_config)
    vae = single_file_utils.convert_ldm_vae_checkpoint(dict(file), vae_config)
    first = single_file_utils.convert_ldm_clip_checkpoint(dict(file))
    second = single_file_utils.convert_open_clip_checkpoint(encoder, dict(file), prefix="conditioner.embedders.1.model.")
    first = {k: v for k, v in first.items() if not k.endswith("position_ids")}
    return unet, vae, first, second


def same(ours: dict, theirs: dict, what: str, values: bool = True) -> None:
    assert ours.keys() == theirs.keys(), (what, sorted(ours.keys() ^ theirs.keys())[:5])
    for key in ours:
        assert ours[key].shape == theirs[key].shape, (what, key)
        assert not values or torch.equal(ours[key], theirs[key]), (what, key)


def prefixed(state: dict) -> dict:
    """With the prefix that older versions of transformers write, and files have."""
    has = any(key.startswith("text_model.") for key in state)
    state = {key: value for key, value in state.items() if not key.endswith("position_ids")}
    return state if has else {k if k.startswith("text_projection") else f"text_model.{k}": v for k, v in state.items()}


def small() -> None:
    weights = {
        part: load_file(next((MODEL / part).glob("*.safetensors")))
        for part in ("unet", "vae", "text_encoder", "text_encoder_2")
    }
    configs = {part: json.loads((MODEL / part / "config.json").read_text()) for part in weights}
    first, second = prefixed(weights["text_encoder"]), prefixed(weights["text_encoder_2"])
    file = single_file(weights["unet"], configs["unet"], weights["vae"], first, second)
    # diffusers cuts the fused attention at the projection's width, which is the network's own in SDXL.
    width = configs["text_encoder_2"]["hidden_size"]
    square = dict(file)
    square["conditioner.embedders.1.model.text_projection"] = torch.zeros(width, width)
    encoder = CLIPTextModelWithProjection(CLIPTextConfig(**configs["text_encoder_2"]))
    back = converted_back(square, configs["unet"], configs["vae"], encoder)
    wanted = second | {"text_projection.weight": torch.zeros(width, width)}
    for ours, theirs, what in zip((weights["unet"], weights["vae"], first, wanted), back, weights):
        same(ours, theirs, what)
    file = {key: value.contiguous().clone() for key, value in file.items()}
    save_file(file, FOLDER / "sdxl.safetensors", metadata={"modelspec.title": "pipeline/model in one file"})


def published() -> None:
    data = json.loads(PUBLISHED.read_text())
    state = {
        part: {key: torch.empty(shape, device="meta") for key, shape in data[part]["tensors"].items()}
        for part in ("unet", "vae", "text_encoder", "text_encoder_2")
    }
    first, second = prefixed(state["text_encoder"]), prefixed(state["text_encoder_2"])
    file = single_file(state["unet"], data["unet"]["config"], state["vae"], first, second)
    with torch.device("meta"):
        encoder = CLIPTextModelWithProjection(CLIPTextConfig(**data["text_encoder_2"]["config"]))
    back = converted_back(file, data["unet"]["config"], data["vae"]["config"], encoder)
    for ours, theirs, what in zip((state["unet"], state["vae"], first, second), back, state):
        same(ours, theirs, what, values=False)
    tree = {}
    for key, value in file.items():
        *path, last = key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = list(value.shape)
    (FOLDER / "published.json").write_text(json.dumps(tree, separators=(",", ":")) + "\n")


PROMPTS = [
    "",
    "a portrait of a woman with glasses, oil painting, soft light",
    "A Photo of ASTRONAUT, riding a horse on Mars!!! (masterpiece:1.2), 8k, f/1.8",
    "it's they're you've i'd we'll don't 'S",
    "café naïve façade über straße ñandú — “quotes” … №5",
    "東京の夜 привет мир שלום 안녕하세요 😀👩‍🚀",
    "   spaces\tand\nlines   ",
    "1234567890 3.14159 -42 1e-5 0xff",
    "<|startoftext|> inside <|endoftext|> text",
    "ｆｕｌｌ ｗｉｄｔｈ ﬁ ligature İstanbul ǅ",
    "&amp; <b>html</b> \\ / | _ # @ $ % ^ * ~ ` { } [ ]",
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis",
    "word " * 100,
]


def tokens() -> None:
    path = pathlib.Path(open_clip.tokenizer.default_bpe())
    lines = gzip.open(path).read().decode().split("\n")
    merges = lines[1 : 49152 - 256 - 2 + 1]
    symbols = list(open_clip.tokenizer.bytes_to_unicode().values())
    vocabulary = symbols + [s + "</w>" for s in symbols] + ["".join(m.split()) for m in merges]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    sys.path.insert(1, str(ROOT / "tokenizer"))
    import bpe

    rows = {}
    original = bpe.train
    bpe.train = lambda _: ({token: i for i, token in enumerate(vocabulary)}, [tuple(m.split()) for m in merges])
    try:
        for name, pad in (("end_of_text", bpe.EOS), ("exclamation", "!")):
            with tempfile.TemporaryDirectory() as folder:
                bpe.write(pathlib.Path(folder), pad)
                tokenizer = CLIPTokenizer.from_pretrained(folder)
                for prompt in PROMPTS:
                    ids = tokenizer(prompt, padding="max_length", max_length=77, truncation=True).input_ids
                    rows.setdefault(prompt, {})[name] = ids
    finally:
        bpe.train = original
    agree = 0
    other = open_clip.tokenizer.SimpleTokenizer()
    for prompt, ids in rows.items():
        theirs = other(prompt)[0].tolist()
        text = [i for i in ids["end_of_text"] if i != 49407]
        agree += text == [i for i in theirs if i not in (0, 49407)]
    print(f"open_clip cuts {agree} of {len(rows)} prompts alike")
    # It unescapes HTML, repairs Unicode and takes special tokens for text; plain prompts must agree.
    assert agree >= 9, agree
    cases = [{"prompt": prompt, **ids} for prompt, ids in rows.items()]
    text = json.dumps({"versions": versions(), "cases": cases}, ensure_ascii=False)
    (FOLDER / "tokens.json").write_text(text.replace('{"prompt"', '\n{"prompt"') + "\n")


def main() -> None:
    deterministic()
    small()
    published()
    tokens()


if __name__ == "__main__":
    main()
