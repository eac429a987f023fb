"""How fast an engine is at each size of tile, relative to the others: remembered where that was measured."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilelab.errors import OutputError
from tilelab.machine.cpu import cpu_name, has_cpu_feature
from tilelab.machine.disk import write_text

CACHE_VARIABLE = "TILELAB_CACHE"
_FALL: dict[str, tuple[int, float]] = {"bf16": (768 * 768, 0.10), "int8": (1536 * 1536, 0.16)}
"""Pixels from which on tiles get slower, and by which power of them: AMX multiplies faster than memory is read."""
_GRAIN = 0.05  # rates are rounded to steps of this, so that measuring again gives the same choice


@dataclass(frozen=True)
class Rates:
    """Speeds by pixels of a tile.

    Attributes:
        measured: tile pixels per second, by the pixels of a tile; empty where nothing was measured.
        falling: from how many pixels of a tile on, and by which power of them, the rate falls: where the arithmetic
            outruns the memory, tiles beyond the caches are slower.
    """

    measured: Mapping[int, float]
    falling: tuple[int, float] = (1, 0.0)

    @classmethod
    def usual(cls, precision: str) -> Rates:
        """Those of an engine that was never measured here."""
        return cls({}, _FALL[precision]) if precision in _FALL and has_cpu_feature(f"amx_{precision}") else cls({})

    def of(self, pixels: int) -> float:
        """The rate at tiles of so many pixels, relative to the fastest, in steps: small differences do not count."""
        if not self.measured:
            begin, power = self.falling
            return min(1.0, math.pow(pixels / begin, -power))
        best = max(self.measured.values())
        sizes = sorted(self.measured)
        low = max((s for s in sizes if s <= pixels), default=sizes[0])
        high = min((s for s in sizes if s >= pixels), default=sizes[-1])
        part = 0.0 if low == high else (math.log(pixels / low)) / math.log(high / low)
        a, b = (_rounded(self.measured[s] / best) for s in (low, high))
        return a + part * (b - a)


def _rounded(rate: float) -> float:
    return max(_GRAIN, round(rate / _GRAIN) * _GRAIN)


def cache_folder() -> Path | None:
    """Where measurements are kept: ``TILELAB_CACHE``, where that is empty nowhere, else the user's cache folder."""
    given = os.environ.get(CACHE_VARIABLE)
    if given is not None:
        return Path(given).expanduser() if given else None
    try:
        if sys.platform == "win32":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # there is no home
        return None
    return base / "tilelab"


@dataclass(frozen=True)
class Remembered:
    """The file that keeps the rates of a model in an engine on this machine; it may vanish, or be anything."""

    path: Path | None

    @classmethod
    def of(cls, **key: str) -> Remembered:
        """That of a model, an engine and its version, a precision and a device; the processor is added."""
        folder = cache_folder()
        if folder is None:
            return cls(None)
        text = json.dumps(key | {"cpu": cpu_name(), "cores": os.cpu_count()}, sort_keys=True)
        return cls(folder / "rates" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json")

    def read(self) -> dict[int, float]:
        """Tile pixels per second by the pixels of a tile; empty where nothing can be made of it."""
        if self.path is None:
            return {}
        try:
            known: Any = json.loads(self.path.read_bytes())
            found = {int(pixels): float(rate) for pixels, rate in known["rates"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return {}
        return found if all(p > 0 and 0 < r < math.inf for p, r in found.items()) else {}

    def write(self, rates: Mapping[int, float]) -> None:
        """Keep what was measured, where that is possible."""
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps({"rates": {str(p): round(r, 1) for p, r in sorted(rates.items())}}) + "\n")
        except (OSError, OutputError):  # it is measured again
            return
