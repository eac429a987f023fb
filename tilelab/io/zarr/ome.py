"""The OME-NGFF 0.5 attributes of a result: plain dictionaries, as they stand in its ``zarr.json`` files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tilelab.io.zarr.layout import Layout
from tilelab.spec import ClassInfo

VERSION = "0.5"
LABEL = "classes"
"""Name of the label image under ``labels/``."""


def group(attributes: dict[str, Any]) -> dict[str, Any]:
    """The ``zarr.json`` of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def multiscale(
    layout: Layout,
    axes: str,
    pixel_size_nm: Sequence[float] | None,
    *,
    name: str,
    method: str,
    levels: int,
    prefix: str = "",
    origin_px: Sequence[float] = (),
) -> dict[str, Any]:
    """One entry of ``multiscales``.

    Args:
        layout: the result's levels.
        axes: of the arrays, e.g. ``cyx``.
        pixel_size_nm: per spatial axis in `axes`, or None when unknown: then coordinates are in pixels.
        name: of the image.
        method: how a level was made from the one before.
        levels: how many there are.
        prefix: of the arrays' paths, e.g. ``labels/classes/``.
        origin_px: where the first pixel lies, in pixels per spatial axis; empty means at 0.
    """
    space = [axis for axis in axes if axis != "c"]
    size = dict(zip(space, pixel_size_nm or (1.0,) * len(space), strict=True))
    origin = dict(zip(space, origin_px or (0.0,) * len(space), strict=True))
    unit = {} if pixel_size_nm is None else {"unit": "nanometer"}
    datasets = []
    for level in range(levels):
        times = dict(zip("zyx", layout.scale(level), strict=True))
        # The centre of a coarse pixel lies between those of the fine pixels it is made of.
        datasets.append(
            {
                "path": f"{prefix}{level}",
                "coordinateTransformations": [
                    {"type": "scale", "scale": [1.0 if a == "c" else size[a] * times[a] for a in axes]},
                    {
                        "type": "translation",
                        "translation": [0.0 if a == "c" else size[a] * (origin[a] + (times[a] - 1) / 2) for a in axes],
                    },
                ],
            }
        )
    return {
        "name": name,
        "type": method,
        "axes": [{"name": a, "type": "channel"} if a == "c" else {"name": a, "type": "space", **unit} for a in axes],
        "datasets": datasets,
    }


def image(scales: dict[str, Any], channels: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The ``ome`` attribute of an image."""
    return {"version": VERSION, "multiscales": [scales], "omero": {"channels": list(channels)}}


def channel(label: str, color: str, low: float, high: float) -> dict[str, Any]:
    """One entry of ``omero.channels``; `color` is ``#rrggbb``, and black becomes white, which can be seen."""
    seen = "FFFFFF" if color == "#000000" else color[1:].upper()
    window = {"min": low, "max": high, "start": low, "end": high}
    return {"label": label, "color": seen, "active": True, "window": window}


def label_image(scales: dict[str, Any], classes: Sequence[ClassInfo]) -> dict[str, Any]:
    """The ``ome`` attribute of the label image; the background (class 0) is transparent."""
    colors = [{"label-value": i, "rgba": [*bytes.fromhex(c.color[1:]), 255 if i else 0]} for i, c in enumerate(classes)]
    return {
        "version": VERSION,
        "multiscales": [scales],
        "image-label": {
            "version": VERSION,
            "colors": colors,
            "properties": [{"label-value": i, "name": c.name} for i, c in enumerate(classes)],
            "source": {"image": "../../"},
        },
    }
