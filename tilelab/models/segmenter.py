"""Transformers that segment: Segmenter (Strudel 2021) and SegViT (Zhang 2022), over a plain vision transformer.

Both ask with one query per class.  Segmenter's decoder runs queries and patches through two blocks together; a class's
logits are the products of its query with every patch.  SegViT's queries look at three layers of the encoder, and where
they look (attention to mask) is the mask of their class; how sure a query is that its class is there scales it.

Attention sees the whole tile: tiles are blended, and their size is part of the model.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from tilelab.models.attention import enlarge
from tilelab.models.heads import Heads
from tilelab.models.vit import Block, Mlp, Size, VisionTransformer, features_of

_LAYERS = (0.5, 0.75, 1.0)
"""How deep in the encoder SegViT's three queries look, as shares of its blocks; the last first."""
_SIDE = 0.4
"""Weight of the losses of SegViT's single layers."""


class Segmenter(nn.Module):
    """The network with a mask transformer.

    Args:
        channels: input channels.
        outputs: output channels, one logit per class.
        size: of the encoder.
        grid: of its positions.
        depth: blocks of the decoder.
    """

    def __init__(self, channels: int, outputs: int, *, size: Size = "small", grid: int = 24, depth: int = 2):
        super().__init__()
        features, heads, _ = features_of(size)
        self.outputs = outputs
        self.encoder = VisionTransformer(channels, size, grid)
        self.enter = nn.Linear(features, features)
        self.queries = nn.Parameter(torch.randn(1, outputs, features) * 0.02)
        self.blocks = nn.ModuleList(Block(features, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(features)
        self.patch = nn.Linear(features, features, bias=False)
        self.query = nn.Linear(features, features, bias=False)
        self.mask_norm = nn.LayerNorm(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, channels, H, W)`` to logits ``(B, outputs, H, W)``; H and W are multiples of 16."""
        size = (x.shape[2], x.shape[3])
        seen = self.encoder(x)[0]
        tokens = self.enter(seen.flatten(2).transpose(1, 2))
        tokens = torch.cat([tokens, self.queries.expand(x.shape[0], -1, -1)], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        patches = functional.normalize(self.patch(tokens[:, : -self.outputs]), dim=2)
        queries = functional.normalize(self.query(tokens[:, -self.outputs :]), dim=2)
        masks = self.mask_norm(patches @ queries.transpose(1, 2)).transpose(1, 2)
        return enlarge(masks.reshape(x.shape[0], self.outputs, seen.shape[2], seen.shape[3]), *size)


class AttentionToMask(nn.Module):
    """Queries that look at patches: they take in what they see, and where they look are the masks."""

    def __init__(self, features: int, heads: int):
        super().__init__()
        self.heads = heads
        self.own = nn.MultiheadAttention(features, heads, batch_first=True)
        self.query, self.key = nn.Linear(features, features), nn.Linear(features, features)
        self.value, self.proj = nn.Linear(features, features), nn.Linear(features, features)
        self.mlp = Mlp(features)
        self.norms = nn.ModuleList(nn.LayerNorm(features) for _ in range(3))

    def forward(self, queries: torch.Tensor, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``(B, K, C)`` and ``(B, N, C)`` to new queries and the logits of masks ``(B, K, N)``."""
        queries = self.norms[0](queries + self.own(queries, queries, queries, need_weights=False)[0])
        q, k, v = (
            self._split(layer(x)) for layer, x in ((self.query, queries), (self.key, patches), (self.value, patches))
        )
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])  # (B, heads, K, N)
        mixed = (scores.softmax(dim=3) @ v).transpose(1, 2).flatten(2)
        queries = self.norms[1](queries + self.proj(mixed))
        return self.norms[2](queries + self.mlp(queries)), scores.mean(dim=1)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        batch, count, features = x.shape
        return x.reshape(batch, count, self.heads, features // self.heads).transpose(1, 2)


class SegVit(nn.Module):
    """The network: attention to mask over three layers of the encoder, the deepest first.

    In training mode it returns the fused logits and those of each layer, in evaluation mode the fused ones.

    Args:
        channels: input channels.
        outputs: output channels, one logit per class.
        size: of the encoder.
        grid: of its positions.
    """

    def __init__(self, channels: int, outputs: int, *, size: Size = "base", grid: int = 24):
        super().__init__()
        features, heads, blocks = features_of(size)
        self.encoder = VisionTransformer(channels, size, grid)
        self.layers = tuple(round(share * blocks) - 1 for share in _LAYERS)
        self.enter = nn.ModuleList(
            nn.Sequential(nn.Linear(features, features), nn.LayerNorm(features)) for _ in self.layers
        )
        self.queries = nn.Parameter(torch.randn(1, outputs, features) * 0.02)
        self.attend = nn.ModuleList(AttentionToMask(features, heads) for _ in self.layers)
        self.present = nn.Linear(features, outputs + 1)  # one more for a class that is not there

    def forward(self, x: torch.Tensor) -> torch.Tensor | Heads:
        """``(B, channels, H, W)`` to logits ``(B, outputs, H, W)``; H and W are multiples of 16."""
        size, count = (x.shape[2], x.shape[3]), self.queries.shape[1]
        queries = self.queries.repeat(x.shape[0], 1, 1)
        masks: list[torch.Tensor] = []
        for seen, enter, attend in zip(reversed(self.encoder(x, self.layers)), self.enter, self.attend, strict=True):
            queries, scores = attend(queries, enter(seen.flatten(2).transpose(1, 2)))
            masks.append(scores.reshape(x.shape[0], count, seen.shape[2], seen.shape[3]))
        # each query's probability of its own class, and of the mask, as logarithms of their product
        sure = self.present(queries).log_softmax(dim=2)[:, :, :count].diagonal(dim1=1, dim2=2)[:, :, None, None]
        fused: torch.Tensor = functional.logsigmoid(enlarge(torch.stack(masks).sum(dim=0), *size)) + sure
        if not self.training:
            return fused
        sides = [functional.logsigmoid(enlarge(mask, *size)) + sure for mask in masks]
        return Heads((fused, *sides), (1.0, *(_SIDE for _ in sides)))
