"""How far tilelab scales: the real planner and the real dispatcher on a simulated clock, with costs measured here.

A simulated worker computes 278 megapixels of image per second (a terabyte per hour), give or take `SPREAD`.  The client
and the scheduler together are one server: every unit sent and every message received takes it some time, one after the
other.  Those times are measured with the real client, Dask's real scheduler and real workers whose engine does nothing
(`benchmarks.measure.idle_units`).

Counted is the time from when all workers have loaded their engine to when the last row is on disk; reading and writing
are taken as fast enough, and the few coarse levels that the client makes at the end are left out.
"""

from __future__ import annotations

import heapq
import random
import time
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import numpy as np

from benchmarks.bench.settings import VolumeShape
from tilelab.engines.identity import identity_spec
from tilelab.engines.overrides import SpecOverrides
from tilelab.run.cluster.attempt import Action, Assign, Attempt, Restart
from tilelab.run.cluster.coverage import Coverage
from tilelab.run.cluster.crew import REPORT_SECONDS, REPORTS_PER_SECOND
from tilelab.run.cluster.dispatch import Dispatcher
from tilelab.run.cluster.order import count_tiles
from tilelab.run.plan.plan import Plan, make_plan
from tilelab.run.plan.request import ImageFacts, Request, Written

PIXELS_PER_SECOND = 278e6
SPREAD = 0.03  # of the speeds of workers, and of a worker's units
QUIET = 6  # units left per worker above which nobody asks how far a unit is


@dataclass(frozen=True)
class Costs:
    """Seconds.

    submit: of the client and the scheduler for each unit sent.
    message: of both for each message received.
    latency: from the client to a worker, and back.
    start: of a worker for each unit: the output is opened, the first rows are read, the queues fill and run empty.
    """

    submit: float
    message: float
    latency: float
    start: float


def plan_for(shape: VolumeShape, workers: int) -> Plan:
    """The plan of a volume that a 2-D network segments slice by slice, tiles of 512 px with an overlap of 64."""
    spec = identity_spec(2, SpecOverrides(tile=(512, 512), overlap=(64, 64)))
    image = ImageFacts(shape, (1, 2048, 2048), 1, np.dtype(np.uint8))
    return make_plan(Request.of(image, spec, Written(True, (1,)), batch=8), memory_limit=2 << 30, workers=workers)


class Simulation:
    """One job; `run` gives its duration in simulated seconds."""

    def __init__(self, plan: Plan, workers: int, costs: Costs, seed: int = 0) -> None:
        self.plan, self.workers, self.costs = plan, workers, costs
        self.axis = plan.frame.sweep_axis
        self.random = random.Random(seed)  # noqa: S311 - a simulation
        # a worker that has nothing to do twice would take exactly pixels / PIXELS_PER_SECOND
        self.tile_seconds = plan.pixels / len(plan.lattice) / PIXELS_PER_SECOND
        self.report_seconds = max(REPORT_SECONDS, workers / REPORTS_PER_SECOND)
        self.positions: dict[int, int] = {}
        self.grain = plan.layout.grain[self.axis]
        coverage = Coverage(plan.units, self.axis, self.positions, self.positions.__setitem__)
        self.dispatcher = Dispatcher(coverage, self.grain, partial(count_tiles, plan))
        speeds = [max(0.5, self.random.gauss(1, SPREAD)) for _ in range(workers)]
        self.speed = {f"w{n}": speed * workers / sum(speeds) for n, speed in enumerate(speeds)}
        self.queues: dict[str, list[Attempt]] = {name: [] for name in self.speed}
        self.events: list[tuple[float, int, str, Any]] = []
        self.order = count()
        self.server_free = 0.0
        self.server_busy = 0.0

    def at(self, when: float, what: str, about: Any) -> None:
        """Something will happen."""
        heapq.heappush(self.events, (when, next(self.order), what, about))

    def serve(self, now: float, seconds: float) -> float:
        """Occupy the client and scheduler; returns when they are done."""
        self.server_free = max(self.server_free, now) + seconds
        self.server_busy += seconds
        return self.server_free

    def run(self) -> float:
        """To the end."""
        for name in self.queues:
            self.dispatcher.join(name)
        self.carry_out(self.dispatcher.actions(0.0), 0.0)
        now = 0.0
        while not self.dispatcher.finished:
            now, _, what, about = heapq.heappop(self.events)
            getattr(self, what)(now, about)
        return now

    def carry_out(self, actions: list[Action], now: float) -> None:
        """What the client does with the dispatcher's word."""
        for action in actions:
            if isinstance(action, Restart):
                raise TypeError("no worker hangs here")
            sent = self.serve(now, self.costs.submit if isinstance(action, Assign) else self.costs.message)
            what = "arrive" if isinstance(action, Assign) else "take_back"
            self.at(sent + self.costs.latency, what, action.attempt)

    def arrive(self, now: float, attempt: Attempt) -> None:
        """A unit reaches its worker."""
        queue = self.queues[attempt.worker]
        queue.append(attempt)
        if len(queue) == 1:
            self.begin(now, attempt)

    def take_back(self, now: float, attempt: Attempt) -> None:
        """A worker learns that an attempt is not wanted."""
        queue = self.queues[attempt.worker]
        if attempt in queue:
            running = queue[0] is attempt
            queue.remove(attempt)
            self.tell(now, "ended", attempt)
            if running and queue:
                self.begin(now, queue[0])

    def begin(self, now: float, attempt: Attempt) -> None:
        """A worker takes a unit up, and will be done at a time that is known now."""
        self.tell(now, "started", attempt)
        noise = max(0.5, self.random.gauss(1, SPREAD))
        seconds = self.costs.start + attempt.tiles * self.tile_seconds / self.speed[attempt.worker] * noise
        self.at(now + seconds, "finish", attempt)
        pause = self.report_seconds
        if attempt.eager:
            pause = min(pause, seconds * self.grain / (attempt.stop - attempt.start))
        if self.dispatcher.left > QUIET * self.workers:  # what is said meanwhile changes nothing, but takes time
            self.at(now + seconds / 2, "chatter", int(seconds / pause))
        elif seconds > pause:
            self.at(now + pause, "report", (attempt, now, seconds, pause))

    def chatter(self, now: float, messages: int) -> None:
        """So many reports of a unit reach the client."""
        self.serve(now, messages * self.costs.message)

    def report(self, now: float, about: tuple[Attempt, float, float, float]) -> None:
        """A worker says how far it is."""
        attempt, began, seconds, pause = about
        if self.queues[attempt.worker][:1] == [attempt]:
            part = (now - began) / seconds
            row = attempt.start + part * (attempt.stop - attempt.start)
            self.tell(now, "reported", (attempt, int(part * attempt.tiles), int(row // self.grain * self.grain)))
            if now + pause < began + seconds:
                self.at(now + pause, "report", about)

    def finish(self, now: float, attempt: Attempt) -> None:
        """A part is on disk."""
        queue = self.queues[attempt.worker]
        if not queue or queue[0] is not attempt:
            return
        queue.pop(0)
        self.tell(now, "done", attempt)
        if queue:
            self.begin(now, queue[0])

    def tell(self, now: float, what: str, about: Any) -> None:
        """A message on its way to the client, which may have others to read first."""
        self.at(now + self.costs.latency, "receive", (what, about))

    def receive(self, now: float, message: tuple[str, Any]) -> None:
        """The client reads a message and acts."""
        what, about = message
        when = self.serve(now, self.costs.message)
        self.at(when, "understand", (what, about))

    def understand(self, now: float, message: tuple[str, Any]) -> None:
        """The message was read."""
        what, about = message
        dispatcher = self.dispatcher
        if what == "started":
            dispatcher.started(about.number, now)
        elif what == "ended":
            dispatcher.ended(about.number)
        elif what == "reported":
            attempt, tiles, row = about
            dispatcher.reported(attempt.number, tiles, max(row, attempt.start), now)
        else:
            dispatcher.done(about.number, now)
        self.carry_out(dispatcher.actions(now), now)


def simulate(volume: str, shape: VolumeShape, workers: int, costs: Costs, seed: int = 0) -> dict[str, Any]:
    """One point of the curve: a volume, its name and its shape."""
    plan = plan_for(shape, workers)
    began = time.perf_counter()
    simulation = Simulation(plan, workers, costs, seed)
    seconds = simulation.run()
    ideal = plan.pixels / PIXELS_PER_SECOND / workers
    return {
        "volume": volume,
        "workers": workers,
        "units": len(plan.units),
        "computed_twice": plan.recomputed,
        "ideal_seconds": ideal,
        "seconds": seconds,
        "efficiency": ideal / seconds,
        "client_busy": min(1.0, simulation.server_busy / seconds),
        "simulating_seconds": time.perf_counter() - began,
    }
