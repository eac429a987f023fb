"""Convex hulls of the pixels of objects in a plane, and the diameters that they have.

The hull of a union is the hull of the hulls, so pieces keep the corners of theirs.  A pixel is seen as the diamond
between the middles of its edges, as scikit-image does: a bar of n pixels then is n long and 1 thick, and a disc is not
wider along the diagonal.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tilelab.arrays import Float64, Int64
from tilelab.kernels.jit import jit
from tilelab.kernels.objects.runs import Runs

_jit = jit()


def piece_corners(runs: Runs, pieces: int, origin_y: int) -> tuple[Int64, Int64]:
    """The corners of the hull of each piece of a plane.

    Returns:
        int64 ``(pieces + 1,)``, the first corner of each, and int64 ``(corners, 2)``, their (y, x) in raster order.
    """
    order = np.argsort(runs.owners, kind="stable")
    begins = np.searchsorted(runs.owners[order], np.arange(pieces + 1))
    lines = np.repeat(np.arange(len(runs.rows) - 1), np.diff(runs.rows))
    points = np.empty((2 * len(order), 2), np.int64)
    points[0::2, 0] = points[1::2, 0] = lines[order] + origin_y
    points[0::2, 1], points[1::2, 1] = runs.starts[order], runs.stops[order] - 1
    return reduce_corners(2 * begins, points)


def reduce_corners(begins: Int64, points: Int64) -> tuple[Int64, Int64]:
    """Only the corners of the hull of each group of points; they stand, and are returned, in raster order."""
    first = np.zeros(len(begins), np.int64)
    kept = np.empty_like(points)
    count = _reduce(begins, points, first, kept)
    return first, kept[:count].copy()


def measure_corners(begins: Int64, points: Int64, size: tuple[float, float]) -> Float64:
    """The largest and least distance of parallels that touch the hull, and how many pixels it covers.

    The pixels are those whose middles lie in the hull or on it.

    Args:
        begins, points: as `reduce_corners` returns them.
        size: of a pixel (y, x).

    Returns:
        float64 ``(groups, 3)``.
    """
    found = np.zeros((len(begins) - 1, 3))
    _measure(begins, points, float(size[0]), float(size[1]), found)
    return found


@_jit
def _chain(points: Any, first: int, last: int, hull: Any) -> int:
    """The corners of the hull of points in raster order, counter-clockwise in (x, y) downwards; how many they are."""
    n = 0
    for turn in range(2):
        base = n
        for step in range(last - first):
            i = first + step if turn == 0 else last - 1 - step
            while n >= base + 2:
                ay, ax = hull[n - 2, 0], hull[n - 2, 1]
                by, bx = hull[n - 1, 0], hull[n - 1, 1]
                if (by - ay) * (points[i, 1] - ax) - (bx - ax) * (points[i, 0] - ay) > 0:
                    break
                n -= 1
            hull[n] = points[i]
            n += 1
        n -= 1  # the last point begins the other side
    return 1 if n < 2 or (n == 2 and hull[0, 0] == hull[1, 0] and hull[0, 1] == hull[1, 1]) else n


@_jit
def _reduce(begins: Any, points: Any, first: Any, kept: Any) -> int:
    count = 0
    most = 0
    for g in range(len(begins) - 1):
        most = max(most, begins[g + 1] - begins[g])
    hull = np.empty((2 * most + 2, 2), np.int64)
    for g in range(len(begins) - 1):
        first[g] = count
        if begins[g] == begins[g + 1]:
            continue
        n = _chain(points, begins[g], begins[g + 1], hull)
        # raster order again: the way down is one side, the way up the other
        top = 1
        while top < n and (hull[top, 0], hull[top, 1]) > (hull[top - 1, 0], hull[top - 1, 1]):
            top += 1
        i, j = 0, n - 1
        while i < top or j >= top:
            if j < top or (i < top and (hull[i, 0], hull[i, 1]) < (hull[j, 0], hull[j, 1])):
                kept[count] = hull[i]
                i += 1
            else:
                kept[count] = hull[j]
                j -= 1
            count += 1
    first[-1] = count
    return count


@_jit
def _measure(begins: Any, points: Any, sy: float, sx: float, found: Any) -> None:
    most = 0
    for g in range(len(begins) - 1):
        most = max(most, begins[g + 1] - begins[g])
    spread = np.empty((4 * most, 2), np.int64)
    hull = np.empty((8 * most + 2, 2), np.int64)
    for g in range(len(begins) - 1):
        count = begins[g + 1] - begins[g]
        if count == 0:
            continue
        for k in range(count):
            y, x = 2 * points[begins[g] + k, 0], 2 * points[begins[g] + k, 1]
            spread[4 * k, 0], spread[4 * k, 1] = y - 1, x
            spread[4 * k + 1, 0], spread[4 * k + 1, 1] = y, x - 1
            spread[4 * k + 2, 0], spread[4 * k + 2, 1] = y, x + 1
            spread[4 * k + 3, 0], spread[4 * k + 3, 1] = y + 1, x
        _sort(spread, 4 * count)
        n = _chain(spread, 0, 4 * count, hull)
        widest, narrowest = 0.0, np.inf
        for a in range(n):
            b = (a + 1) % n
            ey, ex = (hull[b, 0] - hull[a, 0]) * sy, (hull[b, 1] - hull[a, 1]) * sx
            length, far = np.sqrt(ey * ey + ex * ex), 0.0
            for c in range(n):
                dy, dx = (hull[c, 0] - hull[a, 0]) * sy, (hull[c, 1] - hull[a, 1]) * sx
                widest = max(widest, dy * dy + dx * dx)
                far = max(far, abs(ex * dy - ey * dx))
            narrowest = min(narrowest, far / length)
        found[g, 0] = np.sqrt(widest) / 2
        found[g, 2] = _count_pixels(hull, n)
        found[g, 1] = narrowest / 2


@_jit
def _count_pixels(hull: Any, n: int) -> int:
    """How many pixels have their middles in a hull, whose corners are given in halves of a pixel."""
    low, high = hull[0, 0], hull[0, 0]
    for a in range(n):
        low, high = min(low, hull[a, 0]), max(high, hull[a, 0])
    first, last = (low + 1) // 2, high // 2
    left = np.full(last - first + 1, 1 << 40, np.int64)
    right = np.full(last - first + 1, -(1 << 40), np.int64)
    for a in range(n):
        b = (a + 1) % n
        ay, ax, by, bx = hull[a, 0], hull[a, 1], hull[b, 0], hull[b, 1]
        if ay > by:
            ay, ax, by, bx = by, bx, ay, ax
        if ay == by:
            if ay % 2 == 0:
                left[ay // 2 - first] = min(left[ay // 2 - first], (min(ax, bx) + 1) // 2)
                right[ay // 2 - first] = max(right[ay // 2 - first], max(ax, bx) // 2)
            continue
        for y in range((ay + 1) // 2, by // 2 + 1):
            over, under = (2 * y - ay) * (bx - ax) + ax * (by - ay), 2 * (by - ay)
            left[y - first] = min(left[y - first], -((-over) // under))
            right[y - first] = max(right[y - first], over // under)
    return int((right - left + 1).sum())


@_jit
def _sort(points: Any, count: int) -> None:
    """Put points that are almost in raster order into it."""
    for i in range(1, count):
        y, x = points[i, 0], points[i, 1]
        k = i - 1
        while k >= 0 and (points[k, 0] > y or (points[k, 0] == y and points[k, 1] > x)):
            points[k + 1, 0], points[k + 1, 1] = points[k, 0], points[k, 1]
            k -= 1
        points[k + 1, 0], points[k + 1, 1] = y, x
