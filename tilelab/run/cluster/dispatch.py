"""Which worker computes what next, and what happens when one dies: pure bookkeeping on a clock that is passed in.

    join / leave            +------------+   Assign(attempt)
    started / reported  --> | Dispatcher | --> Release(attempt)      carried out by the client (`SharedSweep`)
    done / failed           +------------+   Restart(worker)         or a simulated one (`measure/simulate.py`)
                                  |
        Backlog (what to hand out), Coverage (what is on disk), Roster (who is there), helping (who helps whom)

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

from collections.abc import Callable

from tilelab.run.cluster.attempt import Action, Assign, Attempt, Failure, Limits, OpenUnit, Part, Release, Restart
from tilelab.run.cluster.backlog import Backlog
from tilelab.run.cluster.coverage import Coverage
from tilelab.run.cluster.helping import Outlook, choose_part, foresee, mean_rate
from tilelab.run.cluster.roster import Roster

PREFETCH = 2  # rounds of units left below which no worker gets a second one: it would only delay the end
UPTAKE = 10.0  # seconds after which a worker that did not take up a unit is taken for busy
FRUITLESS = 16  # units in a row that fail with nothing finished in between: then it is not the units
UNWRITABLE = 3  # the same for errors of the output, which no other unit will fare better with


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
        self, coverage: Coverage, grain: int, tiles: Callable[[int, int, int], int], limits: Limits | None = None
    ) -> None:
        """Begin or continue.

        Args:
            coverage: of the units, as an earlier run left them.
            grain: units may be parted at multiples of it, pixels on the sweep axis.
            tiles: number of tiles of a unit from one position to another.
            limits: how much is put up with.
        """
        self._coverage, self._grain, self._tiles = coverage, grain, tiles
        self.limits = limits or Limits()
        self.attempts: dict[int, Attempt] = {}
        self.failures: list[Failure] = []
        self.stopped: Failure | None = None
        self.retries = self.helped = 0
        self._backlog = Backlog(coverage)
        self.left = self._backlog.fresh
        self._open: dict[int, OpenUnit] = {}
        self._roster = Roster()
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
        return len(self._roster)

    # what happened

    def join(self, worker: str) -> None:
        """A worker is there."""
        self._roster.join(worker)

    def leave(self, worker: str, cause: str = "its worker died") -> None:
        """A worker is gone, with all it was doing."""
        if worker not in self._roster:
            return
        for number in self._roster.attempts(worker):
            attempt = self._end(number)
            self._lost(attempt, cause if attempt.began is not None else None, death=True)
        self._roster.forget(worker)

    def refuse(self, worker: str) -> None:
        """A worker cannot do this job at all: it gets nothing more, ever."""
        self._roster.refuse(worker)
        if worker in self._roster:
            for number in self._roster.attempts(worker):
                self.ended(number)
            self._roster.forget(worker)

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
        seconds = 0.0 if attempt.began is None else now - attempt.began
        self._roster.succeeded(attempt.worker, attempt.tiles / seconds if seconds > 0 else None)
        self._cover(attempt.unit, attempt.start, attempt.stop)

    def failed(self, number: int, cause: str, *, unwritable: bool = False) -> None:
        """An attempt ended with an error; `unwritable` when that is the output's."""
        if number not in self.attempts:
            return
        attempt = self._end(number)
        if attempt.released:
            return
        self._roster.erred(attempt.worker)
        if unwritable:
            self._unwritable += 1
            if self._unwritable >= UNWRITABLE:
                self.stopped = Failure(attempt.unit, cause, self._unwritable)
        self._lost(attempt, cause, death=False)

    def ended(self, number: int) -> None:
        """An attempt that was released has stopped; one that was not is simply made again."""
        if number in self.attempts:
            self._lost(self._end(number), None, death=False)

    # what to do

    def actions(self, now: float) -> list[Action]:
        """What is to be done now; cheap enough to be asked after every event."""
        if not self.finished:
            self._hand_out(now)
            if not self._backlog and self._roster.idle:
                self._help_out(now)
        actions, self._actions = self._actions, []
        return actions

    def check_silence(self, now: float) -> None:
        """Give up on workers that have not been heard of for too long; ask every second or so."""
        for worker in list(self._roster):
            seen = max((self.attempts[n].seen for n in self._roster.attempts(worker)), default=now)
            if now - seen > self.limits.patience:
                self.leave(worker, f"its worker was not heard of for {now - seen:.0f} s")
                self._actions.append(Restart(worker))

    # handing out

    def _hand_out(self, now: float) -> None:
        """A unit for every idle worker, and a second one while there are many."""
        for worker in self._roster.idle:
            part = self._next_part(worker)
            if part is not None:
                self._assign(worker, part, now)
            elif not self._backlog:
                break
        while (second := self._roster.without_a_second) is not None and not self._is_nearly_over():
            part = self._next_part(second)
            if part is None:
                break
            self._assign(second, part, now)

    def _is_nearly_over(self) -> bool:
        return self._backlog.fresh <= PREFETCH * len(self._roster)

    def _next_part(self, worker: str) -> Part | None:
        """What to repeat if this worker has not failed at it yet, else a fresh unit, else what nobody else may do."""
        for unit in self._backlog.again:
            gap = self._gap(unit)
            if gap is None:
                self._backlog.drop(unit)
            elif worker not in self._open[unit].tried:
                self._backlog.drop(unit)
                return gap
        fresh = self._backlog.next_fresh()
        if fresh is not None:
            return Part(fresh, self._coverage.position(fresh), self._coverage.stop(fresh))
        for unit in self._backlog.again:
            gap = self._gap(unit)
            if gap is not None and self._roster.all_have_tried(self._open[unit].tried):
                self._backlog.drop(unit)
                return gap
        return None

    def _assign(self, worker: str, part: Part, now: float) -> None:
        self._number += 1
        unit, start, stop = part.unit, part.start, part.stop
        tiles = self._tiles(unit, start, stop)
        attempt = Attempt(self._number, unit, worker, start, stop, tiles, now, eager=self._is_nearly_over())
        self.attempts[attempt.number] = attempt
        self._open.setdefault(unit, OpenUnit()).attempts.append(attempt.number)
        self._roster.assign(worker, attempt.number)
        self._actions.append(Assign(attempt))
        if self._gap(unit) is not None:
            self._backlog.repeat(unit)

    def _gap(self, unit: int) -> Part | None:
        """The first rows of a unit that are neither on disk nor being computed."""
        live = [self.attempts[number] for number in self._open[unit].attempts]
        gap = self._coverage.gap(unit, [(a.start, a.stop) for a in live])
        return None if gap is None else Part(unit, *gap)

    # the end of a job

    def _help_out(self, now: float) -> None:
        """Nothing is left to hand out: let idle workers take over what waits, and part what runs."""
        waiting = [a for a in self.attempts.values() if self._is_waiting(a, now)]
        for worker in self._roster.idle:
            if waiting:
                attempt = waiting.pop()
                self._release(attempt)
                self._assign(worker, attempt.part, now)
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
        return self._roster.attempts(attempt.worker)[0] != attempt.number or now - attempt.seen > UPTAKE

    def _part_to_help_with(self, worker: str, now: float) -> Part | None:
        running = [a for a in self.attempts.values() if a.began is not None and not a.released]
        rate = self._roster.rate(worker) or mean_rate(running, now)
        if not rate:
            return None
        outlooks = [self._outlook(attempt, now, rate) for attempt in running]
        return choose_part(outlooks, rate, len(self._roster), self._grain)

    def _outlook(self, attempt: Attempt, now: float, rate: float) -> Outlook:
        begins = [start for start, _ in self._coverage.islands(attempt.unit)]
        others = [self.attempts[n] for n in self._open[attempt.unit].attempts if n != attempt.number]
        begins += [other.start for other in others if other.start >= attempt.position]
        return foresee(attempt, begins, now, rate)

    # the end of a unit

    def _cover(self, unit: int, start: int, stop: int) -> None:
        """Take down rows that are on disk; end what is finished by them, unit or attempt."""
        if unit not in self._open:  # finished, or given up
            return
        known = self._coverage.position(unit)
        position = self._coverage.cover(unit, start, stop)
        if position > known:
            self._fruitless = self._unwritable = 0
        if position >= self._coverage.stop(unit):
            self._close(unit)
            return
        for number in list(self._open[unit].attempts):
            attempt = self.attempts[number]
            if self._coverage.is_covered(unit, attempt.position, attempt.stop):
                self._release(attempt)

    def _close(self, unit: int) -> None:
        """A unit needs no more work."""
        for number in list(self._open[unit].attempts):
            self._release(self.attempts[number])
        self._backlog.drop(unit)
        del self._open[unit]
        self._coverage.forget(unit)
        self.left -= 1

    def _give_up(self, unit: int, cause: str, attempts: int) -> None:
        failure = Failure(unit, cause, attempts)
        self.failures.append(failure)
        self._close(unit)
        self._fruitless += 1
        if self._fruitless >= FRUITLESS:
            self.stopped = failure

    # the end of an attempt

    def _release(self, attempt: Attempt) -> None:
        """Take an attempt back; it keeps its place until the worker has confirmed."""
        attempt.released = True
        self._open[attempt.unit].attempts.remove(attempt.number)
        self._actions.append(Release(attempt))

    def _end(self, number: int) -> Attempt:
        attempt = self.attempts.pop(number)
        self._roster.end(attempt.worker, number)
        if not attempt.released:
            self._open[attempt.unit].attempts.remove(number)
        return attempt

    def _lost(self, attempt: Attempt, cause: str | None, *, death: bool) -> None:
        """An attempt has to be repeated, or its unit given up; without a cause it was nobody's fault."""
        if attempt.released:
            return
        unit = self._open[attempt.unit]
        if cause is not None:
            unit.blame(attempt, death=death)
            if unit.errors >= self.limits.errors or unit.deaths >= self.limits.deaths:
                self._give_up(attempt.unit, cause, unit.errors + unit.deaths)
                return
        if self._gap(attempt.unit) is not None:
            self.retries += 1
            self._backlog.repeat(attempt.unit)
