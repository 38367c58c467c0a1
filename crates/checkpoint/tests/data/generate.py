"""Writes types.onnx: every element type in both encodings, every attribute kind, every kind of extent.

    python generate.py        needs onnx (1.23 wrote the committed file) and ml_dtypes

The values are 0, 1, 2 (0, 1, 1 for booleans) and -1, 0.5, 2 for floats, so that the Rust test can say what it expects.
"""

import pathlib

import numpy
import onnx
from onnx import TensorProto, helper

FLOATS, SIGNED, UNSIGNED = [-1.0, 0.5, 2.0], [-1, 0, 2], [0, 1, 2]
TYPES = {
    "FLOAT": FLOATS, "DOUBLE": FLOATS, "FLOAT16": FLOATS, "BFLOAT16": FLOATS,
    "INT8": SIGNED, "INT16": SIGNED, "INT32": SIGNED, "INT64": SIGNED,
    "UINT8": UNSIGNED, "UINT16": UNSIGNED, "UINT32": UNSIGNED, "UINT64": UNSIGNED, "BOOL": [False, True, True],
}

tensors = []
for name, values in TYPES.items():
    kind = getattr(TensorProto, name)
    array = numpy.asarray(values, dtype=helper.tensor_dtype_to_np_dtype(kind))
    tensors.append(helper.make_tensor(f"{name}_typed", kind, [3], values))
    tensors.append(helper.make_tensor(f"{name}_raw", kind, [3], array.tobytes(), raw=True))
tensors.append(helper.make_tensor("scalar", TensorProto.FLOAT, [], [3.5]))
tensors.append(helper.make_tensor("matrix", TensorProto.FLOAT, [2, 3], list(range(6))))
tensors.append(helper.make_tensor("nothing", TensorProto.FLOAT, [0], []))

node = helper.make_node(
    "Add", ["a", "", "matrix"], ["b"], name="every attribute", domain="ai.onnx",
    int=-7, float=0.25, string="nearest", ints=[1, -2], floats=[0.5, -0.5], strings=["x", "y"],
    tensor=helper.make_tensor("t", TensorProto.INT64, [2], [4, -5]),
)
inputs = [
    helper.make_tensor_value_info("a", TensorProto.FLOAT, ["batch", 3, None]),
    helper.make_tensor_value_info("matrix", TensorProto.FLOAT, [2, 3]),
]
output = onnx.ValueInfoProto(name="b")
graph = helper.make_graph([node], "types", inputs, [output], tensors)
opsets = [helper.make_opsetid("com.example", 2), helper.make_opsetid("", 11)]
model = helper.make_model(graph, opset_imports=opsets, ir_version=3, producer_name="generate.py")
onnx.save(model, pathlib.Path(__file__).with_name("types.onnx"))
