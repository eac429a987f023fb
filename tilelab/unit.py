"""One unit, swept where its engine is."""

from __future__ import annotations

from tilelab.engines.base import Engine
from tilelab.geometry import Box
from tilelab.sweep import Job, Unit


def make_unit(job: Job, engine: Engine, box: Box, start: int | None = None) -> Unit:
    """The sweep of `box` from `start` on: on the GPU for an engine that takes arrays there, else on the CPU."""
    if hasattr(engine, "enqueue"):
        from tilelab.sweep_cuda import DeviceUnit

        return DeviceUnit(job, engine, box, start)  # type: ignore[arg-type]
    return Unit(job, engine, box, start)
