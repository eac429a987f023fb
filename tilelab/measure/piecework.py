"""What is done for one block by whoever has time: a thread here, or a worker elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from tilelab.arrays import Array, Int64, UInt8
from tilelab.geometry import Box
from tilelab.kernels.objects.front import Pieces, take_pieces
from tilelab.measure.fractions import count_blocks


class ClassPlanes(Protocol):
    """Class indices that are read region by region: `Labels`, or what stands before them.

    shape, chunks: (z, y, x).
    """

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def chunks(self) -> tuple[int, int, int]: ...

    def read(self, box: Box) -> Any:
        """Classes in a region (z, y, x), uint8; int64 where objects are told apart by more than their class."""
        ...


class Intensities(Protocol):
    """A micrograph, read region by region."""

    def read(self, box: Box) -> Array:
        """Intensities in a region (z, y, x)."""
        ...


class Part(NamedTuple):
    """What is known of a block by itself: its pieces, and its pixels of each class if they are counted."""

    box: Box
    pieces: Pieces
    counts: Int64 | None


@dataclass(frozen=True)
class Piecework:
    """From a box to its `Part`; can be sent to other processes where labels and image can.

    Attributes:
        labels, image: what is read.
        shape: of the image (z, y, x).
        connectivity, only, pixel_size: see `find_objects`; `only` is a table.
        side: of the blocks that pixels are counted in, None where they are not.
    """

    labels: ClassPlanes
    image: Intensities | None
    shape: tuple[int, int, int]
    connectivity: int
    only: UInt8 | None
    pixel_size: tuple[float, ...]
    side: int | None

    def __call__(self, box: Box) -> Part:
        block = self.labels.read(box)
        counts = None if self.side is None else count_blocks(box, block, self.side)
        under = None if self.image is None else np.ascontiguousarray(self.image.read(box))
        wanted = block if self.only is None else self.only[block]
        origin = box.start[0], box.start[1]
        return Part(box, take_pieces(wanted, origin, self.shape, self.connectivity, self.pixel_size, under), counts)
