"""ArcFace-shaped recogniser: an IResNet of any width, key names as in the published PyTorch code of that family.

Stem: convolution, batch norm, PReLU. Unit: BN, 3x3, BN, PReLU, 3x3 (stride), BN, plus the input (or its strided 1x1
projection). Head: BN, dropout, flatten, fully connected, BN. Input [N,3,112,112], (RGB - 127.5) / 127.5; output
[N,512], not normalised.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Unit(nn.Module):
    def __init__(self, in_channels, channels, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.prelu = nn.PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x):
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        y = self.bn3(self.conv2(y))
        return y + (x if self.downsample is None else self.downsample(x))


class IResNet(nn.Module):
    def __init__(self, widths=(12, 16, 40, 80, 96, 44), units=(1, 2, 3, 3, 1), features=512, dropout=0.2):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.prelu = nn.PReLU(widths[0])
        layers, size = [], 112
        for index, count in enumerate(units):
            in_channels, channels = widths[index], widths[index + 1]
            layers.append(
                nn.Sequential(Unit(in_channels, channels, 2), *[Unit(channels, channels, 1) for _ in range(count - 1)])
            )
            self.add_module(f"layer{index + 1}", layers[-1])
            size = (size + 1) // 2
        self.stages = len(layers)
        self.bn2 = nn.BatchNorm2d(widths[-1])
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(widths[-1] * size * size, features)
        self.features = nn.BatchNorm1d(features)
        # ArcFace fixes this scale at one: the loss normalises, and a free scale only drifts.
        nn.init.constant_(self.features.weight, 1.0)
        self.features.weight.requires_grad = False
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        for module in self.modules():
            if isinstance(module, Unit):
                nn.init.constant_(module.bn3.weight, 0.3)

    def forward(self, x):
        return self.with_stages(x)[0]

    def with_stages(self, x):
        """The raw embedding, and the activations of every stage."""
        x, seen = self.prelu(self.bn1(self.conv1(x))), []
        for index in range(self.stages):
            x = getattr(self, f"layer{index + 1}")(x)
            seen.append(x)
        x = torch.flatten(self.dropout(self.bn2(x)), 1)
        return self.features(self.fc(x)), seen


class CosFace(nn.Module):
    """Additive cosine margin over the training identities (CosFace, arXiv 1801.09414)."""

    def __init__(self, features, classes, scale=24.0, margin=0.3):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, features) * 0.05)
        self.scale, self.margin = scale, margin

    def forward(self, x, target):
        cosine = F.linear(F.normalize(x.float()), F.normalize(self.weight.float()))
        cosine = cosine - self.margin * F.one_hot(target, cosine.shape[1])
        return F.cross_entropy(self.scale * cosine, target)


def published(path):
    """The network of a published `.onnx` file. The exporter folds a batch norm that follows a convolution into it, and keeps the names of the other norms."""
    import numpy as np
    import onnx

    graph = onnx.load(path).graph
    tensors = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).astype(np.float32)) for t in graph.initializer}
    model = IResNet().eval()
    # Both lists are in the order of execution.
    layers = []
    hooks = [
        m.register_forward_hook(lambda m, *_, name=name: layers.append((name, m)))
        for name, m in model.named_modules()
        if isinstance(m, (torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.PReLU, torch.nn.Linear, torch.nn.BatchNorm1d))
    ]
    with torch.no_grad():
        model(torch.zeros(1, 3, 112, 112))
    for hook in hooks:
        hook.remove()
    nodes = iter([n for n in graph.node if n.op_type in ("Conv", "BatchNormalization", "PRelu", "Gemm")])
    node = next(nodes, None)
    previous = None
    for name, layer in layers:
        if isinstance(layer, (torch.nn.BatchNorm2d, torch.nn.BatchNorm1d)):
            if node is not None and node.op_type == "BatchNormalization" and node.input[1] == f"{name}.weight":
                scale, bias, mean, variance = (tensors[i] for i in node.input[1:])
                node = next(nodes, None)
            else:  # folded: what is left of it is the convolution's bias
                count = layer.num_features
                scale, mean, variance = torch.ones(count), torch.zeros(count), torch.ones(count) - layer.eps
                bias = previous
            layer.weight.data, layer.bias.data = scale.clone(), bias.clone()
            layer.running_mean, layer.running_var = mean.clone(), variance.clone()
            continue
        values = [tensors[i] for i in node.input if i in tensors]
        node = next(nodes, None)
        if isinstance(layer, torch.nn.PReLU):
            layer.weight.data = values[0].reshape(-1).clone()
            continue
        assert values[0].shape == layer.weight.shape, (layer, values[0].shape)
        layer.weight.data = values[0].clone()
        if isinstance(layer, torch.nn.Linear):
            layer.bias.data = values[1].clone()
        previous = values[1] if len(values) > 1 else None
    if node is not None:
        raise ValueError("the graph has layers that the network lacks")
    import onnxruntime

    x = torch.randn(2, 3, 112, 112)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        difference = (torch.from_numpy(session.run(None, {"input.1": x.numpy()})[0]) - model(x)).abs().max()
    print(f"recogniser: largest difference to the file {float(difference):.1e}")
    if difference > 1e-3:
        raise ValueError("the recovered recogniser differs from the file")
    return model
