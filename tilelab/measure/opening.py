"""Labels as they are read after some arithmetic on neighbourhoods: classes joined and opened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilelab.arrays import Array, UInt8
from tilelab.geometry import Box
from tilelab.kernels.jit import jit
from tilelab.measure.piecework import ClassPlanes

_jit = jit()


class Recoded:
    """Labels of which every class is made another: `ClassPlanes`."""

    def __init__(self, labels: ClassPlanes, table: Array) -> None:
        self._labels = labels
        self._table = table.astype(np.uint8)
        self.shape, self.chunks = labels.shape, labels.chunks

    def read(self, box: Box) -> UInt8:
        """Region (z, y, x)."""
        classes: UInt8 = self._table[self._labels.read(box)]
        return classes


class Opened:
    """Some classes as class 1, opened in each plane by a square of ``2 * radius + 1`` pixels: `ClassPlanes`."""

    def __init__(self, labels: ClassPlanes, classes: Sequence[int], radius: int = 0) -> None:
        self._labels = labels
        self._radius = radius
        self._table = np.zeros(256, np.uint8)
        self._table[list(classes)] = 1
        self.shape, self.chunks = labels.shape, labels.chunks

    def read(self, box: Box) -> UInt8:
        """Region (z, y, x) as wide as the image; rows beyond it are read as far as the square reaches."""
        reach = 2 * self._radius
        top, bottom = max(0, box.start[1] - reach), min(self.shape[1], box.stop[1] + reach)
        wide = Box((box.start[0], top, 0), (box.stop[0], bottom, self.shape[2]))
        mask = self._table[self._labels.read(wide)]
        opened = np.stack([open_square(plane, self._radius) for plane in mask]) if reach else mask
        rows = slice(box.start[1] - top, box.stop[1] - top)
        inner: UInt8 = np.ascontiguousarray(opened[:, rows, box.start[2] : box.stop[2]])
        return inner


def open_square(mask: UInt8, radius: int) -> UInt8:
    """Opening of a plane of 0 and 1 by a square of ``2 * radius + 1`` pixels; beyond the edge it goes on as at it."""
    eroded = _slide(_slide(mask, radius, True).T, radius, True).T
    opened: UInt8 = _slide(_slide(eroded, radius, False).T, radius, False).T
    return np.ascontiguousarray(opened)


def _slide(mask: Array, radius: int, erode: bool) -> Array:
    """Least (or most) over ``2 * radius + 1`` pixels of a row, those beyond the edge left out."""
    out = np.empty(mask.shape, np.uint8)
    _slide_rows(np.ascontiguousarray(mask), radius, erode, out)
    return out


@_jit
def _slide_rows(mask: Any, radius: int, erode: bool, out: Any) -> None:
    height, width = mask.shape
    for y in range(height):
        inside = 0  # pixels of the window that are 1
        for x in range(min(radius, width)):
            inside += mask[y, x]
        for x in range(width):
            if x + radius < width:
                inside += mask[y, x + radius]
            if x - radius - 1 >= 0:
                inside -= mask[y, x - radius - 1]
            size = min(width, x + radius + 1) - max(0, x - radius)
            out[y, x] = inside == size if erode else inside > 0
