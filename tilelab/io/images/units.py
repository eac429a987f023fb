"""Lengths as image files write them, in nanometres."""

from __future__ import annotations

import math
from typing import Any

_NM = {
    "m": 1e9,
    "dm": 1e8,
    "cm": 1e7,
    "mm": 1e6,
    "um": 1e3,
    "nm": 1.0,
    "pm": 1e-3,
    "fm": 1e-6,
    "angstrom": 0.1,
    "inch": 2.54e7,
}
_NAMES = {
    "meter": "m",
    "metre": "m",
    "decimeter": "dm",
    "centimeter": "cm",
    "centimetre": "cm",
    "millimeter": "mm",
    "millimetre": "mm",
    "micrometer": "um",
    "micrometre": "um",
    "micron": "um",
    "mum": "um",
    "um.": "um",
    "âµm": "um",  # UTF-8 read as Latin-1
    "&#181;m": "um",
    "microns": "um",
    "µm": "um",  # micro sign
    "μm": "um",  # Greek letter mu
    "\\u00b5m": "um",  # as ImageJ escapes it
    "nanometer": "nm",
    "nanometre": "nm",
    "picometer": "pm",
    "picometre": "pm",
    "femtometer": "fm",
    "femtometre": "fm",
    "å": "angstrom",
    "Å".lower(): "angstrom",
    "a": "angstrom",
    "ångström": "angstrom",
    "ångstrom": "angstrom",
    "ang": "angstrom",
    "in": "inch",
    "inches": "inch",
}

PRINTER_NM = 10_000.0
"""Pixels of this size and more (2540 dpi and less) are what printers and screens have, not electron microscopes."""


def length_nm(value: Any, unit: Any) -> float | None:
    """`value` times `unit` in nanometres; None when either is unknown or makes no sense as a pixel size."""
    name = str(unit).strip().lower()
    one = name.removesuffix("s") if len(name) > 3 else name  # "ms" is no length
    name = _NAMES.get(name, _NAMES.get(one, one))
    try:
        length = float(value) * _NM[name]
    except (KeyError, TypeError, ValueError):
        return None
    return length if math.isfinite(length) and length > 0 else None


def resolution_nm(pixels: float, unit: str) -> float | None:
    """Pixel size from a resolution in `pixels` per `unit`; None when it is a printer's or a screen's."""
    if not pixels > 0:
        return None
    length = length_nm(1 / pixels, unit)
    return length if length is not None and length < PRINTER_NM else None
