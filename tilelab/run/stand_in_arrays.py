"""Arrays that stand in for a lazy one: without pixels, to learn its axes, and with those of some regions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilelab.arrays import Array
from tilelab.geometry import Box
from tilelab.io.images.volume import Volume

Slices = tuple[slice, ...]


class Pixelless:
    """An array that has a shape and no pixels; remembers what is asked of it."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        self.asked: Slices = ()

    def __getitem__(self, slices: Slices) -> Array:
        self.asked = slices
        return np.zeros(tuple(s.stop - s.start for s in slices), self.dtype)


class StoredAxes:
    """Which axes of the array are z, y and x, and what is read of the others."""

    def __init__(self, rest: Slices, axes: tuple[int | None, ...]) -> None:
        self._rest, self._axes = rest, axes

    def slices(self, box: Box) -> Slices:
        """The region of the array behind a region ``(z, y, x)`` of the image."""
        found = list(self._rest)
        for axis, a, b in zip(self._axes, box.start, box.stop, strict=True):
            if axis is not None:
                found[axis] = slice(a, b)
        return tuple(found)


def stored_axes(pixelless: Pixelless, volume: Volume) -> StoredAxes:
    """Find out by reading single pixels: the rules about axes are those of `open_image`."""
    origin = Box((0, 0, 0), (1, 1, 1))
    volume.read(origin)
    rest = pixelless.asked
    axes: list[int | None] = []
    for axis, size in enumerate(volume.shape):
        at = tuple(size - 1 if a == axis else 0 for a in range(3))
        volume.read(Box(at, tuple(n + 1 for n in at)))
        moved = [i for i, (a, b) in enumerate(zip(rest, pixelless.asked, strict=True)) if a != b]
        axes.append(moved[0] if moved else None)  # an axis of one pixel does not move, and need not
    return StoredAxes(rest, tuple(axes))


class Window:
    """An array of which some regions are there."""

    def __init__(self, shape: tuple[int, ...], regions: Sequence[Slices], pieces: Sequence[Array]) -> None:
        self.shape, self.dtype = shape, pieces[0].dtype
        self._regions, self._pieces = regions, pieces

    def __getitem__(self, slices: Slices) -> Array:
        for region, piece in zip(self._regions, self._pieces, strict=True):
            if all(r.start <= s.start and s.stop <= r.stop for r, s in zip(region, slices, strict=True)):
                return piece[
                    tuple(slice(s.start - r.start, s.stop - r.start) for r, s in zip(region, slices, strict=True))
                ]
        raise IndexError(f"region {slices} was not brought along")
