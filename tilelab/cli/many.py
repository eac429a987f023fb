"""What commands share that take many images: whether there are many, and what people see of them."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from tilelab.cli.pace import Pace
from tilelab.cli.screen import duration, say
from tilelab.cli.terminal import drawn
from tilelab.errors import InputError, OutputError
from tilelab.io.images.folders import evident_stack, expand_word, holds_images_quietly, list_images
from tilelab.run.options import Options
from tilelab.run.target import SUFFIXES

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from tilelab.run.batch.many import Outcome
    from tilelab.run.plan.plan import Plan

FORMATS = ("ome.zarr", "ome.tif", "png", "precomputed")
_NAMED = 20


def name_many(words: list[str], out: str | None, options: Options) -> bool:
    """Whether a command line names many images: several words, or a folder or pattern that is no stack.

    Raises:
        InputError: several words were to be one stack.
    """
    many = len(words) > 1 or expand_word(words[0]) != words
    if many and options.stack:
        raise InputError(f"--stack takes one folder, or one pattern in quotes: name it, {len(words)} were given")
    if not many and not says_stack(words, out, options) and holds_images_quietly(words[0]):
        many = options.stack is False or (evident_stack(words[0]) is None and len(list_images(words[0])[1]) > 1)
    return many


def are_many(words: list[str], out: str | None, options: Options, flag: str = "-o FOLDER") -> bool:
    """Whether results go into a folder: those of `name_many`, or one, as `out` names a folder, which `flag` does.

    Raises:
        OutputError: there are many, and `out` is no folder.
        InputError: as `name_many`.
    """
    many = name_many(words, out, options)
    if many and (out is None or out.endswith(SUFFIXES)):
        what = "nothing says where to" if out is None else f"{out} holds one result"
        raise OutputError(
            f"{' '.join(words[:3])}{' ...' if len(words) > 3 else ''} are many images, {what}: give a folder, {flag}"
            + ("" if len(words) > 1 else ", or say with --stack that they are slices of one")
        )
    if many or out is None or out.endswith(SUFFIXES):
        return many
    return os.path.isdir(out) or out.endswith("/") or holds_images_quietly(words[0])  # noqa: PTH112


def says_stack(words: list[str], out: str | None, options: Options) -> bool:
    """Whether it was said that a folder is one stack: by axes with a z, too, or where one result is to be of it."""
    one = out is not None and out.endswith(SUFFIXES) and len(words) == 1
    return bool(options.stack) or (options.stack is None and (one or "z" in (options.axes or "").lower()))


def one_stack(word: str, out: str | None, options: Options) -> bool | None:
    """What `Options.stack` is for one image: a folder of which one result is to be is a stack, evident or not."""
    said = says_stack([word], out, options) and holds_images_quietly(word) and evident_stack(word) is None
    return True if said else options.stack


class Notes:
    """Says each line once that differs in the image's name alone; the end says how many it was true of."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def __call__(self, line: str) -> None:
        """A line that begins with the name of its image, or is of all."""
        name, colon, text = line.partition(": ")
        key = re.sub(rf"\S*{re.escape(name)}\S*", "...", text) if colon else line
        with self._lock:
            self._count[key] += 1
            if self._count[key] == 1:
                self._first[key] = line
                say(line)

    def end(self) -> None:
        """Say of how many images what was said of one was true."""
        for key, count in self._count.items():
            if count > 1:
                say(f"{self._first[key]} (and so {count - 1} more)")


class ManyBar:
    """Images done, failed, MP/s and time left: a bar on a terminal, a line a minute anywhere else.

    Implements `tilelab.run.progress.Progress`.
    """

    def __init__(self, total: int) -> None:
        self._pixels = 0.0
        self._per_tile: dict[int, float] = {}
        self._failed = 0
        self._began = time.perf_counter()
        self._total, self._ended = total, 0
        self._pace = Pace("segmenting")
        self._pace.begin()
        self._bar: Bar | None = None
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Remaining

        self._bar = Progress(
            TextColumn("segmenting"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            Remaining(elapsed_when_finished=False),
            console=Console(file=drawn(sys.stderr)),
            refresh_per_second=4,
        )
        self._task: Any = self._bar.add_task("", total=total, said="")
        self._bar.start()

    def start(self, plan: Plan, tiles_done: int) -> None: ...
    def advance(self, tiles: int) -> None: ...
    def stop(self) -> None: ...

    def ended(self, outcome: Outcome) -> None:
        """One more image is done, or has failed."""
        self._failed += bool(outcome.error)
        if outcome.run is not None and not outcome.run.already_finished:
            self._pixels += outcome.run.report["megapixels"]
        self._ended += 1
        failed = f", {self._failed} failed" if self._failed else ""
        said = f"{self._pixels / max(1e-9, time.perf_counter() - self._began):.2f} MP/s{failed}"
        if self._bar is not None:
            self._bar.update(self._task, advance=1, said=said)
        else:
            self._pace.show(self._ended, self._total, f"{self._ended} of {self._total} images, {said}")

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def say_end(done: int, before: int, failed: list[Outcome], seconds: float, where: str) -> None:
    """The end of a batch: what was done, what failed and why, where to look."""
    total = done + before + len(failed)
    for outcome in failed[:_NAMED]:
        say(f"failed: {outcome.name}: {outcome.error}")
    if len(failed) > _NAMED:
        say(f"failed: {len(failed) - _NAMED} more, see {where}")
    parts = [f"{done} of {total} images done in {duration(seconds)}"]
    parts += [f"{before} were finished before"] if before else []
    parts += [f"{len(failed)} failed (the same command tries them again)"] if failed else []
    say(f"{', '.join(parts)}: {where}")
