"""A vision transformer (Dosovitskiy 2021) as encoder; its tensors bear timm's names, so that weights of it load."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from tilelab.errors import ModelError
from tilelab.models.attention import enlarge

Size = Literal["tiny", "small", "base", "large"]
# Of each size: features, heads, blocks.
SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (192, 3, 12),
    "small": (384, 6, 12),
    "base": (768, 12, 12),
    "large": (1024, 16, 24),
}
PATCH = 16


def features_of(size: str) -> tuple[int, int, int]:
    """Features, heads and blocks of a size.

    Raises:
        ModelError: no such size.
    """
    if size not in SIZES:
        raise ModelError(f"unknown size {size!r} of a vision transformer: choose one of {', '.join(SIZES)}")
    return SIZES[size]


class Attention(nn.Module):
    """Self-attention with several heads."""

    def __init__(self, features: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(features, 3 * features)
        self.proj = nn.Linear(features, features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, N, C)`` to the same."""
        batch, count, features = x.shape
        qkv = self.qkv(x).reshape(batch, count, 3, self.heads, features // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        out: torch.Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, count, features))
        return out


class Mlp(nn.Module):
    """Two layers with four times the features between them."""

    def __init__(self, features: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(features, 4 * features), nn.Linear(4 * features, features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, N, C)`` to the same."""
        out: torch.Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Attention and an MLP, each normalised first and added."""

    def __init__(self, features: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(features, eps=1e-6), nn.LayerNorm(features, eps=1e-6)
        self.attn, self.mlp = Attention(features, heads), Mlp(features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, N, C)`` to the same."""
        x = x + self.attn(self.norm1(x))
        out: torch.Tensor = x + self.mlp(self.norm2(x))
        return out


class Patches(nn.Module):
    """One token a patch of 16 px."""

    def __init__(self, channels: int, features: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, features, PATCH, PATCH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, channels, H, W)`` to ``(B, C, H / 16, W / 16)``."""
        out: torch.Tensor = self.proj(x)
        return out


class VisionTransformer(nn.Module):
    """The encoder.

    Args:
        channels: input channels.
        size: see `SIZES`.
        grid: patches per side of the learned positions, which are interpolated to the image's: 14 and 24 in the weights
            for 224 and 384 px.
    """

    output_stride = PATCH

    def __init__(self, channels: int, size: str, grid: int):
        super().__init__()
        features, heads, blocks = features_of(size)
        if grid < 1:
            raise ModelError(f"grid of positions must be at least 1, not {grid}")
        self.grid = grid
        self.patch_embed = Patches(channels, features)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, features))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid * grid, features))
        self.blocks = nn.ModuleList(Block(features, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(features, eps=1e-6)
        for tensor in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(tensor, std=0.02)

    def forward(self, x: torch.Tensor, layers: tuple[int, ...] = ()) -> list[torch.Tensor]:
        """Features ``(B, C, H / 16, W / 16)`` after the named blocks; the last of all when none is named.

        Raises:
            ValueError: H or W is not a multiple of 16.
        """
        if x.shape[2] % PATCH or x.shape[3] % PATCH:
            raise ValueError(f"height and width must be multiples of {PATCH}, not {x.shape[2]} and {x.shape[3]}")
        patches = self.patch_embed(x)
        batch, features, height, width = patches.shape
        places = self.pos_embed[:, 1:].transpose(1, 2).reshape(1, features, self.grid, self.grid)
        patches = patches + enlarge(places, height, width)
        start = (self.cls_token + self.pos_embed[:, :1]).expand(batch, -1, -1)
        tokens = torch.cat([start, patches.flatten(2).transpose(1, 2)], dim=1)
        last, found = len(self.blocks) - 1, []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index in layers or (not layers and index == last):
                kept = self.norm(tokens) if index == last else tokens
                found.append(kept[:, 1:].transpose(1, 2).reshape(batch, features, height, width))
        return found
