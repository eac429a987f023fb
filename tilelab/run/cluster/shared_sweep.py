"""A job shared among workers, seen from the client: messages in, actions out.

The dispatcher decides; here its actions are carried out, the journal is kept and the progress is shown.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec

from tilelab.errors import ClusterError, Incomplete, OutputError
from tilelab.io.results.sink import Stored
from tilelab.run.cluster.attempt import Assign, Attempt, Failure, Limits, Release, Restart
from tilelab.run.cluster.coverage import Coverage
from tilelab.run.cluster.dispatch import Dispatcher
from tilelab.run.cluster.order import Order, count_tiles
from tilelab.run.cluster.outbox import Outbox, RunUnit
from tilelab.run.cluster.task import run_unit
from tilelab.run.journal.local import Journal
from tilelab.run.sweep.job import Stalls

RESTART_SECONDS = 30.0
LINGER_SECONDS = 10.0  # how long the end waits for workers that are still at something no longer wanted


class SharedSweep:
    """One job on its way, all in the calling thread.

    Attributes:
        dispatcher: decides.
        lost: number of workers that went away.
    """

    def __init__(
        self,
        client: Any,
        order: Order,
        journal: Journal,
        *,
        progress: Callable[[int], None],
        note: Callable[[str], None],
        unfit: Mapping[str, str] | None = None,
        task: RunUnit = run_unit,
    ) -> None:
        """Get ready.

        Args:
            client: a connected `distributed.Client`.
            order: what the workers are sent.
            journal: of the result; written here alone.
            progress: called with the number of tiles that are done, or lost when it is negative.
            note: called with what the user should know.
            unfit: workers that get nothing.
            task: what a worker does.
        """
        self.client, self.order, self.journal = client, order, journal
        self.progress, self.note = progress, note
        self.unfit = unfit or {}
        self.plan = order.plan
        self.axis = self.plan.frame.sweep_axis
        self.patience = order.options.patience_seconds
        self.stalls = Stalls()
        self.lost = 0
        self.checked = 0.0
        self.alone_since: float | None = None
        self.seen: set[str] = set()
        self.gpu_workers: set[str] = set()
        self.shown: dict[int, int] = {}  # tiles of each unit in flight that the progress bar has
        self.restarts: list[threading.Thread] = []
        self.inbox: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self.outbox = Outbox(client, order, task, self.inbox.put)
        self.tiles = partial(count_tiles, order.plan)
        self.positions = dict(journal.positions)
        coverage = Coverage(self.plan.units, self.axis, self.positions, self._record)
        grain = self.plan.layout.grain[self.axis]
        self.dispatcher = Dispatcher(coverage, grain, self.tiles, Limits(patience=self.patience))

    def run(self) -> Stalls:
        """To the end.

        Raises:
            Incomplete, OutputError, ClusterError: see `Crew.sweep_units`.
        """
        self.client.subscribe_topic(self.order.topic, lambda event: self.inbox.put(event[1]))
        self.client.subscribe_topic("all", self._on_membership)
        for address in self.client.nthreads():
            self._join(address)
        try:
            while not self.dispatcher.finished:
                self._act()
                self._receive(1.0)
                self._check_cluster(time.monotonic())
            self._linger()
        finally:
            self._leave()
        if (stopped := self.dispatcher.stopped) is not None:
            kind = OutputError if stopped.cause.startswith("cannot write") else Incomplete
            raise kind(f"stopped, since nothing succeeds any more: {stopped.cause}")
        if self.dispatcher.failures:
            raise Incomplete(self._explain(self.dispatcher.failures))
        return self.stalls

    @property
    def _again(self) -> str:
        return self.order.options.again(self.order.output)

    def _check_cluster(self, now: float) -> None:
        """Look, once a second, for workers that hang; fail when all workers or the scheduler are gone for good."""
        if now - self.checked >= 1.0:
            self.checked = now
            self.dispatcher.check_silence(now)
        self.alone_since = None if self.dispatcher.workers else self.alone_since or now
        if self.alone_since is not None and now - self.alone_since > self.patience:
            raise ClusterError(
                f"no worker was left for {now - self.alone_since:.0f} s; what is finished is kept, "
                f"{self._again} continues"
            )
        if self.client.status not in ("running", "newly-created"):
            raise ClusterError(
                f"the scheduler at {self.client.scheduler.address} is gone; what is finished is kept, "
                f"{self._again} continues"
            )

    # messages

    def _receive(self, seconds: float) -> None:
        """Handle all messages that are there, waiting for the first at most so long."""
        with contextlib.suppress(queue.Empty):
            message = self.inbox.get(timeout=seconds)
            while True:
                self._handle(message)
                message = self.inbox.get_nowait()

    def _on_membership(self, event: tuple[float, Mapping[str, Any]]) -> None:
        what = event[1].get("action")
        if what in ("add-worker", "remove-worker"):
            self.inbox.put({"what": what, "worker": event[1]["worker"]})

    def _handle(self, message: Mapping[str, Any]) -> None:
        what, now = message["what"], time.monotonic()
        if what == "add-worker":
            self._join(message["worker"])
        elif what == "remove-worker":
            self._on_death(message["worker"])
        elif (attempt := self.dispatcher.attempts.get(message["attempt"])) is None:
            pass  # over already: its worker was given up, or its unit was raced
        elif what == "lost":  # Dask could not run it
            self.dispatcher.failed(attempt.number, message["cause"])
            self._drop(attempt)
        else:
            self._handle_attempt(what, attempt, message, now)

    def _on_death(self, worker: str) -> None:
        self.lost += worker in self.seen
        self.seen.discard(worker)
        attempts = [a for a in self.dispatcher.attempts.values() if a.worker == worker]
        self.dispatcher.leave(worker)
        for attempt in attempts:
            self._drop(attempt)

    def _handle_attempt(self, what: str, attempt: Attempt, message: Mapping[str, Any], now: float) -> None:
        dispatcher, number = self.dispatcher, attempt.number
        if message.get("stored") is not None:
            self.journal.record(attempt.unit, msgspec.convert(message["stored"], Stored))
        if what == "started":
            dispatcher.started(number, now)
        elif what == "report":
            if not attempt.released:
                self._show(attempt.unit, message["tiles"] - attempt.done)
            dispatcher.reported(number, message["tiles"], message["position"], now)
        elif what == "done":
            self.stalls.add(Stalls(**{name: message[name] for name in vars(Stalls())}))
            self._show(attempt.unit, attempt.tiles - attempt.done)
            dispatcher.done(number, now)
            self.outbox.forget(attempt)
        elif what == "failed":
            dispatcher.failed(number, message["cause"], unwritable=message["unwritable"])
            self._drop(attempt, message.get("tiles"))
        elif what == "ended":
            dispatcher.ended(number)
            self._drop(attempt, message.get("tiles"))
        elif what == "refused":
            self.note(f"worker {attempt.worker} is left out, its engine differs: {message['why']}")
            dispatcher.refuse(attempt.worker)
            self._drop(attempt)

    def _join(self, address: str) -> None:
        if address in self.unfit or address in self.seen:
            return
        self.seen.add(address)
        worker = self.client.scheduler_info()["workers"].get(address, {})
        if worker.get("resources", {}).get("GPU"):
            self.gpu_workers.add(address)
        self.dispatcher.join(address)

    def _record(self, unit: int, position: int) -> None:
        """The dispatcher says that all of a unit before `position` is on disk."""
        self.positions[unit] = position
        box = self.plan.units[unit].box
        if position >= box.stop[self.axis] and unit in self.shown:
            self.progress(self.plan.lattice.count(box) - self.shown.pop(unit))

    # progress

    def _show(self, unit: int, tiles: int) -> None:
        """Move the progress bar; parts of a unit overlap by some tiles, which `_record` corrects at its end."""
        if unit in self.shown and tiles:
            self.shown[unit] += tiles
            self.progress(tiles)

    def _drop(self, attempt: Attempt, tiles: int | None = None) -> None:
        """An attempt was in vain from `position` on, or others had done the rest; it inferred so many tiles itself.

        Blank ones among them are counted, too: how many they were is told at the end of an attempt alone.
        """
        self.stalls.tiles += attempt.done if tiles is None else tiles
        if not attempt.released:
            self._show(attempt.unit, self.tiles(attempt.unit, attempt.start, attempt.position) - attempt.done)
        self.outbox.forget(attempt)

    # actions

    def _act(self) -> None:
        assigned = []
        for action in self.dispatcher.actions(time.monotonic()):
            match action:
                case Assign(attempt):
                    assigned.append(attempt)
                case Release(attempt):
                    self.outbox.take_back(attempt)
                case Restart(worker):
                    self._restart(worker)
        for attempt in assigned:
            begin = self.plan.units[attempt.unit].box.start[self.axis]
            self.shown.setdefault(attempt.unit, self.tiles(attempt.unit, begin, attempt.start))
        # a worker that counts its GPUs is asked for one, so that what others run there does not share it
        self.outbox.send([a for a in assigned if a.worker in self.gpu_workers], resources={"GPU": 1})
        self.outbox.send([a for a in assigned if a.worker not in self.gpu_workers])

    def _restart(self, worker: str) -> None:
        """End a hung worker's process; its nanny starts another.  Takes a while, so not in this thread."""
        self.note(f"worker {worker} hangs and is restarted")

        def restart() -> None:
            with contextlib.suppress(Exception):
                self.client.restart_workers([worker], timeout=RESTART_SECONDS, raise_for_error=False)

        self.restarts.append(threading.Thread(target=restart, name="tilelab-restart", daemon=True))
        self.restarts[-1].start()

    def _linger(self) -> None:
        """Give workers that are still at something unwanted a moment to stop: the result is about to be renamed."""
        self._act()
        deadline = time.monotonic() + LINGER_SECONDS
        while self.dispatcher.attempts and time.monotonic() < deadline:
            self._receive(0.1)
        for attempt in self.dispatcher.attempts.values():
            self.stalls.tiles += attempt.done
        for worker in {attempt.worker for attempt in self.dispatcher.attempts.values()}:
            self._restart(worker)
        for thread in self.restarts:
            thread.join(RESTART_SECONDS)

    def _leave(self) -> None:
        with contextlib.suppress(Exception):
            self.client.unsubscribe_topic(self.order.topic)
            self.client.unsubscribe_topic("all")
            self.outbox.close()

    def _explain(self, failures: list[Failure]) -> str:
        """The failed units, with region and cause, the first few of them."""
        named = [
            f"region {self.plan.units[f.unit].box} (z,y,x; {f.attempts} attempts): {f.cause}" for f in failures[:3]
        ]
        more = f"; and {len(failures) - 3} more" if len(failures) > 3 else ""
        return (
            f"{len(failures)} of {len(self.plan.units)} units failed, the rest is finished and kept; "
            f"{self._again} tries them again. {'; '.join(named)}{more}"
        )
