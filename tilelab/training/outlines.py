"""Outlines of classes in a GeoJSON file, as QuPath exports them: where they were drawn, pixels have a class."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tilelab.arrays import Float64, UInt8
from tilelab.errors import InputError
from tilelab.training.sections import IGNORE


def read_outlines(path: Path, shape: tuple[int, int], names: Sequence[str]) -> UInt8:
    """The classes of a plane's pixels, uint8 ``(y, x)``; `IGNORE` where nothing was drawn.

    A pixel belongs to an outline that holds its centre; later ones lie on top.  Coordinates are pixels of the image
    from its upper left corner.  Which class an outline is, its classification's name says.

    Raises:
        InputError: the file is no GeoJSON, or an outline has no class of the model; what there is, is named.
    """
    try:
        document = json.loads(path.read_bytes())
        features = document["features"] if isinstance(document, dict) and "features" in document else document
        features = [features] if isinstance(features, dict) else list(features)
        drawn = [(_name_of(feature), _polygons(feature["geometry"])) for feature in features]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"{path} is no GeoJSON of polygons: {type(error).__name__} {error}") from error
    known = {name.lower(): index for index, name in enumerate(names)}
    classes: UInt8 = np.full(shape, IGNORE, np.uint8)
    for name, polygons in drawn:
        if name.lower() not in known:
            raise InputError(
                f"{path} has an outline of class {name or 'none'!r}, the model knows {', '.join(names)}: "
                "give it one of these in QuPath"
            )
        for rings in polygons:
            _fill(classes, rings, known[name.lower()])
    return classes


def _name_of(feature: dict[str, Any]) -> str:
    properties = feature.get("properties") or {}
    told = properties.get("classification") or {}
    return str(told.get("name") or properties.get("name") or "")


def _polygons(geometry: dict[str, Any]) -> list[list[Float64]]:
    """Polygons as rings of points ``(n, 2)``, x first; lines and points hold no pixel and are left out."""
    parts = {"Polygon": lambda c: [c], "MultiPolygon": list}.get(geometry["type"], lambda _: [])(
        geometry["coordinates"]
    )
    return [[np.asarray(ring, float)[:, :2] for ring in part] for part in parts]


def _fill(classes: UInt8, rings: Sequence[Float64], label: int) -> None:
    """Set the pixels whose centres an odd number of the rings' edges lies left of: holes are no part."""
    edges = np.concatenate([np.stack([ring, np.roll(ring, -1, axis=0)], axis=1) for ring in rings])
    (x0, y0), (x1, y1) = edges[:, 0].T, edges[:, 1].T
    height, width = classes.shape
    first, last = max(0, int(np.floor(y0.min()))), min(height, int(np.ceil(y0.max())) + 1)
    for row in range(first, last):
        y = row + 0.5
        crossed = (y0 <= y) != (y1 <= y)
        if not crossed.any():
            continue
        a, b, c, d = (values[crossed] for values in (x0, y0, x1, y1))
        at = np.sort(a + (y - b) * (c - a) / (d - b))
        columns = np.clip(np.ceil(at - 0.5), 0, width).astype(int)
        for start, stop in zip(columns[::2], columns[1::2], strict=False):
            classes[row, start:stop] = label
