"""The sweep: one unit of an image, tile row by tile row, through an engine into a sink.

    read          cut             engine        blend            write
    raw rows  ->  batches of  ->  logits    ->  canvas; done ->  shards, pyramid,
    (chunks       normalised      (caller's     rows become      journal
    once)         tiles           thread)       bytes

Five stages, each in its own thread but the engine's, joined by short queues: memory is bounded by the lane, never by
the image, and the engine waits only when a neighbour cannot keep up (counted in `Stalls`).

Arrays here have the sweep axis first, ``(channels, sweep, cross, x)``; `Frame` turns regions of the image into that
order.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import product

import numpy as np

from tilelab.arrays import Float32
from tilelab.engines.base import Engine
from tilelab.engines.streams import Streams
from tilelab.errors import InputError
from tilelab.geometry import AxisTiling, Box
from tilelab.io.results.sink import Finished, UnitWriter
from tilelab.kernels import cpu as kernels
from tilelab.run.plan.plan import BATCHES_AHEAD, BLANKS, OUTPUTS, block_rows
from tilelab.run.sweep.flow import Channel, Flow, prompt_handover
from tilelab.run.sweep.job import Job, Stalls
from tilelab.run.sweep.rows import _Band, _Rows


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


class Unit:
    """The sweep of one unit: `box` of the image, from position `start` on the sweep axis to the box's end."""

    def __init__(self, job: Job, engine: Engine, box: Box, start: int | None = None) -> None:
        self.job, self.engine = job, engine
        frame = job.frame
        self.sweep, self.cross, self.cols = frame.sweep_first(job.lattice.axes)
        ranges = frame.sweep_first(tuple(zip(box.start, box.stop, strict=True)))
        (self.start, self.stop), self.cross_range, self.col_range = ranges
        if start is not None:
            self.start = start
        self.rows = self.sweep.covering(self.start, self.stop)
        self.cross_tiles = self.cross.covering(*self.cross_range)
        self.col_tiles = self.cols.covering(*self.col_range)
        # the raw pixels that these tiles see on the cross axes
        self.cross_seen = _seen(self.cross, self.cross_tiles)
        self.cols_seen = _seen(self.cols, self.col_tiles)

    def __len__(self) -> int:
        return len(self.rows) * len(self.cross_tiles) * len(self.col_tiles)

    @prompt_handover()
    def run(
        self,
        writer: UnitWriter,
        durable: Callable[[int], None] = lambda position: None,  # noqa: ARG005
        progress: Callable[[int], None] = lambda tiles: None,  # noqa: ARG005
    ) -> Stalls:
        """Sweep to the end.

        Args:
            writer: takes the finished rows.
            durable: called with the sweep position up to which everything is on disk.
            progress: called with the number of tiles just blended.

        Raises:
            InputError, OutputError, EngineError: whatever a stage met; all threads have stopped by then.
        """
        flow, streams = Flow(), Streams(self.engine)
        rows: Channel[_Rows] = flow.channel(2)
        ready: Channel[_Batch] = flow.channel(BATCHES_AHEAD)
        free: Channel[Float32] = flow.channel(BATCHES_AHEAD + 2 + streams.ahead)
        spare: Channel[Float32] = flow.channel(OUTPUTS + streams.ahead)
        blended: Channel[_Batch] = flow.channel(OUTPUTS)
        finished: Channel[Finished] = flow.channel(1)
        spec, batch, tile = self.engine.spec, self.engine.batch, self.engine.tile
        for _ in range(BATCHES_AHEAD + 2 + streams.ahead):
            free.put(np.zeros((batch, spec.channels, *tile), np.float32))
        for _ in range(OUTPUTS + streams.ahead):
            spare.put(np.empty((batch, spec.outputs, *tile), np.float32))

        flow.start("read", lambda: self._read(rows))
        flow.start("cut", lambda: self._cut(rows, free, ready))
        flow.start("blend", lambda: self._blend(blended, free, spare, finished, progress))
        flow.start("write", lambda: self._write(finished, writer, durable))
        stalls = Stalls()
        try:
            with streams:
                for item in self._in_order(ready, spare, streams, stalls):
                    blended.put(item)
            blended.close()
        except BaseException as error:  # noqa: BLE001 - Stopped, errors of the engine, Ctrl-C: all end the flow
            flow.fail(error)
        try:
            flow.join()
        finally:
            writer.close()
        stalls.read = ready.waited
        # the blender waits on the writer, the engine on the blender: give each its own part
        behind = spare.waited + blended.blocked
        stalls.write = min(behind, finished.blocked)
        stalls.blend = behind - stalls.write
        return stalls

    def _in_order(
        self, ready: Channel[_Batch], spare: Channel[Float32], streams: Streams, stalls: Stalls
    ) -> Iterator[_Batch]:
        """Batches with their logits, in the order they were cut, however many are computed at a time."""
        under_way: deque[tuple[_Batch, Future[None] | None]] = deque()

        def oldest() -> _Batch:
            item, computed = under_way.popleft()
            began = time.perf_counter()
            if computed is not None:
                computed.result()
            stalls.engine += time.perf_counter() - began
            return item

        for item in ready:
            stalls.blank += sum(tile.slot < 0 for tile in item.tiles)
            computed = None
            if item.used:
                item.outputs = spare.take()
                began = time.perf_counter()
                computed = streams.submit(self._infer, item.inputs, item.outputs)
                stalls.engine += time.perf_counter() - began
                stalls.tiles += item.used
            under_way.append((item, computed))
            while len(under_way) > streams.ahead:
                yield oldest()
        while under_way:
            yield oldest()

    def _infer(self, inputs: Float32, outputs: Float32) -> None:
        """One batch through the engine, once or under the eight symmetries of the square."""
        if self.job.symmetries == 1:
            self.engine.run(inputs, outputs)
            return
        total = np.zeros_like(outputs)
        for turns, mirror in product(range(4), (False, True)):
            seen = np.rot90(inputs[..., ::-1] if mirror else inputs, turns, axes=(-2, -1))
            self.engine.run(np.ascontiguousarray(seen), outputs)
            back = np.rot90(outputs, -turns, axes=(-2, -1))
            total += back[..., ::-1] if mirror else back
        np.multiply(total, np.float32(1 / 8), out=outputs)

    def _read(self, rows: Channel[_Rows]) -> None:
        """Raw rows in order, cut at the source's chunks, so that each chunk is decoded once."""
        image, frame = self.job.image, self.job.frame
        first, stop = _seen(self.sweep, self.rows)
        block = block_rows(self.sweep.step, frame.sweep_first(image.chunks)[0])
        phase = frame.sweep_first(image.chunk_phase)[0]
        while first < stop:
            last = min(stop, ((first + phase) // block + 1) * block - phase)
            box = frame.box((first, last), self.cross_seen, self.cols_seen)
            raw = image.read(box)
            if raw.dtype.kind == "f" and not kernels.all_finite(np.ascontiguousarray(raw)):
                raise InputError(
                    f"{image.image.uri}: pixels in {box} are NaN or infinite: replace them (numpy.nan_to_num) "
                    "before segmenting"
                )
            rows.put(_Rows(first, frame.turn(raw)))
            first = last
        rows.close()

    def _cut(self, rows: Channel[_Rows], free: Channel[Float32], ready: Channel[_Batch]) -> None:
        """Normalised tiles in raster order, in batches of a fixed shape."""
        job, size = self.job, self.engine.batch
        band = _Band(rows)
        known: OrderedDict[bytes, None] = OrderedDict()
        batch: _Batch | None = None
        shape = (self.engine.spec.channels, *job.frame.sweep_first(job.lattice.tile))
        for j in self.rows:
            index = self.sweep.indices(j)
            band.move(int(index.min()), int(index.max()) + 1)
            index -= band.start
            for c, x in product(self.cross_tiles, self.col_tiles):
                if batch is None:
                    batch = _Batch([], free.take())
                cross = self.cross.indices(c) - self.cross_seen[0]
                cols = self.cols.indices(x) - self.cols_seen[0]
                item = _Tile(j, c, x)
                batch.tiles.append(item)
                if not self._wanted(j, c, x):
                    pass
                elif kernels.is_constant(band.raw, index, cross, cols):
                    item.blank = band.raw[:, index[0], cross[0], cols[0]].tobytes()
                    if item.blank not in known:
                        if len(known) < BLANKS:
                            known[item.blank] = None
                        else:
                            item.blank = None
                        item.slot = batch.used
                else:
                    item.slot = batch.used
                if item.slot >= 0:
                    target = batch.inputs[item.slot].reshape(shape)
                    kernels.cut(band.raw, index, cross, cols, job.mean, job.gain, target)
                    batch.used += 1
                if batch.used == size or len(batch.tiles) >= 64 * size:
                    ready.put(batch)
                    batch = None
        if batch is not None:
            batch.inputs[batch.used :] = 0  # the last batch has the same shape as all others
            ready.put(batch)
        ready.close()

    def _wanted(self, j: int, c: int, x: int) -> bool:
        """Whether the mask has a pixel in this tile."""
        if self.job.mask is None:
            return True
        axes = (self.sweep, self.cross, self.cols)
        ranges = [
            (axis.position(i), min(axis.size, axis.position(i) + axis.tile))
            for axis, i in zip(axes, (j, c, x), strict=True)
        ]
        return bool(self.job.mask.read(self.job.frame.box(ranges[0], ranges[1], ranges[2])).any())

    def _blend(
        self,
        blended: Channel[_Batch],
        free: Channel[Float32],
        spare: Channel[Float32],
        finished: Channel[Finished],
        progress: Callable[[int], None],
    ) -> None:
        """Logits onto the canvas; rows that no later tile touches leave as bytes."""
        job, frame = self.job, self.job.frame
        ring = self.sweep.tile
        outputs = self.engine.spec.outputs
        height = self.cross_range[1] - self.cross_range[0]
        width = self.col_range[1] - self.col_range[0]
        shape = frame.sweep_first(job.lattice.tile)
        canvas = np.zeros((outputs, ring, height, width), np.float32)
        share_cross = {c: self.cross.shares(c) for c in self.cross_tiles}
        share_cols = {x: self.cols.shares(x) for x in self.col_tiles}
        blank: dict[bytes, Float32] = {}
        current, done = self.rows[0], self.start
        share_sweep = self.sweep.shares(current)
        for batch in blended:
            for item in batch.tiles:
                if item.j != current:
                    done = self._finish(canvas, done, self.sweep.position(item.j), finished)
                    current, share_sweep = item.j, self.sweep.shares(item.j)
                at = self.sweep.position(item.j)
                if item.slot >= 0:
                    assert batch.outputs is not None  # noqa: S101 - a batch with tiles went through the engine
                    logits = batch.outputs[item.slot].reshape(outputs, *shape)
                    if item.blank is not None:
                        blank[item.blank] = logits.copy()
                elif item.blank is not None:
                    logits = blank[item.blank]
                else:
                    continue
                kernels.blend(
                    canvas,
                    logits,
                    share_sweep,
                    share_cross[item.cross],
                    share_cols[item.col],
                    at,
                    max(0, self.start - at),
                    min(ring, self.stop - at),
                    self.cross.position(item.cross) - self.cross_range[0],
                    self.cols.position(item.col) - self.col_range[0],
                )
            free.put(batch.inputs)
            if batch.outputs is not None:
                spare.put(batch.outputs)
            progress(len(batch.tiles))
        self._finish(canvas, done, self.stop, finished)
        finished.close()

    def _finish(self, canvas: Float32, done: int, upto: int, finished: Channel[Finished]) -> int:
        """Send rows ``done:upto`` on; returns the new `done`."""
        job, frame = self.job, self.job.frame
        upto = min(upto, self.stop)
        if upto <= done:
            return done
        area = (upto - done, *canvas.shape[2:])
        labels = np.empty(area, np.uint8)
        probabilities = np.empty((len(job.channels), *area), np.uint8)
        logits = np.empty((canvas.shape[0], *area) if job.logits else (0, 0, 0, 0), np.float32)
        kernels.finish(canvas, done, job.activation, labels, probabilities, job.channels, logits)
        if job.mask is not None:
            keep = frame.turn(job.mask.read(frame.box((done, upto), self.cross_range, self.col_range)))[0] != 0
            labels *= keep
            probabilities *= keep
        finished.put(
            Finished(
                frame.turn(labels) if job.labels else None,
                frame.turn(probabilities) if len(job.channels) else None,
                frame.turn(logits) if job.logits else None,
            )
        )
        return upto

    def _write(self, finished: Channel[Finished], writer: UnitWriter, durable: Callable[[int], None]) -> None:
        """Rows to the sink; what is on disk is said at once."""
        known = self.start
        for rows in finished:
            position = writer.write(rows)
            if position > known:
                known = position
                durable(position)


def _seen(axis: AxisTiling, tiles: range) -> tuple[int, int]:
    """The range of image pixels that `tiles` look at, reflection included."""
    first, last = axis.indices(tiles[0]), axis.indices(tiles[-1])
    return int(min(first.min(), last.min())), int(max(first.max(), last.max())) + 1
