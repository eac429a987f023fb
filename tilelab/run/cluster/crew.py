"""The workers of one run, seen from the client: all of them load the engine, then share the units."""

from __future__ import annotations

import contextlib
import queue
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tilelab.arrays import Float32
from tilelab.engines.base import BaseEngine, GpuRoom
from tilelab.errors import ClusterError, InputError, ModelError, TilelabError
from tilelab.io.results.ome_zarr import OmeZarrSink
from tilelab.run.cluster.order import EngineAccount, EngineFacts, Order
from tilelab.run.cluster.reporting import cause_of
from tilelab.run.cluster.shared_sweep import SharedSweep
from tilelab.run.cluster.start import dashboard_link, start_client
from tilelab.run.cluster.task import infer_here, load_here
from tilelab.run.elsewhere import absolute, absolute_model
from tilelab.run.journal.local import Journal
from tilelab.run.options import Options
from tilelab.run.plan.plan import Plan
from tilelab.run.prepare import Prepared
from tilelab.run.progress import Progress
from tilelab.run.sweep.job import Stalls
from tilelab.spec import ModelSpec, parse_precision
from tilelab.text import counted, install_hint

REPORT_SECONDS = 0.5
REPORTS_PER_SECOND = 200  # of all workers together: what a client and a scheduler take in passing
LOAD_SECONDS = 20.0  # how long the first worker that has the engine waits for the others; later ones join later


class RemoteEngine(BaseEngine):
    """An engine that is loaded in the workers only: says what they say, and has one of them compute.

    For what is asked of an engine before the work; the units are shared out by `Crew.sweep_units`.
    """

    def __init__(self, account: EngineAccount, infer: Callable[[Float32], Float32]) -> None:
        facts = account.facts
        super().__init__(ModelSpec.from_json(facts.spec), batch=facts.batch, model_digest=facts.digest)
        self.name = facts.name
        self.device = facts.device
        self.precision = parse_precision(facts.precision)
        self.streams = account.streams
        self.warnings, self.assumptions = account.warnings, account.assumptions
        self.output_is = account.output_is
        self._gpu_room, self._infer = account.gpu_room, infer
        self._versions = dict(facts.versions)

    def run(self, tiles: Float32, out: Float32) -> None:
        """See `Engine.run`."""
        out[...] = self._infer(tiles)

    @property
    def gpu_room(self) -> GpuRoom | None:
        """Of the worker with the least."""
        return self._gpu_room

    def versions(self) -> Mapping[str, str]:
        """Those of the workers."""
        return self._versions


@dataclass
class Crew:
    """Workers that have loaded the engine.

    engine: what all of them have.
    options: as each of them understands them.
    unfit: workers that could not load it, and why.
    summary: for the report.
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
            options=replace(self.options, scale=prepared.scale),
            plan=plan,
            facts=self.facts,
            mean=prepared.job.mean,
            gain=prepared.job.gain,
            output=sink.path.resolve(),
            report_seconds=max(REPORT_SECONDS, count / REPORTS_PER_SECOND),
        )
        sweep = SharedSweep(self.client, order, journal, progress=progress.advance, note=self.note, unfit=self.unfit)
        try:
            return sweep.run()
        finally:
            dispatcher = sweep.dispatcher
            self.summary |= {"lost": sweep.lost, "repeated": dispatcher.retries, "helped": dispatcher.helped}


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
    image, model = absolute(image), absolute_model(model)
    if options.mask is not None:
        options = replace(options, mask=absolute(options.mask))
    with start_client(options) as (client, fitted):
        addresses = list(client.nthreads())
        local = fitted.scheduler is None
        note(f"{counted(len(addresses), 'worker')} {'on this machine' if local else f'of {fitted.scheduler}'}")
        if (link := dashboard_link(client)) is not None:
            note(f"dashboard: {link}")
        elif local:
            note(f"no dashboard, bokeh is not installed: {install_hint('cluster')}")
        try:
            account, unfit = _load_everywhere(client, addresses, model, fitted, note)
        except OSError as error:
            raise ClusterError(
                f"the Dask scheduler went away while the engine was loaded ({error or type(error).__name__}): start it "
                "and its workers again"
            ) from error
        for address, why in unfit.items():
            note(f"worker {address} is left out: {why}")
        able = [address for address in addresses if address not in unfit]
        fitted = replace(fitted, workers=len(able))

        def infer(tiles: Float32) -> Float32:
            asked = client.submit(infer_here, model, fitted, tiles, workers=able, pure=False)
            try:
                found: Float32 = asked.result(timeout=fitted.patience_seconds)
            except TilelabError:
                raise
            except Exception as error:
                raise ClusterError(f"no worker looks at the image: {cause_of(error)}") from error
            return found

        engine = RemoteEngine(account, infer)
        yield Crew(client, image, model, account.facts, engine, fitted, note, unfit, {"count": fitted.workers})


def _load_everywhere(
    client: Any, addresses: list[str], model: str, options: Options, note: Callable[[str], None]
) -> tuple[EngineAccount, dict[str, str]]:
    """Load the engine in every worker; those that cannot are named with the reason.

    `note` is told once, however many there are, that they compile kernels.

    Raises:
        OSError: the scheduler is gone.
        ClusterError, TilelabError: no worker can, or they disagree.
    """
    topic, said = f"tilelab-load-{uuid.uuid4().hex}", _Once(note)
    client.subscribe_topic(topic, lambda event: said(event[1]))
    futures = {
        address: client.submit(
            load_here, model, options, topic, workers=[address], pure=False, key=f"load-engine-{uuid.uuid4()}"
        )
        for address in addresses
    }
    try:
        _wait(list(futures.values()), options.patience_seconds)
    finally:
        with contextlib.suppress(Exception):  # Dask's own, where the connection is closed
            client.unsubscribe_topic(topic)
    if client.status not in ("running", "newly-created"):
        raise OSError("its connection is closed")
    known: dict[str, EngineAccount] = {}
    unfit: dict[str, str] = {}
    first: BaseException | None = None
    for address, future in futures.items():
        if future.status == "finished":
            known[address] = future.result()
        elif future.status == "error":
            error = future.exception()
            first = first or error
            unfit[address] = cause_of(error)
    client.cancel(list(futures.values()))
    if not known:
        if isinstance(first, TilelabError):
            raise first
        why = next(iter(unfit.values()), f"none has done so within {options.patience_seconds:.0f} s")
        raise ClusterError(f"no worker can load the engine: {why}")
    return _agreed(known), unfit


class _Once:
    """Says the first line of a kind: what comes before a number."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._said: set[str] = set()

    def __call__(self, line: str) -> None:
        """Called in a thread of Dask's."""
        kind = line.partition(" in ")[0]
        if kind not in self._said:
            self._said.add(kind)
            self._note(f"workers: {line}")


def _agreed(known: Mapping[str, EngineAccount]) -> EngineAccount:
    """What all workers say of their engine.

    Raises:
        ClusterError: two of them would not give the same bytes.
    """
    reference, account = next(iter(known.items()))
    for address, other in known.items():
        if differ := account.facts.differences(other.facts):
            raise ClusterError(
                f"workers {reference} and {address} would not give the same result ({'; '.join(differ)}): "
                "make them the same"
            )
    rooms = [other.gpu_room for other in known.values() if other.gpu_room is not None]
    return account._replace(
        streams=max(other.streams for other in known.values()),
        gpu_room=min(rooms, key=lambda room: room.free_bytes, default=None),
    )


def _wait(futures: list[Any], seconds: float) -> None:
    """Wait until all are done, or the first one has been for `LOAD_SECONDS`, but not longer than `seconds`."""
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
