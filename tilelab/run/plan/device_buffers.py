"""What one unit of the device's sweep allocates: shapes, so that the plan and the allocation cannot disagree.

Arrays have the sweep axis first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tilelab.errors import PlanError
from tilelab.geometry import AxisTiling, Box
from tilelab.run.plan.buffers import GROUPS, Buffer, finished_rows, seen_range, sizes
from tilelab.run.plan.request import Request
from tilelab.text import format_bytes

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


def device_buffers(
    request: Request,
    unit: Box,
    *,
    tiles_dtype: np.dtype[np.generic] = np.dtype(np.float32),  # noqa: B008 - immutable
    logits_dtype: np.dtype[np.generic] = np.dtype(np.float32),  # noqa: B008 - immutable
) -> DeviceBuffers:
    """Those of one unit, for an engine that takes and gives these types."""
    image, spec, lattice, frame, batch = request.image, request.spec, request.lattice, request.frame, request.batch
    sweep, cross, cols = frame.sweep_first(lattice.axes)
    ranges = frame.sweep_first(tuple(zip(unit.start, unit.stop, strict=True)))
    rows, cross_tiles, col_tiles = (axis.covering(*r) for axis, r in zip((sweep, cross, cols), ranges, strict=True))
    seen_cross, seen_cols = (b - a for a, b in (seen_range(cross, cross_tiles), seen_range(cols, col_tiles)))
    height, width = (b - a for a, b in ranges[1:])
    tile = frame.sweep_first(lattice.tile)
    step = min(sweep.step, ranges[0][1] - ranges[0][0])
    f32, i32 = np.dtype(np.float32), np.dtype(np.int32)
    ring = band_rows(sweep, rows)
    device = {
        "raw rows": Buffer((image.channels, ring, seen_cross, seen_cols), image.dtype),
        "tiles": Buffer((batch, spec.channels, *tile), tiles_dtype),
        "logits": Buffer((batch, spec.outputs, *tile), logits_dtype),
        "canvas": Buffer((spec.outputs, sweep.tile, height, width), f32),
        "placement": Buffer((len(cross_tiles) * len(col_tiles), 4), i32),
        "cross shares": Buffer((len(cross_tiles), cross.tile), f32),
        "x shares": Buffer((len(col_tiles), cols.tile), f32),
    }
    if request.symmetries > 1:  # a second batch of tiles, and float32 sums of the logits
        device["turned tiles"] = device["tiles"]
        device["summed logits"] = Buffer(device["logits"].shape, f32)
    pinned = {"raw rows": Buffer((PINNED_BLOCKS, image.channels, min(step, ring), seen_cross, seen_cols), image.dtype)}
    leaving = finished_rows(request.written, GROUPS, step * height * width) | {"flags": Buffer((GROUPS, 1), i32)}
    return DeviceBuffers(device | leaving, pinned | leaving)


def check_device_memory(buffers: DeviceBuffers, engine_bytes: int, free_bytes: int) -> None:
    """Refuse before anything is allocated.

    Raises:
        PlanError: the buffers and the engine together need more than is free; the message names the largest parts.
    """
    needed = buffers.device_bytes + engine_bytes
    if needed <= free_bytes:
        return
    parts = sorted({**sizes(buffers.device), "engine": engine_bytes}.items(), key=lambda part: -part[1])[:3]
    raise PlanError(
        f"one unit needs {format_bytes(needed)} of GPU memory "
        f"({', '.join(f'{name} {format_bytes(size)}' for name, size in parts)}), {format_bytes(free_bytes)} are free: "
        f"raise --lanes, or lower --batch or --tile"
    )
