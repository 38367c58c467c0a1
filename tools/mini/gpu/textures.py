"""Backgrounds without faces, made in batches on the device: noise, fabrics, gratings, checks, foliage, strokes like text, shapes and suits.

Pictures are f32 [B,3,S,S] in 0..1. Random numbers come from PyTorch's generator.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def uniform(low, high, *shape, device):
    return torch.rand(*shape, device=device) * (high - low) + low


def log_uniform(low, high, *shape, device):
    return torch.exp(uniform(math.log(low), math.log(high), *shape, device=device))


def chance(probability, n, device):
    """bool [n,1,1,1]."""
    return torch.rand(n, 1, 1, 1, device=device) < probability


def colours(n, device):
    """[n,3,1,1]: half of them nearly grey, as most of what photos show is."""
    value, tint = uniform(0.02, 1.0, n, 1, 1, 1, device=device), torch.rand(n, 3, 1, 1, device=device)
    strength = torch.where(chance(0.5, n, device), 0.15, 0.9) * torch.rand(n, 1, 1, 1, device=device)
    return value * (1 - strength) + tint * strength


def skin(n, device):
    """[n,3,1,1]: light to dark skin."""
    tone = uniform(0.15, 1.0, n, 1, 1, 1, device=device)
    light, dark = torch.tensor([0.93, 0.76, 0.66], device=device), torch.tensor([0.25, 0.14, 0.09], device=device)
    return (dark.view(1, 3, 1, 1) * (1 - tone) + light.view(1, 3, 1, 1) * tone) * uniform(0.9, 1.1, n, 3, 1, 1, device=device)


def coordinates(size, device):
    """x and y [1,1,S,S] in pixels."""
    at = torch.arange(float(size), device=device)
    return at.view(1, 1, 1, -1).expand(1, 1, size, size), at.view(1, 1, -1, 1).expand(1, 1, size, size)


def turned(n, size, device, stretch=1.0):
    """Coordinates [n,1,S,S] of a randomly turned, stretched and shifted plane; one unit is the picture's side."""
    x, y = coordinates(size, device)
    angle = uniform(0, 2 * math.pi, n, 1, 1, 1, device=device)
    x, y = x / size - 0.5, y / size - 0.5
    u, v = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    return u * stretch, v / stretch


def noise(n, channels, size, device, slope=None):
    """Octaves of noise [n,channels,S,S] of about unit deviation; the larger `slope` [n,1,1,1], the smoother."""
    slope = uniform(0.0, 1.4, n, 1, 1, 1, device=device) if slope is None else slope
    total, energy, cells, octave = 0.0, 0.0, 5, 0
    while cells <= size:
        amplitude = torch.exp2(-slope * octave)
        total = total + amplitude * F.interpolate(torch.randn(n, channels, cells, cells, device=device), (size, size), mode="bilinear", align_corners=False)
        energy = energy + amplitude**2
        cells, octave = cells * 2, octave + 1
    return total / (0.6 * energy.sqrt())


def streaks(n, channels, size, device):
    """Noise drawn out along a direction: hair, cloth, wood, curtains."""
    u, v = turned(n, size, device, log_uniform(1.0, 4.0, n, 1, 1, 1, device=device))
    # Reflected at the border; a stretched plane looks beyond it.
    return F.grid_sample(noise(n, channels, size, device), torch.stack([u, v], -1)[:, 0] * 1.2, padding_mode="reflection", align_corners=False)


def wave(n, size, device, low=2.0, high=90.0):
    """A grating -1..1, straight or bent by noise, soft or hard."""
    u, _ = turned(n, size, device)
    bend = noise(n, 1, size, device, torch.full((n, 1, 1, 1), 1.6, device=device)) * torch.where(chance(0.5, n, device), 0.06, 0.0)
    frequency = log_uniform(low, high, n, 1, 1, 1, device=device)
    phase = uniform(0, 6.3, n, 1, 1, 1, device=device)
    return torch.tanh(log_uniform(0.7, 8.0, n, 1, 1, 1, device=device) * torch.sin(6.2832 * frequency * (u + bend) + phase))


def between(value, n, device):
    """`value` [n,1,S,S] in 0..1 as a blend of two colours."""
    return torch.lerp(colours(n, device), colours(n, device), value.clamp(0, 1))


def cloudy(n, size, device):
    grey, colour = streaks(n, 1, size, device), noise(n, 3, size, device)
    mix = torch.rand(n, 1, 1, 1, device=device) ** 4
    return colours(n, device) + uniform(0.03, 0.35, n, 1, 1, 1, device=device) * (grey * (1 - mix) + colour * mix)


def gradient(n, size, device):
    corners = torch.cat([colours(n, device) for _ in range(4)], 2).reshape(n, 3, 2, 2)
    return F.interpolate(corners, (size, size), mode="bilinear", align_corners=True)


def grating(n, size, device):
    return between(wave(n, size, device) * 0.5 + 0.5, n, device)


def plaid(n, size, device):
    """Checks and woven cloth."""
    a, b = wave(n, size, device, 2, 60), wave(n, size, device, 2, 60)
    return between(torch.where(chance(0.5, n, device), a * b, (a + b) / 2) * 0.5 + 0.5, n, device)


def folds(n, size, device):
    """One cloth with few soft folds, as suits and curtains have."""
    shade = wave(n, size, device, 0.7, 9) * 0.6 + streaks(n, 1, size, device) * 0.5
    return colours(n, device) * (1 + uniform(0.05, 0.5, n, 1, 1, 1, device=device) * shade)


def cells(n, size, device, count=56):
    """Foliage, stones, tiles: cells around random points, darker where they meet."""
    small = size // 4
    u, v = turned(n, small, device, log_uniform(1.0, 2.5, n, 1, 1, 1, device=device))
    u, v = (t + noise(n, 1, small, device) * 0.01 for t in (u, v))
    at = uniform(-0.75, 0.75, n, count, 2, 1, 1, device=device)
    apart = (u - at[:, :, 0]).square() + (v - at[:, :, 1]).square()
    near, which = apart.topk(2, 1, largest=False)
    palette = colours(n, device) + torch.randn(n, 3, count, 1, device=device) * uniform(0.02, 0.3, n, 1, 1, 1, device=device)
    colour = palette[..., 0].gather(2, which[:, :1].reshape(n, 1, -1).expand(-1, 3, -1)).reshape(n, 3, small, small)
    edge = ((near[:, 1:].sqrt() - near[:, :1].sqrt()) * log_uniform(8, 80, n, 1, 1, 1, device=device)).clamp(0, 1)
    return F.interpolate(colour * (0.3 + 0.7 * edge), (size, size), mode="bilinear", align_corners=False)


def writing(n, size, device):
    """Rows of strokes like text."""
    x, y = coordinates(size, device)
    rows, columns = log_uniform(8, 60, n, 1, 1, 1, device=device), log_uniform(20, 160, n, 1, 1, 1, device=device)
    cell_y, cell_x = y * rows / size, x * columns / size
    # A hash of the cell stands for its glyph.
    mark = torch.sin((cell_x * 3).floor() * 12.99 + (cell_y * 4).floor() * 78.23 + torch.rand(n, 1, 1, 1, device=device) * 9) * 43758.5
    ink = (mark.frac().abs() < 0.5) & (cell_y.frac() < 0.6) & (torch.sin(cell_x.floor() * 1.7 + cell_y.floor() * 5.1) > -0.6)
    return between(ink.float(), n, device)


def photographs(n, size, device, photos):
    """Random parts of `photos` u8 [P,3,H,W], turned over and stretched a little."""
    which = torch.randint(len(photos), (n,), device=device)
    scale = uniform(0.25, 1.0, n, 1, 1, device=device)
    theta = torch.zeros(n, 2, 3, device=device)
    theta[:, :1, :1] = scale * torch.where(torch.rand(n, 1, 1, device=device) < 0.5, 1.0, -1.0)
    theta[:, 1:, 1:2] = (scale * uniform(0.8, 1.25, n, 1, 1, device=device)).clamp(max=1)
    theta[:, :, 2] = (1 - theta[:, (0, 1), (0, 1)].abs()) * uniform(-1, 1, n, 2, device=device)
    return F.grid_sample(photos[which].float() / 255, F.affine_grid(theta, (n, 3, size, size), align_corners=False), align_corners=False)


KINDS = ((cloudy, 0.24), (gradient, 0.12), (grating, 0.08), (plaid, 0.09), (folds, 0.15), (cells, 0.12), (writing, 0.06))
PHOTOGRAPHS = 0.14


def textures(n, size, device, photos=None):
    """[n,3,S,S], each of a random kind."""
    shares = torch.tensor([share for _, share in KINDS] + [PHOTOGRAPHS if photos is not None else 0.0])
    kinds = torch.multinomial(shares, n, replacement=True)
    out = torch.empty(n, 3, size, size, device=device)
    for index in range(len(shares)):
        rows = torch.nonzero(kinds == index)[:, 0]
        if len(rows) == 0:
            continue
        made = photographs(len(rows), size, device, photos) if index == len(KINDS) else KINDS[index][0](len(rows), size, device)
        out[rows.to(device)] = made
    return out.clamp_(0, 1)


def shapes(canvas, other, most=7):
    """Ovals and boxes over `canvas`, filled with `other` textures or one colour; some skin-coloured with one or two dark dots: nearly a face."""
    n, _, size, _ = canvas.shape
    device = canvas.device
    x, y = coordinates(size, device)
    busy = torch.rand(n, 1, 1, 1, device=device) * most
    for index in range(most):
        angle, extent = uniform(0, 3.2, n, 1, 1, 1, device=device), log_uniform(0.02, 0.35, n, 1, 1, 1, device=device) * size
        u, v = x - uniform(0, size, n, 1, 1, 1, device=device), y - uniform(0, size, n, 1, 1, 1, device=device)
        u, v = u * angle.cos() + v * angle.sin(), v * angle.cos() - u * angle.sin()
        u, v = u / extent, v / (extent * log_uniform(0.15, 1.5, n, 1, 1, 1, device=device))
        power = torch.where(chance(0.5, n, device), 2.0, 8.0)
        inside = ((1 - u.abs().pow(power) - v.abs().pow(power)) * extent / 3).clamp(0, 1) * (busy > index)
        fill = torch.where(chance(0.4, n, device), other.roll(index + 1, 0), colours(n, device))
        bare = chance(0.3, n, device)
        dots = [((0.15 - (u - a).square() - (v - b).square()) * 12).clamp(0, 1)
                for a, b in (uniform(-0.6, 0.6, 2, n, 1, 1, 1, device=device) for _ in range(2))]
        dotted = torch.maximum(dots[0], dots[1] * chance(0.5, n, device)) * chance(0.4, n, device)
        fill = torch.where(bare, skin(n, device) * (1.1 - 0.3 * v) * (1 - dotted * 0.8), fill)
        canvas = torch.lerp(canvas, fill.clamp(0, 1), inside)
    return canvas


def suit(canvas, cloth, middle, top, width, there):
    """Shoulders in `cloth` with an open collar, shirt and tie, or buttons, below `top`; `middle`, `top`, `width` (of a head, in pixels) and `there` are [n]."""
    n, _, size, _ = canvas.shape
    device = canvas.device
    x, y = coordinates(size, device)
    middle, top, width, there = (t.view(n, 1, 1, 1) for t in (middle, top, width, there))
    u, v = (x - middle) / width, (y - top) / width
    lean = uniform(-0.2, 0.2, n, 1, 1, 1, device=device)
    u = u - lean * v
    soft = lambda distance: (distance * width / 1.5 + 0.5).clamp(0, 1)
    shoulders = 0.42 + uniform(0.5, 1.1, n, 1, 1, 1, device=device) * (v / 0.7).clamp(0, 1).sqrt()
    body = soft(torch.minimum(shoulders - u.abs(), v))
    # Half of them dark over a light shirt, as suits are; folds and the light's side on the cloth.
    formal = chance(0.5, n, device)
    side = uniform(-0.4, 0.4, n, 1, 1, 1, device=device)
    shade = (1 + side * u - 0.25 * u.square()).clamp(0.3, 1.5) * (1 + uniform(0, 0.25, n, 1, 1, 1, device=device) * streaks(n, 1, size, device))
    worn = torch.where(formal, cloth * uniform(0.1, 0.5, n, 1, 1, 1, device=device), cloth) * shade
    canvas = torch.lerp(canvas, worn.clamp(0, 1), body * there)
    pale = uniform(0.6, 1.0, n, 1, 1, 1, device=device) * uniform(0.92, 1.0, n, 3, 1, 1, device=device)
    shirt, depth = torch.where(formal, pale, colours(n, device)), uniform(0.6, 2.2, n, 1, 1, 1, device=device)
    # The chin's shadow on the collar.
    shirt = shirt * (0.55 + 0.45 * (v / 0.35).clamp(0, 1)) * (1 + 0.1 * torch.sin(9 * u + 5 * v))
    opening = uniform(0.2, 0.42, n, 1, 1, 1, device=device) * (1 - v / depth)
    open_ = chance(0.7, n, device) * there
    canvas = torch.lerp(canvas, shirt.clamp(0, 1), soft(torch.minimum(opening - u.abs(), v)) * open_)
    # The collar's two wings, each with an edge.
    wing = soft(torch.minimum(0.32 - u.abs(), torch.minimum(v + 0.1, 0.1 + 0.75 * u.abs() - v)))
    canvas = torch.lerp(canvas, (shirt * uniform(0.85, 1.15, n, 1, 1, 1, device=device)).clamp(0, 1), wing * open_)
    canvas = canvas * (1 - 0.4 * soft(0.015 - (0.1 + 0.75 * u.abs() - v).abs()) * (u.abs() < 0.32) * open_)
    lapel = soft(0.03 - (u.abs() - opening - uniform(0.02, 0.2, n, 1, 1, 1, device=device)).abs()) * (v > 0) * (v < depth)
    notch = soft(0.02 - (v - 0.55 - 0.5 * u.abs()).abs()) * (u.abs() > opening) * (u.abs() < opening + 0.3)
    canvas = canvas * (1 - 0.5 * torch.maximum(lapel, notch) * open_)
    pin = soft(0.045 - ((u - opening - 0.2).square() + (v - 0.75).square()).sqrt())
    canvas = torch.lerp(canvas, colours(n, device).expand_as(canvas), pin * open_ * chance(0.3, n, device))
    tie = soft(torch.minimum(0.05 + 0.06 * v - u.abs(), torch.minimum(opening + 0.1 - u.abs(), v))) * (v < depth)
    canvas = torch.lerp(canvas, between(wave(n, size, device, 10, 60) * 0.5 + 0.5, n, device), tie * open_ * chance(0.6, n, device))
    spacing = uniform(0.3, 0.6, n, 1, 1, 1, device=device)
    button = soft(0.05 - (u.square() + ((v / spacing).frac() - 0.5).mul(spacing).square()).sqrt()) * (v > depth * 0.8)
    return torch.lerp(canvas, colours(n, device).expand_as(canvas), button * there * chance(0.6, n, device))


def neck(canvas, middle, top, width, there, tone):
    """A column of skin from `top` down, for a head cut out above its collar."""
    n, _, size, _ = canvas.shape
    x, y = coordinates(size, canvas.device)
    u, v = (x - middle.view(n, 1, 1, 1)) / width.view(n, 1, 1, 1), (y - top.view(n, 1, 1, 1)) / width.view(n, 1, 1, 1)
    inside = ((0.3 - u.abs()) * 40).clamp(0, 1) * (v > -0.4) * (v < 0.35) * there.view(n, 1, 1, 1)
    return torch.lerp(canvas, (tone * (0.9 - 0.5 * u.abs())).clamp(0, 1), inside)
