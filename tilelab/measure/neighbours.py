"""How far it is from each object to the nearest other one of its class."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilelab.arrays import Array, Float64
from tilelab.kernels.jit import jit

_jit = jit()


def nearest_distances(centres: Float64, classes: Array) -> Float64:
    """Distance from each centre to the nearest other of the same class, infinite for the only one of a class.

    Args:
        centres: float64 ``(objects, 3)``.
        classes: uint8 ``(objects,)``.

    Returns:
        float64 ``(objects,)``; in time that grows with their number, by a grid of cells.
    """
    found = np.full(len(centres), np.inf)
    for label in np.unique(classes):
        chosen = np.flatnonzero(classes == label)
        if len(chosen) < 2:
            continue
        points = centres[chosen]
        low, extent = points.min(axis=0), np.ptp(points, axis=0)
        cell = float(extent.max()) / len(points) or 1.0
        while np.prod(extent // cell + 1) > 4 * len(points):
            cell *= 1.5
        at = ((points - low) / cell).astype(np.int64)
        grid = at.max(axis=0) + 1
        flat = (at[:, 0] * grid[1] + at[:, 1]) * grid[2] + at[:, 2]
        order = np.argsort(flat, kind="stable")
        begins = np.searchsorted(flat[order], np.arange(int(np.prod(grid)) + 1))
        nearest = np.empty(len(points))
        _search(points[order], at[order], begins, grid, cell, nearest)
        found[chosen[order]] = nearest
    return found


@_jit
def _search(points: Any, at: Any, begins: Any, grid: Any, cell: float, nearest: Any) -> None:
    for i in range(len(points)):
        best = np.inf
        ring = 0
        most = max(grid[0], grid[1], grid[2])
        while ring <= most and best > ((ring - 1) * cell) ** 2 * (ring > 0):
            for z in range(max(0, at[i, 0] - ring), min(grid[0], at[i, 0] + ring + 1)):
                for y in range(max(0, at[i, 1] - ring), min(grid[1], at[i, 1] + ring + 1)):
                    inside = abs(z - at[i, 0]) < ring and abs(y - at[i, 1]) < ring
                    x = max(0, at[i, 2] - ring)
                    while x < min(grid[2], at[i, 2] + ring + 1):
                        if inside and at[i, 2] - ring < x < at[i, 2] + ring:
                            x = at[i, 2] + ring
                            continue
                        c = (z * grid[1] + y) * grid[2] + x
                        for j in range(begins[c], begins[c + 1]):
                            if j != i:
                                d = 0.0
                                for k in range(3):
                                    d += (points[i, k] - points[j, k]) ** 2
                                best = min(best, d)
                        x += 1
            ring += 1
        nearest[i] = np.sqrt(best)
