"""The tile, overlap and batch that a run has where nothing is said: chosen for image, model and machine.

A result remembers what it was begun with, and is continued with that, whatever would be chosen now.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tilelab.assumptions import Assumption, check_strict
from tilelab.engines.bundled import quantised_file
from tilelab.engines.fastest import fastest_tile, tile_candidates
from tilelab.engines.registry import availability, choose_file, identity_outputs, members_of, read_model, read_spec
from tilelab.engines.streams import time_batches
from tilelab.errors import EngineError, ModelError
from tilelab.io.images.volume import Volume, network_input
from tilelab.machine.cpu import physical_core_count
from tilelab.machine.memory import total_memory
from tilelab.run.cluster.devices import is_distributed
from tilelab.run.journal.fingerprint import KnownFingerprint
from tilelab.run.kind.suit import is_alike
from tilelab.run.options import Options, load
from tilelab.run.plan.choice import (
    ALIKE,
    MARGIN,
    Candidate,
    Machine,
    choose_tiling,
    exact_overlap,
    is_free,
)
from tilelab.run.plan.rates import Rates, Remembered
from tilelab.run.plan.request import ImageFacts
from tilelab.spec import PRECISIONS, ModelSpec
from tilelab.text import sides_text

_BEGINNING = (512,)  # a tile to scale, for networks that name none
_UNKNOWN_FIELD = 256  # px that an output pixel of a network is supposed to see where nothing says it
_MEASURED = ((512, 512), (1024, 1024), (1536, 1536))  # tiles whose rates are measured, where they fit
_WORTH = 1_000_000_000  # computed pixels from which on a run gains more by measured rates than they cost
_LEAST_SECONDS = 0.6  # of measuring a tile


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        options: with it.
        candidates: that it was chosen from, the best first; empty where there was no choice.
        measured: whether the rates were measured, now or before.
    """

    options: Options
    candidates: tuple[Candidate, ...] = ()
    measured: bool = False


def choose_tile(
    model: object,
    image: Any,
    options: Options,
    note: Callable[[str], None],
    begun: KnownFingerprint | None = None,
) -> Options:
    """`options` with the tile, overlap and batch that suit the image; see `choose_work`."""
    return choose_work(model, image, options, note, begun).options


def choose_work(
    model: object,
    image: Any,
    options: Options,
    note: Callable[[str], None],
    begun: KnownFingerprint | None = None,
    *,
    measure: bool = True,
) -> Choice:
    """Choose tile, overlap and batch, where neither the model nor the user does.

    Args:
        model: path or name; whatever else is has its tile.
        image: what will be segmented.
        options: everything else.
        note: told what was measured.
        begun: fingerprint of a result that is to be continued, whose tiles are taken as they are.
        measure: whether the engine may be loaded and timed, where a run is long enough to gain by it.

    Raises:
        TilelabError: the model or the image cannot be read, or no tile fits the memory.
    """
    if not isinstance(model, str | Path):
        if options.exact:
            raise ModelError("--exact chooses the overlap while a model is loaded: give its path, not an engine")
        return Choice(options)
    options = _precision_as_begun(options, model, begun)
    pinned = options.model.tile is not None or (options.model.overlap is not None and not options.auto_tile)
    if (pinned and not options.exact) or (identity_outputs(model) is not None and not options.auto_tile):
        return Choice(options)
    spec = read_spec(model, options.model, _BEGINNING if options.auto_tile else None)
    assert spec is not None  # noqa: S101 - it is only None without overrides
    if options.exact:
        options = _exactly(options, spec)
    if pinned:
        return Choice(replace(options, exact=False))
    if begun is not None and (known := _as_begun(options, spec, begun)) is not None:
        return Choice(known)
    if options.auto_tile and (spec.axes != "yx" or not spec.plain or isinstance(options.model.overlap, float)):
        return Choice(_by_trying(model, image, options, spec, note))
    if options.auto_tile and not is_free(spec) and not spec.tile_fixed:
        spec = replace_seams(spec, options, note)
    if not is_free(spec):
        return Choice(replace(options, auto_tile=False))
    return _choose(model, image, options, spec, note, measure=measure)


def _choose(
    model: str | Path,
    image: Any,
    options: Options,
    spec: ModelSpec,
    note: Callable[[str], None],
    *,
    measure: bool,
) -> Choice:
    """The choice for a model that leaves one."""
    from tilelab.run.opening import open_source
    from tilelab.run.prepare import written_of

    with open_source(image, options, spec) as opened:
        volume = Volume(opened.image)
        facts = ImageFacts.of(network_input(volume, spec))
        margin = ALIKE if is_alike(volume, spec, options) else MARGIN
    gpu, remembered, usual = _engine_rates(model, options, spec)
    measured = remembered.read()

    def candidates() -> list[Candidate]:
        return choose_tiling(
            facts,
            spec,
            written_of(spec, options),
            Machine(replace(usual, measured=measured), physical_core_count(), total_memory(), gpu),
            exact=options.exact,
            overlap=_given_overlap(options),
            square=options.symmetries or options.model.uncertainty == "symmetries",
            batch=options.batch,
            masked=options.mask is not None,
            memory_limit=options.memory_bytes,
            margin=margin,
        )

    found = candidates()
    work = found[0].computed * math.prod(facts.shape) * (8 if options.symmetries else 1)
    here = not gpu and not is_distributed(options) and identity_outputs(model) is None
    if not measured and here and (options.auto_tile or (measure and work >= _WORTH)):
        measured = _measure(model, options, spec, min(math.prod(facts.shape[1:]), max(_pixels(c) for c in found)))
        remembered.write(measured)
        found = candidates()
    best = found[0].tiling
    if options.auto_tile:
        rates = ", ".join(f"{math.isqrt(p)}: {r / 1e6:.2f}" for p, r in sorted(measured.items()))
        note(f"tile {sides_text(best.tile)}, overlap {sides_text(best.overlap)}, the cheapest of {len(found)}"
             + (f" (MP/s at tiles of {rates})" if rates else ""))  # fmt: skip
    batch = best.batch if gpu and _batch_free(model) else options.batch
    return Choice(_with(options, best.tile, best.overlap, batch), tuple(found), bool(measured))


def _engine_rates(model: str | Path, options: Options, spec: ModelSpec) -> tuple[bool, Remembered, Rates]:
    """Whether the engine will be on a GPU, where its rates are remembered, and those it has by default."""
    if identity_outputs(model) is not None or len(members_of(model)) > 1:
        return False, Remembered(None), Rates({})
    device = options.device if options.device in ("auto", "cpu", "cuda") else options.device.partition(":")[0]
    family = device.partition("*")[0]
    where = family if family in ("cpu", "cuda", "auto") else "auto"
    try:
        chosen = choose_file(model, read_model(model), spec, options.engine, where, options.precision)
    except EngineError:  # whoever loads it says why
        return device.startswith("cuda"), Remembered(None), Rates({})
    gpu = chosen.device.startswith("cuda")
    key = {
        "model": chosen.file.digest(),
        "engine": chosen.engine,
        "version": availability(chosen.engine).version,
        "precision": chosen.precision,
        "device": chosen.device,
    }
    return gpu, Remembered.of(**key), Rates({}) if gpu else Rates.usual(chosen.precision)


def _measure(model: str | Path, options: Options, spec: ModelSpec, most: int) -> dict[int, float]:
    """Tile pixels per second of the engine by the pixels of a tile: of two at least, and up to about `most` pixels."""
    found: dict[int, float] = {}
    for tile in _MEASURED:
        if len(found) > 1 and math.prod(tile) > 1.5 * most:
            break
        fitted = tuple(-(-n // spec.stride) * spec.stride for n in tile)
        engine = load(model, _with(options, fitted, tuple(0 for _ in fitted), options.batch))
        try:
            times = time_batches(engine, lambda t: len(t) < 3 or sum(t) < _LEAST_SECONDS)
            found[math.prod(fitted)] = engine.batch * math.prod(fitted) / min(times)
        finally:
            engine.close()
    return found


def _exactly(options: Options, spec: ModelSpec) -> Options:
    """The overlap by which tiles equal the whole image, each pixel from one tile alone.

    Raises:
        PlanError: there is none for this model or tile.
        ModelError: another overlap or window was asked for, too.
    """
    for flag, given in (("--overlap", options.model.overlap), ("--window", options.model.window)):
        if given not in (None, "crop"):
            raise ModelError(f"--exact takes the overlap and the window that make tiles exact: leave {flag} out")
    overlap = exact_overlap(spec)
    said = replace(options.model, window="crop")
    tile = options.model.tile or (None if is_free(spec) else spec.tile)
    return replace(options, model=said if tile is None else replace(said, overlap=(overlap,)))


def replace_seams(spec: ModelSpec, options: Options, note: Callable[[str], None]) -> ModelSpec:
    """The description with a supposed curve, where the model tells nothing of its seams."""
    import msgspec

    assumed = Assumption(
        what="how far tiles have to overlap",
        taken=f"as for a network whose output pixels see {_UNKNOWN_FIELD} px",
        because="the model states neither its seams nor its receptive field",
        flag="--overlap",
    )
    if options.model.overlap is None:
        check_strict((assumed,), options.strict)
        note(str(assumed))
    return msgspec.structs.replace(spec, seams=None, receptive_field=_UNKNOWN_FIELD)


def _precision_as_begun(options: Options, model: str | Path, begun: KnownFingerprint | None) -> Options:
    """`options` with the precision of a result, where a bundled model has a file for each and nothing is asked for."""
    if begun is None or options.precision != "auto" or quantised_file(model) is None:
        return options
    known = begun.get("engine", {}).get("precision")
    return replace(options, precision=known) if known in PRECISIONS else options


def _as_begun(options: Options, spec: ModelSpec, begun: KnownFingerprint) -> Options | None:
    """`options` with the tiles of a result; None where they are none for this model."""
    try:
        tile, overlap = (ast.literal_eval(begun["lattice"][name]) for name in ("tile", "overlap"))
        batch = int(begun["engine"]["batch"])
        fits = len(tile) == len(overlap) == len(spec.axes) and all(
            t >= least and (t == 1 or t % spec.stride == 0) and 0 <= o < t
            for t, o, least in zip(tile, overlap, spec.tile_min or (1,) * len(tile), strict=True)
        )
    except (KeyError, ValueError, SyntaxError, TypeError):
        return None
    if not fits or (spec.tile_fixed and tile != spec.tile):
        return None
    return _with(options, tile, overlap, options.batch if options.batch is not None or batch == 1 else batch)


def _by_trying(
    model: str | Path, image: Any, options: Options, spec: ModelSpec, note: Callable[[str], None]
) -> Options:
    """The fastest of a few tiles for volumes and overlaps that grow with the tile."""
    from tilelab.run.opening import open_source

    with open_source(image, options, spec) as opened:
        shape = Volume(opened.image).shape[-len(spec.axes) :]
    batches = (1, 2, 4, 8) if options.device.startswith("cuda") else (1,)  # each core of a CPU has a tile of its own
    tried = [
        (t, b) for t in tile_candidates(spec, shape) for b in (batches if options.batch is None else (options.batch,))
    ]
    best, measured = fastest_tile(
        lambda tile, batch: load(model, _with(options, tile, None, batch)), tried, shape, options.memory_bytes
    )
    note(f"tile {sides_text(best.tile)}, batch {best.batch}: {best.pixels_per_s / 1e6:.2f} MP/s, the fastest of "
         f"{len(measured)} measured")  # fmt: skip
    return _with(options, best.tile, None, best.batch)


def _given_overlap(options: Options) -> int | None:
    given = options.model.overlap
    return max(given) if isinstance(given, tuple) else None


def _batch_free(model: str | Path) -> bool:
    shape = read_model(model).inputs[0].shape
    return not shape or not isinstance(shape[0], int)


def _pixels(candidate: Candidate) -> int:
    return math.prod(candidate.tiling.tile)


def _with(options: Options, tile: tuple[int, ...], overlap: tuple[int, ...] | None, batch: int | None) -> Options:
    said = replace(options.model, tile=tile)
    if overlap is not None:
        said = replace(said, overlap=overlap)
    return replace(options, auto_tile=False, exact=False, batch=batch, model=said)
