"""What `tilelab info` tells of an image."""

from __future__ import annotations

from typing import Any

from tilelab.cli.info_words import Rows, axes_text, levels_text, pixel_text, plain_text
from tilelab.cli.screen import assumption_rows
from tilelab.text import format_bytes, size_text


def image_rows(image: dict[str, Any]) -> Rows:
    """For people."""
    known = image["pixel_size_nm"]
    rows: Rows = [
        ("format", ", ".join(str(image[key]) for key in ("format", "layout", "compression") if image.get(key))),
        ("size", f"{axes_text(image['axes'], image['shape'])}, {image['dtype']}"),
        ("pixel size", pixel_text(None if known is None else list(known.items()))),
        (
            "chunks",
            size_text(image["chunks"]) + (f" in shards of {size_text(image['shards'])}" if image.get("shards") else ""),
        ),
        (
            "stored",
            f"{image['stored']} {'shards' if image.get('shards') else 'chunks'}" if image.get("stored") else None,
        ),
        ("levels", levels_text(image["levels"])),
        ("on disk", format_bytes(image["bytes"]) if image.get("bytes") else None),
    ]
    seen = image.get("image")
    if seen is not None and (seen["axes"], seen["shape"], seen["dtype"]) != (
        image["axes"],
        image["shape"],
        image["dtype"],
    ):
        rows.append(("read as", f"{axes_text(seen['axes'], seen['shape'])}, {seen['dtype']}"))
    rows += [("needs", image.get("error"))]
    rows += [(f"series {i}", text) for i, text in enumerate(image.get("series", ()))]
    rows += [
        (key, plain_text(image[key]))
        for key in ("images", "slices", "labels", "name")
        if image.get(key) not in (None, 1)
    ]
    rows += [("info bar", f"the lowest {image['bar']} rows, which `infer` leaves out")] if image.get("bar") else []
    rows += [("warning", warning) for warning in image.get("warnings", ())]
    return rows + [("assumed", text) for text in assumption_rows(image["assumptions"]).values()]
