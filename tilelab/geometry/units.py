"""How the work is cut: axes turned so that the swept one is first, ranges, and units, counted but never listed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tilelab.arrays import Array
from tilelab.geometry.box import Box


@dataclass(frozen=True, slots=True)
class Frame:
    """How the axes ``(z, y, x)`` of an image map to ``(sweep, cross, x)``."""

    sweep_axis: int  # 0: z (3-D models), 1: y (2-D models)

    @property
    def order(self) -> tuple[int, int, int]:
        """The permutation; it is its own inverse."""
        return (0, 1, 2) if self.sweep_axis == 0 else (1, 0, 2)

    def sweep_first(self, values: tuple[Any, ...]) -> tuple[Any, Any, Any]:
        """Reorder one value per axis, in either direction."""
        a, b, c = self.order
        return values[a], values[b], values[c]

    def box(self, sweep: tuple[int, int], cross: tuple[int, int], cols: tuple[int, int]) -> Box:
        """The image region of three ranges."""
        ranges = self.sweep_first((sweep, cross, cols))
        return Box(tuple(r[0] for r in ranges), tuple(r[1] for r in ranges))

    def turn(self, array: Array) -> Array:
        """``(..., z, y, x)`` to ``(..., sweep, cross, x)`` or back, without a copy."""
        lead = array.ndim - 3
        return array.transpose(*range(lead), *(lead + a for a in self.order))


@dataclass(frozen=True, slots=True)
class Cuts:
    """One axis cut into consecutive ranges at multiples of `grain`, counted but never listed."""

    size: int
    extent: int
    """Pixels per range, a multiple of the grain; the last range may be shorter."""

    @classmethod
    def at_most(cls, size: int, extent: int, grain: int) -> Cuts:
        """Ranges of at most `extent` pixels (but at least one grain), as even as the grain allows."""
        grains = -(-size // grain)
        most = grains if extent >= size else max(1, extent // grain)
        pieces = -(-grains // most)
        return cls(size, -(-grains // pieces) * grain)

    def __len__(self) -> int:
        return -(-self.size // self.extent)

    def __getitem__(self, i: int) -> tuple[int, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"range {i} of {len(self)}")
        return i * self.extent, min(self.size, (i + 1) * self.extent)


@dataclass(frozen=True, slots=True)
class Unit:
    """The work of one worker: a lane of the cross axes times a span of the sweep axis."""

    index: int
    box: Box


@dataclass(frozen=True, slots=True)
class Units:
    """All units of a job, lazily: `units[i]` is computed, so a petabyte plan takes no more memory than a plane's."""

    cuts: tuple[Cuts, ...]

    def __len__(self) -> int:
        return math.prod(len(c) for c in self.cuts)

    def __getitem__(self, index: int) -> Unit:
        if not 0 <= index < len(self):
            raise IndexError(f"unit {index} of {len(self)}")
        rest, ranges = index, []
        for cuts in reversed(self.cuts):  # by hand: asked for at every report of every worker
            rest, i = divmod(rest, len(cuts))
            ranges.append(cuts[i])
        return Unit(index, Box(tuple(a for a, _ in reversed(ranges)), tuple(b for _, b in reversed(ranges))))

    def __iter__(self) -> Iterator[Unit]:
        return (self[i] for i in range(len(self)))
