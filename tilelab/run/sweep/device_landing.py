"""Finished rows on their way from the device to the sink, in a few groups of fixed size."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilelab.arrays import Array
from tilelab.engines.base import DeviceEngine
from tilelab.io.results.sink import Finished, UnitWriter
from tilelab.kernels import device
from tilelab.machine.cpu import core_count
from tilelab.run.plan.buffers import GROUPS
from tilelab.run.sweep.finite import not_finite
from tilelab.run.sweep.flow import Channel, Flow
from tilelab.run.sweep.unit import UnitSweep

_KINDS = ("labels", "probabilities", "finished logits")


@dataclass
class Landing:
    """A group of finished rows: a flat array of each kind on the device and its pinned copy.

    finished, landed: recorded when the rows are on the device, and when they are in pinned memory.
    start, stop: rows of the image.
    tiles: whose work is thereby done, for progress.
    """

    on_device: dict[str, Any]
    on_host: dict[str, Array]
    finished: device.Event = field(default_factory=lambda: device.event())
    landed: device.Event = field(default_factory=lambda: device.event())
    start: int = 0
    stop: int = 0
    tiles: int = 0


class Landings:
    """All groups of a unit: `take` an idle one, fill and `send` it; `write`, in another thread, makes it idle again.

    device_wait: seconds that `write` waited for the GPU.
    """

    def __init__(self, unit: UnitSweep, flow: Flow, on_device: dict[str, Any], pinned: dict[str, Array]) -> None:
        self._unit = unit
        self.engine: DeviceEngine = unit.engine  # type: ignore[assignment]
        self.free: Channel[Landing] = flow.channel(GROUPS)
        self._down: Channel[Landing] = flow.channel(GROUPS)
        self.device_wait = 0.0
        self._plane = tuple(b - a for a, b in (unit.cross_range, unit.col_range))
        self._most = pinned["labels"].shape[1] // math.prod(self._plane)
        names = [name for name in (*_KINDS, "flags") if name in pinned]
        for n in range(GROUPS):
            self.free.put(Landing({m: on_device[m][n] for m in names}, {m: pinned[m][n] for m in names}))

    def take(self, start: int, stop: int, tiles: int) -> Landing:
        """An idle group for rows from `start` on, at most to `stop`; waits until there is one."""
        landing = self.free.take()
        landing.start, landing.stop, landing.tiles = start, min(stop, start + self._most), tiles
        return landing

    def shaped(self, landing: Landing, arrays: dict[str, Any]) -> dict[str, Any]:
        """The rows of a group, ``(rows, cross, x)``, with a leading axis for all but labels."""
        area = (landing.stop - landing.start, *self._plane)
        size = math.prod(area)
        counts = {"probabilities": len(self._unit.job.channels), "finished logits": self.engine.spec.values}
        shaped = {"labels": arrays["labels"][:size].reshape(*area)}
        for name, count in counts.items():
            if name in arrays:
                shaped[name] = arrays[name][: size * count].reshape(count, *area)
        return shaped

    def send(self, landing: Landing, compute: device.Stream, down: device.Stream) -> None:
        """Copy a group that is finished in the order of `compute` to the host, on `down`."""
        landing.finished.record(compute)
        landing.finished.wait(down)
        rows = self.shaped(landing, landing.on_device)
        for name, source in landing.on_device.items():
            count = math.prod(rows[name].shape) if name in rows else 1
            device.download(source[:count], landing.on_host[name][:count], down)
        landing.landed.record(down)
        self._down.put(landing)

    def close(self) -> None:
        """Nothing more will be sent."""
        self._down.close()

    def write(self, writer: UnitWriter, durable: Callable[[int], None], progress: Callable[[int], None]) -> None:
        """Hand every group to the sink as it lands; ends after `close`.

        Raises:
            EngineError: a logit was NaN or infinite.
            OutputError: the sink's.
        """
        device.select(self.engine.index)
        job, frame = self._unit.job, self._unit.job.frame
        known = self._unit.start
        for landing in self._down:
            began = time.perf_counter()
            landing.landed.synchronize()
            self.device_wait += time.perf_counter() - began
            box = frame.box((landing.start, landing.stop), self._unit.cross_range, self._unit.col_range)
            if job.finite and landing.on_host["flags"][0]:
                raise not_finite(self.engine, box)
            shaped = self.shaped(landing, landing.on_host)
            labels, probabilities, logits = (shaped.get(name) for name in _KINDS)
            if job.mask is not None:
                keep = frame.turn(job.mask.read(box))[0] != 0
                for values in (labels, probabilities):
                    if values is not None:
                        np.multiply(values, keep, out=values)
            rows = Finished(
                frame.turn(labels) if labels is not None and job.labels else None,
                None if probabilities is None else frame.turn(probabilities),
                None if logits is None else frame.turn(logits),
            )
            position = writer.write(rows, threads=core_count())
            if position > known:
                known = position
                durable(position)
            progress(landing.tiles)
            self.free.put(landing)
