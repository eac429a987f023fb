"""What an XML file of BigDataViewer describes: HDF5 or N5 beside it, with setups (angles, channels) and time points."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from tilelab.errors import InputError
from tilelab.io.images.hdf5 import Hdf5Source
from tilelab.io.images.n5 import N5Source
from tilelab.io.images.optional import require
from tilelab.io.images.several import FLAG, SeveralImagesError, choose, listing
from tilelab.io.images.source import Source, check_level
from tilelab.io.images.stated import described_by_bigdataviewer, spim_data
from tilelab.io.storage.outside import beyond

_MOST_TIMES = 10_000


@dataclass(frozen=True)
class _View:
    """One volume: of a setup at a time point."""

    setup: int
    time: int
    name: str


def open_bigdataviewer(path: str, level: int = 0, series: str | None = None) -> Source:
    """The volume that an XML file describes, or of several the one that `series` names, by number or name.

    Raises:
        InputError: it names no file that is there, or several volumes to choose from.
    """
    container = described_by_bigdataviewer(Path(path))
    document = next(spim_data(Path(path).parent, Path(path)), None)
    if container is None or document is None or not Path(container).exists():
        raise InputError(f"{path} describes {container or 'no image'}, which is not there: copy it beside")
    views = _views(document)
    shown = tuple(view.name for view in views)
    taken = choose(path, series, list(shown), shown) if series is not None else None
    if taken is None and len(views) > 1:
        raise SeveralImagesError(f"{path} has several volumes: choose one with {FLAG}; it has {listing(shown)}")
    if not views:
        raise InputError(f"{path} is damaged: it lists no setup")
    view = views[taken or 0]
    source = _open_n5(container, view, level) if Path(container).is_dir() else _open_hdf5(container, view, level)
    source.series = shown
    source.outside += beyond(Path(path).parent, [container])
    return source


open_bigdataviewer.chooses = True  # type: ignore[attr-defined]


def _open_n5(container: str, view: _View, level: int) -> Source:
    return N5Source(str(Path(container) / f"setup{view.setup}" / f"timepoint{view.time}"), level)


def _open_hdf5(container: str, view: _View, level: int) -> Source:
    group = f"t{view.time:05d}/s{view.setup:02d}"
    with require("h5py", "HDF5").File(container, "r") as file:
        levels = len(file[group]) if group in file else 0
    if not levels:
        raise InputError(f"{container} has no {group}, which its XML lists as {view.name}")
    check_level(container, level, levels)
    return Hdf5Source(f"{container}::/{group}/{level}/cells")


def _views(document: ET.Element) -> list[_View]:
    times = _times(document.find("SequenceDescription/Timepoints"))
    found = []
    for setup in document.iterfind("SequenceDescription/ViewSetups/ViewSetup"):
        number = int(setup.findtext("id") or 0)
        name = (setup.findtext("name") or "").strip() or f"setup {number}"
        found += [_View(number, t, f"{name}, time point {t}" if len(times) > 1 else name) for t in times]
    return found


def _times(stated: ET.Element | None) -> list[int]:
    """Numbers of the time points; 0 alone where nothing is said."""
    if stated is None:
        return [0]
    if stated.get("type") == "range":
        first, last = (int(stated.findtext(key) or 0) for key in ("first", "last"))
        return list(range(first, min(last, first + _MOST_TIMES) + 1))
    text = stated.findtext("integerpattern") or ""
    found: list[int] = []
    for first, last in re.findall(r"(\d+)(?:\s*-\s*(\d+))?", text):
        found += range(int(first), min(int(last or first), int(first) + _MOST_TIMES) + 1)
    return found or [0]
