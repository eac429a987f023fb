"""What a worker asks and says while a unit is swept: is it still wanted, is the output still there, how far is it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from tilelab.errors import OutputError, TilelabError
from tilelab.io.results.ome_zarr import OmeZarrSink
from tilelab.io.results.sink import Finished, Stored, StoringWriter
from tilelab.io.zarr.sharded_array import output_error
from tilelab.run.cluster.order import Errand


class Unwanted(Exception):
    """The unit was taken back, or its worker is being closed."""


def cause_of(error: BaseException) -> str:
    """What went wrong, as the client shows it: an error of ours in its own words, any other with its type."""
    return str(error) if isinstance(error, TilelabError) else f"{type(error).__name__}: {error}"


class Reporter:
    """Tells how a unit advances, not more often than agreed.

    writer: of the unit, once there is one.
    stored: all that it has on disk, ready to be sent.
    tiles: inferred so far.
    """

    def __init__(
        self, seconds: float, errand: Errand, is_wanted: Callable[[], bool], tell: Callable[..., None]
    ) -> None:
        self._seconds, self._is_wanted, self._tell = seconds, is_wanted, tell
        self.tiles = 0
        self._position, self._eager = errand.start, errand.eager
        self.writer: StoringWriter | None = None
        self.stored: Any = None
        self._last = time.monotonic()
        self._lock = threading.Lock()

    def progress(self, tiles: int) -> None:
        """So many more tiles; called from the blending thread."""
        if not self._is_wanted():
            raise Unwanted
        self.tiles += tiles
        self._report()

    def durable(self, position: int) -> None:
        """Rows up to `position` are on disk; called from the writing thread."""
        if self.writer is not None:
            self.stored = msgspec.to_builtins(self.writer.stored)  # now: another thread may ask at any time
        self._position = position  # last: no position is told without what is stored up to it
        self._report(at_once=self._eager)

    def _report(self, *, at_once: bool = False) -> None:
        with self._lock:
            now = time.monotonic()
            if at_once or now - self._last >= self._seconds:
                self._last = now
                self._tell("report", tiles=self.tiles, position=self._position, stored=self.stored)


class WhileThere:
    """A unit's writer that stops when the result was finished or removed behind its back.

    A worker that was given up on, because it hung or lost the network, may wake up long after.
    """

    def __init__(self, sink: OmeZarrSink, writer: StoringWriter) -> None:
        self._description = sink.description
        self._pause = 1.0 if self._description.waits else 0.0  # asking a store takes time
        self._asked = -1.0
        self._writer = writer

    @property
    def stored(self) -> Stored:
        """See `StoringWriter.stored`."""
        return self._writer.stored

    def write(self, rows: Finished, threads: int = 1) -> int:
        """See `UnitWriter.write`."""
        if time.monotonic() - self._asked >= self._pause and not self._is_there():
            raise OutputError(f"{self._description.parent} was finished or removed while this worker was at it")
        return self._writer.write(rows, threads)

    def _is_there(self) -> bool:
        try:
            return self._description.is_file()
        except OSError as error:
            raise output_error(self._description, error) from None
        finally:
            self._asked = time.monotonic()

    def close(self) -> None:
        """See `UnitWriter.close`."""
        self._writer.close()
