"""The kernels on the CPU, compiled by Numba: same arguments and meaning as in `tilelab.kernels.reference`.

They release the GIL, and every pixel is computed in one order, so rows shared among threads have the same bytes.
Inner loops run over x alone and hold float32 only, which lets LLVM vectorise them; `fastmath` stays off, so nothing
is reordered or fused.
"""

from __future__ import annotations

import numpy as np

from tilelab.arrays import Array, Float32, Int64, UInt8
from tilelab.kernels.jit import jit
from tilelab.kernels.reference import SIGMOID, SOFTMAX, Window, whole_window
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

_EXPONENT = np.int32(0x7F800000)  # all bits set: NaN or infinity

Reach = tuple[int, int, int, int, int]
"""Of a tile along an axis: its pixels before the unit; up to where earlier tiles have said their part, up to where no
later one will, and how many pixels it has there, all counted from its first in the unit; and where that lies in it."""

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
def _all_finite(bits):  # type: ignore[no-untyped-def]
    # the greatest exponent, in whole numbers: sums of floats would be one after the other
    greatest = np.int32(0)
    for x in range(bits.size):
        greatest = max(greatest, bits[x] & _EXPONENT)
    return greatest != _EXPONENT


@_jit
def _blend(sums, logits, shares, held, first, last, along, across, aside):  # type: ignore[no-untyped-def]
    share_s, share_a, share_x = shares
    rows, lines, columns = held
    skip_s, known_s, done_s, _, _ = along
    skip_a, known_a, done_a, height, at_a = across
    skip_x, known_x, done_x, width, at_x = aside
    finite = True
    for k in range(sums.shape[0]):
        for s in range(first, last):
            for a in range(height):
                line = sums[k, s - first, a, :width]
                early, fresh = line[:known_x], line[known_x:]
                said = columns[k, s, a, :known_x]  # by earlier tiles
                if a < known_a:
                    told = lines[k, s, a, at_x + known_x : at_x + width]
                elif s < known_s:
                    told = rows[k, s, at_a + a, at_x + known_x : at_x + width]
                else:
                    told = fresh[:0]
                if logits.size > 0:
                    weight = share_s[skip_s + s] * share_a[skip_a + a]
                    values = logits[k, skip_s + s, skip_a + a, skip_x : skip_x + width]
                    parts = share_x[skip_x : skip_x + width]
                    _add(said, values[:known_x], weight, parts[:known_x], early)
                    values, parts = values[known_x:], parts[known_x:]
                    if told.size > 0:
                        _add(told, values, weight, parts, fresh)
                    else:
                        for x in range(fresh.size):
                            fresh[x] = ZERO + values[x] * (weight * parts[x])
                else:
                    _copy(said, early)
                    if told.size > 0:
                        _copy(told, fresh)
                    else:
                        for x in range(fresh.size):
                            fresh[x] = ZERO
                # what later ones will touch
                _copy(line[done_x:], columns[k, s, a, : width - done_x])
                found = line[:done_x]
                if a >= done_a:
                    _copy(found, lines[k, s, a - done_a, at_x : at_x + done_x])
                elif s >= done_s:
                    _copy(found, rows[k, s - done_s, at_a + a, at_x : at_x + done_x])
                else:
                    finite &= _all_finite(found.view(np.int32))
    return finite


@_jit
def _add(before, values, weight, parts, after):  # type: ignore[no-untyped-def]
    for x in range(after.size):
        after[x] = before[x] + values[x] * (weight * parts[x])


@_jit
def _copy(source, target):  # type: ignore[no-untyped-def]
    for x in range(target.size):
        target[x] = source[x]


def blend(
    sums: Float32,
    logits: Float32,
    shares: tuple[Float32, Float32, Float32],
    held: tuple[Float32, Float32, Float32],
    rows: tuple[int, int],
    along: Reach,
    across: Reach,
    aside: Reach,
) -> bool:
    """Some rows of a tile and what earlier tiles said of them; what later ones will touch is held for them.

    Args:
        sums: float32 ``(K, R, A, X)``, written: the sums of these rows, lines and columns of the tile.
        logits: float32 ``(K, *tile)``; empty where the tile says nothing.
        shares: float32, the tile's share along each axis.
        held: float32 ``(K, ., A, X)`` of the unit, rows for the next row of tiles; ``(K, tile, ., X)``, lines for the
            next tiles across; ``(K, *tile[:2], .)``, columns for the next tile.  Read, then written.
        rows: from which to which, counted from the tile's first in the unit.
        along, across, aside: of each axis.

    Returns:
        Whether all sums that are done are finite.
    """
    return bool(_blend(sums, logits, shares, held, *rows, along, across, aside))


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
def _softmax(canvas, slot, a, x0, x1, best, total, channels, place, probabilities, sharpness):  # type: ignore[no-untyped-def]
    i, at, first, last = place
    if canvas.shape[0] == 2:  # of the likelier one exp is 1
        line, other = canvas[0, slot, a, x0:x1], canvas[1, slot, a, x0:x1]
        for x in range(line.size):
            e = _exp_negative(-abs(line[x] - other[x]) * sharpness)
            likelier = other[x] > line[x]
            total[x] = ONE + e
            line[x] = e if likelier else ONE
            other[x] = ONE if likelier else e
    elif canvas.shape[0] == 3:  # two exps instead of three
        zero, one, two = canvas[0, slot, a, x0:x1], canvas[1, slot, a, x0:x1], canvas[2, slot, a, x0:x1]
        for x in range(zero.size):
            most, z, o, t = best[x], zero[x], one[x], two[x]
            first_is, last_is = z == most, (z != most) & (o != most)
            e = _exp_negative(((o if first_is else z) - most) * sharpness)
            f = _exp_negative(((o if last_is else t) - most) * sharpness)
            z = ONE if first_is else e
            o = e if first_is else (f if last_is else ONE)
            t = ONE if last_is else f
            zero[x], one[x], two[x] = z, o, t
            total[x] = z + o + t
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
        out = probabilities[c, i, at, first:last]
        for x in range(line.size):
            out[x] = np.uint8(np.int32(line[x] * total[x] + HALF))


@_jit
def _sigmoid(canvas, slot, a, x0, x1, total, channels, place, probabilities, sharpness):  # type: ignore[no-untyped-def]
    i, at, first, last = place
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
        out = probabilities[c, i, at, first:last]
        if channels[c] == 0:
            for x in range(out.size):
                out[x] = np.uint8(np.int32((ONE - total[x]) * BYTE + HALF))
        else:
            line = canvas[channels[c] - 1, slot, a, x0:x1]
            for x in range(out.size):
                out[x] = np.uint8(np.int32(line[x] * BYTE + HALF))


@_jit
def _finish(canvas, row, into, activation, labels, probabilities, channels, logits, sharpness):  # type: ignore[no-untyped-def]
    classes, ring = canvas.shape[:2]
    (r0, r1), (a0, a1), (c0, c1) = into
    width = c1 - c0
    best_, total_ = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    for i in range(r0, r1):
        slot = (row + i - r0) % ring
        for a in range(a1 - a0):
            for x0 in range(0, width, _BLOCK):
                x1 = min(x0 + _BLOCK, width)
                place = i, a0 + a, c0 + x0, c0 + x1
                best, total, label = best_[: x1 - x0], total_[: x1 - x0], labels[i, a0 + a, c0 + x0 : c0 + x1]
                if logits.size > 0:
                    for k in range(classes):
                        line, out = canvas[k, slot, a, x0:x1], logits[k, i, a0 + a, c0 + x0 : c0 + x1]
                        for x in range(line.size):
                            out[x] = line[x]
                # argmax; with sigmoid the background is an output that is always 0
                line = canvas[0, slot, a, x0:x1]
                for x in range(line.size):
                    best[x] = line[x] if activation == SOFTMAX else ZERO
                    label[x] = 0
                _classify(canvas, slot, a, x0, x1, 0 if activation == SOFTMAX else 1, best, label)
                if channels.size > 0 and activation == SOFTMAX:
                    _softmax(canvas, slot, a, x0, x1, best, total, channels, place, probabilities, sharpness)
                elif channels.size > 0:
                    _sigmoid(canvas, slot, a, x0, x1, total, channels, place, probabilities, sharpness)
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
    into: Window | None = None,
) -> None:
    """Turn finished rows into bytes and clear them; see `reference.finish`."""
    place = whole_window(labels) if into is None else into
    _finish(canvas, row, place, activation, labels, probabilities, channels, logits, np.float32(sharpness))


@_jit
def _find_over(canvas, row, limits, labels):  # type: ignore[no-untyped-def]
    classes, ring = canvas.shape[:2]
    rows, lines, width = labels.shape
    best = np.empty(width, np.float32)
    for i in range(rows):
        slot = (row + i) % ring
        for a in range(lines):
            label = labels[i, a]
            for x in range(width):
                best[x] = ZERO
                label[x] = 0
            for k in range(classes):
                line, limit, code = canvas[k, slot, a, :width], limits[k], np.uint8(k + 1)
                for x in range(width):
                    over = line[x] - limit
                    higher = over > best[x]
                    best[x] = over if higher else best[x]
                    label[x] = code if higher else label[x]


def find_over(canvas: Float32, row: int, limits: Float32, labels: UInt8) -> None:
    """The class whose logit exceeds its limit most, 0 where none does; see `reference.find_over`."""
    _find_over(canvas, row, limits, labels)


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


def all_finite(values: Float32) -> bool:
    """Whether an array holds neither NaN nor infinity; see `reference.all_finite`."""
    return bool(_all_finite(values.reshape(-1).view(np.int32)))
