"""Pixels that are NaN or infinite: found before the work where a look is cheap, replaced where that is allowed.

They are allowed where a mask says that nothing is wanted (there they are taken as the mean, which a network sees as
nothing special), and everywhere once the user gives a value for them; else they are an error that says where.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from tilelab.arrays import Array, Bool
from tilelab.errors import InputError
from tilelab.geometry import Box, boxes
from tilelab.io.images.volume import Volume

WHOLE_PIXELS = 2**27
"""An image without compression is looked at whole up to this size, any other up to that of a few blocks."""
_BLOCKS = 16
_BLOCK = (1, 512, 512)
_BARE_BLOCK = (1, 256, 8192)
_REMEDY = "give a value for them with --nan VALUE, or leave them out with --mask"


class FiniteVolume(Volume):
    """`volume` with every pixel finite.

    Args:
        volume: what is read.
        fill: value of each channel where `mask` is zero and nothing else is given.
        mask: where pixels are wanted; None for everywhere.
        value: of pixels that are NaN or infinite, wherever they are; None where they are wanted is an error.
    """

    def __init__(self, volume: Volume, fill: Sequence[float], mask: Volume | None, value: float | None) -> None:
        super().__init__(volume.image)
        self._volume, self._mask, self._value = volume, mask, value
        self._fill = np.resize(np.asarray(fill, np.float32), volume.channels)[:, None, None, None]

    def read(self, box: Box) -> Array:
        """Region ``(z, y, x)`` with all channels.

        Raises:
            InputError: a wanted pixel is NaN or infinite, and no value was given for it.
        """
        raw = self._volume.read(box)
        if raw.dtype.kind != "f" or bool(np.isfinite(raw).all()):
            return raw
        wrong = ~np.isfinite(raw)
        if self._value is None:
            inside = _wanted(np.logical_or.reduce(wrong), self._mask, box)
            if inside.any():
                found = _place(np.argwhere(inside)[0], box)
                raise InputError(
                    f"{self.image.uri}: {int(inside.sum())} pixels in {box} are NaN or infinite, the first at {found}: "
                    f"{_REMEDY}"
                )
        mended: Array = np.where(wrong, self._fill if self._value is None else np.float32(self._value), raw)
        return mended


def look_for_gaps(volume: Volume, mask: Volume | None, value: float | None) -> tuple[str, ...]:
    """What there is to say of pixels that are NaN or infinite, by a look at all of a small image or at some blocks.

    Raises:
        InputError: there are some where they are wanted, and no value was given for them.
    """
    uri = volume.image.uri
    if volume.dtype.kind != "f":
        return () if value is None else (f"--nan does nothing: {uri} holds whole numbers",)
    chosen, whole = _looked_at(volume)
    seen = found = wanted = 0
    first = ""
    for box in chosen:
        wrong: Bool = ~np.logical_and.reduce(np.isfinite(volume.read(box)))
        seen += wrong.size
        if not wrong.any():
            continue
        inside = _wanted(wrong, mask, box)
        at = inside if value is None and inside.any() and not wanted else wrong
        if not first or (value is None and inside.any() and not wanted):
            first = _place(np.argwhere(at)[0], box)
        found, wanted = found + int(wrong.sum()), wanted + int(inside.sum())
    if not found:
        return ()
    count = wanted if value is None and wanted else found
    share = f"{count} of {seen} pixels{'' if whole else ' looked at'} ({_percent(count / seen)})"
    if value is None and wanted:
        where = " inside the mask" if mask is not None else ""
        raise InputError(f"{uri}: {share} are NaN or infinite{where}, the first at {first}: {_REMEDY}")
    taken = f"taken as {value:g}" if value is not None else "outside the mask, taken as the mean"
    return (f"{uri}: {share} are NaN or infinite, the first at {first}: {taken}",)


def _looked_at(volume: Volume) -> tuple[Iterable[Box], bool]:
    """Blocks to look at, and whether they are all of the image."""
    bare = all(chunk == 1 for chunk in volume.chunks)
    pixels = math.prod(volume.shape)
    if pixels <= (WHOLE_PIXELS if bare else _BLOCKS * math.prod(_BLOCK)):
        return boxes(volume.shape, _BARE_BLOCK if bare else _BLOCK), True
    counts = [-(-n // e) for n, e in zip(volume.shape, _BLOCK, strict=True)]
    chosen = []
    for i in range(_BLOCKS):
        at = np.unravel_index((2 * i + 1) * math.prod(counts) // (2 * _BLOCKS), counts)
        start = tuple(int(k) * e for k, e in zip(at, _BLOCK, strict=True))
        chosen.append(Box(start, tuple(min(n, a + e) for n, a, e in zip(volume.shape, start, _BLOCK, strict=True))))
    return chosen, False


def _wanted(wrong: Bool, mask: Volume | None, box: Box) -> Bool:
    """Those of the pixels of a region where the result is wanted."""
    return wrong if mask is None else wrong & (mask.read(box)[0] != 0)


def _place(at: Sequence[int], box: Box) -> str:
    places = [int(a) + int(i) for a, i in zip(box.start, at, strict=True)]
    return ", ".join(f"{axis} {place}" for axis, place in zip("zyx", places, strict=True))


def _percent(share: float) -> str:
    return f"{share:.2%}" if share >= 1e-4 else f"{share:.2g}"
