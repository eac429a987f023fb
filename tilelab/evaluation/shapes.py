"""Scores of outlines and regions, for a pair of label images; compiled by Numba when imported."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import reduce
from operator import add

import numpy as np

from tilelab.arrays import Float32, Float64, Int64, UInt8
from tilelab.errors import PlanError
from tilelab.evaluation.labels import Labels
from tilelab.evaluation.metrics.isbi import score_plane
from tilelab.evaluation.metrics.surface import ReadRows, SurfaceDistances, measure_surfaces
from tilelab.evaluation.metrics.tolerant import count_tolerant
from tilelab.geometry import Box
from tilelab.machine.memory import available_memory
from tilelab.text import format_bytes

_ISBI_BYTES = 60
"""Bytes per pixel of a plane that V_rand and V_info need: probabilities, masks, numberings, a queue, sorted pairs."""


def measure_outlines(labels: Labels, truth: Labels, classes: Sequence[int], tolerance: float = 2.0) -> SurfaceDistances:
    """Distances between the outlines of each class, plane by plane, summed; in bounded memory."""
    depth, height, width = labels.shape

    def measure(z: int) -> SurfaceDistances:
        return measure_surfaces(_rows(labels, truth, z), (height, width), classes, tolerance=tolerance)

    return reduce(add, map(measure, range(depth)))


def count_moved(labels: Labels, truth: Labels, tolerance: float, left_out: Collection[int]) -> Int64:
    """Pixels by true and predicted class, right where they are within the tolerance, plane by plane; see `tolerant`."""
    depth, height, width = labels.shape
    planes = (count_tolerant(_rows(labels, truth, z), (height, width), tolerance, left_out) for z in range(depth))
    total: Int64 = reduce(add, planes)
    return total


def _rows(labels: Labels, truth: Labels, z: int) -> ReadRows:
    """Reads a range of rows of a plane of both."""

    def read(start: int, stop: int) -> tuple[UInt8, UInt8]:
        box = Box((z, start, 0), (z + 1, stop, labels.shape[2]))
        return labels.read(box)[0], truth.read(box)[0]

    return read


def compare_regions(labels: Labels, truth: Labels, lines: int) -> list[Float64]:
    """V_rand and V_info of the regions between the lines of class `lines`, as `score_plane` gives them for each plane.

    Raises:
        PlanError: a plane is too large for the memory; both numbers are named.
    """
    depth, height, width = labels.shape
    need, free = _ISBI_BYTES * height * width, available_memory()
    if need > free or height * width >= 2**31:
        raise PlanError(
            f"V_rand and V_info need a whole plane in memory: {format_bytes(need)} for {labels.path} of {height} x "
            f"{width} pixels, {format_bytes(free)} are free: cut it into parts"
        )
    planes = []
    for z in range(depth):
        box = Box((z, 0, 0), (z + 1, height, width))
        inside = (truth.read(box)[0] != lines).astype(np.float32)
        planes.append(score_plane(inside, _inside(labels, box, lines)))
    return planes


def _inside(labels: Labels, box: Box, lines: int) -> Float32:
    """How surely a pixel belongs to no line, float32 ``(y, x)``: by probability where the result has it."""
    result = labels.result
    if result is None or lines not in result.info.probabilities:
        certain: Float32 = (labels.read(box)[0] != lines).astype(np.float32)
        return certain
    channel = result.info.probabilities.index(lines)
    image = result.probabilities[0]
    skip = 4 - len(image.axes)
    inner = Box((channel, *box.start[skip:]), (channel + 1, *box.stop[skip:]))
    outside: UInt8 = image.read(inner).reshape(box.shape[1:])
    inside: Float32 = (255 - outside).astype(np.float32) / np.float32(255)
    return inside
