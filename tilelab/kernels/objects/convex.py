"""The convex hull of points in space, exact in whole numbers: quickhull (Barber, Dobkin and Huhdanpaa, 1996).

Memory grows with the points and the faces, never with their squares; what is returned depends on the set of points
alone, so a hull of hulls is that of all their points to the last bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tilelab.arrays import Int64
from tilelab.kernels.jit import jit
from tilelab.kernels.objects.runs import find_root

_jit = jit()


def find_hull(points: Int64) -> tuple[Int64, Int64]:
    """The convex hull of points that do not lie in one plane.

    Args:
        points: whole numbers ``(n, 3)``, each once, less than 2**19 apart on an axis.

    Returns:
        Its corners in the order of `points`, int64 ``(corners, 3)``, no point of an edge or face among them; and the
        faces, int64 ``(faces, 3)``: triangles, of which several may lie in one plane, counter-clockwise as seen from
        outside.
    """
    corners, faces = hull_of(np.ascontiguousarray(points, np.int64))
    return points[corners], faces


@_jit
def hull_of(points: Any) -> Any:
    """Which points are corners of the hull, ascending, and the faces between them: see `find_hull`."""
    corners = corners_of(points)
    return corners, _hull(points[corners])  # no face depends on what is no corner


@_jit
def _hull(points: Any) -> Any:
    """Triangles around the points; some of their corners may lie on an edge or face of the hull."""
    following = np.full(len(points), -1, np.int64)  # a list of the points outside of each face
    starting = np.empty(len(points), np.int64)  # the new face that has an edge from a point
    size = 64
    faces, beside, heads = np.empty((size, 3), np.int64), np.empty((size, 3), np.int64), np.empty(size, np.int64)
    planes, state = np.empty((size, 4), np.int64), np.zeros(size, np.int64)  # of a face: it stands, is seen, is gone
    count = _begin(points, faces, beside, planes, heads, following)
    f = 0
    while f < count:
        if state[f] != _STANDS or heads[f] < 0:
            f += 1
            continue
        p = _farthest(points, planes[f], heads[f], following)
        seen, rim = _look(points, p, f, faces, beside, planes, state)
        while count + len(rim) > size:
            faces, beside = np.concatenate((faces, faces)), np.concatenate((beside, beside))
            planes, heads = np.concatenate((planes, planes)), np.concatenate((heads, heads))
            state = np.concatenate((state, np.zeros(size, np.int64)))
            size *= 2
        first = count
        for i in range(len(rim)):
            a, b, other = rim[i]
            faces[count, 0], faces[count, 1], faces[count, 2] = a, b, p
            _set_plane(points, faces[count], planes[count])
            beside[count, 0], heads[count] = other, -1
            for k in range(3):
                if faces[other, k] == b and faces[other, (k + 1) % 3] == a:
                    beside[other, k] = count
            starting[a] = count
            count += 1
        for face in range(first, count):
            after = starting[faces[face, 1]]
            beside[face, 1], beside[after, 2] = after, face
        for i in range(len(seen)):
            q = heads[seen[i]]
            while q >= 0:
                behind = following[q]
                if q != p:
                    _give(points, q, first, count, planes, heads, following)
                q = behind
    kept = np.flatnonzero(state[:count] == _STANDS)
    return faces[kept]


_STANDS, _SEEN = 0, 1


@_jit
def _begin(points: Any, faces: Any, beside: Any, planes: Any, heads: Any, following: Any) -> int:
    """Four faces around as much as four points can; every other point goes to one that it lies outside of."""
    a, b, c, d = 0, len(points) - 1, 0, 0  # in raster order the first and the last are far apart
    most = 0.0
    for i in range(len(points)):
        size = _spread(points, a, b, i)
        if size > most:
            most, c = size, i
    farthest = 0
    for i in range(len(points)):
        volume = abs(_volume(points, a, b, c, i))
        if volume > farthest:
            farthest, d = volume, i
    if _volume(points, a, b, c, d) > 0:
        b, c = c, b
    start = ((a, b, c), (a, d, b), (b, d, c), (c, d, a))
    for f in range(4):
        for k in range(3):
            faces[f, k] = start[f][k]
        _set_plane(points, faces[f], planes[f])
        heads[f] = -1
    for f in range(4):
        for k in range(3):
            for g in range(4):
                for i in range(3):
                    if faces[g, i] == faces[f, (k + 1) % 3] and faces[g, (i + 1) % 3] == faces[f, k]:
                        beside[f, k] = g
    for i in range(len(points)):
        _give(points, i, 0, 4, planes, heads, following)
    return 4


@_jit
def _give(points: Any, i: int, first: int, last: int, planes: Any, heads: Any, following: Any) -> None:
    """Put a point into the list of the first of some faces that it lies outside of, if there is one."""
    for f in range(first, last):
        if _above(planes[f], points[i]) > 0:
            following[i] = heads[f]
            heads[f] = i
            return


@_jit
def _farthest(points: Any, plane: Any, head: int, following: Any) -> int:
    best, most, i = head, 0, head
    while i >= 0:
        height = _above(plane, points[i])
        if height > most:
            best, most = i, height
        i = following[i]
    return best


@_jit
def _look(points: Any, p: int, f: int, faces: Any, beside: Any, planes: Any, state: Any) -> Any:
    """The faces that a point sees, marked as such, and their rim: edges (from, to) with the faces behind them."""
    seen, rim = [f], [(0, 0, 0)][:0]
    state[f] = _SEEN
    at = 0
    while at < len(seen):
        f = seen[at]
        at += 1
        for k in range(3):
            other = beside[f, k]
            if state[other] == _SEEN:
                continue
            if _above(planes[other], points[p]) > 0:
                state[other] = _SEEN
                seen.append(other)
            else:
                rim.append((faces[f, k], faces[f, (k + 1) % 3], other))
    return seen, rim


@_jit
def corners_of(points: Any) -> Any:
    """Which points are corners of the hull, ascending."""
    faces = _hull(points)  # a corner lies in three planes at least, what lies in fewer is of an edge or a face
    facets = facets_of(points, faces)
    known = np.full((len(points), 2), -1, np.int64)
    corner = np.zeros(len(points), np.bool_)
    for f in range(len(faces)):
        for k in range(3):
            one, two = known[faces[f, k]]
            if one < 0:
                known[faces[f, k], 0] = facets[f]
            elif facets[f] != one and two < 0:
                known[faces[f, k], 1] = facets[f]
            elif facets[f] not in (one, two):
                corner[faces[f, k]] = True
    return np.flatnonzero(corner)


@_jit
def facets_of(points: Any, faces: Any) -> Any:
    """Of each triangle the first one that lies in the same plane, int64 ``(faces,)``."""
    facets = np.arange(len(faces))
    edges, beside = sort_edges(faces, len(points))
    plane = np.empty(4, np.int64)
    for e in range(len(edges)):
        f, g = beside[e]
        if f < g:
            _set_plane(points, faces[f], plane)
            flat = True
            for k in range(3):
                flat = flat and _above(plane, points[faces[g, k]]) == 0
            if flat:
                f, g = find_root(facets, f), find_root(facets, g)
                facets[max(f, g)] = min(f, g)
    for f in range(len(faces)):
        facets[f] = find_root(facets, f)
    return facets


@_jit
def sort_edges(faces: Any, corners: int) -> Any:
    """Every edge in both directions by its first corner, then its second; the faces on its left and on its right."""
    keys = np.empty(3 * len(faces), np.int64)
    for f in range(len(faces)):
        for k in range(3):
            keys[3 * f + k] = faces[f, k] * corners + faces[f, (k + 1) % 3]
    order = np.argsort(keys)
    keys = keys[order]
    edges, beside = np.empty((len(keys), 2), np.int64), np.empty((len(keys), 2), np.int64)
    for e in range(len(keys)):
        a, b = divmod(keys[e], corners)
        edges[e, 0], edges[e, 1] = a, b
        beside[e, 0], beside[e, 1] = order[e] // 3, order[np.searchsorted(keys, b * corners + a)] // 3
    return edges, beside


@_jit
def _set_plane(points: Any, face: Any, plane: Any) -> None:
    """The normal of a triangle, outwards, and how far along it the triangle lies."""
    a, b, c = points[face[0]], points[face[1]], points[face[2]]
    uz, uy, ux = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    vz, vy, vx = c[0] - a[0], c[1] - a[1], c[2] - a[2]
    plane[0], plane[1], plane[2] = uy * vx - ux * vy, ux * vz - uz * vx, uz * vy - uy * vz
    plane[3] = plane[0] * a[0] + plane[1] * a[1] + plane[2] * a[2]


@_jit
def _above(plane: Any, point: Any) -> int:
    """Above 0 on the outer side of a plane; a whole number that grows with the distance."""
    return int(plane[0] * point[0] + plane[1] * point[1] + plane[2] * point[2] - plane[3])


@_jit
def _volume(points: Any, a: int, b: int, c: int, d: int) -> int:
    plane = np.empty(4, np.int64)
    _set_plane(points, np.array([a, b, c]), plane)
    return int(_above(plane, points[d]))


@_jit
def _spread(points: Any, a: int, b: int, c: int) -> float:
    plane = np.empty(4, np.int64)
    _set_plane(points, np.array([a, b, c]), plane)
    return float(plane[0]) ** 2 + float(plane[1]) ** 2 + float(plane[2]) ** 2
