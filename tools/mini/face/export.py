"""Writes the trained face networks in the formats of the published ones, and compares each file with PyTorch.

    python export.py --work WORK --models models/mini [--only detector recogniser parser tower]
    python export.py --detector OUT/detector.safetensors --models models/mini --only detector        what ../gpu/detector.py trained

`antelopev2/scrfd_10g_bnkps.onnx` and `antelopev2/glintr100.onnx` (f32, weights inside, onnxruntime against PyTorch),
`parsing_bisenet.safetensors` (f16, facexlib's key names, against facexlib's own forward pass on the same weights) and
`eva_clip.safetensors` (f16, the official `visual.` names) with `eva_clip.json`.
"""

import argparse
import json
import pathlib
import sys

import numpy as np
import onnx
import onnxruntime
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from bisenet import BiSeNet  # noqa: E402
from iresnet import IResNet  # noqa: E402
from scrfd import Scrfd  # noqa: E402

ALLOWED = set(
    "Conv BatchNormalization PRelu Relu LeakyRelu Sigmoid Add Sub Mul Div MaxPool AveragePool GlobalAveragePool Gemm MatMul "
    "Flatten Reshape Transpose Concat Resize Upsample Slice Unsqueeze Squeeze Shape Gather Constant Cast Clip Identity "
    "Dropout Softmax".split()
)


def trained(model, path):
    model.load_state_dict(torch.load(path, weights_only=True)["model"])
    return model.eval()


def relative(found, wanted):
    """Largest absolute difference over the standard deviation of what was wanted."""
    return float(np.abs(np.asarray(found) - np.asarray(wanted)).max() / np.asarray(wanted).std())


def to_onnx(model, path, example, outputs, dynamic, trials):
    torch.onnx.export(
        model, example, path, dynamo=False, opset_version=11, input_names=["input.1"], output_names=outputs, dynamic_axes=dynamic
    )
    graph = onnx.load(path)
    # Source lines and module paths of the training code do not belong in a weight file.
    for node in graph.graph.node:
        node.doc_string = ""
    onnx.save(graph, path)
    onnx.checker.check_model(graph, full_check=True)
    others = {node.op_type for node in graph.graph.node} - ALLOWED
    if others:
        raise ValueError(f"{path}: operators outside the list: {sorted(others)}")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for trial in trials:
        with torch.no_grad():
            wanted = model(trial)
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        found = session.run(None, {"input.1": trial.numpy()})
        worst = max([worst] + [relative(f, w) for f, w in zip(found, wanted)])
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, onnxruntime against PyTorch {worst:.1e}")
    if worst > 1e-3:
        raise ValueError(f"{path}: the exported graph differs from the network")


def detector(work, models):
    """`work` is a folder that holds `detector.pt`, or a checkpoint's file."""
    if work.suffix == ".safetensors":
        model, stored = Scrfd(), load_file(work)
        missing = [n for n in model.load_state_dict(stored, strict=False).missing_keys if not n.endswith("num_batches_tracked")]
        if missing:
            raise ValueError(f"{work} is of another network: {missing[:3]} are missing")
        model.eval()
    else:
        model = trained(Scrfd(), work / "detector.pt")
    for head in model.heads:
        head.fold()
    names = [f"{kind}_{stride}" for kind in ("score", "bbox", "kps") for stride in (8, 16, 32)]
    torch.manual_seed(0)
    to_onnx(
        model, models / "antelopev2/scrfd_10g_bnkps.onnx", torch.randn(1, 3, 640, 640), names,
        {"input.1": {2: "height", 3: "width"}, **{name: {0: f"anchors_{name[-2:].strip('_')}"} for name in names}},
        [torch.rand(1, 3, 640, 640) * 2 - 1, torch.rand(1, 3, 320, 448) * 2 - 1],
    )


def recogniser(work, models):
    model = trained(IResNet(), work / "recogniser.pt")
    torch.manual_seed(0)
    to_onnx(
        model, models / "antelopev2/glintr100.onnx", torch.randn(1, 3, 112, 112), ["embedding"],
        {"input.1": {0: "batch"}, "embedding": {0: "batch"}},
        [torch.rand(1, 3, 112, 112) * 2 - 1, torch.rand(3, 3, 112, 112) * 2 - 1],
    )


def parser(work, models):
    model = trained(BiSeNet(), work / "parser.pt")
    path = models / "parsing_bisenet.safetensors"
    tensors = {
        name: tensor.half().contiguous() for name, tensor in model.state_dict().items() if "num_batches_tracked" not in name
    }
    save_file(tensors, path)
    stored = {name: tensor.float() for name, tensor in load_file(path).items()}
    model.load_state_dict(stored, strict=False)
    x = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        wanted = facexlib_twin(stored)(x)[0]
        found = model(x)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, ours against facexlib's module {relative(found, wanted):.1e}")


def facexlib_twin(tensors):
    """facexlib's own BiSeNet with its layers narrowed to the widths of `tensors`, and these weights loaded."""
    from facexlib.parsing.bisenet import BiSeNet as Published

    twin = Published(19)
    for name, module in twin.named_modules():
        weight = tensors.get(f"{name}.weight")
        if weight is None:
            continue
        if isinstance(module, torch.nn.Conv2d):
            module.out_channels, module.in_channels = weight.shape[:2]
            module.weight = torch.nn.Parameter(weight)
        elif isinstance(module, torch.nn.BatchNorm2d):
            module.num_features = len(weight)
            module.weight = torch.nn.Parameter(weight)
            module.bias = torch.nn.Parameter(tensors[f"{name}.bias"])
            module.running_mean = tensors[f"{name}.running_mean"]
            module.running_var = tensors[f"{name}.running_var"]
    missing = set(tensors) ^ {k for k in twin.state_dict() if "num_batches_tracked" not in k}
    if missing:
        raise ValueError(f"key names differ from facexlib's: {sorted(missing)[:5]}")
    return twin.eval()


def tower(work, models):
    from train_tower import GRID, PATCH, SIZE, tower as make

    model = trained(make(), work / "tower.pt")
    path = models / "eva_clip.safetensors"
    tensors = {name: tensor.half().contiguous() for name, tensor in model.official_state_dict(with_rope=False).items()}
    save_file(tensors, path)
    x = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        wanted, hidden = model(x)
        stored = make()
        stored.load_official({name: tensor.float() for name, tensor in load_file(path).items()})
        found, _ = stored.eval()(x)
    config = {
        "image_size": SIZE, "patch_size": PATCH, "width": 192, "layers": 6, "heads": 3, "mlp_hidden": 512, "output_dim": 256,
        "pretrained_grid": GRID,
    }
    (models / "eva_clip.json").write_text(json.dumps(config, indent=2) + "\n")
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, f16 storage against f32 {relative(found, wanted):.1e}")


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--work", type=pathlib.Path, help="folder of checkpoints")
    parse.add_argument("--detector", type=pathlib.Path, metavar="FILE.safetensors", help="the detector's checkpoint, in place of WORK's")
    parse.add_argument("--models", type=pathlib.Path, required=True)
    every = {"detector": detector, "recogniser": recogniser, "parser": parser, "tower": tower}
    parse.add_argument("--only", nargs="+", choices=every, default=list(every))
    args = parse.parse_args()
    if args.work is None and (args.detector is None or set(args.only) != {"detector"}):
        parse.error("--work is needed for all but the detector")
    torch.set_num_threads(1)
    (args.models / "antelopev2").mkdir(parents=True, exist_ok=True)
    for name in args.only:
        every[name](args.detector if name == "detector" and args.detector else args.work, args.models)


if __name__ == "__main__":
    main()
