"""All units of a prepared job, into a result on disk, from where an earlier run stopped to the end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec

from tilelab.errors import Interrupted, OutputError, TilelabError
from tilelab.geometry import Box, Cuts
from tilelab.io.results.ome_zarr import OmeZarrSink
from tilelab.io.results.sink import Sink, partial_path
from tilelab.io.storage.place import Place
from tilelab.machine.version import __version__
from tilelab.run.journal.local import Journal
from tilelab.run.journal.open import open_journal
from tilelab.run.options import Options
from tilelab.run.plan.plan import Plan
from tilelab.run.prepare import Prepared, plan_request
from tilelab.run.progress import Progress
from tilelab.run.sweep.job import Stalls
from tilelab.run.sweep.start import make_sweep


@dataclass(frozen=True)
class Execution:
    """What was done: by which plan, that of the run which began the result, and where the time went.

    Without stalls nothing was.
    """

    plan: Plan
    stalls: Stalls = field(default_factory=Stalls)


SweepUnits = Callable[[Prepared, Plan, OmeZarrSink, Journal, Progress], Stalls]


def execute(
    prepared: Prepared,
    target: Place,
    work: Place,
    options: Options,
    progress: Progress,
    note: Callable[[str], None],
    sweep: SweepUnits | None = None,
) -> Execution:
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
    unfinished = partial_path(work)
    try:
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        split = {"extents": [c.extent for c in prepared.plan.units.cuts]}
        journal = open_journal(unfinished, prepared.fingerprint, split)
    except OSError as error:
        raise OutputError(f"cannot write {unfinished}: {error.strerror or error}") from error
    try:
        plan = _begun_plan(prepared.plan, journal, options)
        sink = _sink(prepared, plan, work)
        done = _tiles_done(plan, journal.positions)
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
    return Execution(plan, stalls)


def _begun_plan(plan: Plan, journal: Journal, options: Options) -> Plan:
    """`plan`, cut as the run that began the result had cut it."""
    if not journal.resumed:
        return plan
    cuts = tuple(Cuts(n, e) for n, e in zip(plan.source.shape, journal.split["extents"], strict=True))
    return plan if cuts == plan.units.cuts else plan_request(plan.request, options, cuts)


def sweep_units(prepared: Prepared, plan: Plan, sink: Sink, journal: Journal, progress: Progress) -> Stalls:
    """Every unfinished unit, one after the other, in this process."""
    axis = plan.frame.sweep_axis
    stalls = Stalls()
    for unit in plan.units:
        start = journal.positions.get(unit.index, unit.box.start[axis])
        if start < unit.box.stop[axis]:
            record = partial(journal.record, unit.index)
            writer = sink.writer(unit.box, start, axis)
            sweep = make_sweep(prepared.job, prepared.engine, unit.box, start)
            stalls.add(sweep.run(writer, record, progress.advance))
    return stalls


def _tiles_done(plan: Plan, positions: Mapping[int, int]) -> int:
    """Tiles that a continued run need not infer again."""
    done, axis = 0, plan.frame.sweep_axis
    for index, position in positions.items():
        box = plan.units[index].box
        done += plan.lattice.count(box)
        if position < box.stop[axis]:
            rest = Box(tuple(position if a == axis else n for a, n in enumerate(box.start)), box.stop)
            done -= plan.lattice.count(rest)
    return done


def _sink(prepared: Prepared, plan: Plan, work: Place) -> OmeZarrSink:
    if OmeZarrSink.begun(work):
        return OmeZarrSink.open(work)
    spec, written, fingerprint = plan.spec, plan.request.written, prepared.fingerprint
    stack = "z" in prepared.image.axes
    return OmeZarrSink.create(
        work,
        plan.layout,
        classes=spec.classes,
        probabilities=written.probabilities,
        labels=written.labels,
        logits=written.logits,
        axes="zyx" if stack else "yx",
        pixel_size_nm=prepared.image.pixel_size_nm,
        origin_px=prepared.image.origin_px,
        name=Path(prepared.image.uri).name,
        metadata={
            "tilelab": __version__,
            "model": spec.name or spec.architecture,
            "fingerprint": fingerprint.document(),
            "normalization": prepared.normalization,
            **({"assumptions": msgspec.to_builtins(prepared.assumptions)} if prepared.assumptions else {}),
            **({} if (region := fingerprint.input.get("region")) is None else {"region": region}),
        },
    )
