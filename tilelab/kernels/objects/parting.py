"""Lines along which touching objects part: the watershed of the distance to the outline, in one plane."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilelab.arrays import Bool, Int32, UInt8
from tilelab.kernels.jit import jit
from tilelab.kernels.objects.runs import find_root

_FAR = 1 << 14
"""Farther than any outline is looked for."""

_jit = jit()


def squared_distances(classes: UInt8) -> Int32:
    """Squared distance of each pixel to the nearest of another class, int32 ``(y, x)``; beyond the edge there is none.

    Columns first, then the lower envelope of parabolas over each run of a row (Felzenszwalb and Huttenlocher, 2012).
    Pixels of class 0 have 0.
    """
    found = np.empty(classes.shape, np.int32)
    _distances(classes, found)
    return found


def find_lines(classes: UInt8, depth: float, connectivity: int) -> Bool:
    """The pixels that part objects at their necks, bool ``(y, x)``.

    Pixels are taken from the middle of the objects outwards, those at equal distance in raster order, and join the
    basin that they touch.  Where two basins meet, they become one if the shallower rises less than `depth` pixels
    above the meeting; else the pixel is line.

    Args:
        classes: uint8 ``(y, x)``; 0 belongs to no object.
        depth: of a neck that parts, in pixels.
        connectivity: 1 where neighbours share an edge, 2 where they touch diagonally as well.
    """
    distances = squared_distances(classes)
    order = np.flatnonzero(classes)
    order = order[np.argsort(-distances.ravel()[order], kind="stable")]
    lines = np.zeros(classes.shape, np.bool_)
    _flood(classes, distances, order, float(depth), connectivity, lines)
    return lines


@_jit
def _distances(classes: Any, found: Any) -> None:
    height, width = classes.shape
    up = np.empty((height, width), np.int32)
    for x in range(width):
        up[0, x] = _FAR
    for y in range(1, height):
        for x in range(width):
            up[y, x] = min(up[y - 1, x] + 1, _FAR) if classes[y, x] == classes[y - 1, x] else 1
    down = np.full(width, _FAR, np.int32)
    site = np.empty(width + 2, np.int64)
    begin = np.empty(width + 2, np.float64)
    level = np.empty(width + 2, np.float64)
    for y in range(height - 1, -1, -1):
        for x in range(width):
            if y + 1 < height:
                down[x] = min(down[x] + 1, _FAR) if classes[y, x] == classes[y + 1, x] else 1
        a = 0
        while a < width:
            b = a + 1
            while b < width and classes[y, b] == classes[y, a]:
                b += 1
            if classes[y, a] == 0:
                found[y, a:b] = 0
                a = b
                continue
            pieces = 0
            for x in range(a - 1, b + 1):
                if x < 0 or x >= width:
                    continue
                gap = 0.0 if x < a or x >= b else float(min(up[y, x], down[x]))
                if gap >= _FAR:
                    continue
                cross = -np.inf
                while pieces:
                    other = site[pieces - 1]
                    cross = (gap * gap + x * x - level[pieces - 1] - other * other) / (2.0 * (x - other))
                    if cross > begin[pieces - 1]:
                        break
                    pieces -= 1
                    cross = -np.inf
                site[pieces], begin[pieces], level[pieces] = x, cross, gap * gap
                pieces += 1
            piece = 0
            for x in range(a, b):
                if not pieces:
                    found[y, x] = _FAR * _FAR
                    continue
                while piece + 1 < pieces and begin[piece + 1] < x:
                    piece += 1
                found[y, x] = min(_FAR * _FAR, int(level[piece]) + (x - site[piece]) ** 2)
            a = b


@_jit
def _flood(classes: Any, distances: Any, order: Any, depth: float, near: int, lines: Any) -> None:
    height, width = classes.shape
    basin = np.full((height, width), -1, np.int32)
    parents = np.empty(1024, np.int64)
    peaks = np.empty(1024, np.float64)
    count = 0
    touched = np.empty(8, np.int64)
    for at in order:
        y, x = at // width, at % width
        level = np.sqrt(float(distances[y, x]))
        n = 0
        for v in range(max(0, y - 1), min(height, y + 2)):
            for u in range(max(0, x - 1), min(width, x + 2)):
                if (v != y and u != x and near == 1) or basin[v, u] < 0 or classes[v, u] != classes[y, x]:
                    continue
                root = find_root(parents, basin[v, u])
                known = False
                for i in range(n):
                    known |= touched[i] == root
                if not known:
                    touched[n] = root
                    n += 1
        if n == 0:
            if count == len(parents):
                parents, peaks = np.append(parents, parents), np.append(peaks, peaks)
            parents[count], peaks[count] = count, level
            basin[y, x] = count
            count += 1
            continue
        best = touched[0]
        for i in range(1, n):
            higher = peaks[touched[i]] > peaks[best]
            if higher or (peaks[touched[i]] == peaks[best] and touched[i] < best):
                best = touched[i]
        apart = False
        for i in range(n):
            if touched[i] == best:
                continue
            if peaks[touched[i]] - level < depth:
                parents[touched[i]] = best
            else:
                apart = True
        if apart:
            lines[y, x] = True
        else:
            basin[y, x] = best
