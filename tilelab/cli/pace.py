"""How far a long command is, where there is no terminal to draw a bar on: a line a minute, for the log of a job."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from tilelab.cli.terminal import one_line

EVERY_SECONDS = 60.0
_FIRST_SECONDS, _LONG_SECONDS = 10.0, 180.0


def say(line: str) -> None:
    """One line for the user."""
    print(f"tilelab: {one_line(line)}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


class Pace:
    """Says a line a minute; of what will take minutes, an estimate after the first ten seconds. Any thread may tell it.

    Attributes:
        what: is under way, e.g. ``segmenting``.
        clock: in seconds.
    """

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.what, self.clock = what, clock
        self._lock = threading.Lock()
        self._began: tuple[float, float] | None = None
        self._said = 0.0
        self._estimated = False

    def begin(self, done: float = 0.0) -> None:
        """The work begins, `done` of it by an earlier run."""
        self._began = (self.clock(), done)
        self._said = self._began[0]

    def show(self, done: float, total: float, said: str = "") -> None:
        """It is at `done` of `total`; `said` stands beside the share."""
        with self._lock:
            if self._began is None:
                self.begin(done)
            assert self._began is not None  # noqa: S101
            now, (start, first) = self.clock(), self._began
            if done >= total or done <= first:
                return
            left = (now - start) * (total - done) / (done - first)
            early = not self._estimated and now - start >= _FIRST_SECONDS and left > _LONG_SECONDS
            if now - self._said < EVERY_SECONDS and not early:
                return
            self._said, self._estimated = now, True
            parts = [f"{self.what} {done / total:.0%}", *([said] if said else []), f"about {duration(left)} left"]
        say(", ".join(parts))


def follow(what: str) -> Callable[[int, int], None]:
    """Told of pixels done and in all: on a terminal one line that is written over, else a line a minute."""
    pace, began, shown = Pace(what), time.perf_counter(), 0.0
    pace.begin()

    def show(done: int, total: int) -> None:
        nonlocal shown
        now = time.perf_counter()
        speed = f"{done / 1e6 / max(1e-9, now - began):.0f} MP/s"
        if not sys.stderr.isatty():
            pace.show(done, total, speed)
        elif now - shown > 0.2 or done == total:
            shown = now
            end = "\n" if done == total else ""
            print(f"\r{what} {done / total:4.0%}, {speed}", end=end, file=sys.stderr, flush=True)

    return show
