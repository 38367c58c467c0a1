"""Files of torch.save in both of its formats, and the tensors that they should be read as.

NAME.pth and NAME.legacy.pth hold what NAME.safetensors does, under the same keys. The files in `refused` hold or are
something that no reader of weights should follow.
"""

import collections
import pathlib
import pickle
import sys
import zipfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
sys.path.insert(1, str(pathlib.Path(__file__).resolve().parent))

import malformed
import torch
from common import ROOT, deterministic, fresh, randn
from safetensors.torch import save_file

SEED = 12000
FOLDER = ROOT / "checkpoint"


def write(name: str, value, expected: dict[str, torch.Tensor], legacy: bool = True, protocol: int = 2) -> None:
    torch.save(value, FOLDER / f"{name}.pth", pickle_protocol=protocol)
    if legacy:
        path = FOLDER / f"{name}.legacy.pth"
        torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    save_file({key: tensor.detach().contiguous().clone() for key, tensor in expected.items()}, FOLDER / f"{name}.safetensors")


def types() -> dict[str, torch.Tensor]:
    whole = torch.tensor([[0, 1, 2], [100, 101, 127]])
    floats = {str(t).split(".")[1]: randn(SEED, 2, 3).to(t) for t in (torch.float32, torch.float64, torch.float16, torch.bfloat16)}
    integers = {
        str(t).split(".")[1]: whole.to(t) for t in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
    }
    return floats | integers | {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4)}


def strided() -> dict[str, torch.Tensor]:
    base = randn(SEED + 1, 4, 6)
    filters = randn(SEED + 2, 3, 2, 3, 3)
    flat = randn(SEED + 3, 40).half()
    return {
        "base": base,
        "transposed": base.T,
        "columns": base[:, 1::2],
        "rows": base[2:],
        "backwards_axes": filters.permute(3, 1, 0, 2),
        "channels_last": filters.contiguous(memory_format=torch.channels_last),
        "expanded": base[:1].expand(3, 6),
        "offset": flat[7:19].view(3, 4),
        "shared_a": flat,
        "shared_b": flat[20:],
        "overlapping": flat.as_strided((5, 4), (3, 1), 2),
        "parameter": torch.nn.Parameter(base[1]),
        "one_axis": base[:, :1],
    }


def state_dict() -> collections.OrderedDict:
    """With the attribute `_metadata` that modules give to theirs."""
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    for index, parameter in enumerate(network.parameters()):
        parameter.copy_(randn(SEED + 10 + index, *parameter.shape))
    return network.state_dict()


def main() -> None:
    deterministic()
    for old in (*FOLDER.glob("*.pth"), *FOLDER.glob("*.safetensors")):
        old.unlink()

    tensors = types()
    notes = {"name": "a network", "epoch": 3, "rate": 1e-4, "size": torch.Size([2, 3]), "big": 2**70, "none": None, "yes": True}
    notes |= {"type": torch.float16, "device": torch.device("cpu"), "bytes": b"raw", "pair": (1, "two"), "set": {1, 2}}
    write("types", tensors | notes | {"text": "long" * 2000}, tensors)
    write("protocol4", tensors | notes, tensors, protocol=4)
    unsigned = {str(t).split(".")[1]: torch.tensor([0, 1, 65535]).to(t) for t in (torch.uint16, torch.uint32, torch.uint64)}
    write("unsigned", unsigned, unsigned, legacy=False)
    write("strided", strided(), strided())

    state = state_dict()
    momentum = {"state": {0: {"step": 7, "exp_avg": randn(SEED + 20, 2, 3)}}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}
    write("state-dict", state, state)
    write("trainer", {"epoch": 3, "state_dict": state, "optimizer": momentum}, state)
    other = {key: value + 1 for key, value in state.items()}
    write("averaged", {"params": other, "params_ema": state}, state)
    write("module", {"step": 1, "module": state, "args": {"lr": 0.1}}, state)
    marks = {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    write("marked", {"epoch": 3, "title": "a network", "state_dict": state, **marks, "optimizer": momentum}, state | marks)
    write("marked-module", {"model": state, **marks, "ema": True}, state | marks)
    # PuLID's trainer saves modules side by side; a module alone would be taken out.
    nested = {
        "id_adapter": {"latents": randn(SEED + 30, 1, 2, 3), "layers": [randn(SEED + 31, 2), randn(SEED + 32, 2)]},
        "id_adapter_attn_layers": {"1.id_to_k.weight": randn(SEED + 33, 3, 2).half()},
    }
    flat = {
        "id_adapter.latents": nested["id_adapter"]["latents"],
        "id_adapter.layers.0": nested["id_adapter"]["layers"][0],
        "id_adapter.layers.1": nested["id_adapter"]["layers"][1],
        "id_adapter_attn_layers.1.id_to_k.weight": nested["id_adapter_attn_layers"]["1.id_to_k.weight"],
    }
    write("nested", nested, flat)

    refused = fresh("checkpoint", "refused")
    torch.save(torch.nn.Linear(2, 2), refused / "whole-module.pth")
    torch.save(torch.nn.Linear(2, 2), refused / "whole-module.legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(randn(SEED + 40, 3), refused / "single-tensor.pth")
    torch.save({"name": "nothing"}, refused / "no-tensors.pth")
    torch.save({"w": torch.eye(3).to_sparse()}, refused / "sparse.pth")

    class Program:
        def __reduce__(self):
            return print, ("a program ran",)

    torch.save({"w": randn(SEED + 41, 3), "x": Program()}, refused / "program.pth")
    (refused / "plain-pickle.pkl").write_bytes(pickle.dumps({"w": [1.0, 2.0]}, protocol=2))
    with zipfile.ZipFile(FOLDER / "module.pth") as stored, zipfile.ZipFile(
        refused / "compressed.pth", "w", zipfile.ZIP_DEFLATED
    ) as compressed:
        for info in stored.infolist():
            compressed.writestr(zipfile.ZipInfo(info.filename), stored.read(info), zipfile.ZIP_DEFLATED)
    malformed.main()


if __name__ == "__main__":
    main()
