"""Architectures and bundled weights.

Importing this package does not import torch: inference looks up bundled models here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def build_model(name: str, channels: int, classes: int, **options: Any) -> nn.Module:
    """A freshly initialised network; see `tilelab.models.build.build_model`."""
    from tilelab.models import build

    return build.build_model(name, channels, classes, **options)
