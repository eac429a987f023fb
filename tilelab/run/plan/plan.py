"""What a run will do, in whole numbers: tiles, units, bytes and memory; no pixels are touched and nothing is listed.

A plan that would need more memory than the limit is refused here, before anything starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tilelab.engines.base import Engine, GpuRoom
from tilelab.errors import PlanError
from tilelab.geometry import Box, Cuts, Frame, Lattice, Units
from tilelab.io.zarr.layout import Layout
from tilelab.machine.memory import MEMORY_GOAL, default_memory_limit
from tilelab.run.plan.buffers import further_stream_bytes, largest_host_buffers, sizes
from tilelab.run.plan.device_buffers import SPARE, check_device, is_too_deep, largest_device_buffers
from tilelab.run.plan.request import ImageFacts, Request
from tilelab.run.plan.share_out import crossings, share_out
from tilelab.spec import ModelSpec
from tilelab.text import format_bytes, size_text

BASE_BYTES = 24 << 20  # libraries that come after the engine, and queues, beside the arrays counted below
_FEW_STREAMS = 8  # up to which their batches are part of the usual limit
_MORE_TILES = 1.05  # that narrow lanes of a stack may cost
NEIGHBOURED_SLICES = 8  # per neighbour on one side that a unit has at least, if the memory allows


@dataclass(frozen=True)
class Plan:
    """A run, before it starts.

    Attributes:
        request: what was asked.
        units: lanes x spans, lazily.
        memory: bytes by purpose for one unit at a time; of the engine only what it may take after it is loaded.
        tiles: inferred over all units; `tiles` - ``len(lattice)`` of them a second time, at the borders of units.
    """

    request: Request
    units: Units
    memory: dict[str, int]

    @property
    def source(self) -> ImageFacts:
        """The image."""
        return self.request.image

    @property
    def spec(self) -> ModelSpec:
        """The model, as it is used."""
        return self.request.spec

    @property
    def lattice(self) -> Lattice:
        """All tiles, on axes (z, y, x)."""
        return self.request.lattice

    @property
    def frame(self) -> Frame:
        """Which axis is swept."""
        return self.request.frame

    @property
    def layout(self) -> Layout:
        """Of the result."""
        return self.request.layout

    @property
    def largest_unit(self) -> tuple[int, ...]:
        """Its extent (z, y, x)."""
        return _largest_unit(self.units.cuts)

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
    def computed_per_pixel(self) -> float:
        """Pixels that the network computes for each of the image: overlaps, what lies beyond it, tiles done twice."""
        return self.tiles * math.prod(self.lattice.read) / self.pixels

    @property
    def memory_bytes(self) -> int:
        """All of `memory`."""
        return sum(self.memory.values())

    def on(self, engine: Engine) -> Plan:
        """The same with what this engine, which is loaded, may still take; no limit is for that."""
        more = engine.memory.more_host_bytes
        return replace(self, memory={**self.memory, "engine": more}) if more else self

    @property
    def pixels(self) -> int:
        """Of the image."""
        return math.prod(self.source.shape)

    @property
    def bytes_written(self) -> int:
        """Upper bound: all levels, before compression."""
        layout, written = self.layout, self.request.written
        coarser = sum(math.prod(layout.level_shape(n)) for n in range(1, layout.levels))
        return self.pixels * written.bytes_per_pixel + coarser * (written.labels + len(written.probabilities))


def make_plan(
    request: Request,
    *,
    memory_limit: int | None = None,
    lanes: int | None = None,
    spans: int | None = None,
    workers: int = 1,
    cuts: tuple[Cuts, ...] | None = None,
) -> Plan:
    """Cut the work so that one unit fits the memory limit and its GPU, in as few pieces as that allows.

    Args:
        request: what is asked.
        memory_limit: bytes for everything but the engine; by default `usual_memory_limit` where that is enough, else
            `default_memory_limit`.
        lanes, spans: force so many ranges of x and of the sweep axis, as far as the grain allows.
        workers: cut so that so many are done soonest.
        cuts: the exact split of a run that is being continued; overrides `lanes`, `spans` and `workers`.

    Raises:
        PlanError: even the narrowest unit needs more than the limit, or than its GPU has.
    """
    begun = cuts is not None
    limit = default_memory_limit(further_stream_bytes(request)) if memory_limit is None else memory_limit
    if cuts is None:
        cuts = _widest_cuts(request, limit, lanes, spans)
        if memory_limit is None and (goal := usual_memory_limit(request)) < limit:
            cuts = _frugal_cuts(request, goal, cuts, lanes, spans)
        if workers > 1:
            sweep_axis = request.frame.sweep_axis
            forced = {0: None, 1: None, 2: lanes} | {sweep_axis: spans}
            axes = [a for a, n in forced.items() if n is None and (a != 0 or request.spec.axes != "yx")]
            cuts = share_out(request.lattice, cuts, request.layout.grain, axes, sweep_axis, workers)
    widest = _largest_unit(cuts)
    memory = estimate_memory(request, widest)
    needed = sum(memory.values())
    if needed > limit:
        lower = "--tile, --batch or --threads" if request.streams > 1 else "--tile or --batch"
        advice = f"lower {lower} (units are multiples of {size_text(request.layout.grain)} px)"
        if begun:  # its tiles and units are those that it was begun with
            advice = "begin anew with --restart"
        raise PlanError(
            f"one unit of {size_text(widest)} px (z, y, x) needs {format_bytes(needed)}, the limit is "
            f"{format_bytes(limit)}: raise --memory, or {advice}"
        )
    if request.gpu is not None:
        buffers = largest_device_buffers(request, widest)
        if begun:  # it fitted when the run began
            advice = "free some, or begin anew with --restart and so many --lanes that a unit fits"
            check_device(request, buffers, request.gpu.free_bytes, advice)
        else:
            check_device(request, buffers, _usable_bytes(request.gpu), "lower --batch or --tile")
    return Plan(request, Units(cuts), memory)


def usual_memory_limit(request: Request) -> int:
    """Bytes beside the engine that a run takes where nothing is said: `MEMORY_GOAL`, and the batches of many cores."""
    few = replace(request, streams=min(request.streams, _FEW_STREAMS))
    more = further_stream_bytes(request) - further_stream_bytes(few)
    return min(MEMORY_GOAL + more, default_memory_limit(further_stream_bytes(request)))


def _frugal_cuts(
    request: Request, goal: int, wide: tuple[Cuts, ...], lanes: int | None, spans: int | None
) -> tuple[Cuts, ...]:
    """Narrower lanes than the `wide` ones, for less memory; not of a stack whose tiles would often be done twice."""
    narrow = _widest_cuts(request, goal, lanes, spans)
    if sum(estimate_memory(request, _largest_unit(narrow)).values()) > goal:
        return wide
    if request.image.shape[0] == 1:
        return narrow
    twice = [
        math.prod(crossings(a, c)[0] for a, c in zip(request.lattice.axes, cuts, strict=True))
        for cuts in (narrow, wide)
    ]
    return narrow if twice[0] <= _MORE_TILES * twice[1] else wide


def estimate_memory(request: Request, extent: tuple[int, ...]) -> dict[str, int]:
    """Bytes that a unit of this extent (z, y, x) holds at most, by purpose."""
    written = request.written
    writer = request.layout.writer_bytes(
        Box.whole(extent),
        request.frame.sweep_axis,
        labels=written.labels,
        probabilities=len(written.probabilities),
        logits=written.floats,
    )
    host = largest_host_buffers(request, extent)
    if request.gpu is None:
        return {"libraries": BASE_BYTES, **host.bytes, "writer": writer}
    pinned = sizes(largest_device_buffers(request, extent).pinned | host.passing)
    return {"libraries": BASE_BYTES, **pinned, "writer": writer}


def _usable_bytes(gpu: GpuRoom) -> int:
    """What of its free memory a plan counts on."""
    return int(gpu.free_bytes * (1 - SPARE))


def _largest_unit(cuts: tuple[Cuts, ...]) -> tuple[int, ...]:
    return tuple(c.extent if len(c) > 1 else c.size for c in cuts)


def _widest_cuts(request: Request, limit: int, lanes: int | None, spans: int | None) -> tuple[Cuts, ...]:
    """The widest lanes that fit: deep first (so that chunks of the image are decoded once), then wide."""
    grain, size, sweep_axis = request.layout.grain, request.image.shape, request.frame.sweep_axis
    extent = list(size)
    for axis, pieces in ((sweep_axis, spans), (2, lanes)):
        grains = math.ceil(size[axis] / grain[axis])
        extent[axis] = math.ceil(grains / (pieces or 1)) * grain[axis]
    if sweep_axis == 1:
        # a unit reads its neighbours too: the deeper it is, the fewer slices are decoded for two units
        chunk = request.image.chunks[0]
        deep = max(1, -(-NEIGHBOURED_SLICES * request.spec.neighbours // chunk)) * chunk
        extent[0] = min(size[0], max(grain[0], deep // grain[0] * grain[0]))
    cross_axis = 0 if sweep_axis == 1 else 1

    def cuts() -> tuple[Cuts, ...]:
        return tuple(Cuts.at_most(n, e, g) for n, e, g in zip(size, extent, grain, strict=True))

    def fits(unit: tuple[int, ...]) -> bool:
        gpu = request.gpu
        if gpu and largest_device_buffers(request, unit).device_bytes > _usable_bytes(gpu):
            return False
        return sum(estimate_memory(request, unit).values()) <= limit

    while True:
        unit = _largest_unit(cuts())
        too_deep = request.gpu is not None and is_too_deep(request, unit)
        if not too_deep and fits(unit):
            break
        # halve whichever cross axis is longer in grains; stop when both are at one grain
        wide, deep = (math.ceil(extent[a] / grain[a]) for a in (2, cross_axis))
        axis = cross_axis if too_deep or wide < deep else 2
        if (deep if too_deep else max(wide, deep)) <= 1:
            break
        extent[axis] = math.ceil(math.ceil(extent[axis] / grain[axis]) / 2) * grain[axis]
    return cuts()
