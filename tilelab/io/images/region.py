"""A part of an image, as an image of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tilelab.arrays import Array
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.images.image import Image
from tilelab.io.images.view import check_region
from tilelab.text import size_text

Ends = tuple[int | None, int | None]
Region = Sequence[Ends] | str
"""First pixel and the one after the last, per spatial axis; None is the image's own end."""

_RANGE = re.compile(r"\s*(\d+)?\s*:\s*(\d+)?\s*")


def parse_region(text: str) -> tuple[Ends, ...]:
    """``z0:z1,y0:y1,x0:x1`` as pairs; an end that is left out is the image's.

    Raises:
        InputError: it is not of that form.
    """
    found: list[Ends] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise InputError(
                f"region {text!r} is not understood: give FIRST:STOP per axis, e.g. 0:64,1000:3000,1000:3000 (z,y,x); "
                "an end may be left out"
            )
        first, stop = (None if end is None else int(end) for end in match.groups())
        found.append((first, stop))
    return tuple(found)


def crop(image: Image, region: Region) -> RegionImage:
    """The part of `image` that `region` names.

    Raises:
        InputError: it is malformed, empty, of another number of axes, or reaches beyond the image.
    """
    try:
        ends = parse_region(region) if isinstance(region, str) else tuple((a, b) for a, b in region)
    except (TypeError, ValueError) as error:
        raise InputError(f"region {region!r} is not understood: give (first, stop) per axis, or text") from error
    spatial = image.axes.replace("c", "")
    size = dict(zip(image.axes, image.shape, strict=True))
    extent = size_text(size[a] for a in spatial)
    if len(ends) != len(spatial):
        raise InputError(
            f"region {format_region(ends)} has {len(ends)} ranges, {image.uri} has axes {','.join(spatial)} "
            f"({extent}): give {len(spatial)}"
        )
    ranges = {"c": (0, size.get("c", 1))}
    for axis, (first, stop) in zip(spatial, ends, strict=True):
        a, b = first or 0, size[axis] if stop is None else stop
        if a < 0 or b > size[axis] or a >= b:
            beyond = a < 0 or max(a, b) > size[axis]
            problem = f"reaches beyond it: {axis} goes from 0 to {size[axis]}" if beyond else f"is empty along {axis}"
            raise InputError(f"region {format_region(ends)} of {image.uri} ({','.join(spatial)} {extent}) {problem}")
        ranges[axis] = (a, b)
    return RegionImage(image, Box(tuple(ranges[a][0] for a in image.axes), tuple(ranges[a][1] for a in image.axes)))


def format_region(ends: Sequence[Ends]) -> str:
    """As `parse_region` reads it."""
    return ",".join(f"{'' if a is None else a}:{'' if b is None else b}" for a, b in ends)


class RegionImage(Image):
    """The part `box` (on all axes) of `whole`; closes it too.

    Its size is the region's, so everything that is decided by an image's size (tiles, levels, statistics) is decided by
    the region's; `origin_px` says where it was.
    """

    def __init__(self, whole: Image, box: Box) -> None:
        check_region(whole, box)
        self.whole = whole
        self.box = box
        self.uri, self.axes, self.dtype = whole.uri, whole.axes, whole.dtype
        self.warnings, self.assumptions = whole.warnings, whole.assumptions
        self.pixel_size_nm, self.rgb, self.neighbours = whole.pixel_size_nm, whole.rgb, whole.neighbours
        self.shape = box.shape
        self.chunks = tuple(min(chunk, n) for chunk, n in zip(whole.chunks, box.shape, strict=True))
        phase = whole.chunk_phase or (0,) * len(box.start)
        to_next = ((-a - p) % c for a, p, c in zip(box.start, phase, whole.chunks, strict=True))
        self.chunk_phase = tuple(
            -d % c if d < n else 0 for d, c, n in zip(to_next, self.chunks, box.shape, strict=True)
        )
        begun = [a for axis, a in zip(whole.axes, box.start, strict=True) if axis != "c"]
        self.origin_px = tuple(a + o for a, o in zip(begun, whole.origin_px or (0.0,) * len(begun), strict=True))

    def read(self, box: Box) -> Array:
        check_region(self, box)
        start, stop = (tuple(n + a for n, a in zip(end, self.box.start, strict=True)) for end in (box.start, box.stop))
        return self.whole.read(Box(start, stop))

    def fingerprint(self) -> dict[str, str]:
        """The whole's, and which part."""
        return self.whole.fingerprint() | {"region": self.region}

    @property
    def region(self) -> str:
        """The spatial ranges, as `parse_region` reads them."""
        ends: list[Any] = list(zip(self.box.start, self.box.stop, strict=True))
        return format_region([e for axis, e in zip(self.axes, ends, strict=True) if axis != "c"])

    def close(self) -> None:
        self.whole.close()
