"""One level of a result as a lazy image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from tilelab.arrays import Array
from tilelab.geometry import Box
from tilelab.io.images.image import Image
from tilelab.io.images.notebook import Shown
from tilelab.io.zarr.sharded_array import ShardedArray
from tilelab.spec import ClassInfo


class LevelImage(Image):
    """One level of a result as a lazy image; `classes` are what its values, or else its channels, stand for."""

    def __init__(
        self, array: ShardedArray, pixel_size_nm: tuple[float, ...] | None, classes: Sequence[ClassInfo] = ()
    ) -> None:
        self._array = array
        self.classes = tuple(classes)
        self.uri = str(array.path)
        self.axes = array.axes
        self.shape = array.shape
        self.dtype = array.dtype
        self.chunks = array.chunk
        self.pixel_size_nm = pixel_size_nm

    def read(self, box: Box) -> Array:
        """Decode one region; see `Image.read`."""
        return self._array.read(box)

    def fingerprint(self) -> dict[str, str]:
        """The path, and a hash of the result's own description."""
        return {"path": self.uri, "metadata": hashlib.sha256((self._array.path / "zarr.json").read_bytes()).hexdigest()}

    def shown(self) -> Shown:
        """Labels in the colours of their classes."""
        if "c" in self.axes:
            return Shown()
        return Shown(tuple(one.color for one in self.classes), tuple(one.name for one in self.classes))


def reduced_level(levels: Sequence[LevelImage], side: int) -> LevelImage:
    """The coarsest level whose longer side has at least `side` pixels."""
    return next((level for level in reversed(levels) if max(level.shape[-2:]) >= side), levels[0])
