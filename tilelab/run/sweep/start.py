"""One unit, swept where its engine is."""

from __future__ import annotations

from tilelab.engines.base import Engine
from tilelab.geometry import Box
from tilelab.run.sweep.host import HostSweep
from tilelab.run.sweep.job import Job
from tilelab.run.sweep.unit import UnitSweep


def make_sweep(job: Job, engine: Engine, box: Box, start: int | None = None) -> UnitSweep:
    """The sweep of `box` from `start` on: on the GPU where an engine takes arrays there and all is done, else here."""
    if engine.on_device is not None and job.suits_device(engine.spec):
        from tilelab.run.sweep.device import DeviceSweep

        return DeviceSweep(job, engine.on_device, box, start)
    return HostSweep(job, engine, box, start)
