"""What the results of a batch are called: after their images, each name once, and the same in every later run."""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from tilelab.io.images.slices import is_pattern
from tilelab.io.storage.member import split_member
from tilelab.io.storage.place import remote_place
from tilelab.run.batch.row import text_of


def choose_names(images: Iterable[str], known: dict[str, str]) -> dict[str, str]:
    """A name for each image: its own without suffix, or that with its kind, folder or a number where another has it.

    Args:
        images: paths or addresses.
        known: names that images have from an earlier run into the same folder.

    Returns:
        Names by image, in the order of `images`; no two are the same in lower case.
    """
    places = {image: place_of(image) for image in images}
    found = {image: known[place] for image, place in places.items() if place in known}
    taken = {name.lower(): os.path.dirname(place) for place, name in known.items()}  # noqa: PTH120 - addresses too
    for image, place in places.items():
        if image not in found:
            folder = os.path.dirname(place)  # noqa: PTH120
            found[image] = next(name for name in _candidates(image, taken, folder) if name.lower() not in taken)
            taken[found[image].lower()] = folder
    return {image: found[image] for image in places}


def place_of(image: str) -> str:
    """An image's path, whatever the current folder, or its address."""
    return image if remote_place(image) is not None else os.path.abspath(image)  # noqa: PTH100 - links stay


def known_names(table: Path) -> dict[str, str]:
    """The names by place that an earlier run wrote into its table; none where that cannot be read."""
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get("image") and row.get("name")]
            return {row["image"]: text_of(row["name"]) for row in rows}
    except (OSError, ValueError, csv.Error, KeyError):
        return {}


def _candidates(image: str, taken: Mapping[str, str], folder: str) -> Iterator[str]:
    """Names for an image in `folder`, the plainest first; `taken` are those that others have, with their folders."""
    path, member = split_member(image)
    parts = PurePosixPath(path.replace("\\", "/"))
    stem = parts.name
    if is_pattern(path):
        stem = stem.replace("*", "").replace("?", "").strip("_-. ") or parts.parent.name
    suffix = ""
    for known in (".ome.zarr", ".ome.tiff", ".ome.tif", parts.suffix):
        if known and stem.lower().endswith(known) and len(stem) > len(known):
            stem, suffix = stem[: -len(known)], known.replace(".", "_")
            break
    stem = stem.lstrip(".")[:120] or "image"
    yield stem
    inside = member.strip("/").replace("/", "_") if member else ""
    if inside:
        yield f"{stem}_{inside}"[:150]
    elif suffix and taken.get(stem.lower()) == folder:
        yield stem + suffix
    for above in (1, 2):
        inner = "_".join(p for p in Path(place_of(path)).parts[-1 - above : -1] if p.strip("/\\"))
        if inner:
            yield f"{inner}_{stem}"[-150:]
    yield from (f"{stem}-{number}" for number in itertools.count(2))
