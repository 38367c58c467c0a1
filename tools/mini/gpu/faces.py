"""The photo-to-identity path in batches on the device, with the published face networks, and crops with gradients."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[3]
MODELS = ROOT / "models" / "mini"
sys.path[:0] = [str(ROOT / "tools" / "mini" / "face"), str(ROOT / "tools")]

from bisenet import MEAN as PARSER_MEAN, STD as PARSER_STD, BiSeNet  # noqa: E402
from data import ARCFACE_112, CROP_BORDER, FACEXLIB_512, WHITENED  # noqa: E402
from iresnet import published  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from train_tower import MEAN as TOWER_MEAN, STD as TOWER_STD, tower  # noqa: E402

BATCH = 48
LUMA = (0.299, 0.587, 0.114)


def similarity(source, target):
    """Least-squares similarities [B,2,3] that take `source` [B,5,2] to `target` [5,2] or [B,5,2]."""
    mean_s, mean_t = source.mean(1, keepdim=True), target.expand_as(source).mean(1, keepdim=True)
    s, t = source - mean_s, target - mean_t
    norm = s.square().sum((1, 2)) + 1e-9
    a = (s * t).sum((1, 2)) / norm
    b = (s[..., 0] * t[..., 1] - s[..., 1] * t[..., 0]).sum(1) / norm
    linear = torch.stack([torch.stack([a, -b], -1), torch.stack([b, a], -1)], 1)
    shift = mean_t[:, 0] - (linear @ mean_s[:, 0, :, None])[..., 0]
    return torch.cat([linear, shift[..., None]], -1)


def crop(pictures, points, template, size, border=0.0):
    """Aligned crops [B,3,size,size] of pictures by five points each; `border` is the colour outside the picture."""
    matrix = similarity(points.float(), torch.as_tensor(template, device=points.device))
    linear = torch.linalg.inv(matrix[:, :, :2])
    shift = -(linear @ matrix[:, :, 2:])[..., 0]
    y, x = torch.meshgrid(torch.arange(float(size)), torch.arange(float(size)), indexing="ij")
    at = torch.stack([x, y], -1).to(points.device).reshape(1, -1, 2)
    source = (at @ linear.transpose(1, 2) + shift[:, None]).reshape(-1, size, size, 2)
    grid = (source * 2 + 1) / pictures.shape[-1] - 1
    border = torch.as_tensor(border, device=pictures.device, dtype=pictures.dtype).reshape(-1, 1, 1)
    return F.grid_sample(pictures - border, grid.to(pictures.dtype), mode="bilinear", padding_mode="zeros", align_corners=False) + border


def jittered(points, deviation=0.01):
    """Landmarks as a detector would give them: noise in units of the distance between the eyes."""
    unit = (points[:, 1] - points[:, 0]).norm(dim=-1) + (points[:, 3] - points[:, 0]).norm(dim=-1)
    together = torch.randn_like(points[:, :1]) * 0.5
    return points + 0.5 * unit[:, None, None] * deviation * (torch.randn_like(points) + together)


def read(path):
    return {name: tensor.float() for name, tensor in load_file(path).items()}


class Faces:
    """What `Store.add` needs: photos and landmarks to PuLID's identity condition."""

    def __init__(self, device):
        self.device = device
        self.recogniser = published(MODELS / "antelopev2" / "glintr100.onnx").to(device).eval().requires_grad_(False)
        self.parser = BiSeNet()
        self.parser.load_state_dict(read(MODELS / "parsing_bisenet.safetensors"), strict=False)
        self.parser = self.parser.to(device).eval().requires_grad_(False)
        self.tower = tower()
        self.tower.load_official(read(MODELS / "eva_clip.safetensors"))
        self.tower = self.tower.to(device).eval().requires_grad_(False)
        vector = lambda values: torch.tensor(values, device=device, dtype=torch.float32).view(-1, 1, 1)
        self.parser_scale, self.tower_scale = (vector(PARSER_MEAN), vector(PARSER_STD)), (vector(TOWER_MEAN), vector(TOWER_STD))
        self.luma = vector(LUMA)
        self.whitened = torch.zeros(256, dtype=torch.bool, device=device)
        self.whitened[list(WHITENED)] = True

    @torch.no_grad()
    def __call__(self, images, landmarks, deviation=0.01):
        """images u8 [B,H,W,3], landmarks [B,5,2] -> condition [B,768] and hidden states [B,5,65,192]."""
        count = len(images)
        if count % BATCH:  # always the same batch: a new size costs a GPU's libraries a second search for kernels
            more = torch.arange(count, count + BATCH - count % BATCH, device=images.device) % count
            images, landmarks = torch.cat([images, images[more]]), torch.cat([landmarks, landmarks[more]])
        parts = [self._batch(*part, deviation) for part in zip(images.split(BATCH), landmarks.split(BATCH))]
        return torch.cat([p[0] for p in parts])[:count], torch.cat([p[1] for p in parts])[:count]

    def _batch(self, images, landmarks, deviation):
        x = images.permute(0, 3, 1, 2).float()
        points = jittered(landmarks, deviation) if deviation else landmarks
        arc = self.recogniser((crop(x, points, ARCFACE_112, 112) - 127.5) / 127.5)
        face = crop(x, points, FACEXLIB_512 * (128 / 512), 128, CROP_BORDER)
        classes = self.parser((face / 255 - self.parser_scale[0]) / self.parser_scale[1]).argmax(1)
        gray = (face * self.luma).sum(1) / 255
        gray = torch.where(self.whitened[classes], torch.ones_like(gray), gray)
        x = F.interpolate(gray[:, None], (112, 112), mode="bicubic", align_corners=False, antialias=False)
        cls, hidden = self.tower((x - self.tower_scale[0]) / self.tower_scale[1])
        return torch.cat([arc, F.normalize(cls, dim=-1)], -1), torch.stack(hidden, 1)

    def embedding(self, pictures, points):
        """Recogniser's embeddings of unit length [B,512] and stages' activations, of pictures [B,3,H,W] in -1..1; differentiable."""
        embedding, stages = self.recogniser.with_stages(crop(pictures.float(), points, ARCFACE_112, 112, -1.0))
        return F.normalize(embedding.float(), dim=-1), stages
