"""MoCo v2 (He 2020, Chen 2020): an encoder learns without labels that two views of one place belong together."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional

from tilelab.models.encoders import build_encoder

_DEPTH, _STRIDE = 5, 32


class Projector(nn.Module):
    """An encoder, the mean over the image, and two layers down to a vector of length one."""

    def __init__(self, channels: int, encoder: str, features: int):
        super().__init__()
        self.encoder = build_encoder(encoder, channels, depth=_DEPTH, output_stride=_STRIDE)
        width = self.encoder.out_channels[-1]
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W)`` to ``(B, features)``."""
        return functional.normalize(self.head(self.encoder(x)[-1].mean(dim=(2, 3))).float(), dim=1)


class MoCo(nn.Module):
    """The encoder that learns, one that follows it slowly, and a queue of what the latter has seen.

    All of it is in the state, so a training that is continued sees the same queue.

    Args:
        channels: input channels of the encoder.
        encoder: any encoder of segmentation_models_pytorch or timm (``tu-NAME``).
        features: length of the vectors.
        queue: vectors that are kept to differ from.
        momentum: share that the following encoder keeps of itself, every step.
        temperature: of the similarities.
    """

    queue: torch.Tensor
    place: torch.Tensor

    def __init__(self, channels: int, *, encoder: str, features: int, queue: int, momentum: float, temperature: float):
        super().__init__()
        self.momentum, self.temperature, self.channels = momentum, temperature, channels
        self.learner = Projector(channels, encoder, features)
        self.follower = copy.deepcopy(self.learner).requires_grad_(False)
        self.register_buffer("queue", functional.normalize(torch.randn(queue, features), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    @property
    def encoder(self) -> nn.Module:
        """That of the learner."""
        return self.learner.get_submodule("encoder")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """In training mode two views, ``(B, 2 C, H, W)``, to logits ``(B, 1 + queue)``, of which the first is right.

        In evaluation mode one view, ``(B, C, H, W)``, to its vector ``(B, features)``.
        """
        if not self.training:
            vector: torch.Tensor = self.learner(x)
            return vector
        one, two = x.chunk(2, dim=1)
        vectors = self.learner(one)
        with torch.no_grad():
            for old, new in zip(self.follower.parameters(), self.learner.parameters(), strict=True):
                old.lerp_(new, 1 - self.momentum)
            keys = self._follow(two)
        right = (vectors * keys).sum(dim=1, keepdim=True)
        others = vectors @ self.queue.T.clone()
        self._remember(keys)
        return torch.cat([right, others], dim=1) / self.temperature

    def _follow(self, views: torch.Tensor) -> torch.Tensor:
        """Vectors by the follower; in another order, in two parts: batch statistics tell nothing of the pairs."""
        order = torch.randperm(views.shape[0], device=views.device)
        parts = 2 if views.shape[0] >= 4 else 1
        mixed = torch.cat([self.follower(part) for part in views[order].chunk(parts)])
        keys = torch.empty_like(mixed)
        keys[order] = mixed
        return keys

    @torch.no_grad()
    def _remember(self, keys: torch.Tensor) -> None:
        """Put the newest vectors where the oldest are."""
        length = self.queue.shape[0]
        where = (torch.arange(keys.shape[0], device=keys.device) + self.place) % length
        self.queue[where] = keys.to(self.queue.dtype)
        self.place.add_(keys.shape[0]).remainder_(length)
