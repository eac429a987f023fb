"""Where a segmentation is least sure: the entropy of its probabilities, block by block.

Entropy is in bits a pixel (Shannon, 1948): 0 where the network is sure, log2 K where K classes are equally likely.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tilelab.arrays import Array, Float64, UInt8
from tilelab.engines.combined import MAP
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.results.result import Result

_BITS = np.zeros(256, np.float32)
_BITS[1:] = -(np.arange(1, 256) / 255) * np.log2(np.arange(1, 256) / 255)
_BITS.setflags(write=False)


@dataclass(frozen=True)
class Doubt:
    """Mean entropy of the blocks of a result.

    Attributes:
        block: their side in pixels; a plane of a stack has blocks of its own.
        bits: for each pixel, float64 ``(z, rows, columns)`` of blocks.
        pixels: of each block, likewise.
    """

    block: int
    bits: Float64
    pixels: Float64

    def ranked(self) -> list[tuple[int, int, int]]:
        """Blocks ``(z, row, column)`` by the doubt that they hold, the greatest first; ties in raster order."""
        order = np.argsort(-(self.bits * self.pixels).ravel(), kind="stable")
        return [tuple(map(int, at)) for at in zip(*np.unravel_index(order, self.bits.shape), strict=True)]  # type: ignore[misc]

    def share(self, count: int) -> float:
        """The share of all doubt that lies in the first `count` blocks."""
        held = np.sort((self.bits * self.pixels).ravel())[::-1]
        return float(held[:count].sum() / (held.sum() or 1))

    def box(self, at: tuple[int, int, int], shape: tuple[int, int, int]) -> Box:
        """The pixels of a block of a result of `shape`, on (z, y, x)."""
        start = (at[0], at[1] * self.block, at[2] * self.block)
        return Box(start, (at[0] + 1, *(min(n, a + self.block) for a, n in zip(start[1:], shape[1:], strict=True))))


def find_doubt(result: Result, block: int = 128) -> Doubt:
    """The mean entropy of every block, in one pass with a row of blocks in memory.

    Of a softmax, what the stored classes leave is the probability of those that are not stored, together; of sigmoids
    each stored class is a question of its own.

    A result with a map of its uncertainty (``infer --uncertainty``) is judged by that.

    Args:
        result: with probabilities.
        block: side in pixels.

    Raises:
        InputError: it has no probabilities, or not enough of them.
    """
    info = result.info
    if MAP in result.maps:
        return _by_blocks(result, block, lambda box: result.maps[MAP].read(box), 1)
    if not result.probabilities:
        raise InputError(
            f"{info.name} has no probabilities, which tell how sure the network was: infer without --probabilities none"
        )
    if len(info.probabilities) < len(info.classes) - 1:
        raise InputError(
            f"{info.name} has the probabilities of {len(info.probabilities)} of {len(info.classes)} classes: infer "
            "without --probabilities, or with all, to keep those that doubt is made of"
        )
    level, exclusive = result.probabilities[0], _exclusive(result)

    def bits(box: Box) -> Array:
        stored = level.read(box)
        return entropy(stored.reshape(len(stored), *box.shape[-2:]), exclusive=exclusive)

    return _by_blocks(result, block, bits, len(info.probabilities))


def _by_blocks(result: Result, block: int, read: Callable[[Box], Array], channels: int) -> Doubt:
    """Means of what is read of a row of blocks, in bits."""
    depth, height, width = result.info.layout.shape
    rows, columns = -(-height // block), -(-width // block)
    bits, pixels = np.zeros((depth, rows, columns)), np.zeros((depth, rows, columns))
    edges = np.arange(0, width, block)
    for z in range(depth):
        for row in range(rows):
            y, stop = row * block, min(height, (row + 1) * block)
            lead = ((z,), (z + 1,)) if result.info.axes == "zyx" else ((), ())
            band = read(Box((0, *lead[0], y, 0), (channels, *lead[1], stop, width))).reshape(-1, stop - y, width)
            bits[z, row] = np.add.reduceat(band.sum(axis=(0, 1), dtype=np.float64), edges)
            pixels[z, row] = np.diff(np.append(edges, width)) * (stop - y)
    return Doubt(block, bits / pixels, pixels)


def entropy(probabilities: UInt8, *, exclusive: bool) -> Float64:
    """Bits of each pixel, of bytes ``(K, h, w)`` that are 255 times a probability.

    `exclusive`: one class alone is true, and what is missing to 255 is the rest's.
    """
    bits = _BITS[probabilities].sum(axis=0)
    if exclusive:
        rest = 255 - np.minimum(255, probabilities.sum(axis=0, dtype=np.int64))
        return np.asarray(bits + _BITS[rest], np.float64)
    return np.asarray(bits + _BITS[255 - probabilities].sum(axis=0), np.float64)


def _exclusive(result: Result) -> bool:
    return bool(result.info.metadata.get("activation", "softmax") == "softmax")
