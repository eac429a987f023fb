"""The one view of an image that the rest of tilelab has: a lazy array that reads regions."""

from __future__ import annotations

import abc
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np

from tilelab.arrays import Array
from tilelab.assumptions import Assumption
from tilelab.geometry import Box
from tilelab.text import size_text


class Image(abc.ABC):
    """A lazy image.

    Axes are a subset of ``c z y x`` in that order, always with ``y`` and ``x``; other axes (time, a level, a further
    channel) are chosen when it is opened.

    Attributes:
        uri: where it came from, for messages.
        axes: one letter per axis, e.g. ``"yx"``, ``"zyx"``, ``"cyx"``.
        shape: pixels per axis.
        dtype: uint8, uint16 or float32 (other types are converted by the reader, by a stated rule).
        chunks: what one read decodes, per axis; reading less than a chunk costs a whole one.
        pixel_size_nm: nanometres per pixel for each spatial axis (without ``c``), or None when unknown.
        origin_px: where the first pixel lies in the coordinates of what this is a part of (a region, a volume with an
            offset), in pixels of this image, per spatial axis; empty means at 0.
        chunk_phase: how far inside a chunk the image begins, per axis; empty means that chunks begin with it.
        neighbours: slices on either side that are already among the channels, as a 2.5-D model takes them.
        bar: rows at the bottom that the maker's metadata call an info bar, 0 where they tell of none.
        bar_said: by which words.
        rgb: the channels are red, green, blue and what else there may be.
        coarser: opens the same image reduced so many times on y and x, where there is such a level; None where none is.
        warnings: one line each, for the user, e.g. that the format forces the whole image into memory.
        assumptions: what had to be guessed to open it.
    """

    uri: str
    axes: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    pixel_size_nm: tuple[float, ...] | None = None
    origin_px: tuple[float, ...] = ()
    chunk_phase: tuple[int, ...] = ()
    neighbours: int = 0
    bar: int = 0
    bar_said: str = ""
    rgb: bool = False
    coarser: Callable[[int], Image | None] | None = None
    warnings: tuple[str, ...] = ()
    assumptions: tuple[Assumption, ...] = ()

    @abc.abstractmethod
    def read(self, box: Box) -> Array:
        """Decode one region, shape ``box.shape``, in `dtype`; safe to call from several threads.

        Raises:
            InputError: the file is truncated or corrupt there; the message names the region.
        """

    @abc.abstractmethod
    def fingerprint(self) -> dict[str, str]:
        """What identifies the content without reading all of it, e.g. size, modification time and a metadata hash."""

    def close(self) -> None:
        """Release files; reading afterwards is an error."""

    def __getitem__(self, index: Any) -> Array:
        """NumPy-style basic slicing with integers and unit-step slices; reads only what is asked for."""
        items = list(index) if isinstance(index, tuple) else [index]
        if Ellipsis in items:
            at = items.index(Ellipsis)
            items[at : at + 1] = [slice(None)] * (len(self.shape) - len(items) + 1)
        items += [slice(None)] * (len(self.shape) - len(items))
        if len(items) > len(self.shape):
            raise IndexError(f"{len(items)} indices for an image with axes {self.axes!r}")
        start, stop, drop = [], [], []
        for axis, (item, size) in enumerate(zip(items, self.shape, strict=True)):
            if isinstance(item, slice):
                a, b, step = item.indices(size)
                if step != 1:
                    raise IndexError(f"step {step} on axis {self.axes[axis]!r}: only unit steps are read lazily")
                start.append(a)
                stop.append(max(a, b))
            else:
                i = int(item) + (size if item < 0 else 0)
                if not 0 <= i < size:
                    raise IndexError(f"index {item} on axis {self.axes[axis]!r} of {size} pixels")
                start.append(i)
                stop.append(i + 1)
                drop.append(axis)
        return self.read(Box(tuple(start), tuple(stop))).squeeze(axis=tuple(drop))

    def __enter__(self) -> Image:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        size = size_text(self.shape)
        nm = "unknown pixel size" if self.pixel_size_nm is None else f"{self.pixel_size_nm} nm"
        return f"<Image {self.uri} {self.axes} {size} {self.dtype} {nm}>"
