"""Goldens of facexlib's face detector. Witness: facexlib's own RetinaFace over torchvision's ResNet-50.

The backbone's channels are divided so that the files stay small; pyramid and heads are built at a small width, which
facexlib's own code turns into another slope of its leaky ReLUs below 65 channels: both slopes are covered.
"""

import copy
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from common import deterministic, fresh, half_error, narrow, randn, randomise, save_case, save_weights
from facexlib.detection import retinaface

SEED = 8500
DIVISOR = 32
BACKBONE = 256
# name: (channels of pyramid and heads, batch, height, width)
CASES = {
    "narrow-pyramid": (16, 1, 64, 96),
    "wide-pyramid": (68, 1, 75, 50),
}


def detector(channels: int) -> retinaface.RetinaFace:
    published = retinaface.generate_config

    def config(name: str) -> dict:
        return {**published(name), "in_channel": BACKBONE // DIVISOR, "out_channel": channels}

    retinaface.generate_config = config
    try:
        network = retinaface.RetinaFace("resnet50", device="cpu")
    finally:
        retinaface.generate_config = published
    narrow(network.body, DIVISOR)
    return network


def run(network, inputs: dict) -> dict:
    loc, conf, landms = network(inputs["image"])
    return {"loc": loc, "conf": conf, "landms": landms}


def main() -> None:
    deterministic()
    for index, (name, (channels, batch, height, width)) in enumerate(CASES.items()):
        seed = SEED + 10 * index
        network = randomise(detector(channels), seed, gain=0.9)
        state = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
        folder = fresh("retinaface", name)
        save_weights(folder / "weights.safetensors", state, half=False)
        inputs = {"image": randn(seed + 1, batch, 3, height, width)}
        outputs = run(network, inputs)
        error = half_error(
            lambda: run(copy.deepcopy(network).half(), {key: value.half() for key, value in inputs.items()}), outputs
        )
        note = f"Backbone at 1/{DIVISOR} of its width, pyramid of {channels}. PyTorch's own f16 run differs by {error:.1e}."
        save_case(
            folder, "retinaface", "weights.safetensors", outputs, inputs=inputs, seed=seed, note=note,
        )


if __name__ == "__main__":
    main()
