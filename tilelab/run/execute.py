"""All units of a prepared job, into a result on disk, from where an earlier run stopped to the end."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from tilelab.errors import Interrupted, OutputError, TilelabError
from tilelab.geometry import Box, Cuts
from tilelab.io.images.slices import is_pattern
from tilelab.io.results.ome_zarr import OmeZarrSink
from tilelab.io.results.sink import Sink, Stored, StoringWriter, partial_path
from tilelab.io.storage.member import split_member
from tilelab.io.storage.place import Place
from tilelab.machine.disk import why_unwritten
from tilelab.machine.version import __version__
from tilelab.run.journal.local import Journal
from tilelab.run.journal.open import open_journal
from tilelab.run.options import Options
from tilelab.run.plan.plan import Plan
from tilelab.run.prepare import Prepared, check_unchanged, plan_request
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


_CHEAP = 4 << 30  # bytes of a begun result that are read again when it is continued: seconds
_CHEAP_REMOTE = 64 << 20

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
    journal = journal_of(prepared, work)
    try:
        plan, sink = take_up(prepared, journal, work, options, note)
        done = _tiles_done(plan, journal.positions)
        if journal.positions:
            note(f"continuing {target}: {done / plan.tiles:.0%} was finished by an earlier run")
        progress.start(plan, done)
        stalls = (sweep or sweep_units)(prepared, plan, sink, journal, progress)
        check_unchanged(prepared, options)
        _check_whole(journal, plan, sink)
        if os.name == "nt":  # an open file keeps its folder from being renamed
            journal.close()
        sink.finalize(replace=options.restart)
        journal.finish(work)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {options.again(target)} continues (unfinished result: {unfinished})") from None
    except TilelabError:
        drop_empty(journal, unfinished)
        raise
    finally:
        journal.close()
        progress.stop()
    return Execution(plan, stalls)


def journal_of(prepared: Prepared, work: Place) -> Journal:
    """The journal of the result at `work`, taken up or begun; the caller closes it.

    Raises:
        OutputError: another run has it, or the place cannot be written.
        ResumeError: it is another job's.
    """
    unfinished = partial_path(work)
    try:
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        split = {"extents": [c.extent for c in prepared.plan.units.cuts]}
        return open_journal(unfinished, prepared.fingerprint, split)
    except OSError as error:
        raise OutputError(f"cannot write {unfinished}: {why_unwritten(error)}") from error


def take_up(
    prepared: Prepared, journal: Journal, work: Place, options: Options, note: Callable[[str], None]
) -> tuple[Plan, OmeZarrSink]:
    """The plan of the run that began the result, and its sink; what is left of that run is looked at."""
    plan = _begun_plan(prepared, journal, options)
    if plan is not prepared.plan:
        axes = (("--lanes", options.lanes, 2), ("--spans", options.spans, plan.frame.sweep_axis))
        for flag, asked, axis in axes:
            if asked is not None and (have := len(plan.units.cuts[axis])) != asked:
                note(f"{flag} {asked} does nothing: the result was begun with {have}")
    sink = _sink(prepared, plan, work, options)
    _trust(journal, plan, sink, note)
    return plan, sink


def drop_empty(journal: Journal, unfinished: Place) -> None:
    """Remove an unfinished result of which nothing was finished: nothing is lost."""
    if not journal.records:
        with contextlib.suppress(OSError):
            journal.abandon(unfinished)


def _begun_plan(prepared: Prepared, journal: Journal, options: Options) -> Plan:
    """The plan, cut as the run that began the result had cut it."""
    plan = prepared.plan
    if not journal.begun:
        return plan
    cuts = tuple(Cuts(n, e) for n, e in zip(plan.source.shape, journal.split["extents"], strict=True))
    return plan if cuts == plan.units.cuts else plan_request(plan.request, options, cuts).on(prepared.engine)


def _trust(journal: Journal, plan: Plan, sink: Sink, note: Callable[[str], None]) -> None:
    """Look at what earlier runs left before it is taken for finished.

    Files must be there in number and size.  What they hold is read where that is cheap, and always where the machine
    was started anew meanwhile: a power failure can leave files that have their size and not their content.
    """
    if not journal.begun:
        return
    size = sum(part.census.bytes for parts in journal.records.values() for part in parts)
    contents = size <= (_CHEAP_REMOTE if sink.waits else _CHEAP) or (journal.restarted and not sink.waits)

    def is_there(unit: int, part: Stored) -> bool:
        now = sink.census(_part(plan, unit, part), contents=contents)
        return bool(now == part.census) if contents else now.sizes == part.census.sizes

    spoiled = journal.trust(plan.units, plan.frame.sweep_axis, is_there)
    if spoiled:
        note(f"{spoiled} of {len(journal.records)} begun units were not as they had been written: they are done again")


def _check_whole(journal: Journal, plan: Plan, sink: Sink) -> None:
    """Refuse to call a result finished of which something was removed while it was written.

    Raises:
        OutputError: it is not whole.
    """
    if sink.waits:  # a request for every object; stores do not lose what they took
        return
    for unit in plan.units:
        for part in journal.records.get(unit.index, ()):
            if sink.census(_part(plan, unit.index, part), contents=False).sizes != part.census.sizes:
                raise OutputError(
                    f"files of the unfinished result were changed or removed while it was written ({sink.partial}): "
                    "the same command does again what is missing"
                )


def _part(plan: Plan, unit: int, part: Stored) -> Box:
    """The rows of a unit between two sweep positions."""
    box, axis = plan.units[unit].box, plan.frame.sweep_axis
    start, stop = (tuple(at if a == axis else n for a, n in enumerate(end))
                   for at, end in ((part.start, box.start), (part.stop, box.stop)))  # fmt: skip
    return Box(start, stop)


def _record(journal: Journal, unit: int, writer: StoringWriter, _position: int) -> None:
    journal.record(unit, writer.stored)


def sweep_units(prepared: Prepared, plan: Plan, sink: Sink, journal: Journal, progress: Progress) -> Stalls:
    """Every unfinished unit, one after the other, in this process."""
    axis = plan.frame.sweep_axis
    stalls = Stalls()
    for unit in plan.units:
        start = journal.positions.get(unit.index, unit.box.start[axis])
        if start < unit.box.stop[axis]:
            writer = sink.writer(unit.box, start, axis)
            sweep = make_sweep(prepared.job, prepared.engine, unit.box, start)
            stalls.add(sweep.run(writer, partial(_record, journal, unit.index, writer), progress.advance))
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


def _sink(prepared: Prepared, plan: Plan, work: Place, options: Options) -> OmeZarrSink:
    assumed = _assumed(prepared, options)
    if OmeZarrSink.begun(work):
        sink = OmeZarrSink.open(work)
        told = {key: value for key, value in sink.info.metadata.items() if key != "assumptions"}
        sink.info = msgspec.structs.replace(sink.info, metadata=told | assumed)  # `view` begins with fewer
        sink.write_documents()
        return sink
    spec, written, fingerprint = plan.spec, plan.request.written, prepared.fingerprint
    stack = "z" in prepared.image.axes
    return OmeZarrSink.create(
        work,
        plan.layout,
        classes=spec.classes,
        probabilities=written.probabilities,
        labels=written.labels,
        logits=written.logits,
        maps=written.maps,
        axes="zyx" if stack else "yx",
        pixel_size_nm=prepared.image.pixel_size_nm,
        origin_px=prepared.image.origin_px,
        name=Path(prepared.image.uri).absolute().name,
        metadata={
            "tilelab": __version__,
            "model": spec.name or spec.architecture,
            "fingerprint": fingerprint.document(),
            "normalization": prepared.normalization,
            **_where_image(prepared, work, options),
            **({} if spec.activation == "softmax" else {"activation": spec.activation}),
            **({} if (region := fingerprint.input.get("region")) is None else {"region": region}),
            **assumed,
        },
    )


def _assumed(prepared: Prepared, options: Options) -> dict[str, Any]:
    """What was assumed, of files by their names alone: the bytes do not depend on where they are and who named them."""
    named = (prepared.image.uri, prepared.named, options.mask)
    files = {split_member(str(one))[0] for one in named if isinstance(one, str | Path) and "://" not in str(one)}
    places = {Path(file) for file in files} | {Path(file).parent for file in files if is_pattern(file)}
    texts = [str(place) for place in places] + [file for file in files if file]
    kept = [msgspec.to_builtins(one) for one in prepared.assumptions]
    for place in sorted(texts, key=len, reverse=True):
        kept = [{key: _without_place(text, place) for key, text in one.items()} for one in kept]
    return {"assumptions": kept} if kept else {}


def _without_place(text: str, place: str) -> str:
    """A text with a file or folder by its name, and what lies in it by its own."""
    name, whole = Path(place).absolute().name, rf"(?<!\S){re.escape(place)}"
    return re.sub(rf"{whole}(?=[\s,:;(\[]|$)", lambda _: name, re.sub(rf"{whole}[/\\](?=\S)", "", text))


def _where_image(prepared: Prepared, work: Place, options: Options) -> dict[str, dict[str, Any]]:
    """Where the image is and how it was opened, so that viewers find it; nothing of an array.

    On a disk it is told from the result's folder: the bytes do not depend on where both are, and tell nobody.
    """
    if not isinstance(prepared.named, str | Path):
        return {}
    uri = prepared.image.uri
    if "://" in uri:
        uri = uri.partition("?")[0]  # what follows may be a secret
    path = uri
    if "://" not in uri:
        file, member = split_member(uri)
        path = str(Path(file).absolute())
        with contextlib.suppress(ValueError):  # another drive
            path = path if work.waits else Path(os.path.relpath(path, str(work.parent))).as_posix()
        path += f"::{member}" if member else ""
    names = ("level", "series", "channel", "timepoint", "axes", "pixel_size_nm")
    chosen: dict[str, Any] = {name: value for name in names if (value := getattr(options, name))}
    if options.channel == 0:
        chosen["channel"] = 0
    return {"image": {"path": path, **chosen}}
