"""Labels whose holes are filled, read region by region."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilelab.arrays import UInt8
from tilelab.geometry import Box, boxes
from tilelab.kernels.jit import jit
from tilelab.measure.components import find_objects
from tilelab.measure.piecework import ClassPlanes
from tilelab.measure.shapes import touches_border

_jit = jit()
_NONE = 255


class Filled:
    """Labels with the holes of objects made their class; `ClassPlanes`.

    A hole is a connected region of class 0 that does not reach the edge of the image and has neighbours of one class
    alone.  Regions of class 0 are connected where objects are not: by corners if objects are by faces, else by faces.
    """

    def __init__(
        self,
        labels: ClassPlanes,
        connectivity: int = 1,
        *,
        grid: tuple[int, int] | None = None,
        threads: int | None = None,
    ) -> None:
        """Find the holes, in two streamed passes."""
        self._labels = labels
        self.shape, self.chunks = labels.shape, labels.chunks
        axes = 2 if labels.shape[0] == 1 else 3
        self._regions = find_objects(
            _Background(labels), connectivity=axes if connectivity == 1 else 1, grid=grid, threads=threads
        )
        around = np.full((self._regions.count + 1, 2), (_NONE, 0), np.uint8)  # least and most class around each
        depth, height, width = labels.shape
        for box in boxes(self.shape, (*self._regions.grid, width)):
            low = [max(0, s - 1) for s in box.start[:2]]
            high = [min(n, s + 1) for n, s in zip((depth, height), box.stop[:2], strict=True)]
            classes = labels.read(Box((*low, 0), (*high, width)))
            offset = box.start[0] - low[0], box.start[1] - low[1]
            _look_around(self._regions.read(box), np.ascontiguousarray(classes), *offset, around)
        closed = [~touches_border(records["sums"], self.shape) for records in self._regions.records()]
        holes = np.concatenate([[False], *closed]) & (around[:, 0] == around[:, 1])
        self._fill = np.where(holes, around[:, 0], 0).astype(np.uint8)

    @property
    def count(self) -> int:
        """Number of holes."""
        return int(np.count_nonzero(self._fill))

    def read(self, box: Box) -> UInt8:
        """Classes in a region, holes filled."""
        classes = self._labels.read(box)
        filled: UInt8 = np.maximum(classes, self._fill[self._regions.read(box)])
        return filled


class _Background:
    """Labels with class 0 as class 1 and nothing else."""

    def __init__(self, labels: ClassPlanes) -> None:
        self._labels = labels
        self.shape, self.chunks = labels.shape, labels.chunks

    def read(self, box: Box) -> UInt8:
        background: UInt8 = (self._labels.read(box) == 0).astype(np.uint8)
        return background


@_jit
def _look_around(numbers: Any, classes: Any, z0: int, y0: int, around: Any) -> None:
    """Note the least and most class beside the pixels of each region; `classes` begins `z0` and `y0` before."""
    depth, height, width = numbers.shape
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                n = numbers[z, y, x]
                if n == 0:
                    continue
                for step in range(6):
                    w = z + z0 + (step == 0) - (step == 1)
                    v = y + y0 + (step == 2) - (step == 3)
                    u = x + (step == 4) - (step == 5)
                    if 0 <= w < classes.shape[0] and 0 <= v < classes.shape[1] and 0 <= u < width:
                        label = classes[w, v, u]
                        if label:
                            around[n, 0] = min(around[n, 0], label)
                            around[n, 1] = max(around[n, 1], label)
