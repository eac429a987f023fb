"""Regions of an image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True, slots=True)
class Box:
    """A half-open n-D region ``start <= index < stop``, one entry per axis."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.start) != len(self.stop):
            raise ValueError(f"box has {len(self.start)} starts and {len(self.stop)} stops")
        if any(b < a for a, b in zip(self.start, self.stop, strict=True)):
            raise ValueError(f"box ends before it starts: {self}")

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Box:
        """The region of a whole array of `shape`."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent per axis."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def size(self) -> int:
        """Number of pixels."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """The region as an index for an array whose origin is the image's."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    def intersect(self, other: Box) -> Box:
        """The common region; empty (zero extent somewhere) when there is none."""
        start = tuple(max(a, b) for a, b in zip(self.start, other.start, strict=True))
        stop = tuple(max(lo, min(a, b)) for lo, a, b in zip(start, self.stop, other.stop, strict=True))
        return Box(start, stop)

    def __str__(self) -> str:
        return ",".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True))


def boxes(shape: tuple[int, ...], extent: tuple[int, ...]) -> Iterator[Box]:
    """Cut an array of `shape` into boxes of at most `extent`, in raster order."""
    for at in product(*(range(0, n, e) for n, e in zip(shape, extent, strict=True))):
        yield Box(at, tuple(min(n, a + e) for a, e, n in zip(at, extent, shape, strict=True)))
