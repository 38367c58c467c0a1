"""What the decoder's trainers (`../diffusion/train_decoder.py`, `../gpu/decoder.py`) hold a decoded face to, beside its pixels."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from bisenet import MEAN, STD

# How many steps are left, how often, and how much that counts: with more steps the face is another one than the render's.
LEFT = {0: (0.15, 1.0), 1: (0.35, 1.0), 2: (0.25, 0.8), 3: (0.15, 0.5), 4: (0.1, 0.3)}
GUIDANCE = 1.4, 2.6  # between which a batch's guidance is drawn


class WidePatchCritic(nn.Module):
    """Judges overlapping patches (70 pixels wide) as rendered or decoded; its scale is free, so its gradient counts by `combined` alone."""

    def __init__(self, width: int = 40):
        super().__init__()
        conv = lambda i, o, stride: nn.Conv2d(i, o, 4, stride, 1)
        self.layers = nn.ModuleList([conv(3, width, 2), conv(width, 2 * width, 2), conv(2 * width, 4 * width, 2), conv(4 * width, 1, 1)])
        self.norms = nn.ModuleList([nn.Identity(), nn.GroupNorm(8, 2 * width), nn.GroupNorm(8, 4 * width)])

    def forward(self, x):
        features = []
        for layer, norm in zip(self.layers, self.norms):
            x = F.leaky_relu(norm(layer(x)), 0.2)
            features.append(x)
        return self.layers[-1](x), features


def criticise(net, optimizer, y, x, autocast):
    """One step of a critic that learns to tell decoded `y` from true `x` (hinge), its networks called under `autocast()`.

    Answers the decoder's loss, the difference of activations, both with gradients to `y` alone, and the critic's own loss.
    """
    net.requires_grad_(True)
    with autocast():
        real, wanted = net(x)
        fake, _ = net(y.detach())
    own = F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()
    optimizer.zero_grad()
    own.backward()
    optimizer.step()
    net.requires_grad_(False)
    with autocast():
        fake, found = net(y)
    match = sum((f.float() - w.detach().float()).abs().mean() for f, w in zip(found, wanted))
    return -fake.float().mean(), match, own.detach()


class ParserStages(nn.Module):
    """What a BiSeNet's first stages see of an aligned face [B,3,128,128] in -1..1: activations at a half, a fourth and an eighth."""

    def __init__(self, parser):
        super().__init__()
        self.net = parser.cp.resnet
        device = self.net.conv1.weight.device
        self.register_buffer("mean", torch.tensor(MEAN, device=device)[:, None, None])
        self.register_buffer("std", torch.tensor(STD, device=device)[:, None, None])

    def forward(self, x):
        x = F.relu(self.net.bn1(self.net.conv1(((x + 1) / 2 - self.mean) / self.std)))
        first = self.net.layer1(self.net.maxpool(x))
        return x, first, self.net.layer2(first)


def distance(stages, wanted):
    """Mean distance of activations of unit length per place (as in LPIPS), over the stages."""
    each = [(F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1).mean() for a, b in zip(stages, wanted)]
    return torch.stack(each).mean()


def combined(y, pixels, others):
    """A loss whose gradient at the images `y` is that of `pixels` and, beside it, the others' with norms relative to it.

    Losses of different networks have scales that say nothing and that change as critics learn; as shares of the pixels'
    gradient (VQGAN does so for its critic) none drowns another. `others`: pairs of a loss and its share.
    """
    at = lambda loss: torch.autograd.grad(loss, y, retain_graph=True)[0]
    total = at(pixels)
    unit = total.norm()
    for loss, share in others:
        g = at(loss)
        total = total + share * unit / (g.norm() + 1e-12) * g
    return (y * total.detach()).sum()
