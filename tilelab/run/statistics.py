"""The statistics of an image, or of each of its slices, in one pass before the run; two for percentiles of floats.

Whole numbers are counted by value, so that what follows from them is exact whatever the image's size; floats add up in
blocks, and their percentiles are those of 65,536 steps between the extremes.  Memory is that of a block and of the
counts; the order of the blocks is that of the image, so the numbers are always the same.
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
        counts = np.zeros((rows, volume.channels, _STEPS), np.int64)
        width = np.where(high > low, high - low, 1)
        for z, block in _blocks(volume, slices):
            row = z - slices[0] if each else 0
            for c, values in enumerate(block):
                finite = values[np.isfinite(values)].astype(np.float64)
                step = np.minimum((finite - low[row, c]) / width[row, c] * _STEPS, _STEPS - 1).astype(np.int64)
                counts[row, c] += np.bincount(step, minlength=_STEPS)
        ends = [_percentile(counts, q) for q in (normalization.low, normalization.high)]
        low, high = (low + (end + 0.5) * width / _STEPS for end in ends)
    return low, high - low


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
    through = counts.cumsum(axis=-1)
    at = np.maximum(through[..., -1] - 1, 0) * (q / 100)
    below, above = ((through <= np.floor(at + more)[..., np.newaxis]).sum(axis=-1) for more in (0, 1))
    last = counts.shape[-1] - 1
    below, above = np.minimum(below, last), np.minimum(above, last)
    found: Float64 = below + (above - below) * (at - np.floor(at))
    return found


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
