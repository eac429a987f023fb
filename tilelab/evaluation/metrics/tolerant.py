"""Pixels counted by true and predicted class with a tolerance: outlines a little displaced are no errors."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from tilelab.arrays import Int64, UInt8
from tilelab.kernels.jit import jit

_SLAB = 2**23
"""Pixels of a slab of rows."""

_jit = jit()


def count_tolerant(
    read: Callable[[int, int], tuple[UInt8, UInt8]],
    shape: tuple[int, int],
    tolerance: float,
    left_out: Collection[int] = (),
    *,
    slab: int | None = None,
) -> Int64:
    """Count the pixels of a plane by true and predicted class, those that are right within the tolerance as right.

    A pixel of true class t that was given class p is right if the truth has p, and the segmentation t, no farther than
    `tolerance` from it: an outline that was moved is forgiven, what was missed or invented is not.

    Args:
        read: gives labels and truth of a range of rows, uint8 ``(stop - start, x)``; every row is asked for once, and
            those beside a slab again.
        shape: rows and columns of the plane.
        tolerance: in pixels, from centre to centre.
        left_out: true classes that are not counted.
        slab: rows counted at once.

    Returns:
        int64 ``(256, 256)``, rows true, columns predicted.
    """
    height, width = shape
    reach = int(tolerance)
    steps = np.array([(y, x) for y in range(-reach, reach + 1) for x in range(-reach, reach + 1)], np.int64)
    far = (steps**2).sum(axis=1)
    near = steps[np.argsort(far, kind="stable")][1 : int((far <= tolerance**2).sum())]  # the next first
    skip = np.zeros(256, np.bool_)
    skip[list(left_out)] = True
    counts = np.zeros((256, 256), np.int64)
    slab = slab or max(1, _SLAB // width)
    for start in range(0, height, slab):
        stop = min(height, start + slab)
        top, bottom = max(0, start - reach), min(height, stop + reach)
        _count(*read(top, bottom), start - top, stop - top, near, skip, counts)
    return counts


@_jit
def _count(labels: Any, truth: Any, first: int, last: int, near: Any, skip: Any, counts: Any) -> None:
    height, width = labels.shape
    for y in range(first, last):
        for x in range(width):
            p, t = labels[y, x], truth[y, x]
            if skip[t]:
                continue
            if p != t:
                found = missed = False
                for k in range(len(near)):
                    v, u = y + near[k, 0], x + near[k, 1]
                    if 0 <= v < height and 0 <= u < width:
                        found |= truth[v, u] == p
                        missed |= labels[v, u] == t
                        if found and missed:
                            p = t
                            break
            counts[t, p] += 1
