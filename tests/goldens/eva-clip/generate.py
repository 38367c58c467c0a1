"""Goldens of the EVA02-CLIP vision tower. Witness: timm's Eva, whose outputs are the ones written."""

import copy
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import torch
from common import deterministic, fresh, half_error, randn, randomise, relative_error, save_case, save_weights
from pulid_reference import EvaClipTower
from timm.models.eva import Eva, checkpoint_filter_fn

SEED = 4000
# name: (sizes, layout of the file, settings the file does not tell, batch)
CASES = {
    # The grid differs from the pretrained one; `visual.` prefix, no rotary tables.
    "scaled-grid": (
        dict(image_size=28, patch=4, width=32, depth=6, heads=2, hidden=44, output_dim=40, pretrained_grid=4),
        dict(prefix=True, rope=False, extra=False),
        dict(heads=2, pretrained_grid=4),
        2,
    ),
    # Two blocks per hidden state, no prefix, grid as pretrained.
    "two-per-scale": (
        dict(image_size=20, patch=4, width=24, depth=12, heads=3, hidden=33, output_dim=24, pretrained_grid=5),
        dict(prefix=False, rope=False, extra=False),
        dict(heads=3, pretrained_grid=5),
        1,
    ),
    # The published layout: heads of 64, a pretrained grid of 16, rotary tables and other towers in the file.
    "published-layout": (
        dict(image_size=42, patch=7, width=64, depth=6, heads=1, hidden=24, output_dim=32, pretrained_grid=16),
        dict(prefix=True, rope=True, extra=True),
        dict(),
        1,
    ),
    # timm's own names, query, key and value in one matrix.
    "timm-names": (
        dict(image_size=20, patch=4, width=32, depth=6, heads=2, hidden=40, output_dim=24, pretrained_grid=4),
        dict(timm="", fused=True),
        dict(heads=2, pretrained_grid=4),
        1,
    ),
    # open_clip's, around timm's as in `eva02_large_patch14_clip_336`.
    "open-clip-names": (
        dict(image_size=20, patch=4, width=32, depth=6, heads=2, hidden=40, output_dim=24, pretrained_grid=4),
        dict(timm="visual.trunk.", fused=False, extra=True),
        dict(heads=2, pretrained_grid=4),
        1,
    ),
}


def timm_tower(sizes: dict, state: dict[str, torch.Tensor], fused: bool = False) -> Eva:
    """timm's writing of the same tower, with the same weights under its own names."""
    grid = sizes["pretrained_grid"]
    model = Eva(
        img_size=sizes["image_size"],
        patch_size=sizes["patch"],
        num_classes=sizes["output_dim"],
        embed_dim=sizes["width"],
        depth=sizes["depth"],
        num_heads=sizes["heads"],
        mlp_ratio=sizes["hidden"] / sizes["width"],
        qkv_fused=fused,
        swiglu_mlp=True,
        scale_mlp=True,
        scale_attn_inner=True,
        use_rot_pos_emb=True,
        ref_feat_shape=(grid, grid),
        global_pool="token",
    )
    state = checkpoint_filter_fn(state, model)
    if fused:
        for block in range(sizes["depth"]):
            parts = [state.pop(f"blocks.{block}.attn.{part}_proj.weight") for part in "qkv"]
            state[f"blocks.{block}.attn.qkv.weight"] = torch.cat(parts)
            for part in "qv":
                state[f"blocks.{block}.attn.{part}_bias"] = state.pop(f"blocks.{block}.attn.{part}_proj.bias")
    model.load_state_dict(state, strict=True)
    return model.eval()


def run(tower: EvaClipTower, image: torch.Tensor) -> dict:
    cls, hidden = tower(image)
    return {"cls": cls, **{f"hidden_{index}": value for index, value in enumerate(hidden)}}


def witness(model: Eva, image: torch.Tensor) -> dict:
    depth = len(model.blocks)
    marks = [depth * k // 6 - 1 for k in range(1, 6)]
    captured = {}
    hooks = [
        model.blocks[mark].register_forward_hook(
            lambda module, args, out, index=index: captured.update({f"hidden_{index}": out})
        )
        for index, mark in enumerate(marks)
    ]
    cls = model(image)
    for hook in hooks:
        hook.remove()
    return {"cls": cls, **captured}


def main() -> None:
    """Writes the cases that are named on the command line, or all of them."""
    deterministic()
    for index, (name, (sizes, layout, settings, batch)) in enumerate(CASES.items()):
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        seed = SEED + 10 * index
        tower = randomise(EvaClipTower(**sizes), seed)
        # Positions must matter in the output, so they are drawn as large as the patches.
        tower.cls_token.copy_(randn(seed + 1, *tower.cls_token.shape).half().float())
        tower.pos_embed.copy_((0.5 * randn(seed + 2, *tower.pos_embed.shape)).half().float())
        image = randn(seed + 3, batch, 3, sizes["image_size"], sizes["image_size"])
        model = timm_tower(sizes, tower.official_state_dict(with_rope=False), layout.get("fused", False))
        outputs = witness(model, image)
        own = run(tower, image)
        worst = max(relative_error(own[key], outputs[key]) for key in outputs)
        assert own.keys() == outputs.keys() and worst < 1e-5, (name, worst)

        if "timm" in layout:
            state = {layout["timm"] + key: value for key, value in model.state_dict().items()}
        else:
            state = tower.official_state_dict(with_rope=layout["rope"])
        if not layout.get("prefix", True):
            state = {key.removeprefix("visual."): value for key, value in state.items()}
        if layout.get("extra"):
            state["logit_scale"] = torch.tensor(4.5)
            state["text.positional_embedding"] = randn(seed + 4, 77, 8).half().float()
        error = half_error(lambda: run(copy.deepcopy(tower).half(), image.half()), outputs)
        folder = fresh("eva-clip", name)
        save_weights(folder / "tower.safetensors", state)
        note = f"The reference module agrees with timm to {worst:.0e}. PyTorch's own f16 run differs by {error:.1e}."
        save_case(
            folder,
            "eva-clip",
            "tower.safetensors",
            outputs,
            inputs={"image": image},
            settings=settings,
            seed=seed,
            note=note,
        )


if __name__ == "__main__":
    main()
