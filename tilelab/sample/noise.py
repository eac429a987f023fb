"""Randomness without state: numbers and noise as pure functions of a seed and a position."""

from __future__ import annotations

import numpy as np

from tilelab.arrays import Float64, Int64, UInt64
from tilelab.geometry import Box

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash_cells(seed: int, stream: int, y: Int64, x: Int64) -> UInt64:
    """64 random bits for each pair of whole numbers (splitmix64's finaliser, three times), uint64."""
    key = np.array([(seed * 64 + stream) & (2**64 - 1)], np.uint64)
    return _mix(_mix(_mix(key + _GOLDEN) + y.astype(np.uint64) * _GOLDEN) + x.astype(np.uint64) * _GOLDEN)


def _mix(z: UInt64) -> UInt64:
    """splitmix64's finaliser: every output bit depends on every input bit."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniform(bits: UInt64, part: int) -> Float64:
    """One of three independent numbers in 0 <= u < 1 out of 64 random bits, float64."""
    return ((bits >> np.uint64(21 * part)) & np.uint64(2**21 - 1)).astype(np.float64) / 2**21


def cells(box: Box, pitch: float, margin: float) -> tuple[Int64, Int64]:
    """The lattice cells of `pitch` pixels within `margin` of `box`, in raster order: int64 rows, columns ``(n,)``."""
    ranges = [
        np.arange(np.floor((a - margin) / pitch), np.floor((b + margin) / pitch) + 1).astype(np.int64)
        for a, b in zip(box.start, box.stop, strict=True)
    ]
    rows, columns = np.meshgrid(*ranges, indexing="ij")
    return rows.ravel(), columns.ravel()


def white_noise(seed: int, y: Float64, x: Float64) -> Float64:
    """Independent, nearly Gaussian noise of unit variance per pixel: the sum of four uniform numbers."""
    bits = hash_cells(seed, 19, y.astype(np.int64), x.astype(np.int64))
    total = sum(((bits >> np.uint64(16 * part)) & np.uint64(0xFFFF)).astype(np.float64) for part in range(4))
    noise: Float64 = (total / 2**16 - 2.0) * np.sqrt(3.0)
    return noise


def smooth_noise(seed: int, stream: int, y: Float64, x: Float64, extent: tuple[int, int]) -> Float64:
    """Noise of about unit variance that varies over `extent` pixels (y, x): random values on a lattice, interpolated.

    `y` is a column, `x` a row; the result has their broadcast shape.
    """
    (low_y, part_y), (low_x, part_x) = (_interpolation(axis.ravel(), e) for axis, e in ((y, extent[0]), (x, extent[1])))
    rows = np.arange(low_y[0], low_y[-1] + 2)
    columns = np.arange(low_x[0], low_x[-1] + 2)
    knots = (uniform(hash_cells(seed, stream, rows[:, None], columns[None, :]), 0) - 0.5) * 4.7
    low_y, low_x = low_y - rows[0], low_x - columns[0]
    lines = knots[low_y] + (knots[low_y + 1] - knots[low_y]) * part_y[:, None]
    noise: Float64 = lines[:, low_x] + (lines[:, low_x + 1] - lines[:, low_x]) * part_x
    return noise


def smooth_noise_at(seed: int, stream: int, y: Float64, x: Float64, extent: float) -> Float64:
    """`smooth_noise` at scattered points, float64 of the shape of `y` and `x`."""
    (low_y, part_y), (low_x, part_x) = _interpolation(y, extent), _interpolation(x, extent)
    knot = [[(uniform(hash_cells(seed, stream, low_y + i, low_x + j), 0) - 0.5) * 4.7 for j in (0, 1)] for i in (0, 1)]
    left, right = (knot[0][j] + (knot[1][j] - knot[0][j]) * part_y for j in (0, 1))
    noise: Float64 = left + (right - left) * part_x
    return noise


def _interpolation(at: Float64, extent: float) -> tuple[Int64, Float64]:
    """The lattice point before each position, and how far (smoothed, 0 to 1) it is on the way to the next."""
    low = np.floor(at / extent)
    part = at / extent - low
    return low.astype(np.int64), part * part * (3 - 2 * part)
