"""A second recogniser, for evaluation alone: no training of any other network ever sees it.

It differs from the first in everything that could make the two fail alike: a wider crop (facexlib's template at 96),
plain ReLU residual network with squeeze-and-excitation and generalised-mean pooling, supervised contrastive loss, 256
features, its own seed and augmentation order.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

INPUT_SIZE = 96


class Block(nn.Module):
    def __init__(self, in_channels, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.squeeze = nn.Linear(channels, channels // 4)
        self.excite = nn.Linear(channels // 4, channels)
        self.project = None
        if stride != 1 or in_channels != channels:
            self.project = nn.Sequential(
                nn.AvgPool2d(stride, stride) if stride > 1 else nn.Identity(),
                nn.Conv2d(in_channels, channels, 1, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3))))))
        y = y * gate[:, :, None, None]
        return F.relu(y + (x if self.project is None else self.project(x)))


class SecondRecogniser(nn.Module):
    """[N,3,96,96], RGB / 255 - 0.5, to [N,256] of unit length."""

    def __init__(self, widths=(32, 64, 112, 176), units=(2, 2, 2, 2), features=256):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 5, 2, 2, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        blocks, channels = [], 32
        for index, (width, count) in enumerate(zip(widths, units)):
            for unit in range(count):
                blocks.append(Block(channels, width, 2 if unit == 0 and index > 0 else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.power = nn.Parameter(torch.tensor(3.0))
        self.head = nn.Sequential(nn.Linear(2 * channels, 384), nn.BatchNorm1d(384), nn.ReLU(), nn.Linear(384, features))

    def forward(self, x):
        x = self.blocks(self.stem(x)).float()
        power = self.power.clamp(1, 6)
        pooled = x.clamp(min=1e-4).pow(power).mean((2, 3)).pow(1 / power)
        rows = x.mean(3).amax(2)
        return F.normalize(self.head(torch.cat([pooled, rows], 1)).float())


def supervised_contrastive(features, identity, temperature=0.1):
    """SupCon (arXiv 2004.11362) of unit-length features over one batch that holds several pictures per identity."""
    logits = features @ features.t() / temperature
    self_mask = torch.eye(len(features), dtype=torch.bool)
    same = (identity[:, None] == identity[None, :]) & ~self_mask
    log_probability = logits - torch.logsumexp(logits.masked_fill(self_mask, -1e9), 1, keepdim=True)
    return -(log_probability * same).sum(1).div(same.sum(1).clamp(min=1)).mean()


def published(path):
    """The network inside `tools/training/judge.onnx`, from which the exporter folded the two-dimensional batch norms into the convolutions before them."""
    import numpy as np
    import onnx

    graph = onnx.load(path).graph
    tensors = {t.name: onnx.numpy_helper.to_array(t).astype(np.float32) for t in graph.initializer}
    for node in graph.node:  # halves are cast before they are used
        if node.op_type == "Cast" and node.input[0] in tensors:
            tensors[node.output[0]] = tensors[node.input[0]]
    model = SecondRecogniser().eval()
    layers = []  # in the order of execution, as the graph's nodes are
    hooks = [m.register_forward_hook(lambda m, *_: layers.append(m)) for m in model.modules() if not list(m.children())]
    with torch.no_grad():
        model(torch.zeros(1, 3, INPUT_SIZE, INPUT_SIZE))
    for hook in hooks:
        hook.remove()
    nodes = iter(n for n in graph.node if n.op_type in ("Conv", "Gemm", "BatchNormalization"))
    of = lambda node: [torch.from_numpy(tensors[name].copy()) for name in node.input[1:]]
    folded = None
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                weight, *bias = of(next(nodes))
                layer.weight.copy_(weight)
                if layer.bias is not None:
                    layer.bias.copy_(bias[0])
                elif bias:
                    folded = bias[0]
            elif isinstance(layer, nn.BatchNorm2d):
                layer.weight.fill_(1.0)
                layer.bias.copy_(folded)
                layer.running_mean.zero_()
                layer.running_var.fill_(1.0 - layer.eps)
            elif isinstance(layer, nn.BatchNorm1d):
                for own, value in zip((layer.weight, layer.bias, layer.running_mean, layer.running_var), of(next(nodes))):
                    own.copy_(value)
        model.power.copy_(torch.from_numpy(tensors["network.power"].copy()))
    return model
