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
from tilelab.io.images.lazy import LazyArray
from tilelab.io.images.notebook import Shown, image_page
from tilelab.text import size_text


class Image(LazyArray):
    """A lazy image, for NumPy and Dask an array; see `LazyArray`.

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
        stack: what this is a plane of: where intensities are normalised by statistics of a stack, they are its; None of
            what is whole.
        rgb: the channels are red, green, blue and what else there may be.
        coarser: opens the same image reduced so many times on y and x, where there is such a level; None where none is.
        reduced: opens the coarsest level whose longer side has at least so many pixels; None where there is one alone.
        computed: reading takes a processor, not a disk: who writes it anew reads several regions at once.
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
    neighbours: int = 0
    stack: Image | None = None
    bar: int = 0
    bar_said: str = ""
    rgb: bool = False
    coarser: Callable[[int], Image | None] | None = None
    reduced: Callable[[int], Image] | None = None
    computed: bool = False
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

    def __enter__(self) -> Image:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        nm = "" if self.pixel_size_nm is None else f" {size_text(f'{v:g}' for v in self.pixel_size_nm)} nm"
        return f"<Image {self.uri} {self.axes} {size_text(self.shape)} {self.dtype}{nm}>"

    def _repr_html_(self) -> str:
        """For notebooks: a thumbnail, and what there is to know."""
        return image_page(self, self.shown())

    def shown(self) -> Shown:
        """How the thumbnail is drawn."""
        return Shown()
