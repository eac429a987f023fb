"""What of each unit is on disk: up to where without a gap, and what lies behind one.

        unit       |=== on disk ===>..........|== island ==|......|== island ==|....|
                 start          position                                           stop
                                (recorded)

Islands are what helpers wrote.  They are not recorded: a run that goes on after a kill computes them again.
Only units with islands take memory here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tilelab.geometry import Units

Span = tuple[int, int]  # rows from one sweep position to another


class Coverage:
    """The rows of each unit that are on disk.

    Attributes:
        units: all of the job's.
    """

    def __init__(
        self, units: Units, axis: int, positions: Mapping[int, int], record: Callable[[int, int], None]
    ) -> None:
        """Begin or continue.

        Args:
            units: all of the job's.
            axis: the swept one.
            positions: up to where each unit is on disk; changed by `record` only.
            record: called with a unit and the position up to which all of it is on disk now.
        """
        self.units = units
        self._axis, self._positions, self._record = axis, positions, record
        self._islands: dict[int, list[Span]] = {}

    def position(self, unit: int) -> int:
        """Up to where a unit is on disk without a gap."""
        return self._positions.get(unit, self.units[unit].box.start[self._axis])

    def stop(self, unit: int) -> int:
        """Where a unit ends."""
        return self.units[unit].box.stop[self._axis]

    def is_finished(self, unit: int) -> bool:
        """Whether all of a unit is on disk."""
        return self.position(unit) >= self.stop(unit)

    def count_unfinished(self) -> int:
        """The number of units with rows that are not on disk."""
        return len(self.units) - sum(self.is_finished(unit) for unit in self._positions)

    def islands(self, unit: int) -> Sequence[Span]:
        """The parts of a unit on disk that lie behind a gap; they may overlap."""
        return self._islands.get(unit, ())

    def cover(self, unit: int, start: int, stop: int) -> int:
        """Take down that rows ``start:stop`` are on disk; returns up to where the unit is without a gap now."""
        position = known = self.position(unit)
        islands = [(a, b) for a, b in self._islands.pop(unit, ()) if not (start <= a and b <= stop)] + [(start, stop)]
        apart = []
        for first, last in sorted(islands):
            if first <= position:
                position = max(position, last)
            else:
                apart.append((first, last))
        if apart:
            self._islands[unit] = apart
        if position > known:
            self._record(unit, position)
        return position

    def is_covered(self, unit: int, start: int, stop: int) -> bool:
        """Whether all rows ``start:stop`` are on disk."""
        return self._first_gap(unit, start, stop, ()) is None

    def gap(self, unit: int, taken: Sequence[Span] = ()) -> Span | None:
        """The first rows of a unit that are neither on disk nor `taken`."""
        return self._first_gap(unit, self.position(unit), self.stop(unit), taken)

    def _first_gap(self, unit: int, start: int, stop: int, taken: Sequence[Span]) -> Span | None:
        at = max(start, self.position(unit))
        occupied = sorted([*taken, *self.islands(unit)])
        for first, last in occupied:
            if first > at:
                break
            at = max(at, last)
        begins = [first for first, _ in occupied if first > at]
        return (at, min([stop, *begins])) if at < stop else None

    def forget(self, unit: int) -> None:
        """Drop what is known of a unit's islands: it is finished, or was given up."""
        self._islands.pop(unit, None)
