r"""The strip: tiles are blended and finished one by one; what a later tile will touch is kept, the rest leaves at once.

    start   known        done   stop        of one tile, along each axis of the unit
      |-------|------------|------|
      |earlier|            | later|         earlier tiles have said their part up to `known`,
      |tiles  |            | tiles|         nobody will say more up to `done`

A pixel waits in the first of three places that later tiles see: the columns beyond `done` for the next tile along x,
the lines beyond it for the tiles of the next lines, the rows beyond it for the next row of tiles.  All else of a tile
is in memory for a few rows at a time, which stay in a core's cache while they are blended and finished.  Sums begin
with zero and grow in raster order over tiles, as on a canvas of the whole width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from tilelab.arrays import Float32
from tilelab.engines.base import Engine
from tilelab.geometry import AxisTiling
from tilelab.kernels import cpu as kernels
from tilelab.run.sweep.shares import make_shares
from tilelab.run.sweep.unit import UnitSweep

Range = tuple[int, int]


class Piece(NamedTuple):
    """Pixels that are done: ranges of the image, whose sums are the first rows, lines and columns of `sums`.

    finite: whether none of the sums is NaN or infinite.
    """

    rows: Range
    cross: Range
    cols: Range
    sums: Float32
    finite: bool


@dataclass(frozen=True, slots=True)
class Reach:
    """What one tile has to do with its unit along one axis, in pixels of the image.

    position: of the tile's first pixel.
    start, stop: its pixels in the unit.
    known: up to where earlier tiles have said their part.
    done: up to where no later one has one.
    """

    position: int
    start: int
    known: int
    done: int
    stop: int

    def counted(self, origin: int) -> kernels.Reach:
        """As the kernel counts, in a unit that begins at `origin`."""
        start = self.start
        return start - self.position, self.known - start, self.done - start, self.stop - start, start - origin


def reaches(axis: AxisTiling, tiles: range, start: int, stop: int) -> dict[int, Reach]:
    """Of the `tiles` that cover ``start:stop``, by their numbers; one begins where the one before it is done."""
    inside = [(max(axis.position(i), start), min(axis.position(i) + axis.tile, stop)) for i in tiles]
    known = [start, *(end for _, end in inside[:-1])]
    done = [*(after for _, (after, _) in pairwise(inside)), stop]
    return {
        i: Reach(axis.position(i), begin, before, upto, end)
        for i, (begin, end), before, upto in zip(tiles, inside, known, done, strict=True)
    }


class Strip:
    """The sums of one unit's tiles: `add` them in raster order.

    along: what each row of tiles reaches, by its number.
    """

    def __init__(self, unit: UnitSweep, engine: Engine, sums: Float32, held: tuple[Float32, Float32, Float32]) -> None:
        """Begin in arrays of the host's plan: sums of some rows of a tile; rows, lines and columns that wait."""
        self.along = reaches(unit.sweep, unit.rows, unit.start, unit.stop)
        self._cross = reaches(unit.cross, unit.cross_tiles, *unit.cross_range)
        self._cols = reaches(unit.cols, unit.col_tiles, *unit.col_range)
        self._origin = unit.cross_range[0], unit.col_range[0]
        self._sums, self._held = sums, held
        self._shares = make_shares(unit, engine.spec)
        self._row, self._along = -1, [part.sweep(unit.rows[0]) for part in self._shares]

    def add(self, j: int, c: int, x: int, logits: Float32 | None) -> Iterator[Piece]:
        """Add the ``(K, *tile)`` of a tile, or nothing; gives what is done with it, a few rows at a time."""
        if j != self._row:
            self._row, self._along = j, [part.sweep(j) for part in self._shares]
        reach, cross, cols = self.along[j], self._cross[c], self._cols[x]
        counted = reach.counted(0), cross.counted(self._origin[0]), cols.counted(self._origin[1])
        some = np.empty((0, 0, 0, 0), np.float32) if logits is None else logits
        whole = cross.start < cross.done and cols.start < cols.done
        for first in range(reach.start, reach.stop, self._sums.shape[1]):
            last = min(first + self._sums.shape[1], reach.stop)
            finite = True
            for part, along in zip(self._shares, self._along, strict=True):
                rows, lines, columns = self._held
                finite &= kernels.blend(
                    self._sums[part.channels],
                    some[part.channels],
                    (along, part.cross[c], part.cols[x]),
                    (rows[part.channels], lines[part.channels], columns[part.channels]),
                    (first - reach.start, last - reach.start),
                    *counted,
                )
            done = min(last, reach.done)
            if whole and first < done:
                yield Piece((first, done), (cross.start, cross.done), (cols.start, cols.done), self._sums, finite)
