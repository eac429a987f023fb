"""What is worth keeping of a run."""

from __future__ import annotations

import platform
import sys
import time
from dataclasses import dataclass
from typing import Any

import msgspec

from tilelab.assumptions import Assumption
from tilelab.engines.base import Engine
from tilelab.io.storage.place import Place
from tilelab.machine.memory import peak_memory
from tilelab.machine.version import __version__
from tilelab.run.execute import Execution
from tilelab.run.prepare import Prepared


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


@dataclass(frozen=True)
class Report:
    """What is worth keeping of a run; `document` is ready for JSON.

    shape, axes, dtype, pixel_size_nm: of the image.
    engine: name, device, precision, batch, streams, its versions, and of several models each one's.
    output_is: what the network itself gives.
    tile, overlap, window, units: of the plan that ran.
    tiles: inferred, skipped, and all of the lattice.
    megapixels_per_second: of what this run did, not of what an earlier one had finished.
    seconds: of the whole, of its parts, and what the engine did and waited for.
    memory: peak of this process, what it had before the run, and what was planned, in bytes.
    workers: what became of them; None without any.
    already_finished: the result was there, nothing was computed.
    """

    input: str
    output: str
    shape: list[int]
    axes: str
    dtype: str
    pixel_size_nm: tuple[float, ...] | None
    model: str
    engine: dict[str, Any]
    output_is: str
    tile: list[int]
    overlap: list[int]
    window: str
    normalization: dict[str, Any]
    units: int
    tiles: dict[str, int]
    seconds: dict[str, float]
    megapixels: float
    megapixels_per_second: float
    memory: dict[str, Any]
    versions: dict[str, str]
    notes: list[str]
    assumptions: tuple[Assumption, ...]
    workers: dict[str, Any] | None = None
    already_finished: bool = False

    def document(self) -> dict[str, Any]:
        """All of it as numbers, texts, lists and dicts."""
        document: dict[str, Any] = vars(self) | {"assumptions": msgspec.to_builtins(self.assumptions)}
        if self.workers is None:
            del document["workers"]
        return document


def make_report(
    prepared: Prepared,
    execution: Execution,
    target: Place,
    clock: Clock,
    memory: int,
    workers: dict[str, Any] | None = None,
    *,
    already_finished: bool = False,
) -> Report:
    """Of a run that is over; `memory` is what the process had before it, `workers` what became of them."""
    image, engine = prepared.image, prepared.engine
    plan, stalls = execution.plan, execution.stalls
    wall = time.perf_counter() - clock.began
    share = min(1.0, (stalls.tiles + stalls.blank) / max(1, plan.tiles))
    return Report(
        input=image.uri,
        output=str(target),
        shape=list(image.shape),
        axes=image.axes,
        dtype=str(image.dtype),
        pixel_size_nm=image.pixel_size_nm,
        model=plan.spec.name or plan.spec.architecture,
        engine={
            "name": engine.name,
            "device": engine.device,
            "precision": engine.precision,
            "batch": engine.batch,
            "streams": engine.streams,
            **engine.versions(),
            **({"members": [_member(one) for one in engine.members]} if engine.members else {}),
        },
        output_is=engine.output_is,
        tile=list(plan.spec.tile),
        overlap=list(plan.spec.overlap),
        window=plan.spec.window,
        normalization=prepared.normalization,
        units=len(plan.units),
        tiles={"inferred": stalls.tiles, "skipped": stalls.blank, "lattice": len(plan.lattice)},
        seconds={
            "wall": wall,
            **clock.parts,
            "engine": stalls.engine,
            "waited_for_read": stalls.read,
            "waited_for_blend": stalls.blend,
            "waited_for_write": stalls.write,
        },
        megapixels=plan.pixels / 1e6,
        megapixels_per_second=share * plan.pixels / 1e6 / wall,
        memory={"peak": peak_memory(), "before": memory, "planned": plan.memory},
        versions={"tilelab": __version__, "python": platform.python_version(), "platform": sys.platform},
        notes=list(prepared.notes),
        assumptions=prepared.assumptions,
        workers=workers,
        already_finished=already_finished,
    )


def _member(engine: Engine) -> dict[str, str]:
    """How one of several models ran."""
    spec = engine.spec
    return {
        "model": spec.name or spec.architecture,
        "name": engine.name,
        "device": engine.device,
        "precision": engine.precision,
    }
