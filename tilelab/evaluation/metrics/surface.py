r"""ASSD: the mean distance between the outlines of two segmentations, exact and in bounded memory; compiled by Numba.

The surface of a class are its pixels with a 4-neighbour of another class; the frame of the image is no surface.  ASSD
averages over all surface pixels of both segmentations the Euclidean distance (pixels) to the nearest surface pixel of
the other one; in a volume, within each plane.

A plane is read in slabs of rows, twice.  The first pass notes the first and last surface row of every column in every
slab.  The second then knows for every pixel its distance to the nearest surface pixel of its own column, near or far,
and the nearest of all follows row by row (Felzenszwalb and Huttenlocher's lower envelope of parabolas).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

import numpy as np

from tilelab.arrays import Bool, Float64, Int64, UInt8
from tilelab.kernels.jit import jit

ReadRows = Callable[[int, int], tuple[UInt8, UInt8]]
"""From a range of rows to the labels and the truth there, uint8 ``(stop - start, x)``."""

_FAR = 2**29
"""Farther than any row: there is no surface pixel in the column."""

_SLAB = 2**23
"""Pixels of a slab, unless the plane is so tall that the notes about the slabs would take more memory than one."""

_jit = jit()


@dataclass(frozen=True)
class SurfaceDistances:
    """Sums over surface pixels, per class; those of several planes add up.

    Attributes:
        distance: sum of the distances in pixels; infinite where one segmentation has a surface and the other none.
        count: number of surface pixels of both.
        near: how many of the found and of the true ones have one of the other within the tolerance, ``(classes, 2)``.
        sides: how many found and true ones there are, ``(classes, 2)``.
    """

    distance: Float64
    count: Int64
    near: Int64 = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    sides: Int64 = field(default_factory=lambda: np.zeros((0, 2), np.int64))

    def __add__(self, other: SurfaceDistances) -> SurfaceDistances:
        return SurfaceDistances(
            self.distance + other.distance, self.count + other.count, self.near + other.near, self.sides + other.sides
        )

    @property
    def boundary_f(self) -> Float64:
        """Boundary F per class; 0 where only one has outlines, NaN where neither has (Csurka et al., BMVC 2013).

        The harmonic mean of the shares of found and of true outline pixels that lie near the other outline.
        """
        precision, recall = (self.near / np.maximum(self.sides, 1)).T
        total = precision + recall
        mean: Float64 = np.divide(2 * precision * recall, total, out=np.zeros(len(total)), where=total > 0)
        return np.where(self.sides.sum(axis=1) > 0, mean, np.nan)

    @property
    def assd(self) -> Float64:
        """Average symmetric surface distance per class, in pixels; NaN where neither has a surface."""
        return np.where(self.count > 0, self.distance / np.maximum(self.count, 1), np.nan)


def measure_surfaces(
    read: ReadRows, shape: tuple[int, int], classes: Sequence[int], *, tolerance: float = 2.0, slab: int | None = None
) -> SurfaceDistances:
    """Measure the distances between the outlines of the classes in one plane.

    Args:
        read: gives labels and truth of a range of rows; called twice for every row, or a little more.
        shape: rows and columns of the plane.
        classes: which classes; the result has one entry for each.
        tolerance: distance in pixels up to which outlines agree.
        slab: rows held in memory at once; chosen for little memory when None.
    """
    height, width = shape
    slab = min(height, slab or max(_SLAB // width, isqrt(2 * len(classes) * height), 1))
    starts = range(0, height, slab)
    # Rows of the first and last surface pixel: slab, class, which segmentation, column.
    first = np.full((len(starts), len(classes), 2, width), _FAR, np.int32)
    last = np.full_like(first, -_FAR)
    for i, start in enumerate(starts):
        for k, side, surface in _surfaces(read, start, min(height, start + slab), height, classes):
            _note_rows(surface, start, first[i, k, side], last[i, k, side])
    above = np.maximum.accumulate(last, axis=0)
    below = np.minimum.accumulate(first[::-1], axis=0)[::-1]
    distance, count = np.zeros(len(classes)), np.zeros(len(classes), np.int64)
    near, sides = np.zeros((2, len(classes), 2), np.int64)
    nowhere = np.full(width, _FAR, np.int32)
    for i, start in enumerate(starts):
        found: dict[tuple[int, int], Bool] = {}
        for k, side, surface in _surfaces(read, start, min(height, start + slab), height, classes):
            found[k, side] = surface
            if side == 0:
                continue
            for here, there in ((0, 1), (1, 0)):
                up = above[i - 1, k, there] if i else -nowhere
                down = below[i + 1, k, there] if i + 1 < len(starts) else nowhere
                total, pixels, close = _sum_distances(found[k, here], found[k, there], up, down, start, tolerance)
                near[k, here] += close
                sides[k, here] += pixels
                distance[k] += total
                count[k] += pixels
            found.clear()
    return SurfaceDistances(distance, count, near, sides)


def _surfaces(
    read: ReadRows, start: int, stop: int, height: int, classes: Sequence[int]
) -> Iterator[tuple[int, int, Bool]]:
    """Surfaces in a range of rows: index of the class, 0 for labels and 1 for truth, bool ``(stop - start, x)``."""
    top, bottom = max(0, start - 1), min(height, stop + 1)
    planes = read(top, bottom)
    inner = slice(start - top, stop - top)
    for k, label in enumerate(classes):
        for side, plane in enumerate(planes):
            yield k, side, find_surface(plane == label)[inner]


def find_surface(mask: Bool) -> Bool:
    """The pixels of a mask with a 4-neighbour outside of it, bool ``(y, x)``."""
    enclosed = mask.copy()
    enclosed[1:] &= mask[:-1]
    enclosed[:-1] &= mask[1:]
    enclosed[:, 1:] &= mask[:, :-1]
    enclosed[:, :-1] &= mask[:, 1:]
    return mask & ~enclosed


@_jit
def _note_rows(surface: Any, start: int, first: Any, last: Any) -> None:
    """Note the image rows of the first and last surface pixel of each column; row 0 of `surface` is row `start`."""
    for y in range(surface.shape[0]):
        for x in range(surface.shape[1]):
            if surface[y, x]:
                last[x] = start + y
                if first[x] == _FAR:
                    first[x] = start + y


@_jit
def _sum_distances(here: Any, there: Any, above: Any, below: Any, start: int, tolerance: float) -> Any:
    """Sum over the pixels of `here` of the distance to the nearest pixel of `there`; how many they are, and are near.

    Both are slabs whose row 0 is row `start` of the image; `above` and `below` give for every column the nearest row of
    `there` beyond the slab.
    """
    height, width = here.shape
    gap = np.empty((height, width), np.int32)  # to the nearest pixel of the same column
    nearest = above.copy()
    for y in range(height):
        for x in range(width):
            if there[y, x]:
                nearest[x] = start + y
            gap[y, x] = start + y - nearest[x]
    nearest = below.copy()
    for y in range(height - 1, -1, -1):
        for x in range(width):
            if there[y, x]:
                nearest[x] = start + y
            gap[y, x] = min(gap[y, x], nearest[x] - start - y)
    total, count, near = 0.0, 0, 0
    column = np.empty(width, np.int64)  # whose parabola is lowest ...
    begin = np.empty(width, np.float64)  # ... from here on
    for y in range(height):
        wanted = 0
        for x in range(width):
            wanted += here[y, x]
        if not wanted:
            continue
        count += wanted
        pieces = 0
        for x in range(width):
            if gap[y, x] >= _FAR // 2:
                continue
            level = float(gap[y, x]) ** 2 + float(x) ** 2
            cross = -np.inf
            while pieces:
                other = column[pieces - 1]
                cross = (level - float(gap[y, other]) ** 2 - float(other) ** 2) / (2.0 * (x - other))
                if cross > begin[pieces - 1]:
                    break
                pieces -= 1
                cross = -np.inf
            column[pieces], begin[pieces] = x, cross
            pieces += 1
        if not pieces:
            total = np.inf
            continue
        piece = 0
        for x in range(width):
            if here[y, x]:
                while piece + 1 < pieces and begin[piece + 1] < x:
                    piece += 1
                distance = np.sqrt(float(gap[y, column[piece]]) ** 2 + float(x - column[piece]) ** 2)
                total += distance
                near += distance <= tolerance
    return total, count, near
