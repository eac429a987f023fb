"""The last lines of a run: what was found, and where it can be looked at."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tilelab.io.storage.place import Place
from tilelab.run.target import present

if TYPE_CHECKING:
    from tilelab.run.prepare import Prepared

_MOST_PIXELS = 1 << 28  # that are counted; a coarser level tells of larger images


class Found:
    """The share of each class, counted when a result is finished."""

    def __init__(self) -> None:
        self.shares: dict[str, float] = {}
        self.exact = True
        self.masked = False

    def look(self, prepared: Prepared, work: Place) -> None:
        """Count the labels of the OME-Zarr `work`, if it is still there."""
        from tilelab.io.results.result import read_result
        from tilelab.run.batch.row import measure_areas

        if not present(work):
            return
        self.masked = prepared.job.mask is not None
        result = read_result(work)
        sizes = [math.prod(level.shape) for level in result.labels]
        level = next((i for i, size in enumerate(sizes) if size <= _MOST_PIXELS), len(sizes) - 1)
        self.exact = level <= 0
        self.shares = measure_areas(result, max(0, level))

    def rows(self, report: Mapping[str, Any]) -> dict[str, str]:
        """A row for each class: its share and, where the pixel size is known, its area or volume."""
        size = report["pixel_size_nm"]
        extent = 0.0 if size is None else math.prod(size) * report["megapixels"] * 1e6  # nm2, or nm3
        about = "" if self.exact else "about "
        width = max(map(len, self.shares), default=0)
        rows = {}
        for i, (name, share) in enumerate(self.shares.items()):
            area = f"  {about}{area_text(share * extent, len(size))}" if size is not None else ""
            rest = "  with all that was left out" if self.masked and i == 0 else ""
            rows["found" if i == 0 else f"found{' ' * i}"] = f"{name:<{width}}  {share:6.1%}{area}{rest}"
        return rows


def area_text(value: float, axes: int) -> str:
    """An area in nm2 (two axes) or a volume in nm3, in the unit that suits it."""
    power = "²" if axes == 2 else "³"
    names = ("nm", "µm", "mm")
    if not _writes("µ²³"):
        power, names = ("2" if axes == 2 else "3"), ("nm", "um", "mm")
    step = 0
    while step < 2 and value >= 1000.0**axes / 10 ** (axes - 1):
        value, step = value / 1000.0**axes, step + 1
    unit = names[step]
    return f"{value:,.0f} {unit}{power}" if value >= 100 else f"{value:.3g} {unit}{power}"


def _writes(text: str) -> bool:
    """Whether the terminal has these letters."""
    try:
        text.encode(getattr(sys.stderr, "encoding", None) or "ascii")
    except UnicodeError:
        return False
    return True


def where_to_look(out: str, overview: str | None, page: str | None) -> dict[str, str]:
    """Rows that say where result and pictures are, and the command that shows them."""
    rows = {"result": out}
    rows |= {"picture": str(overview)} if overview is not None else {}
    rows |= {"page": str(page)} if page is not None else {}
    return rows | ({"to look": f"tilelab view {shlex.quote(out)}"} if out.endswith(".zarr") else {})
