"""Goldens of gradients: `models/mini`'s VAE decoder in the latent and its recogniser in the face. Witness: PyTorch's autograd in
float64, over diffusers' AutoencoderKL and over the ONNX file's nodes, whose embedding is held against onnxruntime's."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from common import ROOT, deterministic, fresh, randn, relative_error, save_case
from diffusers import AutoencoderKL
from onnx import numpy_helper

SEED = 9000
MINI = ROOT.parent.parent / "models" / "mini"


def recogniser(model: onnx.ModelProto, x: torch.Tensor) -> torch.Tensor:
    """The last value of a graph of convolutions, stored statistics, PReLU, sums and one product, in x's precision."""
    values = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()).to(x.dtype) for t in model.graph.initializer}
    values[model.graph.input[0].name] = x
    for node in model.graph.node:
        a = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        given = [values[name] for name in node.input]
        if node.op_type == "Conv":
            if a["pads"][:2] != a["pads"][2:] or a["group"] != 1:
                raise ValueError(f"{node.name}: a convolution of another kind")
            y = F.conv2d(*given, stride=a["strides"], padding=a["pads"][:2], dilation=a["dilations"])
        elif node.op_type == "BatchNormalization":
            gain, bias, mean, variance = (v.reshape(1, -1, *[1] * (given[0].ndim - 2)) for v in given[1:])
            y = (given[0] - mean) / torch.sqrt(variance + a["epsilon"]) * gain + bias
        elif node.op_type == "PRelu":
            y = torch.where(given[0] > 0, given[0], given[0] * given[1])
        elif node.op_type == "Add":
            y = given[0] + given[1]
        elif node.op_type == "Flatten":
            y = given[0].flatten(a["axis"])
        elif node.op_type == "Gemm":
            if (a["alpha"], a["beta"], a["transB"]) != (1.0, 1.0, 1):
                raise ValueError(f"{node.name}: a product of another kind")
            y = given[0] @ given[1].T + given[2]
        else:
            raise ValueError(f"{node.name}: {node.op_type} is not known here")
        values[node.output[0]] = y
    return values[model.graph.output[0].name]


def save(name: str, network: str, weights: str, given: str, x: torch.Tensor, output: str, run, seed: int, note: str):
    """Runs, draws an upstream gradient, and writes the case."""
    x = x.double().requires_grad_(True)
    with torch.enable_grad():
        y = run(x)
        upstream = randn(seed + 1, *y.shape)
        y.backward(upstream.double())
    outputs = {output: y.detach().numpy(), f"d.{given}": x.grad.numpy()}
    inputs = {given: x, f"upstream.{output}": upstream}
    save_case(fresh("gradients", name), network, weights, outputs, inputs=inputs, seed=seed, note=note, gradient=True)


def main() -> None:
    deterministic()
    vae = AutoencoderKL.from_pretrained(MINI / "sdxl" / "vae").double().eval().requires_grad_(False)
    save(
        "vae-decoder",
        "vae-decoder",
        "../../../../models/mini/sdxl/vae",
        "latent",
        2.0 * randn(SEED, 1, 4, 6, 5),
        "sample",
        lambda x: vae.decode(x).sample,
        SEED,
        "models/mini's VAE, latent 6x5, float64.",
    )

    path = MINI / "antelopev2" / "glintr100.onnx"
    model = onnx.load(path)
    name = model.graph.input[0].name
    # A smooth picture and some noise, in the recogniser's range.
    face = F.interpolate(randn(SEED + 10, 1, 3, 7, 7), size=112, mode="bicubic") * 0.5 + randn(SEED + 11, 1, 3, 112, 112) * 0.1
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    error = relative_error(recogniser(model, face.double()), session.run(None, {name: face.numpy()})[0])
    if error > 1e-4:
        raise ValueError(f"the nodes' embedding differs from onnxruntime's by {error:.1e}")
    save(
        "recogniser",
        "onnx",
        "../../../../models/mini/antelopev2/glintr100.onnx",
        name,
        face,
        model.graph.output[0].name,
        lambda x: recogniser(model, x),
        SEED + 10,
        f"models/mini's recogniser, float64; the embedding differs from onnxruntime's by {error:.1e}.",
    )


if __name__ == "__main__":
    main()
