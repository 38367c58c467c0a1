"""Three steps of `torch.optim.Muon` in float64. It orthogonalises in bfloat16, of which three digits would be left to compare: here that
type is exchanged for float64, all else is PyTorch's own.

`muon.safetensors` holds, for each matrix [in, out] (PyTorch's weights transposed, as graphs have them), `NAME.parameter`,
`NAME.gradient.STEP` and, after each step, `NAME.parameter.STEP` and `NAME.momentum.STEP`."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import torch
import torch.optim._muon as muon
from common import deterministic, randn, save_tensors

SEED = 13000
# name: (in, out, adjustment of the rate)
MATRICES = {
    "wide": (6, 20, "original"),
    "tall": (24, 8, "original"),
    "square": (7, 7, "match_rms_adamw"),
    "rms": (32, 12, "match_rms_adamw"),
}
RATE, DECAY, MOMENTUM = 0.02, 0.1, 0.95


class Double:
    """The module `torch`, where bfloat16 is float64."""

    bfloat16 = torch.float64

    def __getattr__(self, name: str):
        return getattr(torch, name)


def main() -> None:
    deterministic()
    muon.torch = Double()
    tensors = {}
    for index, (name, (rows, columns, adjust)) in enumerate(MATRICES.items()):
        seed = SEED + 10 * index
        start = randn(seed, rows, columns)
        tensors[f"{name}.parameter"] = start
        parameter = torch.nn.Parameter(start.T.double().contiguous())
        optimizer = torch.optim.Muon(
            [parameter], lr=RATE, weight_decay=DECAY, momentum=MOMENTUM, nesterov=True, adjust_lr_fn=adjust
        )
        for step in range(1, 4):
            gradient = randn(seed + step, rows, columns, scale=0.01)
            parameter.grad = gradient.T.double().contiguous()
            optimizer.step()
            tensors[f"{name}.gradient.{step}"] = gradient
            tensors[f"{name}.parameter.{step}"] = parameter.detach().T.clone()
            tensors[f"{name}.momentum.{step}"] = optimizer.state[parameter]["momentum_buffer"].T.clone()
    save_tensors(pathlib.Path(__file__).parent / "muon.safetensors", tensors)
    print(len(tensors))


if __name__ == "__main__":
    main()
