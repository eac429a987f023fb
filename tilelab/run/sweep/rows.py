"""Raw rows on their way through a sweep."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tilelab.arrays import Array
from tilelab.run.sweep.flow import Channel


@dataclass
class RawRows:
    """Rows of the image from `start` on, ``(C, rows, cross, x)``."""

    start: int
    raw: Array = field(repr=False)


class Band:
    """A moving window of raw rows.

    raw: ``(C, R, cross, x)``, C-contiguous: row `r` of the image, if it is held, is number ``r - start``.
    start, stop: the rows held.
    """

    def __init__(self, rows: Channel[RawRows], raw: Array) -> None:
        """Take `rows` in order into `raw`."""
        self.raw = raw
        self.start = self.stop = -1
        self._rows: Iterator[RawRows] = iter(rows)
        self._rest: Array | None = None

    def move(self, start: int, stop: int) -> None:
        """Forget rows before `start` and hold those up to `stop`; rows beyond stay where they are."""
        if self.stop < 0:
            self.start = self.stop = start
        self._shift(start - self.start)
        self.start = start
        while self.stop < stop:
            rest = next(self._rows).raw if self._rest is None else self._rest
            held = self.stop - self.start
            count = min(rest.shape[1], stop - self.stop)
            self.raw[:, held : held + count] = rest[:, :count]
            self.stop += count
            self._rest = rest[:, count:] if count < rest.shape[1] else None

    def _shift(self, rows: int) -> None:
        """Move the rows held to the front, in pieces that do not overlap themselves: NumPy would copy them first."""
        held = self.stop - self.start
        for at in range(rows, held, max(1, rows)) if rows else ():
            count = min(rows, held - at)
            self.raw[:, at - rows : at - rows + count] = self.raw[:, at : at + count]
