"""SCRFD-shaped face detector: residual backbone, path-aggregation neck, per-stride heads, insightface's nine outputs.

Anchors: two per location, centred at (x, y) * stride without the half step; scores after the sigmoid, box distances
(left, top, right, bottom) and the five points' offsets in units of the stride.
"""

import functools

import torch
import torch.nn as nn
import torch.nn.functional as F

STRIDES = (8, 16, 32)
ANCHORS = 2
# The sizes of faces that the two anchors of a stride stand for, in pixels.
ANCHOR_SIZES = {8: (16.0, 32.0), 16: (64.0, 128.0), 32: (256.0, 512.0)}


def conv_bn(in_channels, channels, kernel=3, stride=1):
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(channels)
    )


class Block(nn.Module):
    def __init__(self, in_channels, channels, stride):
        super().__init__()
        self.conv1 = conv_bn(in_channels, channels, 3, stride)
        self.conv2 = conv_bn(channels, channels)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            pool = [nn.AvgPool2d(stride, stride)] if stride > 1 else []
            self.downsample = nn.Sequential(*pool, conv_bn(in_channels, channels, 1))

    def forward(self, x):
        y = self.conv2(F.relu(self.conv1(x)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Head(nn.Module):
    """Two shared 3x3 layers, then score, box and landmark convolutions; the box has a learned scale, as in SCRFD.

    In training boxes and points come in units of half the anchor's size, so that all strides learn at one pace;
    `fold` moves these units into the convolutions.
    """

    def __init__(self, channels, width, stride):
        super().__init__()
        self.tower = nn.Sequential(conv_bn(channels, width), nn.ReLU(), conv_bn(width, width), nn.ReLU())
        self.score = nn.Conv2d(width, ANCHORS, 3, 1, 1)
        self.box = nn.Conv2d(width, ANCHORS * 4, 3, 1, 1)
        self.points = nn.Conv2d(width, ANCHORS * 10, 3, 1, 1)
        self.scale = nn.Parameter(torch.tensor(1.0))
        units = torch.tensor([size / 2 / stride for size in ANCHOR_SIZES[stride]])
        self.register_buffer("units", units, persistent=False)
        nn.init.constant_(self.score.bias, -4.0)
        nn.init.constant_(self.box.bias, 1.0)

    def unit(self, values):
        return self.units.repeat_interleave(values)

    def fold(self):
        with torch.no_grad():
            for conv, values in ((self.box, 4), (self.points, 10)):
                conv.weight *= self.unit(values)[:, None, None, None]
                conv.bias *= self.unit(values)
        self.units = None

    def forward(self, x):
        x = self.tower(x)
        box, points = self.box(x) * self.scale, self.points(x)
        if self.units is not None:
            box = box * self.unit(4)[:, None, None]
            points = points * self.unit(10)[:, None, None]
        return self.score(x), box, points


class Scrfd(nn.Module):
    def __init__(self, stem=(8, 12), widths=(16, 28, 40, 56), units=(1, 2, 2, 2), neck=32, heads=(14, 24, 48)):
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, stem[0], 3, 2), nn.ReLU(), conv_bn(stem[0], stem[1]), nn.ReLU())
        self.pool = nn.MaxPool2d(2, 2)
        channels, stages = stem[1], []
        for index, (width, count) in enumerate(zip(widths, units)):
            blocks = [Block(channels, width, 1 if index == 0 else 2)]
            blocks += [Block(width, width, 1) for _ in range(count - 1)]
            stages.append(nn.Sequential(*blocks))
            channels = width
        self.stages = nn.ModuleList(stages)
        self.lateral = nn.ModuleList([conv_bn(w, neck, 1) for w in widths[1:]])
        self.fpn = nn.ModuleList([conv_bn(neck, neck) for _ in STRIDES])
        self.down = nn.ModuleList([conv_bn(neck, neck, 3, 2) for _ in STRIDES[1:]])
        self.pafpn = nn.ModuleList([conv_bn(neck, neck) for _ in STRIDES[1:]])
        self.heads = nn.ModuleList([Head(neck, head, stride) for head, stride in zip(heads, STRIDES)])

    def pyramid(self, x):
        """(score logits, boxes, points) as NCHW maps, for each stride."""
        x = self.stages[0](self.pool(self.stem(x)))
        features = []
        for stage in self.stages[1:]:
            x = stage(x)
            features.append(x)
        lateral = [conv(f) for conv, f in zip(self.lateral, features)]
        for level in (1, 0):
            above = F.interpolate(lateral[level + 1], size=lateral[level].shape[2:], mode="nearest")
            lateral[level] = lateral[level] + above
        inner = [conv(f) for conv, f in zip(self.fpn, lateral)]
        outer = [inner[0]]
        for level in (0, 1):
            inner[level + 1] = inner[level + 1] + self.down[level](inner[level])
            outer.append(self.pafpn[level](inner[level + 1]))
        return [head(f) for head, f in zip(self.heads, outer)]

    def forward(self, x):
        """Nine outputs of one picture in insightface's order: scores, boxes, points, each for stride 8, 16, 32."""
        maps = self.pyramid(x)
        scores = [torch.sigmoid(m[0].permute(2, 3, 0, 1).reshape(-1, 1)) for m in maps]
        boxes = [m[1].permute(2, 3, 0, 1).reshape(-1, 4) for m in maps]
        points = [m[2].permute(2, 3, 0, 1).reshape(-1, 10) for m in maps]
        return (*scores, *boxes, *points)


@functools.lru_cache(maxsize=8)
def anchors(height, width, device=None):
    """Centres [A,2], strides [A] and sizes [A] of all anchors, strides after one another, as `flatten` orders them."""
    centres, strides, sizes = [], [], []
    for stride in STRIDES:
        y, x = torch.meshgrid(torch.arange(height // stride), torch.arange(width // stride), indexing="ij")
        centre = torch.stack([x, y], -1).reshape(-1, 1, 2).expand(-1, ANCHORS, 2).reshape(-1, 2).float() * stride
        centres.append(centre)
        strides.append(torch.full((len(centre),), float(stride)))
        sizes.append(torch.tensor(ANCHOR_SIZES[stride]).repeat(len(centre) // ANCHORS))
    return tuple(torch.cat(parts).to(device) for parts in (centres, strides, sizes))


def flatten(maps):
    """Maps of a batch to score logits [B,A], boxes [B,A,4] and points [B,A,10], in units of the stride."""
    batch = maps[0][0].shape[0]
    parts = [
        [m[i].float().permute(0, 2, 3, 1).reshape(batch, -1, n) for m in maps] for i, n in ((0, 1), (1, 4), (2, 10))
    ]
    score, box, points = (torch.cat(p, 1) for p in parts)
    return score[..., 0], box, points


def assign(faces, centres, sizes, strides, count=None):
    """Per anchor the index of its face or -1, and whether the anchor is left out of the score loss; each [A] or [B,A].

    `faces` is [n,4], or [B,n,4] for a batch whose pictures have the first `count` [B] of their rows. An anchor stands for a face
    when it lies in the face's middle and its size is within a factor of about 1.7.
    """
    if faces.shape[-2] == 0:
        shape = (*faces.shape[:-2], len(centres))
        return torch.full(shape, -1, device=centres.device), torch.zeros(shape, dtype=torch.bool, device=centres.device)
    middle = ((faces[..., :2] + faces[..., 2:]) / 2).unsqueeze(-2)
    extent = (faces[..., 2:] - faces[..., :2]).unsqueeze(-2)
    size = extent.amax(-1).clamp(11.0, 700.0)
    ratio = (torch.log2(sizes) - torch.log2(size)).abs()
    offset = (centres - middle).abs()
    reach = strides[:, None]
    inside = (offset <= torch.maximum(reach * 0.75, extent * 0.16)).all(-1)
    near = (offset <= torch.maximum(reach * 1.5, extent * 0.4)).all(-1)
    distance = (offset / extent).sum(-1) + ratio
    chosen, ignored = inside & (ratio <= 0.76), near & (ratio < 0.95)
    if count is not None:
        there = (torch.arange(faces.shape[-2], device=faces.device) < count[..., None])[..., None]
        chosen, ignored = chosen & there, ignored & there
    best, target = distance.masked_fill(~chosen, float("inf")).min(-2)
    target = target.masked_fill(best.isinf(), -1)
    return target, ignored.any(-2) & (target < 0)


def iou(a, b):
    """Intersection over union and its distance term of boxes [n,4] given as corners."""
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    inter = (high - low).clamp(min=0).prod(1)
    union = (a[:, 2:] - a[:, :2]).clamp(min=0).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - inter
    hull = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    distance = ((a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]) / 2).pow(2).sum(1) / hull.pow(2).sum(1).clamp(min=1e-6)
    return inter / union.clamp(min=1e-6), distance


def loss(maps, faces, points, height, width):
    """Quality focal loss on scores, DIoU on boxes, L1 on the points in units of the face's size.

    `faces` and `points` are lists, one entry per picture: [n,4] corners and [n,10].
    """
    count = torch.tensor([len(f) for f in faces], device=maps[0][0].device)
    most = max(1, max(len(f) for f in faces))
    padded = [torch.stack([F.pad(f, (0, 0, 0, most - len(f)), value=1.0) for f in part]) for part in (faces, points)]
    return padded_loss(maps, *padded, count, height, width)


def padded_loss(maps, faces, points, count, height, width):
    """`loss` of faces [B,n,4] and points [B,n,10], of which each picture has the first `count` [B]."""
    score, box, point = flatten(maps)
    centres, strides, sizes = anchors(height, width, score.device)
    target, ignored = assign(faces, centres, sizes, strides, count)
    picture, anchor = torch.nonzero(target >= 0, as_tuple=True)
    quality = torch.zeros_like(score)
    count = max(len(picture), 1)
    box_loss = point_loss = score.sum() * 0
    if len(picture):
        face = target[picture, anchor]
        true_box, true_points = faces[picture, face], points[picture, face]
        centre, stride = centres[anchor], strides[anchor, None]
        reach = box[picture, anchor] * stride
        corners = torch.cat([centre - reach[:, :2], centre + reach[:, 2:]], 1)
        overlap, distance = iou(corners, true_box)
        # The root lifts a good box's score well over the usual threshold of one half.
        quality[picture, anchor] = overlap.detach().clamp(min=0.1).sqrt()
        box_loss = (1 - overlap + distance).sum() / count
        predicted = point[picture, anchor] * stride + centre.repeat(1, 5)
        size = (true_box[:, 2:] - true_box[:, :2]).mean(1, keepdim=True)
        point_loss = ((predicted - true_points).abs() / size).mean(1).sum() / count
    weight = (torch.sigmoid(score).detach() - quality).abs().pow(2) * (~ignored)
    score_loss = (F.binary_cross_entropy_with_logits(score, quality, reduction="none") * weight).sum() / count
    return score_loss, box_loss, point_loss


def decode(outputs, height, width, threshold=0.5, overlap=0.4):
    """Nine outputs of one picture to (scores [n], boxes [n,4], points [n,5,2]), best first, after suppression."""
    outputs = [torch.as_tensor(o) for o in outputs]
    centres, strides, _ = anchors(height, width)
    score = torch.cat(outputs[:3])[:, 0]
    reach = torch.cat(outputs[3:6]) * strides[:, None]
    points = (torch.cat(outputs[6:9]) * strides[:, None]).reshape(-1, 5, 2) + centres[:, None]
    boxes = torch.cat([centres - reach[:, :2], centres + reach[:, 2:]], 1)
    keep = score >= threshold
    score, boxes, points = score[keep], boxes[keep], points[keep]
    order = score.argsort(descending=True)
    score, boxes, points = score[order], boxes[order], points[order]
    kept, alive = [], torch.ones(len(score), dtype=torch.bool)
    for i in range(len(score)):
        if alive[i]:
            kept.append(i)
            alive &= iou(boxes[i : i + 1], boxes)[0] <= overlap
    return score[kept], boxes[kept], points[kept]


def published(path):
    """The network of a published `.onnx` file, for training: each folded batch norm begins as the identity, heads in units of their anchors."""
    import numpy as np
    import onnx

    graph = onnx.load(path).graph
    tensors = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).astype(np.float32)) for t in graph.initializer}
    model, layers = Scrfd().eval(), []
    kinds = (nn.Conv2d, nn.BatchNorm2d)
    hooks = [m.register_forward_hook(lambda m, *_: layers.append(m)) for m in model.modules() if isinstance(m, kinds)]
    with torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))
    for hook in hooks:
        hook.remove()
    # The exporter folds every norm into the convolution before it; both lists are in the order of execution.
    nodes = [n for n in graph.node if n.op_type == "Conv"]
    if len(nodes) != sum(isinstance(layer, nn.Conv2d) for layer in layers):
        raise ValueError(f"{path} is of another network")
    nodes = iter(nodes)
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                weight, bias = (tensors[name] for name in next(nodes).input[1:])
                layer.weight.copy_(weight)
                if layer.bias is not None:
                    layer.bias.copy_(bias)
                continue
            layer.weight.fill_(1.0)
            layer.bias.copy_(bias)
            layer.running_mean.zero_()
            layer.running_var.fill_(1.0 - layer.eps)
        for index, head in enumerate(model.heads):
            head.scale.copy_(tensors[f"heads.{index}.scale"])
            for conv, values in ((head.box, 4), (head.points, 10)):
                conv.weight /= head.unit(values)[:, None, None, None]
                conv.bias /= head.unit(values)
    return model
