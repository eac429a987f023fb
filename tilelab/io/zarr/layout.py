r"""How a result is cut into levels, shards and chunks; whole numbers only, decided by the image alone.

        level 0   shard 2048   |chunk 256|  |  |  |  |  |  |  |
        level 1   shard 1024   |  |  |  |  |          each aligned level covers the same rows of the image with one
        level 2   shard  512   |  |  |                shard, so all of them are complete every `grain` rows
        level 3   shard  256   |  |
        level 4   shard 2048   |  |  |  |  |  |  |  |  |   made at the end, from level 3

The chunk is the same at every level (viewers ask for that).  Neither chunk nor shard depends on how small a plane is:
what lies beyond it takes no space.  Depth does matter: the shards of a stack that would be more files than a file
system likes hold several slices each, and the chunks of a thin volume are flat.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tilelab.geometry import Box

Kind = Literal["2d", "3d"]
Extent = tuple[int, int, int]

_CHUNK: dict[Kind, Extent] = {"2d": (1, 256, 256), "3d": (32, 64, 64)}
_SHARD: dict[Kind, Extent] = {"2d": (1, 2048, 2048), "3d": (128, 512, 512)}
_THIN: dict[int, tuple[Extent, Extent]] = {
    8: ((8, 128, 128), (32, 512, 512)),
    16: ((16, 128, 128), (64, 512, 512)),
}
"""Chunk and shard of a volume of at most so many slices."""
_MOST_FILES = 2**18
"""Files of the finest level of a stack (1 TB), above which shards become deeper; flat ones are easier to
share out."""
_MOST_BYTES = 32 * 2**20
"""Of a deep shard with everything that is written per pixel: a unit that holds one has to fit into memory, and deeper
units have narrower lanes, whose borders are inferred twice (1 PB in 2 GiB: 1 % of the tiles with 4 slices of labels and
a probability, 11 % with 16)."""
_COARSEST = 512
"""The coarsest level is at most this wide and high, so that any viewer can show it at once."""
HELD = 1 / 8
"""Of the pixels of an unfinished shard, as much as is held compressed: labels and probabilities seldom take more."""
_ISOTROPIC = 1.5
"""z is halved with y and x when its pixel size is at most this many times theirs."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Levels, shards and chunks of a result; every extent is (z, y, x) in pixels.

    Attributes:
        shape: extent of the image, z = 1 for a plane.
        chunk: what is compressed as one piece, the same at every level.
        shard: what is one file at level 0.
        z_factor: 2 when z is halved from level to level, else 1; y and x always are.
        levels: number of levels, at least 1.
    """

    shape: Extent
    chunk: Extent
    shard: Extent
    z_factor: int
    levels: int

    @classmethod
    def fit(
        cls,
        shape: tuple[int, ...],
        pixel_size_nm: tuple[float, ...] | None = None,
        kind: Kind = "2d",
        bytes_per_pixel: int = 2,
    ) -> Layout:
        """The layout of an image.

        Args:
            shape: ``(y, x)`` or ``(z, y, x)``.
            pixel_size_nm: nanometres per pixel on the same axes; None is taken as isotropic.
            kind: ``2d`` for planes and stacks segmented plane by plane, ``3d`` for volumes.
            bytes_per_pixel: written for each pixel, over all channels.
        """
        z, y, x = (1,) * (3 - len(shape)) + tuple(shape)
        if min(z, y, x) < 1:
            raise ValueError(f"an image of {z} x {y} x {x} pixels has no layout: it is empty")
        if z == 1:
            kind = "2d"
        z_factor = 1
        if kind == "3d":
            size = pixel_size_nm if pixel_size_nm is not None and len(pixel_size_nm) == 3 else (1.0, 1.0, 1.0)
            ratio = size[0] / max(size[1:])
            z_factor = 2 if 1 / _ISOTROPIC <= ratio <= _ISOTROPIC else 1
        largest = max(y, x, z if z_factor == 2 else 1)
        levels = 1
        while -(-largest // 2 ** (levels - 1)) > _COARSEST:
            levels += 1
        chunk, shard = _CHUNK[kind], _SHARD[kind]
        if kind == "2d":
            shard = (_depth(z, -(-y // shard[1]) * -(-x // shard[2]), shard, bytes_per_pixel), *shard[1:])
        else:
            chunk, shard = next((cut for deep, cut in _THIN.items() if z <= deep), (chunk, shard))
        return cls((z, y, x), chunk, shard, z_factor, levels)

    @property
    def grain(self) -> Extent:
        """Units are cut at multiples of it: the shard at level 0."""
        return self.shard

    @property
    def factor(self) -> Extent:
        """Ratio of neighbouring levels per axis."""
        return (self.z_factor, 2, 2)

    @property
    def aligned(self) -> int:
        """Number of levels, from 0, that complete together every `grain` rows; the others are made at the end."""
        n = 1
        while n < self.levels and all(
            self.shard[a] // self.factor[a] ** n >= self.chunk[a] for a in range(3) if self.factor[a] > 1
        ):
            n += 1
        return n

    def scale(self, level: int) -> Extent:
        """Pixels of level 0 per pixel of `level`, per axis."""
        z, y, x = self.factor
        return (z**level, y**level, x**level)

    def level_shape(self, level: int) -> Extent:
        """Extent of the image at `level`."""
        z, y, x = (-(-n // s) for n, s in zip(self.shape, self.scale(level), strict=True))
        return (z, y, x)

    def level_shard(self, level: int) -> Extent:
        """What is one file at `level`."""
        if level >= self.aligned:
            return self.shard
        z, y, x = (n // s for n, s in zip(self.shard, self.scale(level), strict=True))
        return (z, y, x)

    @property
    def row_shard(self) -> Extent:
        """What is one file of the logits: a single row of chunks on the sweep axis, so that few floats are held."""
        z, y, x = self.shard
        return (z, self.chunk[1], x) if self.chunk[0] == 1 else (self.chunk[0], y, x)

    def level_box(self, box: Box, level: int) -> Box:
        """The pixels of an aligned `level` that are made of `box`, whose start is a multiple of the grain."""
        scale = self.scale(level)
        start = tuple(a // s for a, s in zip(box.start, scale, strict=True))
        return Box(start, tuple(-(-b // s) for b, s in zip(box.stop, scale, strict=True)))

    def writer_bytes(self, box: Box, sweep_axis: int, *, labels: bool, probabilities: int, logits: int) -> int:
        """Upper bound of the memory that the writer of a unit holds, for planning.

        A row of chunks per level is held as it is, everything else compressed until its shard is complete, or parked
        on the disk; the bound supposes that nothing compresses.

        Args:
            box: the unit.
            sweep_axis: 0 or 1.
            labels: whether labels are written.
            probabilities: number of probability channels.
            logits: number of logit channels (float32).
        """
        cross = box.size // box.shape[sweep_axis]
        row = cross * min(box.shape[sweep_axis], self.chunk[sweep_axis])
        shard_row = cross * min(box.shape[sweep_axis], self.shard[sweep_axis])
        padded = math.prod(-(-n // c) * c for n, c in zip(box.shape, self.chunk, strict=True))
        chunks = padded // -(-box.shape[sweep_axis] // self.chunk[sweep_axis])
        # Pixels of all levels (each at most half of the one before), one kind of them cut into chunks and halved, and
        # compressed shards of all levels (each at most a third of the one before), one of them whole while it is
        # written.
        kinds = (int(labels), probabilities, 4 * logits)
        several = self.shard[sweep_axis] > self.chunk[sweep_axis]
        held = int(shard_row * HELD) if several else shard_row
        written = math.prod(self.shard) if several else 0
        pixels = 2 * row * sum(kinds) + 5 * chunks * max(kinds) // 4
        return pixels + (labels + probabilities) * held * 4 // 3 + written


def _depth(slices: int, shards: int, shard: Extent, bytes_per_pixel: int) -> int:
    """Slices per shard of a stack with so many `shards` per slice: a power of two, as few as the limits allow."""
    most = _MOST_BYTES // (math.prod(shard) * max(1, bytes_per_pixel))
    depth = 1
    while 2 * depth <= min(most, slices) and -(-slices // depth) * shards > _MOST_FILES:
        depth *= 2
    return depth
