"""What people see while a run goes on and when it ends; all of it on stderr, so that stdout stays free for results."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from tilelab.assumptions import Assumption
from tilelab.cli.terminal import drawn, one_line
from tilelab.text import format_bytes, size_text

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from tilelab.run.plan.plan import Plan


def say(line: str) -> None:
    """One line for the user."""
    print(f"tilelab: {one_line(line)}", file=sys.stderr)


class ProgressBar:
    """Per cent, MP/s and time left, on a terminal; nothing anywhere else."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._task: Any = None
        self._per_tile = 0.0
        self._tiles = 0
        self._began = 0.0

    def start(self, plan: Plan, tiles_done: int) -> None:
        """Draw the bar."""
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Remaining

        self._per_tile = plan.pixels / plan.tiles / 1e6
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
        self._began = time.perf_counter()
        self._bar.start()

    def advance(self, tiles: int) -> None:
        """Move on."""
        if self._bar is not None:
            self._tiles += tiles
            speed = self._tiles * self._per_tile / max(1e-9, time.perf_counter() - self._began)
            self._bar.update(self._task, advance=tiles, speed=f"{speed:.2f} MP/s")

    def stop(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class BuildBar:
    """TensorRT's progress, on a terminal: its phases, one after the other."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> BuildBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, phase: str, done: int, total: int) -> None:
        """Draw how far `phase` is."""
        if not sys.stderr.isatty():
            return
        if self._bar is None:
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(file=drawn(sys.stderr)), transient=True)
            self._bar.start()
        if phase not in self._tasks:
            self._tasks[phase] = self._bar.add_task(phase, total=total)
        self._bar.update(self._tasks[phase], completed=done, total=total)


def summary(report: dict[str, Any]) -> str:
    """A short table of a finished run, plain text."""
    seconds, engine, tiles = report["seconds"], report["engine"], report["tiles"]
    waits = ", ".join(f"{name} {seconds[f'waited_for_{name}']:.1f} s" for name in ("read", "blend", "write"))
    skipped = f", {tiles['skipped']} blank or masked" if tiles["skipped"] else ""
    rows = {
        "image": f"{size_text(report['shape'])} {report['dtype']}, {report['megapixels']:.1f} MP",
        "model": f"{report['model']}, tile {_size(report['tile'])}, overlap {_size(report['overlap'])}, "
        f"{report['window']} window, output {report['output_is']}",
        "engine": f"{engine['name']} {engine['precision']} on {engine['device']}, {tiles['inferred']} tiles{skipped}",
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
    rows["result"] = report["output"]
    rows |= assumption_rows(report["assumptions"])
    width = max(map(len, rows))
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows.items())


def assumption_rows(assumptions: Iterable[Assumption | dict[str, str]]) -> dict[str, str]:
    """A row for each guess, or document of one; names that look alike must differ, so they are padded."""
    texts = [str(msgspec.convert(one, Assumption)).removeprefix("assumed: ") for one in assumptions]
    return {"assumed" if i == 0 else " " * i: text for i, text in enumerate(texts)}


def _size(extent: list[int]) -> str:
    return str(extent[0]) if len(set(extent)) == 1 else size_text(extent)


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"
