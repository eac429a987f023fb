"""The main job: an image of any size and a model in, a finished result out; resumable at any moment.

`infer` is the whole story: open, plan, claim the output, sweep every unit, finalize, report.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilelab.assumptions import check_strict
from tilelab.engines.base import Engine
from tilelab.engines.registry import model_files, read_spec
from tilelab.errors import Interrupted, OutputError, TilelabError
from tilelab.io.results.sink import partial_path
from tilelab.io.storage.claims import Kind, Write, claim
from tilelab.io.storage.place import Address, Place
from tilelab.machine.memory import resident_memory
from tilelab.run.cluster.devices import is_distributed
from tilelab.run.made import Run
from tilelab.run.options import Options, load, with_words
from tilelab.run.progress import Progress, Silent
from tilelab.run.target import (
    asks_for_probabilities,
    begun_before,
    begun_fingerprint,
    check_format,
    check_options,
    clear_way,
    convert_result,
    held_work,
    is_finished,
    left_behind,
    output_path,
    present,
    work_path,
)

if TYPE_CHECKING:
    from tilelab.io.images.image import Image
    from tilelab.run.cluster.crew import Crew
    from tilelab.run.plan.plan import Plan
    from tilelab.run.prepare import Prepared
    from tilelab.run.sheet import Sheet

Turn = Callable[["Plan"], contextlib.AbstractContextManager[None]]
OVERVIEW_PX = 1600
_FILES = (".tif", ".tiff", ".png")

# What needs Numba is imported in the functions: `infer` loads the engine meanwhile.


def infer(
    image: Any,
    model: str | Path | Engine | Callable[[Any], Any],
    out: Address | None = None,
    *,
    options: Options | None = None,
    overview: str | Path | None = None,
    overview_size: int = OVERVIEW_PX,
    page: str | Path | None = None,
    progress: Progress | None = None,
    note: Callable[[str], None] = lambda line: None,  # noqa: ARG005
    finished: Callable[[Prepared, Place], None] | None = None,
    **words: Any,
) -> Run:
    """Segment an image of any size; returns the path of the result and the report.

    Args:
        image: path or URI of anything `open_image` reads, an `Image`, a NumPy or Dask array.
        model: path of a model, name of a bundled one, a loaded engine (which is then the caller's to close), or a torch
            module or any other function of batches.
        out: result to write: ``.ome.zarr`` (default ``IMAGE.MODEL.ome.zarr``, in the current folder), ``.ome.tif`` or
            ``.png``, or ``.precomputed`` (neuroglancer); or ``s3://.../NAME.ome.zarr``, ``gs://...``.
        options: everything else.
        overview: PNG or JPEG to draw, the image with the segmentation over it; `overview_size` pixels at most a side.
        page: HTML file to write: picture, areas, times, what was assumed, all in one.
        progress: told how far the run is.
        note: called with one line for each thing the user should know.
        finished: called with the job and the OME-Zarr of its result before that becomes a file, or where it was.
        words: options by their names, and what there is to say of the model: ``tile=512, mean=128, std=33``; see
            `Options` and `SpecOverrides`.

    Raises:
        TilelabError: something does not fit, cannot be read or written; nothing half-written is left under the final
            name, and what was finished is kept for the next try.
        Interrupted: Ctrl-C; the same call continues.
    """
    began, progress = time.perf_counter(), progress or Silent()
    options = with_words(options or Options(), words)
    target = claim_run(image, model, out, options, overview=overview, page=page)
    check_options(target, options)
    if out is None and (earlier := begun_before(target, model)) is not None:
        note(f"{partial_path(earlier)} was begun under the name that results had before: -o {earlier} continues it")
    work = work_path(target)
    with _resumable(target, work, options), contextlib.ExitStack() as opened:
        options = _choose_tile(model, image, options, note, target, work)
        options, engine, crew = _open_engine(model, image, options, note, opened)
        return segment(
            image,
            engine,
            target,
            options,
            overview=overview,
            overview_size=overview_size,
            page=page,
            progress=progress,
            note=note,
            crew=crew,
            finished=finished,
            began=began,
        )


@contextlib.contextmanager
def _resumable(target: Place, work: Place, options: Options) -> Iterator[None]:
    """Ctrl-C before the first unit, too, is `Interrupted` where an earlier run left something to go on from."""
    try:
        yield
    except KeyboardInterrupt:
        left = None
        with contextlib.suppress(OSError, TilelabError):
            left = left_behind(target, work)
        if left is None:
            raise
        raise Interrupted(f"stopped; {options.again(target)} continues ({left})") from None


@contextlib.contextmanager
def _finishing(target: Place, work: Place, options: Options) -> Iterator[None]:
    """Ctrl-C after the last unit, while a file or a picture is made, costs these alone."""
    try:
        yield
    except KeyboardInterrupt:
        again = options.again(None if target == work else target)  # the Zarr itself is this run's by now
        raise Interrupted(f"stopped; {again} continues (all of {target} is segmented)") from None


def segment(
    image: Any,
    engine: Engine,
    target: Place,
    options: Options,
    *,
    overview: str | Path | None = None,
    overview_size: int = OVERVIEW_PX,
    page: str | Path | None = None,
    progress: Progress,
    note: Callable[[str], None],
    crew: Crew | None = None,
    turn: Turn | None = None,
    finished: Callable[[Prepared, Place], None] | None = None,
    began: float | None = None,
) -> Run:
    """What `infer` does once the place is claimed and the engine is loaded.

    Args:
        image, options, overview, overview_size, page, progress, note: as for `infer`.
        engine: loaded, and left open.
        target: of the result.
        crew: workers that do the units.
        turn: opened with the plan, and held while the units are done.
        finished: called with the job and the OME-Zarr of its result before that becomes a file, or where it was.
        began: when the run did, on the clock of `time.perf_counter`.

    Raises:
        TilelabError, Interrupted: as `infer`.
    """
    from tilelab.run.execute import Execution, execute
    from tilelab.run.prepare import prepare
    from tilelab.run.report import Clock, make_report

    work = work_path(target)
    memory, clock = resident_memory(), Clock(time.perf_counter() if began is None else began)
    with prepare(image, engine, options) as prepared, contextlib.ExitStack() as holding:
        for said in (*prepared.notes, *prepared.assumptions):
            note(str(said))
        check_format(target, prepared.plan, overview)
        if target != work and asks_for_probabilities(options):
            prepared = replace(prepared, fingerprint=prepared.fingerprint.of_file("with probabilities"))
        done = is_finished(target, work, prepared.fingerprint, options.restart)
        clear_way(target, work, prepared.fingerprint, options.restart)
        clock.mark("start")
        execution = Execution(prepared.plan)
        if not done and (options.restart or not present(work)):
            prepared = _compare_with_training(prepared, options, note, hint=turn is None)
            sweep = None if crew is None else crew.sweep_units
            with contextlib.nullcontext() if turn is None else turn(prepared.plan):
                execution = execute(prepared, target, work, options, progress, note, sweep)
            clock.mark("sweep")
        holding.enter_context(_finishing(target, work, options))
        if not done:
            holding.enter_context(held_work(target, work))
        if options.with_image:
            from tilelab.io.results.with_image import add_image

            add_image(work, prepared.image)
            clock.mark("with image")
        if overview is not None:
            _draw_overview(prepared.image, target, work, overview, overview_size, note)
            clock.mark("overview")
        sheet = None if page is None else _draw_sheet(prepared.image, target, work, note)
        if sheet is not None:
            clock.mark("page")
        if finished is not None:
            finished(prepared, work)
        if not done and work != target:
            convert_result(work, target, options)
            clock.mark("convert")
        workers = None if crew is None else crew.summary
        report = make_report(prepared, execution, target, clock, memory, workers, already_finished=done)
        if sheet is not None and page is not None:
            sheet.write(Path(page), report.document())
        return Run(target, report.document(), already_finished=done)


def _compare_with_training(
    prepared: Prepared, options: Options, note: Callable[[str], None], *, hint: bool
) -> Prepared:
    """`prepared` with what has to be assumed of an image that is unlike those of the training; see `look_at_kind`.

    Raises:
        StrictError: nothing may be assumed.
    """
    from tilelab.run.kind.suit import look_at_kind

    hints: list[str] = []
    constants = prepared.job.mean, prepared.job.gain
    unlike = look_at_kind(prepared.image, prepared.engine, options, *constants, hints.append if hint else None)
    check_strict(unlike, options.strict)
    for said in (*unlike, *hints):
        note(str(said))
    return replace(prepared, assumptions=prepared.assumptions + unlike, notes=(*prepared.notes, *hints))


def claim_run(
    image: Any,
    model: object,
    out: Address | None,
    options: Options,
    *,
    overview: str | Path | None = None,
    report: str | Path | None = None,
    page: str | Path | None = None,
) -> Place:
    """The result's place, when a run may write there and wherever else it is asked to; nothing is opened.

    Raises:
        OutputError: it would overwrite what it reads, or something that is there, or cannot write.
    """
    target = output_path(image, out, model)
    work = work_path(target)
    drawn: Kind = "png"
    if overview is not None:
        drawn = check_picture(overview)
    reads = {"the image": image, "the model": model_files(model), "--mask": options.mask}
    if page is not None and Path(page).suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"--page {page}: it is a page, name it .html")
    files = [Write(overview, "--overview", drawn), Write(report, "--report", "json"), Write(page, "--page", "html")]
    for place in (target, work, partial_path(work)):
        claim(reads, [Write(place, "-o", "result" if place == target and place.suffix in _FILES else "folder"), *files])
    return target


def check_picture(overview: str | Path) -> Kind:
    """The kind of picture that a name means.

    Raises:
        OutputError: none.
    """
    suffix = Path(overview).suffix.lower()
    if suffix not in (".png", ".jpg", ".jpeg"):
        raise OutputError(f"--overview {overview}: it is a PNG or a JPEG, name it .png or .jpg")
    return "png" if suffix == ".png" else "jpeg"


def plan(image: Any, model: str | Path, *, options: Options | None = None) -> Plan:
    """What `infer` would do; nothing is computed or written.

    No engine is loaded: its memory is that of as many batches at once as there are cores.

    Raises:
        TilelabError: image and model do not fit, or a limit would be exceeded.
    """
    from tilelab.run.autotile import choose_work
    from tilelab.run.opening import open_source
    from tilelab.run.prepare import expected_streams, plan_image

    options = choose_work(model, image, options or Options(), lambda line: None, measure=False).options  # noqa: ARG005
    spec = read_spec(model, options.model)
    assert spec is not None  # noqa: S101 - it is only None without overrides
    with open_source(image, options, spec) as opened:
        return plan_image(opened.image, spec, options, options.batch or 1, expected_streams(options))


def _choose_tile(
    model: object, image: Any, options: Options, note: Callable[[str], None], target: Place, work: Place
) -> Options:
    """`options` with the tiles that suit the image, or those of the result that is to be continued."""
    from tilelab.run.autotile import choose_tile

    return choose_tile(model, image, options, note, None if options.restart else begun_fingerprint(target, work))


def _open_engine(
    model: str | Path | Engine | Callable[[Any], Any],
    image: Any,
    options: Options,
    note: Callable[[str], None],
    opened: contextlib.ExitStack,
) -> tuple[Options, Engine, Crew | None]:
    """The engine, loaded here or in workers, and the options as they understand them; `opened` closes what is ours."""
    if not is_distributed(options):
        if not isinstance(model, str | Path) and not callable(model):
            return options, model, None
        return options, load_and_warm_up(model, options, opened, note), None
    from tilelab.run.cluster.crew import open_crew

    if isinstance(image, str | Path) and isinstance(model, str | Path):
        plan(image, model, options=options)  # what can be refused is refused before any worker starts
    crew = opened.enter_context(open_crew(image, model, options, note))
    return crew.options, crew.engine, crew


def _draw_overview(
    image: Image, target: Place, work: Place, overview: str | Path, size: int, note: Callable[[str], None]
) -> None:
    """Draw the image with the segmentation over it, if that is still there as OME-Zarr."""
    if not present(work):
        note(f"no overview: it is drawn when {target} is made; --restart makes it anew")
        return
    from tilelab.io.results.overview import write_overview

    write_overview(image, work, overview, max_side=size)


def _draw_sheet(image: Image, target: Place, work: Place, note: Callable[[str], None]) -> Sheet | None:
    """What the page shows of the result, if that is still there as OME-Zarr."""
    if not present(work):
        note(f"no page: it is made when {target} is; --restart makes it anew")
        return None
    from tilelab.run.sheet import Sheet

    return Sheet.of(image, work)


def load_and_warm_up(
    model: str | Path | Callable[[Any], Any],
    options: Options,
    opened: contextlib.ExitStack,
    note: Callable[[str], None],
) -> Engine:
    """The engine, loaded while Numba is imported and the kernels are made ready: each takes about a second.

    `opened` closes it; until then `note` is told where kernels have to be compiled.
    """
    with ThreadPoolExecutor(1, "tilelab-load") as pool:
        loading = pool.submit(load, model, options)
        from tilelab.kernels.jit import tell_compiling
        from tilelab.kernels.warm import warm_up

        opened.enter_context(tell_compiling(note))
        warm_up()
        engine = loading.result()
    opened.callback(engine.close)
    return engine
