"""One unit, swept where its engine is."""

from __future__ import annotations

from tilelab.engines.base import Engine
from tilelab.geometry import Box
from tilelab.run.sweep.host import Unit
from tilelab.run.sweep.job import Job


def make_unit(job: Job, engine: Engine, box: Box, start: int | None = None) -> Unit:
    """The sweep of `box` from `start` on: on the GPU for an engine that takes arrays there, else on the CPU."""
    if engine.on_device is not None:
        from tilelab.run.sweep.device import DeviceUnit

        return DeviceUnit(job, engine.on_device, box, start)
    return Unit(job, engine, box, start)
