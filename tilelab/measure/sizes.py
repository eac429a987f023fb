"""Sizes with units, as users write and read them."""

from __future__ import annotations

import math
import re

from tilelab.errors import InputError

_NM = {"nm": 1.0, "um": 1e3, "µm": 1e3, "mm": 1e6}
_SIZE = re.compile(r"\s*([0-9.]+(?:[eE][-+]?\d+)?)\s*(?:(px|nm|um|µm|mm)\s*([23²³])?)?\s*")


def parse_size(text: str, size_nm: tuple[float, float, float] | None, axes: int) -> int:
    """``50``, ``50px``, ``200nm2``, ``0.5um2`` (of a volume ``nm3``) as a number of pixels, rounded up.

    Args:
        text: an area, or in a volume a volume.
        size_nm: of a pixel (z, y, x); None where it is not known.
        axes: 2 or 3.

    Raises:
        InputError: it is none, or needs a pixel size that is not known.
    """
    match = _SIZE.fullmatch(text)
    try:
        value = float(match[1]) if match else math.nan
    except ValueError:
        value = math.nan
    if match is None or not math.isfinite(value):
        raise InputError(f"{text!r} is no size: write 50px, 200nm2 or 0.5um2 (in a volume nm3, um3)")
    power = {None: None, "²": "2", "³": "3"}.get(match[3], match[3])
    if power not in ((None, str(axes)) if match[2] in (None, "px") else (str(axes),)):
        kind = "an area" if axes == 2 else "a volume"
        raise InputError(f"{text!r} is not {kind}, by which objects are chosen here: write 50px or 200nm{axes}")
    if match[2] in (None, "px"):
        return math.ceil(value)
    if size_nm is None:
        raise InputError(f"{text!r} needs the pixel size, which is not known: say it with --pixel-size, or write 50px")
    return math.ceil(value * _NM[match[2]] ** axes / math.prod(size_nm[3 - axes :]) - 1e-9)
