"""The images of a TIFF file, and which of them is meant: never a preview, a label or a mask."""

from __future__ import annotations

import math
import re

import numpy as np
import tifffile

from tilelab.assumptions import Assumption
from tilelab.io.images.several import choose, guessed
from tilelab.text import size_text

_REDUCED, _MASK = 1, 4  # of NewSubfileType
_RGB, _YCBCR, _PALETTE = 2, 6, 3
_ASIDE = {"thumbnail", "label", "macro", "preview", "overview"}


def significant(axes: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Axes without those of one entry, y and x excepted; in lower case."""
    pairs = [(a.lower(), int(n)) for a, n in zip(axes, shape, strict=True) if n != 1 or a in "YX"]
    return "".join(a for a, _ in pairs), tuple(n for _, n in pairs)


def choose_image(
    path: str, images: list[tifffile.TiffPageSeries], series: str | None
) -> tuple[int, tuple[str, ...], tuple[Assumption, ...]]:
    """The index of the image that is read, what there is to say of each, and the guess where nobody chose.

    Previews, labels and masks say so, by NewSubfileType or name; a first image that is a smaller picture of the same
    shape as a later one is taken for one too, and so is a first picture in colours beside one of more bits.
    """
    shown = [_describe(image) for image in images]
    said = choose(path, series, [str(image.name) for image in images], shown)
    if said is not None or len(images) == 1:
        return said or 0, tuple(shown), ()
    extents = [tuple(n for a, n in zip(s.axes, s.shape, strict=True) if a in "YX") for s in images]
    full = [i for i, s in enumerate(images) if not _is_aside(s)] or [0]
    chosen, because = full[0], "it is the first" if full[0] == 0 else "those before it are previews or labels"
    larger = [i for i in full if _is_preview(extents[chosen], extents[i])]
    deeper = [i for i in full if extents[i] == extents[chosen] and _is_data(images[i]) and _is_picture(images[chosen])]
    if larger:
        because = f"image {chosen} is a smaller picture of the same shape"
        chosen = max(larger, key=lambda i: math.prod(extents[i]))
    elif deeper:
        because = f"image {chosen} is a picture in colours of the same extent"
        chosen = deeper[0]
    sure = len(full) == 1 and not chosen
    return chosen, tuple(shown), () if sure else (guessed(path, chosen, shown, because),)


def _describe(image: tifffile.TiffPageSeries) -> str:
    """An image of several, for people."""
    axes, shape = significant(image.axes, image.shape)
    return " ".join(part for part in (str(image.name or ""), size_text(shape), axes, str(image.dtype)) if part)


def _is_aside(image: tifffile.TiffPageSeries) -> bool:
    """Whether an image says that it is a preview, a label, an overview of the slide, or a mask."""
    words = {*re.findall(r"[a-z]+", str(image.name or "").lower())}
    return bool(int(image.keyframe.subfiletype) & (_REDUCED | _MASK)) or bool(words & _ASIDE)


def _is_picture(image: tifffile.TiffPageSeries) -> bool:
    page = image.keyframe
    return int(page.photometric) in (_RGB, _YCBCR, _PALETTE) and page.dtype == np.uint8


def _is_data(image: tifffile.TiffPageSeries) -> bool:
    page = image.keyframe
    return page.samplesperpixel == 1 and page.dtype is not None and page.dtype.itemsize > 1


def _is_preview(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    """Whether an image of extent `small` (y, x) may be a preview of `large`: at most half as wide and alike."""
    if len(small) != 2 or len(large) != 2 or 2 * max(small) > max(large):
        return False
    return abs(small[0] * large[1] - small[1] * large[0]) <= 0.05 * small[0] * large[1]
