"""How much of an image each class covers, and how sure that is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilelab.arrays import Float64, Int64, UInt8
from tilelab.geometry import Box
from tilelab.kernels.jit import jit

_jit = jit()
_LEAST_SIDE = 16
_LEAST_IMAGES = 4
_LEAST_BLOCKS = 16
"""A spread is estimated from no fewer blocks."""


@dataclass(frozen=True)
class Fraction:
    """The share of a class.

    Attributes:
        pixels: of the class.
        share: of all pixels.
        low, high: of the interval that holds the share of the whole specimen in 95 % of cases; NaN where the image is
            too small for one.
        block: side in pixels of the blocks whose spread it is from, 0 for whole images.
        error: standard error of the share.
        blocks: how many the spread is from.
    """

    pixels: int
    share: float
    low: float
    high: float
    block: int
    error: float = 0.0
    blocks: int = 0


class BlockCounts:
    """Counts the pixels of each class in blocks of a fixed grid, by whatever pieces the image is read.

    Attributes:
        side: of a block in pixels, on all axes along which there is more than one plane.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        most = 64 if shape[0] == 1 else 16
        self.side = max(_LEAST_SIDE, *(-(-n // most) for n in shape))
        self._grid = tuple(-(-n // self.side) for n in shape)
        self._shape = shape
        self._counts = np.zeros((*self._grid, 1), np.int64)

    def add(self, box: Box, block: UInt8) -> None:
        """Count a region."""
        self.take(box, count_blocks(box, block, self.side))

    def take(self, box: Box, counts: Int64 | None) -> None:
        """Add what `count_blocks` found in a region."""
        if counts is None:
            return
        most = counts.shape[-1]
        if most > self._counts.shape[-1]:
            self._counts = np.pad(self._counts, [(0, 0)] * 3 + [(0, most - self._counts.shape[-1])])
        z, y = box.start[0] // self.side, box.start[1] // self.side
        self._counts[z : z + len(counts), y : y + counts.shape[1], :, :most] += counts

    def forget(self, label: int) -> None:
        """Leave the pixels of a class out, as if they were not of the image."""
        self._counts[..., label : label + 1] = 0
        used = np.flatnonzero(self._counts.any(axis=(0, 1, 2)))
        self._counts = self._counts[..., : int(used[-1]) + 1 if len(used) else 1]

    @property
    def totals(self) -> Int64:
        """Pixels of each class."""
        total: Int64 = self._counts.sum(axis=(0, 1, 2))
        return total

    def fractions(self) -> list[Fraction]:
        """The share of each class with its 95 % interval.

        Pixels are not independent, blocks larger than the structure nearly are.  The variance of a share is estimated
        from the spread between blocks (the ratio estimator for clusters of unequal size: Cochran, Sampling Techniques,
        1977, chapter 6), for blocks of `side` pixels and of 2, 4, 8, ... times that, and the largest is taken: it grows
        with the block until blocks are independent (batch means; Lahiri, Resampling Methods for Dependent Data, 2003).
        The interval is that of Student's t for so many blocks, cut off at 0 and 1.
        """
        counts, totals = self._counts, self.totals
        share = totals / max(1, totals.sum())
        best = np.zeros(len(totals))
        blocks = np.zeros(len(totals), np.int64)
        sides = np.zeros(len(totals), np.int64)
        side = self.side
        while math.prod(counts.shape[:3]) >= _LEAST_BLOCKS:
            flat = counts.reshape(-1, counts.shape[-1])
            error = ratio_error(flat)
            wider = error >= best
            best, blocks = np.where(wider, error, best), np.where(wider, len(flat), blocks)
            sides = np.where(wider, side, sides)
            counts, side = _halve(counts), 2 * side
        return [
            Fraction(int(n), float(p), *interval(float(p), float(e), int(b)), int(s), float(e), int(b))
            for n, p, e, b, s in zip(totals, share, best, blocks, sides, strict=True)
        ]


def count_blocks(box: Box, block: UInt8, side: int) -> Int64:
    """Pixels of each class in the blocks of the grid that a region reaches into, int64 ``(z, y, x, classes)``.

    Args:
        box: the region, as wide as the image.
        block: its classes.
        side: of a block of the grid, which begins at 0.
    """
    first = box.start[0] // side, box.start[1] // side
    last = ((stop - 1) // side + 1 for stop in box.stop)
    counts = np.zeros((*(b - a for a, b in zip((*first, 0), last, strict=True)), 256), np.int64)
    _count(block, box.start[0], box.start[1], side, *first, counts)
    used = np.flatnonzero(counts.any(axis=(0, 1, 2)))
    return counts[..., : int(used[-1]) + 1]


def pool_fractions(images: list[BlockCounts]) -> list[Fraction]:
    """The shares over several images.

    From four images on the interval is from the spread between images, as if each were a block.  Fewer say too little
    of that: then it is from the blocks within them, and holds for these images alone.
    """
    if len(images) == 1:
        return images[0].fractions()
    most = max(len(image.totals) for image in images)
    counts = np.array([np.pad(image.totals, (0, most - len(image.totals))) for image in images])
    sizes, share = counts.sum(axis=1), counts.sum(axis=0) / max(1, counts.sum())
    error, blocks = ratio_error(counts), np.full(most, len(images))
    sides = np.zeros(most, np.int64)
    if len(images) < _LEAST_IMAGES:
        nothing = Fraction(0, 0.0, math.nan, math.nan, 0)
        within = [image.fractions() for image in images]
        within = [found + [nothing] * (most - len(found)) for found in within]
        weights = sizes / max(1, sizes.sum())
        error = np.sqrt(
            sum((w * np.array([f.error for f in found])) ** 2 for w, found in zip(weights, within, strict=True))
        )
        blocks = np.sum([[f.blocks for f in found] for found in within], axis=0)
        sides = np.max([[f.block for f in found] for found in within], axis=0)
    return [
        Fraction(int(n), float(p), *interval(float(p), float(e), int(b)), int(s), float(e), int(b))
        for n, p, e, b, s in zip(counts.sum(axis=0), share, error, blocks, sides, strict=True)
    ]


def ratio_error(counts: Int64) -> Float64:
    """Standard error of the share of each class, from counts ``(blocks, classes)``."""
    sizes = counts.sum(axis=1, keepdims=True)
    blocks, pixels = len(counts), sizes.sum()
    if not pixels:
        return np.zeros(counts.shape[1])
    rest = counts - counts.sum(axis=0) / pixels * sizes
    error: Float64 = np.sqrt((rest**2).sum(axis=0) * blocks / max(1, blocks - 1)) / pixels
    return error


def interval(share: float, error: float, blocks: int) -> tuple[float, float]:
    """95 % by Student's t of ``blocks - 1`` degrees of freedom; NaN for fewer than two blocks."""
    if blocks < 2:
        return math.nan, math.nan
    half = student_quantile(blocks - 1) * error
    return max(0.0, share - half), min(1.0, share + half)


def student_quantile(freedom: int) -> float:
    """Student's t that 97.5 % lie below, to 1 %: exact to two degrees, Cornish and Fisher's expansion beyond."""
    if freedom <= 2:
        return {1: 12.7062, 2: 4.30265}[freedom]
    z, n = 1.959964, float(freedom)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3


def _halve(counts: Int64) -> Int64:
    """Counts of blocks twice as long on each axis of more than one."""
    for axis in range(3):
        if counts.shape[axis] > 1:
            counts = np.add.reduceat(counts, np.arange(0, counts.shape[axis], 2), axis=axis)
    return counts


@_jit
def _count(block: Any, z0: int, y0: int, side: int, gz0: int, gy0: int, counts: Any) -> None:
    depth, height, width = block.shape
    for z in range(depth):
        for y in range(height):
            line = block[z, y]
            row = counts[(z0 + z) // side - gz0, (y0 + y) // side - gy0]
            for g in range((width - 1) // side + 1):
                cell = row[g]
                first, last = g * side, min(width, (g + 1) * side)
                begin, now = first, line[first]
                for x in range(first + 1, last):
                    if line[x] != now:
                        cell[now] += x - begin
                        begin, now = x, line[x]
                cell[now] += last - begin
