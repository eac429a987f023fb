"""How the levels of a result are made: the aligned ones while rows arrive, the coarse ones at the end."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import count, product
from typing import Any

import numpy as np

from tilelab.arrays import Array, UInt8
from tilelab.geometry import Box, boxes
from tilelab.io.storage.decode import for_each
from tilelab.io.storage.place import Place
from tilelab.io.zarr.census import Census
from tilelab.io.zarr.layout import HELD, Layout
from tilelab.io.zarr.metadata import array_node
from tilelab.io.zarr.parking import Parked, Parking
from tilelab.io.zarr.presence import find_written
from tilelab.io.zarr.sharded_array import ShardedArray, encode_chunk, encode_document, replace_file
from tilelab.kernels.pyramid import cut_chunks

Halve = Callable[[UInt8, int], UInt8]
Each = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""`map`, or that of a pool of threads."""
_Shard = tuple[ShardedArray, tuple[int, ...], list[bytes | Parked | None]]
"""Where it is, and its chunks."""


class Cascade:
    """The aligned levels of one kind of pixels in one unit: rows in, whole shards out.

        rows --> level 0: a row of chunks --full--> compressed chunks --shard complete--> file
                              | halved
                              v
                 level 1: a row of chunks --full--> ...

    A unit begins and ends at multiples of the grain (or with the image), so whenever the rows reach one, every level
    has just completed its shards, counted in `stored`, and holds nothing.  Channels and columns of shards share
    nothing: threads may do them at the same time, and a column's rows stay in a core's cache.
    """

    def __init__(
        self,
        arrays: tuple[ShardedArray, ...],
        layout: Layout,
        box: Box,
        sweep_axis: int,
        halve: Halve | None,
        scratch: Place,
        parking: Parking | None = None,
    ) -> None:
        """Begin at the first row of `box` (z, y, x), the unit or what remains of it, with one of `arrays` per level.

        With `parking`, no more than `HELD` of a shard's pixels stays in memory.
        """
        self.channels = arrays[0].channels
        self._waits, self._scratch = arrays[0].path.waits, scratch
        extent = tuple(max(1, box.shape[a]) if a == sweep_axis else layout.grain[a] for a in range(3))
        self._columns = [
            _Column(arrays, layout, box, part, channel, sweep_axis, halve, parking)
            for channel, part in product(range(self.channels), boxes(box.shape, extent))
        ]
        self.stored = Census()

    def pushes(self, block: Array) -> list[Callable[[], None]]:
        """What is to be done to append rows ``(n, z, y, x)``, in any order or at the same time; they are copied."""
        return [partial(column.push, block[column.where]) for column in self._columns]

    def write(self, each: Each = map) -> None:
        """Write the shards that are complete."""
        held: list[_Shard] = []
        parked: list[_Shard] = []
        for column in self._columns:
            for shard in column.take_shards():
                (parked if any(isinstance(chunk, Parked) for chunk in shard[2]) else held).append(shard)
        written: list[Census] = []  # appending is atomic

        def write(shard: _Shard) -> None:
            array, index, chunks = shard
            whole = [chunk.take() if isinstance(chunk, Parked) else chunk for chunk in chunks]
            written.append(array.write_shard(index, whole, self._scratch))

        if self._waits:
            for_each(write, held, threads=False, requests=True)
        else:
            deque(each(write, held), maxlen=0)
        for shard in parked:  # one after the other: memory is why they were not held
            write(shard)
        self.stored += sum(written, Census())


def push_all(given: Sequence[tuple[Cascade, Array]], each: Each = map) -> None:
    """Append rows ``(n, z, y, x)`` to each of some cascades and write what is complete then; the rows are copied."""
    deque(each(lambda push: push(), [push for cascade, block in given for push in cascade.pushes(block)]), maxlen=0)
    for cascade, _ in given:
        cascade.write(each)


class _Column:
    """One channel of one column of shards, at all aligned levels.

    where: it lies in blocks ``(n, z, y, x)`` of the whole unit.
    """

    def __init__(
        self,
        arrays: tuple[ShardedArray, ...],
        layout: Layout,
        unit: Box,
        part: Box,
        channel: int,
        sweep_axis: int,
        halve: Halve | None,
        parking: Parking | None,
    ) -> None:
        """Of the `part` of a `unit`, whose positions count from the unit's."""
        cross = (slice(None) if a == sweep_axis else s for a, s in enumerate(part.slices))
        self.where = (slice(channel, channel + 1), *cross)
        start, stop = (tuple(o + n for o, n in zip(unit.start, end, strict=True)) for end in (part.start, part.stop))
        box = Box(start, stop)
        self._levels = [
            _Level(array, layout, layout.level_box(box, i), channel, sweep_axis, parking)
            for i, array in enumerate(arrays)
        ]
        self._halve = halve
        self._z_factor = layout.z_factor

    def push(self, block: Array, at: int = 0) -> None:
        """Append rows ``(1, z, y, x)`` to level `at`."""
        level = self._levels[at]
        count = block.shape[1 + level.axis]
        done = 0
        while done < count:
            done += level.fill(block, done)
            if level.full:
                rows = level.compress()
                if self._halve is not None and at + 1 < len(self._levels):
                    self.push(self._halve(rows, self._z_factor), at + 1)

    def take_shards(self) -> list[_Shard]:
        """The shards that are complete, of all levels; they are held no longer."""
        return [shard for level in self._levels for shard in level.take_shards()]


class _Level:
    """One level of a column: a row of chunks as pixels, and the compressed chunks of its unfinished shards.

    Of a shard of several rows of chunks, what is more than a share of its pixels waits on the disk: labels and
    probabilities seldom are.
    """

    def __init__(
        self, array: ShardedArray, layout: Layout, box: Box, channel: int, axis: int, parking: Parking | None
    ) -> None:
        self.axis = axis
        self._array, self._channel = array, channel
        self._parking = parking
        several = array.shard_zyx[axis] > layout.chunk[axis]
        self._most = int(math.prod(array.shard_zyx) * array.dtype.itemsize * HELD) if several else math.inf
        self._held: dict[tuple[int, ...], int] = {}
        self._chunk = layout.chunk
        self._grid = tuple(s // c for s, c in zip(array.shard_zyx, layout.chunk, strict=True))
        self._box = box
        self._position = box.start[axis]  # of the buffer's first row
        self._filled = 0
        extent = list(box.shape)
        extent[axis] = min(extent[axis], layout.chunk[axis])
        self._buffer = np.empty((1, *extent), array.dtype)
        self._shards: dict[tuple[int, ...], list[bytes | Parked | None]] = {}
        self._complete: list[_Shard] = []

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

    def compress(self) -> Array:
        """Compress the buffered rows and empty the buffer; returns the rows, valid until it is filled again."""
        rows = np.ascontiguousarray(self._rows(self._buffer, 0, self._filled))
        origin = list(self._box.start)
        origin[self.axis] = self._position
        grid = self._grid
        depth, height, _ = self._chunk
        for z0, y0 in product(range(0, rows.shape[1], depth), range(0, rows.shape[2], height)):
            z, in_z = divmod((origin[0] + z0) // depth, grid[0])
            y, in_y = divmod((origin[1] + y0) // height, grid[1])
            columns = count(origin[2] // self._chunk[2])
            for piece, filled, column in zip(*cut_chunks(rows, z0, y0, self._chunk), columns, strict=False):
                if filled:
                    x, in_x = divmod(column, grid[2])
                    self._keep((self._channel, z, y, x), (in_z * grid[1] + in_y) * grid[2] + in_x, encode_chunk(piece))
        self._position += self._filled
        self._filled = 0
        if self._position % self._array.shard_zyx[self.axis] == 0 or self._position == self._box.stop[self.axis]:
            self._complete += [(self._array, index, chunks) for index, chunks in self._shards.items()]
            self._shards, self._held = {}, {}
        return rows

    def _keep(self, index: tuple[int, ...], at: int, chunk: bytes) -> None:
        """A chunk of a shard, in memory or on the disk."""
        held = self._held.get(index, 0) + len(chunk)
        chunks = self._shards.setdefault(index, [None] * math.prod(self._grid))
        if self._parking is not None and held > self._most:
            chunks[at] = self._parking.put(chunk)
        else:
            chunks[at], self._held[index] = chunk, held

    def take_shards(self) -> list[_Shard]:
        """The shards that are complete, which are held no longer."""
        complete, self._complete = self._complete, []
        return complete

    def _rows(self, block: Array, first: int, count: int) -> Array:
        """`count` rows of ``(1, z, y, x)`` on the sweep axis, a view."""
        part = slice(first, first + count)
        return block[:, part] if self.axis == 0 else block[:, :, part]


def make_level(finer: ShardedArray, coarser: ShardedArray, layout: Layout, halve: Halve, scratch: Place) -> None:
    """Write one level from the one before it; holds a row of chunks and a compressed shard."""
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
            for gx, (piece, filled) in enumerate(zip(*cut_chunks(rows, 0, 0, chunk), strict=True)):
                if filled:
                    chunks[(gz * grid[1] + gy) * grid[2] + gx] = encode_chunk(piece)
        coarser.write_shard((channel, *at), chunks, scratch)


def finish_levels(arrays: Iterable[ShardedArray], scratch: Place) -> None:
    """Write ``zarr.json`` of arrays that are whole; which shards were written is counted where they are.

    Raises:
        OSError: they cannot be listed.
        OutputError: the disk is full or a folder is unwritable.
    """
    for array in arrays:
        written = find_written(array_node(array.path, array.metadata()))
        replace_file(array.path / "zarr.json", [encode_document(array.metadata(written))], scratch)
