"""What a network with several heads gives while it trains; in evaluation mode it gives the logits alone."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Heads(NamedTuple):
    """Maps that are all supervised.

    logits: of the classes, ``(B, K, H, W)`` each, the first what evaluation gives.
    weights: of their losses.
    edges: one logit that says where classes meet, ``(B, 1, H, W)``.
    edge_weight: of its loss; where it is sure of an edge, the first of `logits` is supervised once more.
    points: logits of the classes at single places, ``(B, K, P)``.
    places: of them, x and y from 0 to 1, ``(B, P, 2)``.
    instances: of the object that a pixel belongs to, ``(B, 3, H, W)``: height of a hill at its centre, 0 to 1, and the
        way there in pixels, y and x.
    """

    logits: tuple[torch.Tensor, ...]
    weights: tuple[float, ...]
    edges: torch.Tensor | None = None
    edge_weight: float = 0.0
    points: torch.Tensor | None = None
    places: torch.Tensor | None = None
    instances: torch.Tensor | None = None
