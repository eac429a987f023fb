"""`--tile auto`: the fastest tile and batch for an image, remembered by the result that was begun with it."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tilelab.engines.fastest import fastest_tile, tile_candidates
from tilelab.engines.registry import read_spec
from tilelab.io.images.volume import Volume
from tilelab.run.journal.fingerprint import KnownFingerprint
from tilelab.run.options import Options, load
from tilelab.text import size_text

_BEGINNING = (512,)  # a tile to scale, for networks that name none
BATCHES = {"cpu": (1,), "cuda": (1, 2, 4, 8)}  # each core of a CPU has a tile of its own


def choose_tile(
    model: str | Path,
    image: Any,
    options: Options,
    note: Callable[[str], None],
    begun: KnownFingerprint | None = None,
) -> Options:
    """`options` with the tile and batch that give the most useful pixels per second within ``options.memory_bytes``.

    Args:
        model: path or name.
        image: what will be segmented; its size decides how much of the last tiles is wasted.
        options: everything else.
        note: told what was chosen.
        begun: fingerprint of a result that is to be continued, whose tile and batch are taken as they are.

    Raises:
        TilelabError: the model or the image cannot be read, or no tile fits the memory.
    """
    if begun is not None:
        tile, batch = ast.literal_eval(begun["lattice"]["tile"]), int(begun["engine"]["batch"])
        return _with(options, tile, batch)
    from tilelab.run.opening import open_source

    spec = read_spec(model, options.model, _BEGINNING)
    assert spec is not None  # noqa: S101 - it is only None without overrides
    with open_source(image, options, spec) as opened:
        shape = Volume(opened.image).shape[-len(spec.axes) :]
    kind = "cuda" if options.device.startswith("cuda") else "cpu"
    batches = BATCHES[kind] if options.batch is None else (options.batch,)

    candidates = [(tile, batch) for tile in tile_candidates(spec, shape) for batch in batches]
    best, measured = fastest_tile(
        lambda tile, batch: load(model, _with(options, tile, batch)), candidates, shape, options.memory_bytes
    )
    size = size_text(best.tile)
    note(
        f"tile {size}, batch {best.batch}: {best.pixels_per_s / 1e6:.2f} MP/s, the fastest of {len(measured)} measured"
    )
    return _with(options, best.tile, best.batch)


def _with(options: Options, tile: tuple[int, ...], batch: int) -> Options:
    return replace(options, auto_tile=False, batch=batch, model=replace(options.model, tile=tile))
