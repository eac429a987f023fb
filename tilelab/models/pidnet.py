"""PIDNet (Xu, Xiong, Bhattacharyya 2023): three branches, for detail (P), context (I) and edges (D).

    image - /2 - /2 - /8 -+- /16 ----+- /32 ----+- /64 - pooled pyramid -.
                          |          |          |                        |
                     P    +-- gate --+-- gate --+----------- P ----------+- fused where D sees edges - logits
                     D    +--- add --+--- add --+----------- D ----------'

P keeps a stride of 8 and takes from I what a gate lets pass; D learns where classes meet.  The pooled pyramid sees the
whole tile, so tiles are blended, and their size is part of the model.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from tilelab.errors import ModelError
from tilelab.models.attention import enlarge
from tilelab.models.heads import Heads

STRIDE = 64
Size = Literal["s", "m", "l"]
# Of each size: blocks of the finer and of the coarser stages, channels, those of the pyramid and of the head.
_SIZES: dict[str, tuple[int, int, int, int, int]] = {
    "s": (2, 3, 32, 96, 128),
    "m": (2, 3, 64, 96, 128),
    "l": (3, 4, 64, 112, 256),
}
_DETAIL, _EDGES = 0.4, 20.0
"""Weights of the losses of P and of D (the paper's lambda 0 and 1); those of the fused map are 1."""


class PidNet(nn.Module):
    """The network.

    In training mode it returns its three heads, in evaluation mode the fused logits.

    Args:
        channels: input channels.
        outputs: output channels, one logit per class.
        size: ``s``, ``m`` or ``l``, as in the paper.
    """

    def __init__(self, channels: int, outputs: int, *, size: Size = "s"):
        super().__init__()
        if size not in _SIZES:
            raise ModelError(f"unknown size {size!r} of pidnet: choose one of {', '.join(_SIZES)}")
        fine, coarse, width, pyramid, head = _SIZES[size]
        small = size != "l"
        self.stem = nn.Sequential(_conv(channels, width, 3, 2), nn.ReLU(), _conv(width, width, 3, 2), nn.ReLU())
        self.context = nn.ModuleList(
            [
                nn.Sequential(_stage(width, width, fine), nn.ReLU(), _stage(width, 2 * width, fine, 2), nn.ReLU()),
                nn.Sequential(_stage(2 * width, 4 * width, coarse, 2), nn.ReLU()),
                nn.Sequential(_stage(4 * width, 8 * width, coarse, 2), nn.ReLU()),
                Bottleneck(8 * width, 8 * width, blocks=2, stride=2),
            ]
        )
        self.detail = nn.ModuleList(
            [
                _stage(2 * width, 2 * width, fine),
                _stage(2 * width, 2 * width, fine),
                Bottleneck(2 * width, 2 * width),
            ]
        )
        self.gates = nn.ModuleList([Gate(2 * width, width) for _ in range(2)])
        self.compress = nn.ModuleList([_conv(4 * width, 2 * width, 1), _conv(8 * width, 2 * width, 1)])
        first = width if small else 2 * width
        self.edges = nn.ModuleList(
            [
                _stage(2 * width, first, 1),
                Bottleneck(width, width) if small else _stage(2 * width, 2 * width, 1),
                Bottleneck(2 * width, 2 * width),
            ]
        )
        self.differences = nn.ModuleList([_conv(4 * width, first, 3), _conv(8 * width, 2 * width, 3)])
        self.pyramid = Pyramid(16 * width, pyramid, 4 * width)
        self.fuse = Fuse(4 * width, light=small)
        self.head = _head(4 * width, head, outputs)
        self.detail_head = _head(2 * width, head, outputs)
        self.edge_head = _head(2 * width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor | Heads:
        """``(B, channels, H, W)`` to logits ``(B, outputs, H, W)``; H and W are multiples of 64."""
        height, width = x.shape[2], x.shape[3]
        if height % STRIDE or width % STRIDE:
            raise ValueError(f"height and width must be multiples of {STRIDE}, not {height} and {width}")
        x = self.context[0](self.stem(x))
        size = (x.shape[2], x.shape[3])
        detail, edges = self.detail[0](x), self.edges[0](x)
        early = late = x
        for k in range(2):
            x = self.context[1 + k](x)
            detail = self.gates[k](detail, self.compress[k](x))
            edges = edges + enlarge(self.differences[k](x), *size)
            if k == 0:
                early = detail
                detail, edges = self.detail[1](detail.relu()), self.edges[1](edges.relu())
            else:
                late = edges
                detail, edges = self.detail[2](detail.relu()), self.edges[2](edges.relu())
        x = enlarge(self.pyramid(self.context[3](x)), *size)
        logits = enlarge(self.head(self.fuse(detail, x, edges)), height, width)
        if not self.training:
            return logits
        found = enlarge(self.edge_head(late), height, width)
        return Heads((logits, enlarge(self.detail_head(early), height, width)), (1.0, _DETAIL), found, _EDGES)


class Block(nn.Module):
    """Two 3x3 convolutions beside a skip connection, without an activation at the end."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.body = nn.Sequential(_conv(inputs, outputs, 3, stride), nn.ReLU(), _conv(outputs, outputs, 3))
        plain = stride == 1 and inputs == outputs
        self.skip: nn.Module = nn.Identity() if plain else _conv(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, inputs, H, W)`` to ``(B, outputs, H / stride, W / stride)``."""
        out: torch.Tensor = self.body(x) + self.skip(x)
        return out


class Bottleneck(nn.Module):
    """Blocks of 1x1, 3x3 and 1x1 convolutions that end with twice their width."""

    def __init__(self, inputs: int, width: int, *, blocks: int = 1, stride: int = 1):
        super().__init__()
        first = [inputs] + [2 * width] * (blocks - 1)
        steps = [stride] + [1] * (blocks - 1)
        self.bodies = nn.ModuleList(
            nn.Sequential(
                _conv(a, width, 1), nn.ReLU(), _conv(width, width, 3, s), nn.ReLU(), _conv(width, 2 * width, 1)
            )
            for a, s in zip(first, steps, strict=True)
        )
        self.skips = nn.ModuleList(
            nn.Identity() if s == 1 and a == 2 * width else _conv(a, 2 * width, 1, s)
            for a, s in zip(first, steps, strict=True)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, inputs, H, W)`` to ``(B, 2 * width, H / stride, W / stride)``."""
        for k, (body, skip) in enumerate(zip(self.bodies, self.skips, strict=True)):
            x = body(x.relu() if k else x) + skip(x)
        return x


class Gate(nn.Module):
    """Pixel-attention-guided fusion: what looks alike comes from context, the rest from detail."""

    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.detail, self.context = _conv(channels, inner, 1), _conv(channels, inner, 1)

    def forward(self, detail: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W)`` and a coarser context to ``(B, C, H, W)``."""
        size = (detail.shape[2], detail.shape[3])
        alike = (self.detail(detail) * enlarge(self.context(context), *size)).sum(dim=1, keepdim=True).sigmoid()
        mixed: torch.Tensor = (1 - alike) * detail + alike * enlarge(context, *size)
        return mixed


class Pyramid(nn.Module):
    """Parallel aggregation pyramid pooling: averages over 5, 9, 17 cells and the whole, each added to the unpooled."""

    def __init__(self, inputs: int, width: int, outputs: int):
        super().__init__()
        self.plain = _act(inputs, width, 1)
        self.pools = nn.ModuleList(nn.AvgPool2d(2 * s + 1, s, s) for s in (2, 4, 8))
        self.scales = nn.ModuleList(_act(inputs, width, 1) for _ in range(4))
        self.process = _act(4 * width, 4 * width, 3, groups=4)
        self.compress = _act(5 * width, outputs, 1)
        self.shortcut = _act(inputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, inputs, H, W)`` to ``(B, outputs, H, W)``."""
        size = (x.shape[2], x.shape[3])
        plain = self.plain(x)
        pooled = [*(pool(x) for pool in self.pools), x.mean(dim=(2, 3), keepdim=True)]
        levels = [enlarge(scale(p), *size) + plain for scale, p in zip(self.scales, pooled, strict=True)]
        scales = self.process(torch.cat(levels, dim=1))
        out: torch.Tensor = self.compress(torch.cat([plain, scales], dim=1)) + self.shortcut(x)
        return out


class Fuse(nn.Module):
    """Boundary-attention-guided fusion: detail where there are edges, context elsewhere; the light one is two 1x1."""

    def __init__(self, channels: int, *, light: bool):
        super().__init__()
        self.light = light
        self.detail = _conv(channels, channels, 1) if light else nn.Identity()
        self.context = _conv(channels, channels, 1) if light else nn.Identity()
        self.both = nn.Identity() if light else _act(channels, channels, 3)

    def forward(self, detail: torch.Tensor, context: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        """Three ``(B, C, H, W)`` to one."""
        edge = edges.sigmoid()
        if self.light:  # each gets the other's share on top
            light: torch.Tensor = self.detail((1 - edge) * context + detail) + self.context(context + edge * detail)
            return light
        fused: torch.Tensor = self.both(edge * detail + (1 - edge) * context)
        return fused


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    """A convolution and batch normalisation."""
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


def _act(inputs: int, outputs: int, size: int, groups: int = 1) -> nn.Sequential:
    """Batch normalisation, activation, convolution: the other way round."""
    convolution = nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), convolution)


def _stage(inputs: int, outputs: int, blocks: int, stride: int = 1) -> nn.Sequential:
    """Blocks with activations between them, none at the end."""
    layers: list[nn.Module] = [Block(inputs, outputs, stride)]
    for _ in range(blocks - 1):
        layers += [nn.ReLU(), Block(outputs, outputs)]
    return nn.Sequential(*layers)


def _head(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(inputs), nn.ReLU(), *_conv(inputs, width, 3), nn.ReLU(), nn.Conv2d(width, outputs, 1)
    )
