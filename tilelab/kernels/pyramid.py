"""Halving of images for multiscale pyramids, and cutting of rows into chunks: plain arrays in, plain arrays out.

All blocks are C-contiguous ``(n, z, y, x)``: n channels that are treated alike.  y and x are halved always, z only
when `z_factor` is 2.  An odd axis of n pixels becomes ceil(n / 2); the last block then holds what is there, which is
the same as repeating the edge pixel, for the mean (twice every term) and for the mode (twice every count).

The ``reference_*`` functions say what the kernels compute, in NumPy, slowly and obviously.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tilelab.arrays import Array, Bool, UInt8
from tilelab.kernels.jit import jit


def halved(shape: tuple[int, ...], z_factor: int) -> tuple[int, ...]:
    """The extent of a halved block ``(..., z, y, x)``."""
    *rest, z, y, x = shape
    return (*rest, -(-z // z_factor), (y + 1) // 2, (x + 1) // 2)


def halve_mean(block: UInt8, z_factor: int) -> UInt8:
    """Mean of 2x2 (or 2x2x2) pixels, rounded half up; uint8 ``(n, z, y, x)`` to uint8 of `halved` shape."""
    out = np.empty(halved(block.shape, z_factor), np.uint8)
    (_mean_yx if z_factor == 1 else _mean_zyx)(block, out)
    return out


def halve_mode(block: Array, z_factor: int) -> Array:
    """Most frequent of 2x2 (or 2x2x2) labels, ties to the higher; unsigned ``(n, z, y, x)`` to the same, `halved`."""
    out = np.empty(halved(block.shape, z_factor), block.dtype)
    (_mode_yx if z_factor == 1 else _mode_zyx)(block, out)
    return out


def cut_chunks(block: Array, z: int, y: int, chunk: tuple[int, int, int]) -> tuple[Array, Bool]:
    """The chunks of a block from (z, y) on, all along x; what the block does not fill is 0.

    Args:
        block: ``(1, z, y, x)`` of any numeric dtype, C-contiguous.
        z, y: where the chunks begin.
        chunk: extent of a chunk.

    Returns:
        ``(n, *chunk)`` pixels, and for each chunk whether any of them is not 0.
    """
    _, depth, height, width = block.shape
    count = -(-width // chunk[2])
    whole = z + chunk[0] <= depth and y + chunk[1] <= height and width % chunk[2] == 0
    out = (np.empty if whole else np.zeros)((count, *chunk), block.dtype)
    occupied = np.zeros(count, np.bool_)
    _cut(block, z, y, out, occupied)
    return out, occupied


@jit()
def _mean_yx(block: Any, out: Any) -> None:
    channels, depth, height, width = block.shape
    for c in range(channels):
        for z in range(depth):
            for y in range(out.shape[2]):
                upper = block[c, z, 2 * y]
                lower = block[c, z, min(2 * y + 1, height - 1)]
                row = out[c, z, y]
                for x in range(width // 2):
                    total = np.uint16(upper[2 * x]) + np.uint16(upper[2 * x + 1])
                    total += np.uint16(lower[2 * x]) + np.uint16(lower[2 * x + 1])
                    row[x] = (total + 2) >> 2
                if width % 2:
                    row[width // 2] = (np.uint16(upper[width - 1]) + np.uint16(lower[width - 1]) + 1) >> 1


@jit()
def _mean_zyx(block: Any, out: Any) -> None:
    channels, depth, height, width = block.shape
    for c in range(channels):
        for z in range(out.shape[1]):
            z0, z1 = 2 * z, min(2 * z + 1, depth - 1)
            for y in range(out.shape[2]):
                y0, y1 = 2 * y, min(2 * y + 1, height - 1)
                r00, r01, r10, r11 = block[c, z0, y0], block[c, z0, y1], block[c, z1, y0], block[c, z1, y1]
                row = out[c, z, y]
                for x in range(out.shape[3]):
                    x0, x1 = 2 * x, min(2 * x + 1, width - 1)
                    total = np.uint16(r00[x0]) + np.uint16(r00[x1]) + np.uint16(r01[x0]) + np.uint16(r01[x1])
                    total += np.uint16(r10[x0]) + np.uint16(r10[x1]) + np.uint16(r11[x0]) + np.uint16(r11[x1])
                    row[x] = (total + 4) >> 3


@jit()
def _mode_yx(block: Any, out: Any) -> None:
    channels, depth, height, width = block.shape
    for c in range(channels):
        for z in range(depth):
            for y in range(out.shape[2]):
                upper = block[c, z, 2 * y]
                lower = block[c, z, min(2 * y + 1, height - 1)]
                row = out[c, z, y]
                for x in range(width // 2):
                    # Sort the four (s0 <= s1 <= s2 <= s3): the mode is the highest equal pair, or else the highest.
                    # Written without branches on the way, so that it compiles to vector instructions.
                    low, high = min(upper[2 * x], upper[2 * x + 1]), max(upper[2 * x], upper[2 * x + 1])
                    low_, high_ = min(lower[2 * x], lower[2 * x + 1]), max(lower[2 * x], lower[2 * x + 1])
                    s0, s3 = min(low, low_), max(high, high_)
                    mid, mid_ = max(low, low_), min(high, high_)
                    s1, s2 = min(mid, mid_), max(mid, mid_)
                    value = s3
                    if s2 != s3:
                        if s1 == s2:
                            value = s1
                        elif s0 == s1:
                            value = s0
                    row[x] = value
                if width % 2:
                    row[width // 2] = max(upper[width - 1], lower[width - 1])


@jit()
def _mode_zyx(block: Any, out: Any) -> None:
    channels, depth, height, width = block.shape
    values = np.empty(8, block.dtype)
    for c in range(channels):
        for z in range(out.shape[1]):
            z0, z1 = 2 * z, min(2 * z + 1, depth - 1)
            for y in range(out.shape[2]):
                y0, y1 = 2 * y, min(2 * y + 1, height - 1)
                r00, r01, r10, r11 = block[c, z0, y0], block[c, z0, y1], block[c, z1, y0], block[c, z1, y1]
                row = out[c, z, y]
                for x in range(out.shape[3]):
                    x0, x1 = 2 * x, min(2 * x + 1, width - 1)
                    values[0], values[1], values[2], values[3] = r00[x0], r00[x1], r01[x0], r01[x1]
                    values[4], values[5], values[6], values[7] = r10[x0], r10[x1], r11[x0], r11[x1]
                    best, most = values[0], 0
                    for i in range(8):
                        if values[i] == best and most > 0:
                            continue  # counted already; in most blocks all are alike
                        count = 0
                        for j in range(8):
                            count += values[j] == values[i]
                        if count > most or (count == most and values[i] > best):
                            best, most = values[i], count
                    row[x] = best


@jit()
def _cut(block: Any, z0: int, y0: int, out: Any, occupied: Any) -> None:
    for i in range(out.shape[0]):
        x0 = i * out.shape[3]
        n = min(out.shape[3], block.shape[3] - x0)
        for z in range(min(out.shape[1], block.shape[1] - z0)):
            for y in range(min(out.shape[2], block.shape[2] - y0)):
                source = block[0, z0 + z, y0 + y, x0 : x0 + n]
                target = out[i, z, y, :n]
                found = False
                for x in range(n):
                    target[x] = source[x]
                    found |= source[x] != 0
                occupied[i] |= found


def reference_halve_mean(block: UInt8, z_factor: int) -> UInt8:
    """What `halve_mean` computes."""
    blocks = _blocks(block, z_factor).astype(np.int64)
    count = blocks.shape[-1]
    mean: UInt8 = ((blocks.sum(axis=-1) + count // 2) // count).astype(np.uint8)
    return mean


def reference_halve_mode(block: UInt8, z_factor: int) -> UInt8:
    """What `halve_mode` computes."""
    blocks = _blocks(block, z_factor)
    best = np.zeros(blocks.shape[:-1], np.uint8)
    most = np.zeros(blocks.shape[:-1], np.int64)
    for label in range(256):
        count = (blocks == label).sum(axis=-1)
        wins = (count > 0) & (count >= most)  # labels rise, so a tie goes to the higher
        best[wins], most[wins] = label, count[wins]
    return best


def _blocks(block: UInt8, z_factor: int) -> UInt8:
    """The pixels of each output pixel in a last axis: ``(n, z, y, x)`` to ``(n, z', y', x', 4 or 8)``."""
    n, z, y, x = halved(block.shape, z_factor)
    missing = [
        (0, size * factor - old) for size, factor, old in zip((z, y, x), (z_factor, 2, 2), block.shape[1:], strict=True)
    ]
    whole = np.pad(block, [(0, 0), *missing], mode="edge")
    split = whole.reshape(n, z, z_factor, y, 2, x, 2)
    return split.transpose(0, 1, 3, 5, 2, 4, 6).reshape(n, z, y, x, 4 * z_factor)
