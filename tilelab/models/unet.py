"""U-Net (Ronneberger, Fischer, Brox 2015): five levels, two 3x3 convolutions each, skip connections by concatenation.

Three departures from the paper, each for tiled inference: convolutions are padded, so that the output is as large as
the input; batch normalisation follows each of them (it is folded away at export); and `widths` is free, so that a
network of a tenth of the parameters can be had.  The paper has ``widths=(64, 128, 256, 512, 1024)``, ``norm="none"``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

from tilelab.errors import ModelError
from tilelab.models.attention import ScSe, enlarge, initialise_convolutions

PAPER_WIDTHS = (64, 128, 256, 512, 1024)


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions, each followed by batch normalisation (or none) and ReLU; keeps height and width."""

    def __init__(self, inputs: int, outputs: int, norm: Literal["batch", "none"]):
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            layers.append(nn.Conv2d(channels, outputs, 3, padding=1, bias=norm == "none"))
            if norm == "batch":
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class UNet(nn.Module):
    """The published U-Net.

    Args:
        channels: input channels.
        outputs: output channels, one logit per class.
        widths: channels of each level, finest first; the total stride is ``2 ** (len(widths) - 1)``.
        norm: ``batch`` or ``none``.
        attention: ``none``, or ``scse`` after every level of the decoder (Roy 2018).
        hypercolumns: the last layer sees every level of the decoder, enlarged, instead of the finest alone.
        dropout: probability of dropping a channel at the coarsest level while training (the paper's is 0.5).
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        widths: Sequence[int] = PAPER_WIDTHS,
        norm: Literal["batch", "none"] = "batch",
        attention: Literal["none", "scse"] = "none",
        hypercolumns: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        widths = tuple(widths)
        if len(widths) < 2 or any(not isinstance(w, int) or w < 1 for w in widths):
            raise ModelError(f"unet widths {list(widths)} must be at least two positive whole numbers")
        if norm not in ("batch", "none"):
            raise ModelError(f"unet norm {norm!r} is unknown: choose one of batch, none")
        if attention not in ("none", "scse"):
            raise ModelError(f"unet attention {attention!r} is unknown: choose one of none, scse")
        self.encoder = nn.ModuleList(DoubleConv(a, b, norm) for a, b in pairwise((channels, *widths)))
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout2d(dropout)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairwise(widths))
        self.decoder = nn.ModuleList(DoubleConv(2 * a, a, norm) for a in widths[:-1])
        self.attention = nn.ModuleList(ScSe(w) for w in widths[:-1] if attention == "scse")
        self.hypercolumns = hypercolumns
        self.head = nn.Conv2d(sum(widths) if hypercolumns else widths[0], outputs, 1)
        initialise_convolutions(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, channels, H, W)`` to logits ``(B, outputs, H, W)``; H and W are multiples of the total stride."""
        skips = []
        for block in list(self.encoder)[:-1]:
            skips.append(block(x))
            x = self.pool(skips[-1])
        x = self.dropout(self.encoder[-1](x))
        levels = [x]
        for level in reversed(range(len(self.up))):
            x = self.decoder[level](torch.cat([skips[level], self.up[level](x)], dim=1))
            if self.attention:
                x = self.attention[level](x)
            levels.append(x)
        if self.hypercolumns:
            x = torch.cat([*(enlarge(level, x.shape[2], x.shape[3]) for level in levels[:-1]), x], dim=1)
        logits: torch.Tensor = self.head(x)
        return logits
