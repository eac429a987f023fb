"""The sweep: one unit of an image, tile row by tile row, through an engine into a sink.

    read          cut             engine        blend            write
    raw rows  ->  batches of  ->  logits    ->  what is done ->  shards, pyramid,
    (chunks       normalised      (caller's     becomes          journal
    once)         tiles           thread)       bytes

Five stages, each in its own thread but the engine's, joined by short queues: memory is bounded by the lane, never by
the image, and the engine waits only when a neighbour cannot keep up (counted in `Stalls`).  Every array that goes
through them is made before they begin, by the shapes that the plan has summed, and goes round.

Arrays here have the sweep axis first, ``(channels, sweep, cross, x)``; `Frame` turns regions of the image into that
order.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from tilelab.arrays import Array, Float32
from tilelab.engines.streams import Streams
from tilelab.io.results.sink import Finished, UnitWriter
from tilelab.kernels import cpu as kernels
from tilelab.kernels.symmetries import SYMMETRIES, turn, turn_back
from tilelab.machine.allocator import return_large_arrays
from tilelab.machine.cpu import core_count
from tilelab.run.plan.buffers import (
    BATCHES_AHEAD,
    BATCHES_BEHIND,
    BLOCKS_AHEAD,
    Buffer,
    HostBuffers,
    finished_rows,
    host_buffers,
)
from tilelab.run.sweep.cutting import cut_tile
from tilelab.run.sweep.flow import Channel, Flow, prompt_handover
from tilelab.run.sweep.groups import Groups
from tilelab.run.sweep.job import Stalls
from tilelab.run.sweep.rows import Band, RawRows
from tilelab.run.sweep.strip import Strip
from tilelab.run.sweep.unit import UnitSweep


@dataclass
class _Tile:
    """One tile on its way: where it lies, and where its logits are."""

    j: int  # tile row along the sweep
    cross: int
    col: int
    slot: int = -1  # place in the batch; -1: the logits of the blank tile `blank`, or none at all
    blank: bytes | None = None  # value of a tile whose pixels are all equal


@dataclass
class _Batch:
    tiles: list[_Tile]
    inputs: Float32
    used: int = 0
    outputs: Float32 | None = None


class HostSweep(UnitSweep):
    """The sweep of one unit through an engine that takes arrays of the host; see `UnitSweep`."""

    @cached_property
    def buffers(self) -> HostBuffers:
        """What it holds while it runs."""
        return host_buffers(self.job.request(self.engine), self.box)

    @prompt_handover()
    def run(
        self,
        writer: UnitWriter,
        durable: Callable[[int], None] = lambda position: None,  # noqa: ARG005
        progress: Callable[[int], None] = lambda tiles: None,  # noqa: ARG005
    ) -> Stalls:
        """Sweep to the end; see `UnitSweep.run`."""
        return_large_arrays()
        flow, stalls = Flow(), Stalls()
        try:
            work = _Work(self, flow)
        except BaseException:
            writer.close()
            raise
        try:
            flow.start("read", lambda: self._read(work.rows))
            flow.start("cut", work.cut)
            flow.start("blend", lambda: work.blend(progress))
            flow.start("write", lambda: work.write(writer, durable))
            with Streams(self.engine) as streams:
                for item in work.infer(streams, stalls):
                    work.blended.put(item)
            work.blended.close()
        except BaseException as error:  # noqa: BLE001 - Stopped, errors of the engine, Ctrl-C: all end the flow
            flow.fail(error)
        try:
            flow.join()
        finally:
            writer.close()
        stalls.read = work.ready.waited
        # the blender waits on the writer, the engine on the blender: give each its own part
        behind = work.spare.waited + work.blended.blocked
        stalls.write = min(behind, work.groups.waited)
        stalls.blend = behind - stalls.write
        return stalls


class _Work:
    """The arrays of one unit, the queues they go round in, and the stages between them."""

    def __init__(self, unit: HostSweep, flow: Flow) -> None:
        self.unit, self.job, self.engine = unit, unit.job, unit.engine
        made = unit.buffers.made
        self.rows: Channel[RawRows] = flow.channel(BLOCKS_AHEAD)
        self.ready: Channel[_Batch] = flow.channel(BATCHES_AHEAD)
        self.blended: Channel[_Batch] = flow.channel(BATCHES_BEHIND)
        self.band = Band(self.rows, np.empty(*made["raw rows"]))
        rows, lines, columns = (np.empty(*made[f"waiting {name}"]) for name in ("rows", "lines", "columns"))
        self.strip = Strip(unit, self.engine, np.empty(*made["sums"]), (rows, lines, columns))
        self.blanks = _pieces(made["blank tiles"])
        count, *shape = made["tiles"].shape  # cleared: slots without a tile go through the engine too
        self.free: Channel[Float32] = flow.pool([np.zeros(shape, np.float32) for _ in range(count)])
        self.spare: Channel[Float32] = flow.pool(_pieces(made["logits"]))
        turning = [_pieces(made[name]) for name in ("turned tiles", "summed logits") if name in made]
        self.turning: Channel[tuple[Float32, ...]] = flow.pool(list(zip(*turning, strict=True)))
        kinds = list(finished_rows(self.job.request(self.engine).written, 1, 1))
        groups = zip(*(_pieces(made[kind]) for kind in kinds), strict=True)
        idle = [dict(zip(kinds, arrays, strict=True)) for arrays in groups]
        self.groups = Groups(unit, self.engine, flow, idle)
        self.inferred = False  # all of it

    def cut(self) -> None:
        """Normalised tiles in raster order, in batches of a fixed shape."""
        unit = self.unit
        known: OrderedDict[bytes, None] = OrderedDict()
        batch: _Batch | None = None
        for j in unit.rows:
            index = unit.sweep.indices(j)
            self.band.move(int(index.min()), int(index.max()) + 1)
            index -= self.band.start
            for c, x in product(unit.cross_tiles, unit.col_tiles):
                if batch is None:
                    batch = _Batch([], self.free.take())
                item = _Tile(j, c, x)
                batch.tiles.append(item)
                if unit.is_wanted(j, c, x):
                    self._cut_tile(item, index, batch, known)
                if batch.used == self.engine.batch or len(batch.tiles) >= 64 * self.engine.batch:
                    self.ready.put(batch)
                    batch = None
        if batch is not None:
            batch.inputs[batch.used :] = 0  # the last batch has the same shape as all others
            self.ready.put(batch)
        self.ready.close()

    def _cut_tile(self, item: _Tile, index: Array, batch: _Batch, known: OrderedDict[bytes, None]) -> None:
        """One tile into the next slot of `batch`, unless its value is one of the `known` blanks."""
        unit, job, raw = self.unit, self.job, self.band.raw
        cross = unit.cross.indices(item.cross) - unit.cross_seen[0]
        cols = unit.cols.indices(item.col) - unit.cols_seen[0]
        first = job.frame.sweep_axis == 0
        slices = index + self.band.start if first else unit.cross.indices(item.cross)
        alike = job.mean.ndim == 1 or len(slices) == 1  # else what is equal before is not so after
        if alike and kernels.is_constant(raw, index, cross, cols):
            value = raw[:, index[0], cross[0], cols[0]].tobytes()
            if job.mean.ndim > 1:
                value += slices.tobytes()
            if value in known:
                item.blank = value
                return
            if len(known) < len(self.blanks):
                known[value] = None
                item.blank = value
        item.slot = batch.used
        target = batch.inputs[item.slot].reshape(-1, *job.frame.sweep_first(job.lattice.read))
        cut_tile(job, raw, (index, cross, cols), slices, target, slices_first=first)
        batch.used += 1

    def infer(self, streams: Streams, stalls: Stalls) -> Iterator[_Batch]:
        """Batches with their logits, in the order they were cut, however many are computed at a time."""
        under_way: deque[tuple[_Batch, Future[None] | None]] = deque()

        def oldest() -> _Batch:
            item, computed = under_way.popleft()
            began = time.perf_counter()
            if computed is not None:
                computed.result()
            stalls.engine += time.perf_counter() - began
            self.free.put(item.inputs)
            return item

        for item in self.ready:
            stalls.blank += sum(tile.slot < 0 for tile in item.tiles)
            computed = None
            if item.used:
                item.outputs = self.spare.take()
                began = time.perf_counter()
                computed = streams.submit(self._infer_batch, item.inputs, item.outputs)
                stalls.engine += time.perf_counter() - began
                stalls.tiles += item.used
            under_way.append((item, computed))
            while len(under_way) > streams.ahead:
                yield oldest()
        while under_way:
            item = oldest()
            self.inferred = not under_way
            yield item

    def _infer_batch(self, inputs: Float32, outputs: Float32) -> None:
        """One batch through the engine, once or under the eight symmetries of the square."""
        if self.job.symmetries == 1:
            self.engine.run(inputs, outputs)
            return
        turned, total = pair = self.turning.take()
        total[...] = 0
        for symmetry in SYMMETRIES:
            np.copyto(turned, turn(inputs, *symmetry))
            self.engine.run(turned, outputs)
            total += turn_back(outputs, *symmetry)
        np.multiply(total, np.float32(1 / 8), out=outputs)
        self.turning.put(pair)

    def blend(self, progress: Callable[[int], None]) -> None:
        """Logits to finished rows, which leave when the row of tiles is whole."""
        unit, groups = self.unit, self.groups
        shape = (-1, *self.job.frame.sweep_first(self.job.lattice.tile))
        blank: dict[bytes, Float32] = {}
        last = unit.cross_tiles[-1], unit.col_tiles[-1]
        for batch in self.blended:
            for item in batch.tiles:
                logits = None
                if item.slot >= 0:
                    assert batch.outputs is not None  # noqa: S101 - a batch with tiles went through the engine
                    logits = batch.outputs[item.slot].reshape(shape)
                    if item.blank is not None:
                        blank[item.blank] = self.blanks[len(blank)]
                        blank[item.blank][...] = logits
                elif item.blank is not None:
                    logits = blank[item.blank]
                for piece in self.strip.add(item.j, item.cross, item.col, logits):
                    groups.put(piece, self.strip.along[item.j].done)
                if (item.cross, item.col) == last:
                    groups.send()
            if batch.outputs is not None:
                self.spare.put(batch.outputs)
            progress(len(batch.tiles))
        groups.whole.close()

    def write(self, writer: UnitWriter, durable: Callable[[int], None]) -> None:
        """Rows to the sink; what is on disk is said at once."""
        job, turn = self.job, self.job.frame.turn
        known = self.unit.start
        for group in self.groups.whole:
            found = group.rows
            rows = Finished(
                turn(found.labels) if job.labels else None,
                turn(found.probabilities) if len(job.channels) else None,
                turn(found.logits) if job.logits else None,
                {name: turn(values) for name, values in found.maps.items()} or None,
            )
            position = writer.write(rows, threads=self._idle_cores())
            if position > known:
                known = position
                durable(position)
            self.groups.idle.put(group.arrays)

    def _idle_cores(self) -> int:
        """As far as the engine leaves them: one on a CPU needs its own, but after its last batch or while it waits."""
        if self.engine.device.startswith("cuda"):
            return core_count()
        return self.engine.streams if self.inferred or self.spare.starved else 1


def _pieces(buffer: Buffer) -> list[Any]:
    """An array for each step of the leading axis; not cleared, so that what is not used takes no memory."""
    return [np.empty(buffer.shape[1:], buffer.dtype) for _ in range(buffer.shape[0])]
