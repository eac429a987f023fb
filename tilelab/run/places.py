"""Tiles at a few places of an image go through the network before a run begins, to see if their logits are numbers."""

from __future__ import annotations

import numpy as np

from tilelab.arrays import Bool, Float32
from tilelab.geometry import Box
from tilelab.run.prepare import Prepared
from tilelab.run.sweep.cutting import cut_tile
from tilelab.run.sweep.finite import not_finite
from tilelab.run.sweep.job import Job

_PLACES = 8


def try_places(prepared: Prepared) -> int:
    """Infer tiles from the first corner to the last; returns how many.

    Raises:
        EngineError: the network gives NaN or infinite logits there.
    """
    engine, job, lattice = prepared.engine, prepared.job, prepared.plan.lattice
    last = len(lattice) - 1
    places = sorted({last * i // (_PLACES - 1) for i in range(_PLACES)})
    tiles = np.zeros((engine.batch, engine.spec.channels, *engine.tile), np.float32)
    out = np.empty((engine.batch, engine.spec.values, *engine.spec.core), np.float32)
    for place in places:
        at = tuple(map(int, np.unravel_index(place, lattice.shape)))
        _cut(job, at, tiles[0])
        engine.run(tiles, out)
        box = lattice[at].intersect(Box.whole(job.image.shape))
        inside = tuple(slice(0, n) for n in box.shape)
        bad: Bool = ~np.isfinite(out[0]).all(axis=0).reshape(lattice.tile)[inside]
        if job.mask is not None:
            bad &= job.mask.read(box)[0] != 0
        if bad.any():
            raise not_finite(engine, box, bad)
    return len(places)


def _cut(job: Job, at: tuple[int, ...], tile: Float32) -> None:
    """One tile, normalised, with what lies beyond the image reflected."""
    z, y, x = (axis.indices(i) for axis, i in zip(job.lattice.axes, at, strict=True))
    low, high = ([int(end(seen)) for seen in (z, y, x)] for end in (np.min, np.max))
    raw = np.ascontiguousarray(job.image.read(Box(tuple(low), tuple(n + 1 for n in high))))
    target = tile.reshape(-1, *job.lattice.read)
    cut_tile(job, raw, (z - low[0], y - low[1], x - low[2]), z, target, slices_first=True)
