"""Labels whose touching objects are parted, read region by region."""

from __future__ import annotations

from collections import OrderedDict
from itertools import product
from threading import Lock

import numpy as np

from tilelab.arrays import Int64, UInt8
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.kernels.objects.parting import find_lines
from tilelab.measure.piecework import ClassPlanes

TILE, HALO = (512, 2048), 128
_KEPT = 2**26
"""Pixels of lines that are remembered, so that the second pass does not look for them again."""


class Parted:
    """Labels with the lines between touching objects made 0; `ClassPlanes` of a plane.

    The lines are found in tiles of 512 x 2048 pixels of a fixed grid, each seen with 128 pixels around it, so they do
    not depend on how the image is read.  An object that reaches no farther than that out of a tile is parted exactly as
    in the whole image; a larger one by what is seen of it.
    """

    def __init__(
        self,
        labels: ClassPlanes,
        depth: float = 1.0,
        connectivity: int = 1,
        *,
        tile: tuple[int, int] = TILE,
        halo: int = HALO,
    ) -> None:
        """Part at necks of at least `depth` pixels; see `find_lines`.

        Raises:
            InputError: the labels are a volume.
        """
        if labels.shape[0] != 1:
            raise InputError("touching objects are parted in planes alone: measure a slice, or leave --part out")
        self._labels = labels
        self._depth = depth
        self._near = connectivity
        self._tile, self._halo = tile, halo
        self.shape, self.chunks = labels.shape, labels.chunks
        self._lines: OrderedDict[tuple[int, int], Int64] = OrderedDict()
        self._count = 0
        self._lock = Lock()

    def read(self, box: Box) -> UInt8:
        """Classes in a region, 0 on the lines."""
        classes: UInt8 = self._labels.read(box).copy()
        grid = [range(a // t, -(-b // t)) for a, b, t in zip(box.start[1:], box.stop[1:], self._tile, strict=True)]
        for at in product(*grid):
            lines = self._find((at[0], at[1]))
            y, x = np.divmod(lines, self.shape[2])
            inside = (y >= box.start[1]) & (y < box.stop[1]) & (x >= box.start[2]) & (x < box.stop[2])
            classes[0, y[inside] - box.start[1], x[inside] - box.start[2]] = 0
        return classes

    def _find(self, at: tuple[int, int]) -> Int64:
        """Raster indices of the lines in a tile."""
        with self._lock:
            if at in self._lines:
                return self._lines[at]
        _, height, width = self.shape
        start = [i * t for i, t in zip(at, self._tile, strict=True)]
        stop = [min(n, s + t) for n, s, t in zip((height, width), start, self._tile, strict=True)]
        low = [max(0, s - self._halo) for s in start]
        high = [min(n, s + self._halo) for n, s in zip((height, width), stop, strict=True)]
        classes = self._labels.read(Box((0, *low), (1, *high)))[0]
        lines = find_lines(np.ascontiguousarray(classes), self._depth, self._near)
        y, x = np.nonzero(lines[tuple(slice(s - o, e - o) for s, e, o in zip(start, stop, low, strict=True))])
        found: Int64 = (y + start[0]) * width + x + start[1]
        with self._lock:
            if at not in self._lines:
                self._lines[at] = found
                self._count += len(found)
            while self._count > _KEPT and len(self._lines) > 1:
                self._count -= len(self._lines.popitem(last=False)[1])
        return found
