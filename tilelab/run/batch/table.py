"""The table of a batch: one row an image, for spreadsheets, R and pandas."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from tilelab.errors import OutputError
from tilelab.machine.disk import replacing
from tilelab.run.batch.row import Row, Status, cell_of, text_of

_FIRST = ("name", "status", "width_px", "height_px", "depth_px", "pixel_size_nm", "slice_nm")
_LAST = ("seconds", "model", "assumptions", "error", "result", "image")


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows as CSV, UTF-8, a column for the area of each class as share of the image.

    Raises:
        OutputError: it cannot be written.
    """
    classes = list(dict.fromkeys(name for row in rows for name in row.areas))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_FIRST, *(f"area_{name}" for name in classes), *_LAST])
    for row in rows:
        size, extent = row.pixel_size_nm, row.extent
        pixel = "" if size is None else f"{size[-1]:g}" if size[-1] == size[-2] else f"{size[-1]:g} x {size[-2]:g}"
        writer.writerow(
            [
                cell_of(row.name),
                row.status,
                extent.get("x", ""),
                extent.get("y", ""),
                extent.get("z", 1) if extent else "",
                pixel,
                f"{size[0]:g}" if size is not None and "z" in row.axes else "",
                *(f"{row.areas[name]:.6f}" if name in row.areas else "" for name in classes),
                "" if row.seconds is None else f"{row.seconds:.2f}",
                cell_of(row.model),
                cell_of("; ".join(row.assumptions)),
                cell_of(row.error),
                row.result,
                row.image,
            ]
        )
    with replacing(path) as unfinished:
        unfinished.write_text(text.getvalue(), encoding="utf-8", errors="backslashreplace")


def read_table(path: Path) -> list[Row]:
    """The rows of a table that was written here; none of one that cannot be read."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [row for cells in csv.DictReader(file) if (row := _row_of(cells)) is not None]
    except (OSError, ValueError, csv.Error):
        return []


def _row_of(cells: Mapping[str, str]) -> Row | None:
    """What `write_table` made cells of; None where they are of something else."""
    try:
        extent = tuple(int(cells[f"{side}_px"]) for side in ("depth", "height", "width")) if cells["width_px"] else ()
        flat = bool(extent) and extent[0] == 1 and not cells["slice_nm"]
        sides = [float(side) for side in cells["pixel_size_nm"].split(" x ")] if cells["pixel_size_nm"] else []
        depth = [float(cells["slice_nm"])] if cells["slice_nm"] else []
        return Row(
            name=text_of(cells["name"]),
            image=cells["image"],
            result=cells["result"],
            status=msgspec.convert(cells["status"], Status),
            shape=extent[1:] if flat else extent,
            axes="yx" if flat else "zyx" if extent else "",
            pixel_size_nm=(*depth, sides[-1], sides[0]) if sides else None,
            areas={name[5:]: float(share) for name, share in cells.items() if name.startswith("area_") and share},
            seconds=float(cells["seconds"]) if cells["seconds"] else None,
            model=text_of(cells["model"]),
            assumptions=tuple(one for one in text_of(cells["assumptions"]).split("; ") if one),
            error=text_of(cells["error"]),
        )
    except (KeyError, ValueError, TypeError, AttributeError, msgspec.ValidationError):
        return None


def check_table(path: Path) -> None:
    """Refuse a file that is no table of ours, before anything runs.

    Raises:
        OutputError: it would be replaced.
    """
    try:
        with path.open("rb") as file:
            ours = file.read(len(_BEGINS)) == _BEGINS
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror}") from error
    if not ours:
        raise OutputError(f"{path} is not a table of tilelab and is not replaced: choose another folder")


_BEGINS = ",".join(_FIRST).encode()
