"""EM-net (Khadangi, Boudier, Rajagopal 2021), version 1: a U-Net of concatenated units with trainable rectifiers.

Every level has two units of three convolutions, whose outputs after the first and the last are put side by side; the
second's go on to the decoder, both to the next level.  At the coarsest level two such pairs stand beside each other.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from tilelab.errors import ModelError
from tilelab.models.attention import initialise_convolutions

STRIDE = 16


class Rectifier(nn.Module):
    """The trainable linear unit: one slope for what is negative, one for what is positive, of each channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.negative = nn.Parameter(torch.zeros(channels, 1, 1))
        self.positive = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W)`` to the same."""
        return self.positive * x.relu() - self.negative * (-x).relu()


class Unit(nn.Module):
    """Three convolutions of `width` (or, doubled, four of twice, once, twice, once); gives twice that many channels."""

    def __init__(self, inputs: int, width: int, norm: bool, doubled: bool = False):
        super().__init__()
        widths = (2 * width, width, 2 * width, width) if doubled else (width, width, width)
        self.kept = 1 if doubled else 0
        self.steps = nn.ModuleList(_conv(a, b, norm) for a, b in pairwise((inputs, *widths)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, inputs, H, W)`` to ``(B, 2 * width, H, W)``."""
        outs = []
        for step in self.steps:
            x = step(x)
            outs.append(x)
        return torch.cat([outs[self.kept], outs[-1]], dim=1)


class EmNet(nn.Module):
    """The network.

    Args:
        channels: input channels.
        outputs: output channels, one logit per class.
        width: channels of the finest level's convolutions; the paper's versions have 16 and 32.
        norm: ``batch`` normalises before every rectifier (versions BN), ``none`` in the decoder alone.
        doubled: the second unit of each level is the larger one (versions 2X and 4X).
        dropout: probability of dropping a channel before the coarsest level while training.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        width: int = 16,
        norm: Literal["batch", "none"] = "batch",
        doubled: bool = True,
        dropout: float = 0.5,
    ):
        super().__init__()
        if norm not in ("batch", "none") or width < 1:
            raise ModelError(f"emnet takes norm batch or none and a positive width, not {norm!r} and {width}")
        plain = norm == "batch"
        widths = [width << level for level in range(4)]
        inputs = [channels, *(4 * w for w in widths[:-1])]
        self.first = nn.ModuleList(Unit(a, w, plain) for a, w in zip(inputs, widths, strict=True))
        self.second = nn.ModuleList(Unit(2 * w, w, plain, doubled) for w in widths)
        self.dropout = nn.Dropout2d(dropout)
        deep, half = 4 * widths[-1], widths[-1] // 2
        self.left = nn.Sequential(Unit(deep, half, plain), Unit(2 * half, half, plain))
        self.right = nn.Sequential(Unit(deep, half, plain, doubled), Unit(2 * half, half, plain))
        outs = [2 * w for w in reversed(widths)]
        self.up = nn.ModuleList(Enlarge(a, b) for a, b in pairwise([4 * half, *outs]))
        self.merge = nn.ModuleList(nn.Sequential(*_plain(2 * w, w), *_plain(w, w)) for w in outs)
        self.head = nn.Sequential(*_plain(outs[-1], 2 * outputs), nn.Conv2d(2 * outputs, outputs, 1))
        initialise_convolutions(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, channels, H, W)`` to logits ``(B, outputs, H, W)``; H and W are multiples of 16."""
        skips = []
        for first, second in zip(self.first, self.second, strict=True):
            one = first(x)
            two = second(one)
            skips.append(two)
            x = functional.max_pool2d(torch.cat([one, two], dim=1), 2)
        x = self.dropout(x)
        x = torch.cat([self.left(x), self.right(x)], dim=1)
        for up, merge, skip in zip(self.up, self.merge, reversed(skips), strict=True):
            x = merge(torch.cat([up(x), skip], dim=1))
        logits: torch.Tensor = self.head(x)
        return logits


class Enlarge(nn.Module):
    """Twice the size: every pixel four times, then a 2x2 convolution that looks down and to the right."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 2)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, inputs, H, W)`` to ``(B, outputs, 2 H, 2 W)``."""
        x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        out: torch.Tensor = self.norm(self.conv(functional.pad(x, (0, 1, 0, 1))))
        return out.relu()


def _conv(inputs: int, outputs: int, norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=not norm)]
    if norm:
        layers.append(nn.BatchNorm2d(outputs))
    return nn.Sequential(*layers, Rectifier(outputs))


def _plain(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )
