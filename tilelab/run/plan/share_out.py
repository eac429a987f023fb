"""How finely the work is cut for several workers.

Every cut lets tiles be inferred twice; too few cuts leave workers without work at the end.  Idle workers then take over
parts of what the others are at, in whole shards (`tilelab.run.cluster.dispatch`), so few units go a long way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np

from tilelab.geometry import AxisTiling, Cuts, Lattice

# What a job takes longer than its tiles divided by its workers, fitted to simulations of planes and stacks on 2 to 64
# workers (benchmarks.measure.simulate): the best of all cuts is missed by less than a per cent on average.
UNEVEN = 0.1  # the part that remains of units that do not divide by workers, in spite of help
LAST = 0.75  # the last shards are not finished by all at once: this part of a lane's row of shards
START_TILES = 8.0  # what the start of a unit costs (its first rows are read, the queues fill), in tiles


def crossings(axis: AxisTiling, cuts: Cuts) -> tuple[int, int]:
    """Tiles that have a pixel in each range of `cuts`: the sum over all ranges, and the largest."""
    first = np.minimum(np.arange(len(axis), dtype=np.int64) * axis.step, axis.padded - axis.tile)
    last = np.minimum(first + axis.tile, axis.size) - 1
    begins = np.bincount(first // cuts.extent, minlength=len(cuts) + 1)
    ends = np.bincount(last // cuts.extent + 1, minlength=len(cuts) + 1)
    counts = np.cumsum(begins - ends)[: len(cuts)]
    return int(counts.sum()), int(counts.max())


def expected_tiles(
    lattice: Lattice, cuts: Sequence[Cuts], grain: Sequence[int], sweep_axis: int, workers: int
) -> float:
    """How long the job takes, in the time of one tile on one worker."""
    counted = [crossings(axis, c) for axis, c in zip(lattice.axes, cuts, strict=True)]
    sweep = cuts[sweep_axis]
    rows = math.ceil(min(sweep.extent, sweep.size) / grain[sweep_axis])
    return _expected(math.prod(c[0] for c in counted), math.prod(c[1] for c in counted), rows, workers)


def share_out(
    lattice: Lattice,
    cuts: Sequence[Cuts],
    grain: Sequence[int],
    axes: Sequence[int],
    sweep_axis: int,
    workers: int,
) -> tuple[Cuts, ...]:
    """Cut `cuts` finer along `axes`, such that `workers` are done soonest."""
    options: list[list[tuple[Cuts, int, int]]] = []
    for a, (axis, given, least) in enumerate(zip(lattice.axes, cuts, grain, strict=True)):
        found = [given]
        if a in axes:
            most = min(-(-given.extent // least), 64 * workers)
            found += [Cuts.at_most(axis.size, max(least, given.extent // n), least) for n in _steps(most)]
        options.append([(c, *crossings(axis, c)) for c in dict.fromkeys(found)])

    def cost(choice: tuple[tuple[Cuts, int, int], ...]) -> tuple[float, int]:
        total, largest = math.prod(c[1] for c in choice), math.prod(c[2] for c in choice)
        sweep = choice[sweep_axis][0]
        rows = math.ceil(min(sweep.extent, sweep.size) / grain[sweep_axis])
        return _expected(total, largest, rows, workers), math.prod(len(c[0]) for c in choice)

    return tuple(c[0] for c in min(product(*options), key=cost))


def _expected(total: int, largest: int, rows: int, workers: int) -> float:
    """From all tiles, those of the largest unit, and its shards along the sweep."""
    if workers == 1:
        return total
    rounds = math.ceil(total / largest / workers - 1e-9)
    even = total / workers
    return even + UNEVEN * max(0.0, rounds * largest - even) + LAST * largest / rows + START_TILES * rounds


def _steps(most: int) -> list[int]:
    """Numbers up to `most`, each about a fifth more than the one before."""
    found = [2]
    while found[-1] < most:
        found.append(found[-1] + max(1, found[-1] // 5))
    return [n for n in found if n <= most]
