"""The kernels on the CPU, compiled by Numba: same arguments and meaning as in `tilelab.kernels.reference`.

They release the GIL, and every pixel is computed in one order, so rows shared among threads have the same bytes.
Inner loops run over x alone and hold float32 only, which lets LLVM vectorise them; `fastmath` stays off, so nothing
is reordered or fused.
"""

from __future__ import annotations

import numpy as np

from tilelab.arrays import Array, Float32, Int64, UInt8
from tilelab.kernels.jit import jit
from tilelab.kernels.reference import SIGMOID, SOFTMAX
from tilelab.kernels.scalar import BYTE, HALF, ONE, ZERO, exp_negative

__all__ = [
    "SIGMOID",
    "SOFTMAX",
    "all_finite",
    "blend",
    "cut",
    "find_constant_lines",
    "find_over",
    "finish",
    "is_constant",
]

_jit = jit(error_model="numpy")

_BLOCK = 1024
"""Pixels of a line that are finished at a time: all classes of them stay in the nearest cache."""

_exp_negative = _jit(exp_negative)


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
                    values = line[cols[0] : cols[0] + width]  # indices that cannot be negative: it vectorises
                    for x in range(width):
                        out[x] = (np.float32(values[x]) - m) * g
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
) -> None:
    """Add one tile to the canvas; see `reference.blend`."""
    if cross >= canvas.shape[2] or col >= canvas.shape[3] or cross + share_a.size <= 0 or col + share_x.size <= 0:
        return
    _blend(canvas, logits, share_s, share_a, share_x, row, first, last, cross, col)


@_jit
def _classify(canvas, slot, a, x0, x1, offset, best, label):  # type: ignore[no-untyped-def]
    for k in range(1 - offset, canvas.shape[0]):
        line = canvas[k, slot, a, x0:x1]
        code = np.uint8(k + offset)
        for x in range(line.size):
            higher = line[x] > best[x]
            best[x] = line[x] if higher else best[x]
            label[x] = code if higher else label[x]


@_jit
def _softmax(canvas, slot, a, x0, x1, best, total, channels, i, probabilities, sharpness):  # type: ignore[no-untyped-def]
    if canvas.shape[0] == 2:  # of the likelier one exp is 1
        line, other = canvas[0, slot, a, x0:x1], canvas[1, slot, a, x0:x1]
        for x in range(line.size):
            e = _exp_negative(-abs(line[x] - other[x]) * sharpness)
            likelier = other[x] > line[x]
            total[x] = ONE + e
            line[x] = e if likelier else ONE
            other[x] = ONE if likelier else e
    else:
        for x in range(total.size):
            total[x] = ZERO
        for k in range(canvas.shape[0]):
            line = canvas[k, slot, a, x0:x1]
            for x in range(line.size):
                line[x] = _exp_negative((line[x] - best[x]) * sharpness)
                total[x] += line[x]
    for x in range(total.size):
        total[x] = BYTE / total[x]
    for c in range(channels.size):
        line = canvas[channels[c], slot, a, x0:x1]
        out = probabilities[c, i, a, x0:x1]
        for x in range(line.size):
            out[x] = np.uint8(np.int32(line[x] * total[x] + HALF))


@_jit
def _sigmoid(canvas, slot, a, x0, x1, total, channels, i, probabilities, sharpness):  # type: ignore[no-untyped-def]
    for x in range(total.size):
        total[x] = ZERO
    for k in range(canvas.shape[0]):
        line = canvas[k, slot, a, x0:x1]
        for x in range(line.size):
            e = _exp_negative(-abs(line[x]) * sharpness)
            p = ONE / (ONE + e)
            line[x] = p if line[x] >= ZERO else e * p
            total[x] = max(total[x], line[x])
    for c in range(channels.size):
        out = probabilities[c, i, a, x0:x1]
        if channels[c] == 0:
            for x in range(out.size):
                out[x] = np.uint8(np.int32((ONE - total[x]) * BYTE + HALF))
        else:
            line = canvas[channels[c] - 1, slot, a, x0:x1]
            for x in range(out.size):
                out[x] = np.uint8(np.int32(line[x] * BYTE + HALF))


@_jit
def _finish(canvas, row, first, last, activation, labels, probabilities, channels, logits, sharpness):  # type: ignore[no-untyped-def]
    classes, ring, height, width = canvas.shape
    best_, total_ = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    for i in range(first, last):
        slot = (row + i) % ring
        for a in range(height):
            for x0 in range(0, width, _BLOCK):
                x1 = min(x0 + _BLOCK, width)
                best, total, label = best_[: x1 - x0], total_[: x1 - x0], labels[i, a, x0:x1]
                if logits.size > 0:
                    for k in range(classes):
                        line, out = canvas[k, slot, a, x0:x1], logits[k, i, a, x0:x1]
                        for x in range(line.size):
                            out[x] = line[x]
                # argmax; with sigmoid the background is an output that is always 0
                line = canvas[0, slot, a, x0:x1]
                for x in range(line.size):
                    best[x] = line[x] if activation == SOFTMAX else ZERO
                    label[x] = 0
                _classify(canvas, slot, a, x0, x1, 0 if activation == SOFTMAX else 1, best, label)
                if channels.size > 0 and activation == SOFTMAX:
                    _softmax(canvas, slot, a, x0, x1, best, total, channels, i, probabilities, sharpness)
                elif channels.size > 0:
                    _sigmoid(canvas, slot, a, x0, x1, total, channels, i, probabilities, sharpness)
                for k in range(classes):
                    line = canvas[k, slot, a, x0:x1]
                    for x in range(line.size):
                        line[x] = ZERO


def finish(
    canvas: Float32,
    row: int,
    activation: int,
    labels: UInt8,
    probabilities: UInt8,
    channels: Int64,
    logits: Float32,
    sharpness: float = 1.0,
) -> None:
    """Turn finished rows into bytes and clear them; see `reference.finish`."""
    rows = labels.shape[0]
    _finish(canvas, row, 0, rows, activation, labels, probabilities, channels, logits, np.float32(sharpness))


@_jit
def _find_over(canvas, row, first, last, limits, labels):  # type: ignore[no-untyped-def]
    classes, ring, height, width = canvas.shape
    best = np.empty(width, np.float32)
    for i in range(first, last):
        slot = (row + i) % ring
        for a in range(height):
            label = labels[i, a]
            for x in range(width):
                best[x] = ZERO
                label[x] = 0
            for k in range(classes):
                line, limit, code = canvas[k, slot, a], limits[k], np.uint8(k + 1)
                for x in range(width):
                    over = line[x] - limit
                    higher = over > best[x]
                    best[x] = over if higher else best[x]
                    label[x] = code if higher else label[x]


def find_over(canvas: Float32, row: int, limits: Float32, labels: UInt8) -> None:
    """The class whose logit exceeds its limit most, 0 where none does; see `reference.find_over`."""
    _find_over(canvas, row, 0, labels.shape[0], limits, labels)


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


_EXPONENT = np.int32(0x7F800000)  # all bits set: NaN or infinity


@_jit
def _find_constant_lines(raw, cross, cols, constant, values):  # type: ignore[no-untyped-def]
    channels = raw.shape[0]
    for r in range(raw.shape[1]):
        for i in range(cross.shape[0]):
            for k in range(cols.shape[0]):
                equal = True
                for c in range(channels):
                    value = raw[c, r, cross[i, 0], cols[k, 0]]
                    values[r, c, i, k] = value
                    for a in range(cross[i, 0], cross[i, 1]):
                        line = raw[c, r, a]
                        if not equal:
                            break
                        for x in range(cols[k, 0], cols[k, 1]):
                            if line[x] != value:
                                equal = False
                                break
                constant[r, i, k] = equal


def find_constant_lines(raw: Array, cross: Int64, cols: Int64, constant: Array, values: Array) -> None:
    """For each row and each part across, whether its pixels are all equal; gives up at the first difference.

    Args:
        raw: rows ``(C, R, A, X)``.
        cross, cols: int64 ``(n, 2)`` and ``(m, 2)``, the parts of the two last axes, from one position to another.
        constant: bool ``(R, n, m)``, written.
        values: of the type of `raw`, ``(R, C, n, m)``, written: the first pixel of each part.
    """
    _find_constant_lines(raw, cross, cols, constant, values)


@_jit
def _all_finite(bits):  # type: ignore[no-untyped-def]
    # the greatest exponent, in whole numbers: sums of floats would be one after the other
    greatest = np.int32(0)
    for x in range(bits.size):
        greatest = max(greatest, bits[x] & _EXPONENT)
    return greatest != _EXPONENT


def all_finite(values: Float32) -> bool:
    """Whether an array holds neither NaN nor infinity; see `reference.all_finite`."""
    return bool(_all_finite(values.reshape(-1).view(np.int32)))
