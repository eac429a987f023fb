"""What a notebook shows of an image: a thumbnail beside a few facts, from few pixels, however large the image is."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tilelab.arrays import Array, UInt8
from tilelab.errors import TilelabError
from tilelab.text import format_bytes, size_text

if TYPE_CHECKING:
    from tilelab.io.images.image import Image

SIDE = 256
"""Pixels of a thumbnail's longer side, at most."""
_MOST_PIXELS = 2**25
"""Of a plane that is read for a thumbnail; of a larger one that has no coarser level, its middle is drawn."""
_CONTRAST = (0.3, 99.7)


@dataclass(frozen=True)
class Shown:
    """How the pixels of a thumbnail are meant.

    Attributes:
        colors: of the classes, where pixels are indices of them; else they are grey values.
        names: of the classes.
    """

    colors: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


def image_page(image: Image, shown: Shown) -> str:
    """HTML of an image."""
    size = image.pixel_size_nm
    facts = {
        "axes": image.axes,
        "pixels": size_text(image.shape),
        "type": f"{image.dtype}, {format_bytes(image.nbytes)}",
        "pixel size": "not known" if size is None else f"{size_text(f'{v:g}' for v in size)} nm",
        "assumed": "; ".join(str(one).removeprefix("assumed: ") for one in image.assumptions),
    }
    return page(image.uri, facts, *thumbnail(image, shown))


def page(title: str, facts: Mapping[str, str], picture: str, caption: str) -> str:
    """HTML of a picture (an ``<img>``, or nothing) beside facts; those that are empty are left out."""
    rows = "".join(
        f"<tr><th style='text-align:left;vertical-align:top'>{_text(name)}</th><td style='text-align:left'>"
        f"{_text(fact)}</td></tr>"
        for name, fact in facts.items()
        if fact
    )
    side = f"<div>{picture}<div style='font-size:85%'>{caption}</div></div>" if picture or caption else ""
    return (
        "<div style='display:flex;flex-wrap:wrap;gap:1em;align-items:flex-start'>"
        f"{side}<div><b style='overflow-wrap:anywhere'>{_text(title)}</b><table>{rows}</table></div></div>"
    )


def thumbnail(image: Image, shown: Shown) -> tuple[str, str]:
    """An ``<img>`` of a plane, and what it shows; no picture where it cannot be read."""
    try:
        plane, said = _read_plane(image)
    except TilelabError as error:
        return "", _text(f"no picture: {error}")
    if shown.colors:
        present = np.unique(plane)
        legend = [_chip(shown.colors[i], shown.names[i]) for i in present.tolist() if i < len(shown.colors)]
        return _img(_paint(plane, shown.colors)), " &nbsp; ".join([*legend, *([_text(said)] if said else [])])
    return _img(_stretch(plane)), _text(said)


def _read_plane(image: Image) -> tuple[Array, str]:
    """The middle slice of the first channel, from the coarsest level that does, and which part that is."""
    level = image if image.reduced is None else image.reduced(SIDE)
    try:
        extent = dict(zip(level.axes, level.shape, strict=True))
        height, width = extent["y"], extent["x"]
        at: dict[str, Any] = {"c": 0, "z": extent.get("z", 1) // 2}
        said = [f"slice {at['z']} of {extent['z']}"] if extent.get("z", 1) > 1 else []
        said += [f"channel 0 of {extent['c']}"] if extent.get("c", 1) > 1 else []
        if height * width > _MOST_PIXELS:
            for axis, n in (("y", height), ("x", width)):
                first = max(0, (n - 4 * SIDE) // 2)
                at[axis] = slice(first, min(n, first + 4 * SIDE), 2)
            said.append(f"the middle {4 * SIDE} pixels")
        else:
            step = max(1, max(height, width) // (2 * SIDE))
            at |= {"y": slice(None, None, step), "x": slice(None, None, step)}
        return level[tuple(at[a] for a in level.axes)], ", ".join(said)
    finally:
        if level is not image:
            level.close()


def _stretch(plane: Array) -> UInt8:
    """Grey values by percentiles."""
    grey = np.nan_to_num(plane.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = np.percentile(grey, _CONTRAST)
    stretched = (grey - low) * (255 / (high - low)) if high > low else np.full_like(grey, 128)
    return np.clip(np.rint(stretched), 0, 255).astype(np.uint8)


def _paint(labels: Array, colors: Iterable[str]) -> UInt8:
    """Class indices as RGB; what is no class is white."""
    table = np.full((256, 3), 255, np.uint8)
    known = np.array([list(bytes.fromhex(color[1:7])) for color in colors], np.uint8)
    table[: len(known)] = known
    return table[labels.astype(np.uint8)]


def _img(pixels: UInt8) -> str:
    from PIL import Image as Picture

    picture, file = Picture.fromarray(pixels), io.BytesIO()
    picture.thumbnail((SIDE, SIDE), Picture.Resampling.BOX)
    picture.save(file, "PNG")
    return f"<img src='data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}' alt='thumbnail'>"


def _chip(color: str, name: str) -> str:
    return (
        f"<span style='display:inline-block;width:.8em;height:.8em;background:{color};border:1px solid gray'></span> "
        f"{_text(name)}"
    )


def _text(text: str) -> str:
    return html.escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))
