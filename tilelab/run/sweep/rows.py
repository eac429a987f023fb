"""Raw rows on their way through a sweep."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from tilelab.arrays import Array
from tilelab.run.sweep.flow import Channel


@dataclass
class _Rows:
    start: int
    raw: Array = field(repr=False)


class _Band:
    """A moving window of raw rows."""

    def __init__(self, rows: Channel[_Rows]) -> None:
        self._rows: Iterator[_Rows] = iter(rows)
        self._buffer: Array | None = None
        self.start = 0
        self.stop = 0

    def move(self, start: int, stop: int) -> None:
        """Forget rows before `start` and hold those up to `stop`."""
        pieces = [] if self._buffer is None else [self._buffer[:, start - self.start :]]
        while self.stop < stop:
            block = next(self._rows)
            pieces.append(block.raw)
            self.stop = block.start + block.raw.shape[1]
        self.start = start
        # one contiguous array, whatever the reader gave: the kernels are compiled for that
        self._buffer = np.ascontiguousarray(np.concatenate(pieces, axis=1))

    @property
    def raw(self) -> Array:
        """The rows held, ``(C, rows, cross, x)``."""
        assert self._buffer is not None  # noqa: S101 - move() comes first
        return self._buffer
