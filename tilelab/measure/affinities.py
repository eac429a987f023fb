"""Objects from affinities: what a network says of pairs of pixels, cut by the mutex watershed in blocks that agree."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import product
from threading import Lock

import numpy as np

from tilelab.arrays import Array, Int32, Int64
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.images.image import Image
from tilelab.io.images.volume import Volume
from tilelab.kernels.objects.mutex import cut_by_mutexes
from tilelab.kernels.objects.runs import find_root
from tilelab.measure.piecework import ClassPlanes

TILE, HALO = 512, 64
_KEPT = 64
"""Tiles that are remembered, so that neighbouring reads do not cut them again."""


class Cut:
    """Labels in which pixels of one class belong together if the mutex watershed says so: `ClassPlanes` of a plane.

    Tiles of a fixed grid are cut, each seen with a halo, so that nothing depends on how the image is read.  Parts of
    neighbouring tiles are one object where they share more than half of the smaller one's pixels in what both tiles
    see.  Values are ``256 * number + class``, int64.
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
        self._tiles: OrderedDict[tuple[int, int], Int32] = OrderedDict()
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
            parts, (low, _) = self._parts((at[0], at[1])), self._seen((at[0], at[1]))
            start = [max(a, i * self._tile) for a, i in zip(box.start[1:], at, strict=True)]
            stop = [min(b, (i + 1) * self._tile) for b, i in zip(box.stop[1:], at, strict=True)]
            mine = parts[tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, low, strict=True))]
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

    def _parts(self, at: tuple[int, int]) -> Int32:
        """The parts of a tile with its halo, numbered from 1."""
        with self._lock:
            if at in self._tiles:
                return self._tiles[at]
        low, high = self._seen(at)
        box = Box((0, *low), (1, *high))
        affinities = self._affinities.read(box)[:, 0].astype(np.float64)
        parts = cut_by_mutexes(affinities, self._offsets, self._labels.read(box)[0] > 0).astype(np.int32)
        with self._lock:
            self._tiles[at] = parts
            while len(self._tiles) > _KEPT:
                self._tiles.popitem(last=False)
        return parts

    def _join(self) -> Int64:
        """The root of each part of each tile, counted from 0 tile by tile."""
        sizes: list[int] = []
        above: dict[tuple[int, int], Array] = {}
        pairs: list[Int64] = []
        for at in product(*map(range, self._grid)):
            here = (at[0], at[1])
            parts = self._parts(here)
            self._first[here] = sum(sizes[-1:])
            sizes.append(self._first[here] + int(parts.max(initial=0)))
            above[here] = parts
            for other in ((at[0], at[1] - 1), (at[0] - 1, at[1])):
                if other in above:
                    pairs += self._shared(here, parts, other, above[other])
            above.pop((at[0] - 1, at[1]), None)
        parents = np.arange(sizes[-1])
        for one, two in np.concatenate([np.empty((0, 2), np.int64), *pairs]).tolist():
            a, b = find_root(parents, one), find_root(parents, two)
            parents[max(a, b)] = min(a, b)
        return np.array([find_root(parents, i) for i in range(len(parents))], np.int64)

    def _shared(self, one: tuple[int, int], mine: Array, two: tuple[int, int], theirs: Array) -> Iterator[Int64]:
        """Parts of two tiles that are one object."""
        (low, high), (low_, high_) = self._seen(one), self._seen(two)
        start = [max(a, b) for a, b in zip(low, low_, strict=True)]
        stop = [min(a, b) for a, b in zip(high, high_, strict=True)]
        a = mine[tuple(slice(s - o, e - o) for s, e, o in zip(start, stop, low, strict=True))].ravel()
        b = theirs[tuple(slice(s - o, e - o) for s, e, o in zip(start, stop, low_, strict=True))].ravel()
        both = (a > 0) & (b > 0)
        areas, areas_ = np.bincount(a[a > 0]), np.bincount(b[b > 0])
        if both.any():
            found, count = np.unique(np.column_stack([a[both], b[both]]), axis=0, return_counts=True)
            least = np.minimum(areas[found[:, 0]], areas_[found[:, 1]])
            yield found[2 * count > least] - 1 + (self._first[one], self._first[two])
