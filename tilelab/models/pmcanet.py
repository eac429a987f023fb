"""PmcaNet: pyramid multiscale channel attention (Gao et al., J. Intelligent & Fuzzy Systems 46(2), 2024).

No code was published; this follows the text, and where that is silent the choice is marked [i], for inferred.

    image - dilated encoder - X (stride 8) ---------------------------- * -- x2 -- concat - 3x3, 3x3 - 1x1 - x4
                      |          |- pool s x s - gate - A_s -|          |            |
                      |          '  s = 1, 2, 3, 6           '- fuse: A '            |
                      '- low-level features (stride 4) - 1x1 ------------------------'

Pooling to s x s and then globally would give the same vector at every level; so a level keeps one vector per cell [i].
The pyramid pools the tile, so the output depends on the whole of it: tiles are blended, and their size is part of the
model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from tilelab.errors import ModelError
from tilelab.models.attention import (
    Attention,
    SharedGate,
    SpatialGate,
    average_cells,
    build_gate,
    enlarge,
    maximum_cells,
)
from tilelab.models.encoders import build_encoder

Fusion = Literal["maf", "add", "multiply"]
STRIDE = 8
DETAIL = 24
"""Channels at full resolution, with ``low_stride = 1``."""


class PyramidAttention(nn.Module):
    """Gates of every pyramid level, fused to one map of weights that scales the features.

    Fusion by ``maf`` (multiscale attention fusion) weighs the levels per pixel, ``A = sum_s w_s A_s``, the weights from
    a 1x1 convolution over all levels' outputs and a softmax over the levels [i]; ``add`` and ``multiply`` combine them
    plainly.
    """

    def __init__(self, channels: int, bins: Sequence[int], attention: Attention, fusion: Fusion):
        super().__init__()
        if not bins or any(not isinstance(b, int) or b < 1 for b in bins):
            raise ModelError(f"pyramid bins {list(bins)} must be positive whole numbers")
        if fusion not in ("maf", "add", "multiply"):
            raise ModelError(f"unknown fusion {fusion!r}: choose one of maf, add, multiply")
        self.bins = tuple(bins)
        self.fusion = fusion
        self.gates = nn.ModuleList(build_gate(attention, channels) for _ in bins)
        self.spatial = SpatialGate() if attention == "cbam" else None
        # The 1x1 convolution over the concatenated levels, one part per level: it is linear, so it may act on the few
        # cells before they are enlarged.
        self.choose = nn.ModuleList(nn.Conv2d(channels, len(bins), 1) for _ in bins if fusion == "maf")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W)`` to the same, scaled."""
        height, width = x.shape[2], x.shape[3]
        cells = [self._gate(level, x) for level in range(len(self.bins))]
        levels = [enlarge(c, height, width) for c in cells]
        if self.fusion == "maf":
            votes = [enlarge(choose(c), height, width) for choose, c in zip(self.choose, cells, strict=True)]
            share = torch.stack(votes).sum(dim=0).softmax(dim=1)  # (B, levels, H, W)
            weights = sum((share[:, s : s + 1] * level for s, level in enumerate(levels)), start=torch.zeros_like(x))
        elif self.fusion == "add":
            weights = torch.stack(levels).sum(dim=0)
        else:
            weights = torch.stack(levels).prod(dim=0)
        x = x * weights
        return x if self.spatial is None else x * self.spatial(x)

    def _gate(self, level: int, x: torch.Tensor) -> torch.Tensor:
        gate, bins = self.gates[level], self.bins[level]
        averages = average_cells(x, bins)
        cells: torch.Tensor
        cells = gate(averages, maximum_cells(x, bins)) if isinstance(gate, SharedGate) else gate(averages)
        return cells


class PmcaNet(nn.Module):
    """The network.

    Args:
        channels: input channels.
        outputs: output channels, one logit per class.
        encoder: any encoder of segmentation_models_pytorch or timm (``tu-NAME``) that can be dilated, or ``compact``:
            a ResNet-50 that stops after its third stage, 11.6 M parameters in all, the number that the paper gives
            [i: it fits no complete ResNet-50].
        bins: cells per side of each pyramid level.
        attention: gate of a level; ``none`` leaves the pyramid out.
        fusion: of the levels.
        depth: stages of the encoder that are used, 4 or 5; ``compact`` is ``resnet50`` with 4.
        width: channels of the decoder.
        low_width: channels that the low-level features are reduced to; 0 leaves them out.
        low_stride: of the low-level features and so of the decoder, 4, or 2 for structures of a few pixels; with 1 what
            the decoder gives at stride 2 is fused with the image once more, at full resolution (not in the paper).
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        encoder: str = "resnet50",
        bins: Sequence[int] = (1, 2, 3, 6),
        attention: Attention = "laca",
        fusion: Fusion = "maf",
        depth: Literal[4, 5] = 5,
        width: int = 256,
        low_width: int = 48,
        low_stride: Literal[1, 2, 4] = 4,
    ):
        super().__init__()
        if depth not in (4, 5) or low_stride not in (1, 2, 4):
            raise ModelError(f"depth is 4 or 5 and low_stride 1, 2 or 4, not {depth} and {low_stride}")
        if encoder == "compact":
            encoder, depth = "resnet50", 4
        self.encoder = build_encoder(encoder, channels, depth=depth, output_stride=STRIDE)
        features = self.encoder.out_channels
        self.low_level = 2 if low_stride == 4 else 1
        self.attention: nn.Module = nn.Identity()
        if attention != "none":
            self.attention = PyramidAttention(features[-1], bins, attention, fusion)
        self.low = _conv(features[self.low_level], low_width, 1) if low_width else None
        self.decoder = nn.Sequential(_conv(features[-1] + low_width, width, 3), _conv(width, width, 3))
        self.detail = Detail(width, channels) if low_stride == 1 else None
        self.head = nn.Conv2d(DETAIL if self.detail else width, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, channels, H, W)`` to logits ``(B, outputs, H, W)``; H and W are multiples of 8."""
        height, width = x.shape[2], x.shape[3]
        if height % STRIDE or width % STRIDE:
            raise ValueError(f"height and width must be multiples of {STRIDE}, not {height} and {width}")
        image, features = x, self.encoder(x)
        low = features[self.low_level]
        x = enlarge(self.attention(features[-1]), low.shape[2], low.shape[3])
        if self.low is not None:
            x = torch.cat([x, self.low(low)], dim=1)
        x = self.decoder(x)
        if self.detail is not None:
            return self.head(self.detail(x, image))  # type: ignore[no-any-return]  # torch's modules give Any
        return enlarge(self.head(x), height, width)


class Detail(nn.Module):
    """The decoder's features fused with those of the image itself, at full resolution.

    Args:
        width: channels of the decoder.
        channels: of the image.
    """

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.reduce = _conv(width, DETAIL, 1)
        self.image = _conv(channels, DETAIL, 3)
        self.fuse = nn.Sequential(_conv(2 * DETAIL, DETAIL, 3), _conv(DETAIL, DETAIL, 3))

    def forward(self, x: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """``(B, width, h, w)`` and ``(B, channels, H, W)`` to ``(B, DETAIL, H, W)``."""
        x = enlarge(self.reduce(x), image.shape[2], image.shape[3])
        fused: torch.Tensor = self.fuse(torch.cat([x, self.image(image)], dim=1))
        return fused


def _conv(inputs: int, outputs: int, size: int) -> nn.Sequential:
    layers: list[Any] = [nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)]
    return nn.Sequential(*layers, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
