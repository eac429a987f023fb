"""Convex hulls of the voxels of objects in a volume, exact in whole numbers, and the diameters that they have.

A corner of a hull is a corner of the hull of its plane, so pieces keep those; what they are does not depend on the cut.
A voxel is seen as the octahedron between the middles of its faces, as a pixel is as a diamond (`hulls`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tilelab.arrays import Float64, Int64
from tilelab.kernels.jit import jit
from tilelab.kernels.objects.hulls import reduce_corners
from tilelab.kernels.objects.runs import Runs

LONGEST = 1 << 18
"""An object may be so long on an axis: determinants of doubled coordinates then stay below 2**63."""

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


def measure_solids(begins: Int64, points: Int64, size: tuple[float, ...]) -> Float64:
    """The largest and least distance of parallel planes that touch the hull, and how many voxels it covers.

    The voxels are those whose middles lie in the hull or on it.  NaN for objects that are too long to be exact.

    Args:
        begins, points: as `piece_planes` returns them.
        size: of a voxel (z, y, x).

    Returns:
        float64 ``(groups, 3)``.
    """
    found = np.full((len(begins) - 1, 3), np.nan)
    scale = np.array(size, np.float64)
    for g, (a, b) in enumerate(zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True)):
        at = points[a:b] - points[a:b].min(0)
        if at.max() < LONGEST:
            corners, faces = find_hull(_octahedra(at))
            found[g, :2] = diameters_of(corners * (scale / 2), faces)
            found[g, 2] = _count_voxels(corners, faces)
    return found


def find_hull(points: Int64) -> tuple[Int64, Int64]:
    """The convex hull of points that do not lie in one plane.

    Args:
        points: whole numbers ``(n, 3)``, less than 2**19 apart on an axis.

    Returns:
        The points that faces use, int64 ``(corners, 3)``, and the faces, int64 ``(faces, 3)``: triangles, of which
        several may lie in one plane, counter-clockwise as seen from outside.
    """
    faces = _hull(np.ascontiguousarray(points, np.int64))
    used, faces_ = np.unique(faces, return_inverse=True)
    return points[used], faces_.reshape(-1, 3).astype(np.int64)


def _octahedra(at: Int64) -> Int64:
    """The middles of the faces of voxels in halves of a voxel, each once, in raster order."""
    steps = np.concatenate([np.eye(3, dtype=np.int64), -np.eye(3, dtype=np.int64)])
    every = (2 * at[:, None] + steps).reshape(-1, 3) + 1
    side = 2 * int(at.max()) + 3
    keys = np.unique((every[:, 0] * side + every[:, 1]) * side + every[:, 2])
    rest, x = np.divmod(keys, side)
    z, y = np.divmod(rest, side)
    return np.column_stack([z, y, x])


@_jit
def _volume(points: Any, a: int, b: int, c: int, d: int) -> int:
    """Six times the signed volume of a tetrahedron: above 0 where `d` is on the outer side of face abc."""
    az, ay, ax = points[b, 0] - points[a, 0], points[b, 1] - points[a, 1], points[b, 2] - points[a, 2]
    bz, by, bx = points[c, 0] - points[a, 0], points[c, 1] - points[a, 1], points[c, 2] - points[a, 2]
    cz, cy, cx = points[d, 0] - points[a, 0], points[d, 1] - points[a, 1], points[d, 2] - points[a, 2]
    return int((ay * bx - ax * by) * cz + (ax * bz - az * bx) * cy + (az * by - ay * bz) * cx)


@_jit
def _hull(points: Any) -> Any:
    """Faces of the hull: points are added one by one, and what a new one sees is replaced."""
    n = len(points)
    b, c, d = 1, 2, 3
    while c < n - 1 and _colinear(points, 0, b, c):
        c += 1
    d = c + 1
    while d < n - 1 and _volume(points, 0, b, c, d) == 0:
        d += 1
    faces = np.empty((64, 3), np.int64)
    start = ((0, b, c, d), (0, c, d, b), (0, d, b, c), (b, d, c, 0))
    for i in range(4):
        p, q, r, s = start[i]
        if _volume(points, p, q, r, s) > 0:
            q, r = r, q
        faces[i, 0], faces[i, 1], faces[i, 2] = p, q, r
    count = 4
    seen = np.zeros(64, np.bool_)
    for p in range(n):
        if p in (0, b, c, d):
            continue
        visible = 0
        for f in range(count):
            seen[f] = _volume(points, faces[f, 0], faces[f, 1], faces[f, 2], p) > 0
            visible += seen[f]
        if visible == 0:
            continue
        edges = np.empty((3 * visible, 2), np.int64)
        m = 0
        for f in range(count):
            if seen[f]:
                for k in range(3):
                    edges[m, 0], edges[m, 1] = faces[f, k], faces[f, (k + 1) % 3]
                    m += 1
        kept = 0
        for f in range(count):
            if not seen[f]:
                faces[kept] = faces[f]
                kept += 1
        count = kept
        for i in range(m):
            inner = False
            for j in range(m):
                inner |= edges[j, 0] == edges[i, 1] and edges[j, 1] == edges[i, 0]
            if inner:
                continue
            if count == len(faces):
                faces = np.concatenate((faces, np.empty_like(faces)))
                seen = np.concatenate((seen, np.empty_like(seen)))
            faces[count, 0], faces[count, 1], faces[count, 2] = edges[i, 0], edges[i, 1], p
            count += 1
    return faces[:count].copy()


@_jit
def _colinear(points: Any, a: int, b: int, c: int) -> bool:
    uz, uy, ux = points[b, 0] - points[a, 0], points[b, 1] - points[a, 1], points[b, 2] - points[a, 2]
    vz, vy, vx = points[c, 0] - points[a, 0], points[c, 1] - points[a, 1], points[c, 2] - points[a, 2]
    return bool(uy * vx == ux * vy and ux * vz == uz * vx and uz * vy == uy * vz)


@_jit
def _dot(one: Any, i: int, other: Any, j: int) -> float:
    return float(one[i, 0] * other[j, 0] + one[i, 1] * other[j, 1] + one[i, 2] * other[j, 2])


@_jit
def diameters_of(corners: Any, faces: Any) -> tuple[float, float]:
    """Largest distance of two corners, and the least width: across a face, or between two edges."""
    widest, narrowest = 0.0, np.inf
    for a in range(len(corners)):
        for b in range(a):
            z, y, x = corners[a, 0] - corners[b, 0], corners[a, 1] - corners[b, 1], corners[a, 2] - corners[b, 2]
            widest = max(widest, z * z + y * y + x * x)
    normals = np.empty((len(faces), 3))
    for f in range(len(faces)):
        u, v = corners[faces[f, 1]] - corners[faces[f, 0]], corners[faces[f, 2]] - corners[faces[f, 0]]
        normals[f] = np.cross(u, v)
        normals[f] /= np.sqrt((normals[f] ** 2).sum())
        level, far = _dot(normals, f, corners, faces[f, 0]), 0.0
        for a in range(len(corners)):
            far = max(far, abs(_dot(normals, f, corners, a) - level))
        narrowest = min(narrowest, far)
    beside = np.full((len(corners), len(corners)), -1, np.int32)  # the face on the left of an edge
    for f in range(len(faces)):
        for k in range(3):
            beside[faces[f, k], faces[f, (k + 1) % 3]] = f
    edges = np.empty((3 * len(faces) // 2, 4), np.int64)  # two corners, the faces on either side
    arcs = np.empty((len(edges), 3))  # normal of the plane of both faces' normals
    m = 0
    for a in range(len(corners)):
        for b in range(a + 1, len(corners)):
            if beside[a, b] < 0:
                continue
            f, g = beside[a, b], beside[b, a]
            if (normals[f] * normals[g]).sum() < 1 - 1e-12:  # else it lies in a face
                edges[m, 0], edges[m, 1], edges[m, 2], edges[m, 3] = a, b, f, g
                arcs[m] = np.cross(normals[g], normals[f])
                m += 1
    for i in range(m):
        u = corners[edges[i, 1]] - corners[edges[i, 0]]
        for j in range(i):
            # both are touched by parallel planes where the arc of one crosses that of the other turned round
            one, other = -_dot(normals, edges[j, 2], arcs, i), -_dot(normals, edges[j, 3], arcs, i)
            if one * other >= 0:
                continue
            this, that = _dot(normals, edges[i, 2], arcs, j), _dot(normals, edges[i, 3], arcs, j)
            if this * that >= 0 or one * that <= 0:
                continue
            v = corners[edges[j, 1]] - corners[edges[j, 0]]
            normal = np.cross(u, v)
            length = np.sqrt((normal**2).sum())
            if length > 1e-9 * np.sqrt((u**2).sum() * (v**2).sum()):  # parallel edges lie in such faces
                gap = abs(((corners[edges[i, 0]] - corners[edges[j, 0]]) * normal).sum())
                narrowest = min(narrowest, gap / length)
    return np.sqrt(widest), narrowest


@_jit
def _count_voxels(corners: Any, faces: Any) -> int:
    """How many voxels have their middles in a hull, whose corners are given in halves of a voxel, voxel 0 at 1."""
    planes = np.empty((len(faces), 4), np.int64)
    for f in range(len(faces)):
        o = corners[faces[f, 0]]
        u, v = corners[faces[f, 1]] - o, corners[faces[f, 2]] - o
        planes[f, 0] = u[1] * v[2] - u[2] * v[1]
        planes[f, 1] = u[2] * v[0] - u[0] * v[2]
        planes[f, 2] = u[0] * v[1] - u[1] * v[0]
        planes[f, 3] = planes[f, 0] * o[0] + planes[f, 1] * o[1] + planes[f, 2] * o[2]
    low, high = np.empty(3, np.int64), np.empty(3, np.int64)
    for i in range(3):
        low[i], high[i] = corners[:, i].min(), corners[:, i].max()
    total = 0
    for z in range((low[0]) | 1, high[0] + 1, 2):
        for y in range((low[1]) | 1, high[1] + 1, 2):
            first, last = low[2] // 2, (high[2] - 1) // 2  # of 2 x + 1
            for f in range(len(faces)):
                # inside is planes . (z, y, 2 x + 1) <= planes[3]
                rest = planes[f, 3] - planes[f, 0] * z - planes[f, 1] * y - planes[f, 2]
                step = 2 * planes[f, 2]
                if step > 0:
                    last = min(last, rest // step)
                elif step < 0:
                    first = max(first, -(rest // -step))
                elif rest < 0:
                    last = first - 1
                    break
            total += max(0, last - first + 1)
    return total
