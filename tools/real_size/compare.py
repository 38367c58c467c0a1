"""Holds the published networks at their real sizes, with random weights, to diffusers, timm and PyTorch.

    cargo xtask random-model sdxl pulid eva DIR
    cargo build --release --package pulid-cli
    python tools/real_size/compare.py DIR [--cases unet vae eva id-former] [--pulid target/release/pulid] [--device NAME]

Each network runs in PyTorch in f32 and then in `pulid run` in every form (f32 activations over the file's f16 weights, f16,
8 bits, 4 bits). Printed: the largest and the root mean square difference over the standard deviation of PyTorch's answer, wall
time with loading, and the process's peak memory, in which on a CPU device everything lies: weights, values, and the file's
pages as far as they were read. Answers are kept in DIR/answers, so that a second run need not compute them again.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))


def unet(folder):
    """One call at 512 x 512 with 32 identity tokens, 20 zero tokens and ortho v2."""
    from diffusers import UNet2DConditionModel
    from pulid_reference import IdSettings, install_id_attention

    inputs = {
        "sample": torch.randn(1, 4, 64, 64),
        "timestep": torch.tensor([601.0]),
        "encoder_hidden_states": torch.randn(1, 77, 2048),
        "text_embeds": torch.randn(1, 1280),
        "time_ids": torch.tensor([[512.0, 512, 0, 0, 512, 512]]),
        "id_embedding": torch.randn(1, 32, 2048),
    }

    def answer():
        model = UNet2DConditionModel.from_pretrained(folder / "sdxl" / "unet", torch_dtype=torch.float32, low_cpu_mem_usage=True)
        layers = install_id_attention(model, IdSettings(id_scale=0.8, num_zero=20, ortho="v2"))
        state = {k: v.float() for k, v in load_file(folder / "pulid_v1.1.safetensors").items()}
        layers.load_state_dict({k.removeprefix("id_adapter_attn_layers."): v for k, v in state.items() if "attn_layers" in k})
        conditions = dict(text_embeds=inputs["text_embeds"], time_ids=inputs["time_ids"])
        sample = model(
            inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"], added_cond_kwargs=conditions,
            cross_attention_kwargs=dict(id_embedding=inputs["id_embedding"], id_scale=0.8), return_dict=False,
        )[0]
        return {"sample": sample}

    command = ["unet", "--weights", folder / "sdxl" / "unet", "--adapter", folder / "pulid_v1.1.safetensors"]
    settings = ["--set", "id_scale=0.8", "--set", "num_zero=20", "--set", "ortho=v2"]
    return inputs, answer, command + settings


def vae(folder, side=128):
    """Decoding to 1024 x 1024."""
    from diffusers import AutoencoderKL

    inputs = {"latent": torch.randn(1, 4, side, side)}

    def answer():
        model = AutoencoderKL.from_pretrained(folder / "sdxl" / "vae", torch_dtype=torch.float32)
        return {"sample": model.decode(inputs["latent"], return_dict=False)[0]}

    return inputs, answer, ["vae-decoder", "--weights", folder / "sdxl" / "vae"]


def eva(folder):
    """The vision tower at 336 x 336."""
    from pulid_reference import EvaClipTower

    file = folder / "EVA02_CLIP_L_336_psz14_s6B.safetensors"
    inputs = {"image": torch.randn(1, 3, 336, 336)}

    def answer():
        model = EvaClipTower()
        model.load_official({k: v.float() for k, v in load_file(file).items()})
        cls, hidden = model.eval()(inputs["image"])
        return {"cls": cls, **{f"hidden_{i}": h for i, h in enumerate(hidden)}}

    return inputs, answer, ["eva-clip", "--weights", file]


def id_former(folder):
    """The identity encoder of v1.1 for one photo."""
    from pulid_reference import IDFormer

    file = folder / "pulid_v1.1.safetensors"
    inputs = {"id_cond": torch.randn(1, 1, 1280), **{f"hidden_{i}": torch.randn(1, 577, 1024) for i in range(5)}}

    def answer():
        state = {k.removeprefix("id_adapter."): v.float() for k, v in load_file(file).items() if k.startswith("id_adapter.")}
        model = IDFormer.from_state_dict(state).eval()
        return {"id_embedding": model(inputs["id_cond"], [inputs[f"hidden_{i}"] for i in range(5)])}

    return inputs, answer, ["id-former", "--weights", file]


CASES = {"unet": unet, "vae": vae, "eva": eva, "id-former": id_former}
FORMS = {"f32": [], "f16": ["--dtype", "f16"], "q8": ["--dtype", "f16", "--quantize", "q8"], "q4": ["--dtype", "f16", "--quantize", "q4"]}


def run(command):
    """Seconds and peak resident bytes of a process."""
    start = time.time()
    # A forked process would begin with this one's peak, so GNU time starts it.
    timed = ["/usr/bin/time", "--format", "%M", *(str(c) for c in command)]
    process = subprocess.run(timed, stderr=subprocess.PIPE, text=True)
    if process.returncode:
        raise SystemExit(f"{command}: {process.stderr}")
    return time.time() - start, int(process.stderr.split()[-1]) * 1024


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("folder", type=Path)
    parse.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parse.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parse.add_argument("--pulid", default=ROOT / "target" / "release" / "pulid")
    parse.add_argument("--device", default="auto")
    args = parse.parse_args()
    folder = args.folder.resolve()
    answers = folder / "answers"
    answers.mkdir(exist_ok=True)
    print("| network | form | largest error | mean square error | seconds | peak memory | weights | values |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for name in args.cases:
        torch.manual_seed(7)
        inputs, answer, command = CASES[name](folder)
        given, wanted = answers / f"{name}-in.safetensors", answers / f"{name}-out.safetensors"
        if not wanted.exists():
            save_file(inputs, given)
            with torch.inference_mode():
                start = time.time()
                save_file({k: v.contiguous() for k, v in answer().items()}, wanted)
                print(f"PyTorch f32, {name}: {time.time() - start:.1f} s", file=sys.stderr)
        want = load_file(wanted)
        for form in args.forms:
            got, plan = answers / "got.safetensors", answers / "plan.txt"
            fixed = ["--inputs", given, "--outputs", got, "--device", args.device, "--autotune", "off", "--dump-plan", plan]
            seconds, peak = run([args.pulid, "run", *command, *fixed, *FORMS[form]])
            have = load_file(got)
            error = max(float((have[k] - want[k]).abs().max() / want[k].std()) for k in want)
            mean = max(float((have[k] - want[k]).square().mean().sqrt() / want[k].std()) for k in want)
            finite = all(bool(have[k].isfinite().all()) for k in want)
            sizes = [int(w) for w in plan.read_text().splitlines()[1].replace(",", "").split() if w.isdigit()][:2]
            weights, values = (f"{s / 1e9:.2f} GB" for s in sizes)
            print(f"| {name} | {form} | {error:.1e}{'' if finite else ' NOT FINITE'} | {mean:.1e} | {seconds:.1f} | {peak / 1e9:.2f} GB | {weights} | {values} |", flush=True)


if __name__ == "__main__":
    main()
