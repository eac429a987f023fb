"""The info bar at the bottom of SEM micrographs: scale, voltage and names burnt into the pixels, which is no specimen.

It is known by the maker's metadata (`Image.bar`), else found by its look: whole rows of one grey level with text of one
other, below a straight edge, under a picture of many levels.  What is looked at is the lowest quarter of a plane; a
doubt leaves everything as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tilelab.arrays import Array
from tilelab.assumptions import Assumption
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.images.image import Image
from tilelab.io.images.region import crop
from tilelab.io.images.slices import SliceStack

FLAG = "--keep-bar"
_MOST = 8192  # pixels along a side of what a microscope's program writes a bar into
_LOOKED = 0.25  # of the height
_LEAST_ROWS = 10
_HIGHEST = 0.22  # of the height
_BELOW = 3  # rows of picture that may be left below it
_NEAR = 3  # levels of 256 that count as one, for JPEG
_FLAT = 0.52  # of a row, at one level: no row of a picture with noise is so flat
_FAR = 60  # levels between text and what it stands on

Levels = npt.NDArray[np.int16]


@dataclass(frozen=True)
class InfoBar:
    """So many rows at the bottom, and how that is known."""

    rows: int
    because: str


def known_bar(image: Image) -> InfoBar | None:
    """The info bar of an image, by its metadata or its look."""
    if image.bar:
        return InfoBar(image.bar, image.bar_said)
    return look_for_bar(image)


def leave_out_bar(image: Image, rows: int | None) -> Image:
    """`image` without its info bar: of so many `rows`, of none (0), or as it is found (None), which is an assumption.

    Raises:
        InputError: it is not as high as that.
    """
    if rows == 0:
        return image
    height = image.shape[image.axes.index("y")]
    found = InfoBar(rows, "") if rows is not None else known_bar(image)
    if found is None:
        return image
    if not 0 < found.rows < height:
        raise InputError(f"an info bar of {found.rows} rows was asked for, {image.uri} has {height} rows")
    kept = [(0, height - found.rows) if a == "y" else (None, None) for a in image.axes if a != "c"]
    part = crop(image, kept)
    if rows is None:
        part.assumptions += (_left_out(image, found.rows, found.because),)
    return part


def _left_out(image: Image, rows: int, because: str) -> Assumption:
    taken = f"its lowest {rows} of {image.shape[image.axes.index('y')]} rows, left out"
    return Assumption(what=f"the info bar of {image.uri}", taken=taken, because=because, flag=FLAG)


def match_rows(image: Image, rows: int) -> Image:
    """`image` without what is below `rows`, where that may be an info bar that another image of it lacks."""
    height = image.shape[image.axes.index("y")]
    if not may_be_bar(height - rows, height):
        return image
    part = leave_out_bar(image, height - rows)
    part.assumptions += (_left_out(image, height - rows, "its partner has no such rows"),)
    return part


def may_be_bar(rows: int, height: int) -> bool:
    """Whether an info bar of so many rows is found in images of `height`."""
    return _LEAST_ROWS <= rows <= _LOOKED * height


def look_for_bar(image: Image) -> InfoBar | None:
    """What looks like an info bar in a plane, or in the first and last of a folder of slices, if anything does."""
    stack = isinstance(image, SliceStack)
    if image.axes != ("zyx" if stack else "yx") or max(image.shape[-2:]) > _MOST or image.dtype.kind not in "uf":
        return None
    height, width = image.shape[-2:]
    top = height - int(height * _LOOKED)
    heights = set()
    for z in {0, image.shape[0] - 1} if stack else {0}:
        lead = ((z,), (z + 1,)) if stack else ((), ())
        strip = image.read(Box((*lead[0], top, 0), (*lead[1], height, width)))
        heights.add(bar_rows(strip.reshape(height - top, width), height))
    rows = heights.pop()
    if not rows or heights:
        return None
    return InfoBar(rows, "it looks like one: text on one level, full width, below a straight edge")


def bar_rows(strip: Array, height: int) -> int:
    """How many of the lowest rows of an image look like an info bar, of its lowest rows `strip`; 0 for none."""
    levels = _as_levels(strip)
    if levels is None or min(levels.shape) < 2 * _LEAST_ROWS:
        return 0
    counts = _near(_count_rows(levels))
    share, flat = counts.max(axis=1) / levels.shape[1], counts.argmax(axis=1)
    textured = np.flatnonzero(share[:-_BELOW] < _FLAT)
    if not len(textured):
        return 0
    flat_from = int(textured[-1]) + 1
    level = np.flatnonzero(share[flat_from : flat_from + 2 * _LEAST_ROWS] >= 0.97)
    if not len(level):
        return 0
    begins = flat_from + int(level[0])
    blurred = begins - flat_from <= 8 and (np.abs(flat[flat_from:begins] - flat[begins]) <= 2 * _NEAR).all()
    first = flat_from if blurred else begins  # JPEG blurs an edge, within a block
    bar, above = levels[first:], levels[max(0, 2 * first - len(levels)) : first]
    if not _LEAST_ROWS <= len(bar) <= _HIGHEST * height or len(above) < _LEAST_ROWS:
        return 0
    jump = (np.abs(levels[first - 1] - flat[begins]) <= 8).mean() <= 0.5
    picture = (share[max(0, flat_from - 4) : flat_from] < _FLAT).sum() >= min(3, flat_from)
    few = _near(np.bincount(above.ravel(), minlength=256)[None]).max() / above.size <= _FLAT
    return len(bar) if jump and picture and few and _is_text(bar, flat[first:]) else 0


def _is_text(bar: Levels, flat: npt.NDArray[np.intp]) -> bool:
    """Whether rows are one level with text of one other on it."""
    counts = np.bincount(bar.ravel(), minlength=256)
    ground = int(_near(counts[None]).argmax())
    written = np.abs(bar - ground) > _FAR
    amount = written.mean()
    if not 0.004 <= amount <= 0.45 or (np.abs(flat - ground) <= 2 * _NEAR).mean() < 0.7:
        return False
    ink = np.bincount(bar[written], minlength=256)
    one_ink = np.convolve(ink, np.ones(25), "same").max() / ink.sum() >= 0.25
    two_levels = (np.abs(bar - ground) <= 2 * _NEAR).mean() + amount >= 0.85
    columns = written[written.mean(axis=1) < 0.6].any(axis=0).astype(np.int8)  # without the lines of a frame
    return bool(one_ink and two_levels and (np.diff(columns) == 1).sum() >= 5)


def _as_levels(strip: Array) -> Levels | None:
    """Grey levels of 0 to 255; None of a strip of one level, or with pixels that are no number."""
    if not strip.size:
        return None
    if strip.dtype == np.uint8:
        return strip.astype(np.int16)
    low, high = float(strip.min()), float(strip.max())
    if not np.isfinite(high - low) or high <= low:
        return None
    levels = np.empty(strip.shape, np.int16)
    for rows in _few_rows(levels):  # numbers of 8 bytes of all of them at once would be most of a small run's memory
        levels[rows] = (strip[rows].astype(np.float64) - low) * (255 / (high - low))
    return levels


def _count_rows(levels: Levels) -> npt.NDArray[np.intp]:
    """Pixels of each level in each row, ``(rows, 256)``."""
    counts = np.empty((len(levels), 256), np.intp)
    for rows in _few_rows(levels):
        some = levels[rows]
        first = np.arange(len(some))[:, None] * 256
        counts[rows] = np.bincount((first + some).ravel(), minlength=256 * len(some)).reshape(-1, 256)
    return counts


def _few_rows(levels: Levels) -> Iterator[slice]:
    """All rows, some at a time."""
    return (slice(start, start + 32) for start in range(0, len(levels), 32))


def _near(counts: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Pixels within `_NEAR` levels of each."""
    padded = np.pad(counts, ((0, 0), (_NEAR, _NEAR)))
    total: npt.NDArray[np.intp] = np.sum([padded[:, i : i + 256] for i in range(2 * _NEAR + 1)], axis=0)
    return total
