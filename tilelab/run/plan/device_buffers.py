"""What one unit of the device sweep allocates on a GPU: shapes, so that the plan and the allocation cannot disagree."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tilelab.errors import PlanError
from tilelab.geometry import AxisTiling, Box, Frame, Lattice
from tilelab.run.plan.plan import Outputs, Source
from tilelab.spec import ModelSpec
from tilelab.text import format_bytes

LANDINGS = 3  # groups of finished rows: one being filled, one coming down, one being written
PINNED_BLOCKS = 2  # raw rows on their way up: one being filled, one being copied

Shape = tuple[int, ...]


@dataclass(frozen=True)
class DeviceBuffers:
    """Every buffer of one unit, by name: shape and dtype; arrays have the sweep axis first.

    `device` is allocated on the GPU, `pinned` in page-locked host memory.
    """

    device: dict[str, tuple[Shape, np.dtype[np.generic]]]
    pinned: dict[str, tuple[Shape, np.dtype[np.generic]]]

    def bytes(self, where: str = "device") -> dict[str, int]:
        """Size of each buffer, for `tilelab plan`."""
        buffers = self.device if where == "device" else self.pinned
        return {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in buffers.items()}

    @property
    def device_bytes(self) -> int:
        """All of GPU memory that a unit takes, the engine's own excluded."""
        return sum(self.bytes().values())


def seen_range(axis: AxisTiling, tiles: range) -> tuple[int, int]:
    """The range of image pixels that `tiles` look at, reflection included."""
    first, last = axis.indices(tiles[0]), axis.indices(tiles[-1])
    return int(min(first.min(), last.min())), int(max(first.max(), last.max())) + 1


def band_rows(axis: AxisTiling, tiles: range) -> int:
    """Rows of the ring of raw rows: those of two neighbouring tile rows, so that one can go up while one is cut."""
    first, stop = seen_range(axis, tiles)
    regular = axis.tile + axis.step
    last_pair = seen_range(axis, range(tiles[-2], tiles[-1] + 1)) if len(tiles) > 1 else (first, stop)
    return min(stop - first, max(regular, last_pair[1] - last_pair[0]))


def plan_buffers(
    source: Source,
    spec: ModelSpec,
    outputs: Outputs,
    lattice: Lattice,
    frame: Frame,
    batch: int,
    unit: Box,
    *,
    raw_dtype: np.dtype[np.generic] | None = None,
    tiles_dtype: np.dtype[np.generic] = np.dtype(np.float32),  # noqa: B008 - immutable
    logits_dtype: np.dtype[np.generic] = np.dtype(np.float32),  # noqa: B008 - immutable
    symmetries: int = 1,
) -> DeviceBuffers:
    """The buffers of one unit.

    Args:
        source: the image; `source.channels` of them go up.
        spec, outputs, lattice, frame, batch, unit: as in `make_plan`.
        raw_dtype: of the image; by default the unsigned type of ``source.itemsize``.
        tiles_dtype, logits_dtype: what the engine takes and gives.
        symmetries: 8 needs a second batch of tiles and float32 sums of the logits.
    """
    raw = np.dtype({1: np.uint8, 2: np.uint16}.get(source.itemsize, np.float32)) if raw_dtype is None else raw_dtype
    sweep, cross, cols = frame.sweep_first(lattice.axes)
    ranges = frame.sweep_first(tuple(zip(unit.start, unit.stop, strict=True)))
    rows, cross_tiles, col_tiles = (axis.covering(*r) for axis, r in zip((sweep, cross, cols), ranges, strict=True))
    seen_cross, seen_cols = (b - a for a, b in (seen_range(cross, cross_tiles), seen_range(cols, col_tiles)))
    height, width = (b - a for a, b in ranges[1:])
    tile = frame.sweep_first(lattice.tile)
    step = min(sweep.step, ranges[0][1] - ranges[0][0])
    f32, u8, i32 = np.dtype(np.float32), np.dtype(np.uint8), np.dtype(np.int32)
    ring = band_rows(sweep, rows)
    device: dict[str, tuple[Shape, np.dtype[np.generic]]] = {
        "raw rows": ((source.channels, ring, seen_cross, seen_cols), raw),
        "tiles": ((batch, spec.channels, *tile), tiles_dtype),
        "logits": ((batch, spec.outputs, *tile), logits_dtype),
        "canvas": ((spec.outputs, sweep.tile, height, width), f32),
        "placement": ((len(cross_tiles) * len(col_tiles), 4), i32),
        "cross shares": ((len(cross_tiles), cross.tile), f32),
        "x shares": ((len(col_tiles), cols.tile), f32),
    }
    if symmetries > 1:
        device["turned tiles"] = device["tiles"]
        device["summed logits"] = (device["logits"][0], f32)
    pinned: dict[str, tuple[Shape, np.dtype[np.generic]]] = {
        "raw rows": ((PINNED_BLOCKS, source.channels, min(step, ring), seen_cross, seen_cols), raw)
    }
    # finished rows leave in groups of at most one step
    area = step * height * width
    leaving: dict[str, tuple[Shape, np.dtype[np.generic]]] = {
        "labels": ((LANDINGS, area), u8),
        "flags": ((LANDINGS, 1), i32),
    }
    if outputs.probabilities:
        leaving["probabilities"] = ((LANDINGS, outputs.probabilities * area), u8)
    if outputs.logits:
        leaving["finished logits"] = ((LANDINGS, outputs.logits * area), f32)
    return DeviceBuffers(device | leaving, pinned | leaving)


def check_device_memory(buffers: DeviceBuffers, engine_bytes: int, free_bytes: int) -> None:
    """Refuse before anything is allocated.

    Raises:
        PlanError: the buffers and the engine together need more than is free; the message names the largest parts.
    """
    needed = buffers.device_bytes + engine_bytes
    if needed <= free_bytes:
        return
    parts = sorted({**buffers.bytes(), "engine": engine_bytes}.items(), key=lambda part: -part[1])[:3]
    raise PlanError(
        f"one unit needs {format_bytes(needed)} of GPU memory "
        f"({', '.join(f'{name} {format_bytes(size)}' for name, size in parts)}), {format_bytes(free_bytes)} are free: "
        f"raise --lanes, or lower --batch or --tile"
    )
