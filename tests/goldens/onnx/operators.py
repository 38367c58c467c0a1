"""Small graphs, one per family of operators, that exercise the attributes face models use and their neighbours."""

import numpy
from builder import Graph


def convolutions() -> Graph:
    g = Graph("convolutions", 1)
    x = g.input("image", g.noise(2, 6, 11, 9))
    g.output(g.conv(x, 6, 5, pads=[1, 1, 1, 1]), "plain")
    g.output(g.conv(x, 6, 8, 1, bias=False), "pointwise")
    g.output(g.conv(x, 6, 4, pads=[0, 1, 2, 1], strides=[2, 2]), "asymmetric")
    g.output(g.conv(x, 6, 9, group=3, pads=[1, 1, 1, 1]), "grouped")
    g.output(g.conv(x, 6, 6, group=6, strides=[2, 1], pads=[1, 1, 1, 1]), "depthwise")
    g.output(g.conv(x, 6, 4, dilations=[2, 3], pads=[2, 3, 2, 3]), "dilated")
    g.output(g.conv(x, 6, 4, (1, 5), pads=[0, 2, 0, 2]), "oblong")
    g.output(g.conv(x, 6, 4, (7, 7), strides=[4, 4], pads=[3, 3, 3, 3]), "large")
    return g


def automatic_padding() -> Graph:
    g = Graph("automatic-padding", 2)
    x = g.input("image", g.noise(1, 4, 10, 7))
    for mode in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        g.output(g.conv(x, 4, 3, strides=[2, 2], auto_pad=mode), mode.lower())
    return g


def activations() -> Graph:
    g = Graph("activations", 3)
    x = g.input("x", g.noise(2, 5, 4, 6, scale=2.0))
    n = g.batch_norm(x, 5, epsilon=1e-3)
    g.output(n, "batch_norm")
    g.output(g.prelu(n, 5), "prelu")
    g.output(g.op("PRelu", n, g.const([0.3])), "prelu_shared")
    g.output(g.op("LeakyRelu", n, alpha=0.1), "leaky_relu")
    g.output(g.op("LeakyRelu", n), "leaky_relu_default")
    g.output(g.op("Relu", n), "relu")
    g.output(g.op("Sigmoid", n), "sigmoid")
    low, high = g.const(numpy.float32(-0.5)), g.const(numpy.float32(0.8))
    g.output(g.op("Clip", n, low, high), "clip")
    g.output(g.op("Clip", n, "", high), "clip_above")
    g.output(g.op("Softmax", n, axis=1), "softmax_channels")
    g.output(g.op("Softmax", n), "softmax_last")
    return g


def older_opset() -> Graph:
    """Opset 9 to 10 forms: attributes instead of inputs, softmax over the flattened rest."""
    g = Graph("older-opset", 4, opset=9)
    x = g.input("x", g.noise(2, 3, 4, 5))
    g.output(g.op("Clip", x, min=-0.4, max=1.1), "clip")
    g.output(g.op("Softmax", x, axis=1), "softmax_flattened")
    s = g.op("Slice", x, axes=[2, 3], starts=[1, -4], ends=[9, -1])
    g.output(s, "slice")
    u = g.op("Unsqueeze", g.op("Flatten", s, axis=2), axes=[0, 3])
    g.output(u, "unsqueeze")
    g.output(g.op("Squeeze", u, axes=[0, 3]), "squeeze")
    g.output(g.op("Upsample", x, g.const(numpy.float32([1, 1, 2, 3])), mode="nearest"), "upsample_nearest")
    g.output(g.op("Dropout", x, ratio=0.4), "dropout")
    return g


def upsample_linear() -> Graph:
    """Coordinates of the retired operator are asymmetric."""
    g = Graph("upsample-linear", 12, opset=9)
    x = g.input("x", g.noise(2, 3, 4, 5))
    g.output(g.op("Upsample", x, g.const(numpy.float32([1, 1, 2, 2])), mode="linear"), "upsample")
    return g


def arithmetic() -> Graph:
    g = Graph("arithmetic", 5)
    x, y = g.input("x", g.noise(2, 3, 4, 5)), g.input("y", g.noise(2, 3, 4, 5))
    channel, row = g.const(g.noise(3, 1, 1)), g.const(2 + numpy.abs(g.noise(5)))
    g.output(g.op("Add", x, y), "add")
    g.output(g.op("Sub", x, channel), "sub_channel")
    g.output(g.op("Sub", channel, x), "sub_reversed")
    g.output(g.op("Mul", x, g.const(numpy.float32(1.7))), "mul_scalar")
    g.output(g.op("Div", y, row), "div_row")
    g.output(g.op("Div", row, g.op("Add", g.op("Mul", x, x), g.const(numpy.float32(1.0)))), "div_reversed")
    # Both sides stretch.
    left = g.op("Slice", x, g.ints(0), g.ints(1), g.ints(2))
    right = g.op("Slice", y, g.ints(0), g.ints(1), g.ints(3))
    g.output(g.op("Mul", left, right), "mul_outer")
    preprocessed = g.op("Mul", g.op("Sub", x, g.const(numpy.float32(0.25))), g.const(numpy.float32(0.5)))
    g.output(preprocessed, "normalised")
    return g


def pools() -> Graph:
    g = Graph("pools", 6)
    x = g.input("x", g.noise(2, 3, 11, 8))
    g.output(g.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), "max")
    g.output(g.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), "max_padded")
    g.output(g.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1), "max_ceil")
    g.output(g.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]), "average")
    padded = dict(kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    g.output(g.op("AveragePool", x, **padded), "average_padded")
    g.output(g.op("AveragePool", x, **padded, count_include_pad=1), "average_counting_pad")
    g.output(g.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1), "average_ceil")
    g.output(g.op("GlobalAveragePool", x), "global_average")
    return g


def linear() -> Graph:
    g = Graph("linear", 7)
    x = g.input("x", g.noise(3, 2, 3, 4))
    flat = g.op("Flatten", x)
    g.output(flat, "flatten")
    g.output(g.op("Flatten", x, axis=2), "flatten_axis_2")
    bias = g.const(g.noise(5))
    g.output(g.op("Gemm", flat, g.weight(5, 24), bias, transB=1), "gemm")
    g.output(g.op("Gemm", flat, g.const(g.noise(24, 5)), bias, alpha=0.5, beta=2.0), "gemm_scaled")
    g.output(g.op("Gemm", g.const(g.noise(3, 4)), flat, transA=1), "gemm_without_bias")
    g.output(g.op("Gemm", flat, g.weight(5, 24), g.const(g.noise(3, 1)), transB=1), "gemm_column_bias")
    y = g.input("y", g.noise(3, 2, 4, 6))
    g.output(g.op("MatMul", x, y), "matmul_batched")
    g.output(g.op("MatMul", x, g.const(g.noise(4, 6))), "matmul_shared")
    g.output(g.op("Dropout", g.op("Identity", flat)), "dropout")
    return g


def shapes() -> Graph:
    """Reshapes whose targets are computed from the input's shape, as exporters write `view`."""
    g = Graph("shapes", 8)
    x = g.input("x", g.noise(2, 6, 5, 4), dynamic=(0, 2, 3))
    shape = g.op("Shape", x)
    batch = g.op("Gather", shape, g.const(numpy.int64(0)), axis=0)
    height = g.op("Gather", shape, g.const(numpy.int64(2)), axis=0)
    parts = [g.op("Unsqueeze", part, g.ints(0)) for part in (batch, height)]
    target = g.op("Concat", parts[0], g.ints(-1), parts[1], axis=0)
    g.output(g.op("Reshape", x, target), "computed_target", rank=3)
    g.output(g.op("Reshape", x, g.ints(0, 0, -1)), "zero_copies", rank=3)
    moved = g.op("Transpose", x, perm=[2, 3, 0, 1])
    g.output(moved, "transpose")
    g.output(g.op("Reshape", moved, g.ints(-1, 3)), "transpose_reshape")
    g.output(g.op("Transpose", g.op("Flatten", x)), "transpose_default")
    backwards = g.op("Slice", x, g.ints(-1, 1), g.ints(-100, 4), g.ints(3, 2), g.ints(-1, 2))
    g.output(backwards, "slice_backwards")
    g.output(g.op("Slice", x, g.ints(2), g.ints(2**62), g.ints(1)), "slice_to_end")
    one = g.op("Slice", x, g.ints(1), g.ints(2), g.ints(1))
    g.output(g.op("Squeeze", one, g.ints(1)), "squeeze")
    g.output(g.op("Gather", x, g.ints(3, -1, 0), axis=1), "gather")
    halves = g.op("Cast", g.op("Cast", shape, to=1), to=7)
    g.output(g.op("Reshape", g.op("Relu", x), halves), "cast")
    g.output(g.op("Concat", x, g.op("Mul", x, x), axis=1), "concat_channels")
    g.output(g.op("Concat", x, x, axis=-1), "concat_width")
    factor = g.op("Constant", value_float=0.75)
    g.output(g.op("Mul", x, factor), "constant")
    return g


def resize_nearest() -> Graph:
    g = Graph("resize-nearest", 9)
    x = g.input("x", g.noise(1, 2, 5, 4))
    scales = g.const(numpy.float32([1, 1, 2, 2]))
    odd = g.const(numpy.float32([1, 1, 1.6, 2.5]))
    down = g.const(numpy.float32([1, 1, 0.6, 0.5]))
    kind = dict(mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    g.output(g.op("Resize", x, "", scales, **kind), "asymmetric_floor")
    g.output(g.op("Resize", x, "", odd, **kind), "asymmetric_odd")
    g.output(g.op("Resize", x, "", down, **kind), "asymmetric_down")
    g.output(g.op("Resize", x, "", odd, mode="nearest"), "half_pixel_default")
    g.output(g.op("Resize", x, "", odd, mode="nearest", nearest_mode="round_prefer_ceil"), "half_pixel_ceil")
    kind = dict(mode="nearest", coordinate_transformation_mode="align_corners")
    g.output(g.op("Resize", x, "", "", g.ints(1, 2, 9, 7), **kind), "align_corners")
    return g


def resize_linear() -> Graph:
    g = Graph("resize-linear", 10)
    x = g.input("x", g.noise(2, 2, 5, 4))
    odd = g.const(numpy.float32([1, 1, 1.6, 2.5]))
    for mode in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"):
        kind = dict(mode="linear", coordinate_transformation_mode=mode)
        g.output(g.op("Resize", x, "", odd, **kind), f"{mode}_up")
        g.output(g.op("Resize", x, "", "", g.ints(2, 2, 3, 3), **kind), f"{mode}_down")
    return g


def resize_cubic() -> Graph:
    g = Graph("resize-cubic", 11)
    x = g.input("x", g.noise(1, 2, 6, 5))
    odd = g.const(numpy.float32([1, 1, 1.5, 2.2]))
    g.output(g.op("Resize", x, "", odd, mode="cubic"), "half_pixel")
    g.output(g.op("Resize", x, "", odd, mode="cubic", cubic_coeff_a=-0.5), "half_pixel_catmull")
    kind = dict(mode="cubic", coordinate_transformation_mode="align_corners")
    g.output(g.op("Resize", x, "", "", g.ints(1, 2, 11, 8), **kind), "align_corners")
    g.output(g.op("Resize", x, "", "", g.ints(1, 2, 4, 3), mode="cubic"), "half_pixel_down")
    return g


OPERATORS = (
    convolutions,
    automatic_padding,
    activations,
    older_opset,
    upsample_linear,
    arithmetic,
    pools,
    linear,
    shapes,
    resize_nearest,
    resize_linear,
    resize_cubic,
)
