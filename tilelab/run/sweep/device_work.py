"""The device's side of one unit: its buffers, and what is put on its streams."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from tilelab.engines.base import DeviceEngine
from tilelab.kernels import cuda as kernels
from tilelab.kernels import device
from tilelab.kernels.cuda_elementwise import clear, turn
from tilelab.kernels.symmetries import SYMMETRIES
from tilelab.run.plan.buffers import BLANKS, seen_range
from tilelab.run.plan.device_buffers import DeviceBuffers
from tilelab.run.sweep.device_band import DeviceBand
from tilelab.run.sweep.device_blanks import Blanks
from tilelab.run.sweep.device_landing import Landings
from tilelab.run.sweep.flow import Channel, Flow
from tilelab.run.sweep.job import Stalls
from tilelab.run.sweep.rows import RawRows
from tilelab.run.sweep.unit import UnitSweep


@dataclass
class _Segment:
    """Tiles of one tile row that lie side by side in a batch: `count` from `first` of the placement, from `slot` on.

    slot: None for a tile whose logits are known.
    blank: which of the values that are remembered the tile has; None for any other.
    """

    j: int
    first: int
    count: int
    slot: int | None
    blank: int | None = None


class DeviceWork:
    """The device's side of one unit: its buffers, its streams, and what has been put on them."""

    def __init__(self, unit: UnitSweep, buffers: DeviceBuffers, flow: Flow) -> None:
        self.unit, self.job = unit, unit.job
        self.engine: DeviceEngine = unit.engine  # type: ignore[assignment]
        self.compute = self.engine.stream
        self.up, self.down = device.stream(), device.stream()
        self.stalls = Stalls()
        shapes, pinned = buffers.device, buffers.pinned
        with device.memory_errors(buffers.device_bytes):
            self.at = {name: device.empty(*shapes[name]) for name in shapes}
            self.host = {name: device.pinned(*pinned[name]) for name in pinned}
        for name in ("canvas", "tiles", "flags"):
            clear(self.at[name], self.compute)
        self._prepare_tables()
        self.landings = Landings(unit, flow, self.at, self.host)
        self.band = DeviceBand(self.at["raw rows"], self.host["raw rows"], self.up, self.compute, self._blanks(buffers))
        self.known: dict[bytes, int] = {}
        self.segments: list[_Segment] = []
        self.used = 0
        self.current = -1
        self.done = unit.start
        self.share_rows: dict[bytes, Any] = {}
        self.pending_tiles = 0

    def _prepare_tables(self) -> None:
        """What the kernels look up: where tiles lie across the sweep, and their shares there."""
        unit = self.unit
        columns = [
            (unit.cross.position(c), unit.cols.position(x), i, k)
            for (i, c), (k, x) in product(enumerate(unit.cross_tiles), enumerate(unit.col_tiles))
        ]
        tables = {
            "placement": np.array(columns, np.int32),
            "cross shares": np.stack([unit.cross.shares(c) for c in unit.cross_tiles]),
            "x shares": np.stack([unit.cols.shares(x) for x in unit.col_tiles]),
        }
        for name, table in tables.items():
            device.upload(table, self.at[name], self.compute)
        job = self.job
        self.constants: dict[str, Any] = {}
        for name, values in (("mean", job.mean), ("gain", job.gain), ("channels", job.channels.astype(np.int32))):
            if values.size:
                self.constants[name] = device.empty(values.shape, values.dtype)
                device.upload(np.ascontiguousarray(values), self.constants[name], self.compute)
        self.compute.synchronize()  # the host arrays go away

    def sweep(self, rows: Channel[RawRows]) -> None:
        """Put every tile row on the streams."""
        unit = self.unit
        blocks = iter(rows)
        for j in unit.rows:
            low, high = seen_range(unit.sweep, range(j, j + 1))
            self.band.hold(low, high, blocks)
            self._put_row(j)
            self.band.cut(low)
            self.pending_tiles += len(unit.cross_tiles) * len(unit.col_tiles)
        self._flush()
        self._finish(unit.stop)
        self.landings.close()

    def _put_row(self, j: int) -> None:
        """Every wanted tile of a row into batches, in raster order; blank ones only once for each value."""
        tiles = list(product(enumerate(self.unit.cross_tiles), enumerate(self.unit.col_tiles)))
        blanks = self.band.blanks.of_row(j)
        if not blanks and self.job.mask is None:
            self._cut(j, 0, len(tiles))
            return
        first = 0
        for n, ((i, c), (k, x)) in enumerate(tiles):
            wanted, value = self.unit.is_wanted(j, c, x), blanks.get((i, k))
            if wanted and (value is None or (value not in self.known and len(self.known) == BLANKS)):
                continue
            self._cut(j, first, n - first)
            first = n + 1
            if not wanted:
                self.stalls.blank += 1
            elif value in self.known:
                self._repeat(j, n, self.known[value])
            elif value is not None:
                self.known[value] = len(self.known)
                self._cut(j, n, 1, self.known[value])
        self._cut(j, first, len(tiles) - first)

    def _cut(self, j: int, first: int, count: int, blank: int | None = None) -> None:
        """Cut tiles into the batch, sending it off whenever it is full."""
        unit = self.unit
        while count:
            n = min(count, self.engine.batch - self.used)
            kernels.cut(
                self.band.ring,
                (unit.cross_seen[0], unit.cols_seen[0]),
                (unit.sweep.size, unit.cross.size, unit.cols.size),
                self.at["placement"],
                first,
                n,
                unit.sweep.position(j),
                self.constants["mean"],
                self.constants["gain"],
                self.at["tiles"][self.used : self.used + n],
                self.compute,
            )
            self.segments.append(_Segment(j, first, n, self.used, blank))
            self.used += n
            first, count = first + n, count - n
            if self.used == self.engine.batch:
                self._flush()

    def _repeat(self, j: int, n: int, blank: int) -> None:
        """A tile whose logits are known."""
        self.segments.append(_Segment(j, n, 1, None, blank))
        self.stalls.blank += 1
        if len(self.segments) >= 64 * self.engine.batch:
            self._flush()

    def _flush(self) -> None:
        """The batch through the network, and all segments onto the canvas in their order."""
        logits = self._infer() if self.used else None
        kept = self.at["blank tiles"]
        for segment in self.segments:
            if segment.slot is None:
                assert segment.blank is not None  # noqa: S101 - nothing else has no slot
                self._blend(segment, kept[segment.blank : segment.blank + 1])
                continue
            assert logits is not None  # noqa: S101 - it has a slot in the batch
            if segment.blank is not None:
                device.copy(logits[segment.slot], kept[segment.blank], self.compute)
            self._blend(segment, logits[segment.slot : segment.slot + segment.count])
        self.stalls.tiles += self.used
        self.segments, self.used = [], 0

    def _infer(self) -> Any:
        """The logits of the batch, summed over the symmetries."""
        tiles, logits = self.at["tiles"], self.at["logits"]
        engine, tile = self.engine, self.engine.tile
        batch_in, batch_out = (engine.batch, engine.spec.channels, *tile), (engine.batch, engine.spec.values, *tile)
        if self.job.symmetries == 1:
            engine.enqueue(tiles.reshape(*batch_in), logits.reshape(*batch_out))
            return logits
        turned, total = self.at["turned tiles"], self.at["summed logits"]
        clear(total, self.compute)

        def planes(array: Any) -> Any:
            return array.reshape(math.prod(array.shape) // (tile[-1] * tile[-2]), tile[-2], tile[-1])

        for turns, mirror in SYMMETRIES:
            turn(planes(tiles), planes(turned), turns, mirror, stream=self.compute)
            engine.enqueue(turned.reshape(*batch_in), logits.reshape(*batch_out))
            turn(planes(logits), planes(total), turns, mirror, back=True, add=True, stream=self.compute)
        return total

    def _blend(self, segment: _Segment, logits: Any) -> None:
        unit = self.unit
        at = unit.sweep.position(segment.j)
        if segment.j != self.current:
            self._finish(at)
            self.current = segment.j
        shares = (self._share_row(segment.j), self.at["cross shares"], self.at["x shares"])
        kernels.blend(
            self.at["canvas"],
            logits,
            self.at["placement"],
            segment.first,
            segment.count,
            at,
            shares,
            (unit.cross_range[0], unit.col_range[0]),
            max(unit.start, at),
            min(unit.stop, at + unit.sweep.tile),
            self.compute,
        )

    def _share_row(self, j: int) -> Any:
        """Shares along the sweep on the device; few tile rows differ, so few are ever uploaded."""
        values = self.unit.sweep.shares(j) * np.float32(1 / self.job.symmetries)
        key = values.tobytes()
        if key not in self.share_rows:
            table = device.empty(values.shape, values.dtype)
            device.upload(values, table, self.compute)
            self.compute.synchronize()
            self.share_rows[key] = table
        return self.share_rows[key]

    def _finish(self, upto: int) -> None:
        """Send rows up to `upto` down, in groups that fit a landing."""
        unit = self.unit
        upto = min(upto, unit.stop)
        while self.done < upto:
            landing = self.landings.take(self.done, upto, self.pending_tiles)
            self.pending_tiles = 0
            rows = self.landings.shaped(landing, landing.on_device)
            clear(landing.on_device["flags"], self.compute)
            kernels.finish(
                self.at["canvas"],
                landing.start,
                self.job.activation,
                rows["labels"],
                landing.on_device["flags"],
                rows.get("probabilities"),
                self.constants.get("channels"),
                rows.get("finished logits"),
                self.compute,
                self.job.sharpness,
            )
            self.landings.send(landing, self.compute, self.down)
            self.done = landing.stop

    def release(self, *, failed: bool = False) -> None:
        """Wait for what was put on the streams and give the buffers back; after a failure as far as the GPU lets us."""
        with device.quietly() if failed else contextlib.nullcontext():
            for stream in (self.up, self.compute, self.down):
                stream.synchronize()
        del self.at, self.host, self.share_rows, self.constants, self.landings, self.band
        device.give_back()

    def _blanks(self, buffers: DeviceBuffers) -> Blanks:
        unit, ring = self.unit, buffers.device["raw rows"]
        across = (unit.cross, unit.cross_tiles, unit.cross_seen[0]), (unit.cols, unit.col_tiles, unit.cols_seen[0])
        return Blanks(unit.sweep, across, ring.shape[1], ring.shape[0], ring.dtype)
