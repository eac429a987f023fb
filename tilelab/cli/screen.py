"""What people see while a run goes on and when it ends; all of it on stderr, so that stdout stays free for results."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from tilelab.assumptions import Assumption
from tilelab.cli.pace import Pace
from tilelab.cli.pace import duration as duration
from tilelab.cli.pace import say as say
from tilelab.cli.terminal import drawn
from tilelab.text import counted, format_bytes, sides_text, size_text

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from tilelab.run.plan.plan import Plan


class ProgressBar:
    """Per cent, MP/s and time left: a bar on a terminal, a line a minute anywhere else."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._task: Any = None
        self._per_tile = 0.0
        self._tiles = 0
        self._began = 0.0
        self._pace: Pace | None = None
        self._total = self._before = 0

    def start(self, plan: Plan, tiles_done: int) -> None:
        """Draw the bar."""
        self._per_tile = plan.pixels / plan.tiles / 1e6
        self._began = time.perf_counter()
        self._total, self._before = plan.tiles, tiles_done
        self._pace = Pace("segmenting")
        self._pace.begin(tiles_done)
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Remaining

        self._bar = Progress(
            TextColumn("segmenting"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            Remaining(elapsed_when_finished=False),
            console=Console(file=drawn(sys.stderr)),
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("", total=plan.tiles, completed=tiles_done, speed="")
        self._bar.start()

    def advance(self, tiles: int) -> None:
        """Move on."""
        self._tiles += tiles
        speed = f"{self._tiles * self._per_tile / max(1e-9, time.perf_counter() - self._began):.2f} MP/s"
        if self._bar is not None:
            self._bar.update(self._task, advance=tiles, speed=speed)
        elif self._pace is not None:
            self._pace.show(self._before + self._tiles, self._total, speed)

    def stop(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class BuildBar:
    """TensorRT's progress, phase after phase: a bar each on a terminal, a line a minute anywhere else."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._paces: dict[str, Pace] = {}

    def __enter__(self) -> BuildBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, phase: str, done: int, total: int) -> None:
        """Draw how far `phase` is."""
        if not sys.stderr.isatty():
            self._paces.setdefault(phase, Pace(f"building, {phase}")).show(done, total)
            return
        if self._bar is None:
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(file=drawn(sys.stderr)), transient=True)
            self._bar.start()
        if phase not in self._tasks:
            self._tasks[phase] = self._bar.add_task(phase, total=total)
        self._bar.update(self._tasks[phase], completed=done, total=total)


def summary(report: dict[str, Any], ending: Mapping[str, str] | None = None) -> str:
    """A short table of a finished run, plain text; `ending` are its last rows."""
    seconds, engine, tiles = report["seconds"], report["engine"], report["tiles"]
    waits = ", ".join(f"{name} {seconds[f'waited_for_{name}']:.1f} s" for name in ("read", "blend", "write"))
    skipped = f", {tiles['skipped']} blank or masked" if tiles["skipped"] else ""
    rows = {
        "image": f"{size_text(report['shape'])} ({', '.join(report['axes'])}) {report['dtype']}, "
        f"{report['megapixels']:.1f} MP",
        "model": f"{report['model']}, tile {_size(report['tile'])}, overlap {_size(report['overlap'])}, "
        f"{report['window']} window, output {report['output_is']}",
        "engine": f"{engine['name']} {engine['precision']} on {engine['device']}, "
        f"{counted(tiles['inferred'], 'tile')}{skipped}",
        "time": f"{seconds['wall']:.1f} s, {report['megapixels_per_second']:.2f} MP/s",
        "engine busy": f"{seconds['engine']:.1f} s; waited for {waits}",
    }
    if "workers" in report:
        work = report["workers"]
        rows["workers"] = f"{work.get('lost', 0)} lost, {work.get('repeated', 0)} units repeated"
    else:
        memory = report["memory"]
        above = format_bytes(max(0, memory["peak"] - memory["before"]))
        rows["memory"] = f"peak {format_bytes(memory['peak'])}, {above} above the loaded engine"
    rows |= assumption_rows(report["assumptions"])
    rows |= {"result": report["output"]} if ending is None else ending
    width = max(len(name.rstrip()) for name in rows)
    return "\n".join(f"  {_unlike(name):<{width}}  {value}" for name, value in rows.items())


def _unlike(name: str) -> str:
    """The name of a row; one that is that of the row above with spaces behind is left blank."""
    return "" if name != name.rstrip() else name


def assumption_rows(assumptions: Iterable[Assumption | dict[str, str]]) -> dict[str, str]:
    """A row for each guess, or document of one; names that look alike must differ, so they are padded."""
    texts = [str(msgspec.convert(one, Assumption)).removeprefix("assumed: ") for one in assumptions]
    return {"assumed" if i == 0 else " " * i: text for i, text in enumerate(texts)}


def _size(extent: list[int]) -> str:
    return str(extent[0]) if len(set(extent)) == 1 else sides_text(extent)
