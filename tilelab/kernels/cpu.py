"""The kernels on the CPU, compiled by Numba: same arguments and meaning as in `tilelab.kernels.reference`.

They release the GIL and take whole-number row ranges, so `Threads` can spread one call over cores; every pixel is
computed by one thread in one order, so the result has the same bytes for any number of threads.  Inner loops run over
x alone and hold float32 only, which lets LLVM vectorise them; `fastmath` stays off, so nothing is reordered or fused.
"""

from __future__ import annotations

from tilelab.arrays import Array, Float32, Int64, UInt8

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numba
import numpy as np

from tilelab.kernels.reference import SIGMOID, SOFTMAX
from tilelab.kernels.scalar import BYTE, HALF, ONE, ZERO, exp_negative

__all__ = ["SIGMOID", "SOFTMAX", "Threads", "all_finite", "blend", "cut", "finish", "is_constant"]

_jit = numba.njit(nogil=True, cache=True, error_model="numpy")

_exp_negative = _jit(exp_negative)


class Threads:
    """A few threads that split the rows of one kernel call among them; with one, calls run in place."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count - 1, "tilelab-kernel") if count > 1 else None

    def split(self, rows: int, kernel: Callable[[int, int], None]) -> None:
        """Call ``kernel(first, last)`` on consecutive ranges that cover ``0:rows``."""
        if self._pool is None or rows < self.count:
            kernel(0, rows)
            return
        cuts = [rows * i // self.count for i in range(self.count + 1)]
        others = [self._pool.submit(kernel, a, b) for a, b in pairwise(cuts[1:])]
        kernel(0, cuts[1])  # in the thread that would only wait
        for done in others:
            done.result()

    def close(self) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.shutdown()


@_jit
def _cut(band, rows, cross, cols, mean, gain, tile):  # type: ignore[no-untyped-def]
    last_channel = band.shape[0] - 1
    width = cols.size
    contiguous = cols[width - 1] - cols[0] == width - 1  # no reflection: positions only ever grow by one
    for c in range(tile.shape[0]):
        m, g = mean[c], gain[c]
        source = min(c, last_channel)
        for s in range(rows.size):
            for a in range(cross.size):
                line = band[source, rows[s], cross[a]]
                out = tile[c, s, a]
                if contiguous:
                    start = cols[0]
                    for x in range(width):
                        out[x] = (np.float32(line[start + x]) - m) * g
                else:
                    for x in range(width):
                        out[x] = (np.float32(line[cols[x]]) - m) * g


def cut(band: Array, rows: Int64, cross: Int64, cols: Int64, mean: Float32, gain: Float32, tile: Float32) -> None:
    """Gather and normalise one tile; see `reference.cut`."""
    _cut(band, rows, cross, cols, mean, gain, tile)


@_jit
def _blend(canvas, logits, share_s, share_a, share_x, row, first, last, cross, col):  # type: ignore[no-untyped-def]
    classes, ring, height, width = canvas.shape
    a0, a1 = max(0, -cross), min(share_a.size, height - cross)
    x0, x1 = max(0, -col), min(share_x.size, width - col)
    for k in range(classes):
        for s in range(first, last):
            slot = (row + s) % ring
            for a in range(a0, a1):
                weight = share_s[s] * share_a[a]
                line = canvas[k, slot, cross + a, col + x0 : col + x1]
                values = logits[k, s, a, x0:x1]
                shares = share_x[x0:x1]
                for x in range(line.size):
                    line[x] += values[x] * (weight * shares[x])


def blend(
    canvas: Float32,
    logits: Float32,
    share_s: Float32,
    share_a: Float32,
    share_x: Float32,
    row: int,
    first: int,
    last: int,
    cross: int,
    col: int,
    threads: Threads | None = None,
) -> None:
    """Add one tile to the canvas; see `reference.blend`."""
    if cross >= canvas.shape[2] or col >= canvas.shape[3] or cross + share_a.size <= 0 or col + share_x.size <= 0:
        return

    def part(a: int, b: int) -> None:
        _blend(canvas, logits, share_s, share_a, share_x, row, first + a, first + b, cross, col)

    if threads is None:
        part(0, last - first)
    else:
        threads.split(last - first, part)


@_jit
def _finish(canvas, row, first, last, activation, labels, probabilities, channels, logits):  # type: ignore[no-untyped-def]
    classes, ring, height, width = canvas.shape
    best = np.empty(width, np.float32)
    total = np.empty(width, np.float32)
    for i in range(first, last):
        slot = (row + i) % ring
        for a in range(height):
            label = labels[i, a]
            if logits.size > 0:
                for k in range(classes):
                    for x in range(width):
                        logits[k, i, a, x] = canvas[k, slot, a, x]
            # argmax; with sigmoid the background is an output that is always 0
            if activation == SOFTMAX:
                offset = 0
                for x in range(width):
                    best[x] = canvas[0, slot, a, x]
                    label[x] = 0
            else:
                offset = 1
                for x in range(width):
                    best[x] = ZERO
                    label[x] = 0
            for k in range(1 - offset, classes):
                line = canvas[k, slot, a]
                code = np.uint8(k + offset)
                for x in range(width):
                    higher = line[x] > best[x]
                    best[x] = line[x] if higher else best[x]
                    label[x] = code if higher else label[x]
            if channels.size > 0:
                if activation == SOFTMAX:
                    for x in range(width):
                        total[x] = ZERO
                    for k in range(classes):
                        line = canvas[k, slot, a]
                        for x in range(width):
                            line[x] = _exp_negative(line[x] - best[x])
                            total[x] += line[x]
                    for x in range(width):
                        total[x] = BYTE / total[x]
                    for c in range(channels.size):
                        line = canvas[channels[c], slot, a]
                        out = probabilities[c, i, a]
                        for x in range(width):
                            out[x] = np.uint8(np.int32(line[x] * total[x] + HALF))
                else:
                    for x in range(width):
                        total[x] = ZERO
                    for k in range(classes):
                        line = canvas[k, slot, a]
                        for x in range(width):
                            e = _exp_negative(-abs(line[x]))
                            p = ONE / (ONE + e)
                            line[x] = p if line[x] >= ZERO else e * p
                            total[x] = max(total[x], line[x])
                    for c in range(channels.size):
                        out = probabilities[c, i, a]
                        if channels[c] == 0:
                            for x in range(width):
                                out[x] = np.uint8(np.int32((ONE - total[x]) * BYTE + HALF))
                        else:
                            line = canvas[channels[c] - 1, slot, a]
                            for x in range(width):
                                out[x] = np.uint8(np.int32(line[x] * BYTE + HALF))
            for k in range(classes):
                line = canvas[k, slot, a]
                for x in range(width):
                    line[x] = ZERO


def finish(
    canvas: Float32,
    row: int,
    activation: int,
    labels: UInt8,
    probabilities: UInt8,
    channels: Int64,
    logits: Float32,
    threads: Threads | None = None,
) -> None:
    """Turn finished rows into bytes and clear them; see `reference.finish`."""

    def part(a: int, b: int) -> None:
        _finish(canvas, row, a, b, activation, labels, probabilities, channels, logits)

    if threads is None:
        part(0, labels.shape[0])
    else:
        threads.split(labels.shape[0], part)


@_jit
def _is_constant(band, rows, cross, cols):  # type: ignore[no-untyped-def]
    for c in range(band.shape[0]):
        value = band[c, rows[0], cross[0], cols[0]]
        for s in range(rows.size):
            for a in range(cross.size):
                line = band[c, rows[s], cross[a]]
                for x in range(cols.size):
                    if line[cols[x]] != value:
                        return False
    return True


def is_constant(band: Array, rows: Int64, cross: Int64, cols: Int64) -> bool:
    """Whether all pixels of a tile are equal; gives up at the first difference. See `reference.is_constant`."""
    return bool(_is_constant(band, rows, cross, cols))


@_jit
def _all_finite(values):  # type: ignore[no-untyped-def]
    # x - x is 0 for a finite x and NaN for any other
    bad = ZERO
    for x in range(values.size):
        bad += values[x] - values[x]
    return bad == ZERO


def all_finite(values: Array) -> bool:
    """Whether a float array holds neither NaN nor infinity; see `reference.all_finite`."""
    return bool(_all_finite(values.reshape(-1)))
