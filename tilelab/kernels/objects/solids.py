"""Convex hulls of the voxels of objects in a volume, exact in whole numbers, and the diameters that they have.

A corner of a hull is a corner of the hull of its plane, so pieces keep those; objects that gather many keep the corners
of their hull alone.  What is measured is that of the hull's corners, and so does not depend on the cut.
A voxel is seen as the octahedron between the middles of its faces, as a pixel is as a diamond (`hulls`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tilelab.arrays import Bool, Float64, Int64
from tilelab.kernels.jit import jit
from tilelab.kernels.objects.convex import corners_of, facets_of, hull_of, sort_edges
from tilelab.kernels.objects.hulls import reduce_corners
from tilelab.kernels.objects.runs import Runs

LONGEST = 1 << 18
"""An object may be so long on an axis: volumes in doubled coordinates then stay below 2**63."""

_jit = jit()


def piece_planes(runs: Runs, pieces: int, origin: tuple[int, int], height: int) -> tuple[Int64, Int64]:
    """The corners of the hulls of the planes of each piece of a block.

    Args:
        runs: of the block.
        pieces: how many there are.
        origin: of the block (z, y).
        height: rows per plane of the block.

    Returns:
        int64 ``(pieces + 1,)``, the first corner of each, and int64 ``(corners, 3)``, their (z, y, x) in raster order.
    """
    order = np.argsort(runs.owners, kind="stable")
    begins = np.searchsorted(runs.owners[order], np.arange(pieces + 1))
    z, y = np.divmod(np.repeat(np.arange(len(runs.rows) - 1), np.diff(runs.rows)), height)
    points = np.empty((2 * len(order), 3), np.int64)
    points[0::2, 0] = points[1::2, 0] = z[order] + origin[0]
    points[0::2, 1] = points[1::2, 1] = y[order] + origin[1]
    points[0::2, 2], points[1::2, 2] = runs.starts[order], runs.stops[order] - 1
    return reduce_planes(2 * begins, points)


def reduce_planes(begins: Int64, points: Int64) -> tuple[Int64, Int64]:
    """Only the corners of the hull of each plane of each group; points stand, and are returned, in raster order."""
    if not len(points):
        return begins.copy(), points
    group = np.repeat(np.arange(len(begins) - 1), np.diff(begins))
    new = np.concatenate([[True], (np.diff(group) != 0) | (np.diff(points[:, 0]) != 0)])
    planes = np.flatnonzero(new)
    first, corners = reduce_corners(np.concatenate([planes, [len(points)]]), np.ascontiguousarray(points[:, 1:]))
    depth = np.repeat(points[planes, 0], np.diff(first))
    return first[np.searchsorted(planes, begins)], np.column_stack([depth, corners])


def reduce_solids(begins: Int64, points: Int64, large: Bool) -> tuple[Int64, Int64]:
    """Only the corners of the whole hull of the groups that are `large`, the others as they are; in raster order."""
    kept = np.ones(len(points), np.bool_)
    for g in np.flatnonzero(large).tolist():
        group = points[begins[g] : begins[g + 1]]
        at = group - group.min(0)
        if at.max() < LONGEST:
            kept[begins[g] : begins[g + 1]] = _needed(at)
    first = np.concatenate([[0], np.cumsum(kept)])
    return first[begins], points[kept]


def measure_solids(begins: Int64, points: Int64, size: tuple[float, ...]) -> Float64:
    """The largest and least distance of parallel planes that touch the hull, and how many voxels it covers.

    The voxels are those whose middles lie in the hull or on it.  NaN for objects that are too long to be exact.

    Args:
        begins, points: as `piece_planes` or `reduce_solids` returns them.
        size: of a voxel (z, y, x).

    Returns:
        float64 ``(groups, 3)``.
    """
    found = np.full((len(begins) - 1, 3), np.nan)
    _measure(begins, points, np.array(size, np.float64) / 2, found)
    return found


@_jit
def _measure(begins: Any, points: Any, scale: Any, found: Any) -> None:
    for g in range(len(begins) - 1):
        at = points[begins[g] : begins[g + 1]].copy()
        most = 0
        for i in range(3):
            at[:, i] -= at[:, i].min()
            most = max(most, at[:, i].max())
        if most < LONGEST:
            every = _octahedra(at)
            used, faces = hull_of(every)
            corners = every[used]
            found[g, 0], found[g, 1] = diameters_of(corners, faces, scale)
            found[g, 2] = _count_voxels(corners, faces)


@_jit
def _needed(at: Any) -> Any:
    """Which voxels are corners of their hull: those that have a corner of the hull of their octahedra."""
    every = _octahedra(at)
    used = corners_of(every)
    side = 2 * at.max() + 3
    keys = (every[used, 0] * side + every[used, 1]) * side + every[used, 2]
    needed = np.zeros(len(at), np.bool_)
    for i in range(len(at)):
        for k in range(6):
            key = _key(at, i, k, side)
            j = np.searchsorted(keys, key)
            needed[i] = needed[i] or (j < len(keys) and keys[j] == key)
    return needed


@_jit
def _octahedra(at: Any) -> Any:
    """The middles of the faces of voxels in halves of a voxel, each once, in raster order; voxel 0 is at 1."""
    side = 2 * at.max() + 3
    keys = np.empty(6 * len(at), np.int64)
    for i in range(len(at)):
        for k in range(6):
            keys[6 * i + k] = _key(at, i, k, side)
    keys.sort()
    every, count = np.empty((len(keys), 3), np.int64), 0
    for i in range(len(keys)):
        if i == 0 or keys[i] != keys[i - 1]:
            rest, every[count, 2] = divmod(keys[i], side)
            every[count, 0], every[count, 1] = divmod(rest, side)
            count += 1
    return every[:count].copy()


@_jit
def _key(at: Any, i: int, k: int, side: int) -> int:
    """The middle of a face of a voxel as one number."""
    step, axis = 1 if k < 3 else -1, k % 3
    z = 2 * at[i, 0] + 1 + step * (axis == 0)
    y = 2 * at[i, 1] + 1 + step * (axis == 1)
    x = 2 * at[i, 2] + 1 + step * (axis == 2)
    return int((z * side + y) * side + x)


@_jit
def diameters_of(corners: Any, faces: Any, scale: Any) -> tuple[float, float]:
    """Largest distance of two corners, and the least width: across a face, or between two edges.

    Args:
        corners, faces: of a hull, as `find_hull` returns them.
        scale: what a step is long, (z, y, x).
    """
    at = corners * scale
    widest = 0.0
    for a in range(len(at)):
        for b in range(a):
            z, y, x = at[a, 0] - at[b, 0], at[a, 1] - at[b, 1], at[a, 2] - at[b, 2]
            widest = max(widest, z * z + y * y + x * x)
    edges, beside = sort_edges(faces, len(corners))
    narrowest, normals = _across_faces(corners, faces, edges, scale)
    facets = facets_of(corners, faces)
    ridges = np.array(
        [e for e in range(len(edges)) if edges[e, 0] < edges[e, 1] and facets[beside[e, 0]] != facets[beside[e, 1]]]
    )
    return np.sqrt(widest), _between_edges(at, edges[ridges], beside[ridges], normals, narrowest)


@_jit
def _across_faces(corners: Any, faces: Any, edges: Any, scale: Any) -> Any:
    """The least width from a face to the farthest corner, and the faces' normals of length 1.

    The farthest corner is reached from that of the face before by edges that lead away from the face.
    """
    begins = np.searchsorted(edges[:, 0], np.arange(len(corners) + 1))
    normals, narrowest, far = np.empty((len(faces), 3)), np.inf, 0
    for f in range(len(faces)):
        a, b, c = corners[faces[f, 0]], corners[faces[f, 1]], corners[faces[f, 2]]
        u, v = b - a, c - a
        z, y, x = u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]
        depth = z * corners[far, 0] + y * corners[far, 1] + x * corners[far, 2]
        e = begins[far]
        while e < begins[far + 1]:
            beyond = corners[edges[e, 1]]
            deeper = z * beyond[0] + y * beyond[1] + x * beyond[2]
            e += 1
            if deeper < depth:
                far, depth = edges[e - 1, 1], deeper
                e = begins[far]
        length = np.sqrt((z / scale[0]) ** 2 + (y / scale[1]) ** 2 + (x / scale[2]) ** 2)
        narrowest = min(narrowest, float(z * a[0] + y * a[1] + x * a[2] - depth) / length)
        normals[f, 0], normals[f, 1], normals[f, 2] = (
            z / scale[0] / length,
            y / scale[1] / length,
            x / scale[2] / length,
        )
    return narrowest, normals


@_jit
def _between_edges(at: Any, edges: Any, beside: Any, normals: Any, narrowest: float) -> float:
    """The least width between two edges that parallel planes touch, if it is below `narrowest`.

    An edge is touched by planes whose normals lie on an arc, between those of its faces; two edges are touched by
    parallel planes where the arc of one crosses that of the other turned round.  Arcs are compared where their ranges
    along z overlap: short ones by bisection, long ones with all.
    """
    count = len(edges)
    arcs, low, high = np.empty((count, 3)), np.empty(count), np.empty(count)  # normals of the arcs' planes, their z
    for i in range(count):
        f, g = normals[beside[i, 0]], normals[beside[i, 1]]
        arcs[i] = np.cross(g, f)
        chord = ((f - g) ** 2).sum() / 4
        bend = 1e-9 + 1 - np.sqrt(max(0.0, 1 - chord))
        low[i], high[i] = min(f[0], g[0]) - bend, max(f[0], g[0]) + bend
    width = high - low
    order = np.argsort(low)
    short = order[width[order] <= _SHORT]
    long = order[width[order] > _SHORT]
    for i in long:
        for j in order:
            narrowest = min(narrowest, _gap(at, edges, beside, normals, arcs, i, j, narrowest))
    lows = low[short]
    for i in short:
        first, last = np.searchsorted(lows, -high[i] - _SHORT), np.searchsorted(lows, -low[i])
        for k in range(first, last):
            j = short[k]
            if j < i and -high[j] <= high[i]:
                narrowest = min(narrowest, _gap(at, edges, beside, normals, arcs, i, j, narrowest))
    return narrowest


_SHORT = 1 / 16


@_jit
def _gap(at: Any, edges: Any, beside: Any, normals: Any, arcs: Any, i: int, j: int, otherwise: float) -> float:
    """The distance of the parallel planes that touch two edges alone, `otherwise` if there are none."""
    one, other = -_dot(normals, beside[j, 0], arcs, i), -_dot(normals, beside[j, 1], arcs, i)
    if one * other >= 0:
        return otherwise
    this, that = _dot(normals, beside[i, 0], arcs, j), _dot(normals, beside[i, 1], arcs, j)
    if this * that >= 0 or one * that <= 0:
        return otherwise
    u, v = at[edges[i, 1]] - at[edges[i, 0]], at[edges[j, 1]] - at[edges[j, 0]]
    normal = np.cross(u, v)
    length = np.sqrt((normal**2).sum())
    if length <= 1e-9 * np.sqrt((u**2).sum() * (v**2).sum()):  # parallel edges lie in such faces
        return otherwise
    return float(abs(((at[edges[i, 0]] - at[edges[j, 0]]) * normal).sum()) / length)


@_jit
def _dot(one: Any, i: int, other: Any, j: int) -> float:
    return float(one[i, 0] * other[j, 0] + one[i, 1] * other[j, 1] + one[i, 2] * other[j, 2])


@_jit
def _count_voxels(corners: Any, faces: Any) -> int:
    """How many voxels have their middles in a hull, whose corners are given in halves of a voxel, voxel 0 at 1.

    Plane by plane: each face says how far the rows go that run through it; no face is looked at where it is not.
    """
    low, high = np.empty(len(faces), np.int64), np.empty(len(faces), np.int64)
    for f in range(len(faces)):
        z = corners[faces[f], 0]
        low[f], high[f] = z.min(), z.max()
    order = np.argsort(low)
    here, used, coming, total = np.empty(len(faces), np.int64), 0, 0, 0
    bottom, rows = corners[:, 1].min(), corners[:, 1].max() // 2 - corners[:, 1].min() // 2 + 1
    first, last = np.empty(rows, np.int64), np.empty(rows, np.int64)
    for z in range(corners[:, 0].min() | 1, corners[:, 0].max() + 1, 2):
        while coming < len(order) and low[order[coming]] <= z:
            here[used] = order[coming]
            used, coming = used + 1, coming + 1
        kept = 0
        for i in range(used):
            if high[here[i]] >= z:
                here[kept] = here[i]
                kept += 1
        used = kept
        first[:], last[:] = corners[:, 2].min() // 2, (corners[:, 2].max() - 1) // 2  # of 2 x + 1
        begin, end = rows, -1
        for i in range(used):
            a, b = _narrow(corners, faces[here[i]], z, bottom // 2, first, last)
            begin, end = min(begin, a), max(end, b)
        for y in range(begin, end + 1):
            total += max(0, last[y] - first[y] + 1)
    return total


@_jit
def _narrow(corners: Any, face: Any, z: int, bottom: int, first: Any, last: Any) -> tuple[int, int]:
    """Cut the rows that run through a face in plane z to what is inside of it; the first and last row of the face.

    Row i is that of 2 (bottom + i) + 1.
    """
    o, u, v = corners[face[0]], corners[face[1]] - corners[face[0]], corners[face[2]] - corners[face[0]]
    nz, ny, nx = u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]
    level = nz * o[0] + ny * o[1] + nx * o[2]
    begin, end = len(first), -1
    for k in range(3):
        a, b = corners[face[k]], corners[face[(k + 1) % 3]]
        if a[0] > b[0]:
            a, b = b, a
        if a[0] > z or b[0] < z:
            continue
        if a[0] == b[0]:
            below, above = min(a[1], b[1]) // 2, (max(a[1], b[1]) - 1) // 2
        else:  # a[1] + way / step, as a row: ceil and floor of half of one less
            way, step = (z - a[0]) * (b[1] - a[1]) + (a[1] - 1) * (b[0] - a[0]), 2 * (b[0] - a[0])
            below, above = -(-way // step), way // step
        begin, end = min(begin, below - bottom), max(end, above - bottom)
    # inside is n . (z, y, 2 x + 1) <= level
    for i in range(max(0, begin), min(len(first), end + 1)):
        rest = level - nz * z - ny * (2 * (bottom + i) + 1) - nx
        if nx > 0:
            last[i] = min(last[i], rest // (2 * nx))
        elif nx < 0:
            first[i] = max(first[i], -(rest // (-2 * nx)))
    return max(0, begin), min(len(first) - 1, end)
