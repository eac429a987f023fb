"""Objects from affinities: what a network says of pairs of pixels, cut by the mutex watershed in blocks that agree."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Sequence
from itertools import product
from threading import Lock

import numpy as np

from tilelab.arrays import Int32, Int64
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.images.image import Image
from tilelab.io.images.volume import Volume
from tilelab.kernels.objects.mutex import cut_by_mutexes
from tilelab.kernels.objects.runs import find_root
from tilelab.measure.piecework import ClassPlanes

TILE, HALO = 512, 64
_KEPT_BYTES = 2**26
"""Tiles, compressed, that are remembered, so that neighbouring reads do not cut them again."""


class Cut:
    """Labels in which pixels of one class belong together if the mutex watershed says so: `ClassPlanes` of a plane.

    Tiles of a fixed grid are cut, each seen with a halo, so that nothing depends on how the image is read.  Parts of
    neighbouring tiles are one object where they share more than half of the smaller one's pixels in what both tiles
    see.  Values are ``256 * number + class``, int64.  In memory are a tile with its halo, of a row of tiles the strips
    that the next row sees too (compressed), and 8 bytes for each part of a tile and for each that meets another.
    """

    def __init__(
        self, labels: ClassPlanes, affinities: Image, offsets: Sequence[tuple[int, int]], *,
        tile: int = TILE, halo: int = HALO,
    ) -> None:  # fmt: skip
        """Cut every tile once, and join their parts.

        Args:
            labels: classes; 0 is of no object.
            affinities: a channel for each offset, from 0 to 1.
            offsets: (y, x) to the other pixel of a pair: one step for pairs that join, more for those that forbid.
            tile, halo: of the blocks, in pixels.

        Raises:
            InputError: the map has other channels or another size, the labels are a volume, or no pair joins.
        """
        self._labels, self._affinities = labels, Volume(affinities)
        self._offsets = np.array(offsets, np.int64).reshape(-1, 2)
        self._tile, self._halo = tile, halo
        self.shape, self.chunks = labels.shape, labels.chunks
        if labels.shape[0] != 1:
            raise InputError("affinities are cut in planes alone: measure a slice")
        if self._affinities.channels != len(offsets) or self._affinities.shape != labels.shape:
            raise InputError(
                f"{affinities.uri} has {self._affinities.channels} channels of {self._affinities.shape} pixels (z, y, "
                f"x): {len(offsets)} offsets of {labels.shape} pixels were named"
            )
        if not (np.abs(self._offsets).sum(1) == 1).any():
            raise InputError("no offset is one step long: those are the pairs that join pixels, 0,1 and 1,0 say")
        self._tiles: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()
        self._grid = tuple(-(-n // tile) for n in labels.shape[1:])
        self._first: dict[tuple[int, int], int] = {}
        self._parents = self._join()

    def read(self, box: Box) -> Int64:
        """Region (z, y, x)."""
        classes = self._labels.read(box)
        if not len(self._parents):  # nothing anywhere
            return np.zeros(classes.shape, np.int64)
        values = np.zeros(classes.shape[1:], np.int64)
        ends = zip(box.start[1:], box.stop[1:], strict=True)
        for at in product(*(range(a // self._tile, -(-b // self._tile)) for a, b in ends)):
            start = [max(a, i * self._tile) for a, i in zip(box.start[1:], at, strict=True)]
            stop = [min(b, (i + 1) * self._tile) for b, i in zip(box.stop[1:], at, strict=True)]
            inner = (slice(a - i * self._tile, b - i * self._tile) for a, b, i in zip(start, stop, at, strict=True))
            mine = self._inner((at[0], at[1]))[tuple(inner)]
            roots = self._parents[self._first[at[0], at[1]] + mine - 1]
            there = tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, box.start[1:], strict=True))
            values[there] = np.where(mine > 0, roots + 1, 0)
        found: Int64 = np.where(classes > 0, 256 * values[None] + classes, 0)
        return found

    def _seen(self, at: tuple[int, int]) -> tuple[list[int], list[int]]:
        """Where a tile with its halo begins and ends."""
        low = [max(0, i * self._tile - self._halo) for i in at]
        high = [min(n, (i + 1) * self._tile + self._halo) for i, n in zip(at, self.shape[1:], strict=True)]
        return low, high

    def _cut(self, at: tuple[int, int]) -> Int32:
        """The parts of a tile with its halo, numbered from 1."""
        low, high = self._seen(at)
        box = Box((0, *low), (1, *high))
        affinities = self._affinities.read(box)[:, 0].astype(np.float64)
        return cut_by_mutexes(affinities, self._offsets, self._labels.read(box)[0] > 0).astype(np.int32)

    def _inner(self, at: tuple[int, int]) -> Int32:
        """The parts of a tile without its halo."""
        with self._lock:
            kept = self._tiles.get(at)
        if kept is None:
            return self._keep(at, self._cut(at))
        size = [min(n, (i + 1) * self._tile) - i * self._tile for i, n in zip(at, self.shape[1:], strict=True)]
        return _unpack(kept, size[1])

    def _keep(self, at: tuple[int, int], parts: Int32) -> Int32:
        """Remember a tile of these parts, without its halo; returns that."""
        low, _ = self._seen(at)
        inner = parts[tuple(slice(i * self._tile - o, (i + 1) * self._tile - o) for i, o in zip(at, low, strict=True))]
        packed = _pack(inner)
        with self._lock:
            self._bytes += len(packed) - len(self._tiles.pop(at, b""))
            self._tiles[at] = packed
            while self._bytes > _KEPT_BYTES and len(self._tiles) > 1:
                self._bytes -= len(self._tiles.popitem(last=False)[1])
        return inner

    def _join(self) -> Int64:
        """The root of each part of each tile, counted from 0 tile by tile."""
        count = 0
        above: dict[int, bytes] = {}  # of the row of tiles before, what this one sees too
        before, began = np.empty((0, 0), np.int32), 0  # the tile before, and where
        pairs: list[Int64] = []
        for row, column in product(*map(range, self._grid)):
            at = (row, column)
            parts = self._cut(at)
            self._keep(at, parts)
            self._first[at] = count
            count += int(parts.max(initial=0))
            (top, left), _ = self._seen(at)
            if row:
                seen = _unpack(above[column], parts.shape[1])
                pairs.append(
                    _shared(parts[: len(seen)], seen) + np.array([self._first[at], self._first[row - 1, column]])
                )
            if column:
                seen = before[:, left - began :]
                first = np.array([self._first[at], self._first[row, column - 1]])
                pairs.append(_shared(parts[:, : seen.shape[1]], seen) + first)
            before, began = parts, left
            above[column] = _pack(parts[max(0, (row + 1) * self._tile - self._halo) - top :])
        parents = np.arange(count)
        for some in pairs:
            for one, two in some.tolist():
                a, b = find_root(parents, one), find_root(parents, two)
                parents[max(a, b)] = min(a, b)
        return np.array([find_root(parents, i) for i in range(count)], np.int64)


def _shared(mine: Int32, theirs: Int32) -> Int64:
    """Parts of two tiles that are one object, from 0 in each, by what both tiles see: rows of one and the other."""
    both = (mine > 0) & (theirs > 0)
    areas, areas_ = np.bincount(mine.ravel(), minlength=1), np.bincount(theirs.ravel(), minlength=1)
    keys, count = np.unique(mine[both] * np.int64(len(areas_)) + theirs[both], return_counts=True)
    one, two = np.divmod(keys, len(areas_))
    shared: Int64 = np.column_stack([one, two])[2 * count > np.minimum(areas[one], areas_[two])] - 1
    return shared


def _pack(parts: Int32) -> bytes:
    return zlib.compress(parts.tobytes(), 1)


def _unpack(packed: bytes, width: int) -> Int32:
    parts: Int32 = np.frombuffer(zlib.decompress(packed), np.int32).reshape(-1, width)
    return parts
