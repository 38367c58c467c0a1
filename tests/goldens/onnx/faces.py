"""Small graphs shaped like the published face models: SCRFD's nine outputs and an improved residual network."""

import numpy
from builder import Graph

STRIDES = (8, 16, 32)
ANCHORS = 2


def scrfd(height: int = 96, width: int = 64) -> Graph:
    """Backbone, top-down and bottom-up pyramid, heads shared by nothing; outputs score, box, landmarks per stride.

    As in the published file the outputs' names are numbers, the picture's size is open, and the pyramid's resize
    targets are computed from shapes.
    """
    g = Graph("scrfd-like", 20, opset=11)
    x = g.input("input.1", g.noise(1, 3, height, width), dynamic=(2, 3))

    def block(x, cin, cout, stride):
        y = g.op("Relu", g.conv(x, cin, cout, strides=[stride, stride], pads=[1, 1, 1, 1]))
        y = g.conv(y, cout, cout, pads=[1, 1, 1, 1])
        skip = x
        if stride > 1:
            pooled = dict(kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, count_include_pad=0)
            skip = g.op("AveragePool", x, **pooled)
        if cin != cout:
            skip = g.conv(skip, cin, cout, 1)
        return g.op("Relu", g.op("Add", y, skip))

    x = g.op("Relu", g.conv(x, 3, 8, strides=[2, 2], pads=[1, 1, 1, 1]))
    x = g.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    levels, channels = [], 8
    for cout in (12, 16, 16):
        x = block(x, channels, cout, 2)
        levels.append((x, cout))
        channels = cout

    width_out = 12
    lateral = [g.conv(level, cin, width_out, 1) for level, cin in levels]
    for upper in (2, 1):
        size = g.op("Slice", g.op("Shape", lateral[upper - 1]), g.ints(2), g.ints(4), g.ints(0))
        head = g.op("Slice", g.op("Shape", lateral[upper]), g.ints(0), g.ints(2), g.ints(0))
        target = g.op("Concat", head, g.op("Cast", size, to=7), axis=0)
        empty = g.const(numpy.zeros(0, dtype=numpy.float32))
        up = g.op(
            "Resize",
            lateral[upper],
            empty,
            empty,
            target,
            mode="nearest",
            nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
            cubic_coeff_a=-0.75,
        )
        lateral[upper - 1] = g.op("Add", lateral[upper - 1], up)
    pyramid = [g.conv(level, width_out, width_out, pads=[1, 1, 1, 1]) for level in lateral]
    for lower in (0, 1):
        down = g.conv(pyramid[lower], width_out, width_out, strides=[2, 2], pads=[1, 1, 1, 1])
        pyramid[lower + 1] = g.op("Add", pyramid[lower + 1], down)

    heads = {"score": [], "box": [], "landmarks": []}
    for level in pyramid:
        stem = g.op("Relu", g.conv(level, width_out, width_out, pads=[1, 1, 1, 1], group=width_out))
        stem = g.op("Relu", g.conv(stem, width_out, width_out, 1))
        for name, values in (("score", 1), ("box", 4), ("landmarks", 10)):
            y = g.conv(stem, width_out, ANCHORS * values, pads=[1, 1, 1, 1])
            if name == "box":
                y = g.op("Mul", y, g.const(numpy.float32(1.3)))
            y = g.op("Reshape", g.op("Transpose", y, perm=[2, 3, 0, 1]), g.ints(-1, values))
            heads[name].append(g.op("Sigmoid", y) if name == "score" else y)
    for index, tensor in enumerate(heads["score"] + heads["box"] + heads["landmarks"]):
        g.output(tensor, str(443 + 27 * index))
    return g


def iresnet(size: int = 32) -> Graph:
    """Residual blocks of batch norm, convolution and PRelu; flatten, fully connected layer and a last batch norm."""
    g = Graph("iresnet-like", 21, opset=11, initialisers_as_inputs=True)
    x = g.input("input.1", g.noise(2, 3, size, size), dynamic=(0,))
    x = g.prelu(g.batch_norm(g.conv(x, 3, 8, pads=[1, 1, 1, 1], bias=False), 8), 8)
    channels = 8
    for cout in (8, 12, 16, 20):
        y = g.batch_norm(x, channels, epsilon=2e-5)
        y = g.prelu(g.conv(y, channels, cout, pads=[1, 1, 1, 1]), cout)
        y = g.batch_norm(g.conv(y, cout, cout, strides=[2, 2], pads=[1, 1, 1, 1], bias=False), cout, epsilon=2e-5)
        skip = g.batch_norm(g.conv(x, channels, cout, 1, strides=[2, 2], bias=False), cout, epsilon=2e-5)
        x = g.op("Add", y, skip)
        channels = cout
    side = size // 16
    x = g.op("Dropout", g.batch_norm(x, channels, epsilon=2e-5), ratio=0.4)
    x = g.op("Flatten", x, axis=1)
    x = g.op("Gemm", x, g.weight(48, channels * side * side), g.const(g.noise(48)), alpha=1.0, beta=1.0, transB=1)
    # The published network ends with a batch norm over features, without height and width.
    g.output(g.batch_norm(x, 48, epsilon=2e-5), "683")
    return g


FACES = (scrfd, iresnet)
