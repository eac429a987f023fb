"""Whether what is converted holds labels: its metadata say so, the user does, or it has hardly any values."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilelab.assumptions import Assumption
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.images.formats import open_stored
from tilelab.io.images.image import Image
from tilelab.io.results.tiff import read_tiff_info
from tilelab.io.results.tiff_pyramid import read_tiff_label
from tilelab.io.storage.place import Place
from tilelab.spec import ClassInfo, default_colors

_MOST_VALUES = 16
_CLASSES = 255
_LOOK = 1024


@dataclass(frozen=True)
class LabelSource:
    """What is known of labels in a source before it is opened.

    Attributes:
        label: what there is to say of them (``image-label``); None where it is an image like others.
        beside: names of label images that belong to the image.
        home: the group below which they are; None where only a level of the image was named.
        wide: the dtype of whole numbers that an image would lose (they become float32); empty of others.
        lost: what else of it an image does not keep, for people; empty where that is nothing.
    """

    label: Mapping[str, Any] | None = None
    beside: tuple[str, ...] = ()
    wide: str = ""
    lost: str = ""
    home: Place | None = None


def find_labels(source: Any, series: str | int | None, channel: int | None, *, labels: bool | None) -> LabelSource:
    """What the metadata of a source and the user say of labels in it.

    Raises:
        InputError: it cannot be opened, or mixes classes with probabilities.
    """
    stored = open_stored(source, 0, None if series is None else str(series))
    if stored is None:
        return LabelSource({} if labels else None)
    try:
        told, beside = stored.details.get("label"), tuple(stored.details.get("labels") or ())
        wide = str(stored.dtype) if stored.dtype.kind in "iu" and stored.dtype not in (np.uint8, np.uint16) else ""
        lost = "is in colours, which become grey: --channel keeps one as it is" if stored.rgb else ""
        lost = f"has {stored.dtype} pixels, which become float32" if stored.dtype == np.float64 else lost
        if told is None and "TIFF" in stored.format and isinstance(source, str | os.PathLike):
            told = _of_result(os.fspath(source), stored.axes, channel)
    finally:
        stored.close()
    if labels is not None:
        return LabelSource((told or {}) if labels else None, beside, "" if labels else wide, lost, stored.home)
    label = told if isinstance(told, Mapping) else None
    return LabelSource(label, beside, "" if told is not None else wide, lost, stored.home)


def _of_result(path: str, axes: str, channel: int | None) -> dict[str, Any] | None:
    """What a result that was written as TIFF says of its classes; None of other files, and of probabilities."""
    try:
        info = read_tiff_info(path)
    except InputError:
        return read_tiff_label(path)
    if not info.labels or (channel or 0) > 0:
        return None
    if "c" in axes and channel is None:
        raise InputError(
            f"{path} holds classes and probabilities: choose --channel 0, which are the classes, or another"
        )
    colors = [
        {"label-value": i, "rgba": [*bytes.fromhex(c.color[1:]), 255 if i else 0]} for i, c in enumerate(info.classes)
    ]
    names = [{"label-value": i, "name": c.name} for i, c in enumerate(info.classes)]
    return {"colors": colors, "properties": names}


def read_label_texts(told: Mapping[str, Any]) -> tuple[dict[int, str], dict[int, str]]:
    """Colours and names of labels that ``image-label`` states; what is no number, colour or name is left out."""
    colors: dict[int, str] = {}
    names: dict[int, str] = {}
    for entry in _entries(told, "colors"):
        with contextlib.suppress(KeyError, TypeError, ValueError):
            r, g, b = (int(v) & 255 for v in entry["rgba"][:3])
            colors[int(entry["label-value"])] = f"#{r:02x}{g:02x}{b:02x}"
    for entry in _entries(told, "properties"):
        with contextlib.suppress(KeyError, TypeError, ValueError):
            if name := entry.get("name") or entry.get("class"):
                names[int(entry["label-value"])] = " ".join(str(name).split())
    return colors, names


def _entries(told: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found = told.get(key)
    return [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, list | tuple) else []


def read_label_classes(path: str | os.PathLike[str], series: str | None = None) -> dict[int, ClassInfo]:
    """The classes that the metadata of stored labels name, by value; none where two have one name, as of objects."""
    try:
        told = find_labels(path, series, None, labels=None).label
    except InputError:
        return {}
    colors, names = read_label_texts(told or {})
    if len({*names.values()}) < len(names) or not all(0 <= value < _CLASSES for value in names):
        return {}
    usual = default_colors(max(names, default=0) + 1)
    return {value: ClassInfo(name, colors.get(value, usual[value])) for value, name in sorted(names.items())}


def look_like_labels(image: Image) -> Assumption | None:
    """The guess that an image holds labels, where a look at its middle meets two to sixteen whole numbers alone."""
    if image.dtype.kind != "u":
        return None
    start = [(n - min(n, _LOOK)) // 2 if a in "yx" else n // 2 for a, n in zip(image.axes, image.shape, strict=True)]
    stop = [s + min(n, _LOOK) if a in "yx" else s + 1 for a, s, n in zip(image.axes, start, image.shape, strict=True)]
    values = np.unique(image.read(Box(tuple(start), tuple(stop))))
    if not 2 <= len(values) <= _MOST_VALUES:
        return None
    because = f"it has {len(values)} values, {', '.join(map(str, values[:4]))}{' ...' if len(values) > 4 else ''}"
    return Assumption(what=f"what {image.uri} holds", taken="labels", because=because, flag="--no-labels")
