"""The workers of one run, seen from the client: it hands out units, keeps the journal and shows the progress."""

from __future__ import annotations

import contextlib
import pickle
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from tilelab.cluster.dispatch import Assign, Attempt, Dispatcher, Failure, Limits, Release, Restart
from tilelab.cluster.start import dashboard_link, start_client
from tilelab.cluster.task import EngineFacts, Order, describe, run_unit
from tilelab.engines.base import Float32
from tilelab.errors import ClusterError, EngineError, Incomplete, InputError, ModelError, OutputError, TilelabError
from tilelab.io.zarr_sink import OmeZarrSink
from tilelab.journal import Journal
from tilelab.options import Options
from tilelab.planning import Plan
from tilelab.prepare import Prepared
from tilelab.spec import ModelSpec, Precision, parse_precision
from tilelab.sweep import Stalls


class Progress(Protocol):
    """Told how many more tiles are done; fewer than none when some were lost."""

    def advance(self, tiles: int) -> None:
        """So many more."""


REPORT_SECONDS = 0.5
REPORTS_PER_SECOND = 200  # of all workers together: what a client and a scheduler take in passing
LOAD_SECONDS = 20.0  # how long the first worker that has the engine waits for the others; later ones join later
RESTART_SECONDS = 30.0
LINGER_SECONDS = 10.0  # how long the end waits for workers that are still at something no longer wanted


class RemoteEngine:
    """An engine that is loaded in the workers only; says what they say, computes nothing."""

    def __init__(self, facts: EngineFacts, warnings: tuple[str, ...]) -> None:
        self.name = facts.name
        self.device = facts.device
        self.precision: Precision = parse_precision(facts.precision)
        self.batch = facts.batch
        self.spec = ModelSpec.from_json(facts.spec)
        self.tile = self.spec.tile
        self.model_digest = facts.digest
        self.warnings = warnings
        self._versions = dict(facts.versions)

    def run(self, tiles: Float32, out: Float32) -> None:  # noqa: ARG002 - see `Engine`
        """Not here."""
        raise EngineError("this engine is loaded in the workers, not here")

    def versions(self) -> Mapping[str, str]:
        """Those of the workers."""
        return self._versions

    def close(self) -> None:
        """Nothing is held."""


@dataclass
class Crew:
    """Workers that have loaded the engine.

    engine: what all of them have.
    options: as each of them understands them.
    unfit: workers that could not load it, and why.
    summary: for the report.
    task: what a worker does with a unit.
    """

    client: Any
    image: str
    model: str
    facts: EngineFacts
    engine: RemoteEngine
    options: Options
    note: Callable[[str], None]
    unfit: dict[str, str] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    task: Callable[[str, bytes, int, int, int], None] = run_unit

    def sweep_units(
        self, prepared: Prepared, plan: Plan, sink: OmeZarrSink, journal: Journal, progress: Progress
    ) -> Stalls:
        """Every unfinished unit, on all workers; the journal is written here alone.

        Raises:
            Incomplete: some units failed every time; the rest is finished.
            OutputError: nothing can be written.
            ClusterError: the scheduler is gone, or all workers are.
        """
        count = max(1, self.options.workers or 1)
        order = Order(
            topic=f"tilelab-{uuid.uuid4().hex}",
            image=self.image,
            model=self.model,
            options=self.options,
            plan=plan,
            facts=self.facts,
            mean=prepared.job.mean,
            gain=prepared.job.gain,
            activation=prepared.job.activation,
            channels=prepared.job.channels,
            output=sink.path.resolve(),
            report_seconds=max(REPORT_SECONDS, count / REPORTS_PER_SECOND),
        )
        sweep = _Sweep(self, order, journal, progress.advance)
        try:
            return sweep.run()
        finally:
            dispatcher = sweep.dispatcher
            self.summary |= {"lost": sweep.lost, "repeated": dispatcher.retries, "raced": dispatcher.races}


@contextlib.contextmanager
def open_crew(image: Any, model: Any, options: Options, note: Callable[[str], None]) -> Iterator[Crew]:
    """Start or join the workers that `options` ask for, and load the engine in all of them.

    Raises:
        InputError, ModelError: the image is an array, or the model an engine: workers could not open them.
        ClusterError: there are no workers, or they disagree.
        TilelabError: the engine cannot be loaded in any of them.
    """
    if not isinstance(image, str | Path):
        raise InputError("several workers read the image themselves: give its path, not an array, or use one worker")
    if not isinstance(model, str | Path):
        raise ModelError("several workers load the model themselves: give its path or name, not a loaded engine")
    image, model = _absolute(image), _absolute(model)
    if options.mask is not None:
        options = replace(options, mask=_absolute(options.mask))
    with start_client(options) as (client, fitted):
        addresses = list(client.nthreads())
        local = fitted.scheduler is None
        note(f"{len(addresses)} workers {'on this machine' if local else f'of {fitted.scheduler}'}")
        if (link := dashboard_link(client)) is not None:
            note(f"dashboard: {link}")
        facts, warnings, unfit = _describe(client, addresses, model, fitted)
        for address, why in unfit.items():
            note(f"worker {address} is left out: {why}")
        fitted = replace(fitted, workers=len(addresses) - len(unfit))
        engine = RemoteEngine(facts, warnings)
        yield Crew(client, image, model, facts, engine, fitted, note, unfit, {"count": fitted.workers})


def _absolute(path: str | Path) -> str:
    """A local path that means the same in a worker; names and addresses stay."""
    return (
        str(path)
        if "://" in str(path) or not Path(path).expanduser().exists()
        else str(Path(path).expanduser().resolve())
    )


def _describe(
    client: Any, addresses: list[str], model: str, options: Options
) -> tuple[EngineFacts, tuple[str, ...], dict[str, str]]:
    """Load the engine in every worker; those that cannot are named with the reason."""
    futures = {
        address: client.submit(
            describe, model, options, workers=[address], pure=False, key=f"load-engine-{uuid.uuid4()}"
        )
        for address in addresses
    }
    _wait(list(futures.values()), options.patience_seconds)
    known: dict[str, EngineFacts] = {}
    warnings: tuple[str, ...] = ()
    unfit: dict[str, str] = {}
    first: BaseException | None = None
    for address, future in futures.items():
        if future.status == "finished":
            known[address], warnings = future.result()
        elif future.status == "error":
            error = future.exception()
            first = first or error
            unfit[address] = str(error) if isinstance(error, TilelabError) else f"{type(error).__name__}: {error}"
    client.cancel(list(futures.values()))
    if not known:
        if isinstance(first, TilelabError):
            raise first
        why = next(iter(unfit.values()), f"none has done so within {options.patience_seconds:.0f} s")
        raise ClusterError(f"no worker can load the engine: {why}")
    reference, facts = next(iter(known.items()))
    for address, other in known.items():
        differ = facts.differences(other)
        if differ:
            raise ClusterError(
                f"workers {reference} and {address} would not give the same result ({'; '.join(differ)}): "
                "make them the same"
            )
    return facts, warnings, unfit


def _wait(futures: list[Any], seconds: float) -> None:
    """Until all are done, or the first one has been for `LOAD_SECONDS`, but not longer than `seconds`."""
    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for future in futures:
        future.add_done_callback(done.put)
    deadline = time.monotonic() + seconds
    for _ in futures:
        try:
            future = done.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return
        if future.status == "finished":
            deadline = min(deadline, time.monotonic() + LOAD_SECONDS)


class _PerKey:
    """A Dask annotation that differs from task to task; the scheduler asks it."""

    def __init__(self, values: dict[Any, Any]) -> None:
        self._values = values

    def __call__(self, key: Any) -> Any:
        return self._values.get(key)


class _Sweep:
    """One job on its way: messages in, actions out, in the calling thread."""

    def __init__(self, crew: Crew, order: Order, journal: Journal, progress: Callable[[int], None]) -> None:
        self.crew, self.client, self.order = crew, crew.client, order
        self.parcel = pickle.dumps(order)  # once, not for every unit
        self.journal, self.progress = journal, progress
        self.plan = order.plan
        self.axis = self.plan.frame.sweep_axis
        self.stalls = Stalls()
        self.lost = 0
        self.seen: set[str] = set()
        self.shown: dict[int, int] = {}  # tiles of each unit in flight that the progress bar has
        self.traces: dict[str, None] = {}
        self.futures: dict[int, Any] = {}
        self.restarts: list[threading.Thread] = []
        self.gpu_workers: set[str] = set()
        self.inbox: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        limits = Limits(patience=crew.options.patience_seconds)
        self.dispatcher = Dispatcher(self.plan.units, self.axis, journal.positions, self.tiles_from, limits)

    def run(self) -> Stalls:
        dispatcher = self.dispatcher
        self.client.subscribe_topic(self.order.topic, lambda event: self.inbox.put(event[1]))
        self.client.subscribe_topic("all", self._on_membership)
        for address in self.client.nthreads():
            self._join(address)
        alone_since, checked = None, 0.0
        try:
            while not dispatcher.finished:
                self._act()
                self._receive(1.0)
                now = time.monotonic()
                if now - checked >= 1.0:
                    checked = now
                    dispatcher.check_silence(now)
                alone_since = None if dispatcher.workers else alone_since or now
                if alone_since is not None and now - alone_since > self.crew.options.patience_seconds:
                    raise ClusterError(
                        f"no worker was left for {now - alone_since:.0f} s; what is finished is kept, "
                        "the same command continues"
                    )
                if self.client.status not in ("running", "newly-created"):
                    raise ClusterError(
                        f"the scheduler at {self.client.scheduler.address} is gone; what is finished is kept, "
                        "the same command continues"
                    )
            self._linger()
        finally:
            self._leave()
        if dispatcher.stopped is not None:
            kind = OutputError if dispatcher.stopped.cause.startswith("cannot write") else Incomplete
            raise kind(f"stopped, since nothing succeeds any more: {dispatcher.stopped.cause}")
        if dispatcher.failures:
            raise Incomplete(self._explain(dispatcher.failures))
        return self.stalls

    def tiles_from(self, unit: int, position: int) -> int:
        """Tiles of a unit from a sweep position on."""
        box = self.plan.units[unit].box
        start = list(box.start)
        start[self.axis] = position
        return self.plan.lattice.count(replace(box, start=tuple(start))) if position < box.stop[self.axis] else 0

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
            self._forget(attempt)
        else:
            self._handle_attempt(what, attempt, message, now)

    def _on_death(self, worker: str) -> None:
        self.lost += worker in self.seen
        self.seen.discard(worker)
        attempts = [a for a in self.dispatcher.attempts.values() if a.worker == worker]
        self.dispatcher.leave(worker)
        for attempt in attempts:
            self._forget(attempt)

    def _handle_attempt(self, what: str, attempt: Attempt, message: Mapping[str, Any], now: float) -> None:
        dispatcher, number = self.dispatcher, attempt.number
        if what == "started":
            dispatcher.started(number, now)
        elif what == "report":
            self._record(attempt.unit, message["position"])
            dispatcher.reported(number, message["tiles"], now)
            if not attempt.released:
                self._show(attempt.unit, self._before(attempt) + message["tiles"])
        elif what == "done":
            self._record(attempt.unit, self.plan.units[attempt.unit].box.stop[self.axis])
            self.stalls.add(Stalls(**{name: message[name] for name in vars(Stalls())}))
            dispatcher.done(number, now)
            self._forget(attempt)
        elif what == "failed":
            self.traces[message["trace"]] = None
            dispatcher.failed(number, message["cause"], unwritable=message["unwritable"])
            self._forget(attempt)
        elif what == "ended":
            dispatcher.ended(number)
            self._forget(attempt)
        elif what == "refused":
            self.crew.note(f"worker {attempt.worker} is left out, its engine differs: {message['why']}")
            dispatcher.refuse(attempt.worker)
            self._forget(attempt)

    def _join(self, address: str) -> None:
        if address in self.crew.unfit or address in self.seen:
            return
        self.seen.add(address)
        worker = self.client.scheduler_info()["workers"].get(address, {})
        if worker.get("resources", {}).get("GPU"):
            self.gpu_workers.add(address)
        self.dispatcher.join(address)

    def _record(self, unit: int, position: int) -> None:
        if position > self.journal.positions.get(unit, self.plan.units[unit].box.start[self.axis]):
            self.journal.record(unit, position)

    # progress

    def _before(self, attempt: Attempt) -> int:
        """Tiles of the attempt's unit that were there before it."""
        return self.plan.lattice.count(self.plan.units[attempt.unit].box) - attempt.tiles

    def _show(self, unit: int, tiles: int) -> None:
        """Bring the progress bar to so many tiles of a unit."""
        if unit in self.shown and tiles != self.shown[unit]:
            self.progress(tiles - self.shown[unit])
            self.shown[unit] = tiles

    def _forget(self, attempt: Attempt) -> None:
        """An attempt is over: drop its future, and show what of its unit is kept."""
        future = self.futures.pop(attempt.number, None)
        if future is not None:
            future.release()
        unit, box = attempt.unit, self.plan.units[attempt.unit].box
        position = self.journal.positions.get(unit, box.start[self.axis])
        if attempt.released and position < box.stop[self.axis]:
            return
        self._show(unit, self.plan.lattice.count(box) - self.tiles_from(unit, position))
        if position >= box.stop[self.axis]:
            self.shown.pop(unit, None)

    # actions

    def _act(self) -> None:
        assigned = []
        for action in self.dispatcher.actions(time.monotonic()):
            match action:
                case Assign(attempt):
                    assigned.append(attempt)
                case Release(attempt):
                    if attempt.number in self.futures:
                        self.futures[attempt.number].release()
                case Restart(worker):
                    self._restart(worker)
        # a worker that counts its GPUs is asked for one, so that what others run there does not share it
        self._submit([a for a in assigned if a.worker in self.gpu_workers], resources={"GPU": 1})
        self._submit([a for a in assigned if a.worker not in self.gpu_workers])

    def _submit(self, attempts: list[Attempt], **annotations: Any) -> None:
        """Send units to their workers, in one message however many."""
        if not attempts:
            return
        import dask

        keys = [(f"segment-unit-{self.order.topic}", attempt.unit, attempt.number) for attempt in attempts]
        places = {key: [attempt.worker] for key, attempt in zip(keys, attempts, strict=True)}
        for attempt in attempts:
            self.shown.setdefault(attempt.unit, self._before(attempt))
        with (
            dask.annotate(workers=_PerKey(places), **annotations),
            dask.config.set({"distributed.diagnostics.computations.nframes": 0}),  # else it sends our source code along
        ):
            futures = self.client.map(
                self.crew.task,
                [self.order.topic] * len(attempts),
                [self.parcel] * len(attempts),
                [attempt.unit for attempt in attempts],
                [attempt.start for attempt in attempts],
                [attempt.number for attempt in attempts],
                key=keys,
                pure=False,
            )
        for attempt, future in zip(attempts, futures, strict=True):
            self.futures[attempt.number] = future

            def over(finished: Any, number: int = attempt.number) -> None:
                if finished.status == "error":
                    error = finished.exception()
                    self.inbox.put({"what": "lost", "attempt": number, "cause": f"{type(error).__name__}: {error}"})

            future.add_done_callback(over)

    def _restart(self, worker: str) -> None:
        """End a hung worker's process; its nanny starts another.  Takes a while, so not in this thread."""
        self.crew.note(f"worker {worker} hangs and is restarted")

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
        for worker in {attempt.worker for attempt in self.dispatcher.attempts.values()}:
            self._restart(worker)
        for thread in self.restarts:
            thread.join(RESTART_SECONDS)

    def _leave(self) -> None:
        with contextlib.suppress(Exception):
            self.client.unsubscribe_topic(self.order.topic)
            self.client.unsubscribe_topic("all")
            for future in self.futures.values():
                future.release()

    def _explain(self, failures: list[Failure]) -> str:
        """The failed units, with region and cause, the first few of them."""
        named = [
            f"region {self.plan.units[f.unit].box} (z,y,x; {f.attempts} attempts): {f.cause}" for f in failures[:3]
        ]
        more = f"; and {len(failures) - 3} more" if len(failures) > 3 else ""
        return (
            f"{len(failures)} of {len(self.plan.units)} units failed, the rest is finished and kept; "
            f"the same command tries them again. {'; '.join(named)}{more}"
        )
