"""The sweep on an NVIDIA GPU: raw rows go up once, finished rows come down, nothing between leaves the device.

    host      read ----> pinned rows                                    pinned bytes ----> write
    stream up                 `--> ring of raw rows                          ^
    stream of the engine              `--> cut --> network --> blend --> finish
    stream down                                                              `--> (copy)

The calling thread only puts work on streams; it runs ahead of the GPU until a pinned buffer is not free yet, which
bounds everything.  Streams wait for each other by events, the host for single events, never for the whole device.
Tiles, sums and their order are those of `tilelab.run.sweep.host`, so the bytes are too, wherever the engine's are.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

from tilelab.engines.base import DeviceEngine, GpuRoom
from tilelab.geometry import Box
from tilelab.io.results.sink import UnitWriter
from tilelab.kernels import device
from tilelab.run.plan.buffers import BLOCKS_AHEAD
from tilelab.run.plan.device_buffers import DeviceBuffers, check_device, device_buffers
from tilelab.run.sweep.device_work import DeviceWork
from tilelab.run.sweep.flow import Channel, Flow
from tilelab.run.sweep.job import Job, Stalls
from tilelab.run.sweep.rows import RawRows
from tilelab.run.sweep.unit import UnitSweep


class DeviceSweep(UnitSweep):
    """The sweep of one unit on the GPU of its engine; see `UnitSweep`."""

    engine: DeviceEngine

    def __init__(self, job: Job, engine: DeviceEngine, box: Box, start: int | None = None) -> None:
        super().__init__(job, engine, box, start)
        self.buffers: DeviceBuffers = device_buffers(
            job.request(engine, GpuRoom(engine.tiles_dtype, engine.logits_dtype, 0)), box
        )

    def run(
        self,
        writer: UnitWriter,
        durable: Callable[[int], None] = lambda position: None,  # noqa: ARG005
        progress: Callable[[int], None] = lambda tiles: None,  # noqa: ARG005
    ) -> Stalls:
        """Sweep to the end; see `UnitSweep.run`.

        Raises:
            PlanError: the GPU has less free memory than the unit needs.
            EngineError: the GPU has failed.
        """
        flow, index = Flow(), self.engine.index
        rows: Channel[RawRows] = flow.channel(BLOCKS_AHEAD)
        try:
            check_device(self.job.request(self.engine), self.buffers, self._free_bytes())
            with device.faults(index):
                work = DeviceWork(self, self.buffers, flow)
        except BaseException:
            writer.close()
            raise

        def write() -> None:
            with device.faults(index):
                work.landings.write(writer, durable, progress)

        flow.start("read", lambda: self._read(rows))
        flow.start("write", write)
        try:
            with device.faults(index):
                work.sweep(rows)
        except BaseException as error:  # noqa: BLE001 - Stopped, errors of the engine, Ctrl-C: all end the flow
            flow.fail(error)
        try:
            flow.join()
        except BaseException:
            work.release(failed=True)
            raise
        finally:
            writer.close()
        stalls = work.stalls
        stalls.read = rows.waited
        # the caller waits for buffers that come down: for the GPU first, the rest is the writer's
        stalls.engine = work.landings.device_wait
        stalls.write = max(0.0, work.landings.free.waited - stalls.engine)
        with device.faults(index):
            work.release()
        return stalls

    def _free_bytes(self) -> int:
        """Of the GPU, without what garbage still holds of it, where that matters."""
        free = device.select(self.engine.index).free_bytes
        if free < self.buffers.device_bytes:
            gc.collect()
            device.give_back()
            free = device.select(self.engine.index).free_bytes
        return free
