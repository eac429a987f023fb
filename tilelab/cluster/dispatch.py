"""Which worker computes which unit next, and what happens when one dies: pure bookkeeping on a clock that is passed in.

    join / leave            +------------+   Assign(attempt)
    started / reported  --> | Dispatcher | --> Release(attempt)      carried out by a cluster (`tilelab.cluster.crew`)
    done / failed           +------------+   Restart(worker)         or by a simulated one (`benchmarks/simulate.py`)

Every worker has one unit to compute and, while many are left, one more waiting, so that it need not wait for an answer.
A unit that was lost goes on from what is on disk, on another worker if there is one.  When none are left to hand out,
idle workers take over waiting units and race those that would take much longer: two workers may write the same shard,
as both write the same bytes, whole files at a time.

Only units in flight or in trouble are held: memory depends on the number of workers, not on that of units.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product

from tilelab.geometry import Units

PREFETCH = 2  # rounds of units left below which no worker gets a second one: it would only delay the end
RACE = 2.0  # a unit is raced when an idle worker needs at most 1 / RACE of the time that its own still does
UPTAKE = 10.0  # seconds after which a worker that did not take up a unit is taken for busy
STREAK = 5  # errors in a row after which a worker gets no more units, as long as there are others
FRUITLESS = 16  # units in a row that fail with nothing finished in between: then it is not the units
UNWRITABLE = 3  # the same for errors of the output, which no other unit will fare better with


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


@dataclass(slots=True)
class Attempt:
    """A unit on a worker.

    start: sweep position it begins at.
    tiles: to infer from there; `done` of them are.
    seen: time of the last sign of life.
    began: time when the worker took it up; None while it waits.
    released: no longer wanted; the worker has not confirmed yet.
    """

    number: int
    unit: int
    worker: str
    start: int
    tiles: int
    seen: float
    began: float | None = None
    done: int = 0
    released: bool = False


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


@dataclass(slots=True)
class _Worker:
    attempts: list[int] = field(default_factory=list)
    rate: float = 0.0  # tiles per second
    streak: int = 0


@dataclass(slots=True)
class _Trouble:
    errors: int = 0
    deaths: int = 0
    tried: set[str] = field(default_factory=set)


class Dispatcher:
    """Hands out the units of a job.

    Attributes:
        attempts: in flight, by number.
        failures: units that were given up.
        left: units neither finished nor given up.
        stopped: why going on is pointless, else None.
        retries: attempts that had to be repeated.
        races: units that a second worker took up at the end.
    """

    def __init__(
        self,
        units: Units,
        sweep_axis: int,
        positions: Mapping[int, int],
        tiles: Callable[[int, int], int],
        limits: Limits | None = None,
    ) -> None:
        """Begin or continue.

        Args:
            units: all of the job's.
            sweep_axis: along which a unit has a position.
            positions: up to where each unit is on disk, kept up to date by the caller before it calls `reported`.
            tiles: number of tiles of a unit from a position on.
            limits: how much is put up with.
        """
        self._units, self._axis, self._positions, self._tiles = units, sweep_axis, positions, tiles
        self.limits = limits or Limits()
        self.attempts: dict[int, Attempt] = {}
        self.failures: list[Failure] = []
        self.stopped: Failure | None = None
        self.retries = self.races = 0
        self.left = len(units) - sum(self._is_finished(unit) for unit in positions)
        self._fresh = self.left
        self._order = (unit for unit in largest_first(units) if not self._is_finished(unit))
        self._again: deque[int] = deque()
        self._of_unit: dict[int, list[int]] = {}
        self._troubles: dict[int, _Trouble] = {}
        self._workers: dict[str, _Worker] = {}
        self._loads: tuple[dict[str, None], ...] = ({}, {}, {})  # workers with 0, 1, 2 attempts
        self._benched: dict[str, None] = {}
        self._refused: set[str] = set()
        self._actions: list[Action] = []
        self._number = 0
        self._fruitless = self._unwritable = 0

    @property
    def finished(self) -> bool:
        """Nothing is left to do, or no point in doing it."""
        return self.left == 0 or self.stopped is not None

    @property
    def workers(self) -> int:
        """Number of workers that can be used."""
        return len(self._workers)

    # what happened

    def join(self, worker: str) -> None:
        """A worker is there."""
        if worker not in self._workers and worker not in self._refused:
            self._workers[worker] = _Worker()
            self._loads[0][worker] = None

    def leave(self, worker: str, cause: str = "its worker died") -> None:
        """A worker is gone, with all it was doing."""
        known = self._workers.get(worker)
        if known is None:
            return
        for number in list(known.attempts):
            attempt = self._end(number)
            if not attempt.released:
                self._lost(attempt, cause if attempt.began is not None else None, death=True)
        self._forget(worker)

    def started(self, number: int, now: float) -> None:
        """A worker took an attempt up."""
        attempt = self.attempts.get(number)
        if attempt is not None:
            attempt.began = attempt.seen = now

    def reported(self, number: int, tiles: int, now: float) -> None:
        """A worker has inferred so many tiles of an attempt; `positions` is up to date."""
        attempt = self.attempts.get(number)
        if attempt is None:
            return
        attempt.seen, attempt.done = now, tiles
        if attempt.began is None:
            attempt.began = now
        if self._positions.get(attempt.unit, 0) > attempt.start:
            self._fruitless = self._unwritable = 0

    def done(self, number: int, now: float) -> None:
        """A unit is finished, and on disk; `positions` is up to date."""
        if number not in self.attempts:
            return
        attempt = self._end(number)
        worker = self._workers[attempt.worker]
        worker.streak = self._fruitless = self._unwritable = 0
        if attempt.began is not None and now > attempt.began:
            rate = attempt.tiles / (now - attempt.began)
            worker.rate = rate if not worker.rate else (worker.rate + rate) / 2
        if attempt.released:  # it was finished before the message reached it
            return
        self.left -= 1
        self._troubles.pop(attempt.unit, None)
        for other in self._of_unit.get(attempt.unit, ()):
            self._release(self.attempts[other])

    def failed(self, number: int, cause: str, *, unwritable: bool = False) -> None:
        """An attempt ended with an error; `unwritable` when that is the output's."""
        if number not in self.attempts:
            return
        attempt = self._end(number)
        if attempt.released:
            return
        worker = self._workers[attempt.worker]
        worker.streak += 1
        if worker.streak >= STREAK:
            self._bench(attempt.worker)
        if unwritable:
            self._unwritable += 1
            if self._unwritable >= UNWRITABLE:
                self.stopped = Failure(attempt.unit, cause, self._unwritable)
        self._lost(attempt, cause, death=False)

    def ended(self, number: int) -> None:
        """An attempt that was released has stopped; one that was not is simply made again."""
        if number in self.attempts:
            attempt = self._end(number)
            if not attempt.released:
                self._lost(attempt, None, death=False)

    def refuse(self, worker: str) -> None:
        """A worker cannot do this job at all: it gets nothing more, ever."""
        self._refused.add(worker)
        if worker in self._workers:
            for number in list(self._workers[worker].attempts):
                self.ended(number)
            self._forget(worker)

    # what to do

    def actions(self, now: float) -> list[Action]:
        """What is to be done now; cheap enough to be asked after every event."""
        if not self.finished:
            self._hand_out(now)
            if self._loads[0] and not self._fresh and not self._again:
                self._relieve(now)
        actions, self._actions = self._actions, []
        return actions

    def check_silence(self, now: float) -> None:
        """Give up on workers that have not been heard of for too long; ask every second or so."""
        for name, worker in list(self._workers.items()):
            if not worker.attempts:
                continue
            seen = max(self.attempts[n].seen for n in worker.attempts)
            if now - seen > self.limits.patience:
                self.leave(name, f"its worker was not heard of for {now - seen:.0f} s")
                self._actions.append(Restart(name))

    # inside

    def _hand_out(self, now: float) -> None:
        """A unit for every idle worker, and a second one while there are many."""
        for worker in list(self._loads[0]):
            unit = self._next_unit(worker)
            if unit is not None:
                self._assign(worker, unit, now)
            elif not self._again:
                break
        while self._loads[1] and self._fresh > PREFETCH * len(self._workers):
            worker = next(iter(self._loads[1]))
            unit = self._next_unit(worker)
            if unit is None:
                break
            self._assign(worker, unit, now)

    def _next_unit(self, worker: str) -> int | None:
        """A unit to repeat if this worker has not failed at it yet, else a fresh one, else one nobody else may do."""
        for unit in self._again:
            if worker not in self._troubles[unit].tried:
                self._again.remove(unit)
                return unit
        for unit in self._order:
            self._fresh -= 1
            return unit
        for unit in self._again:
            if self._troubles[unit].tried.issuperset(w for w in self._workers if w not in self._benched):
                self._again.remove(unit)
                return unit
        return None

    def _assign(self, worker: str, unit: int, now: float) -> None:
        start = self._positions.get(unit, self._units[unit].box.start[self._axis])
        self._number += 1
        attempt = Attempt(self._number, unit, worker, start, self._tiles(unit, start), now)
        self.attempts[attempt.number] = attempt
        self._of_unit.setdefault(unit, []).append(attempt.number)
        self._move(worker, attempt.number)
        self._actions.append(Assign(attempt))

    def _relieve(self, now: float) -> None:
        """Nothing is left to hand out: let idle workers take over what waits, and race what is slow."""
        waiting = [a for a in self.attempts.values() if self._is_waiting(a, now)]
        for worker in list(self._loads[0]):
            if waiting:
                attempt = waiting.pop()
                self._release(attempt)
                self._assign(worker, attempt.unit, now)
                continue
            rate = self._workers[worker].rate
            slowest = max(self._alone(), key=lambda a: self._seconds_left(a, now, rate), default=None)
            if not rate or slowest is None:
                break
            position = self._positions.get(slowest.unit, slowest.start)
            if self._seconds_left(slowest, now, rate) <= RACE * self._tiles(slowest.unit, position) / rate:
                break
            self.races += 1
            self._assign(worker, slowest.unit, now)

    def _is_waiting(self, attempt: Attempt, now: float) -> bool:
        """Whether it is behind another attempt of its worker, or its worker does not take it up."""
        if attempt.began is not None or attempt.released:
            return False
        return self._workers[attempt.worker].attempts[0] != attempt.number or now - attempt.seen > UPTAKE

    def _alone(self) -> Iterator[Attempt]:
        """Running attempts that are not raced."""
        return (
            a
            for a in self.attempts.values()
            if a.began is not None and not a.released and len(self._of_unit[a.unit]) == 1
        )

    def _seconds_left(self, attempt: Attempt, now: float, rate: float) -> float:
        """Until a running attempt ends at its own pace; before its first tiles, as long as it has taken, at least."""
        elapsed = now - (now if attempt.began is None else attempt.began)
        if attempt.done:
            return elapsed * (attempt.tiles - attempt.done) / attempt.done
        return max(elapsed, attempt.tiles / rate if rate else 0.0)

    def _release(self, attempt: Attempt) -> None:
        """Take an attempt back; it keeps its place until the worker has confirmed."""
        attempt.released = True
        self._of_unit[attempt.unit] = [n for n in self._of_unit[attempt.unit] if n != attempt.number]
        self._actions.append(Release(attempt))

    def _end(self, number: int) -> Attempt:
        attempt = self.attempts.pop(number)
        self._move(attempt.worker, -number)
        rest = [n for n in self._of_unit.get(attempt.unit, ()) if n != number]
        if rest:
            self._of_unit[attempt.unit] = rest
        else:
            self._of_unit.pop(attempt.unit, None)
        return attempt

    def _move(self, name: str, number: int) -> None:
        """Add attempt `number` to a worker, or remove ``-number``."""
        worker = self._workers[name]
        self._loads[min(2, len(worker.attempts))].pop(name, None)
        if number > 0:
            worker.attempts.append(number)
        else:
            worker.attempts.remove(-number)
        if name not in self._benched:
            self._loads[min(2, len(worker.attempts))][name] = None

    def _lost(self, attempt: Attempt, cause: str | None, *, death: bool) -> None:
        """An attempt has to be repeated, or its unit given up; without a cause it was nobody's fault."""
        if self._of_unit.get(attempt.unit):
            return  # another one races it
        trouble = self._troubles.setdefault(attempt.unit, _Trouble())
        if cause is not None:
            if self._positions.get(attempt.unit, attempt.start) > attempt.start:  # it got on
                trouble.errors = trouble.deaths = 0
                trouble.tried.clear()
            else:
                trouble.deaths += death
                trouble.errors += not death
            trouble.tried.add(attempt.worker)
            if trouble.errors >= self.limits.errors or trouble.deaths >= self.limits.deaths:
                self._give_up(attempt.unit, cause, trouble.errors + trouble.deaths)
                return
        self.retries += 1
        self._again.append(attempt.unit)

    def _give_up(self, unit: int, cause: str, attempts: int) -> None:
        failure = Failure(unit, cause, attempts)
        self.failures.append(failure)
        self._troubles.pop(unit, None)
        self.left -= 1
        self._fruitless += 1
        if self._fruitless >= FRUITLESS:
            self.stopped = failure

    def _bench(self, worker: str) -> None:
        """No more units for this worker, unless no other is left."""
        self._benched[worker] = None
        for load in self._loads:
            load.pop(worker, None)
        self._excuse()

    def _forget(self, worker: str) -> None:
        del self._workers[worker]
        self._loads[0].pop(worker, None)
        self._benched.pop(worker, None)
        self._excuse()

    def _excuse(self) -> None:
        """When only benched workers are left, they have to do."""
        if len(self._benched) == len(self._workers):
            names, self._benched = list(self._benched), {}
            for name in names:
                self._workers[name].streak = 0
                self._loads[min(2, len(self._workers[name].attempts))][name] = None

    def _is_finished(self, unit: int) -> bool:
        position = self._positions.get(unit)
        return position is not None and position >= self._units[unit].box.stop[self._axis]


def largest_first(units: Units) -> Iterator[int]:
    """The indices of all units: those of full extent first, the cut off ones at the image's far edges last."""
    counts = [len(cuts) for cuts in units.cuts]
    whole = [cuts.size // cuts.extent for cuts in units.cuts]
    for edges in sorted(product((False, True), repeat=len(counts)), key=sum):
        ranges = [range(w, n) if edge else range(w) for edge, w, n in zip(edges, whole, counts, strict=True)]
        for place in range(math.prod(map(len, ranges))):  # product() would list its ranges first
            rest, index, weight = place, 0, 1
            for axis, n in zip(reversed(ranges), reversed(counts), strict=True):
                rest, i = divmod(rest, len(axis))
                index += axis[i] * weight
                weight *= n
            yield index
