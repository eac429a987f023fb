"""Channel attention over cells of a pyramid: LACA (Gao et al. 2024) and what its ablation puts in its place.

Every gate takes pooled features ``(B, C, s, s)``, one vector of channels per cell, and returns weights of the same
shape between 0 and 1; its own weights are shared by all cells.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tilelab.errors import ModelError

Attention = Literal["laca", "eca", "se", "cbam", "none"]


def kernel_size(channels: int) -> int:
    """Odd size of the convolution across channels, from C = 2 ** (2k - 1): 3 for 64, 5 for 128 to 1024, 7 for 2048."""
    size = int((math.log2(channels) + 1) / 2)
    return size if size % 2 else size + 1


class ChannelConv(nn.Module):
    """A 1-D convolution across channels and a sigmoid: ECA; with batch normalisation between them: LACA."""

    def __init__(self, channels: int, *, norm: bool):
        super().__init__()
        size = kernel_size(channels)
        # one image channel whose rows are the channels and whose columns are the cells
        self.conv = nn.Conv2d(1, 1, (size, 1), padding=(size // 2, 0), bias=False)
        self.norm = nn.BatchNorm2d(1) if norm else nn.Identity()

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        """``(B, C, s, s)`` to weights of the same shape."""
        rows = cells.flatten(2).unsqueeze(1)  # (B, 1, C, s * s)
        weights: torch.Tensor = self.norm(self.conv(rows)).sigmoid()
        return weights.reshape(cells.shape[0], cells.shape[1], cells.shape[2], cells.shape[3])


class SqueezeExcite(nn.Sequential):
    """Two fully connected layers with a bottleneck of a sixteenth (Hu 2018)."""

    def __init__(self, channels: int):
        inner = max(4, channels // 16)
        super().__init__(
            nn.Conv2d(channels, inner, 1), nn.ReLU(inplace=True), nn.Conv2d(inner, channels, 1), nn.Sigmoid()
        )


class SharedGate(nn.Module):
    """The channel half of CBAM (Woo 2018): one bottleneck shared by the averages and the maxima of the cells."""

    def __init__(self, channels: int):
        super().__init__()
        inner = max(4, channels // 16)
        self.inner = nn.Sequential(nn.Conv2d(channels, inner, 1), nn.ReLU(inplace=True), nn.Conv2d(inner, channels, 1))

    def forward(self, averages: torch.Tensor, maxima: torch.Tensor) -> torch.Tensor:
        """Two ``(B, C, s, s)`` to weights of the same shape."""
        weights: torch.Tensor = (self.inner(averages) + self.inner(maxima)).sigmoid()
        return weights


class SpatialGate(nn.Module):
    """The spatial half of CBAM: a 7x7 convolution over the mean and the maximum of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W)`` to weights ``(B, 1, H, W)``."""
        weights: torch.Tensor = self.conv(
            torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
        ).sigmoid()
        return weights


class ScSe(nn.Module):
    """Concurrent spatial and channel squeeze and excitation (Roy 2018): features by either gate, added."""

    def __init__(self, channels: int):
        super().__init__()
        self.channel = SqueezeExcite(channels)
        self.spatial = nn.Sequential(nn.Conv2d(channels, 1, 1), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W)`` to the same, scaled."""
        gates: torch.Tensor = self.channel(x.mean(dim=(2, 3), keepdim=True)) + self.spatial(x)
        return x * gates


def build_gate(kind: Attention, channels: int) -> nn.Module:
    """The gate of one pyramid level.

    Raises:
        ModelError: no such attention.
    """
    if kind == "laca":
        return ChannelConv(channels, norm=True)
    if kind == "eca":
        return ChannelConv(channels, norm=False)
    if kind == "se":
        return SqueezeExcite(channels)
    if kind == "cbam":
        return SharedGate(channels)
    raise ModelError(f"unknown attention {kind!r}: choose one of laca, eca, se, cbam, none")


def average_cells(x: torch.Tensor, bins: int) -> torch.Tensor:
    """Adaptive average pooling to ``(B, C, bins, bins)`` as two small matrix products: every engine has them."""
    rows = pooling_matrix(x.shape[2], bins).to(x)
    columns = pooling_matrix(x.shape[3], bins).to(x)
    return rows @ x @ columns.T


def pooling_matrix(size: int, bins: int) -> torch.Tensor:
    """The matrix ``(bins, size)`` that averages the cells of adaptive pooling, float32."""
    matrix = np.zeros((bins, size), dtype=np.float32)
    for i, (start, stop) in enumerate(cell_ranges(size, bins)):
        matrix[i, start:stop] = 1 / (stop - start)
    return torch.from_numpy(matrix)  # a constant of the exported graph


def maximum_cells(x: torch.Tensor, bins: int) -> torch.Tensor:
    """Adaptive maximum pooling to ``(B, C, bins, bins)``, one axis after the other, by slices."""
    rows = torch.stack([x[:, :, a:b].amax(dim=2) for a, b in cell_ranges(x.shape[2], bins)], dim=2)
    return torch.stack([rows[..., a:b].amax(dim=3) for a, b in cell_ranges(x.shape[3], bins)], dim=3)


def cell_ranges(size: int, bins: int) -> list[tuple[int, int]]:
    """Start and stop of each cell of adaptive pooling along an axis: floor(i n / b) to ceil((i + 1) n / b)."""
    return [(i * size // bins, -(-(i + 1) * size // bins)) for i in range(bins)]


def initialise_convolutions(network: nn.Module) -> None:
    """Weights for rectifiers behind them (He et al. 2015), biases of zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def enlarge(cells: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Bilinear interpolation to ``(B, C, height, width)``."""
    return functional.interpolate(cells, size=(height, width), mode="bilinear", align_corners=False)
