"""What Berkeley's EMD says of a dataset of an HDF5 file: every axis has a vector beside it, with a name and a unit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tilelab.errors import InputError
from tilelab.io.images.units import length_nm

_GROUP = "emd_group_type"
_SPATIAL = re.compile(r"(?:^|[_ ])([xyz])$")
_ENERGIES = ("ev", "kev")
_SECONDS = ("s", "ms")


@dataclass(frozen=True)
class EmdAxes:
    """Letters of the axes as they are stored, and nanometres per pixel of those whose unit is a length."""

    letters: str
    scale_nm: dict[str, float]


def emd_axes(dataset: Any) -> EmdAxes | None:
    """The axes of a dataset in an EMD group; None of others, and where they have no names.

    Raises:
        InputError: they are those of diffraction patterns at many places, or of spectra.
    """
    group = dataset.parent
    if _GROUP not in group.attrs:
        return None
    letters = ""
    sizes: dict[str, float] = {}
    for i, length in enumerate(dataset.shape):
        vector = group.get(f"dim{i + 1}")
        name, unit = ("", "") if vector is None else (_text(vector.attrs.get(key)) for key in ("name", "units"))
        name, unit = name.lower(), unit.strip("[] ").replace("_", "")
        found = _SPATIAL.search(name)
        if name.startswith(("q_", "k_")) or unit.lower() in _ENERGIES:
            what = "spectra" if unit.lower() in _ENERGIES else "diffraction patterns"
            raise InputError(f"{group.file.filename}::{dataset.name} holds {what}: tilelab segments images")
        letter = found[1] if found else "t" if unit.lower() in _SECONDS else "c"
        letters += letter
        if found and length > 1:
            size = _step(vector, length)
            sizes |= {} if size is None or (nm := length_nm(size, unit)) is None else {letter: nm}
    if not {"y", "x"} <= {*letters} or len({*letters}) < len(letters):
        return None
    return EmdAxes(letters, sizes)


def _step(vector: Any, length: int) -> float | None:
    """The distance of two entries of an axis, whose vector has all of them or the first two."""
    try:
        last = min(length, int(vector.shape[0])) - 1
        return abs(float(vector[last]) - float(vector[0])) / last if last > 0 else None
    except (TypeError, ValueError):
        return None


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else "" if value is None else str(value)
