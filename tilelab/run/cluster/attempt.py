"""What the dispatcher speaks of: parts of units, attempts at them, actions, and what was given up."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is put up with.

    errors, deaths: of one unit in a row without a row finished in between, after which it is given up.  A death may be
        its worker's fault, so more of them are allowed.
    patience: seconds without a sign of life after which a worker counts as hung.
    """

    errors: int = 3
    deaths: int = 5
    patience: float = 300.0


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a unit, from one sweep position to another."""

    unit: int
    start: int
    stop: int


@dataclass(slots=True)
class Attempt:
    """A unit, or a part of one, on a worker.

    start, stop: sweep positions; what lies before `position` is on disk.
    tiles: to infer; `done` of them are.
    seen: time of the last sign of life.
    eager: one of the last: its worker should say at once what is on disk.
    began: time when the worker took it up; None while it waits.
    released: no longer wanted; the worker has not confirmed yet.
    """

    number: int
    unit: int
    worker: str
    start: int
    stop: int
    tiles: int
    seen: float
    eager: bool = False
    position: int = -1
    began: float | None = None
    done: int = 0
    released: bool = False

    def __post_init__(self) -> None:
        self.position = self.start

    @property
    def rows(self) -> int:
        """Extent on the sweep axis."""
        return self.stop - self.start

    @property
    def part(self) -> Part:
        """What it is an attempt at."""
        return Part(self.unit, self.start, self.stop)


@dataclass(slots=True)
class OpenUnit:
    """A unit in flight or in trouble.

    attempts: live ones that were not released.
    errors, deaths: in a row without a row finished in between.
    tried: workers that had one of those.
    """

    attempts: list[int] = field(default_factory=list)
    errors: int = 0
    deaths: int = 0
    tried: set[str] = field(default_factory=set)

    def blame(self, attempt: Attempt, *, death: bool) -> None:
        """Count a failed attempt; one that got on clears what was before it."""
        if attempt.position > attempt.start:
            self.errors = self.deaths = 0
            self.tried.clear()
        else:
            self.deaths += death
            self.errors += not death
        self.tried.add(attempt.worker)


@dataclass(frozen=True, slots=True)
class Assign:
    """Send this attempt to its worker."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Release:
    """Take this attempt back from its worker."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Restart:
    """End this worker's process: it hangs."""

    worker: str


Action = Assign | Release | Restart


@dataclass(frozen=True, slots=True)
class Failure:
    """A unit that was given up, and why."""

    unit: int
    cause: str
    attempts: int
