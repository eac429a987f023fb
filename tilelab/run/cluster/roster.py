"""Who is there: what each worker has to do, how fast it is, and who gets no more units."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

STREAK = 5  # errors in a row after which a worker gets no more units, as long as there are others


@dataclass(slots=True)
class _Worker:
    """A worker that can be used.

    attempts: their numbers, in the order in which it was sent them.
    rate: tiles per second; 0 while unknown.
    streak: errors in a row.
    """

    attempts: list[int] = field(default_factory=list)
    rate: float = 0.0
    streak: int = 0


class Roster:
    """The workers that can be used, and how many attempts each has: with thousands of them, nobody is searched for."""

    def __init__(self) -> None:
        self._workers: dict[str, _Worker] = {}
        self._loads: tuple[dict[str, None], ...] = ({}, {}, {})  # workers with 0, 1, 2 attempts, but the benched
        self._benched: dict[str, None] = {}
        self._refused: set[str] = set()

    def __len__(self) -> int:
        return len(self._workers)

    def __contains__(self, worker: str) -> bool:
        return worker in self._workers

    def __iter__(self) -> Iterator[str]:
        return iter(self._workers)

    # coming and going

    def join(self, worker: str) -> None:
        """Count a worker in, unless it was refused."""
        if worker not in self._workers and worker not in self._refused:
            self._workers[worker] = _Worker()
            self._loads[0][worker] = None

    def forget(self, worker: str) -> None:
        """Count a worker out; it has no attempts any more."""
        del self._workers[worker]
        self._loads[0].pop(worker, None)
        self._benched.pop(worker, None)
        self._excuse()

    def refuse(self, worker: str) -> None:
        """Never count this worker in again."""
        self._refused.add(worker)

    # what they do

    @property
    def idle(self) -> list[str]:
        """Workers without an attempt that may get one, those that have waited longest first."""
        return list(self._loads[0])

    @property
    def without_a_second(self) -> str | None:
        """The worker that has had a single attempt for longest; None when there is none."""
        return next(iter(self._loads[1]), None)

    def attempts(self, worker: str) -> Sequence[int]:
        """The numbers of a worker's attempts, the one it is at first."""
        return tuple(self._workers[worker].attempts)

    def assign(self, worker: str, number: int) -> None:
        """Give a worker one more attempt."""
        self._leave_load(worker)
        self._workers[worker].attempts.append(number)
        self._enter_load(worker)

    def end(self, worker: str, number: int) -> None:
        """Take an attempt off a worker."""
        self._leave_load(worker)
        self._workers[worker].attempts.remove(number)
        self._enter_load(worker)

    def _load(self, worker: str) -> dict[str, None]:
        return self._loads[min(2, len(self._workers[worker].attempts))]

    def _leave_load(self, worker: str) -> None:
        self._load(worker).pop(worker, None)

    def _enter_load(self, worker: str) -> None:
        if worker not in self._benched:
            self._load(worker)[worker] = None

    # how they do it

    def rate(self, worker: str) -> float:
        """Tiles per second of a worker; 0 while unknown."""
        return self._workers[worker].rate

    def succeeded(self, worker: str, rate: float | None) -> None:
        """Take down that a worker finished an attempt, and at which rate where that is known."""
        known = self._workers[worker]
        known.streak = 0
        if rate is not None:
            known.rate = (known.rate + rate) / 2 if known.rate else rate

    def erred(self, worker: str) -> None:
        """Take down an error; the last of many in a row benches the worker, as long as there are others."""
        known = self._workers[worker]
        known.streak += 1
        if known.streak >= STREAK:
            self._benched[worker] = None
            self._leave_load(worker)
            self._excuse()

    def all_have_tried(self, tried: set[str]) -> bool:
        """Whether no worker but the benched is left beside those in `tried`."""
        return tried >= set(self._workers).difference(self._benched)

    def _excuse(self) -> None:
        """When only benched workers are left, they have to do."""
        if len(self._benched) == len(self._workers):
            names, self._benched = list(self._benched), {}
            for name in names:
                self._workers[name].streak = 0
                self._enter_load(name)
