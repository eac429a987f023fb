"""CASENet (Yu 2017), as used for membranes by the authors of U-RISC: category-aware edges from side outputs.

Stages 1, 2, 3 of the encoder each give one channel, stage 5 one per class, all by a 1x1 convolution and bilinear
enlargement.  For every class, its channel of stage 5 and the three others are put side by side (sliced concatenation)
and fused by a 1x1 convolution of its own (grouped).
"""

from __future__ import annotations

import torch
from torch import nn

from tilelab.models.attention import enlarge
from tilelab.models.encoders import build_encoder

STRIDE = 8


class CaseNet(nn.Module):
    """The network.

    In training mode it returns two maps, the fused one and that of stage 5, and both are supervised; in evaluation mode
    the fused one.

    Args:
        channels: input channels.
        outputs: output channels, one logit per class.
        encoder: any encoder with five stages that can be dilated.
    """

    def __init__(self, channels: int, outputs: int, *, encoder: str = "resnet152"):
        super().__init__()
        self.encoder = build_encoder(encoder, channels, depth=5, output_stride=STRIDE)
        width = self.encoder.out_channels
        self.low = nn.ModuleList(nn.Conv2d(width[stage], 1, 1) for stage in (1, 2, 3))
        self.high = nn.Conv2d(width[5], outputs, 1)
        self.fuse = nn.Conv2d(4 * outputs, outputs, 1, groups=outputs)
        # all four begin as an even vote
        nn.init.constant_(self.fuse.weight, 0.25)

    def sides(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Side outputs at full size: three ``(B, 1, H, W)`` and one ``(B, outputs, H, W)``."""
        height, width = x.shape[2], x.shape[3]
        if height % STRIDE or width % STRIDE:
            raise ValueError(f"height and width must be multiples of {STRIDE}, not {height} and {width}")
        features = self.encoder(x)
        one, two, three = (
            enlarge(conv(features[stage]), height, width) for stage, conv in enumerate(self.low, start=1)
        )
        return one, two, three, enlarge(self.high(features[5]), height, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """``(B, channels, H, W)`` to logits ``(B, outputs, H, W)``, twice while training; sizes are multiples of 8."""
        *low, high = self.sides(x)
        sliced = [part for k in range(high.shape[1]) for part in (high[:, k : k + 1], *low)]
        fused: torch.Tensor = self.fuse(torch.cat(sliced, dim=1))
        return (fused, high) if self.training else fused
