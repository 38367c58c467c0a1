"""What a camera and a file do to a picture, in batches on the device: light, lens, sensor, resampling, JPEG. f32 [B,3,S,S] in 0..1."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from textures import chance, coordinates, log_uniform, uniform

LUMA = (0.299, 0.587, 0.114)
# The luminance and chrominance tables of the JPEG standard's annex K.
JPEG_LUMA = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)
JPEG_CHROMA = (17, 18, 24, 47, 18, 21, 26, 66, 24, 26, 56, 99, 47, 66, 99, 99)


def luma(x):
    return (x * torch.tensor(LUMA, device=x.device).view(1, 3, 1, 1)).sum(1, keepdim=True)


def blur(x, sigma):
    """Gaussian blur by one sigma [B,1,1,1] per picture, in pixels; 0 leaves a picture as it is."""
    n, channels, height, width = x.shape
    radius = max(1, math.ceil(2.5 * float(sigma.max())))
    at = torch.arange(-radius, radius + 1, device=x.device).float()
    kernel = torch.exp(-at.square() / (2 * sigma.view(n, 1).clamp(min=0.05).square()))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    flat = F.pad(x.reshape(1, n * channels, height, width), (radius,) * 4, mode="replicate")
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=n * channels)
    return F.conv2d(flat, kernel[:, None, :, None], groups=n * channels).reshape(x.shape)


def softened(x, sigma):
    """A wide blur, worked out at a quarter of the size."""
    small = F.avg_pool2d(x, 4)
    soft = F.interpolate(blur(small, sigma / 4), x.shape[-2:], mode="bilinear", align_corners=False)
    return torch.where(sigma > 0, soft, x)


def light(x, there):
    """Exposure, gamma, contrast, white balance, vignetting, a shadow with a straight edge, grey pictures; `there` bool [B,1,1,1]."""
    n, _, size, _ = x.shape
    device = x.device
    y = x.clamp(1e-4, 1).pow(torch.exp(torch.randn(n, 1, 1, 1, device=device) * 0.25))
    y = y * torch.exp(torch.randn(n, 1, 1, 1, device=device) * 0.22 + torch.randn(n, 3, 1, 1, device=device) * 0.07)
    middle = y.mean((1, 2, 3), keepdim=True)
    y = (y - middle) * torch.exp(torch.randn(n, 1, 1, 1, device=device) * 0.2) + middle + torch.randn(n, 1, 1, 1, device=device) * 0.03
    u, v = coordinates(size, device)
    u, v = u / size - 0.5, v / size - 0.5
    y = y * (1 - chance(0.3, n, device) * uniform(0.2, 1.4, n, 1, 1, 1, device=device) * (u.square() + v.square()))
    angle = uniform(0, 6.3, n, 1, 1, 1, device=device)
    side = (u * angle.cos() + v * angle.sin() + uniform(-0.3, 0.3, n, 1, 1, 1, device=device)) * log_uniform(3, 200, n, 1, 1, 1, device=device)
    y = y * (1 - chance(0.2, n, device) * uniform(0.2, 0.7, n, 1, 1, 1, device=device) * torch.sigmoid(side))
    grey = chance(0.15, n, device) * uniform(0.5, 1.0, n, 1, 1, 1, device=device)
    y = torch.lerp(y, luma(y).expand_as(y) * (1 + torch.randn(n, 3, 1, 1, device=device) * 0.04), grey)
    return torch.where(there, y.clamp(0, 1), x)


def resampled(x, there):
    """As a smaller photo enlarged."""
    scale = float(torch.empty(1).uniform_(0.3, 0.8))
    small = F.interpolate(x, scale_factor=scale, mode="bilinear", antialias=True, align_corners=False)
    return torch.where(there, F.interpolate(small, x.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1), x)


def grain(x, there):
    """Noise, more of it in a few pictures, some of it coarse."""
    n = len(x)
    amount = log_uniform(0.004, 0.08, n, 1, 1, 1, device=x.device)
    coarse = F.interpolate(torch.randn(n, 3, x.shape[-2] // 2, x.shape[-1] // 2, device=x.device), x.shape[-2:], mode="nearest")
    mixed = torch.where(chance(0.3, n, x.device), coarse, torch.randn_like(x))
    return torch.where(there, (x + mixed * amount).clamp(0, 1), x)


def jpeg(x, quality, there):
    """The loss of baseline JPEG at `quality` [B] (1 to 100, libjpeg's scale), chroma halved: block-wise DCT, quantisation, and back."""
    n, _, height, width = x.shape
    device = x.device
    y = luma(x)
    zero = 128 / 255
    blue, red = (x[:, 2:] - y) * 0.564 + zero, (x[:, :1] - y) * 0.713 + zero
    factor = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    at = torch.arange(8, device=device).float()
    dct = torch.cos((2 * at[None] + 1) * at[:, None] * math.pi / 16) * 0.5
    dct[0] /= math.sqrt(2)
    chroma = torch.full((8, 8), 99.0)
    chroma[:4, :4] = torch.tensor(JPEG_CHROMA).view(4, 4)

    def quantised(plane, table):
        step = ((table.to(device)[None] * factor.view(-1, 1, 1) + 50) / 100).floor().clamp(1, 255).view(n, 1, 1, 8, 8)
        h, w = plane.shape[-2:]
        blocks = ((plane * 255).round() - 128).reshape(n, h // 8, 8, w // 8, 8).permute(0, 1, 3, 2, 4)
        blocks = dct.t() @ (((dct @ blocks @ dct.t()) / step).round() * step) @ dct
        return ((blocks + 128).round().clamp(0, 255) / 255).permute(0, 1, 3, 2, 4).reshape(n, 1, h, w)

    y = quantised(y, torch.tensor(JPEG_LUMA).view(8, 8).float())
    blue, red = (
        F.interpolate(quantised(F.avg_pool2d(c, 2), chroma), (height, width), mode="bilinear", align_corners=False) - zero for c in (blue, red)
    )
    r, b = y + 1.402 * red, y + 1.772 * blue
    g = (y - LUMA[0] * r - LUMA[2] * b) / LUMA[1]
    return torch.where(there, torch.cat([r, g, b], 1).clamp(0, 1), x)


def photographed(x, strength, soft):
    """All of it, each now and then: `strength` [B] scales how often; `soft` bool [B] allows the wide blur that only large faces outlast."""
    n, device = len(x), x.device
    often = lambda probability: torch.rand(n, 1, 1, 1, device=device) < probability * strength.view(n, 1, 1, 1)
    x = softened(x, torch.where(often(0.3) & soft.view(n, 1, 1, 1), log_uniform(2.0, 8.0, n, 1, 1, 1, device=device), 0.0))
    x = light(x, often(0.75))
    x = blur(x, torch.where(often(0.25), uniform(0.4, 1.6, n, 1, 1, 1, device=device), 0.0))
    x = resampled(x, often(0.2))
    x = grain(x, often(0.4))
    return jpeg(x, log_uniform(15, 95, n, device=device), often(0.5))
