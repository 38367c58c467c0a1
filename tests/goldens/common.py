"""What the golden generators share: seeded weights, file layout, and checks that a golden can fail a wrong network."""

import importlib.metadata
import json
import pathlib
import shutil
import sys

import numpy
import torch
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file as save_torch

ROOT = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent.parent / "tools"))

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "tokenizers",
    "timm",
    "onnx",
    "onnxruntime",
    "opencv-python-headless",
    "scikit-image",
    "facexlib",
    "open_clip_torch",
    "safetensors",
    "numpy",
)

# A reference output this flat would accept almost any answer.
MIN_STD = 1e-2


def versions() -> dict[str, str]:
    """Versions of every package that takes part in a golden."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def deterministic() -> None:
    """A fixed number of threads, so that a second run writes nearly the same bytes; no gradients."""
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(seed: int, *shape: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed)) * scale


def randomise(module: torch.nn.Module, seed: int, gain: float = 1.0, half: bool = True) -> torch.nn.Module:
    """Draws every parameter anew, so that none is trivially 0 or 1, and keeps activations near unit scale.

    With `half` the values are rounded to float16, so the file may store them in that type without loss.
    """
    g = generator(seed)
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, torch.nn.Embedding)}
    for name, parameter in module.named_parameters():
        draw = torch.randn(parameter.shape, generator=g)
        if parameter.ndim <= 1:
            value = 1.0 + 0.2 * draw if name.endswith("weight") else 0.15 * draw
        elif id(parameter) in embeddings:
            value = 0.5 * draw
        else:
            value = draw * gain / parameter[0].numel() ** 0.5
        parameter.data.copy_(value.half().float() if half else value)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.2 * torch.randn(buffer.shape, generator=g))
        elif name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=g))
    return module.eval()


def narrow(network: torch.nn.Module, divisor: int, kept: tuple[int, ...] = (3,)) -> torch.nn.Module:
    """Exchanges every convolution and batch norm for one of 1/`divisor` the channels; numbers in `kept` stay."""

    def width(channels: int) -> int:
        return channels if channels in kept else channels // divisor

    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, torch.nn.Conv2d):
                exchanged = torch.nn.Conv2d(
                    width(layer.in_channels),
                    width(layer.out_channels),
                    layer.kernel_size,
                    layer.stride,
                    layer.padding,
                    bias=layer.bias is not None,
                )
            elif isinstance(layer, torch.nn.BatchNorm2d):
                exchanged = torch.nn.BatchNorm2d(width(layer.num_features), eps=layer.eps, momentum=layer.momentum)
            else:
                continue
            setattr(parent, name, exchanged)
    return network


def fresh(*parts: str) -> pathlib.Path:
    """An empty folder below tests/goldens."""
    folder = ROOT.joinpath(*parts)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def relative_error(value, reference) -> float:
    """max |a - b| / std(reference), the measure of the golden tests."""
    value, reference = (numpy.asarray(x, dtype=numpy.float64) for x in (value, reference))
    return float(numpy.abs(value - reference).max() / reference.std())


def save_tensors(path: pathlib.Path, tensors: dict) -> None:
    """Writes torch or numpy tensors; floating point ones as float32."""
    out = {}
    for name, tensor in tensors.items():
        array = tensor.detach().cpu().numpy() if isinstance(tensor, torch.Tensor) else numpy.asarray(tensor)
        if array.dtype.kind == "f":
            array = array.astype(numpy.float32)
        out[name] = numpy.ascontiguousarray(array)
    save_numpy(out, path)


def save_weights(path: pathlib.Path, state: dict[str, torch.Tensor], half: bool = True) -> None:
    """Writes a state dict, in float16 unless `half` is false; the weights must be rounded already.

    Rotary tables are no weights and stay float32.
    """
    tensors = {}
    for key, value in state.items():
        if half and value.is_floating_point() and "freqs" not in key:
            if not torch.equal(value.half().float(), value):
                raise ValueError(f"{key} does not survive float16, so the file would not be what was run")
            value = value.half()
        tensors[key] = value.contiguous().clone()
    save_torch(tensors, path, metadata={"format": "pt"})


def check_outputs(name: str, outputs: dict) -> None:
    """Refuses outputs that are not finite or nearly constant."""
    for key, tensor in outputs.items():
        array = numpy.asarray(tensor.detach() if isinstance(tensor, torch.Tensor) else tensor)
        if array.dtype.kind != "f":
            continue
        if not numpy.isfinite(array).all():
            raise ValueError(f"{name}: output {key} is not finite")
        if array.size > 1 and array.std() < MIN_STD:
            raise ValueError(f"{name}: output {key} has a standard deviation of {array.std():.2e}")


def half_error(run, outputs: dict) -> float:
    """Largest relative error of `run()`, PyTorch's own half precision run, against `outputs`."""
    half = run()
    return max(relative_error(half[key].float(), outputs[key]) for key in outputs)


def save_case(
    folder: pathlib.Path,
    network: str,
    weights: str,
    outputs: dict,
    *,
    inputs: dict | None = None,
    adapter: str | None = None,
    settings: dict | None = None,
    gradient: bool = False,
    seed: int,
    note: str,
) -> None:
    """Writes inputs, outputs and golden.json of one case; paths in it are relative to `folder`."""
    check_outputs(f"{network}/{folder.name}", outputs)
    save_tensors(folder / "inputs.safetensors", inputs or {})
    save_tensors(folder / "outputs.safetensors", outputs)
    golden = {
        "network": network,
        "weights": weights,
        "adapter": adapter,
        "set": settings or {},
        "inputs": "inputs.safetensors",
        "outputs": "outputs.safetensors",
        "seed": seed,
        "versions": versions(),
        "note": note,
    }
    if gradient:
        golden["gradient"] = True
    write_json(folder / "golden.json", golden)
    stds = {k: round(float(numpy.asarray(v).std()), 4) for k, v in outputs.items()}
    print(f"{folder.relative_to(ROOT)}: std {stds}; {note}")


def write_json(path: pathlib.Path, value) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
