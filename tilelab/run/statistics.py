"""The statistics of an image, or of each of its slices, in one pass before the run; in more for percentiles of floats.

Whole numbers are counted by value, so that what follows from them is exact whatever the image's size; floats add up in
blocks, and their percentiles are those of 65,536 steps between the extremes, or between closer ends where a few pixels
are so far off that the others would share few steps.  Memory is that of a block and of the counts; the order of the
blocks is that of the image, so the numbers are always the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tilelab.arrays import Array, Float64, Int64
from tilelab.geometry import Box
from tilelab.io.images.volume import Volume
from tilelab.spec import Normalization

_BLOCK_BYTES = 32 << 20
_MOST_SLICES = 16  # whose counts are held at a time
_STEPS = 65536
_LEAST_STEPS = 64  # between two percentiles that are to be told from each other
_MOST_LOOKS = 10  # at floats: as many as it takes beside the largest number that there is
_PIECE = 1 << 20  # pixels of a block that are counted at a time: counting takes eight bytes of each


@dataclass(frozen=True)
class Statistics:
    """Offset and spread of the intensities: ``(channels,)`` of the stack, ``(slices, channels)`` of each slice."""

    low: Float64
    spread: Float64


def find_statistics(volume: Volume, normalization: Normalization) -> Statistics:
    """What `normalization` asks of `volume`; 0 and 0 where there is no pixel that is a number.

    Raises:
        InputError: the image cannot be read.
    """
    groups = [(0, volume.shape[0])] if normalization.per == "stack" else _slice_groups(volume)
    found = [_find(volume, group, normalization) for group in groups]
    low, spread = (np.concatenate([part[i] for part in found]) for i in (0, 1))
    return Statistics(low[0], spread[0]) if normalization.per == "stack" else Statistics(low, spread)


def _find(volume: Volume, slices: tuple[int, int], normalization: Normalization) -> tuple[Float64, Float64]:
    """Offset and spread of some slices, ``(1 or slices, channels)``."""
    each = normalization.per == "slice"
    if volume.dtype.kind == "u":
        return _of_counts(_count(volume, slices, each), normalization)
    rows = slices[1] - slices[0] if each else 1
    parts = _Sums(rows, volume.channels)
    for z, block in _blocks(volume, slices):
        parts.add(0 if not each else z - slices[0], block)
    if normalization.kind == "mean-std":
        return parts.mean, np.sqrt(parts.squares / np.maximum(parts.count, 1))
    low, high = parts.low, parts.high
    empty = parts.count == 0
    low, high = np.where(empty, 0, low), np.where(empty, 0, high)
    if normalization.kind == "percentile":
        low, high = _float_percentiles(volume, slices, (low, high), normalization)
    return low, high - low


def _float_percentiles(
    volume: Volume, slices: tuple[int, int], extremes: tuple[Float64, Float64], normalization: Normalization
) -> tuple[Float64, Float64]:
    """Both percentiles of some slices, ``(1 or slices, channels)``, to a fraction of what lies between them.

    Pixels are counted in steps between the extremes, and where a few far ones leave too few steps to the others, once
    more between those two.
    """
    each = normalization.per == "slice"
    begin, end = extremes
    low, high = extremes
    coarse = np.ones(begin.shape, np.bool_)
    for _ in range(_MOST_LOOKS):
        width = np.where(end > begin, end - begin, 1)
        counts = _count_steps(volume, slices, each, begin, width)
        ranks = [_around(counts, q) for q in (normalization.low, normalization.high)]
        steps = [(np.clip(below - 1, 0, _STEPS - 1), np.clip(above - 1, 0, _STEPS - 1), p) for below, above, p in ranks]
        new = [begin + (below + (above - below) * part + 0.5) * width / _STEPS for below, above, part in steps]
        low, high = np.where(coarse, new[0], low), np.where(coarse, new[1], high)
        coarse &= (high - low < _LEAST_STEPS * width / _STEPS) & (end > begin)
        if not coarse.any():
            break
        # one step more at either end: they are rounded; the extremes are not
        first, last = steps[0][0] - 1, steps[1][1] + 2
        nearer = np.where(first > 0, begin + first * width / _STEPS, begin)
        begin, end = nearer, np.where(last < _STEPS, begin + last * width / _STEPS, end)
    return low, high


def _count_steps(volume: Volume, slices: tuple[int, int], each: bool, begin: Float64, width: Float64) -> Int64:
    """Pixels before, in each of and behind the steps from `begin` on, ``(1 or slices, channels, steps + 2)``."""
    counts = np.zeros((*begin.shape, _STEPS + 2), np.int64)
    for z, block in _blocks(volume, slices):
        row = z - slices[0] if each else 0
        for c, values in enumerate(block):
            finite = values[np.isfinite(values)].astype(np.float64)
            at = (finite - begin[row, c]) / width[row, c] * _STEPS
            step = np.clip(at, 0, _STEPS - 1).astype(np.int64) + 1
            step[at < 0], step[at > _STEPS] = 0, _STEPS + 1
            counts[row, c] += np.bincount(step, minlength=_STEPS + 2)
    return counts


class _Sums:
    """Count, mean, sum of squared deviations and extremes of floats, ``(rows, channels)``, added block by block."""

    def __init__(self, rows: int, channels: int) -> None:
        self.count, self.mean, self.squares = (np.zeros((rows, channels)) for _ in range(3))
        self.low, self.high = np.full((rows, channels), np.inf), np.full((rows, channels), -np.inf)

    def add(self, row: int, block: Array) -> None:
        """Pixels ``(channels, n)``; what is not finite is left out."""
        for c, values in enumerate(block):
            finite = values[np.isfinite(values)].astype(np.float64)
            if not finite.size:
                continue
            at = (row, c)
            mean, both = finite.mean(), self.count[at] + finite.size
            apart = mean - self.mean[at]
            self.squares[at] += ((finite - mean) ** 2).sum() + apart**2 * self.count[at] * finite.size / both
            self.mean[at] += apart * finite.size / both
            self.count[at] = both
            self.low[at], self.high[at] = min(self.low[at], finite.min()), max(self.high[at], finite.max())


def _count(volume: Volume, slices: tuple[int, int], each: bool) -> Int64:
    """How often each value occurs, ``(1 or slices, channels, values)``."""
    rows = slices[1] - slices[0] if each else 1
    counts = np.zeros((rows, volume.channels, np.iinfo(volume.dtype).max + 1), np.int64)
    for z, block in _blocks(volume, slices):
        for c, values in enumerate(block):
            counts[z - slices[0] if each else 0, c] += np.bincount(values, minlength=counts.shape[-1])
    return counts


def _of_counts(counts: Int64, normalization: Normalization) -> tuple[Float64, Float64]:
    """Offset and spread, from how often each value occurs."""
    value = np.arange(counts.shape[-1], dtype=np.float64)
    total = np.maximum(counts.sum(axis=-1), 1)
    if normalization.kind == "mean-std":
        mean = (counts * value).sum(axis=-1) / total
        return mean, np.sqrt((counts * (value - mean[..., np.newaxis]) ** 2).sum(axis=-1) / total)
    ends = (0.0, 100.0) if normalization.kind == "min-max" else (normalization.low, normalization.high)
    low, high = (_percentile(counts, q) for q in ends)
    return low, high - low


def _percentile(counts: Int64, q: float) -> Float64:
    """The value below which `q` per cent lie, between two neighbours linearly, as `numpy.percentile` has it."""
    below, above, part = _around(counts, q)
    found: Float64 = below + (above - below) * part
    return found


def _around(counts: Int64, q: float) -> tuple[Int64, Int64, Float64]:
    """The two values between which the one lies below which `q` per cent do, and how far from the first on."""
    through = counts.cumsum(axis=-1)
    at = np.maximum(through[..., -1] - 1, 0) * (q / 100)
    below, above = ((through <= np.floor(at + more)[..., np.newaxis]).sum(axis=-1) for more in (0, 1))
    last = counts.shape[-1] - 1
    return np.minimum(below, last), np.minimum(above, last), at - np.floor(at)


def _slice_groups(volume: Volume) -> list[tuple[int, int]]:
    """Slices that are read together, so that a chunk that holds several is decoded once."""
    deep = min(max(1, volume.chunks[0]), _MOST_SLICES)
    return [(z, min(volume.shape[0], z + deep)) for z in range(0, volume.shape[0], deep)]


def _blocks(volume: Volume, slices: tuple[int, int]) -> Iterator[tuple[int, Array]]:
    """All pixels of some slices in a fixed order, ``(channels, n)`` at a time with the slice that they are of."""
    depth, height, width = volume.chunks
    deep = min(depth, _MOST_SLICES)
    pixel = volume.channels * volume.dtype.itemsize
    wide = max(1, _BLOCK_BYTES // (pixel * deep * height) // width) * width
    wide = min(wide, volume.shape[2])
    high = max(1, _BLOCK_BYTES // (pixel * deep * wide) // height) * height
    for z in range(*slices, deep):
        for y in range(0, volume.shape[1], high):
            for x in range(0, volume.shape[2], wide):
                start, ends = (z, y, x), (z + deep, y + high, x + wide)
                stop = tuple(map(min, ends, (slices[1], *volume.shape[1:])))
                block = volume.read(Box(start, stop))
                for i in range(block.shape[1]):
                    pixels = block[:, i].reshape(volume.channels, -1)
                    for first in range(0, pixels.shape[1], _PIECE):
                        yield z + i, pixels[:, first : first + _PIECE]
