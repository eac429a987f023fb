"""Class indices out of anything that holds them: results, masks of any value or colour, palettes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tilelab.arrays import Array, UInt8
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.images.image import Image
from tilelab.io.images.open import open_image
from tilelab.io.results.result import Result, read_result
from tilelab.spec import ClassInfo

_ENTRY = re.compile(r"\s*(?:(\d+)|#([0-9a-fA-F]{6}))\s*:\s*(\d+)\s*")
_PALETTE = 3
"""PNG's colour type for palettes."""


@dataclass(frozen=True)
class LabelMap:
    """Which stored values or colours are which class; whatever is not listed is class 0.

    Attributes:
        values: class of a grey value.
        colors: class of a colour, as 8-bit ``(red, green, blue)``; 16-bit images hold 257 times that.
    """

    values: Mapping[int, int] = field(default_factory=dict)
    colors: Mapping[tuple[int, int, int], int] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> LabelMap:
        """Read ``255:1``, ``0:1`` (an inverted mask) or ``#0000ff:1,#ff0000:2``.

        Raises:
            InputError: the text is something else, or mixes values and colours.
        """
        values: dict[int, int] = {}
        colors: dict[tuple[int, int, int], int] = {}
        for entry in text.split(","):
            match = _ENTRY.fullmatch(entry)
            if match is None or int(match[3]) > 255:
                raise InputError(
                    f"label map {text!r} has the entry {entry!r}: write VALUE:CLASS or #RRGGBB:CLASS, separated by "
                    "commas, classes 0 to 255"
                )
            if match[1] is not None:
                values[int(match[1])] = int(match[3])
            else:
                red, green, blue = bytes.fromhex(match[2])
                colors[red, green, blue] = int(match[3])
        if values and colors:
            raise InputError(f"label map {text!r} mixes grey values and colours: use one kind")
        return cls(values, colors)

    def map_values(self, stored: Array) -> UInt8:
        """Classes of grey values of any integer type, same shape."""
        classes = np.zeros(stored.shape, np.uint8)
        for value, label in self.values.items():
            classes[stored == value] = label
        return classes

    def map_colors(self, red: Array, green: Array, blue: Array) -> UInt8:
        """Classes of colours, three planes of one shape, uint8 or uint16."""
        scale = 257 if red.dtype == np.uint16 else 1
        classes = np.zeros(red.shape, np.uint8)
        for (r, g, b), label in self.colors.items():
            classes[(red == r * scale) & (green == g * scale) & (blue == b * scale)] = label
        return classes


class Labels:
    """Class indices of a plane or stack, read region by region.

    Attributes:
        path: where they are.
        shape: (z, y, x) in pixels, z = 1 for a plane.
        chunks: what one read decodes, per axis.
        classes: names and colours where the file knows them, else None.
        pixel_size_nm: of (y, x), or None when unknown.
        result: the OME-Zarr result they belong to, or None.
    """

    def __init__(
        self,
        path: Path,
        planes: tuple[Image, ...],
        mapping: LabelMap | None,
        *,
        result: Result | None = None,
    ) -> None:
        image = planes[0]
        if len(image.axes) not in (2, 3) or "c" in image.axes:
            raise InputError(f"{path} has axes {image.axes}, labels have yx or zyx: choose a channel")
        self.path = path
        self._planes = planes
        self._map = mapping
        self._lead = 3 - len(image.axes)
        self.shape: tuple[int, int, int] = _as_zyx(image.shape)
        self.chunks: tuple[int, int, int] = _as_zyx(image.chunks)
        self.classes: tuple[ClassInfo, ...] | None = result.info.classes if result else None
        size = image.pixel_size_nm
        self.pixel_size_nm = None if size is None else (size[-2], size[-1])
        self.result = result

    def read(self, box: Box) -> UInt8:
        """Classes in a region (z, y, x), uint8 of that shape.

        Raises:
            InputError: the file is damaged there, or holds something that is no class index.
        """
        inner = Box(box.start[self._lead :], box.stop[self._lead :])
        stored = [plane.read(inner) for plane in self._planes]
        if len(stored) == 3:
            assert self._map is not None  # noqa: S101  # open_labels sees to it
            classes = self._map.map_colors(*stored)
        elif self._map is not None:
            classes = self._map.map_values(stored[0])
        else:
            classes = self._check(stored[0])
        return classes.reshape(box.shape)

    def close(self) -> None:
        """Release files."""
        for plane in self._planes:
            plane.close()

    def _check(self, stored: Array) -> UInt8:
        """Stored values as class indices, where they are some."""
        if stored.dtype == np.uint8:
            return stored
        if not (np.all(stored >= 0) and np.all(stored <= 255) and np.all(stored == np.trunc(stored))):
            raise InputError(
                f"{self.path} holds values from {stored.min()} to {stored.max()} as {stored.dtype}: class indices are "
                "whole numbers from 0 to 255 (a label map can make them)"
            )
        return stored.astype(np.uint8)


def open_labels(path: str | Path, mapping: LabelMap | None = None) -> Labels:
    """Open the labels in a result of `tilelab infer`, or in any image that `open_image` reads.

    The stored values are the classes, those behind a palette included, unless `mapping` says otherwise.

    Raises:
        InputError: there are none, or the image is in colours and `mapping` names none.
    """
    path = Path(path)
    if path.name.endswith(".partial"):
        raise InputError(f"{path} is an unfinished result: run the same `tilelab infer` again to finish it")
    if (path / "zarr.json").is_file() and (result := _find_result(path)) is not None:
        if not result.labels:
            raise InputError(f"{path} has no labels: it was made with labels switched off")
        return Labels(path, (result.labels[0],), mapping, result=result)
    colors = mapping is not None and bool(mapping.colors)
    if not colors and _is_palette_png(path):
        return Labels(path, (open_image(_read_indices(path), axes="yx"),), mapping)
    if not colors:
        image = open_image(path)
        source = getattr(image, "source", None)
        if source is not None and source.rgb and mapping is None:
            image.close()
            raise InputError(
                f"{path} is in colours: say which is which class, e.g. '#0000ff:1,#ff0000:2' (all others are 0)"
            )
        return Labels(path, (image,), mapping)
    return Labels(path, tuple(open_image(path, channel=channel) for channel in range(3)), mapping)


def _find_result(path: Path) -> Result | None:
    """The result at `path`; None when it is some other Zarr."""
    try:
        return read_result(path)
    except InputError:
        return None


def _is_palette_png(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(26)
    return head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) == 26 and head[25] == _PALETTE


def _read_indices(path: Path) -> UInt8:
    """The palette indices of a PNG, uint8 ``(y, x)``; a viewer would see colours instead."""
    from PIL.PngImagePlugin import PngImageFile  # Pillow.open has a limit on pixels, this has none

    try:
        with PngImageFile(path) as image:
            return np.array(image, dtype=np.uint8)
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path} is a corrupt or truncated PNG file: {error}") from error


def _as_zyx(values: tuple[int, ...]) -> tuple[int, int, int]:
    """Per-axis values with a leading 1 where there is no z."""
    z, y, x = (1,) * (3 - len(values)) + tuple(values)
    return z, y, x
