"""Small graphs of what classifiers are exported with beyond the operators of face models."""

import numpy
from builder import Graph


def functions() -> Graph:
    """Functions of single elements, some of them on pictures behind a convolution."""
    g = Graph("functions", 30, opset=20)
    x = g.input("x", g.noise(1, 4, 5, 7, scale=2.0))
    n = g.conv(x, 4, 6, pads=[1, 1, 1, 1])
    for kind in ("HardSwish", "Mish", "Softplus", "Softsign", "Erf", "Tanh", "Sin", "Cos", "Exp", "Abs", "Neg", "Sqrt", "Log"):
        operand = g.op("Add", g.op("Abs", n), g.const(numpy.float32(0.5))) if kind in ("Sqrt", "Log") else n
        g.output(g.op(kind, operand), kind.lower())
    g.output(g.op("HardSigmoid", n, alpha=1 / 6, beta=0.5), "hard_sigmoid")
    g.output(g.op("HardSigmoid", n), "hard_sigmoid_default")
    g.output(g.op("Elu", n, alpha=0.7), "elu")
    g.output(g.op("Selu", n), "selu")
    g.output(g.op("Celu", n, alpha=1.5), "celu")
    g.output(g.op("Gelu", n), "gelu")
    g.output(g.op("Gelu", n, approximate="tanh"), "gelu_tanh")
    g.output(g.op("ThresholdedRelu", n, alpha=0.3), "thresholded")
    g.output(g.op("Pow", n, g.const(numpy.float32(2))), "square")
    g.output(g.op("Pow", g.op("Abs", n), g.const(numpy.float32(1.5))), "power")
    g.output(g.op("Max", n, g.const(g.noise(6, 1, 1))), "max")
    g.output(g.op("Min", n, g.const(numpy.float32(0.2))), "min")
    g.output(g.op("Mean", n, g.op("Neg", n), g.op("Relu", n)), "mean")
    g.output(g.op("LogSoftmax", n, axis=1), "log_softmax")
    return g


def rounding() -> Graph:
    """Functions with jumps, on numbers that half precision holds exactly."""
    g = Graph("rounding", 31, opset=13)
    x = g.input("x", (g.random.integers(-20, 20, (2, 3, 4)) / 4).astype(numpy.float32))
    for kind in ("Floor", "Ceil", "Round", "Sign"):
        g.output(g.op(kind, x), kind.lower(), rank=3)
    half = g.const(numpy.float32(0.5))
    above = g.op("Greater", x, half)
    g.output(g.op("Where", above, x, g.const(g.noise(4))), "where", rank=3)
    both = g.op("And", above, g.op("Not", g.op("LessOrEqual", g.const(numpy.float32(3)), x)))
    g.output(g.op("Where", both, g.op("Mul", x, x), x), "where_both", rank=3)
    mask = g.const(numpy.array([True, False, True, True]))
    g.output(g.op("Where", mask, x, half), "where_constant", rank=3)
    return g


def reductions() -> Graph:
    g = Graph("reductions", 32, opset=18)
    x = g.input("x", g.noise(2, 4, 5, 6))
    n = g.conv(x, 4, 7)
    for kind in ("Mean", "Sum", "Max", "Min", "L1", "L2", "SumSquare", "LogSumExp"):
        g.output(g.op(f"Reduce{kind}", n, g.ints(2, 3)), f"{kind.lower()}_kept")
        g.output(g.op(f"Reduce{kind}", n, g.ints(1, -1), keepdims=0), f"{kind.lower()}", rank=2)
    g.output(g.op("ReduceProd", n, g.ints(3)), "product")
    g.output(g.op("ReduceLogSum", g.op("Exp", n), g.ints(1)), "log_sum")
    g.output(g.op("GlobalMaxPool", n), "global_max")
    return g


def norms() -> Graph:
    g = Graph("norms", 33, opset=21)
    x = g.input("x", g.noise(2, 8, 5, 6))
    n = g.conv(x, 8, 12, 1)
    gain, bias = g.const(1 + 0.2 * g.noise(12)), g.const(g.noise(12, scale=0.2))
    g.output(g.op("GroupNormalization", n, gain, bias, num_groups=3), "group")
    g.output(g.op("InstanceNormalization", n, gain, bias), "instance")
    rows = g.op("Transpose", n, perm=[0, 2, 3, 1])
    g.output(g.op("LayerNormalization", rows, gain, bias, epsilon=1e-6), "layer")
    g.output(g.op("LayerNormalization", rows, gain), "layer_no_bias")
    wide = [g.const(1 + 0.2 * g.noise(12, 5, 6)), g.const(g.noise(12, 5, 6, scale=0.2))]
    g.output(g.op("LayerNormalization", n, *wide, axis=1), "layer_of_pictures")
    g.output(g.op("LRN", n, size=5, alpha=0.3, beta=0.6, bias=1.5), "lrn")
    g.output(g.op("LpNormalization", n, axis=1), "lp")
    # Group normalisation as exporters before version 18 write it.
    grouped = g.op("Reshape", n, g.ints(0, 3, -1))
    ones, zeros = g.const(numpy.ones(3, numpy.float32)), g.const(numpy.zeros(3, numpy.float32))
    grouped = g.op("InstanceNormalization", grouped, ones, zeros)
    g.output(g.op("Reshape", grouped, g.op("Shape", n)), "group_by_reshape")
    return g


def computed_filters() -> Graph:
    """Filters that the graph standardises before it convolves, rows of elements, and filters as given by an input."""
    g = Graph("computed-filters", 34, opset=17)
    x = g.input("x", g.noise(2, 6, 8, 7))
    filters = g.const(g.noise(5, 6, 3, 3))
    flat = g.op("Reshape", filters, g.ints(5, -1))
    centred = g.op("Sub", flat, g.op("ReduceMean", flat, axes=[1]))
    scale = g.op("Sqrt", g.op("ReduceMean", g.op("Mul", centred, centred), axes=[1]))
    standard = g.op("Div", centred, g.op("Add", scale, g.const(numpy.float32(1e-3))))
    filters = g.op("Reshape", standard, g.ints(5, 6, 3, 3))
    g.output(g.op("Conv", x, filters, g.const(g.noise(5)), pads=[1, 1, 1, 1]), "standardised")
    means = g.op("Unsqueeze", g.op("ReduceMean", x, axes=[2, 3], keepdims=0), g.ints(1))
    row = g.op("Conv", means, g.const(g.noise(1, 1, 3)), pads=[1, 1])
    g.output(row, "row", rank=3)
    g.output(g.op("MaxPool", row, kernel_shape=[2], strides=[2]), "row_max", rank=3)
    weight = g.op("Reshape", g.op("Sigmoid", row), g.ints(2, 6, 1, 1))
    g.output(g.op("Mul", x, g.op("Expand", weight, g.op("Shape", x))), "weighed")
    return g


def three_axes() -> Graph:
    g = Graph("three-axes", 40)
    x = g.input("x", g.noise(2, 4, 5, 6, 7))
    weight = lambda *shape: g.const(g.noise(*shape, scale=0.2))  # noqa: E731
    padded = dict(pads=[1, 0, 1, 0, 1, 1], strides=[2, 1, 1])
    g.output(g.op("Conv", x, weight(6, 4, 2, 3, 3), g.const(g.noise(6)), **padded), "padded", rank=5)
    g.output(g.op("Conv", x, weight(4, 2, 3, 3, 1), group=2, dilations=[1, 2, 1]), "grouped", rank=5)
    g.output(g.op("Conv", x, weight(3, 4, 3, 2, 3), strides=[1, 2, 3]), "strided", rank=5)
    g.output(g.op("AveragePool", x, kernel_shape=[2, 3, 2], pads=[1, 1, 0, 0, 1, 1], strides=[2, 1, 1]), "mean", rank=5)
    g.output(g.op("MaxPool", x, kernel_shape=[3, 2, 2], strides=[1, 2, 2]), "max", rank=5)
    return g


def transposed() -> Graph:
    g = Graph("transposed", 35)
    x = g.input("x", g.noise(1, 6, 4, 5))
    weight = lambda *shape: g.const(g.noise(*shape, scale=0.3))  # noqa: E731
    g.output(g.op("ConvTranspose", x, weight(6, 4, 3, 3)), "plain")
    doubled = dict(strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])
    g.output(g.op("ConvTranspose", x, weight(6, 4, 3, 3), g.const(g.noise(4)), **doubled), "doubled")
    g.output(g.op("ConvTranspose", x, weight(6, 2, 2, 2), strides=[2, 2], group=3), "grouped")
    g.output(g.op("ConvTranspose", x, weight(6, 3, 2, 3), dilations=[2, 1], strides=[1, 3]), "dilated")
    g.output(g.op("ConvTranspose", x, weight(6, 3, 3, 3), pads=[2, 3, 1, 2], strides=[3, 2]), "cut")
    return g


def borders() -> Graph:
    g = Graph("borders", 36, opset=18)
    x = g.input("x", g.noise(1, 4, 6, 5))
    n = g.conv(x, 4, 4, pads=[1, 1, 1, 1])
    widths = g.ints(0, 0, 2, 1, 0, 0, 1, 3)
    g.output(g.op("Pad", n, widths), "zeros")
    g.output(g.op("Pad", n, g.ints(1, 2, 0, 0, 0, 1, 2, 3), g.const(numpy.float32(0.7))), "number")
    for mode in ("reflect", "edge"):
        g.output(g.op("Pad", n, widths, mode=mode), mode)
    g.output(g.op("Pad", n, g.ints(1, 2), "", g.ints(-1)), "one_axis")
    first, second, third = g.op("Split", n, g.ints(1, 2, 1), outputs=3, axis=1)
    g.output(g.op("Concat", third, first, second, axis=1), "split")
    for index, part in enumerate(g.op("Split", n, outputs=2, axis=-1, num_outputs=2)):
        g.output(part, f"uneven_{index}")
    g.output(g.op("Tile", n, g.ints(1, 2, 1, 3)), "tile")
    g.output(g.op("Expand", g.op("ReduceMean", n, g.ints(2)), g.ints(2, 1, 3, 1)), "expand")
    g.output(g.op("DepthToSpace", n, blocksize=2), "depth_to_space")
    g.output(g.op("DepthToSpace", n, blocksize=2, mode="CRD"), "depth_to_space_crd")
    even = g.op("Slice", n, g.ints(0), g.ints(4), g.ints(3))
    g.output(g.op("SpaceToDepth", even, blocksize=2), "space_to_depth")
    return g


def negative_borders() -> Graph:
    g = Graph("negative-borders", 39)
    x = g.input("x", g.noise(1, 4, 6, 5))
    n = g.conv(x, 4, 4, pads=[1, 1, 1, 1])
    g.output(g.op("Pad", n, g.ints(1, 2, -1, 0, 0, 1, 2, -2), g.const(numpy.float32(0.7))), "mixed")
    return g


def shapes_of_padding() -> Graph:
    """`same` padding as TensorFlow's ports compute it from shapes, and a position table from running sums."""
    g = Graph("shapes-of-padding", 37, opset=14)
    x = g.input("x", g.noise(1, 3, 7, 9), dynamic=(2, 3))
    shape = g.op("Cast", g.op("Slice", g.op("Shape", x), g.ints(2), g.ints(4)), to=1)
    two = g.const(numpy.float32(2))
    covered = g.op("Add", g.op("Mul", g.op("Sub", g.op("Ceil", g.op("Div", shape, two)), g.const(numpy.float32(1))), two), g.const(numpy.float32(3)))
    total = g.op("Cast", g.op("Clip", g.op("Sub", covered, shape), g.const(numpy.float32(0))), to=7)
    before = g.op("Div", total, g.ints(2))
    after = g.op("Sub", total, before)
    zero = g.op("ConstantOfShape", g.ints(2), value=numpy_tensor(0))
    padded = g.op("Pad", x, g.op("Concat", zero, before, zero, after, axis=0))
    g.output(g.conv(padded, 3, 4, strides=[2, 2]), "same")
    ones = g.op("ConstantOfShape", g.op("Shape", x), value=numpy_tensor(1.0))
    rows = g.op("CumSum", ones, g.const(numpy.int64(2)))
    g.output(g.op("Add", x, g.op("Sin", rows)), "positions")
    width = g.op("Gather", g.op("Shape", x), g.const(numpy.int64(3)))
    steps = g.op("Range", g.const(numpy.int64(0)), width, g.const(numpy.int64(1)))
    even = g.op("Equal", g.op("Mod", steps, g.ints(2)), g.ints(0))
    g.output(g.op("Where", even, x, g.const(numpy.float32(0))), "every_other")
    return g


def numpy_tensor(value):
    """A tensor of one number, as an attribute."""
    from onnx import numpy_helper

    array = numpy.array([value])
    return numpy_helper.from_array(array.astype(numpy.float32 if isinstance(value, float) else numpy.int64))


def resize_by_matrix() -> Graph:
    g = Graph("resize-by-matrix", 38, opset=19)
    x = g.input("x", g.noise(1, 3, 8, 7))
    half = g.const(numpy.float32([1, 1, 0.5, 0.6]))
    for mode in ("linear", "cubic"):
        g.output(g.op("Resize", x, "", half, mode=mode, antialias=1), f"{mode}_antialias")
    g.output(g.op("Resize", x, "", g.const(numpy.float32([1, 1, 1.5, 1.3])), mode="cubic", exclude_outside=1), "exclude")
    part = g.const(numpy.float32([0, 0, 0.2, -0.2, 1, 1, 0.9, 1.1]))
    kind = dict(mode="linear", coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=0.3)
    g.output(g.op("Resize", x, part, "", g.ints(1, 3, 5, 6), **kind), "crop")
    rows = g.op("Reshape", x, g.ints(1, 3, 56))
    g.output(g.op("Resize", rows, "", g.const(numpy.float32([1, 1, 0.5])), mode="linear"), "row", rank=3)
    kind = dict(mode="linear", coordinate_transformation_mode="pytorch_half_pixel")
    g.output(g.op("Resize", x, "", "", g.ints(1, 3, 5, 1), **kind), "pytorch_to_one")
    return g


CLASSIFIERS = (
    functions,
    rounding,
    reductions,
    norms,
    computed_filters,
    three_axes,
    transposed,
    borders,
    negative_borders,
    shapes_of_padding,
    resize_by_matrix,
)
