"""What one unit of the device's sweep allocates: shapes, so that the plan and the allocation cannot disagree.

Arrays have the sweep axis first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tilelab.errors import PlanError
from tilelab.geometry import AxisTiling, Box
from tilelab.run.plan.buffers import BLANKS, GROUPS, Buffer, finished_rows, seen_range, sizes
from tilelab.run.plan.request import Request
from tilelab.text import format_bytes

MOST_BLOCKS = 65535  # of a grid, along its second and third axis
SPARE = 0.05  # of the memory that is free when a run is planned: libraries take some more while they run
PINNED_BLOCKS = 2  # raw rows on their way up: one being filled, one being copied


@dataclass(frozen=True)
class DeviceBuffers:
    """Every buffer of one unit, by name.

    `device` is allocated on the GPU, `pinned` in page-locked host memory.
    """

    device: dict[str, Buffer]
    pinned: dict[str, Buffer]

    @property
    def device_bytes(self) -> int:
        """All of GPU memory that a unit takes, the engine's own excluded."""
        return sum(sizes(self.device).values())


def band_rows(axis: AxisTiling, tiles: range) -> int:
    """Rows of the ring of raw rows: those of two neighbouring tile rows, so that one can go up while one is cut."""
    first, stop = seen_range(axis, tiles)
    regular = axis.tile + axis.step
    last_pair = seen_range(axis, range(tiles[-2], tiles[-1] + 1)) if len(tiles) > 1 else (first, stop)
    return min(stop - first, max(regular, last_pair[1] - last_pair[0]))


def device_buffers(request: Request, unit: Box) -> DeviceBuffers:
    """Those of one unit, for the GPU of the request."""
    axes = request.frame.sweep_first(request.lattice.axes)
    ranges = request.frame.sweep_first(tuple(zip(unit.start, unit.stop, strict=True)))
    tiles = [axis.covering(*r) for axis, r in zip(axes, ranges, strict=True)]
    seen = [seen_range(axis, t) for axis, t in zip(axes[1:], tiles[1:], strict=True)]
    return _device_buffers(
        request,
        [b - a for a, b in ranges],
        [band_rows(axes[0], tiles[0]), *(b - a for a, b in seen)],
        [len(t) for t in tiles[1:]],
    )


def largest_device_buffers(request: Request, extent: tuple[int, ...]) -> DeviceBuffers:
    """At least those of any unit of at most this extent (z, y, x), wherever it lies."""
    axes = request.frame.sweep_first(request.lattice.axes)
    ranges = [min(axis.size, n) for axis, n in zip(axes, request.frame.sweep_first(extent), strict=True)]
    seen = [min(axis.size, n + 2 * (axis.tile - 1)) for axis, n in zip(axes, ranges, strict=True)]
    ring = min(seen[0], band_rows(axes[0], range(len(axes[0]))))
    # those that begin up to a tile before; the last one is moved back
    most = [min(len(axis), -(-(n + axis.tile) // axis.step) + 1) for axis, n in zip(axes[1:], ranges[1:], strict=True)]
    return _device_buffers(request, ranges, [ring, *seen[1:]], most)


def _device_buffers(request: Request, extent: list[int], seen: list[int], tiles: list[int]) -> DeviceBuffers:
    """Of a unit of this extent whose tiles, so many on the cross axes, see so many pixels; on (sweep, cross, x)."""
    if request.gpu is None:
        raise ValueError("the request names no GPU")
    image, spec, batch, gpu = request.image, request.spec, request.batch, request.gpu
    sweep, cross, cols = request.frame.sweep_first(request.lattice.axes)
    tile = request.frame.sweep_first(request.lattice.tile)
    step = min(sweep.step, extent[0])
    f32, i32 = np.dtype(np.float32), np.dtype(np.int32)
    logits = Buffer((batch, spec.values, *tile), gpu.logits_dtype)
    device = {
        "raw rows": Buffer((image.channels, *seen), image.dtype),
        "tiles": Buffer((batch, spec.channels, *tile), gpu.tiles_dtype),
        "logits": logits,
        "canvas": Buffer((spec.values, sweep.tile, *extent[1:]), f32),
        "placement": Buffer((math.prod(tiles), 4), i32),
        "cross shares": Buffer((tiles[0], cross.tile), f32),
        "x shares": Buffer((tiles[1], cols.tile), f32),
        "blank tiles": Buffer((BLANKS, *logits.shape[1:]), gpu.logits_dtype if request.symmetries == 1 else f32),
    }
    if request.symmetries > 1:  # a second batch of tiles, and float32 sums of the logits
        device["turned tiles"] = device["tiles"]
        device["summed logits"] = Buffer(logits.shape, f32)
    pinned = {"raw rows": Buffer((PINNED_BLOCKS, image.channels, min(step, seen[0]), *seen[1:]), image.dtype)}
    leaving = finished_rows(request.written, GROUPS, step * extent[1] * extent[2]) | {"flags": Buffer((GROUPS, 1), i32)}
    return DeviceBuffers(device | leaving, pinned | leaving)


def is_too_deep(request: Request, extent: tuple[int, ...]) -> bool:
    """Whether a unit has more lines across the sweep than a grid has blocks."""
    lines: int = request.frame.sweep_first(extent)[1]
    return lines > MOST_BLOCKS


def check_device(
    request: Request, buffers: DeviceBuffers, free_bytes: int, advice: str = "raise --lanes, or lower --batch or --tile"
) -> None:
    """Refuse before anything is allocated.

    Raises:
        PlanError: the buffers need more than is free; the message names the largest parts.  Or a tile or batch has
            more lines than a grid has blocks.
    """
    _, depth, _ = request.frame.sweep_first(request.lattice.tile)
    lines = {
        "lines of a lane": buffers.device["canvas"].shape[2],
        "lines of a tile, channels counted": request.spec.channels * depth,
        "rows of a tile": request.lattice.axes[request.frame.sweep_axis].tile,
        "tiles of a batch": request.batch,
    }
    for name, count in lines.items():
        if count > MOST_BLOCKS:
            raise PlanError(f"{count} {name} are more than the {MOST_BLOCKS} that a GPU takes: lower --tile or --batch")
    if buffers.device_bytes <= free_bytes:
        return
    parts = sorted(sizes(buffers.device).items(), key=lambda part: -part[1])[:3]
    raise PlanError(
        f"one unit needs {format_bytes(buffers.device_bytes)} of GPU memory "
        f"({', '.join(f'{name} {format_bytes(size)}' for name, size in parts)}), {format_bytes(free_bytes)} are free: "
        f"{advice}"
    )
