"""Writes `judge.onnx`: the mini models' second recogniser (`tools/mini/face/second_recogniser.py`), which no training of another network saw,
as `pulid evaluate --recogniser` takes one: an ArcFace crop [1, 3, 112, 112] of -1 to 1.

    python tools/training/judge.py --weights judge.safetensors --renders DIR --held DIR

The network was trained on a wider crop, facexlib's at 96 pixels. Of that the ArcFace crop shows the middle 75 x 75; the rest is filled with
the crop's border colour, so it sees less than it was made for. What all such faces share is taken away: the mean over `--renders`, shards of
`tools/mini/dataset.py` of people whom nobody is judged on. Prints how well it tells people of `--held` apart."""

import argparse
import pathlib
import sys

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn as nn
import torch.nn.functional as F
from onnx import numpy_helper
from safetensors.torch import load_file

FACE = pathlib.Path(__file__).resolve().parents[1] / "mini" / "face"
sys.path.insert(0, str(FACE))

from data import ARCFACE_112, CROP_BORDER, FACEXLIB_512, arcface_crop  # noqa: E402
from second_recogniser import INPUT_SIZE, SecondRecogniser  # noqa: E402

SCALE = (FACEXLIB_512[1, 0] - FACEXLIB_512[0, 0]) * INPUT_SIZE / 512 / (ARCFACE_112[1, 0] - ARCFACE_112[0, 0])
SIDE = round(112 * SCALE)
TOP = round(FACEXLIB_512[:2, 1].mean() * INPUT_SIZE / 512 - ARCFACE_112[:2, 1].mean() * SCALE)
LEFT = (INPUT_SIZE - SIDE) // 2


class Judge(nn.Module):
    def __init__(self, network: SecondRecogniser):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.zeros(256))
        self.register_buffer("border", torch.tensor(CROP_BORDER).float()[None, :, None, None] / 127.5 - 1)

    def forward(self, x):
        x = F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False) - self.border
        rest = INPUT_SIZE - SIDE
        x = F.pad(x, (LEFT, rest - LEFT, TOP, rest - TOP)) + self.border
        return self.network(x / 2) - self.mean


def renders(folder: pathlib.Path) -> tuple[torch.Tensor, np.ndarray]:
    """ArcFace crops, and who they show."""
    shards = [np.load(path) for path in sorted(folder.glob("shard-*.npz"))]
    crops = [arcface_crop(i, l) for shard in shards for i, l in zip(shard["images"], shard["landmarks"])]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1, np.concatenate([s["identity"] for s in shards])


def halve(graph: onnx.GraphProto) -> None:
    """Stores the large weights in half precision; each is cast to f32 before it is used."""
    large = [i for i in graph.initializer if i.data_type == onnx.TensorProto.FLOAT and np.prod(i.dims) > 1000]
    for old in large:
        half = numpy_helper.from_array(numpy_helper.to_array(old).astype(np.float16), f"{old.name}.half")
        graph.node.insert(0, onnx.helper.make_node("Cast", [half.name], [old.name], to=onnx.TensorProto.FLOAT))
        graph.initializer.remove(old)
        graph.initializer.append(half)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=pathlib.Path, required=True, help="of the second recogniser")
    parser.add_argument("--renders", type=pathlib.Path, required=True, help="shards for the mean")
    parser.add_argument("--held", type=pathlib.Path, required=True, help="shards of other people")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).with_name("judge.onnx"))
    args = parser.parse_args()
    torch.set_num_threads(2)
    network = SecondRecogniser()
    network.load_state_dict({key: value.half().float() if value.is_floating_point() else value for key, value in load_file(args.weights).items()})
    judge = Judge(network).eval()
    with torch.no_grad():
        judge.mean += judge(renders(args.renders)[0]).mean(0)
        crops, who = renders(args.held)
        found = judge(crops)
    kinds = dict(input_names=["input"], output_names=["embedding"], opset_version=17)
    torch.onnx.export(judge, crops[:1], args.out, dynamo=False, **kinds)
    graph = onnx.load(args.out)
    for node in graph.graph.node:
        node.doc_string = ""
    halve(graph.graph)
    onnx.save(graph, args.out)
    session = onnxruntime.InferenceSession(str(args.out), providers=["CPUExecutionProvider"])
    again = session.run(None, {"input": crops[:1].numpy()})[0]
    if np.abs(again - found[:1].numpy()).max() > 2e-3:
        raise ValueError("the exported graph differs from the network")
    cosine = F.normalize(found) @ F.normalize(found).T
    same = torch.from_numpy(who[:, None] == who[None])
    same.fill_diagonal_(False)
    other = torch.from_numpy(who[:, None] != who[None])
    cosine.fill_diagonal_(-2)
    first = float((who[cosine.argmax(1).numpy()] == who).mean())
    print(f"{args.out}: the same person {cosine[same].mean():.3f}, others {cosine[other].mean():.3f}, the right one first {first:.3f}")


if __name__ == "__main__":
    main()
