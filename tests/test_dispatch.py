"""Which worker computes what next, on a simulated clock: every unit is finished or given up, whatever happens."""

from __future__ import annotations

import heapq
import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilelab.geometry import Cuts, Units
from tilelab.run.cluster.attempt import Assign, Attempt, Limits, Release, Restart
from tilelab.run.cluster.backlog import largest_first
from tilelab.run.cluster.coverage import Coverage
from tilelab.run.cluster.dispatch import Dispatcher
from tilelab.run.cluster.helping import choose_part, foresee
from tilelab.run.cluster.roster import STREAK, Roster

GRAIN = 4


class Simulation:
    """Workers that take a random time for a unit, report, die and fail at random."""

    def __init__(self, units, rng, *, workers, death=0.0, bad=(), hang=0.0, limits=None):
        self.units, self.rng, self.death, self.bad, self.hang = units, rng, death, set(bad), hang
        self.positions = {}
        self.disk = {unit.index: set() for unit in units}
        self.now = 0.0
        self.events = []
        self.started = {}  # unit -> times it was started
        self.order = 0
        self.queues = {}
        self.names = 0
        self.dispatcher = make_dispatcher(units, self.positions, self.record, limits or Limits(patience=50))
        for _ in range(workers):
            self.join()

    def record(self, unit, position):
        """What is recorded must be on disk."""
        begin = self.units[unit].box.start[1]
        assert self.positions.get(unit, begin) < position
        assert self.disk[unit] >= set(range(begin, position))
        self.positions[unit] = position

    def join(self):
        self.names += 1
        name = f"w{self.names}"
        self.queues[name] = []
        self.dispatcher.join(name)

    def at(self, delay, what, *args):
        self.order += 1
        heapq.heappush(self.events, (self.now + delay, self.order, what, args))

    def begin(self, worker):
        """A worker takes up the first of what it was sent."""
        attempt = self.queues[worker][0]
        assert (attempt.start - self.units[attempt.unit].box.start[1]) % GRAIN == 0
        self.dispatcher.started(attempt.number, self.now)
        self.started[attempt.unit] = self.started.get(attempt.unit, 0) + 1
        if self.rng.random() < self.hang:
            return
        if self.rng.random() < self.death:
            self.at(self.rng.uniform(0, 2), "die", worker)
        self.at(self.rng.uniform(0.5, 1.5), "step", worker, attempt, attempt.start)

    def step(self, worker, attempt, position):
        if worker not in self.queues or attempt not in self.queues[worker]:
            return
        if attempt.released:
            self.dispatcher.ended(attempt.number)
        elif attempt.unit in self.bad:
            self.dispatcher.failed(attempt.number, "bad")
        else:
            position = min(attempt.stop, position + GRAIN)
            self.disk[attempt.unit].update(range(attempt.start, position))
            if position < attempt.stop:
                self.dispatcher.reported(attempt.number, position - attempt.start, position, self.now)
                self.at(self.rng.uniform(0.5, 1.5), "step", worker, attempt, position)
                return
            self.dispatcher.done(attempt.number, self.now)
        self.queues[worker].remove(attempt)
        if self.queues[worker]:
            self.begin(worker)

    def die(self, worker):
        if worker in self.queues:
            del self.queues[worker]
            self.dispatcher.leave(worker)
            self.join()

    def run(self, most=20000):
        for _ in range(most):
            for action in self.dispatcher.actions(self.now):
                if isinstance(action, Assign):
                    queue = self.queues[action.attempt.worker]
                    queue.append(action.attempt)
                    assert len(queue) <= 2
                    if len(queue) == 1:
                        self.begin(action.attempt.worker)
                elif isinstance(action, Release):
                    attempt = action.attempt
                    queue = self.queues.get(attempt.worker, [])
                    if attempt in queue[1:]:  # was waiting
                        queue.remove(attempt)
                        self.dispatcher.ended(attempt.number)
                elif isinstance(action, Restart):
                    self.queues.pop(action.worker, None)
                    self.join()
            if self.dispatcher.finished:
                return
            if self.events:
                self.now, _, what, args = heapq.heappop(self.events)
                getattr(self, what)(*args)
            else:
                self.now += 10.0
            self.dispatcher.check_silence(self.now)
        pytest.fail("the job does not end")


def make_dispatcher(units, positions, record=None, limits=None):
    coverage = Coverage(units, 1, positions, record or positions.__setitem__)
    return Dispatcher(coverage, GRAIN, lambda unit, start, stop: stop - start, limits)


class Steady:
    """Random numbers without surprises."""

    def random(self):
        return 0.5

    def uniform(self, low, high):
        return (low + high) / 2


def make_units(shape, extents):
    return Units(tuple(Cuts(n, e) for n, e in zip(shape, extents, strict=True)))


@settings(max_examples=200)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_every_unit_is_finished_or_given_up_whatever_happens(data, seed):
    shape = tuple(data.draw(st.integers(1, 30)) for _ in range(3))
    units = make_units(shape, [GRAIN * data.draw(st.integers(1, 4)) for _ in range(3)])
    bad = data.draw(st.sets(st.integers(0, len(units) - 1), max_size=3))
    simulation = Simulation(
        units,
        random.Random(seed),  # noqa: S311
        workers=data.draw(st.integers(1, 6)),
        death=data.draw(st.sampled_from([0, 0.1])),
        hang=data.draw(st.sampled_from([0, 0.05])),
        bad=bad,
        limits=Limits(deaths=50, patience=50),
    )
    simulation.run()
    dispatcher = simulation.dispatcher
    assert {f.unit for f in dispatcher.failures} == bad
    assert all(f.cause == "bad" and f.attempts >= 3 for f in dispatcher.failures)
    assert dispatcher.left == 0
    assert dispatcher.stopped is None
    finished = {u for u, p in simulation.positions.items() if p == units[u].box.stop[1]}
    assert finished == set(range(len(units))) - bad


def test_without_trouble_each_unit_is_started_once():
    units = make_units((40, GRAIN, 1), (1, GRAIN, 1))  # nothing to part
    simulation = Simulation(units, Steady(), workers=4)
    simulation.run()
    assert simulation.started == dict.fromkeys(range(40), 1)
    assert simulation.dispatcher.retries == 0


def test_a_unit_that_kills_its_worker_is_given_up_and_goes_on_from_what_is_on_disk_before():
    units = make_units((1, 40, 1), (1, 20, 1))
    dispatcher = make_dispatcher(units, {}, limits=Limits(deaths=2))
    for n in range(4):
        dispatcher.join(f"w{n}")
    first = next(a.attempt for a in dispatcher.actions(0) if a.attempt.unit == 0)
    dispatcher.started(first.number, 0)
    dispatcher.reported(first.number, 8, 8, 1)
    dispatcher.leave(first.worker)  # it got on: this death does not count
    for _ in range(2):
        (attempt,) = (a.attempt for a in dispatcher.actions(2) if a.attempt.unit == 0)
        assert attempt.start == 8
        assert attempt.tiles == 12
        assert attempt.worker != first.worker
        dispatcher.started(attempt.number, 3)
        assert len(dispatcher.failures) == 0
        dispatcher.leave(attempt.worker, "killed")
    assert [(f.unit, f.cause, f.attempts) for f in dispatcher.failures] == [(0, "killed", 2)]


def test_a_failed_unit_goes_to_another_worker_first():
    units = make_units((6, 4, 1), (1, 4, 1))
    dispatcher = make_dispatcher(units, {})
    dispatcher.join("a")
    dispatcher.join("b")
    attempts = {a.attempt.worker: a.attempt for a in dispatcher.actions(0)}
    failed = attempts["a"]
    dispatcher.failed(failed.number, "broken")
    for a in dispatcher.actions(0):
        assert (a.attempt.worker, a.attempt.unit) != ("a", failed.unit)


def run_two(rows, slow_reports):
    """A slow worker has done some of its unit when a fast one is through with the other two; what comes next."""
    units = make_units((3, rows, 1), (1, rows, 1))
    positions = {}
    dispatcher = make_dispatcher(units, positions)
    dispatcher.join("slow")
    dispatcher.join("fast")
    first = {a.attempt.worker: a.attempt for a in dispatcher.actions(0)}
    for attempt in first.values():
        dispatcher.started(attempt.number, 0)
    dispatcher.done(first["fast"].number, 1)
    (second,) = dispatcher.actions(1)
    dispatcher.started(second.attempt.number, 1)
    dispatcher.reported(first["slow"].number, *slow_reports, 2)
    dispatcher.done(second.attempt.number, 2)
    return dispatcher, positions, first["slow"], dispatcher.actions(2)


def test_an_idle_worker_takes_over_the_rear_of_what_is_slow():
    dispatcher, positions, slow, (help_,) = run_two(100, (20, 20))  # 10 rows a second; the helper does 100
    part = help_.attempt
    assert (part.worker, part.unit, part.start, part.stop) == ("fast", slow.unit, 28, 100)  # 27.3, at a shard
    assert part.eager
    dispatcher.started(part.number, 2)
    dispatcher.done(part.number, 2.7)
    assert positions[slow.unit] == 20  # what lies behind a gap is not recorded
    assert not dispatcher.finished
    dispatcher.reported(slow.number, 28, 28, 2.8)
    assert positions[slow.unit] == 100
    assert dispatcher.finished
    assert dispatcher.actions(3) == [Release(slow)]


def test_a_worker_that_halts_is_relieved_of_all_that_is_not_on_disk():
    dispatcher, positions, slow, (help_,) = run_two(100, (0, 0))
    assert (help_.attempt.start, help_.attempt.stop) == (0, 100) or help_.attempt.start > 0
    parts = [help_.attempt]
    now = 2.0
    while not dispatcher.finished:
        part = parts[-1]
        dispatcher.started(part.number, now)
        now += 1
        dispatcher.done(part.number, now)
        parts += [a.attempt for a in dispatcher.actions(now) if isinstance(a, Assign)]
        assert len(parts) < 10
    assert positions[slow.unit] == 100
    assert min(part.start for part in parts) == 0


def test_what_two_workers_share_survives_the_loss_of_either():
    for lost in ("slow", "fast"):
        dispatcher, positions, slow, (help_,) = run_two(100, (20, 20))
        dispatcher.started(help_.attempt.number, 2)
        dispatcher.reported(help_.attempt.number, 40, 68, 2.5)
        assert positions[slow.unit] == 20
        dispatcher.leave(lost)
        dispatcher.join("third")
        parts = [a.attempt for a in dispatcher.actions(3) if isinstance(a, Assign)]
        if lost == "slow":
            assert [(p.start, p.stop) for p in parts] == [(20, 28)]
        else:  # the slow one would go on to the end, past what the helper left on disk
            assert [p.unit for p in parts] in ([], [slow.unit])
            dispatcher.started(slow.number, 3)
            dispatcher.reported(slow.number, 28, 28, 3)
            assert positions[slow.unit] == 68


def test_a_job_that_fails_everywhere_is_stopped():
    units = make_units((100, 4, 1), (1, 4, 1))
    simulation = Simulation(units, random.Random(0), workers=3, bad=range(100))  # noqa: S311
    simulation.run()
    assert simulation.dispatcher.stopped.cause == "bad"
    assert len(simulation.dispatcher.failures) < 20


def test_a_worker_that_cannot_do_the_job_gets_none_of_it():
    units = make_units((6, 4, 1), (1, 4, 1))
    dispatcher = make_dispatcher(units, {})
    dispatcher.join("a")
    dispatcher.join("b")
    dispatcher.actions(0)
    dispatcher.refuse("a")
    dispatcher.join("a")
    assert dispatcher.workers == 1
    assert {a.attempt.worker for a in dispatcher.actions(0)} <= {"b"}
    assert dispatcher.left == 6


@settings(max_examples=100)
@given(data=st.data())
def test_units_are_ordered_by_size_and_none_is_missing(data):
    shape = [data.draw(st.integers(1, 40)) for _ in range(3)]
    units = make_units(shape, [data.draw(st.integers(1, 20)) for _ in range(3)])
    order = list(largest_first(units))
    assert sorted(order) == list(range(len(units)))
    full = tuple(c.extent for c in units.cuts)
    is_full = [units[i].box.shape == full for i in order]
    assert is_full == sorted(is_full, reverse=True)


def test_a_petabyte_of_units_is_never_listed():
    units = make_units((10**6, 10**5, 10**4), (1, 2048, 2048))
    tracemalloc.start()
    dispatcher = make_dispatcher(units, {}, record=lambda unit, position: None)
    for n in range(100):
        dispatcher.join(f"w{n}")
    for number in range(1, 5001):
        dispatcher.actions(number)
        dispatcher.done(number, number)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
    assert dispatcher.left == len(units) - 5000


# What it asks


ROWS = (
    st.tuples(st.integers(0, 40), st.integers(1, 20))
    .map(lambda r: (r[0], min(40, r[0] + r[1])))
    .filter(lambda r: r[0] < r[1])
)


@settings(max_examples=300)
@given(covered=st.lists(ROWS, max_size=8), taken=st.lists(ROWS, max_size=4))
def test_what_is_on_disk_what_is_taken_and_the_gaps_are_the_whole_unit(covered, taken):
    recorded = {}
    coverage = Coverage(make_units((1, 40, 1), (1, 40, 1)), 1, recorded, recorded.__setitem__)
    disk = set()
    for start, stop in covered:
        before = coverage.position(0)
        disk |= set(range(start, stop))
        position = coverage.cover(0, start, stop)
        assert position == coverage.position(0) >= before
        assert position == next(row for row in range(41) if row not in disk)
        assert disk == set(range(position)).union(*(range(*island) for island in coverage.islands(0)))
    assert coverage.is_finished(0) == (len(disk) == 40)
    for start, stop in taken:
        assert coverage.is_covered(0, start, stop) == (disk >= set(range(start, stop)))
    seen = disk.union(*(range(*rows) for rows in taken))
    taken = list(taken)
    while (gap := coverage.gap(0, taken)) is not None:
        rows = set(range(*gap))
        assert rows
        assert not rows & seen
        assert gap[0] == min(set(range(40)) - seen)
        seen |= rows
        taken.append(gap)
    assert seen == set(range(40))


@st.composite
def running(draw, unit):
    """An attempt that was taken up some time ago, and where others began with rows of its unit."""
    start = GRAIN * draw(st.integers(0, 20))
    attempt = Attempt(unit, unit, f"w{unit}", start, start + draw(st.integers(1, 100)), draw(st.integers(1, 300)), 0.0)
    attempt.began = 0.0
    attempt.position = draw(st.integers(start, attempt.stop - 1))
    attempt.done = draw(st.integers(0, attempt.tiles))
    return attempt, draw(st.lists(st.integers(attempt.position, attempt.stop), max_size=2))


@settings(max_examples=300)
@given(data=st.data())
def test_a_helper_takes_the_rear_of_the_slowest_and_is_not_the_last_itself(data):
    attempts = [data.draw(running(unit)) for unit in range(data.draw(st.integers(0, 4)))]
    now, rate = data.draw(st.floats(0.5, 1000)), data.draw(st.floats(0.1, 100))
    outlooks = [foresee(attempt, begins, now, rate) for attempt, begins in attempts]
    for (attempt, begins), outlook in zip(attempts, outlooks, strict=True):
        assert attempt.position <= outlook.at <= attempt.stop
        assert outlook.end <= attempt.stop
        assert outlook.seconds == 0 or not any(begin < outlook.end for begin in begins)
    part = choose_part(outlooks, rate, len(attempts) + 1, GRAIN)
    if part is None:
        return
    slowest = max(outlooks, key=lambda outlook: outlook.seconds)
    attempt = slowest.attempt
    assert slowest.seconds > 0
    assert part.unit == attempt.unit
    assert part.stop == slowest.end
    assert attempt.position <= part.start < part.stop
    assert part.start % GRAIN == 0 or part.start == attempt.position
    rows_a_second = rate * attempt.rows / attempt.tiles
    assert (part.stop - part.start - GRAIN) / rows_a_second <= slowest.seconds


def test_nobody_is_helped_where_somebody_is_at_the_rows_already():
    attempt = Attempt(1, 0, "w", 0, 100, 100, 0.0, began=0.0)
    attempt.done = attempt.position = 20
    assert choose_part([foresee(attempt, [], 2.0, 10.0)], 10.0, 2, GRAIN).stop == 100
    assert choose_part([foresee(attempt, [60], 2.0, 10.0)], 10.0, 2, GRAIN).stop == 60
    assert choose_part([foresee(attempt, [20], 2.0, 10.0)], 10.0, 2, GRAIN) is None


def test_a_worker_that_always_fails_is_benched_as_long_as_there_are_others():
    roster = Roster()
    roster.join("bad")
    roster.join("good")
    for _ in range(STREAK):
        roster.erred("bad")
    assert roster.idle == ["good"]
    assert roster.all_have_tried({"good"})
    roster.forget("good")
    assert roster.idle == ["bad"]  # it has to do
