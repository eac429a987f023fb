"""How finely the work is cut for several workers.

Many units keep all of them busy to the end; few units mean that few tiles are computed twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np

from tilelab.geometry import AxisTiling, Cuts, Lattice

UNEVEN = 0.25  # workers differ in speed: the last one is expected to be late by this part of a unit
START_TILES = 2.0  # what the start of a unit costs (its first rows are read, the queues fill), in tiles


def crossings(axis: AxisTiling, cuts: Cuts) -> tuple[int, int]:
    """Tiles that have a pixel in each range of `cuts`: the sum over all ranges, and the largest."""
    first = np.minimum(np.arange(len(axis), dtype=np.int64) * axis.step, axis.padded - axis.tile)
    last = np.minimum(first + axis.tile, axis.size) - 1
    begins = np.bincount(first // cuts.extent, minlength=len(cuts) + 1)
    ends = np.bincount(last // cuts.extent + 1, minlength=len(cuts) + 1)
    counts = np.cumsum(begins - ends)[: len(cuts)]
    return int(counts.sum()), int(counts.max())


def busiest_worker_tiles(lattice: Lattice, cuts: Sequence[Cuts], workers: int) -> float:
    """Tiles (with the starts of units, in tiles) that the worker with most to do infers, until the job ends."""
    counted = [crossings(axis, c) for axis, c in zip(lattice.axes, cuts, strict=True)]
    return _busiest(math.prod(c[0] for c in counted), math.prod(c[1] for c in counted), workers)


def share_out(
    lattice: Lattice, cuts: Sequence[Cuts], grain: Sequence[int], axes: Sequence[int], workers: int
) -> tuple[Cuts, ...]:
    """Cut `cuts` finer along `axes`, such that `workers` are done soonest.

    Every cut lets tiles be inferred a second time, so a plane of a few shards gets no more units than workers, and a
    large one many for each.
    """
    options: list[list[tuple[Cuts, int, int]]] = []
    for a, (axis, given, least) in enumerate(zip(lattice.axes, cuts, grain, strict=True)):
        found = [given]
        if a in axes:
            most = min(-(-given.extent // least), 64 * workers)
            found += [Cuts.at_most(axis.size, max(least, given.extent // n), least) for n in _steps(most)]
        options.append([(c, *crossings(axis, c)) for c in dict.fromkeys(found)])

    def cost(choice: tuple[tuple[Cuts, int, int], ...]) -> tuple[float, int]:
        total, largest = math.prod(c[1] for c in choice), math.prod(c[2] for c in choice)
        units = math.prod(len(c[0]) for c in choice)
        return _busiest(total, largest, workers) + UNEVEN * largest, units

    return tuple(c[0] for c in min(product(*options), key=cost))


def _busiest(total: int, largest: int, workers: int) -> float:
    rounds = math.ceil(total / largest / workers - 1e-9)
    return rounds * (largest + START_TILES)


def _steps(most: int) -> list[int]:
    """Numbers up to `most`, each about a fifth more than the one before."""
    found = [2]
    while found[-1] < most:
        found.append(found[-1] + max(1, found[-1] // 5))
    return [n for n in found if n <= most]
