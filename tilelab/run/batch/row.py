"""What the table of a batch says of one image, and where that is kept beside its result."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from tilelab.geometry import Box
from tilelab.io.results.result import Result
from tilelab.machine.disk import write_text
from tilelab.run.journal.fingerprint import Fingerprint

Status = Literal["done", "failed", "waiting"]


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One image of a batch.

    Attributes:
        name: of its result and picture, without suffix.
        image: its path or address.
        result: path of the result.
        status: ``done``, ``failed``, or ``waiting`` where the batch was stopped before.
        shape, axes: of the image, in pixels.
        pixel_size_nm: on its spatial axes.
        areas: share of the pixels of each class, 0 to 1; empty where no labels were written.
        seconds: that it was under way, beside others; None where that is not known any more.
        model: that made it.
        assumptions: what had to be guessed.
        error: why it failed.
    """

    name: str
    image: str
    result: str = ""
    status: Status = "waiting"
    shape: tuple[int, ...] = ()
    axes: str = ""
    pixel_size_nm: tuple[float, ...] | None = None
    areas: dict[str, float] = {}
    seconds: float | None = None
    model: str = ""
    assumptions: tuple[str, ...] = ()
    error: str = ""

    @property
    def extent(self) -> dict[str, int]:
        """Pixels by axis."""
        return dict(zip(self.axes, self.shape, strict=True))


def row_of(name: str, image: str, report: dict[str, Any], areas: dict[str, float], *, timed: bool) -> Row:
    """The row of an image whose run is over, from its report; without its time where that is of another run."""
    size = report["pixel_size_nm"]
    return Row(
        name=name,
        image=image,
        result=report["output"],
        status="done",
        shape=tuple(report["shape"]),
        axes=report["axes"],
        pixel_size_nm=None if size is None else tuple(size),
        areas=areas,
        seconds=report["seconds"]["wall"] if timed else None,
        model=report["model"],
        assumptions=tuple(f"{a['what']}: {a['taken']}" for a in report["assumptions"]),
    )


def measure_areas(result: Result, at: int = 0) -> dict[str, float]:
    """The share of the pixels of each class at level `at`, 0 to 1; nothing where there are no labels.

    Raises:
        InputError: a file of the result is corrupt.
    """
    if not result.labels:
        return {}
    level, classes = result.labels[at], result.info.classes
    counts = np.zeros(256, np.int64)
    shape, steps = level.shape, (*(1 for _ in level.shape[:-2]), *level.chunks[-2:])
    for corner in np.ndindex(*(-(-n // step) for n, step in zip(shape, steps, strict=True))):
        start = tuple(i * step for i, step in zip(corner, steps, strict=True))
        stop = tuple(min(n, at + step) for n, at, step in zip(shape, start, steps, strict=True))
        counts += np.bincount(level.read(Box(start, stop)).ravel(), minlength=256)
    total = int(counts.sum())
    return {known.name: int(count) / total for known, count in zip(classes, counts.tolist(), strict=False)}


def digest_of(fingerprint: Fingerprint) -> str:
    """What a kept report is known by."""
    return hashlib.sha256(json.dumps(fingerprint.document(), sort_keys=True).encode()).hexdigest()[:32]


def keep_report(path: Path, report: dict[str, Any], digest: str, areas: dict[str, float]) -> None:
    """Write the report of a run, with what only its result could tell.

    Raises:
        OutputError: it cannot be written.
    """
    write_text(path, json.dumps(report | {"areas": areas, "fingerprint": digest}, indent=1) + "\n")


def kept_report(path: Path, digest: str) -> dict[str, Any] | None:
    """The report of the very job; None where there is none, or another's."""
    try:
        document = json.loads(path.read_bytes())
        sound = document["fingerprint"] == digest and isinstance(document["areas"], dict)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return document if sound else None


_FORMULAS = ("=", "+", "-", "@")


def cell_of(text: str) -> str:
    """A text as a spreadsheet does not take it for a formula."""
    return f"'{text}" if text.lstrip("'").startswith(_FORMULAS) else text


def text_of(cell: str) -> str:
    """The text behind what `cell_of` gave."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(_FORMULAS) else cell
