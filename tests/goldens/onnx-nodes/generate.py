"""Packs onnx's own backend node tests of the supported operators into one file, `cases.safetensors`.

Kept are the cases whose nodes are all of operators that docs/onnx.md lists, whose outputs are all float32 and which have a
float32 input; other inputs may be integers or booleans. A case is `NAME/model` (the ONNX file's bytes), `NAME/in/INPUT`
and `NAME/out/OUTPUT`. To keep the file small, cases of more than 96 KiB and the expanded forms of attention operators, which no
convolutional network holds, are left out; `--all FILE` writes every case, for PULID_ONNX_NODES=FILE.

  python tests/goldens/onnx-nodes/generate.py [--all FILE]
"""

import pathlib
import re
import sys
import warnings

import numpy
import onnx
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).parent
DOCS = HERE.parents[2] / "docs" / "onnx.md"
INPUTS = (numpy.float32, numpy.int64, numpy.int32, numpy.uint8, numpy.bool_)
# onnx's own limits: |answer - expected| <= ABSOLUTE + RELATIVE |expected|.
RELATIVE, ABSOLUTE = 1e-3, 1e-7


def arrays(values) -> list[numpy.ndarray] | None:
    """The values as arrays, or nothing where one is a sequence or an optional."""
    result = []
    for value in values:
        value = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
        if not isinstance(value, numpy.ndarray) and not numpy.isscalar(value):
            return None
        result.append(numpy.array(value, order="C"))
    return result


def main() -> None:
    warnings.simplefilter("ignore")
    everything = sys.argv[1:2] == ["--all"]
    path = pathlib.Path(sys.argv[2]) if everything else HERE / "cases.safetensors"
    listed = DOCS.read_text().split("<!-- operators -->")[1]
    supported = set(re.findall(r"`(\w+)`", listed))
    tensors, count = {}, 0
    for case in collect_testcases(None):
        graph = case.model.graph
        if any(node.domain not in ("", "ai.onnx") or node.op_type not in supported for node in graph.node):
            continue
        inputs, outputs = (arrays(values) for values in case.data_sets[0])
        if inputs is None or outputs is None or any(x.dtype != numpy.float32 for x in outputs):
            continue
        if any(x.dtype not in INPUTS for x in inputs) or not any(x.dtype == numpy.float32 for x in inputs):
            continue
        assert (case.rtol or RELATIVE) <= 0.01 and (case.atol or ABSOLUTE) <= 1e-2, (case.name, case.rtol, case.atol)
        initial = {t.name for t in graph.initializer}
        names = [i.name for i in graph.input if i.name not in initial]
        assert len(names) == len(inputs) and len(graph.output) == len(outputs), case.name
        model = numpy.frombuffer(case.model.SerializeToString(), dtype=numpy.uint8)
        size = model.nbytes + sum(x.nbytes for x in inputs + outputs)
        if not everything and (size > 96 * 1024 or "attention" in case.name and "expanded" in case.name):
            continue
        tensors[f"{case.name}/model"] = model
        tensors |= {f"{case.name}/in/{name}": value for name, value in zip(names, inputs)}
        tensors |= {f"{case.name}/out/{o.name}": value for o, value in zip(graph.output, outputs)}
        count += 1
    save_file(tensors, path, {"onnx": onnx.__version__, "cases": str(count)})
    print(count, "cases,", path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
