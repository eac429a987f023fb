"""MitoNet (Conrad and Narayan 2023): a Panoptic-DeepLab whose semantic map is refined by PointRend.

    image - encoder, stride 16 - spatial pyramid - x2, x2 with finer features - 5x5 - classes - refined - logits
                               - the same again, half as wide ----------------- 5x5 - centres
                                                                               5x5 - ways to the centre

PointRend asks a small network at the pixels that are least sure, while training at some of them; here it is asked at
every pixel when the network is used, so that the output does not depend on how many there are.  Centres and ways are
learned with objects made of the masks: what of one class hangs together.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tilelab.models.attention import enlarge
from tilelab.models.encoders import build_encoder
from tilelab.models.heads import Heads

STRIDE = 16
WIDTH = 256
_RATES = (2, 4, 6)
_PROJECTED = (128, 64, 32)
"""Channels that the encoder's finer stages (of stride 16, 8, 4) are reduced to, semantic; half of them, instances."""
_POINTS, _DRAWN, _UNSURE = 1024, 3, 0.75
"""Points that are supervised, how many times as many are drawn, and the share that is chosen for being least sure."""


class MitoNet(nn.Module):
    """The network.

    In training mode it returns its four heads, in evaluation mode the refined logits of the classes.

    Args:
        channels: input channels.
        outputs: output channels, one logit per class.
        encoder: any encoder with five stages that can be dilated.
        instances: learn centres and ways to them, too.
    """

    def __init__(self, channels: int, outputs: int, *, encoder: str = "resnet50", instances: bool = True):
        super().__init__()
        self.encoder = build_encoder(encoder, channels, depth=5, output_stride=STRIDE)
        widths = self.encoder.out_channels
        self.semantic = Decoder(widths, _PROJECTED)
        self.classes = _head(outputs)
        self.refine = Refine(WIDTH, outputs)
        self.instance = Decoder(widths, tuple(w // 2 for w in _PROJECTED)) if instances else None
        self.centre = _head(1) if instances else None
        self.way = _head(2) if instances else None

    def forward(self, x: torch.Tensor) -> torch.Tensor | Heads:
        """``(B, channels, H, W)`` to logits ``(B, outputs, H, W)``; H and W are multiples of 16."""
        height, width = x.shape[2], x.shape[3]
        if height % STRIDE or width % STRIDE:
            raise ValueError(f"height and width must be multiples of {STRIDE}, not {height} and {width}")
        features = self.encoder(x)
        fine = self.semantic(features)
        coarse = self.classes(fine)
        if not self.training:
            refined: torch.Tensor = self.refine(enlarge(fine, height, width), enlarge(coarse, height, width))
            return refined
        places = _unsure_places(coarse.detach())
        points = self.refine(sample(fine, places), sample(coarse, places))[..., 0]
        instances = None
        if self.instance is not None and self.centre is not None and self.way is not None:
            objects = self.instance(features)
            instances = enlarge(torch.cat([self.centre(objects), self.way(objects)], dim=1), height, width)
        return Heads((enlarge(coarse, height, width),), (1.0,), points=points, places=places, instances=instances)


class Decoder(nn.Module):
    """From the encoder's features to those of stride 4."""

    def __init__(self, widths: list[int], projected: tuple[int, ...]):
        super().__init__()
        self.rates = nn.ModuleList([_conv(widths[5], WIDTH, 1), *(_conv(widths[5], WIDTH, 3, rate) for rate in _RATES)])
        self.whole = _conv(widths[5], WIDTH, 1)
        self.join = nn.Sequential(_conv(5 * WIDTH, WIDTH, 1), nn.Dropout2d(0.1))
        self.project = nn.ModuleList(_conv(widths[k], w, 1) for k, w in zip((4, 3, 2), projected, strict=True))
        self.fuse = nn.ModuleList(_separable(WIDTH + w, WIDTH) for w in projected)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Features of the encoder to ``(B, 256, H / 4, W / 4)``."""
        x = features[5]
        whole = self.whole(x.mean(dim=(2, 3), keepdim=True))
        x = torch.cat([*(rate(x) for rate in self.rates), enlarge(whole, x.shape[2], x.shape[3])], dim=1)
        x = self.join(x)
        for stage, project, fuse in zip((4, 3, 2), self.project, self.fuse, strict=True):
            low = project(features[stage])
            x = fuse(torch.cat([enlarge(x, low.shape[2], low.shape[3]), low], dim=1))
        fine: torch.Tensor = x
        return fine


class Refine(nn.Module):
    """PointRend's network: three layers over fine features, each told the coarse logits once more."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d((inputs if k == 0 else WIDTH) + outputs, WIDTH, 1) for k in range(3))
        self.head = nn.Conv2d(WIDTH + outputs, outputs, 1)

    def forward(self, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        """``(B, inputs, H, W)`` and ``(B, outputs, H, W)`` to ``(B, outputs, H, W)``."""
        for layer in self.layers:
            fine = layer(torch.cat([fine, coarse], dim=1)).relu()
        out: torch.Tensor = self.head(torch.cat([fine, coarse], dim=1))
        return out


def sample(maps: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Values of ``(B, C, H, W)`` at places ``(B, P, 2)`` from 0 to 1, bilinear: ``(B, C, P, 1)``."""
    return functional.grid_sample(maps, 2 * places[:, :, None] - 1, mode="bilinear", align_corners=False)


def _unsure_places(coarse: torch.Tensor) -> torch.Tensor:
    """Places to supervise, ``(B, P, 2)``: most of them the least sure of those drawn, the rest anywhere."""
    drawn = torch.rand(coarse.shape[0], _POINTS * _DRAWN, 2, device=coarse.device)
    logits = sample(coarse.float(), drawn)[..., 0]
    two = logits.topk(2, dim=1).values if logits.shape[1] > 1 else torch.cat([logits.abs(), -logits.abs()], dim=1)
    chosen = (two[:, 1] - two[:, 0]).topk(int(_POINTS * _UNSURE), dim=1).indices
    unsure = drawn.gather(1, chosen[:, :, None].expand(-1, -1, 2))
    anywhere = torch.rand(coarse.shape[0], _POINTS - chosen.shape[1], 2, device=coarse.device)
    return torch.cat([unsure, anywhere], dim=1)


def _conv(inputs: int, outputs: int, size: int, rate: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, size, padding=rate * (size // 2), dilation=rate, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def _separable(inputs: int, outputs: int) -> nn.Sequential:
    """A 5x5 convolution of each channel, then one across them."""
    depthwise = nn.Conv2d(inputs, inputs, 5, padding=2, groups=inputs, bias=False)
    return nn.Sequential(depthwise, *_conv(inputs, outputs, 1))


def _head(outputs: int) -> nn.Sequential:
    return nn.Sequential(_separable(WIDTH, WIDTH), nn.Conv2d(WIDTH, outputs, 1))
