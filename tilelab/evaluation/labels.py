"""Class indices out of anything that holds them: results, masks of any value or colour, palettes."""

from __future__ import annotations

import os
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tilelab.arrays import Array, UInt8
from tilelab.assumptions import Assumption
from tilelab.errors import InputError
from tilelab.evaluation.census import WHOLE_NUMBERS, Census, judge
from tilelab.evaluation.label_map import IGNORE, LabelMap
from tilelab.geometry import Box, boxes
from tilelab.io.images.bar import may_be_bar
from tilelab.io.images.image import Image
from tilelab.io.images.open import open_image
from tilelab.io.images.region import crop
from tilelab.io.images.view import AsLabels, SourceImage
from tilelab.io.label_source import read_label_classes
from tilelab.io.results.level_image import LevelImage
from tilelab.io.results.made_of import read_made_of
from tilelab.io.results.result import Result, find_loss, read_result
from tilelab.spec import ClassInfo

_LOOK_PIXELS = 2**26
"""Pixels of a file that are looked at to say what is wrong with it."""


class Labels:
    """Class indices of a plane or stack, read region by region.

    Attributes:
        path: where they are.
        shape: (z, y, x) in pixels, z = 1 for a plane.
        chunks: what one read decodes, per axis.
        classes: names and colours where the file knows them, else None.
        pixel_size_nm: of (y, x), or None when unknown.
        voxel_size_nm: of (y, x) or (z, y, x), as the axes of the file are, or None when unknown.
        assumptions: what had to be guessed to open them.
        result: the OME-Zarr result they belong to, or None.
    """

    def __init__(
        self, path: Path, image: Image, mapping: LabelMap | None, *, result: Result | None = None, theirs: bool = False
    ) -> None:
        axes = image.axes.replace("c", "") if image.rgb else image.axes
        if len(axes) not in (2, 3) or "c" in axes:
            raise InputError(
                f"{path} has axes {image.axes}, labels have yx or zyx: name its axes (--axes), or save its indices"
            )
        self.path = path
        self._image = image
        self._theirs = theirs  # who opened it closes it
        self._lead = 3 - len(axes)
        boolean = isinstance(image, SourceImage) and image.source.dtype == bool
        # masks of true and false were once read as 0 and 255, and maps written for that stay good
        self._true = 255 if boolean and mapping and mapping.lists(255) and not mapping.lists(1) else 1
        self.mapping = mapping
        self.void: int | None = None  # a stored value that is no class, and no error
        self.shape: tuple[int, int, int] = _as_zyx(image.shape[image.rgb :])
        self.chunks: tuple[int, int, int] = _as_zyx(image.chunks[image.rgb :])
        self.classes: tuple[ClassInfo, ...] | None = result.info.classes if result else None
        self._kept: tuple[Path, str | None] | None = None  # a file and its series, whose metadata may name classes
        size = image.pixel_size_nm
        self.pixel_size_nm = None if size is None else (size[-2], size[-1])
        self.voxel_size_nm = size
        self.result = result
        self.assumptions = () if result else image.assumptions

    def read(self, box: Box, census: Census | None = None) -> UInt8:
        """Classes in a region (z, y, x), uint8 of that shape.

        Args:
            box: the region.
            census: counts what is stored there.  Who counts also judges: what is no class is 255 then, not an error.

        Raises:
            InputError: the file is damaged there, or holds something that is no class index.
        """
        planes = self._stored(box)
        if census is not None:
            census.add(planes)
        elif not self._suits(planes):
            seen = Census(str(self.path))
            seen.add(planes)
            judge(seen, self.mapping, ())
            raise InputError(f"{self.path} holds values that are no class, {seen.tell()}: {WHOLE_NUMBERS}")
        if len(planes) == 3 and self.mapping is not None and self.mapping.colors:
            classes = self.mapping.map_colors(*planes)
        elif len(planes) == 3:
            classes = np.full(planes[0].shape, IGNORE, np.uint8)
        elif self.mapping is not None:
            classes = self.mapping.map_values(planes[0])
        else:
            classes = _as_indices(planes[0])
        return classes.reshape(box.shape)

    def keep_rows(self, rows: int) -> None:
        """Leave out what is below."""
        z, height, width = self.shape
        kept = [(0, rows) if a == "y" else (None, None) for a in self._image.axes if a != "c"]
        self._image = crop(self._image, kept)
        self.shape = (z, rows, width)
        self.chunks = _as_zyx(self._image.chunks[self._image.rgb :])
        self.assumptions += (
            Assumption(
                what=f"the lowest {height - rows} of {height} rows of {self.path}",
                taken="left out",
                because="its partner has no such rows, as where an info bar was left out",
            ),
        )

    @cached_property
    def named(self) -> dict[int, ClassInfo]:
        """Classes that the file's metadata name where `classes` are not known, by value; there may be others."""
        return {} if self._kept is None else read_label_classes(*self._kept)

    @property
    def image(self) -> Image:
        """What they are read from."""
        return self._image

    def part(self, box: Box) -> Labels:
        """A region (z, y, x) of them, as labels that these close."""
        part = copy(self)
        part._image = crop(self._image, list(zip(box.start, box.stop, strict=True))[self._lead :])
        part._theirs = True
        part.shape = _as_zyx(box.shape)
        part.chunks = _as_zyx(part._image.chunks[part._image.rgb :])
        return part

    def look(self) -> Census:
        """What is stored, by at most 2**26 pixels spread evenly."""
        rows = min(self.shape[1], max(self.chunks[1], 64))
        bands = list(boxes(self.shape, (1, rows, self.shape[2])))
        every = -(-len(bands) * rows * self.shape[2] // _LOOK_PIXELS)
        census = Census(str(self.path) + (f" (by one band in {every})" if every > 1 else ""))
        for band in bands[::every]:
            census.add(self._stored(band))
        return census

    def close(self) -> None:
        """Release files."""
        if not self._theirs:
            self._image.close()

    def _stored(self, box: Box) -> tuple[Array, ...]:
        """A region as it is stored: one plane of values, or three of colours."""
        start, stop = box.start[self._lead :], box.stop[self._lead :]
        if not self._image.rgb:
            stored = self._image.read(Box(start, stop))
            return (stored * np.uint8(self._true) if self._true != 1 else stored,)
        red, green, blue = self._image.read(Box((0, *start), (3, *stop)))
        by_value = self.mapping is not None and bool(self.mapping.ranges)
        if by_value and np.array_equal(red, green) and np.array_equal(red, blue):
            return (red,)
        return red, green, blue

    def _suits(self, planes: tuple[Array, ...]) -> bool:
        """Whether what is stored can be made classes."""
        stored = planes[0]
        if len(planes) == 3 or (self.mapping is not None and self.mapping.colors):
            return len(planes) == 3 and self.mapping is not None and bool(self.mapping.colors)
        if stored.dtype.kind == "f" and not np.array_equal(stored, np.trunc(stored)):  # NaN is not equal either
            return False
        if self.mapping is not None or stored.dtype == np.uint8:
            return True
        values = stored if self.void is None else stored[stored != self.void]
        return not values.size or bool(values.min() >= 0 and values.max() <= 255)


def _as_indices(stored: Array) -> UInt8:
    """Stored values as class indices; those that are none as `IGNORE`."""
    if stored.dtype == np.uint8:
        return stored
    indices: UInt8 = np.where((stored >= 0) & (stored <= 255), stored, IGNORE).astype(np.uint8)
    return indices


def open_labels(
    path: Any,
    mapping: LabelMap | None = None,
    axes: str | None = None,
    allow_outside: bool = False,
    series: str | None = None,
) -> Labels:
    """Open the labels in a result of `tilelab infer`, or in any image or array that `open_image` takes.

    The stored values are the classes, those behind a palette included, unless `mapping` says otherwise; true is 1.
    `axes` are those of the image as it is stored, where it does not say.

    Raises:
        InputError: there are none, the result has lost files, or the image is in colours and `mapping` names none.
    """
    wanted: AsLabels = "colors" if mapping is not None and mapping.colors else "indices"
    if not isinstance(path, str | os.PathLike):
        given = open_image(path, axes=axes, series=series, as_labels=wanted)
        labels = Labels(Path(given.uri), given, mapping, theirs=given is path)
        labels.classes = path.classes or None if isinstance(path, LevelImage) else None
        return labels
    path = Path(path)
    if path.name.endswith(".partial"):
        raise InputError(f"{path} is an unfinished result: run the same `tilelab infer` again to finish it")
    if (path / "zarr.json").is_file() and (result := _find_result(path)) is not None:
        if not result.labels:
            raise InputError(f"{path} has no labels: it was made with labels switched off")
        if (loss := find_loss(path)) is not None:
            raise InputError(f"{path} has {loss}: copy it anew, or make it anew with `tilelab infer --restart`")
        return Labels(path, result.labels[0], mapping, result=result)
    image = open_image(path, axes=axes, series=series, as_labels=wanted, allow_outside=allow_outside)
    try:
        labels = Labels(path, image, mapping)
        info = read_made_of(path)
        labels.classes = info.classes if info is not None and info.labels else None
        if labels.classes is None and mapping is None:
            labels._kept = path, series
        if image.rgb and not (mapping is not None and mapping.colors):
            judge(labels.look(), mapping, ())
    except InputError:
        image.close()
        raise
    return labels


def match_heights(one: Labels, other: Labels) -> None:
    """Cut the higher of a pair where it has more rows at the bottom, as an info bar has."""
    if (one.shape[0], one.shape[2]) != (other.shape[0], other.shape[2]):
        return
    lower, higher = sorted((one, other), key=lambda labels: labels.shape[1])
    rows = lower.shape[1]
    if may_be_bar(higher.shape[1] - rows, higher.shape[1]):
        higher.keep_rows(rows)


def _find_result(path: Path) -> Result | None:
    """The result at `path`; None when it is some other Zarr."""
    try:
        return read_result(path)
    except InputError:
        return None


def _as_zyx(values: tuple[int, ...]) -> tuple[int, int, int]:
    """Per-axis values with a leading 1 where there is no z."""
    z, y, x = (1,) * (3 - len(values)) + tuple(values)
    return z, y, x
