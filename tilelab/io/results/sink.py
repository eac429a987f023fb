"""What the sweep hands over, and what takes it."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import msgspec

from tilelab.arrays import Float32, UInt8
from tilelab.geometry import Box
from tilelab.io.storage.place import Address, Place, as_place
from tilelab.io.zarr.census import Census


def partial_path(path: Address) -> Place:
    """Where the result `path` is while it is unfinished; stores cannot rename, so a remote one is in its place."""
    final = as_place(path)
    return final.with_name(final.name + ".partial") if final.renames else final


class Stored(msgspec.Struct, frozen=True):
    """Rows of a unit that are on disk, at all levels that complete with them.

    Attributes:
        start, stop: sweep positions.
        census: of their shards.
    """

    start: int
    stop: int
    census: Census


class Finished(NamedTuple):
    """Finished rows of a unit, in image axis order; what was not asked for is None.

    labels: uint8 ``(z, y, x)``.
    probabilities: uint8 ``(P, z, y, x)``, ``round(255 p)``.
    logits: float32 ``(K, z, y, x)``.
    maps: by name, float32 ``(n, z, y, x)``.
    """

    labels: UInt8 | None
    probabilities: UInt8 | None
    logits: Float32 | None
    maps: dict[str, Float32] | None = None


class UnitWriter(Protocol):
    """Takes the rows of one unit in sweep order."""

    def write(self, rows: Finished, threads: int = 1) -> int:
        """Append `rows` (full unit extent on the cross axes, any number of rows on the sweep axis).

        The arrays are the caller's and may be reused after the call.  As many `threads` may compress them as have
        nothing else to do now; the bytes do not depend on it.  Returns the position on the sweep axis, in image
        coordinates, up to which all levels are durably on disk: a multiple of the grain, or the unit's end.

        Raises:
            OutputError: the disk is full or the store is unwritable.
        """
        ...

    def close(self) -> None:
        """Forget unfinished rows and stop threads."""
        ...


class StoringWriter(UnitWriter, Protocol):
    """A writer whose rows are kept on a disk or in a store."""

    @property
    def stored(self) -> Stored:
        """All that this writer has on disk; ends at the position that `write` returned last."""
        ...


class Sink(Protocol):
    """A result being written; one per job, units may write from several processes."""

    @property
    def partial(self) -> Place:
        """Where the unfinished result is."""
        ...

    @property
    def waits(self) -> bool:
        """Whether looking at a file is a request to a store."""
        ...

    @property
    def grain(self) -> tuple[int, int, int]:
        """Shard extent (z, y, x) at level 0: units are cut at multiples of it."""
        ...

    def writer(self, box: Box, start: int, sweep_axis: int) -> StoringWriter:
        """A writer for the unit `box`, whose first rows will be those at `start` on `sweep_axis` (0 = z, 1 = y)."""
        ...

    def census(self, box: Box, *, contents: bool) -> Census:
        """What is on disk now of the rows that a writer had finished; `contents` are read for the digest only."""
        ...

    def finalize(self, *, replace: bool = False) -> dict[str, Any]:
        """Make the coarse levels, move the result to its final name; returns what was written, for the report."""
        ...
