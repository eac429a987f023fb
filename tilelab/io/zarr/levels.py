"""How the levels of a result are made: the aligned ones while rows arrive, the coarse ones at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import product

import numpy as np

from tilelab.arrays import Array, UInt8
from tilelab.geometry import Box
from tilelab.io.storage.decode import for_each
from tilelab.io.storage.place import Place
from tilelab.io.zarr.census import Census
from tilelab.io.zarr.layout import Extent, Layout
from tilelab.io.zarr.sharded_array import ShardedArray, encode_chunk
from tilelab.kernels.pyramid import cut_chunks

Halve = Callable[[UInt8, int], UInt8]
Encode = Callable[[Callable[[Array], bytes], Iterable[Array]], Iterable[bytes]]
"""`map`, or that of a pool of threads."""


class Cascade:
    """The aligned levels of one kind of pixels in one unit: rows in, whole shards out.

        rows --> level 0: a row of chunks --full--> compressed chunks --shard complete--> file
                              | halved
                              v
                 level 1: a row of chunks --full--> ...

    A unit begins and ends at multiples of the grain (or with the image), so whenever the rows reach one, every level
    has just completed its shards, counted in `stored`, and holds nothing.
    """

    def __init__(
        self,
        arrays: tuple[ShardedArray, ...],
        layout: Layout,
        box: Box,
        sweep_axis: int,
        halve: Halve | None,
        scratch: Place,
        encode: Encode,
    ) -> None:
        """Begin at the first row of `box` (z, y, x), the unit or what remains of it, with one of `arrays` per level."""
        self.channels = arrays[0].channels
        self._levels = [_Level(array, layout, layout.level_box(box, i), sweep_axis) for i, array in enumerate(arrays)]
        self._halve = halve
        self._z_factor = layout.z_factor
        self._scratch = scratch
        self._encode = encode
        self.stored = Census()

    def push(self, block: Array, at: int = 0) -> None:
        """Append rows ``(n, z, y, x)`` to level `at`; they are copied."""
        level = self._levels[at]
        count = block.shape[1 + level.axis]
        done = 0
        while done < count:
            done += level.fill(block, done)
            if level.full:
                rows = level.take(self._encode)
                if level.shard_complete:
                    self.stored += level.write(self._scratch)
                if self._halve is not None and at + 1 < len(self._levels):
                    self.push(self._halve(rows, self._z_factor), at + 1)


class _Level:
    """One level of a unit: a row of chunks as pixels, and the compressed chunks of its unfinished shards."""

    def __init__(self, array: ShardedArray, layout: Layout, box: Box, axis: int) -> None:
        self.axis = axis
        self._array = array
        self._chunk = layout.chunk
        self._box = box
        self._position = box.start[axis]  # of the buffer's first row
        self._filled = 0
        extent = list(box.shape)
        extent[axis] = min(extent[axis], layout.chunk[axis])
        self._buffer = np.empty((array.channels, *extent), array.dtype)
        self._shards: dict[tuple[int, ...], list[bytes | None]] = {}

    def fill(self, block: Array, first: int) -> int:
        """Copy rows of `block` from `first` on, as many as the buffer takes; returns their number."""
        count: int = min(block.shape[1 + self.axis] - first, self._buffer.shape[1 + self.axis] - self._filled)
        self._rows(self._buffer, self._filled, count)[...] = self._rows(block, first, count)
        self._filled += count
        return count

    @property
    def full(self) -> bool:
        """Whether the rows have reached the end of a row of chunks, or of the unit."""
        at = self._position + self._filled
        return self._filled == self._buffer.shape[1 + self.axis] or at == self._box.stop[self.axis]

    @property
    def shard_complete(self) -> bool:
        """Whether the rows taken so far end with a shard, or with the unit."""
        return self._position % self._array.shard_zyx[self.axis] == 0 or self._position == self._box.stop[self.axis]

    def take(self, encode: Encode) -> Array:
        """Compress the buffered rows and empty the buffer; returns the rows, valid until it is filled again."""
        rows = np.ascontiguousarray(self._rows(self._buffer, 0, self._filled))
        chunks, occupied = cut_chunks(rows, self._chunk)
        origin = list(self._box.start)
        origin[self.axis] = self._position
        base = tuple(o // c for o, c in zip(origin, self._chunk, strict=True))
        where = np.argwhere(occupied)
        for at, encoded in zip(where, encode(encode_chunk, (chunks[tuple(i)] for i in where)), strict=True):
            index, slot = _locate(
                self._array, self._chunk, int(at[0]), [b + int(i) for b, i in zip(base, at[1:], strict=True)]
            )
            self._shards.setdefault(index, [None] * math.prod(self._array.shard_grid))[slot] = encoded
        self._position += self._filled
        self._filled = 0
        return rows

    def write(self, scratch: Place) -> Census:
        """Write the shards that are complete now, which are all; returns what was written."""
        shards, self._shards = self._shards, {}
        written: list[Census] = []  # appending is atomic

        def write(index: tuple[int, ...]) -> None:
            written.append(self._array.write_shard(index, shards.pop(index), scratch))

        for_each(write, list(shards), threads=False, requests=self._array.path.waits)
        return sum(written, Census())

    def _rows(self, block: Array, first: int, count: int) -> Array:
        """`count` rows of ``(n, z, y, x)`` on the sweep axis, a view."""
        part = slice(first, first + count)
        return block[:, part] if self.axis == 0 else block[:, :, part]


def make_level(finer: ShardedArray, coarser: ShardedArray, layout: Layout, halve: Halve, scratch: Place) -> Census:
    """Write one level from the one before it, and count its files; holds a row of chunks and a compressed shard."""
    written = Census()
    shape, limit = coarser.shape_zyx, finer.shape_zyx
    chunk, shard, factor = layout.chunk, coarser.shard_zyx, layout.factor
    grid = tuple(s // c for s, c in zip(shard, chunk, strict=True))
    for channel, *at in product(
        range(coarser.channels), *(range(-(-n // s)) for n, s in zip(shape, shard, strict=True))
    ):
        chunks: list[bytes | None] = [None] * math.prod(grid)
        for gz, gy in product(range(grid[0]), range(grid[1])):
            first = [i * s for i, s in zip(at, shard, strict=True)]
            first = [first[0] + gz * chunk[0], first[1] + gy * chunk[1], first[2]]
            last = [min(n, f + e) for n, f, e in zip(shape, first, (chunk[0], chunk[1], shard[2]), strict=True)]
            if any(b <= a for a, b in zip(first, last, strict=True)):
                continue
            start = tuple(f * a for f, a in zip(factor, first, strict=True))
            stop = tuple(min(n, f * b) for n, f, b in zip(limit, factor, last, strict=True))
            rows = halve(finer.read_channel(channel, Box(start, stop)), layout.z_factor)
            pieces, occupied = cut_chunks(rows, chunk)
            for gx in np.flatnonzero(occupied):
                chunks[(gz * grid[1] + gy) * grid[2] + int(gx)] = encode_chunk(pieces[0, 0, 0, gx])
        written += coarser.write_shard((channel, *at), chunks, scratch)
    return written


def _locate(array: ShardedArray, chunk: Extent, channel: int, at: list[int]) -> tuple[tuple[int, ...], int]:
    """Which shard ``(c, z, y, x)`` holds the chunk at grid position `at` (z, y, x), and at which place."""
    grid = [s // c for s, c in zip(array.shard_zyx, chunk, strict=True)]
    shard = (channel, *(i // g for i, g in zip(at, grid, strict=True)))
    z, y, x = (i % g for i, g in zip(at, grid, strict=True))
    return shard, (z * grid[1] + y) * grid[2] + x
