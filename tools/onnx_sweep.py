"""Exports torchvision's and timm's convolutional classifiers with random weights and compares `pulid run onnx` with onnxruntime.

One line a network: exporter, opset, nodes, the largest difference over the deviation of onnxruntime's answer, or what went
wrong. A difference above 1e-3 (f16: 3e-2) counts as wrong. Nothing is kept.

  python tools/onnx_sweep.py --pulid target/release/pulid [--device auto] [--dtype f32] [--exporter script|dynamo|both] [NAME ..]

Needs torch, torchvision, timm, onnx, onnxruntime, safetensors, and onnxscript for the dynamo exporter.
"""

import argparse
import contextlib
import logging
import os
import pathlib
import subprocess
import tempfile
import time
import warnings

import numpy
import onnx
import onnxruntime
import timm
import torch
import torchvision
from safetensors.numpy import load_file, save_file

TORCHVISION = """alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 mnasnet0_5 mobilenet_v2
mobilenet_v3_small mobilenet_v3_large regnet_x_400mf regnet_y_400mf resnet18 resnet50 resnext50_32x4d shufflenet_v2_x0_5
squeezenet1_0 squeezenet1_1 vgg11 vgg11_bn wide_resnet50_2""".split()

TIMM = """convnext_atto convnextv2_atto cspdarknet53 cspresnet50 darknet53 densenetblur121d dla34 dm_nfnet_f0 dpn48b
eca_nfnet_l0 ecaresnet26t edgenext_xx_small efficientnet_lite0 efficientvit_b0 ese_vovnet19b_dw fasternet_t0 fbnetc_100
focalnet_tiny_srf gcresnext26ts gernet_s ghostnet_100 ghostnetv2_100 hardcorenas_a hgnet_tiny hgnetv2_b0 hrnet_w18_small
inception_next_atto inception_resnet_v2 inception_v4 lcnet_050 legacy_seresnet18 mixnet_s mobilenetv3_small_050
mobilenetv4_conv_small mobileone_s0 nf_regnet_b1 nf_resnet26 pnasnet5large poolformer_s12 regnety_002 regnetz_005 repghostnet_050
repvgg_a0 repvit_m0_9 res2net50_26w_4s resnest14d resnet26t resnetaa34d resnetblur18 resnetrs50 resnetv2_50
resnetv2_50d_gn resnetv2_50x1_bit resnext26ts rexnet_100 selecsls42b semnasnet_075 seresnet18 skresnet18 starnet_s1
tf_efficientnet_b0 tf_efficientnetv2_b0 tf_mixnet_s tf_mobilenetv3_small_075 tinynet_e tresnet_m vovnet39a wide_resnet50_2
xception41 mobilevit_xxs mobilevitv2_050 lambda_resnet26t botnet26t_256""".split()

SIZES = {"inception_v3": 96, "inception_v4": 96, "inception_resnet_v2": 96, "pnasnet5large": 96, "botnet26t_256": 256,
         "lambda_resnet26t": 256, "alexnet": 224, "vgg11": 224, "vgg11_bn": 224}


def network(name: str) -> torch.nn.Module:
    if name.startswith("tv:"):
        model = torchvision.models.get_model(name[3:], weights=None, num_classes=16)
    else:
        model = timm.create_model(name, pretrained=False, num_classes=16)
    # Nothing may vanish or be the same everywhere: parameters and statistics that start so are drawn anew.
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.numel() > 1 and float(tensor.std()) == 0:
                start = 1.0 if float(tensor.flatten()[0]) > 0.01 else 0.0
                tensor.copy_(start + 0.1 * torch.randn_like(tensor))
        for module in model.modules():
            if getattr(module, "running_var", None) is not None:
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def export(model: torch.nn.Module, x: torch.Tensor, path: pathlib.Path, dynamo: bool, opset: int) -> None:
    # Both exporters print whole graphs where they fail.
    with torch.no_grad(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        if dynamo:
            torch.onnx.export(model, (x,), str(path), dynamo=True, opset_version=opset, verbose=False, external_data=False)
        else:
            torch.onnx.export(model, x, str(path), dynamo=False, opset_version=opset)


def run(args, name: str, dynamo: bool, opset: int, folder: pathlib.Path) -> str:
    torch.manual_seed(sum(name.encode()))
    x = torch.randn(1, 3, SIZES.get(name.removeprefix("tv:"), 64), SIZES.get(name.removeprefix("tv:"), 64))
    files = [folder / part for part in ("model.onnx", "in.safetensors", "out.safetensors")]
    try:
        export(network(name), x, files[0], dynamo, opset)
    except Exception as error:
        return "not exported: " + " ".join(str(error).split())[:60]
    model = onnx.load(files[0])
    session = onnxruntime.InferenceSession(str(files[0]), providers=["CPUExecutionProvider"])
    key = session.get_inputs()[0].name
    expected = session.run(None, {key: x.numpy()})[0]
    save_file({key: x.numpy()}, files[1])
    command = [args.pulid, "run", "onnx", "--weights", files[0], "--inputs", files[1], "--outputs", files[2]]
    start = time.time()
    done = subprocess.run([*command, "--device", args.device, "--dtype", args.dtype, "--autotune", "off"], capture_output=True, text=True)
    seconds = time.time() - start
    used = " ".join(sorted({node.op_type for node in model.graph.node}))
    if done.returncode:
        return f"WRONG {' '.join(done.stderr.split())[-300:]} [{used}]"
    got = load_file(files[2])[session.get_outputs()[0].name]
    difference = float(numpy.abs(got - expected).max() / expected.std())
    limit = 1e-3 if args.dtype == "f32" else 3e-2
    verdict = "ok   " if difference <= limit else "WRONG"
    return f"{verdict} {difference:.1e} {len(model.graph.node):5} nodes {seconds:5.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help="timm's names; torchvision's after `tv:`")
    parser.add_argument("--pulid", required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="f32")
    parser.add_argument("--exporter", default="both", choices=("script", "dynamo", "both"))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    onnxruntime.set_default_logger_severity(4)
    names = args.names or [f"tv:{name}" for name in TORCHVISION] + TIMM
    exporters = {"script": [False], "dynamo": [True], "both": [False, True]}[args.exporter]
    good = total = 0
    for index, name in enumerate(names):
        for dynamo in exporters:
            # The old exporter ends at 20; the new one starts at 18.
            opset = 18 + index % 3 if dynamo else 11 + index % 10
            with tempfile.TemporaryDirectory() as folder:
                result = run(args, name, dynamo, opset, pathlib.Path(folder))
            if not result.startswith("not exported"):
                total += 1
                good += result.startswith("ok")
            print(f"{name:28} {'dynamo' if dynamo else 'script'} {opset} {result}", flush=True)
    print(f"{good} of {total} agree")


if __name__ == "__main__":
    main()
