"""CASENet (Yu 2017), as used for membranes by the authors of U-RISC: category-aware edges from side outputs.

``yu``: stages 1, 2, 3 of the encoder each give one channel, stage 5 one per class, all by a 1x1 convolution and
bilinear enlargement.  For every class, its channel of stage 5 and the three others are put side by side (sliced
concatenation) and fused by a 1x1 convolution of its own (grouped).  Fused map and stage 5 are supervised.

``urisc``, as the code of U-RISC's authors has it: all five stages give one channel each, with batch normalisation; the
five are normalised once more and fused by one 1x1 convolution; the fused map alone is supervised.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from tilelab.errors import ModelError
from tilelab.models.attention import enlarge
from tilelab.models.encoders import build_encoder

STRIDE = 8


class CaseNet(nn.Module):
    """The network.

    In training mode ``yu`` returns two maps, the fused one and that of stage 5, and both are supervised; in evaluation
    mode, as ``urisc`` always, the fused one.

    Args:
        channels: input channels.
        outputs: output channels, one logit per class.
        encoder: any encoder with five stages that can be dilated.
        sides: whose side outputs, ``yu`` or ``urisc``.
    """

    def __init__(
        self, channels: int, outputs: int, *, encoder: str = "resnet152", sides: Literal["yu", "urisc"] = "yu"
    ):
        super().__init__()
        if sides not in ("yu", "urisc"):
            raise ModelError(f"casenet sides {sides!r} are unknown: choose one of yu, urisc")
        self.encoder = build_encoder(encoder, channels, depth=5, output_stride=STRIDE)
        width = self.encoder.out_channels
        self.low = nn.ModuleList()
        self.high: nn.Conv2d | None = None
        if sides == "urisc":
            for stage in range(1, 6):
                self.low.append(nn.Sequential(nn.Conv2d(width[stage], 1, 1), nn.BatchNorm2d(1)))
            self.fuse: nn.Module = nn.Sequential(nn.BatchNorm2d(5), nn.Conv2d(5, outputs, 1))
        else:
            self.low.extend(nn.Conv2d(width[stage], 1, 1) for stage in (1, 2, 3))
            self.high = nn.Conv2d(width[5], outputs, 1)
            fuse = nn.Conv2d(4 * outputs, outputs, 1, groups=outputs)
            # all four begin as an even vote
            nn.init.constant_(fuse.weight, 0.25)
            self.fuse = fuse

    def sides(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Side outputs at full size: three or five ``(B, 1, H, W)``, and of ``yu`` one ``(B, outputs, H, W)``."""
        height, width = x.shape[2], x.shape[3]
        if height % STRIDE or width % STRIDE:
            raise ValueError(f"height and width must be multiples of {STRIDE}, not {height} and {width}")
        features = self.encoder(x)
        found = [enlarge(conv(features[stage]), height, width) for stage, conv in enumerate(self.low, start=1)]
        return found if self.high is None else [*found, enlarge(self.high(features[5]), height, width)]

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """``(B, channels, H, W)`` to logits ``(B, outputs, H, W)``; sizes are multiples of 8."""
        sides = self.sides(x)
        if self.high is None:
            fused: torch.Tensor = self.fuse(torch.cat(sides, dim=1))
            return fused
        *low, high = sides
        sliced = [part for k in range(high.shape[1]) for part in (high[:, k : k + 1], *low)]
        fused = self.fuse(torch.cat(sliced, dim=1))
        return (fused, high) if self.training else fused
