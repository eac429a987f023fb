"""Masks: where the result is wanted."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from tilelab.arrays import Array
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.images.axes import FLAG
from tilelab.io.images.image import Image
from tilelab.io.images.region import RegionImage, crop
from tilelab.io.images.several import FLAG as SERIES_FLAG
from tilelab.io.images.volume import Volume
from tilelab.text import size_text

_SMALL = 2**24
_FLAGS = {FLAG: "--mask-axes", SERIES_FLAG: "--mask-series"}


def open_mask(
    mask: str | Path,
    volume: Volume,
    axes: str | None = None,
    allow_outside: bool = False,
    series: str | None = None,
) -> Volume:
    """Open a mask for `volume`; one plane stands for every slice of a stack.

    `axes` are those that it is stored with, where it does not say, `series` is which of several images it
    is.  Where `volume` is a region of an image, the mask may be of the region or of that image.

    Raises:
        InputError: it cannot be read, or has another size.
    """
    from tilelab.io.images.open import open_image

    image = open_image(mask, axes=axes, series=series, allow_outside=allow_outside, infinite=True)
    image.assumptions = tuple(replace(a, flag=_FLAGS[a.flag]) for a in image.assumptions if a.flag in _FLAGS)
    if isinstance(volume.image, RegionImage):
        image = _same_region(image, volume.image)
    opened = Volume(image)
    if opened.shape[0] == 1:
        opened = _EverySlice(opened.image, volume.shape[0])
    if opened.channels != 1 or opened.shape != volume.shape:
        raise InputError(
            f"mask {image.uri} is {size_text(opened.image.shape)} ({opened.image.axes}), the image "
            f"{size_text(volume.image.shape)} ({volume.image.axes}): they must have the same size "
            "(--mask-axes names the axes of the mask)"
        )
    return opened if opened.dtype.kind != "f" else _Told(opened)


def _same_region(mask: Image, part: RegionImage) -> Image:
    """The region of a `mask` that is as large as the image that `part` is of; any other mask as it is."""
    whole, stack = Volume(part.whole).shape, Volume(mask).shape
    if stack[1:] != whole[1:] or stack[0] not in (1, whole[0]):
        return mask
    ends = dict(zip(part.axes, zip(part.box.start, part.box.stop, strict=True), strict=True))
    return crop(mask, [ends.get(a, (0, 1)) if stack[0] > 1 or a != "z" else (0, 1) for a in mask.axes if a != "c"])


class _EverySlice(Volume):
    """A plane that stands for every slice of a stack."""

    def __init__(self, image: Image, depth: int) -> None:
        super().__init__(image)
        self.shape = (depth, *self.shape[1:])

    def read(self, box: Box) -> Array:
        plane = super().read(Box((0, *box.start[1:]), (1, *box.stop[1:])))
        return np.broadcast_to(plane, (1, *box.shape))


class _Told(Volume):
    """A mask of floats, which must say of every pixel whether it is wanted."""

    def __init__(self, volume: Volume) -> None:
        super().__init__(volume.image)
        self.shape, self._volume = volume.shape, volume
        if math.prod(volume.shape) <= _SMALL:
            self.read(Box.whole(volume.shape))  # better refused before the work

    def read(self, box: Box) -> Array:
        region = self._volume.read(box)
        wrong = np.isnan(region[0])
        if wrong.any():
            first = ", ".join(
                f"{a} {b + int(i)}" for a, b, i in zip("zyx", box.start, np.argwhere(wrong)[0], strict=True)
            )
            raise InputError(
                f"mask {self.image.uri} has {int(wrong.sum())} pixels that are NaN in {box}, the first at {first}: "
                "0 is not wanted, anything else is"
            )
        return region
