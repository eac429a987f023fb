"""The mutex watershed (Wolf et al., ECCV 2018): an image cut into parts by what pixels say of their neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilelab.arrays import Array, Bool, Float64, Int64
from tilelab.kernels.jit import jit
from tilelab.kernels.objects.runs import find_root

_jit = jit()


def cut_by_mutexes(affinities: Array, offsets: Int64, mask: Bool) -> Int64:
    """Cut a plane into parts.

    Pairs of pixels are taken from the surest on, equally sure ones in the order of offsets and then of pixels.  A pair
    of neighbours (whose offset is one step) makes two parts one, unless a surer pair forbade it; a far pair forbids
    that its two parts are ever one, unless they are already.

    Args:
        affinities: ``(pairs, y, x)`` from 0 to 1: how likely a pixel and that at its offset are of one object.
        offsets: int64 ``(pairs, 2)``, to the other pixel along y and x.
        mask: bool ``(y, x)``; other pixels are of no part.

    Returns:
        int64 ``(y, x)``, parts from 1 in the order of their first pixels, 0 outside the mask.
    """
    height, width = mask.shape
    index = np.arange(height * width).reshape(height, width)
    ones, others, weights, joins = [], [], [], []
    for affinity, (dy, dx) in zip(affinities, offsets.tolist(), strict=True):
        here, there = zip(_both(dy, height), _both(dx, width), strict=True)
        near = abs(dy) + abs(dx) == 1
        weight = affinity[here] if near else 1 - affinity[here]
        taken = mask[here] & mask[there] & (weight > 0)
        ones.append(index[here][taken])
        others.append(index[there][taken])
        weights.append(weight[taken].astype(np.float64))
        joins.append(np.full(int(taken.sum()), near))
    every: Float64 = np.concatenate(weights)
    order = np.argsort(-every, kind="stable")
    roots = _cut(
        np.concatenate(ones)[order], np.concatenate(others)[order], np.concatenate(joins)[order], height * width
    )
    roots[~mask.ravel()] = -1
    _, first, inverse = np.unique(roots, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(np.where(roots[first] < 0, -1, first), kind="stable")] = np.arange(len(first))
    numbers: Int64 = (rank[inverse] + bool(mask.all())).reshape(height, width)
    return numbers


def _both(step: int, size: int) -> tuple[slice, slice]:
    """Where on an axis the first of two pixels can lie that are a step apart, and where the second."""
    count = max(0, size - abs(step))
    first = max(0, -step)
    return slice(first, first + count), slice(max(0, step), max(0, step) + count)


@_jit
def _cut(ones: Any, others: Any, joins: Any, pixels: int) -> Any:
    """The root of each pixel; who may not be one is kept in a chain at every root."""
    parents = np.arange(pixels)
    head, tail = np.full(pixels, -1, np.int64), np.full(pixels, -1, np.int64)
    length = np.zeros(pixels, np.int64)
    most = 2 * (len(joins) - np.count_nonzero(joins))
    following, foe = np.full(most, -1, np.int64), np.empty(most, np.int64)
    count = 0
    for e in range(len(ones)):
        u, v = find_root(parents, ones[e]), find_root(parents, others[e])
        if u == v:
            continue
        if length[u] > length[v]:
            u, v = v, u
        forbidden = False
        at = head[u]
        while at >= 0 and not forbidden:
            forbidden = find_root(parents, foe[at]) == v
            at = following[at]
        if forbidden:
            continue
        if joins[e]:
            parents[u] = v
            if head[v] < 0:
                head[v] = head[u]
            elif head[u] >= 0:
                following[tail[v]] = head[u]
            if head[u] >= 0:
                tail[v] = tail[u]
            length[v] += length[u]
            continue
        for mine, other in ((u, v), (v, u)):
            foe[count] = other
            if head[mine] < 0:
                head[mine] = count
            else:
                following[tail[mine]] = count
            tail[mine] = count
            length[mine] += 1
            count += 1
    for i in range(pixels):
        parents[i] = find_root(parents, i)
    return parents
