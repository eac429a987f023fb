"""Runs of one class in the rows of a block, and which of them belong together; whole numbers only.

A run is ``start <= x < stop`` of one class other than 0 in one row.  Runs stand in raster order; row r of a block of
`height` rows per plane is ``(z, y) = divmod(r, height)`` and has the runs ``rows[r]`` to ``rows[r + 1]``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tilelab.arrays import Array, Int32, Int64, UInt8
from tilelab.kernels.jit import jit

_jit = jit()


class Runs(NamedTuple):
    """Runs of some rows.

    rows: int64 ``(rows + 1,)``, the first run of each row.
    starts, stops: int32 ``(runs,)``.
    classes: ``(runs,)``, whole numbers of the type of the block.
    owners: int64 ``(runs,)``, what each belongs to.
    """

    rows: Int64
    starts: Int32
    stops: Int32
    classes: Array
    owners: Int64

    def take(self, first: int, count: int, step: int = 1) -> Runs:
        """The runs of `count` rows from row `first` on, every `step`-th; copied."""
        at = first + step * np.arange(count)
        rows = np.concatenate([[0], np.cumsum(self.rows[at + 1] - self.rows[at])])
        if step == 1:
            chosen: Any = slice(int(self.rows[first]), int(self.rows[first + count]))
        else:
            chosen = np.repeat(self.rows[at] - rows[:-1], np.diff(rows)) + np.arange(rows[-1])
        return Runs(rows, *(values[chosen].copy() for values in self[1:]))


def stack_runs(parts: list[Runs]) -> Runs:
    """The rows of all `parts`, one after the other."""
    offsets = np.cumsum([0, *(part.rows[-1] for part in parts)])
    rows = [part.rows[1:] + offset for part, offset in zip(parts, offsets, strict=False)]
    return Runs(
        np.concatenate([np.zeros(1, np.int64), *rows]),
        *(np.concatenate([part[i] for part in parts]) for i in range(1, 5)),
    )


def find_pieces(block: Array, connectivity: int) -> tuple[Runs, int]:
    """The connected pieces of each class but 0 in a block.

    Args:
        block: classes ``(z, y, x)``, C-contiguous; whole numbers of any type.
        connectivity: in how many axes neighbours may differ: 1 to 3.

    Returns:
        The runs with their pieces as owners, numbered from 0 in raster order, and the number of pieces.
    """
    depth, height, width = block.shape
    lines = block.reshape(depth * height, width)
    rows = np.zeros(len(lines) + 1, np.int64)
    _count_runs(lines, rows)
    total = int(rows[-1])
    runs = Runs(
        rows,
        np.empty(total, np.int32),
        np.empty(total, np.int32),
        np.empty(total, block.dtype),
        np.empty(total, np.int64),
    )
    _cut_runs(lines, rows, runs.starts, runs.stops, runs.classes)
    pieces = _unite(*runs, depth, height, connectivity)
    return runs, int(pieces)


def paint_runs(runs: Runs, values: Any, out: Any) -> None:
    """Fill every run with the value of its owner, and all else with 0.

    Args:
        runs: of a block.
        values: ``(owners,)``.
        out: ``(z, y, x)`` of the same type, a view of the block's extent.
    """
    _paint(runs.rows, runs.starts, runs.stops, runs.owners, values, out)


@_jit
def _count_runs(lines: Any, rows: Any) -> None:
    for r in range(lines.shape[0]):
        line = lines[r]
        count = np.int64(line[0] != 0)
        for x in range(1, len(line)):
            count += (line[x] != line[x - 1]) & (line[x] != 0)
        rows[r + 1] = rows[r] + count


@_jit
def _cut_runs(lines: Any, rows: Any, starts: Any, stops: Any, classes: Any) -> None:
    for r in range(lines.shape[0]):
        if rows[r] == rows[r + 1]:
            continue
        line = lines[r]
        width = len(line)
        i = rows[r]
        now = line[0] - line[0]
        for x in range(width):
            if line[x] == now:
                continue
            if now:
                stops[i] = x
                i += 1
            now = line[x]
            if now:
                starts[i] = x
                classes[i] = now
        if now:
            stops[i] = width


@_jit
def find_root(parents: Any, i: int) -> int:
    """The root of `i`; shortens the way to it."""
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = parents[i]
    return i


@_jit
def join(parents: Any, i: int, j: int) -> None:
    """Make two one; the smaller root stays."""
    i, j = find_root(parents, i), find_root(parents, j)
    if i < j:
        parents[j] = i
    elif j < i:
        parents[i] = j


@_jit
def _unite(rows: Any, starts: Any, stops: Any, classes: Any, owners: Any, depth: int, height: int, near: int) -> int:
    """Set the owner of each run to its piece; returns how many there are."""
    for i in range(len(owners)):
        owners[i] = i
    for z in range(depth):
        for y in range(height):
            r = z * height + y
            for dz in range(-1 if z else 0, 1):
                for dy in range(-1, 2 if dz else 0):
                    beside = abs(dz) + abs(dy)
                    if beside > near or not 0 <= y + dy < height:
                        continue
                    reach = beside < near
                    s = (z + dz) * height + y + dy
                    j = rows[s]
                    for i in range(rows[r], rows[r + 1]):
                        while j < rows[s + 1] and stops[j] + reach <= starts[i]:
                            j += 1
                        k = j
                        while k < rows[s + 1] and starts[k] < stops[i] + reach:
                            if classes[i] == classes[k]:
                                join(owners, i, k)
                            k += 1
    count = 0
    for i in range(len(owners)):  # parents stand before their children
        if owners[i] == i:
            owners[i] = count
            count += 1
        else:
            owners[i] = owners[owners[i]]
    return count


@_jit
def _paint(rows: Any, starts: Any, stops: Any, owners: Any, values: Any, out: Any) -> None:
    for r in range(len(rows) - 1):
        line = out[r // out.shape[1], r % out.shape[1]]
        at = 0
        for i in range(rows[r], rows[r + 1]):
            line[at : starts[i]] = 0
            line[starts[i] : stops[i]] = values[owners[i]]
            at = stops[i]
        line[at:] = 0


@_jit
def join_rows(
    rows: Any, starts: Any, stops: Any, classes: Any, owners: Any, r: int,
    rows_: Any, starts_: Any, stops_: Any, classes_: Any, owners_: Any, s: int, reach: int, parents: Any,
) -> None:  # fmt: skip
    """Join the owners in row `r` of one set of runs with those in row `s` of another that they touch."""
    j = rows_[s]
    for i in range(rows[r], rows[r + 1]):
        while j < rows_[s + 1] and stops_[j] + reach <= starts[i]:
            j += 1
        k = j
        while k < rows_[s + 1] and starts_[k] < stops[i] + reach:
            if classes[i] == classes_[k]:
                join(parents, owners[i], owners_[k])
            k += 1


def reference_label(block: UInt8, connectivity: int) -> Int64:
    """Number the objects of a whole image from 1 in raster order, pixel by pixel; int64 of the same shape."""
    numbers = np.zeros(block.shape, np.int64)
    steps = [
        np.array(s) - 1 for s in np.ndindex((3,) * block.ndim) if 0 < np.abs(np.array(s) - 1).sum() <= connectivity
    ]
    count = 0
    for at in np.ndindex(block.shape):
        if not block[at] or numbers[at]:
            continue
        count += 1
        todo = [np.array(at)]
        numbers[at] = count
        while todo:
            here = todo.pop()
            for step in steps:
                there = tuple(int(i) for i in here + step)
                inside = all(0 <= i < n for i, n in zip(there, block.shape, strict=True))
                if inside and block[there] == block[at] and not numbers[there]:
                    numbers[there] = count
                    todo.append(np.array(there))
    return numbers
