"""All units of a prepared job, into a result on disk, from where an earlier run stopped to the end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from tilelab.errors import Interrupted, OutputError, TilelabError
from tilelab.geometry import Cuts
from tilelab.io.results.ome_zarr import OmeZarrSink
from tilelab.io.results.sink import Sink, partial_path
from tilelab.io.storage.place import Place
from tilelab.machine.version import __version__
from tilelab.run.journal.local import Journal
from tilelab.run.journal.open import open_journal
from tilelab.run.options import Options
from tilelab.run.plan.plan import Plan
from tilelab.run.prepare import Prepared, plan_image
from tilelab.run.progress import Progress
from tilelab.run.sweep.host import Unit
from tilelab.run.sweep.job import Stalls
from tilelab.run.sweep.start import make_unit

SweepUnits = Callable[[Prepared, Plan, OmeZarrSink, Journal, Progress], Stalls]


def execute(
    prepared: Prepared,
    target: Place,
    work: Place,
    options: Options,
    progress: Progress,
    note: Callable[[str], None],
    sweep: SweepUnits | None = None,
) -> Stalls:
    """All units into `work`, continuing where an earlier run stopped.

    Args:
        prepared: the job.
        target: the result's final name, for messages.
        work: the OME-Zarr folder; unfinished it has another name, but for a remote one.
        options: of the run.
        progress: told how far it is.
        note: told what the user should know.
        sweep: does the units; by default one after the other in this process.

    Raises:
        TilelabError: a stage failed; what was finished is kept.
        Interrupted: Ctrl-C.
    """
    plan = prepared.plan
    unfinished = partial_path(work)
    try:
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        journal = open_journal(unfinished, prepared.fingerprint, {"extents": [c.extent for c in plan.units.cuts]})
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
        stalls = (sweep or sweep_units)(prepared, plan, sink, journal, progress)
        if options.restart and work.renames:
            work.remove_tree()
        if os.name == "nt":  # an open file keeps its folder from being renamed
            journal.close()
        sink.finalize()
        journal.finish(work)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; the same command continues (unfinished result: {unfinished})") from None
    except TilelabError:
        if not journal.positions:  # nothing was finished, so nothing is lost
            journal.close()
            with contextlib.suppress(OSError):
                unfinished.remove_tree()
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
            sweep = make_unit(prepared.job, prepared.engine, unit.box, start)
            stalls.add(sweep.run(writer, record, progress.advance))
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


def _sink(prepared: Prepared, plan: Plan, work: Place) -> OmeZarrSink:
    if OmeZarrSink.begun(work):
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
        origin_px=prepared.image.origin_px,
        name=Path(prepared.image.uri).name,
        metadata={
            "tilelab": __version__,
            "model": spec.name or spec.architecture,
            "fingerprint": prepared.fingerprint,
            "normalization": prepared.normalization,
            **({"assumptions": msgspec.to_builtins(prepared.assumptions)} if prepared.assumptions else {}),
            **({} if (region := prepared.fingerprint["input"].get("region")) is None else {"region": region}),
        },
    )
