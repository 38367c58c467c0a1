"""A few lines around onnx.helper: a graph is written as nested calls, each returning its tensor's name."""

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

TYPES = {"f": TensorProto.FLOAT, "i": TensorProto.INT64}


class Graph:
    """One ONNX graph under construction. Weights are drawn from a seeded generator."""

    def __init__(self, name: str, seed: int, opset: int = 13, initialisers_as_inputs: bool = False):
        self.name = name
        self.seed = seed
        self.opset = opset
        self.random = numpy.random.default_rng(seed)
        # Exporters for IR versions before 4 repeat every initialiser among the graph's inputs.
        self.initialisers_as_inputs = initialisers_as_inputs
        self.nodes, self.inputs, self.outputs, self.tensors = [], [], [], []
        self.feeds, self.ranks = {}, {}

    def input(self, name: str, array: numpy.ndarray, dynamic: tuple[int, ...] = ()) -> str:
        """Declares an input and the value it gets; the axes in `dynamic` have no fixed size."""
        shape = [f"{name}_{axis}" if axis in dynamic else size for axis, size in enumerate(array.shape)]
        self.inputs.append(helper.make_tensor_value_info(name, TYPES[array.dtype.kind], shape))
        self.feeds[name] = array
        return name

    def noise(self, *shape: int, scale: float = 1.0) -> numpy.ndarray:
        return (scale * self.random.standard_normal(shape)).astype(numpy.float32)

    def const(self, value, raw: bool = True) -> str:
        """An initialiser; `raw` chooses between ONNX's two encodings of tensor data."""
        array = numpy.asarray(value)
        if array.dtype == numpy.float64:
            array = array.astype(numpy.float32)
        name = f"const_{len(self.tensors)}"
        if raw:
            tensor = numpy_helper.from_array(array, name)
        else:
            tensor = helper.make_tensor(name, TYPES[array.dtype.kind], array.shape, array.flatten().tolist())
        self.tensors.append(tensor)
        return name

    def weight(self, *shape: int) -> str:
        fan_in = int(numpy.prod(shape[1:])) or 1
        return self.const(self.noise(*shape, scale=fan_in**-0.5), raw=len(self.tensors) % 2 == 0)

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes):
        """Adds a node and returns its output's name, or a list of names."""
        names = [f"{kind}_{len(self.nodes)}" + (f"_{i}" if outputs > 1 else "") for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=names[0] + "_node", **attributes))
        return names[0] if outputs == 1 else names

    def conv(self, x: str, cin: int, cout: int, kernel: int | tuple = 3, bias: bool = True, **attributes) -> str:
        size = (kernel, kernel) if isinstance(kernel, int) else kernel
        groups = attributes.get("group", 1)
        extra = [self.const(self.noise(cout, scale=0.2))] if bias else []
        return self.op("Conv", x, self.weight(cout, cin // groups, *size), *extra, kernel_shape=size, **attributes)

    def batch_norm(self, x: str, channels: int, epsilon: float = 1e-5) -> str:
        scale = 1 + 0.2 * self.noise(channels)
        values = (scale, 0.2 * self.noise(channels), 0.2 * self.noise(channels), 0.5 + self.random.random(channels))
        return self.op("BatchNormalization", x, *(self.const(v) for v in values), epsilon=epsilon, momentum=0.9)

    def prelu(self, x: str, channels: int) -> str:
        return self.op("PRelu", x, self.const(0.25 + 0.1 * self.noise(channels, 1, 1)))

    def ints(self, *values: int) -> str:
        return self.const(numpy.array(values, dtype=numpy.int64))

    def output(self, tensor: str, name: str | None = None, rank: int = 4) -> None:
        """Declares an output, of `rank` axes where inference cannot tell; without a name the node's is used."""
        self.ranks[name or tensor] = rank
        if name:
            self.nodes.append(helper.make_node("Identity", [tensor], [name], name=f"{name}_node"))
        self.outputs.append(name or tensor)

    def model(self) -> onnx.ModelProto:
        inputs = list(self.inputs)
        if self.initialisers_as_inputs:
            inputs += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in self.tensors]
        outputs = [helper.make_empty_tensor_value_info(name) for name in self.outputs]
        graph = helper.make_graph(self.nodes, self.name, inputs, outputs, self.tensors)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", self.opset)],
            ir_version=3 if self.initialisers_as_inputs else 8,
            producer_name="goldens",
        )
        inferred = {info.name: info for info in onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output}
        del model.graph.output[:]
        for name in self.outputs:
            info = inferred[name]
            if not info.type.tensor_type.HasField("shape"):
                axes = [f"{name}_{axis}" for axis in range(self.ranks[name])]
                info = helper.make_tensor_value_info(name, TensorProto.FLOAT, axes)
            model.graph.output.append(info)
        onnx.checker.check_model(model)
        return model
