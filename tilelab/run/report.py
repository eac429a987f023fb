"""What is worth keeping of a run."""

from __future__ import annotations

import platform
import sys
import time
from typing import Any

import msgspec

from tilelab.io.storage.place import Place
from tilelab.machine.memory import peak_memory
from tilelab.machine.version import __version__
from tilelab.run.prepare import Prepared
from tilelab.run.sweep.job import Stalls


class Clock:
    """Seconds from one mark to the next."""

    def __init__(self, began: float) -> None:
        self.began = self.last = began
        self.parts: dict[str, float] = {}

    def mark(self, name: str) -> None:
        """End the part `name`."""
        now = time.perf_counter()
        self.parts[name] = now - self.last
        self.last = now


def make_report(prepared: Prepared, target: Place, stalls: Stalls | None, clock: Clock, memory: int) -> dict[str, Any]:
    """Everything worth keeping of a run, ready for JSON."""
    plan, engine = prepared.plan, prepared.engine
    stalls = stalls or Stalls()
    wall = time.perf_counter() - clock.began
    pixels = plan.pixels
    return {
        "input": prepared.image.uri,
        "output": str(target),
        "shape": list(prepared.image.shape),
        "axes": prepared.image.axes,
        "dtype": str(prepared.image.dtype),
        "pixel_size_nm": prepared.image.pixel_size_nm,
        "model": plan.spec.name or plan.spec.architecture,
        "engine": {
            "name": engine.name,
            "device": engine.device,
            "precision": engine.precision,
            "batch": engine.batch,
            "streams": engine.streams,
            **engine.versions(),
        },
        "tile": list(plan.spec.tile),
        "overlap": list(plan.spec.overlap),
        "window": plan.spec.window,
        "normalization": prepared.normalization,
        "units": len(plan.units),
        "tiles": {"inferred": stalls.tiles, "skipped": stalls.blank, "lattice": len(plan.lattice)},
        "seconds": {
            "wall": wall,
            **clock.parts,
            "engine": stalls.engine,
            "waited_for_read": stalls.read,
            "waited_for_blend": stalls.blend,
            "waited_for_write": stalls.write,
        },
        "megapixels": pixels / 1e6,
        "megapixels_per_second": pixels / 1e6 / wall,
        "memory": {"peak": peak_memory(), "before": memory, "planned": plan.memory},
        "versions": {"tilelab": __version__, "python": platform.python_version(), "platform": sys.platform},
        "notes": list(prepared.notes),
        "assumptions": msgspec.to_builtins(prepared.assumptions),
    }
