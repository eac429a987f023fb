"""Edges of pixels joined to rings that pass no vertex twice: what polygons are made of."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilelab.arrays import Int64
from tilelab.kernels.jit import jit

_jit = jit()


def join_rings(starts: Int64, after: Int64) -> tuple[Int64, Int64]:
    """Follow every edge to the next; where a vertex is met again, what lies between is a ring.

    Args:
        starts: the vertex that each edge begins at, ascending; at most two edges begin at one.
        after: the edge that follows each, a permutation; it begins where this one ends.

    Returns:
        The edges ring by ring, each in its order, and where rings begin and the last ends, int64 ``(rings + 1,)``.
    """
    order, ends = np.empty(len(starts), np.int64), np.zeros(len(starts) + 1, np.int64)
    count = int(_join(starts, after, order, ends))
    return order, ends[: count + 1].copy()


@_jit
def _join(starts: Any, after: Any, order: Any, ends: Any) -> Any:
    total = len(starts)
    done = np.zeros(total, np.bool_)
    way = np.empty(total, np.int64)  # edges that belong to no ring yet
    met = np.full(total, -1, np.int64)  # where a vertex stands on the way, kept at its first edge
    filled = rings = 0
    for first in range(total):
        edge, steps = first, 0
        while True:
            at = met[_vertex(starts, edge)]
            if at >= 0:
                for i in range(at, steps):
                    order[filled] = way[i]
                    filled += 1
                    met[_vertex(starts, way[i])] = -1
                steps = at
                rings += 1
                ends[rings] = filled
            if done[edge]:
                break
            met[_vertex(starts, edge)] = steps
            way[steps] = edge
            done[edge] = True
            steps += 1
            edge = after[edge]
    return rings


@_jit
def _vertex(starts: Any, edge: Any) -> Any:
    """The first edge of those that begin where this one does."""
    return edge - 1 if edge > 0 and starts[edge - 1] == starts[edge] else edge
