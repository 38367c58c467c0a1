"""BiSeNet face parser: facexlib's module names and forward semantics at any width.

Input: RGB / 255, ImageNet-normalised. Output: logits of 19 classes at the input's size (bilinear, align_corners=True).
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

CLASSES = 19
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class ConvBNReLU(nn.Module):
    def __init__(self, in_channels, channels, kernel=3, stride=1, padding=1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class BasicBlock(nn.Module):
    def __init__(self, in_channels, channels, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        if in_channels != channels or stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    def __init__(self, widths):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = widths[0]
        for index, width in enumerate(widths):
            stride = 1 if index == 0 else 2
            setattr(self, f"layer{index + 1}", nn.Sequential(BasicBlock(channels, width, stride), BasicBlock(width, width)))
            channels = width

    def forward(self, x):
        x = self.layer1(self.maxpool(F.relu(self.bn1(self.conv1(x)))))
        x8 = self.layer2(x)
        x16 = self.layer3(x8)
        return x8, x16, self.layer4(x16)


class AttentionRefinement(nn.Module):
    def __init__(self, in_channels, channels):
        super().__init__()
        self.conv = ConvBNReLU(in_channels, channels)
        self.conv_atten = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(channels)

    def forward(self, x):
        x = self.conv(x)
        gate = torch.sigmoid(self.bn_atten(self.conv_atten(x.mean((2, 3), keepdim=True))))
        return x * gate


class ContextPath(nn.Module):
    def __init__(self, widths, channels):
        super().__init__()
        self.resnet = ResNet18(widths)
        self.arm16 = AttentionRefinement(widths[2], channels)
        self.arm32 = AttentionRefinement(widths[3], channels)
        self.conv_head32 = ConvBNReLU(channels, channels)
        self.conv_head16 = ConvBNReLU(channels, channels)
        self.conv_avg = ConvBNReLU(widths[3], channels, 1, 1, 0)

    def forward(self, x):
        x8, x16, x32 = self.resnet(x)
        average = self.conv_avg(x32.mean((2, 3), keepdim=True))
        y32 = self.arm32(x32) + average
        y32 = self.conv_head32(F.interpolate(y32, x16.shape[2:], mode="nearest"))
        y16 = self.arm16(x16) + y32
        y16 = self.conv_head16(F.interpolate(y16, x8.shape[2:], mode="nearest"))
        return x8, y16, y32


class FeatureFusion(nn.Module):
    def __init__(self, in_channels, channels):
        super().__init__()
        self.convblk = ConvBNReLU(in_channels, channels, 1, 1, 0)
        self.conv1 = nn.Conv2d(channels, channels // 4, 1, bias=False)
        self.conv2 = nn.Conv2d(channels // 4, channels, 1, bias=False)

    def forward(self, spatial, context):
        x = self.convblk(torch.cat([spatial, context], 1))
        gate = torch.sigmoid(self.conv2(F.relu(self.conv1(x.mean((2, 3), keepdim=True)))))
        return x * gate + x


class Output(nn.Module):
    def __init__(self, in_channels, channels, classes):
        super().__init__()
        self.conv = ConvBNReLU(in_channels, channels)
        self.conv_out = nn.Conv2d(channels, classes, 1, bias=False)

    def forward(self, x):
        return self.conv_out(self.conv(x))


class BiSeNet(nn.Module):
    def __init__(self, widths=(16, 32, 64, 88), context=32, fused=80, classes=CLASSES):
        super().__init__()
        self.cp = ContextPath(widths, context)
        self.ffm = FeatureFusion(widths[1] + context, fused)
        self.conv_out = Output(fused, fused, classes)
        self.conv_out16 = Output(context, 24, classes)
        self.conv_out32 = Output(context, 24, classes)

    def maps(self, x):
        """The three outputs before enlarging: classes at an eighth, auxiliary at an eighth and a sixteenth."""
        spatial, context8, context16 = self.cp(x)
        return self.conv_out(self.ffm(spatial, context8)), self.conv_out16(context8), self.conv_out32(context16)

    def forward(self, x):
        return F.interpolate(self.maps(x)[0], x.shape[2:], mode="bilinear", align_corners=True)


def enlarged_at(maps, size, rows, columns):
    """Values at some rows and columns of the bilinear (align_corners=True) enlargement of `maps` to `size` squared.

    Two small matrix products: far cheaper in training than enlarging every map to every pixel.
    """
    weights = []
    for positions, length in ((rows, maps.shape[2]), (columns, maps.shape[3])):
        at = positions.float() * ((length - 1) / (size - 1))
        weights.append((1 - (at[:, None] - torch.arange(length)).abs()).clamp(min=0))
    return torch.einsum("rh,bchw,sw->bcrs", weights[0], maps.float(), weights[1])
