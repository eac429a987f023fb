"""What a planned job will take: time, money, bytes; from measured or stated speeds and a few sample tiles."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from tilelab.engines.base import Engine
from tilelab.engines.streams import time_batches
from tilelab.geometry import Box
from tilelab.io.images.image import Image
from tilelab.io.images.region import RegionImage
from tilelab.io.images.volume import Volume
from tilelab.io.storage.decode import LARGE_BYTES
from tilelab.run.plan.plan import Plan
from tilelab.run.plan.share_out import expected_tiles

_SAMPLES = 8
# Processor time of the host's stages, measured with an engine that copies, in seconds: per number that is blended, per
# pixel that is read, per byte that is written; and what a process takes to begin, and a level that is made at the end.
_CUT_AND_BLEND, _READ, _WRITE = 1.0e-9, 4.0e-9, 7.0e-9
_IMPORTS, _LEVELS = 0.4, 0.05
_SAMPLE_SECONDS = 0.5
_ENOUGH = 1000  # batches timed


@dataclass(frozen=True)
class Samples:
    """Some tiles of an image, spread over it.

    tiles: how many were read; 0 where reading one would cost too much.
    blank: how many of them have a single value and need no network.
    bytes, seconds: decoded, and how long that took.
    """

    tiles: int
    blank: int
    bytes: int
    seconds: float


def calibrate(engine: Engine, least_seconds: float = 1.0) -> float:
    """Seconds per tile, the median over batches of noise for about `least_seconds` after the first.

    A thousand are enough: of a network that takes a tenth of a millisecond there would be ten times as many.
    """

    def more(times: list[float]) -> bool:
        return len(times) < 4 or (len(times) <= _ENOUGH and sum(times[1:]) * engine.streams < least_seconds)

    return float(np.median(time_batches(engine, more)[1:])) / engine.batch


def seconds_per_tile(plan: Plan, megapixels_per_second: float) -> float:
    """Of a worker that does so many megapixels of the image in a second."""
    return plan.pixels / (megapixels_per_second * 1e6) / len(plan.lattice)


def expected_seconds(plan: Plan, per_tile: float, workers: int) -> float:
    """From the start of the first unit to the end of the last, each worker taking `per_tile` seconds for a tile."""
    return per_tile * expected_tiles(
        plan.lattice, plan.units.cuts, plan.layout.grain, plan.frame.sweep_axis, max(1, workers)
    )


def overhead_seconds(plan: Plan, engine: Engine, per_tile: float, load_seconds: float, workers: int) -> float:
    """What a run takes beside the time of its tiles, where that was measured: start, host, idle cores at the end.

    Args:
        plan: of the run.
        engine: that was measured.
        per_tile: its seconds for a tile, all its streams busy.
        load_seconds: that loading it took.
        workers: how many share the work.
    """
    layout, written = plan.layout, plan.request.written
    kinds = written.labels + len(written.probabilities) + 4 * written.floats
    computed = plan.tiles * math.prod(plan.lattice.read) * plan.spec.values
    host = (computed * _CUT_AND_BLEND + plan.pixels * (_READ + kinds * _WRITE)) / workers
    start = _IMPORTS + load_seconds + _LEVELS * (layout.levels - layout.aligned)
    if engine.device != "cpu":  # the host works meanwhile
        return start + max(0.0, host - per_tile * plan.tiles / workers)
    idle = -plan.tiles % engine.streams if workers == 1 else 0
    return start + host / max(1, engine.streams) + idle * per_tile


def sample_tiles(volume: Volume, plan: Plan) -> Samples:
    """Read up to eight tiles, from the first corner to the last, for at most about half a second.

    Raises:
        InputError: one of them cannot be read.
    """
    if math.prod(volume.chunks) * volume.channels * volume.dtype.itemsize > LARGE_BYTES:
        return Samples(0, 0, 0, 0.0)
    began, count, blank, nbytes = time.perf_counter(), 0, 0, 0
    last = len(plan.lattice) - 1
    for number in sorted({last * i // (_SAMPLES - 1) for i in range(_SAMPLES)}):
        index = np.unravel_index(number, plan.lattice.shape)
        raw = volume.read(plan.lattice[tuple(int(i) for i in index)].intersect(Box.whole(volume.shape)))
        count += 1
        nbytes += raw.nbytes
        blank += bool((raw == raw[:, :1, :1, :1]).all())
        if time.perf_counter() - began > _SAMPLE_SECONDS:
            break
    return Samples(count, blank, nbytes, time.perf_counter() - began)


def stored_bytes(image: Image) -> int | None:
    """Bytes that the image takes where it is stored, as far as a few files can tell; None when it cannot be told."""
    if isinstance(image, RegionImage):
        whole = stored_bytes(image.whole)
        return None if whole is None else whole * math.prod(image.shape) // max(1, math.prod(image.whole.shape))
    source = getattr(image, "source", None)
    told = None if source is None else source.stored_bytes()
    return None if told is None else int(told)
