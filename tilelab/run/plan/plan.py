"""What a run will do, in whole numbers: tiles, units, bytes and memory; no pixels are touched and nothing is listed.

A plan that would need more memory than the limit is refused here, before anything starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tilelab.errors import PlanError
from tilelab.geometry import Box, Cuts, Frame, Lattice, Units
from tilelab.io.zarr.layout import Layout
from tilelab.machine.memory import default_memory_limit
from tilelab.run.plan.share_out import crossings, share_out
from tilelab.spec import ModelSpec
from tilelab.text import format_bytes, size_text

BASE_BYTES = 64 << 20  # interpreter, libraries and queues beside the arrays counted below
BATCHES_AHEAD = 3  # cut batches waiting for the engine
OUTPUTS = 3  # logits buffers: one being computed, one being blended, one between
NEIGHBOURED_SLICES = 8  # per neighbour on one side that a unit has at least, if the memory allows
BLANKS = 4  # different values of blank tiles whose logits are remembered


@dataclass(frozen=True, slots=True)
class Source:
    """What planning needs to know of an image: ``(z, y, x)`` extent and chunks in pixels, channels, bytes per pixel."""

    shape: tuple[int, int, int]
    chunks: tuple[int, int, int]
    channels: int
    itemsize: int

    @property
    def bytes(self) -> int:
        """Of all decoded pixels."""
        return math.prod(self.shape) * self.channels * self.itemsize


@dataclass(frozen=True, slots=True)
class Outputs:
    """What is written for each pixel: labels (1 byte), probability channels (1 byte each), logits (4 bytes each)."""

    labels: bool
    probabilities: int
    logits: int

    @property
    def bytes_per_pixel(self) -> int:
        """Uncompressed, at level 0."""
        return self.labels + self.probabilities + 4 * self.logits


@dataclass(frozen=True)
class Plan:
    """A run, before it starts.

    Attributes:
        lattice: all tiles, on axes (z, y, x).
        frame: which axis is swept.
        units: lanes x spans, lazily.
        memory: bytes by purpose for one unit at a time; without the engine's own.
        tiles: inferred over all units; `tiles` - ``len(lattice)`` of them a second time, at the borders of units.
    """

    source: Source
    spec: ModelSpec
    outputs: Outputs
    layout: Layout
    lattice: Lattice
    frame: Frame
    units: Units
    batch: int
    memory: dict[str, int]

    @property
    def tiles(self) -> int:
        """Tiles over all units: a tile that reaches into several ranges of an axis is counted in each."""
        return math.prod(
            crossings(axis, cuts)[0] for axis, cuts in zip(self.lattice.axes, self.units.cuts, strict=True)
        )

    @property
    def recomputed(self) -> float:
        """The share of tiles that are inferred a second time."""
        return self.tiles / len(self.lattice) - 1

    @property
    def memory_bytes(self) -> int:
        """All of `memory`."""
        return sum(self.memory.values())

    @property
    def pixels(self) -> int:
        """Of the image."""
        return math.prod(self.source.shape)

    @property
    def bytes_written(self) -> int:
        """Upper bound: all levels, before compression."""
        coarser = sum(math.prod(self.layout.level_shape(n)) for n in range(1, self.layout.levels))
        per_coarse = self.outputs.labels + self.outputs.probabilities
        return self.pixels * self.outputs.bytes_per_pixel + coarser * per_coarse


def make_plan(
    source: Source,
    spec: ModelSpec,
    layout: Layout,
    outputs: Outputs,
    *,
    batch: int = 1,
    memory_limit: int | None = None,
    lanes: int | None = None,
    spans: int | None = None,
    workers: int = 1,
    cuts: tuple[Cuts, ...] | None = None,
) -> Plan:
    """Cut the work so that one unit fits the memory limit, in as few pieces as that allows.

    Args:
        source: the image.
        spec: the model, with tile, overlap and window as they will be used.
        layout: of the result; its grain is what units are cut at.
        outputs: what is written per pixel.
        batch: tiles per engine run.
        memory_limit: bytes for everything but the engine; by default `default_memory_limit()`.
        lanes, spans: force so many ranges of x and of the sweep axis, as far as the grain allows.
        workers: cut so that so many are done soonest.
        cuts: the exact split of a run that is being continued; overrides `lanes`, `spans` and `workers`.

    Raises:
        PlanError: the image does not suit the model, or even the narrowest unit needs more than the limit.
    """
    limit = default_memory_limit() if memory_limit is None else memory_limit
    flat = spec.axes == "yx"
    if not flat and source.shape[0] == 1:
        raise PlanError("the model is 3-D (zyx) but the image is a single plane: give a volume")
    frame = Frame(1 if flat else 0)
    lattice = Lattice.fit(
        source.shape,
        (1, *spec.tile) if flat else spec.tile,
        (0, *spec.overlap) if flat else spec.overlap,
        stride=(1, spec.stride, spec.stride) if flat else spec.stride,
        window=spec.window,
    )
    grain = layout.grain
    if cuts is None:
        cuts = _cut(source, spec, layout, outputs, lattice, frame, batch, limit, lanes, spans)
        if workers > 1:
            free = {2: lanes, frame.sweep_axis: spans} | ({} if flat else {1: None})
            axes = [a for a, forced in free.items() if forced is None]
            cuts = share_out(lattice, cuts, grain, axes, frame.sweep_axis, workers)
    units = Units(cuts)
    widest = Box.whole(tuple(c.extent if len(c) > 1 else c.size for c in cuts))
    memory = estimate_memory(source, spec, layout, outputs, lattice, frame, batch, widest)
    needed = sum(memory.values())
    if needed > limit:
        raise PlanError(
            f"one unit of {size_text(widest.shape)} px needs {format_bytes(needed)}, the limit is "
            f"{format_bytes(limit)}: raise --memory, or lower --tile or --batch (units are multiples of "
            f"{size_text(grain)} px)"
        )
    return Plan(source, spec, outputs, layout, lattice, frame, units, batch, memory)


def estimate_memory(
    source: Source,
    spec: ModelSpec,
    layout: Layout,
    outputs: Outputs,
    lattice: Lattice,
    frame: Frame,
    batch: int,
    unit: Box,
) -> dict[str, int]:
    """Bytes that one unit of this extent holds at a time, by purpose."""
    _, cross, width = frame.sweep_first(unit.shape)
    sweep_tile, cross_tile, col_tile = frame.sweep_first(lattice.tile)
    step = lattice.axes[frame.sweep_axis].step
    seen = min(cross + 2 * cross_tile, frame.sweep_first(source.shape)[1]) * min(width + 2 * col_tile, source.shape[2])
    block = block_rows(step, frame.sweep_first(source.chunks)[0])
    # the band and its successor while one is copied to the other, two blocks queued and one being decoded
    # (and what neighbouring slices are copied from)
    band = source.channels * source.itemsize * seen * (2 * sweep_tile + (5 if spec.neighbours else 4) * block)
    tile = 4 * math.prod(lattice.tile) * batch
    return {
        "libraries": BASE_BYTES,
        "raw rows": band,
        "tiles": tile * spec.channels * (BATCHES_AHEAD + 2) + tile * spec.outputs * OUTPUTS,
        "blank tiles": BLANKS * 4 * math.prod(lattice.tile) * spec.outputs,
        "canvas": 4 * spec.outputs * sweep_tile * cross * width,
        "finished rows": 3 * step * cross * width * (1 + outputs.probabilities + 4 * outputs.logits),
        "writer": layout.writer_bytes(
            unit,
            frame.sweep_axis,
            labels=outputs.labels,
            probabilities=outputs.probabilities,
            logits=outputs.logits,
        ),
    }


def _cut(
    source: Source,
    spec: ModelSpec,
    layout: Layout,
    outputs: Outputs,
    lattice: Lattice,
    frame: Frame,
    batch: int,
    limit: int,
    lanes: int | None,
    spans: int | None,
) -> tuple[Cuts, ...]:
    """The widest lanes that fit: deep first (so that source chunks are decoded once), then wide."""
    grain = layout.grain
    size = source.shape
    extent = list(size)
    for axis, pieces in ((frame.sweep_axis, spans), (2, lanes)):
        grains = math.ceil(size[axis] / grain[axis])
        extent[axis] = math.ceil(grains / (pieces or 1)) * grain[axis]
    if frame.sweep_axis == 1:
        # a unit reads its neighbours too: the deeper it is, the fewer slices are decoded for two units
        chunk = source.chunks[0]
        deep = max(1, -(-NEIGHBOURED_SLICES * spec.neighbours // chunk)) * chunk
        extent[0] = min(size[0], max(grain[0], deep // grain[0] * grain[0]))
    cross_axis = 0 if frame.sweep_axis == 1 else 1

    def cuts() -> tuple[Cuts, ...]:
        return tuple(Cuts.at_most(n, e, g) for n, e, g in zip(size, extent, grain, strict=True))

    def needs() -> int:
        box = Box.whole(tuple(c.extent if len(c) > 1 else c.size for c in cuts()))
        return sum(estimate_memory(source, spec, layout, outputs, lattice, frame, batch, box).values())

    while needs() > limit:
        # halve whichever cross axis is longer in grains; stop when both are at one grain
        wide, deep = (math.ceil(extent[a] / grain[a]) for a in (2, cross_axis))
        axis = 2 if wide >= deep else cross_axis
        if max(wide, deep) <= 1:
            break
        extent[axis] = math.ceil(math.ceil(extent[axis] / grain[axis]) / 2) * grain[axis]
    return cuts()


def block_rows(step: int, chunk: int) -> int:
    """Rows that are read at a time: whole chunks, about one step of tiles; strips of a row or two are gathered."""
    return -(-min(step, max(chunk, 64)) // chunk) * chunk
