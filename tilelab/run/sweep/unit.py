"""One unit on its way: which tiles cover it, what they see, and the rows that are read for them."""

from __future__ import annotations

import abc
from collections.abc import Callable

import numpy as np

from tilelab.engines.base import Engine
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.results.sink import UnitWriter
from tilelab.kernels import cpu as kernels
from tilelab.run.plan.buffers import block_rows, seen_range
from tilelab.run.sweep.flow import Channel
from tilelab.run.sweep.job import Job, Stalls
from tilelab.run.sweep.rows import RawRows


class UnitSweep(abc.ABC):
    """The sweep of one unit: `box` of the image, from position `start` on the sweep axis to the box's end.

    box: of the whole unit, which is what the buffers are made for.
    sweep, cross, cols: the tiles of each axis, in that order.
    start, stop, cross_range, col_range: pixels of the result.
    rows, cross_tiles, col_tiles: the tiles that cover them.
    cross_seen, cols_seen: the raw pixels that these tiles see.
    """

    def __init__(self, job: Job, engine: Engine, box: Box, start: int | None = None) -> None:
        self.job, self.engine, self.box = job, engine, box
        frame = job.frame
        self.sweep, self.cross, self.cols = frame.sweep_first(job.lattice.axes)
        ranges = frame.sweep_first(tuple(zip(box.start, box.stop, strict=True)))
        (self.start, self.stop), self.cross_range, self.col_range = ranges
        if start is not None:
            self.start = start
        self.rows = self.sweep.covering(self.start, self.stop)
        self.cross_tiles = self.cross.covering(*self.cross_range)
        self.col_tiles = self.cols.covering(*self.col_range)
        self.cross_seen = seen_range(self.cross, self.cross_tiles)
        self.cols_seen = seen_range(self.cols, self.col_tiles)

    def __len__(self) -> int:
        """The number of tiles."""
        return len(self.rows) * len(self.cross_tiles) * len(self.col_tiles)

    @abc.abstractmethod
    def run(
        self,
        writer: UnitWriter,
        durable: Callable[[int], None] = lambda position: None,  # noqa: ARG005
        progress: Callable[[int], None] = lambda tiles: None,  # noqa: ARG005
    ) -> Stalls:
        """Sweep to the end.

        Args:
            writer: takes the finished rows.
            durable: called with the sweep position up to which everything is on disk.
            progress: called with the number of tiles just blended.

        Raises:
            InputError, OutputError, EngineError: whatever a stage met; all threads have stopped by then.
        """

    def _read(self, rows: Channel[RawRows]) -> None:
        """Raw rows in order, cut at the source's chunks, so that each chunk is decoded once."""
        image, frame = self.job.image, self.job.frame
        first, stop = seen_range(self.sweep, self.rows)
        block = block_rows(self.sweep.step, frame.sweep_first(image.chunks)[0])
        phase = frame.sweep_first(image.chunk_phase)[0]
        while first < stop:
            last = min(stop, ((first + phase) // block + 1) * block - phase)
            box = frame.box((first, last), self.cross_seen, self.cols_seen)
            raw = image.read(box)
            if raw.dtype.kind == "f" and not kernels.all_finite(np.ascontiguousarray(raw)):
                raise InputError(
                    f"{image.image.uri}: pixels in {box} are NaN or infinite: give a value for them with --nan VALUE"
                )
            rows.put(RawRows(first, frame.turn(raw)))
            first = last
        rows.close()

    def is_wanted(self, j: int, c: int, x: int) -> bool:
        """Whether the mask has a pixel in this tile."""
        if self.job.mask is None:
            return True
        axes = (self.sweep, self.cross, self.cols)
        ranges = [
            (axis.position(i), min(axis.size, axis.position(i) + axis.tile))
            for axis, i in zip(axes, (j, c, x), strict=True)
        ]
        return bool(self.job.mask.read(self.job.frame.box(ranges[0], ranges[1], ranges[2])).any())
