"""What a reader module supplies: pixels as they are stored, and what the file says of them.

`view.py` turns a `Source` into an `Image`; the rules about axes, dtypes and colours are there, once for all
formats.  A reader knows its format only.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from tilelab.arrays import Array
from tilelab.assumptions import Assumption
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.storage.place import Place
from tilelab.text import format_bytes


class Source(abc.ABC):
    """An image as it is stored.

    Attributes:
        uri: where it came from, for messages.
        format: what it is, for people, e.g. ``OME-TIFF``.
        axes: one lower-case letter per stored axis, in stored order: ``x y z``, ``c`` channel, ``t`` time, ``s`` colour
            sample; anything else is an axis without a known meaning.
        shape: pixels per stored axis.
        dtype: as stored, native byte order.
        chunks: what one read decodes, per stored axis; 1 on every axis where any region costs just itself.
        scale_nm: nanometres per pixel by axis letter; axes of unknown size are absent.
        offset_px: where the first pixel lies in the format's coordinates, in pixels by axis letter; absent is 0.
        bar: rows at the bottom that the maker's metadata call an info bar, 0 where they tell of none.
        bar_said: by which words.
        rgb: the samples are red, green, blue and what else there may be.
        samples: how many of the samples, from the first, are light; None for all, others (alpha) are ignored.
        lut: what stored values stand for (palettes, min-is-white), indexed by them; None when they are grey values.
        levels: shape of every resolution level, in stored axis order, finest first.
        warnings: one line each, for the user.
        assumptions: what the reader had to guess.
        outside: what it keeps outside of its own folder, by name; `open_image` refuses it unless that is allowed.
        series: what there is to say of every image beside it, where there are several.
        details: further facts for `describe`.
        home: the group below which the labels of the image are; None of others, and of a level named by its path.
    """

    uri: str
    format: str
    axes: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    scale_nm: Mapping[str, float]
    offset_px: Mapping[str, float] = MappingProxyType({})
    bar: int = 0
    bar_said: str = ""
    rgb: bool = False
    samples: int | None = None
    lut: Array | None = None
    levels: tuple[tuple[int, ...], ...] = ()
    warnings: tuple[str, ...] = ()
    assumptions: tuple[Assumption, ...] = ()
    outside: tuple[str, ...] = ()
    series: tuple[str, ...] = ()
    details: Mapping[str, Any]
    home: Place | None = None

    @abc.abstractmethod
    def read(self, box: Box) -> Array:
        """Decode a region that lies inside, shape ``box.shape``, in `dtype`; safe to call from several threads.

        Raises:
            InputError: the file is truncated or corrupt there.
        """

    @abc.abstractmethod
    def fingerprint(self) -> dict[str, str]:
        """What identifies the stored content without reading all of it."""

    def show_indices(self) -> None:
        """Give stored values, indices into a palette, not what they are shown as (`lut`)."""

    def stored_bytes(self) -> int | None:
        """About how many bytes the image takes where it is stored; None where that cannot be told cheaply."""
        return None

    def close(self) -> None:
        """Release files; reading afterwards is an error."""


def check_level(uri: str, level: int, count: int) -> None:
    """Refuse a resolution level that is not there.

    Raises:
        InputError: `level` is not in ``0 .. count - 1``.
    """
    if not 0 <= level < count:
        have = f"levels 0 to {count - 1}" if count > 1 else "level 0 only"
        raise InputError(f"level {level} was asked for, {uri} has {have}")


def whole_piece_warning(uri: str, nbytes: int) -> str:
    """What to tell of an image whose smallest readable pieces are large."""
    size = format_bytes(nbytes)
    return f"{uri} is stored in pieces of {size}, decoded one by one in memory: `tilelab convert` rewrites it in tiles"
