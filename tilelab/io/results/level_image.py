"""One level of a result as a lazy image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

from tilelab.arrays import Array
from tilelab.geometry import Box
from tilelab.io.images.image import Image
from tilelab.io.images.notebook import Shown
from tilelab.io.storage.place import Place
from tilelab.io.zarr.documents import Written
from tilelab.io.zarr.metadata import ArrayNode, find_node
from tilelab.io.zarr.sharded_array import ShardedArray
from tilelab.spec import ClassInfo


class LevelImage(Image):
    """One level of a result as a lazy image.

    Args:
        array: where its pixels are.
        pixel_size_nm: per axis, or None when unknown.
        classes: what its values, or else its channels, stand for.
        told: the document in which the result says what it was made of and with; None where it says that nowhere.
    """

    def __init__(
        self,
        array: ShardedArray,
        pixel_size_nm: tuple[float, ...] | None,
        classes: Sequence[ClassInfo] = (),
        told: Place | None = None,
    ) -> None:
        self._array, self._told = array, told
        self.classes = tuple(classes)
        self.uri = str(array.path)
        self.axes = array.axes
        self.shape = array.shape
        self.dtype = array.dtype
        self.chunks = array.chunk
        self.pixel_size_nm = pixel_size_nm

    def read(self, box: Box) -> Array:
        """Decode one region; see `Image.read`."""
        return self._array.read(box, self._written)

    @cached_property
    def _written(self) -> Written | None:
        """Which shards were written; None while the result is unfinished."""
        node = find_node(self._array.path)
        return node.written if isinstance(node, ArrayNode) else None

    def fingerprint(self) -> dict[str, str]:
        """The path, and hashes of what the level and the result say of themselves."""
        documents = {"metadata": self._array.path / "zarr.json", **({"result": self._told} if self._told else {})}
        hashes = {name: hashlib.sha256(place.read_bytes()).hexdigest() for name, place in documents.items()}
        return {"path": self.uri, **hashes}

    def shown(self) -> Shown:
        """Labels in the colours of their classes."""
        if "c" in self.axes:
            return Shown()
        return Shown(tuple(one.color for one in self.classes), tuple(one.name for one in self.classes))


def reduced_level(levels: Sequence[LevelImage], side: int) -> LevelImage:
    """The coarsest level whose longer side has at least `side` pixels."""
    return next((level for level in reversed(levels) if max(level.shape[-2:]) >= side), levels[0])
