"""The main job: an image of any size and a model in, a finished result out; resumable at any moment.

`infer` is the whole story: open, plan, claim the output, sweep every unit, finalize, report.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from tilelab import __version__
from tilelab.autotile import choose_tile
from tilelab.cluster.devices import is_distributed
from tilelab.engines.base import Engine
from tilelab.engines.registry import load_engine, read_spec
from tilelab.errors import InputError, Interrupted, OutputError, TilelabError
from tilelab.geometry import Cuts
from tilelab.io.result import read_info
from tilelab.io.sink import Sink
from tilelab.io.zarr_sink import OmeZarrSink, partial_path
from tilelab.journal import FOLDER, Fingerprint, Journal, differences
from tilelab.memory import peak_memory, resident_memory
from tilelab.options import Options
from tilelab.planning import Plan
from tilelab.prepare import Prepared, open_source, plan_image, prepare
from tilelab.sweep import Stalls, Unit

SUFFIXES = (".ome.zarr", ".zarr", ".ome.tif", ".ome.tiff", ".tif", ".tiff", ".png")


class Progress(Protocol):
    """Told how a run advances."""

    def start(self, plan: Plan, tiles_done: int) -> None:
        """The work is about to begin; `tiles_done` of ``plan.tiles`` were done by an earlier run."""

    def advance(self, tiles: int) -> None:
        """So many more tiles are done; called from a worker thread."""

    def stop(self) -> None:
        """The run ended, finished or not."""


@dataclass
class Run:
    """A finished run.

    path: of the result.
    report: everything worth keeping: what was run on what, how long each part took, versions.
    already_finished: the result was there, nothing was computed.
    """

    path: Path
    report: dict[str, Any] = field(repr=False)
    already_finished: bool = False


class _Silent:
    def start(self, plan: Plan, tiles_done: int) -> None: ...
    def advance(self, tiles: int) -> None: ...
    def stop(self) -> None: ...


def infer(
    image: Any,
    model: str | Path | Engine,
    out: str | Path | None = None,
    *,
    options: Options | None = None,
    overview: str | Path | None = None,
    progress: Progress | None = None,
    note: Callable[[str], None] = lambda line: None,  # noqa: ARG005
) -> Run:
    """Segment an image of any size.

    Args:
        image: path or URI of anything `open_image` reads, an `Image`, a NumPy or Dask array.
        model: path of a model, name of a bundled one, or a loaded engine (which is then the caller's to close).
        out: result to write: ``.ome.zarr`` (default, named after the image, in the current folder), ``.ome.tif`` or
            ``.png``.
        options: everything else.
        overview: PNG to draw, the image with the segmentation over it.
        progress: told how far the run is.
        note: called with one line for each thing the user should know.

    Returns:
        The path of the result and the report.

    Raises:
        TilelabError: something does not fit, cannot be read or written; nothing half-written is left under the final
            name, and what was finished is kept for the next try.
        Interrupted: Ctrl-C; the same call continues.
    """
    options = options or Options()
    progress = progress or _Silent()
    began = time.perf_counter()
    target = output_path(image, out)
    work = target if target.name.endswith(".zarr") else target.with_name(f".{target.name}.work")
    if isinstance(model, str | Path) and options.auto_tile:
        options = choose_tile(model, image, options, note, None if options.restart else _begun(target, work))
    with contextlib.ExitStack() as opened:
        crew = None
        engine: Engine
        if is_distributed(options):
            from tilelab.cluster.crew import open_crew

            if isinstance(image, str | Path) and isinstance(model, str | Path):
                plan(image, model, options=options)  # what can be refused is refused before any worker starts
            crew = opened.enter_context(open_crew(image, model, options, note))
            options, engine = crew.options, crew.engine
        else:
            engine = load(model, options) if isinstance(model, str | Path) else model
        if engine is not model:
            opened.callback(engine.close)
        memory = resident_memory()
        prepared = prepare(image, engine, options)
        if prepared.image is not image:
            opened.callback(prepared.image.close)
        for line in prepared.notes:
            note(line)
        clock = _Clock(began)
        done = finished(target, work, prepared.fingerprint, options.restart)
        clock.mark("start")
        stalls = Stalls()
        if not done and (options.restart or not work.exists()):
            sweep = sweep_units if crew is None else crew.sweep_units
            stalls = _sweep(prepared, target, work, options, progress, note, sweep)
            clock.mark("sweep")
        if overview is not None:
            if work.exists():
                from tilelab.io.overview import write_overview

                write_overview(prepared.image, work, overview)
            else:
                note(f"no overview: it is drawn when {target} is made; --restart makes it anew")
            clock.mark("overview")
        if not done and work != target:
            _convert(work, target)
            clock.mark("convert")
        report = _report(prepared, target, stalls, clock, memory)
        if crew is not None:
            report["workers"] = crew.summary
        return Run(target, report, already_finished=done)


def plan(image: Any, model: str | Path, *, options: Options | None = None) -> Plan:
    """What `infer` would do; nothing is computed or written.

    Raises:
        TilelabError: image and model do not fit, or a limit would be exceeded.
    """
    options = options or Options()
    spec = read_spec(model, options.model)
    assert spec is not None  # noqa: S101 - it is only None without overrides
    return plan_image(open_source(image, options, spec)[0], spec, options, options.batch or 1)


def load(model: str | Path, options: Options) -> Engine:
    """The engine that `options` ask for; see `tilelab.load_engine`."""
    return load_engine(
        model,
        engine=options.engine,
        device=options.device,
        precision=options.precision,
        batch=options.batch,
        threads=options.threads,
        spec_overrides=options.model,
    )


def output_path(image: Any, out: str | Path | None) -> Path:
    """Where the result goes: `out`, or a name made from the image's, in the current folder.

    Raises:
        OutputError: the format is unknown, or the result would overwrite the image.
    """
    source = Path(str(image)) if isinstance(image, str | Path) else None
    if out is None:
        if source is None:
            raise OutputError("an array has no name to derive the output's from: give one")
        stem = source.name
        for suffix in (".ome.zarr", ".zarr", ".ome.tiff", ".ome.tif"):
            stem = stem.removesuffix(suffix)
        stem = stem.rpartition(".")[0] or stem
        target = Path(f"{stem}.ome.zarr")
        if source.resolve() == target.resolve():
            target = Path(f"{stem}.labels.ome.zarr")
        return target
    target = Path(out).expanduser()
    if not target.name.endswith(SUFFIXES):
        raise OutputError(
            f"{target} is of an unknown format: name it {', '.join(SUFFIXES[:1] + SUFFIXES[2:3])} or .png"
        )
    if source is not None and source.resolve() == target.resolve():
        raise OutputError(f"{target} is the input: choose another output")
    return target


def finished(target: Path, work: Path, fingerprint: Fingerprint, restart: bool) -> bool:
    """Whether the result is there already; clears the way when it may.

    Raises:
        OutputError: something else is there.
    """
    for path in {target, work}:
        if not path.exists():
            continue
        known = _known_fingerprint(path)
        changed = None if known is None else differences(known, fingerprint)
        if changed == [] and not restart:
            Journal.remove(path)
            if path == target:
                return True
            continue
        if not restart:
            why = (
                "was not made by tilelab" if changed is None else f"is the result of another job ({'; '.join(changed)})"
            )
            raise OutputError(f"{path} exists and {why}: choose another output with -o, or replace it with --restart")
        if known is None and path.is_dir():
            raise OutputError(f"{path} was not made by tilelab and is not removed: choose another output with -o")
    if restart:
        unfinished = partial_path(work)
        if (unfinished / FOLDER).is_dir():
            with Journal.held(unfinished):
                shutil.rmtree(unfinished)
        if work != target and work.exists():
            shutil.rmtree(work)
    return False


def _sweep(
    prepared: Prepared,
    target: Path,
    work: Path,
    options: Options,
    progress: Progress,
    note: Callable[[str], None],
    sweep: Callable[[Prepared, Plan, OmeZarrSink, Journal, Progress], Stalls],
) -> Stalls:
    """All units into `work`, continuing where an earlier run stopped."""
    plan = prepared.plan
    unfinished = partial_path(work)
    try:
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        journal = Journal(unfinished, prepared.fingerprint, {"extents": [c.extent for c in plan.units.cuts]})
    except OSError as error:
        raise OutputError(f"cannot write {unfinished}: {error.strerror or error}") from error
    try:
        if journal.resumed:
            cuts = tuple(Cuts(n, e) for n, e in zip(plan.source.shape, journal.split["extents"], strict=True))
            if cuts != plan.units.cuts:  # the split of the run that began it
                plan = plan_image(prepared.image, plan.spec, options, plan.batch, cuts=cuts)
        sink = _sink(prepared, plan, work)
        done = _tiles_done(prepared, plan, journal.positions)
        if journal.resumed:
            note(f"continuing {target}: {done / plan.tiles:.0%} was finished by an earlier run")
        progress.start(plan, done)
        stalls = sweep(prepared, plan, sink, journal, progress)
        if options.restart and work.exists():
            shutil.rmtree(work)
        if os.name == "nt":  # an open file keeps its folder from being renamed
            journal.close()
        sink.finalize()
        Journal.remove(work)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; the same command continues (unfinished result: {unfinished})") from None
    except TilelabError:
        if not journal.positions:  # nothing was finished, so nothing is lost
            journal.close()
            shutil.rmtree(unfinished, ignore_errors=True)
        raise
    finally:
        journal.close()
        progress.stop()
    return stalls


def sweep_units(prepared: Prepared, plan: Plan, sink: Sink, journal: Journal, progress: Progress) -> Stalls:
    """Every unfinished unit, one after the other, in this process."""
    axis = plan.frame.sweep_axis
    stalls = Stalls()
    for unit in plan.units:
        start = journal.positions.get(unit.index, unit.box.start[axis])
        if start < unit.box.stop[axis]:
            record = partial(journal.record, unit.index)
            writer = sink.writer(unit.box, start, axis)
            stalls.add(Unit(prepared.job, prepared.engine, unit.box, start).run(writer, record, progress.advance))
    return stalls


def _tiles_done(prepared: Prepared, plan: Plan, positions: dict[int, int]) -> int:
    """Tiles that a continued run need not infer again."""
    done, axis = 0, plan.frame.sweep_axis
    for index, position in positions.items():
        box = plan.units[index].box
        done += plan.lattice.count(box)
        if position < box.stop[axis]:
            done -= len(Unit(prepared.job, prepared.engine, box, position))
    return done


def _sink(prepared: Prepared, plan: Plan, work: Path) -> OmeZarrSink:
    if (partial_path(work) / "zarr.json").exists():
        return OmeZarrSink.open(work)
    spec = plan.spec
    stack = "z" in prepared.image.axes
    size = prepared.image.pixel_size_nm
    return OmeZarrSink.create(
        work,
        plan.layout,
        classes=spec.classes,
        probabilities=prepared.probabilities,
        labels=plan.outputs.labels,
        logits=plan.outputs.logits,
        axes="zyx" if stack else "yx",
        pixel_size_nm=size,
        name=Path(prepared.image.uri).name,
        metadata={
            "tilelab": __version__,
            "model": spec.name or spec.architecture,
            "fingerprint": prepared.fingerprint,
            "normalization": prepared.normalization,
        },
    )


def _convert(work: Path, target: Path) -> None:
    """The finished OME-Zarr `work` as the file that was asked for."""
    if target.suffix == ".png":
        from tilelab.io.png_out import write_png

        write_png(work, target)
    else:
        from tilelab.io.tiff_out import write_tiff

        write_tiff(work, target)
    shutil.rmtree(work)


def _begun(target: Path, work: Path) -> Fingerprint | None:
    """The fingerprint of what an earlier run left, finished or not."""
    for path in (target, work, partial_path(work)):
        if path.exists() and (known := _known_fingerprint(path)) is not None:
            return known
    return None


def _known_fingerprint(path: Path) -> Fingerprint | None:
    """The fingerprint in a finished result; None for anything else."""
    try:
        if path.is_dir():
            metadata = read_info(path).metadata
        elif path.suffix == ".png":
            from tilelab.io.png_out import read_png_metadata

            metadata = read_png_metadata(path)
        else:
            from tilelab.io.tiff_out import read_tiff_metadata

            metadata = read_tiff_metadata(path)
    except InputError:
        return None
    fingerprint: Fingerprint | None = metadata.get("fingerprint")
    return fingerprint


class _Clock:
    """Seconds from one mark to the next."""

    def __init__(self, began: float) -> None:
        self.began = self.last = began
        self.parts: dict[str, float] = {}

    def mark(self, name: str) -> None:
        now = time.perf_counter()
        self.parts[name] = now - self.last
        self.last = now


def _report(prepared: Prepared, target: Path, stalls: Stalls, clock: _Clock, memory: int) -> dict[str, Any]:
    """Everything worth keeping of a run, ready for JSON."""
    plan, engine = prepared.plan, prepared.engine
    wall = time.perf_counter() - clock.began
    pixels = plan.pixels
    return {
        "input": prepared.image.uri,
        "output": str(target),
        "shape": list(prepared.image.shape),
        "axes": prepared.image.axes,
        "dtype": str(prepared.image.dtype),
        "pixel_size_nm": prepared.image.pixel_size_nm,
        "model": plan.spec.name or plan.spec.architecture,
        "engine": {
            "name": engine.name,
            "device": engine.device,
            "precision": engine.precision,
            "batch": engine.batch,
            **engine.versions(),
        },
        "tile": list(plan.spec.tile),
        "overlap": list(plan.spec.overlap),
        "window": plan.spec.window,
        "normalization": prepared.normalization,
        "units": len(plan.units),
        "tiles": {"inferred": stalls.tiles, "skipped": stalls.blank, "lattice": len(plan.lattice)},
        "seconds": {
            "wall": wall,
            **clock.parts,
            "engine": stalls.engine,
            "waited_for_read": stalls.read,
            "waited_for_blend": stalls.blend,
            "waited_for_write": stalls.write,
        },
        "megapixels": pixels / 1e6,
        "megapixels_per_second": pixels / 1e6 / wall,
        "memory": {"peak": peak_memory(), "before": memory, "planned": plan.memory},
        "versions": {"tilelab": __version__, "python": platform.python_version(), "platform": sys.platform},
        "notes": list(prepared.notes),
    }
