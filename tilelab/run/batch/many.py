"""Many images through one engine: `infer_many`.

Each image goes the way that `infer` takes, in one of a few threads: while one is read, planned or written, others keep
the engine busy.  What differs between them is their own: a result, a picture, a report and a row, or a failure.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilelab.engines.base import Engine
from tilelab.errors import InputError, Interrupted, OutputError, TilelabError
from tilelab.io.images.folders import gather_images
from tilelab.io.images.formats import local_path
from tilelab.io.images.slices import is_pattern
from tilelab.io.results.result import read_result
from tilelab.io.storage.claims import Write, claim
from tilelab.io.storage.member import split_member
from tilelab.io.storage.place import Place, remote_place
from tilelab.machine.disk import turn, why_unwritten
from tilelab.run.batch.names import choose_names, known_names, place_of
from tilelab.run.batch.page import check_page, write_page
from tilelab.run.batch.row import Row, digest_of, keep_report, kept_report, measure_areas, row_of
from tilelab.run.batch.shared import Engines, Turns
from tilelab.run.batch.table import check_table, read_table, write_table
from tilelab.run.cluster.devices import is_distributed
from tilelab.run.infer import claim_run, infer, segment
from tilelab.run.made import Run
from tilelab.run.options import Options, with_words
from tilelab.run.progress import Progress, Silent
from tilelab.run.sweep.flow import prompt_handover
from tilelab.run.target import FORMATS, begun_fingerprint, check_options, present, work_path
from tilelab.text import counted

if TYPE_CHECKING:
    from tilelab.run.plan.plan import Plan
    from tilelab.run.prepare import Prepared

TABLE, PAGE = "summary.csv", "summary.html"
_TABLE_SECONDS = 60.0  # from one writing of the table to the next, while images end
_MANY_KINDS, _FEW_OF_A_KIND = 8, 4
_FIRST_LOOK, _LOOK = 16, 256  # images of which one kind after the other is done


@dataclass(frozen=True)
class Outcome:
    """What became of one image of a batch.

    Attributes:
        row: as it stands in the table.
        run: as `infer` returns it; None where it failed.
        failure: why it did.
    """

    row: Row
    run: Run | None = None
    failure: Exception | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Of the result, without suffix."""
        return self.row.name

    @property
    def image(self) -> str:
        """The path or address."""
        return self.row.image

    @property
    def error(self) -> str:
        """Why it failed, in one line; empty where it did not."""
        return self.row.error


def infer_many(
    images: str | Path | Iterable[str | Path],
    model: str | Path | Engine | Callable[[Any], Any],
    folder: str | Path,
    *,
    options: Options | None = None,
    suffix: str = ".ome.zarr",
    at_once: int | None = None,
    progress: Progress | None = None,
    note: Callable[[str], None] = lambda line: None,  # noqa: ARG005
    **words: Any,
) -> Iterator[Outcome]:
    """Segment many images with one engine; yields what became of each as it ends, in no fixed order.

    >>> for done in tilelab.infer_many(["sample.tif"], "superalloy", "many", tile=256, overlap=64, device="cpu"):
    ...     print(done.name, done.error or done.run.labels.shape)
    sample (300, 400)

    Every result has the bytes that `infer` gives of its image alone.  The folder gets a result of each, its picture
    ``overviews/NAME.jpg`` and report ``reports/NAME.json``, and in the end ``summary.csv`` and ``summary.html``.  The
    same call again takes up what was stopped, skips what is finished, tries again what failed, and adds what is new.

    Args:
        images: files, folders, stores, addresses and patterns; see `gather_images`.
        model: as for `infer`.
        folder: to write to; it is made where it is missing.
        options: of every image.
        suffix: of the results, as for `infer`.
        at_once: images under way at a time; by default one more than the engine has streams.
        progress: told how far each image is.
        note: called with a line for each thing the user should know, the image's name first where it is of one.
        words: as for `infer`.

    Raises:
        TilelabError: at once, where nothing could run; what fails with one image is its outcome.
        Interrupted: Ctrl-C; the same call continues.
    """
    batch = Batch.of(images, model, folder, with_words(options or Options(), words), suffix=suffix, note=note)
    return batch.run(at_once, progress or Silent())


@dataclass
class Batch:
    """Images, their names, and where all of it goes; `run` does them."""

    names: dict[str, str]
    model: str | Path | Engine | Callable[[Any], Any]
    folder: Path
    options: Options
    suffix: str
    note: Callable[[str], None]
    rows: dict[str, Row] = field(default_factory=dict)
    classes: tuple[Any, ...] = ()
    written: float = 0.0  # when the table was, on the monotonic clock
    usual: Options | None = None  # of the first image whose tiles could be chosen
    refused: dict[str, TilelabError] = field(default_factory=dict)  # why they could not, by image

    @classmethod
    def of(
        cls,
        images: str | Path | Iterable[str | Path],
        model: str | Path | Engine | Callable[[Any], Any],
        folder: str | Path,
        options: Options,
        *,
        suffix: str = ".ome.zarr",
        note: Callable[[str], None] = lambda line: None,  # noqa: ARG005
    ) -> Batch:
        """Find the images and check what can be checked before any is opened; see `infer_many`."""
        if remote_place(folder) is not None:
            raise OutputError(f"{folder}: table, page and pictures of many images go into a local folder")
        if not any(suffix.endswith(known) for kind in FORMATS for known in kind.suffixes):
            raise OutputError(f"results cannot be named NAME{suffix}: choose .ome.zarr, .ome.tif, .png or .precomputed")
        words = [images] if isinstance(images, str | Path) else list(images)
        found, notes = gather_images([str(word) for word in words], options.stack)
        if not found:
            raise InputError("no images were given")
        path = Path(local_path(folder)).expanduser()
        claim({"the model": model if isinstance(model, str | Path) else None}, [Write(path, "-o", "into")])
        check_table(path / TABLE)
        check_page(path / PAGE)
        names = choose_names(found, known_names(path / TABLE))
        for line in notes:
            note(line)
        return cls(names, model, path, options, suffix, note)

    def target(self, image: str) -> str:
        """The path of an image's result."""
        return str(self.folder / f"{self.names[image]}{self.suffix}")

    def picture(self, name: str) -> Path:
        """The path of its picture."""
        return self.folder / "overviews" / f"{name}.jpg"

    def report(self, name: str) -> Path:
        """The path of its report."""
        return self.folder / "reports" / f"{name}.json"

    def run(self, at_once: int | None, progress: Progress) -> Iterator[Outcome]:
        """Do all images; see `infer_many`."""
        try:
            for inner in (self.folder / "overviews", self.folder / "reports"):
                inner.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.folder} cannot be written: {why_unwritten(error)}") from error
        check_options(claim_run(None, "", self.target(next(iter(self.names))), self.options), self.options)
        self._take_names()
        with contextlib.ExitStack() as stack:
            stack.callback(self.summarize)
            if is_distributed(self.options):
                yield from self._one_by_one(progress)
                return
            waiting = stack.enter_context(contextlib.closing(self._in_order()))
            image, options = next(waiting)
            engines = Engines(self.model, options, self.note)
            stack.callback(engines.close)
            self.classes = engines.first.spec.classes
            turns = Turns(options, alone=engines.first.on_device is not None)
            one = _One(self, engines, turns, _Stoppable(progress, turns))
            stack.enter_context(prompt_handover())
            first = chain([(image, options)], waiting)
            yield from self._together(one, turns, first, at_once or engines.first.streams + 1)

    def _take_names(self) -> None:
        """Put the images into the table, so that names stay, whatever becomes of this run.

        A run that began meanwhile has its names there already: no image gets one of those.
        """
        with self._turn():
            self.names = choose_names(self.names, known_names(self.folder / TABLE))
            self.rows = {name: Row(name=name, image=place_of(image)) for image, name in self.names.items()}
            self._merge_table()

    def _together(
        self, one: _One, turns: Turns, waiting: Iterator[tuple[str, Options]], at_once: int
    ) -> Iterator[Outcome]:
        """A few images at a time, the next beginning where one ends."""
        with ThreadPoolExecutor(at_once, "tilelab-image") as pool:
            under_way: set[Future[Outcome]] = set()
            try:
                while True:
                    for image, options in waiting:
                        under_way.add(pool.submit(one, image, options))
                        if len(under_way) > at_once:
                            break
                    if not under_way:
                        return
                    ended, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                    for future in ended:
                        yield self._ended(future.result())
            except KeyboardInterrupt:
                raise self.interrupted() from None
            finally:
                turns.stop()
                for future in under_way:
                    future.cancel()
                for future in wait(under_way).done:
                    if not future.cancelled() and future.exception() is None:
                        self._ended(future.result())

    def _one_by_one(self, progress: Progress) -> Iterator[Outcome]:
        """One after the other, each shared by all workers."""
        for image, name in self.names.items():
            look = _Look(self, name)
            try:
                run = infer(
                    image,
                    self.model,
                    self.target(image),
                    options=self.options,
                    progress=progress,
                    note=self.note,
                    finished=look,
                )
                yield self._ended(Outcome(look.row(image, run), run))
            except Interrupted:
                raise
            except Exception as error:  # noqa: BLE001 - it is this image's
                yield self._ended(self.failed(image, error))

    def failed(self, image: str, error: Exception) -> Outcome:
        """The outcome of an image that failed."""
        name = self.names[image]
        row = Row(name=name, image=place_of(image), status="failed", error=_reason(error))
        return Outcome(row, failure=error)

    def interrupted(self) -> Interrupted:
        """What to say of a Ctrl-C: how to go on."""
        words = f"stopped; {self.options.again()} continues"
        waiting = [name for name, row in self.rows.items() if row.status == "waiting"]
        earlier = sum((self.folder / f"{name}{self.suffix}").exists() for name in waiting)
        if self.options.restart and earlier:
            words += f", but leaves {counted(earlier, 'earlier result')} as {'it is' if earlier == 1 else 'they are'}"
        return Interrupted(f"{words} (finished results: {self.folder})")

    def _ended(self, outcome: Outcome) -> Outcome:
        if not isinstance(outcome.failure, Interrupted):
            self.rows[outcome.name] = outcome.row
        if time.monotonic() - self.written > _TABLE_SECONDS:
            with self._turn():
                self._merge_table()
        return outcome

    def _turn(self) -> contextlib.AbstractContextManager[None]:
        """Within it no other run reads or writes table and page."""
        return turn(self.folder / "reports" / ".lock")

    def _merge_table(self) -> list[Row]:
        """Write the rows of all images whose results are here, those of other runs, too; returns them."""
        rows = [*self._of_others(), *self.rows.values()]
        write_table(self.folder / TABLE, rows)
        self.written = time.monotonic()
        return rows

    def _of_others(self) -> list[Row]:
        """What the table holds of images that are not this run's: another put them there, or does so now."""
        places = {place_of(image) for image in self.names}
        there = [
            row for row in read_table(self.folder / TABLE) if row.image not in places and row.name not in self.rows
        ]
        return [row for row in there if self._is_there(row)]

    def _is_there(self, row: Row) -> bool:
        """Whether a result is, or the image that has none yet."""
        if row.status == "done":
            return (self.folder / Path(row.result).name).exists()
        file = split_member(row.image)[0]
        return remote_place(file) is not None or is_pattern(file) or Path(file).exists()

    def summarize(self) -> None:
        """Write the table and the page as far as they are known."""
        with self._turn():
            rows = self._merge_table()
            pictures = {row.name: self.picture(row.name) for row in rows if row.status == "done"}
            write_page(self.folder / PAGE, rows, pictures, self.classes)

    def _in_order(self) -> Generator[tuple[str, Options]]:
        """The images with their tiles, those of one kind together; a thread looks at the next ones meanwhile."""
        images, said = iter(self.names), False
        with ThreadPoolExecutor(1, "tilelab-scout") as scout:
            chosen = scout.submit(self._choose, list(islice(images, _FIRST_LOOK)))
            while found := chosen.result():
                chosen = scout.submit(self._choose, list(islice(images, _LOOK)))
                kinds: dict[Any, list[tuple[str, Options]]] = {}
                for image, options in found:
                    kinds.setdefault((options.model, options.batch, options.precision), []).append((image, options))
                if len(kinds) > _MANY_KINDS and len(found) < _FEW_OF_A_KIND * len(kinds) and not said:
                    said = True
                    self.note(
                        f"{len(found)} images of {len(kinds)} sizes: each size takes an engine of its own, as it does "
                        "alone; with --tile N one does for all, which is faster"
                    )
                yield from chain.from_iterable(kinds.values())

    def _choose(self, images: list[str]) -> list[tuple[str, Options]]:
        """The options of each image, with the tiles of its begun result or those that suit it, as `infer` has them."""
        from tilelab.run.autotile import choose_tile

        found: list[tuple[str, Options | None]] = []
        for image in images:
            options = begun = None
            try:
                if not self.options.restart:
                    target = claim_run(None, "", self.target(image), self.options)
                    begun = begun_fingerprint(target, work_path(target))
                options = choose_tile(self.model, image, self.options, partial(self.say, image), begun)
            except InputError:  # it is said when it is its turn
                pass
            except TilelabError as error:  # so is this, unless it is true of all of them
                self.refused[image] = error
            found.append((image, options))
        self.usual = self.usual or next((options for _, options in found if options is not None), None)
        if self.usual is None and self.refused:
            raise next(iter(self.refused.values()))
        return [(image, options or self.usual or self.options) for image, options in found]

    def say(self, image: str, line: str) -> None:
        """A line about one image."""
        self.note(f"{self.names[image]}: {line}")


@dataclass
class _Look:
    """Keeps of one finished result what only its pixels tell, unless that was done before: areas and a picture."""

    batch: Batch
    name: str
    digest: str = ""
    known: dict[str, Any] | None = None  # the report of the run that made it, if that is there
    areas: dict[str, float] = field(default_factory=dict)

    def __call__(self, prepared: Prepared, work: Place) -> None:
        """Look at a result before it becomes a file."""
        batch, self.digest = self.batch, digest_of(prepared.fingerprint)
        batch.classes = batch.classes or prepared.engine.spec.classes
        self.known = kept_report(batch.report(self.name), self.digest)
        self.areas = self.known["areas"] if self.known else {}
        if not present(work):
            return
        if self.known is None:
            self.areas = measure_areas(read_result(work))
        written = prepared.plan.request.written
        drawn = written.labels or written.probabilities
        if drawn and (self.known is None or not batch.picture(self.name).exists()):
            from tilelab.io.results.overview import write_thumbnail

            write_thumbnail(prepared.image, work, batch.picture(self.name))

    def row(self, image: str, run: Run) -> Row:
        """The row of the run that is over, whose report is kept."""
        known = self.known
        if known is None or not run.already_finished:
            keep_report(self.batch.report(self.name), run.report, self.digest, self.areas)
        report = known if known is not None and run.already_finished else run.report
        timed = not report.get("already_finished", False)
        return row_of(self.name, place_of(image), report, self.areas, timed=timed)


@dataclass(frozen=True)
class _One:
    """Does one image in the thread that calls it; never raises."""

    batch: Batch
    engines: Engines
    turns: Turns
    progress: Progress

    def __call__(self, image: str, options: Options) -> Outcome:
        name = self.batch.names[image]
        try:
            self.turns.check()
            if (refused := self.batch.refused.get(image)) is not None:
                raise refused
            with self.engines.use(options) as engine:
                return self._infer(image, name, options, engine)
        except Exception as error:  # noqa: BLE001 - it is this image's, whatever it is
            return self.batch.failed(image, error)

    def _infer(self, image: str, name: str, options: Options, engine: Engine) -> Outcome:
        batch, look = self.batch, _Look(self.batch, name)
        target = claim_run(image, batch.model, batch.target(image), options)
        run = segment(
            image,
            engine,
            target,
            options,
            progress=self.progress,
            note=partial(batch.say, image),
            turn=self.turns.turn,
            finished=look,
        )
        return Outcome(look.row(image, run), run)


class _Stoppable:
    """Progress of a sweep that ends where the batch is to stop; implements `Progress`."""

    def __init__(self, progress: Progress, turns: Turns) -> None:
        self._progress, self._turns = progress, turns

    def start(self, plan: Plan, tiles_done: int) -> None:
        self._progress.start(plan, tiles_done)

    def advance(self, tiles: int) -> None:
        self._turns.check()
        self._progress.advance(tiles)

    def stop(self) -> None:
        self._progress.stop()


def _reason(error: Exception) -> str:
    """Why an image failed, in one line."""
    if isinstance(error, TilelabError):
        text = str(error)
    elif isinstance(error, OSError):
        text = f"{error.filename or ''}: {error.strerror or error}".removeprefix(": ")
    else:
        text = f"{type(error).__name__}: {error}"
    return " ".join(text.split())
