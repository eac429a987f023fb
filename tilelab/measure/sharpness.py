"""How sharp an image is, as a whole and place by place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilelab.arrays import Array, Float64
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.images.image import Image
from tilelab.io.images.volume import Volume
from tilelab.kernels.jit import jit

MEASURES = ("brenner", "smd2", "variance", "vollath")
_PIXELS, _SUM, _SQUARES, _BRENNER, _SMD2, _PRODUCTS = range(6)

_jit = jit()


@dataclass(frozen=True)
class Sharpness:
    """Four measures of an image, in squares of its intensities, larger where it is sharper.

    ``brenner``   sum of (f(x + 2, y) - f(x, y))**2
    ``smd2``      sum of |f(x, y) - f(x + 1, y)| |f(x, y) - f(x, y + 1)|
    ``variance``  sum of (f - mean)**2
    ``vollath``   sum of f(x, y) f(x + 1, y), less pixels times mean**2

    Sums are over the pixels whose partners lie in the image; of whole numbers they are exact.  What is told is a sum
    over the number of pixels, so that images of different sizes compare.  Pixels that are no number (NaN, infinite)
    take no part.

    Attributes:
        pixels: number of pixels.
        values: each measure, over `pixels`.
        maps: the same for the pixels of each block, float64 ``(blocks along y, blocks along x)``; of a stack the mean
            over its planes; NaN where no pixel is a number.
        left_out: pixels that are no number.
    """

    pixels: int
    values: dict[str, float]
    maps: dict[str, Float64]
    left_out: int = 0


def measure_sharpness(image: Image, *, block: int = 256, shrink: int = 1) -> Sharpness:
    """Measure an image in bands of `block` rows, all of its planes together.

    Args:
        image: axes ``yx`` or ``zyx``.
        block: side of the blocks of the maps, in pixels of the shrunk image.
        shrink: average so many pixels a side first; what does not fill a pixel at the end is left out.

    Raises:
        InputError: it has channels, is smaller than what is averaged, or holds no pixel that is a number.
    """
    volume = Volume(image)
    if volume.channels != 1:
        raise InputError(f"{image.uri} has {volume.channels} channels: choose one with --channel")
    depth, height, width = volume.shape[0], volume.shape[1] // shrink, volume.shape[2] // shrink
    if min(height, width) < 1:
        raise InputError(f"{image.uri} has {volume.shape[2]} x {volume.shape[1]} pixels: --shrink {shrink} leaves none")
    whole = image.dtype.kind in "iu" and shrink == 1
    blocks = -(-height // block), -(-width // block)
    sums: Any = [[0] * 6 for _ in range(blocks[0] * blocks[1])] if whole else np.zeros((blocks[0] * blocks[1], 6))
    for z in range(depth):
        for row, y in enumerate(range(0, height, block)):
            last = min(height, y + block)
            rows = _read(volume, z, y, min(height, last + 1), width, shrink, whole)
            found = np.zeros((blocks[1], 6), rows.dtype)
            _add(rows, last - y, block, found)
            for column in range(blocks[1]):
                at = row * blocks[1] + column
                more = found[column].tolist()
                sums[at] = [a + b for a, b in zip(sums[at], more, strict=True)]  # Python's integers have no end
    total = [sum(one[i] for one in sums) for i in range(6)]
    if not total[_PIXELS]:
        raise InputError(f"{image.uri} holds no pixel that is a number: there is nothing to measure")
    maps = [_tell(one) for one in sums]
    return Sharpness(
        int(total[_PIXELS]),
        _tell(total),
        {name: np.array([one[name] for one in maps]).reshape(blocks) for name in MEASURES},
        depth * height * width - int(total[_PIXELS]),
    )


def _tell(sums: Any) -> dict[str, float]:
    """The measures from sums, each over the number of pixels; NaN where there is none."""
    pixels = sums[_PIXELS]
    if not pixels:
        return dict.fromkeys(MEASURES, math.nan)
    square = sums[_SUM] * sums[_SUM]
    found = (
        sums[_BRENNER] / pixels,
        sums[_SMD2] / pixels,
        (sums[_SQUARES] * pixels - square) / (pixels * pixels),
        (sums[_PRODUCTS] * pixels - square) / (pixels * pixels),
    )
    return {name: float(value) for name, value in zip(MEASURES, found, strict=True)}


def _read(volume: Volume, z: int, y: int, stop: int, width: int, shrink: int, whole: bool) -> Array:
    """Rows of the shrunk image, int64 or float64."""
    box = Box((z, y * shrink, 0), (z + 1, stop * shrink, width * shrink))
    stored: Array = volume.read(box)[0, 0]
    rows: Array = stored.astype(np.int64 if whole else np.float64)
    if shrink == 1:
        return rows
    means: Array = rows.reshape(stop - y, shrink, width, shrink).mean(axis=(1, 3))
    return means


@_jit
def _add(rows: Any, own: int, block: int, found: Any) -> None:
    """Add the terms of the first `own` rows to the blocks that they begin in; those of what is no number are none."""
    height, width = rows.shape
    for y in range(own):
        for x in range(width):
            here = rows[y, x]
            if here - here != 0:  # NaN and infinite, of any type
                continue
            cell = found[x // block]
            cell[0] += 1
            cell[1] += here
            cell[2] += here * here
            if x + 2 < width:
                beyond = rows[y, x + 2]
                if beyond - beyond == 0:
                    cell[3] += (beyond - here) ** 2
            if x + 1 < width:
                beside = rows[y, x + 1]
                if beside - beside != 0:
                    continue
                cell[5] += here * beside
                if y + 1 < height:
                    below = rows[y + 1, x]
                    if below - below == 0:
                        cell[4] += abs(here - beside) * abs(here - below)
