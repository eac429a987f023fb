"""Which worker computes what next, and what happens when one dies: pure bookkeeping on a clock that is passed in.

    join / leave            +------------+   Assign(attempt)
    started / reported  --> | Dispatcher | --> Release(attempt)      carried out by the client (`SharedSweep`)
    done / failed           +------------+   Restart(worker)         or a simulated one (`measure/simulate.py`)

Every worker has one unit to compute and, while many are left, one more waiting, so that it need not wait for an answer.
A unit that was lost goes on from what is on disk, on another worker if there is one.  When none are left to hand out,
idle workers take over waiting units and then help with running ones: they begin in the middle, so that both parts end
at the same time, or where the last finished row is if the unit has come to a halt.  Rows may be computed twice then,
even at once: both write the same bytes, whole files at a time.

        unit       |=== on disk ===>......first worker......|......helper......|
                 start          position                  where a             stop
                                (recorded)                shard begins

Only units in flight or in trouble are held: memory depends on the number of workers, not on that of units.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from tilelab.geometry import Frame, Units

PREFETCH = 2  # rounds of units left below which no worker gets a second one: it would only delay the end
UPTAKE = 10.0  # seconds after which a worker that did not take up a unit is taken for busy
SLOW = 2.0  # how much longer than anew a unit must still take before it is begun anew beside it
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
_Part = tuple[int, int, int]  # a unit, and two sweep positions


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
class _State:
    """A unit in flight or in trouble.

    attempts: live ones that were not released.
    islands: parts on disk that lie behind a gap.
    """

    attempts: list[int] = field(default_factory=list)
    islands: list[tuple[int, int]] = field(default_factory=list)
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
        helped: attempts that helped with a unit that was running already.
    """

    def __init__(
        self,
        units: Units,
        frame: Frame,
        grain: int,
        positions: Mapping[int, int],
        record: Callable[[int, int], None],
        tiles: Callable[[int, int, int], int],
        limits: Limits | None = None,
    ) -> None:
        """Begin or continue.

        Args:
            units: all of the job's.
            frame: says which axis is swept.
            grain: units may be parted at multiples of it, pixels on the sweep axis.
            positions: up to where each unit is on disk; changed by `record` only.
            record: called with a unit and the position up to which all of it is on disk now.
            tiles: number of tiles of a unit from one position to another.
            limits: how much is put up with.
        """
        self._units, self._axis, self._grain = units, frame.sweep_axis, grain
        self._positions, self._record, self._tiles = positions, record, tiles
        self.limits = limits or Limits()
        self.attempts: dict[int, Attempt] = {}
        self.failures: list[Failure] = []
        self.stopped: Failure | None = None
        self.retries = self.helped = 0
        self.left = len(units) - sum(self._is_finished(unit) for unit in positions)
        self._fresh = self.left
        self._order = (unit for unit in largest_first(units) if not self._is_finished(unit))
        self._again: deque[int] = deque()
        self._states: dict[int, _State] = {}
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
            self._lost(attempt, cause if attempt.began is not None else None, death=True)
        self._forget(worker)

    def started(self, number: int, now: float) -> None:
        """A worker took an attempt up."""
        attempt = self.attempts.get(number)
        if attempt is not None:
            attempt.began = attempt.seen = now

    def reported(self, number: int, tiles: int, position: int, now: float) -> None:
        """A worker has inferred so many tiles of an attempt, and what lies before `position` is on disk."""
        attempt = self.attempts.get(number)
        if attempt is None:
            return
        attempt.seen, attempt.done = now, tiles
        if attempt.began is None:
            attempt.began = now
        if position > attempt.position:
            attempt.position = position
            self._cover(attempt.unit, attempt.start, position)

    def done(self, number: int, now: float) -> None:
        """An attempt is finished, and on disk."""
        if number not in self.attempts:
            return
        attempt = self._end(number)
        worker = self._workers[attempt.worker]
        worker.streak = 0
        if attempt.began is not None and now > attempt.began:
            rate = attempt.tiles / (now - attempt.began)
            worker.rate = rate if not worker.rate else (worker.rate + rate) / 2
        self._cover(attempt.unit, attempt.start, attempt.stop)

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
            self._lost(self._end(number), None, death=False)

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
                self._help_out(now)
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

    # handing out

    def _hand_out(self, now: float) -> None:
        """A unit for every idle worker, and a second one while there are many."""
        for worker in list(self._loads[0]):
            part = self._next_part(worker)
            if part is not None:
                self._assign(worker, part, now)
            elif not self._again:
                break
        while self._loads[1] and self._fresh > PREFETCH * len(self._workers):
            worker = next(iter(self._loads[1]))
            part = self._next_part(worker)
            if part is None:
                break
            self._assign(worker, part, now)

    def _next_part(self, worker: str) -> _Part | None:
        """What to repeat if this worker has not failed at it yet, else a fresh unit, else what nobody else may do."""
        for unit in list(self._again):
            gap = self._gap(unit)
            if gap is None:
                self._again.remove(unit)
            elif worker not in self._states[unit].tried:
                self._again.remove(unit)
                return unit, *gap
        for unit in self._order:
            self._fresh -= 1
            return unit, self._position(unit), self._stop(unit)
        others = set(self._workers).difference(self._benched)
        for unit in self._again:
            gap = self._gap(unit)
            if gap is not None and self._states[unit].tried >= others:
                self._again.remove(unit)
                return unit, *gap
        return None

    def _assign(self, worker: str, part: _Part, now: float) -> None:
        unit, start, stop = part
        self._number += 1
        eager = self._fresh <= PREFETCH * len(self._workers)
        attempt = Attempt(self._number, unit, worker, start, stop, self._tiles(unit, start, stop), now, eager)
        self.attempts[attempt.number] = attempt
        state = self._states.setdefault(unit, _State())
        state.attempts.append(attempt.number)
        self._move(worker, attempt.number)
        self._actions.append(Assign(attempt))
        if unit not in self._again and self._gap(unit) is not None:
            self._again.append(unit)

    # the end of a job

    def _help_out(self, now: float) -> None:
        """Nothing is left to hand out: let idle workers take over what waits, and part what runs."""
        waiting = [a for a in self.attempts.values() if self._is_waiting(a, now)]
        for worker in list(self._loads[0]):
            if waiting:
                attempt = waiting.pop()
                self._release(attempt)
                self._assign(worker, (attempt.unit, attempt.start, attempt.stop), now)
                continue
            part = self._part_to_help_with(worker, now)
            if part is None:
                break
            self.helped += 1
            self._assign(worker, part, now)

    def _is_waiting(self, attempt: Attempt, now: float) -> bool:
        """Whether it is behind another attempt of its worker, or its worker does not take it up."""
        if attempt.began is not None or attempt.released:
            return False
        return self._workers[attempt.worker].attempts[0] != attempt.number or now - attempt.seen > UPTAKE

    def _part_to_help_with(self, worker: str, now: float) -> _Part | None:
        """The rear of the attempt that would take longest: as much as all workers together have too much.

        So that all end at the same time an attempt keeps what it can do until then, and a helper goes from one to the
        next; but no helper takes so much that it would itself be the last.
        """
        running = [a for a in self.attempts.values() if a.began is not None and not a.released]
        rate = self._workers[worker].rate or _mean_rate(running, now)
        if not running or not rate:
            return None
        outlooks = [self._outlook(a, now, rate) for a in running]
        seconds, attempt, at, end = max(outlooks, key=lambda outlook: outlook[0])
        if not seconds:
            return None
        own, helpers = (end - at) / seconds, rate * (attempt.stop - attempt.start) / attempt.tiles  # rows per second
        together = (end - at) * helpers / (helpers + own)
        left = [((e - p) * a.tiles / (a.stop - a.start), s) for s, a, p, e in outlooks if s]
        speed = sum(tiles / s for tiles, s in left) + rate * max(1, len(self._workers) - len(left))
        fair = sum(tiles for tiles, _ in left) / speed  # seconds until the end, if nobody had to wait
        rows = min(together, max(self._grain, own * (seconds - fair)))
        parted = max(round((end - rows) / self._grain) * self._grain, math.ceil(at / self._grain) * self._grain)
        if attempt.position < parted < end:
            return attempt.unit, parted, end
        if end > attempt.position and seconds > SLOW * (end - attempt.position) / helpers:
            return attempt.unit, attempt.position, end
        return None

    def _outlook(self, attempt: Attempt, now: float, rate: float) -> tuple[float, Attempt, float, int]:
        """Seconds until an attempt ends at its own pace, where it is, and where the part ends that only it is at."""
        state = self._states[attempt.unit]
        rows = attempt.stop - attempt.start
        at = max(attempt.position, attempt.start + rows * attempt.done / attempt.tiles)
        others = (self.attempts[n] for n in state.attempts if n != attempt.number)
        begins = [a.start for a in others if a.start >= attempt.position] + [start for start, _ in state.islands]
        end = min([attempt.stop, *(b for b in begins if b >= at)])
        elapsed = now - (now if attempt.began is None else attempt.began)
        if at > attempt.start:
            pace = (at - attempt.start) / elapsed if elapsed > 0 else rows * rate / attempt.tiles
        else:  # nothing heard yet: as others, or slower if that time has passed
            pace = rows / max(elapsed, attempt.tiles / rate)
        if any(b <= at for b in begins):  # somebody is at this part already
            return 0.0, attempt, at, end
        return max(0.0, end - at) / pace, attempt, at, end

    # what is on disk

    def _cover(self, unit: int, start: int, stop: int) -> None:
        """Rows ``start:stop`` of a unit are on disk: record what is without a gap from its beginning."""
        state = self._states.get(unit)
        if state is None:  # finished, or given up
            return
        position = known = self._position(unit)
        islands = [(a, b) for a, b in state.islands if not (start <= a and b <= stop)] + [(start, stop)]
        state.islands = []
        for first, last in sorted(islands):
            if first <= position:
                position = max(position, last)
            else:
                state.islands.append((first, last))
        if position > known:
            self._fruitless = self._unwritable = 0
            self._record(unit, position)
        if position >= self._stop(unit):
            self._close(unit)
            return
        for number in list(state.attempts):
            attempt = self.attempts[number]
            if self._next_gap(unit, attempt.position, attempt.stop, ()) is None:
                self._release(attempt)

    def _gap(self, unit: int) -> tuple[int, int] | None:
        """The first rows of a unit that are neither on disk nor being computed."""
        live = [self.attempts[number] for number in self._states[unit].attempts]
        return self._next_gap(unit, self._position(unit), self._stop(unit), [(a.start, a.stop) for a in live])

    def _next_gap(self, unit: int, start: int, stop: int, taken: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
        """The first rows between `start` and `stop` that are neither on disk nor `taken`."""
        at = max(start, self._position(unit))
        for first, last in sorted([*taken, *self._states[unit].islands]):
            if first > at:
                break
            at = max(at, last)
        begins = [first for first, _ in [*taken, *self._states[unit].islands] if first > at]
        return (at, min([stop, *begins])) if at < stop else None

    def _close(self, unit: int) -> None:
        """A unit needs no more work."""
        for number in list(self._states[unit].attempts):
            self._release(self.attempts[number])
        if unit in self._again:
            self._again.remove(unit)
        del self._states[unit]
        self.left -= 1

    def _position(self, unit: int) -> int:
        return self._positions.get(unit, self._units[unit].box.start[self._axis])

    def _stop(self, unit: int) -> int:
        return self._units[unit].box.stop[self._axis]

    def _is_finished(self, unit: int) -> bool:
        return self._position(unit) >= self._stop(unit)

    # the end of an attempt

    def _release(self, attempt: Attempt) -> None:
        """Take an attempt back; it keeps its place until the worker has confirmed."""
        attempt.released = True
        self._states[attempt.unit].attempts.remove(attempt.number)
        self._actions.append(Release(attempt))

    def _end(self, number: int) -> Attempt:
        attempt = self.attempts.pop(number)
        self._move(attempt.worker, -number)
        if not attempt.released:
            self._states[attempt.unit].attempts.remove(number)
        return attempt

    def _lost(self, attempt: Attempt, cause: str | None, *, death: bool) -> None:
        """An attempt has to be repeated, or its unit given up; without a cause it was nobody's fault."""
        if attempt.released:
            return
        state = self._states[attempt.unit]
        if cause is not None:
            if attempt.position > attempt.start:  # it got on
                state.errors = state.deaths = 0
                state.tried.clear()
            else:
                state.deaths += death
                state.errors += not death
            state.tried.add(attempt.worker)
            if state.errors >= self.limits.errors or state.deaths >= self.limits.deaths:
                self._give_up(attempt.unit, cause, state.errors + state.deaths)
                return
        if self._gap(attempt.unit) is not None:
            self.retries += 1
            if attempt.unit not in self._again:
                self._again.append(attempt.unit)

    def _give_up(self, unit: int, cause: str, attempts: int) -> None:
        failure = Failure(unit, cause, attempts)
        self.failures.append(failure)
        self._close(unit)
        self._fruitless += 1
        if self._fruitless >= FRUITLESS:
            self.stopped = failure

    # workers

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


def _mean_rate(running: Sequence[Attempt], now: float) -> float:
    """Tiles per second of one worker, as far as is known; what one without a past is expected to do."""
    rates = [a.done / (now - a.began) for a in running if a.began is not None and a.done and now > a.began]
    return sum(rates) / len(rates) if rates else 0.0


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
