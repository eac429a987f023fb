"""What is still to hand out: units nobody has begun, counted but never listed, and those of which rows were lost."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import product

from tilelab.geometry import Units
from tilelab.run.cluster.coverage import Coverage


class Backlog:
    """Units to hand out; true while there are any.

    Attributes:
        fresh: number of units that were not handed out yet.
    """

    def __init__(self, coverage: Coverage) -> None:
        """All units that are not on disk are fresh, those of full extent first."""
        self.fresh = coverage.count_unfinished()
        self._order = (unit for unit in largest_first(coverage.units) if not coverage.is_finished(unit))
        self._again: deque[int] = deque()

    def __bool__(self) -> bool:
        return bool(self.fresh or self._again)

    @property
    def again(self) -> Sequence[int]:
        """Units with rows to repeat, those that have waited longest first."""
        return tuple(self._again)

    def next_fresh(self) -> int | None:
        """Take the next fresh unit; None when there is none left."""
        unit = next(self._order, None)
        if unit is not None:
            self.fresh -= 1
        return unit

    def repeat(self, unit: int) -> None:
        """Put a unit behind the others that have rows to repeat, unless it is among them."""
        if unit not in self._again:
            self._again.append(unit)

    def drop(self, unit: int) -> None:
        """Take a unit from those that have rows to repeat, if it is among them."""
        if unit in self._again:
            self._again.remove(unit)


def largest_first(units: Units) -> Iterator[int]:
    """The indices of all units: those of full extent first, the cut off ones at the image's far edges last."""
    counts = [len(cuts) for cuts in units.cuts]
    whole = [cuts.size // cuts.extent for cuts in units.cuts]
    for edges in sorted(product((False, True), repeat=len(counts)), key=sum):
        ranges = [range(w, n) if edge else range(w) for edge, w, n in zip(edges, whole, counts, strict=True)]
        for place in range(math.prod(map(len, ranges))):  # product() would list its ranges first
            rest, index, weight = place, 0, 1
            for axis, n in zip(reversed(ranges), reversed(counts), strict=True):
                rest, i = divmod(rest, len(axis))
                index += axis[i] * weight
                weight *= n
            yield index
