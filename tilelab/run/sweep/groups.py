"""Finished rows of a unit, as wide as it is: gathered from pieces, sent to the sink in groups of fixed size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tilelab.arrays import Array, Bool
from tilelab.engines.base import Engine
from tilelab.run.sweep.finishing import FinishedRows, finish_rows, mask_rows, shape_rows
from tilelab.run.sweep.finite import not_finite
from tilelab.run.sweep.flow import Channel, Flow
from tilelab.run.sweep.strip import Piece
from tilelab.run.sweep.unit import UnitSweep


@dataclass
class Group:
    """Rows ``start:stop`` of the image: flat arrays by kind, of which they fill a part."""

    arrays: dict[str, Array]
    rows: FinishedRows
    start: int
    stop: int


class Groups:
    """All groups of a unit: `put` pieces, `send` what is whole; who takes it from `whole` gives it back by `idle`.

    A row of tiles is in several groups at once, which wait for its last tile.
    """

    def __init__(self, unit: UnitSweep, engine: Engine, flow: Flow, groups: list[dict[str, Array]]) -> None:
        """With the flat arrays by kind of every group."""
        self.idle: Channel[dict[str, Array]] = flow.pool(groups)
        self.whole: Channel[Group] = flow.channel(len(groups))
        self._unit, self._engine = unit, engine
        self._plane = tuple(b - a for a, b in (unit.cross_range, unit.col_range))
        self._most = groups[0]["labels"].size // (self._plane[0] * self._plane[1])
        self._filling: list[Group] = []
        self._done = unit.start

    @property
    def waited(self) -> float:
        """Seconds that pieces waited for rows to be written."""
        return self.idle.waited + self.whole.blocked

    def put(self, piece: Piece, upto: int) -> None:
        """Finish a piece, of a row of tiles with which all rows before `upto` will be done.

        Raises:
            EngineError: a logit that is wanted is NaN or infinite.
        """
        unit, job = self._unit, self._unit.job
        (first, last), cross, cols = piece.rows, piece.cross, piece.cols
        if job.finite and not piece.finite:
            self._check(piece)
        lines, columns = (
            (part[0] - whole[0], part[1] - whole[0])
            for part, whole in ((cross, unit.cross_range), (cols, unit.col_range))
        )
        for group in self._take(last, upto):
            start, stop = max(first, group.start), min(last, group.stop)
            if start < stop:
                into = (start - group.start, stop - group.start), lines, columns
                box = job.frame.box((start, stop), cross, cols)
                finish_rows(job, self._engine, piece.sums, start - first, group.rows, into, box)

    def _check(self, piece: Piece) -> None:
        """Raise `EngineError` where a logit that is wanted is NaN or infinite."""
        job, box = self._unit.job, self._unit.job.frame.box(piece.rows, piece.cross, piece.cols)
        rows, lines, columns = (b - a for a, b in (piece.rows, piece.cross, piece.cols))
        bad: Bool = np.logical_not(np.isfinite(piece.sums[:, :rows, :lines, :columns]).all(axis=0))
        if job.mask is not None:
            bad &= job.frame.turn(job.mask.read(box))[0] != 0
        if bad.any():
            raise not_finite(self._engine, box, job.frame.turn(bad[None])[0])

    def send(self) -> None:
        """All groups that were begun are whole."""
        job, unit = self._unit.job, self._unit
        for group in self._filling:
            if job.mask is not None:
                box = job.frame.box((group.start, group.stop), unit.cross_range, unit.col_range)
                mask_rows(group.rows, job.frame.turn(job.mask.read(box))[0] != 0)
            self.whole.put(group)
        self._filling = []

    def _take(self, last: int, upto: int) -> list[Group]:
        """The groups of a row of tiles, as far as row `last`."""
        while self._done < last:
            arrays = self.idle.take()
            start, self._done = self._done, min(upto, self._done + self._most)
            rows = shape_rows(self._unit.job, self._engine.spec, arrays, (self._done - start, *self._plane))
            self._filling.append(Group(arrays, rows, start, self._done))
        return self._filling
