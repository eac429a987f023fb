"""What a piece of an object keeps: whole numbers that add, so that a measure does not depend on how the image was cut.

One row of int64 per piece.  Second moments exceed 64 bits for objects as large as a plane and take two columns each,
``high * 2**62 + low``.  A pair is two pixels of one object of which one is the other's neighbour in a direction: area
less pairs is how often a line in that direction enters the object, from which Crofton's formula makes its perimeter.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tilelab.arrays import Array, Float64, Int64
from tilelab.kernels.jit import jit
from tilelab.kernels.objects.runs import Runs, find_root

AREA, FIRST, CLASS = 0, 1, 2
LOW, HIGH = 3, 6
"""First and (exclusive) last pixel of the box on z, y, x."""
COORDINATES = 9
"""Sums of z, y, x over the pixels' indices."""
SQUARES = 12
"""Sums of zz, yy, xx, zy, zx, yx: high and low halves in turn."""
PAIRS = 24
"""Pairs along x; y with x - 1, x, x + 1; then z with the nine (y, x) around."""
COLUMNS = 37
SUM, LEAST, MOST = 0, 1, 2
"""Columns of intensities, float64; whole numbers are exact."""

MOST_PIXELS = 1_500_000
"""An axis may have so many: a run's second moment then stays below 2**62."""

_jit = jit()
_LIMB = 1 << 62


def empty_sums(pieces: int) -> Int64:
    """The sums of nothing, a row per piece."""
    table = np.zeros((pieces, COLUMNS), np.int64)
    table[:, [FIRST, LOW, LOW + 1, LOW + 2]] = np.iinfo(np.int64).max
    return table


def sum_runs(
    runs: Runs, pieces: int, origin: tuple[int, int], height: int, shape: tuple[int, int, int]
) -> tuple[Int64, Int64]:
    """Sum up the runs of a block.

    Args:
        runs: of the block, with their pieces.
        pieces: how many there are.
        origin: of the block (z, y); it is as wide as the image.
        height: rows per plane of the block.
        shape: of the image.

    Returns:
        The sums, int64 ``(pieces, COLUMNS)``, and pairs of pixels of two pieces that touch without being neighbours:
        rows of piece, piece, direction and number, which count if the pieces turn out to be one object.
    """
    table = empty_sums(pieces)
    _add_runs(*runs, origin[0], origin[1], height, shape[1], shape[2], table)
    depth = (len(runs.rows) - 1) // height
    apart = np.empty((1024, 4), np.int64)
    while True:
        pairs = table[:, PAIRS:].copy()
        count = _add_pairs(*runs, depth, height, pairs, apart)
        if count <= len(apart):
            table[:, PAIRS:] = pairs
            return table, apart[:count].copy()
        apart = np.empty((count, 4), np.int64)


def sum_intensities(runs: Runs, pieces: int, block: Array) -> Float64:
    """Sum, least and most of the pixels ``(z, y, x)`` under each piece, float64 ``(pieces, 3)``."""
    sums = np.zeros((pieces, 3))
    sums[:, LEAST], sums[:, MOST] = np.inf, -np.inf
    _add_intensities(*runs[:3], runs.owners, block.reshape(-1, block.shape[-1]), sums)
    return sums


def merge_sums(table: Int64, intensities: Float64, into: Int64) -> None:
    """Add every row to the row that `into` names, in place; rows that stay name themselves."""
    _merge(table, intensities, into)


def square(table: Int64, which: int) -> Float64:
    """A second moment (0 to 5: zz, yy, xx, zy, zx, yx) as float64; exact below 2**53."""
    high, low = table[:, SQUARES + 2 * which], table[:, SQUARES + 2 * which + 1]
    return high.astype(np.float64) * float(_LIMB) + low.astype(np.float64)


@_jit
def _add_long(row: Any, at: int, value: int) -> None:
    low = row[at + 1] + value - _LIMB  # both are below 2**62
    carry = low >= 0
    row[at] += carry
    row[at + 1] = low if carry else low + _LIMB


@_jit
def _add_runs(
    rows: Any, starts: Any, stops: Any, classes: Any, owners: Any,
    z0: int, y0: int, height: int, image_height: int, image_width: int, table: Any,
) -> None:  # fmt: skip
    flat = True
    for r in range(len(rows) - 1):
        z, y = z0 + r // height, y0 + r % height
        flat = z == 0
        before = (z * image_height + y) * image_width
        for i in range(rows[r], rows[r + 1]):
            row = table[owners[i]]
            a, b = np.int64(starts[i]), np.int64(stops[i])
            n = b - a
            x = n * (a + b - 1) // 2
            row[0] += n
            row[1] = min(row[1], before + a)
            row[2] = classes[i]
            row[3], row[4], row[5] = min(row[3], z), min(row[4], y), min(row[5], a)
            row[6], row[7], row[8] = max(row[6], z + 1), max(row[7], y + 1), max(row[8], b)
            row[9] += z * n
            row[10] += y * n
            row[11] += x
            # the sum of (a + i)**2 over the run
            xx = n * a * a + a * n * (n - 1) + (n - 1) * n * (2 * n - 1) // 6
            _add_long(row, 14, y * y * n)
            _add_long(row, 16, xx)
            _add_long(row, 22, y * x)
            if not flat:
                _add_long(row, 12, z * z * n)
                _add_long(row, 18, z * y * n)
                _add_long(row, 20, z * x)
            row[24] += n - 1


@_jit
def _add_pairs(
    rows: Any, starts: Any, stops: Any, classes: Any, owners: Any, depth: int, height: int, pairs: Any, apart: Any
) -> int:
    count = 0
    for z in range(depth):
        for y in range(height):
            r = z * height + y
            if y:
                count = pair_rows(
                    rows, starts, stops, classes, owners, r, rows, starts, stops, classes, owners, r - 1,
                    1, 1, pairs, apart, count,
                )  # fmt: skip
            if z:
                for dy in range(-1, 2):
                    if 0 <= y + dy < height:
                        count = pair_rows(
                            rows, starts, stops, classes, owners, r,
                            rows, starts, stops, classes, owners, r - height + dy,
                            7 + 3 * dy, 1, pairs, apart, count,
                        )  # fmt: skip
    return count


@_jit
def pair_rows(
    rows: Any, starts: Any, stops: Any, classes: Any, owners: Any, r: int,
    rows_: Any, starts_: Any, stops_: Any, classes_: Any, owners_: Any, s: int,
    first: int, sign: int, pairs: Any, apart: Any, count: int,
) -> int:  # fmt: skip
    """Count the pairs of a pixel in row `r` of one set of runs with one in row `s` of another.

    Those of one owner are added to its row of `pairs`, in the columns from `first` on for the steps -1, 0 and 1 along x
    (times `sign`); those of two are written to `apart` as far as it goes, and counted.
    """
    j = rows_[s]
    for i in range(rows[r], rows[r + 1]):
        while j < rows_[s + 1] and stops_[j] + 1 <= starts[i]:
            j += 1
        k = j
        while k < rows_[s + 1] and starts_[k] < stops[i] + 1:
            if classes[i] == classes_[k]:
                for dx in range(-1, 2):
                    n = min(stops[i] + dx, stops_[k]) - max(starts[i] + dx, starts_[k])
                    if n <= 0:
                        continue
                    column = first + 1 + sign * dx
                    if owners[i] == owners_[k]:
                        pairs[owners[i], column] += n
                    else:
                        if count < len(apart):
                            apart[count, 0], apart[count, 1] = owners[i], owners_[k]
                            apart[count, 2], apart[count, 3] = column, n
                        count += 1
            k += 1
    return count


@_jit
def _add_intensities(rows: Any, starts: Any, stops: Any, owners: Any, lines: Any, sums: Any) -> None:
    for r in range(len(rows) - 1):
        for i in range(rows[r], rows[r + 1]):
            total, least, most = 0.0, np.inf, -np.inf
            for x in range(starts[i], stops[i]):
                value = float(lines[r, x])
                total += value
                least, most = min(least, value), max(most, value)
            row = sums[owners[i]]
            row[0] += total
            row[1], row[2] = min(row[1], least), max(row[2], most)


@_jit
def _merge(table: Any, intensities: Any, into: Any) -> None:
    for i in range(len(into)):
        if into[i] == i:
            continue
        mine, row = table[i], table[into[i]]
        for c in range(COLUMNS):
            if c == 2:
                continue
            if c in (1, 3, 4, 5):
                row[c] = min(row[c], mine[c])
            elif c in (6, 7, 8):
                row[c] = max(row[c], mine[c])
            elif 12 <= c < 24:
                if c % 2 == 0:
                    row[c] += mine[c]
                    _add_long(row, c, mine[c + 1])
            else:
                row[c] += mine[c]
        if len(intensities):
            other, kept = intensities[i], intensities[into[i]]
            kept[0] += other[0]
            kept[1], kept[2] = min(kept[1], other[1]), max(kept[2], other[2])


@_jit
def resolve(parents: Any, handles: Any) -> Any:
    """The roots of `handles`."""
    roots = np.empty(len(handles), np.int64)
    for i in range(len(handles)):
        roots[i] = find_root(parents, handles[i])
    return roots
