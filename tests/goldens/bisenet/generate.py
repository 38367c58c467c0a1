"""Goldens of the face parser. Witness: facexlib's own BiSeNet, its channels divided so that the files stay small.

The forward pass and all names are facexlib's; only the layers inside are exchanged for narrower ones of the same kind,
which is exact because no width appears in the forward pass. The generator shows that by exchanging with a divisor of
one and comparing with the untouched network at full width.
"""

import copy
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import torch
from common import deterministic, fresh, half_error, narrow, randn, randomise, save_case, save_weights
from facexlib.parsing.bisenet import BiSeNet

SEED = 8000
CLASSES = 19
DIVISOR = 16
KEPT = (3, CLASSES)


def run(network: torch.nn.Module, image: torch.Tensor) -> dict:
    return {"logits": network(image)[0]}


def main() -> None:
    deterministic()
    original = randomise(BiSeNet(CLASSES), SEED)
    exchanged = narrow(BiSeNet(CLASSES), 1, KEPT).eval()
    exchanged.load_state_dict(original.state_dict())
    probe = randn(SEED + 1, 1, 3, 64, 96)
    assert torch.equal(run(original, probe)["logits"], run(exchanged, probe)["logits"])

    wide = randomise(narrow(BiSeNet(CLASSES), DIVISOR, KEPT), SEED + 2, gain=1.4)
    slim = randomise(narrow(BiSeNet(CLASSES), 2 * DIVISOR, KEPT), SEED + 3, gain=1.4)
    folder = fresh("bisenet", "weights")
    save_weights(folder / "bisenet.safetensors", wide.state_dict(), half=False)
    torch.save(slim.state_dict(), folder / "bisenet.pth")
    torch.save(slim.state_dict(), folder / "bisenet_legacy.pth", _use_new_zipfile_serialization=False)
    for index, (name, file, height, width) in enumerate(
        [
            ("square", "bisenet.safetensors", 48, 48),
            ("odd", "bisenet.safetensors", 45, 37),
            ("zip-pickle", "bisenet.pth", 32, 40),
            ("legacy-pickle", "bisenet_legacy.pth", 40, 32),
        ]
    ):
        seed = SEED + 10 + index
        network, divisor = (wide, DIVISOR) if file.endswith(".safetensors") else (slim, 2 * DIVISOR)
        image = randn(seed, 1, 3, height, width)
        outputs = run(network, image)
        error = half_error(lambda: run(copy.deepcopy(network).half(), image.half()), outputs)
        note = f"facexlib's parser at 1/{divisor} of its width. PyTorch's own f16 run differs by {error:.1e}."
        save_case(
            fresh("bisenet", name),
            "bisenet",
            f"../weights/{file}",
            outputs,
            inputs={"image": image},
            seed=seed,
            note=note,
        )


if __name__ == "__main__":
    main()
