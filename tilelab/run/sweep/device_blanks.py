"""Tiles whose pixels are all equal, found on the host while raw rows pass it on their way to the device.

Whether a tile needs the network must be known before its batch is made up.  A flag from the device would make the
thread that feeds it wait for every tile row; the host has the rows in its hands anyway, and gives a tile's line up at
the first pixel that differs, so that images without blank tiles cost next to nothing.
"""

from __future__ import annotations

import numpy as np

from tilelab.arrays import Array, Int64
from tilelab.geometry import AxisTiling
from tilelab.kernels import cpu as kernels


class Blanks:
    """For each row that the device holds and each tile across the sweep: the row's value there, if it has but one."""

    def __init__(
        self,
        sweep: AxisTiling,
        tiles: tuple[tuple[AxisTiling, range, int], tuple[AxisTiling, range, int]],
        rows: int,
        channels: int,
        dtype: np.dtype[np.generic],
    ) -> None:
        """Know nothing yet.

        Args:
            sweep: the axis of the rows.
            tiles: on the cross axis and on x: the axis, its tiles, and the first pixel of the raw rows.
            rows: that the device holds at a time.
            channels, dtype: of raw rows.
        """
        self._sweep = sweep
        self._cross, self._cols = (_extents(*of) for of in tiles)
        across = len(self._cross), len(self._cols)
        self._constant = np.zeros((rows, *across), np.bool_)
        self._values = np.zeros((rows, channels, *across), dtype)

    def note(self, start: int, raw: Array) -> None:
        """Look at rows from `start` on, ``(C, n, A, X)``, that go to the device."""
        capacity = len(self._constant)
        for done in range(0, raw.shape[1], capacity):
            part = raw[:, done : done + capacity]
            slots = np.arange(start + done, start + done + part.shape[1]) % capacity
            constant = np.empty((len(slots), *self._constant.shape[1:]), np.bool_)
            values = np.empty((len(slots), *self._values.shape[1:]), raw.dtype)
            kernels.find_constant_lines(part, self._cross, self._cols, constant, values)
            self._constant[slots], self._values[slots] = constant, values

    def of_row(self, j: int) -> dict[tuple[int, int], bytes]:
        """The blank tiles of tile row `j`, numbered on the cross axis and on x, with their values for all channels."""
        slots = np.unique(self._sweep.indices(j)) % len(self._constant)
        blank = self._constant[slots].all(axis=0)
        if not blank.any():
            return {}
        values = self._values[slots]
        blank &= (values == values[:1]).all(axis=(0, 1))
        return {(int(i), int(k)): values[0, :, i, k].tobytes() for i, k in np.argwhere(blank)}


def _extents(axis: AxisTiling, tiles: range, first: int) -> Int64:
    """Which of the raw pixels each tile sees, from one to another, int64 ``(n, 2)``."""
    seen = [axis.indices(j) - first for j in tiles]
    return np.array([[int(i.min()), int(i.max()) + 1] for i in seen], np.int64)
