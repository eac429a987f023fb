r"""Where tiles lie and how much each says at every pixel; integers in, integers out, no I/O.

Positions and sizes are in pixels.  Axis order is always that of the image (z, y, x for volumes).  An axis is tiled by
*placing* tiles at multiples of the model's total stride and *sharing* every pixel among the tiles that cover it:

        position  0         p1          p2
        tile 0    |---------------|
        tile 1              |---------------|
        tile 2                          |---------------|   <- moved back, so that it ends with the padded axis
        share     1111111111\\\\\\1111111\\\\\\\1111111111
                             ////       /////

The shares at a pixel are whole numbers of 2**-q that add up to 2**q: in float32 they sum to exactly 1, and so do the
products of two (or three) axes.  The lattice depends on image size, tile, overlap and stride alone, never on how the
work is split, so any split gives the same result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from tilelab.arrays import Float32, Float64, Int64
from tilelab.errors import PlanError
from tilelab.geometry.box import Box

Window = Literal["hann", "gaussian", "linear", "constant", "crop"]
WINDOWS: tuple[Window, ...] = get_args(Window)

# Fractional bits of a share on one axis, by the number of blended axes: the product over the axes stays within the
# 24 bits of a float32 mantissa, which is what makes sums of products exact.
_SHARE_BITS = {1: 16, 2: 12, 3: 8}


def window_profile(window: Window, tile: int) -> Float64:
    """The unnormalised weight of each pixel of a tile along one axis, float64 ``(tile,)``, positive everywhere.

    `crop` has no profile of its own (each pixel belongs to one tile); it is treated as constant here and cut in
    `AxisTiling.shares`.
    """
    centred = (np.arange(tile) + 0.5) / tile
    if window == "hann":
        return np.sin(np.pi * centred) ** 2
    if window == "gaussian":  # sigma = tile / 8, as MONAI and nnU-Net
        return np.exp(-0.5 * ((centred - 0.5) * 8) ** 2)
    if window == "linear":
        return np.minimum(centred, 1 - centred)
    if window in ("constant", "crop"):
        return np.ones(tile)
    raise PlanError(f"unknown window {window!r}: choose one of {', '.join(WINDOWS)}")


def reflect(index: Int64, size: int) -> Int64:
    """Map any integer index onto ``0..size-1`` by mirroring at the edge pixels (numpy's ``reflect``), repeatedly."""
    if size == 1:
        return np.zeros_like(index)
    period = 2 * (size - 1)
    folded = np.mod(index, period)
    mirrored: Int64 = np.minimum(folded, period - folded)
    return mirrored


@dataclass(frozen=True)
class AxisTiling:
    """Tile positions and shares along one axis.

    size     pixels of the image along the axis
    tile     pixels of a tile; a larger tile than the axis is filled by reflection
    overlap  least overlap of neighbours, 0 <= overlap < tile
    stride   every position is a multiple of it (the model's total stride); divides `tile` and its halos
    halo     pixels that are read at either side of a tile, beyond the axis by reflection
    """

    size: int
    tile: int
    overlap: int
    stride: int = 1
    window: Window = "hann"
    bits: int = 12
    halo: int = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise PlanError(f"axis of {self.size} pixels cannot be tiled: it is empty")
        if self.tile < 1 or self.stride < 1 or self.read % self.stride:
            raise PlanError(
                f"tile of {self.read} px is not a multiple of the model's stride {self.stride}: "
                f"use {max(1, round(self.read / self.stride)) * self.stride}"
            )
        if not 0 <= self.overlap < self.tile:
            raise PlanError(f"overlap of {self.overlap} px must be at least 0 and less than the tile, {self.tile} px")
        if self.step < 1 and self.halo:
            raise PlanError(
                f"a tile of {self.read} px has {self.tile} px between its halos, of which an overlap of {self.overlap} "
                f"leaves no step of {self.stride}: use a larger --tile, or a smaller --stride if the model's is smaller"
            )
        if self.step < 1:
            raise PlanError(
                f"overlap of {self.overlap} px leaves no step of {self.stride} px in a tile of {self.tile} px: "
                f"use at most {self.tile - self.stride}"
            )

    @property
    def step(self) -> int:
        """Distance between neighbouring tiles, the last pair excepted."""
        return (self.tile - self.overlap) // self.stride * self.stride

    @property
    def read(self) -> int:
        """Pixels that are read for a tile: it and its halos."""
        return self.tile + 2 * self.halo

    @property
    def padded(self) -> int:
        """Extent covered by tiles: at least one tile, and as many strides more as the size takes."""
        return self.tile + max(0, -(-(self.size - self.tile) // self.stride)) * self.stride

    def __len__(self) -> int:
        return 1 + -(-(self.padded - self.tile) // self.step)

    @property
    def shared(self) -> int:
        """Pixels that two neighbours share, at most: the last pair may share more than the others."""
        last = len(self) - 1
        return max(
            self.tile - self.step if last > 1 else 0,
            self.position(last - 1) + self.tile - self.position(last) if last else 0,
        )

    def position(self, j: int) -> int:
        """First pixel of tile `j`."""
        if not 0 <= j < len(self):
            raise IndexError(f"tile {j} of {len(self)}")
        return min(j * self.step, self.padded - self.tile)

    def covering(self, start: int, stop: int) -> range:
        """The tiles that have a pixel in ``start <= x < stop``."""
        first = max(0, -(-(start - self.tile + 1) // self.step))
        last = min(len(self) - 1, (stop - 1) // self.step)
        # the last tile lies further back than its index says
        if self.position(len(self) - 1) < stop:
            last = len(self) - 1
        return range(min(first, len(self) - 1), last + 1)

    def indices(self, j: int) -> Int64:
        """The image pixel behind each pixel that is read for tile `j`, reflected at the edges, int64 ``(read,)``."""
        return reflect(self.position(j) - self.halo + np.arange(self.read, dtype=np.int64), self.size)

    def shares(self, j: int) -> Float32:
        """The share of tile `j` at each of its pixels, float32 ``(tile,)``; over all tiles they sum to exactly 1."""
        here = self.position(j)
        x = here + np.arange(self.tile)
        others = self.covering(here, here + self.tile)
        total = np.zeros(self.tile)
        before = np.zeros(self.tile)
        through = np.zeros(self.tile)
        for k in others:
            weight = self._weight(k, x)
            total += weight
            if k < j:
                before += weight
            if k <= j:
                through += weight
        # Rounding the running sum rather than each share keeps the sum of the rounded shares exact.
        scale = 2.0**self.bits
        share: Float64 = (np.rint(through / total * scale) - np.rint(before / total * scale)) / scale
        return share.astype(np.float32)

    def _weight(self, k: int, x: Int64) -> Float64:
        """Unnormalised weight of tile `k` at the image positions `x`."""
        at = self.position(k)
        inside = (x >= at) & (x < at + self.tile)
        if self.window == "crop":
            left = 0 if k == 0 else (at + self.position(k - 1) + self.tile) // 2
            right = self.padded if k == len(self) - 1 else (self.position(k + 1) + at + self.tile) // 2
            return (inside & (x >= left) & (x < right)).astype(np.float64)
        profile = window_profile(self.window, self.tile)
        weight: Float64 = np.where(inside, profile[np.clip(x - at, 0, self.tile - 1)], 0.0)
        return weight


@dataclass(frozen=True)
class Lattice:
    """The product of the axes' tilings: every tile of an image, counted but never listed."""

    axes: tuple[AxisTiling, ...]

    @classmethod
    def fit(
        cls,
        shape: tuple[int, ...],
        tile: tuple[int, ...],
        overlap: tuple[int, ...],
        *,
        stride: int | tuple[int, ...] = 1,
        window: Window = "hann",
        halo: tuple[int, ...] | None = None,
    ) -> Lattice:
        """Tile an image of `shape`; all arguments per axis, in image order; `halo` is read beside every tile."""
        strides = (stride,) * len(shape) if isinstance(stride, int) else stride
        if not len(shape) == len(tile) == len(overlap) == len(strides):
            raise PlanError(f"image has {len(shape)} axes, tile {len(tile)}, overlap {len(overlap)}: they must agree")
        bits = _SHARE_BITS[max(1, min(3, sum(t > 1 for t in tile)))]
        return cls(
            tuple(
                AxisTiling(n, t, o, s if t > 1 else 1, window, bits, h)
                for n, t, o, s, h in zip(shape, tile, overlap, strides, halo or (0,) * len(shape), strict=True)
            )
        )

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Tiles per axis."""
        return tuple(len(axis) for axis in self.axes)

    @property
    def tile(self) -> tuple[int, ...]:
        """Extent of a tile."""
        return tuple(axis.tile for axis in self.axes)

    @property
    def read(self) -> tuple[int, ...]:
        """Extent of what is read for a tile."""
        return tuple(axis.read for axis in self.axes)

    def __len__(self) -> int:
        return math.prod(self.shape)

    def __getitem__(self, index: tuple[int, ...]) -> Box:
        """The box of one tile; it may reach beyond the image."""
        start = tuple(axis.position(j) for axis, j in zip(self.axes, index, strict=True))
        return Box(start, tuple(a + axis.tile for a, axis in zip(start, self.axes, strict=True)))

    def covering(self, box: Box) -> tuple[range, ...]:
        """Per axis, the tiles that have a pixel in `box`."""
        return tuple(axis.covering(a, b) for axis, a, b in zip(self.axes, box.start, box.stop, strict=True))

    def count(self, box: Box) -> int:
        """Number of tiles that have a pixel in `box`."""
        return math.prod(len(r) for r in self.covering(box))
