"""``--tile auto``: measure which tile and batch give the most useful pixels per second on this machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tilelab.engines.base import Engine
from tilelab.engines.streams import time_batches
from tilelab.errors import PlanError
from tilelab.geometry import Lattice
from tilelab.spec import ModelSpec
from tilelab.text import format_bytes, size_text

_SCALES = (1 / 4, 3 / 8, 1 / 2, 3 / 4, 1, 3 / 2, 2, 3, 4)
_REPEATS = 2  # after the trial run of loading
_LOSSES = 2  # in a row, before larger tiles are given up
_TIE = 0.03  # differences that a second measurement might turn round


@dataclass(frozen=True, slots=True)
class TileSpeed:
    """What was measured for one tile and batch.

    Attributes:
        tile, batch: the shape of a batch.
        seconds: of one batch.
        pixels_per_s: useful ones: of the image, with every overlap and every reflected pixel counted as loss.
        memory_bytes: that the engine holds while it runs; 0 where the system does not tell.
    """

    tile: tuple[int, ...]
    batch: int
    seconds: float
    pixels_per_s: float
    memory_bytes: int


def tile_candidates(spec: ModelSpec, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Tiles worth measuring for an image of `shape`: the model's own and scaled ones, none larger than the image."""
    if spec.tile_fixed:
        return [spec.tile]
    least = spec.tile_min or (spec.stride,) * len(spec.tile)
    found: dict[tuple[int, ...], None] = {}
    for scale in _SCALES:
        tile = []
        for own, low, size in zip(spec.tile, least, shape, strict=True):
            step = spec.stride if own > 1 else 1
            padded = -(-size // step) * step
            low = -(-low // step) * step
            tile.append(max(low, min(padded, round(own * scale / step) * step)) if own > 1 else 1)
        found[tuple(tile)] = None
    return sorted(found, key=lambda tile: (math.prod(tile), tile))


def fastest_tile(
    load: Callable[[tuple[int, ...], int], Engine],
    candidates: Iterable[tuple[tuple[int, ...], int]],
    shape: tuple[int, ...],
    memory_limit: int | None = None,
) -> tuple[TileSpeed, tuple[TileSpeed, ...]]:
    """Load and time candidates, from the middle one up and then down, as long as that helps; they are closed again.

    The choice depends on measured times, so a job that is to be resumed must record it.  Of candidates that are as fast
    within 3 %, the one with the fewest pixels is chosen: it needs the least memory.

    Args:
        load: makes an engine for a tile and a batch; its spec's overlap, stride and window hold for that tile.
        candidates: tiles and batches, in any order.
        shape: of the image on the model's axes, in pixels.
        memory_limit: bytes that the engine may hold; None for no limit.

    Returns:
        The choice, and all that was measured.

    Raises:
        PlanError: no candidate fits.
    """
    ordered = sorted(candidates, key=lambda c: (math.prod(c[0]) * c[1], c))
    measured: list[TileSpeed] = []
    refused: TileSpeed | None = None
    start = len(ordered) // 2

    def worse(speed: TileSpeed) -> bool:
        return speed.pixels_per_s < max(s.pixels_per_s for s in measured)

    losses = 0
    for tile, batch in ordered[start:]:  # upwards, until it no longer helps
        speed = _measure(load, tile, batch, shape)
        if memory_limit is not None and speed.memory_bytes > memory_limit:
            refused = speed
            break
        measured.append(speed)
        losses = losses + 1 if worse(speed) else 0
        if losses == _LOSSES:
            break
    for tile, batch in reversed(ordered[:start]):  # downwards, likewise
        speed = _measure(load, tile, batch, shape)
        if memory_limit is not None and speed.memory_bytes > memory_limit:
            refused = speed
            continue
        measured.append(speed)
        if worse(speed):
            break
    if not measured:
        need = f"needs {format_bytes(refused.memory_bytes)} in the engine" if refused else "was asked for"
        tile_text = size_text(refused.tile) if refused else "none"
        limit = f", the limit is {format_bytes(memory_limit)}: raise --memory" if memory_limit is not None else ""
        raise PlanError(f"--tile auto: even the smallest tile, {tile_text}, {need}{limit}")
    measured.sort(key=lambda s: (math.prod(s.tile) * s.batch, s.tile, s.batch))
    best = max(speed.pixels_per_s for speed in measured)
    choice = next(speed for speed in measured if speed.pixels_per_s >= (1 - _TIE) * best)
    return choice, tuple(measured)


def _measure(
    load: Callable[[tuple[int, ...], int], Engine], tile: tuple[int, ...], batch: int, shape: tuple[int, ...]
) -> TileSpeed:
    engine = load(tile, batch)
    try:
        spec = engine.spec
        times = time_batches(engine, lambda times: len(times) < _REPEATS)
        held = engine.memory.host_bytes
    finally:
        engine.close()
    lattice = Lattice.fit(shape, spec.core, spec.core_overlap, stride=spec.stride, window=spec.window, halo=spec.halo)
    seconds = min(times)
    return TileSpeed(tile, batch, seconds, math.prod(shape) / (len(lattice) * seconds / batch), held)
