"""What Imaris says of the volumes in its HDF5 files: channels and time points at several resolutions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tilelab.io.images.units import length_nm

DATASET = re.compile(r"/DataSet/ResolutionLevel (\d+)/TimePoint (\d+)/Channel (\d+)/Data")


def finest(datasets: Sequence[Any]) -> list[Any]:
    """Of the datasets of a file those at full resolution, time point by time point; all where it is not Imaris's."""
    found = {tuple(map(int, m.groups())): d for d in datasets if (m := DATASET.fullmatch(str(d.name)))}
    if not found or len(found) < len(datasets):
        return list(datasets)
    return [found[at] for at in sorted(found) if at[0] == min(found)[0]]


def imaris_size(dataset: Any) -> tuple[int, ...] | None:
    """What of a dataset is the image, which is stored in whole chunks; None of datasets that are not Imaris's."""
    if dataset.ndim != 3 or not DATASET.fullmatch(dataset.name):
        return None
    try:
        stated = [int(_text(dataset.parent.attrs[f"ImageSize{axis}"])) for axis in "ZYX"]
    except (KeyError, ValueError, TypeError):
        return None
    return tuple(min(n, size) if n > 0 else size for n, size in zip(stated, map(int, dataset.shape), strict=True))


def imaris_scale(dataset: Any, shape: tuple[int, ...]) -> dict[str, float] | None:
    """Nanometres per pixel: the extent of the whole by the pixels of this level; None of others' datasets."""
    if not DATASET.fullmatch(dataset.name):
        return None
    try:
        said = dataset.file["DataSetInfo/Image"].attrs
        unit = _text(said["Unit"])
        extents = [float(_text(said[f"ExtMax{i}"])) - float(_text(said[f"ExtMin{i}"])) for i in range(3)]
    except (KeyError, ValueError, TypeError):
        return {}
    sizes = {a: length_nm(extent / n, unit) for a, extent, n in zip("xyz", extents, shape[::-1], strict=True)}
    return {a: size for a, size in sizes.items() if size is not None}


def _text(value: Any) -> str:
    """A text of Imaris, an array of single characters."""
    return b"".join(value).decode("latin-1")
