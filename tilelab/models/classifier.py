"""An encoder with a linear classifier behind it: what pre-training trains, of which only the encoder is kept."""

from __future__ import annotations

import torch
from torch import nn

from tilelab.models.encoders import build_encoder

_DEPTH, _STRIDE = 5, 32


class Classifier(nn.Module):
    """Encoder, mean over the image, dropout, linear map.

    Args:
        channels: input channels.
        classes: outputs, one logit each.
        encoder: any encoder of segmentation_models_pytorch or timm (``tu-NAME``).
        dropout: share of the features dropped while training.
    """

    def __init__(self, channels: int, classes: int, *, encoder: str, dropout: float = 0.0):
        super().__init__()
        self.encoder = build_encoder(encoder, channels, depth=_DEPTH, output_stride=_STRIDE)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.encoder.out_channels[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, channels, H, W)`` to logits ``(B, classes)``; H and W are multiples of 32."""
        features: torch.Tensor = self.encoder(x)[-1].mean(dim=(2, 3))
        logits: torch.Tensor = self.head(self.dropout(features))
        return logits
