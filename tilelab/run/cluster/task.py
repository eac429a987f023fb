"""What runs inside a worker: find out what it can do, then one unit after the other.

A worker opens the image and the output itself and keeps one engine.  It tells the client everything through one stream
of small messages, in order, so that no result has to be fetched:

    started -> report (tiles inferred, sweep position on disk) ... -> done | failed | refused | ended
"""

from __future__ import annotations

import pickle
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from tilelab.arrays import Float32, Int64
from tilelab.assumptions import Assumption
from tilelab.engines.base import Engine
from tilelab.errors import OutputError, TilelabError
from tilelab.geometry import Box
from tilelab.io.images.mask import open_mask
from tilelab.io.images.volume import Volume, network_input
from tilelab.io.results.ome_zarr import OmeZarrSink
from tilelab.io.results.sink import Finished, UnitWriter
from tilelab.io.storage.place import Place
from tilelab.io.storage.remote_path import RemotePath
from tilelab.io.zarr.sharded_array import output_error
from tilelab.machine.version import __version__
from tilelab.run.options import Options
from tilelab.run.plan.plan import Plan
from tilelab.run.prepare import model_digest, open_source
from tilelab.run.sweep.job import Job, Stalls
from tilelab.run.sweep.start import make_unit
from tilelab.spec import ModelSpec


@dataclass(frozen=True)
class EngineFacts:
    """What the result's bytes depend on in a worker's engine; must be the same on all workers."""

    name: str
    device: str
    precision: str
    batch: int
    spec: str
    digest: str
    versions: tuple[tuple[str, str], ...]
    tilelab: str = __version__

    @classmethod
    def of(cls, engine: Engine) -> EngineFacts:
        """Of a loaded engine."""
        return cls(
            engine.name,
            engine.device.partition(":")[0],
            engine.precision,
            engine.batch,
            engine.spec.to_json(),
            model_digest(engine),
            tuple(engine.versions().items()),
        )

    def differences(self, other: EngineFacts) -> list[str]:
        """One phrase for each field that differs."""
        mine, theirs = ({**vars(f), **dict(f.versions)} for f in (self, other))
        return [
            f"{name} {mine.get(name, 'absent')} and {theirs.get(name, 'absent')}"
            for name in sorted({*mine, *theirs} - {"versions"})
            if mine.get(name) != theirs.get(name)
        ]


@dataclass(frozen=True)
class Order:
    """A job as it is sent to workers: everything but the image, the output and the engine, which they open themselves.

    topic: under which messages are sent.
    facts: what the first worker's engine is.
    report_seconds: between two reports of one worker.
    """

    topic: str
    image: str
    model: str
    options: Options
    plan: Plan
    facts: EngineFacts
    mean: Float32
    gain: Float32
    activation: int
    channels: Int64
    output: Place
    report_seconds: float

    def job(self, spec: ModelSpec) -> Job:
        """The job, with image and mask opened."""
        volume = Volume(open_source(self.image, self.options, spec)[0])
        return Job(
            image=network_input(volume, spec),
            lattice=self.plan.lattice,
            frame=self.plan.frame,
            mean=self.mean,
            gain=self.gain,
            activation=self.activation,
            channels=self.channels,
            labels=self.options.labels,
            logits=self.options.logits,
            mask=None if self.options.mask is None else open_mask(self.options.mask, volume),
            symmetries=8 if self.options.symmetries else 1,
        )


@dataclass(frozen=True, slots=True)
class Part:
    """What a worker is sent: rows of a unit.

    number: of the attempt.
    unit: its index.
    start, stop: sweep positions.
    eager: say at once what is on disk.
    """

    number: int
    unit: int
    start: int
    stop: int
    eager: bool


class _Bench:
    """What a worker process keeps between units: one engine, one opened job, and the right to use them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # one unit at a time, however many threads the worker has
        self._request: Any = None
        self._engine: Engine | None = None
        self._orders: dict[str, Order] = {}
        self._topic = ""
        self._job: Job | None = None

    def order(self, topic: str, parcel: bytes) -> Order:
        """The order in a parcel, unpacked once."""
        if topic not in self._orders:
            self._orders = {topic: pickle.loads(parcel)}  # noqa: S301 - from the client that this worker serves
        return self._orders[topic]

    def engine(self, model: str, options: Options) -> Engine:
        """The engine for `model`, loaded once."""
        from tilelab.run.options import load

        request = (model, repr(options))
        if self._engine is None or self._request != request:
            if self._engine is not None:
                self._engine.close()
                self._engine = None
            self._engine = load(model, options)
            self._request = request
        return self._engine

    def job(self, order: Order, engine: Engine) -> Job:
        """The job of `order`, opened once."""
        if self._job is None or self._topic != order.topic:
            self._job = order.job(engine.spec)
            self._topic = order.topic
        return self._job


_bench = _Bench()


class Unwanted(Exception):
    """The unit was taken back, or its worker is being closed."""


class EngineAccount(NamedTuple):
    """What a worker says of its engine."""

    facts: EngineFacts
    warnings: tuple[str, ...]
    assumptions: tuple[Assumption, ...]


def describe(model: str, options: Options) -> EngineAccount:
    """Load the engine; returns what it is, its warnings and its assumptions.

    Raises:
        TilelabError: it cannot be loaded here.
    """
    with _bench.lock:
        engine = _bench.engine(model, with_threads(options))
        return EngineAccount(EngineFacts.of(engine), engine.warnings, engine.assumptions)


def run_unit(topic: str, parcel: bytes, part: Part) -> None:
    """Sweep a unit of the order in `parcel`, or a part of one.  Everything is told by messages.

    Args:
        topic: of the order.
        parcel: the order, pickled by the client.
        part: what to sweep.
    """
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def tell(what: str, **more: Any) -> None:
        worker.log_event(topic, {"what": what, "attempt": part.number, "worker": worker.address, **more})

    def is_wanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is not None and task.state == "executing" and worker.status.name == "running"

    try:
        order = _bench.order(topic, parcel)
    except Exception as error:  # noqa: BLE001 - another version of tilelab, most likely
        tell("refused", why=f"it cannot read the job ({type(error).__name__}: {error})")
        return
    reporter = _Reporter(order.report_seconds, part, is_wanted, tell)
    try:
        with _bench.lock:
            if not is_wanted():
                raise Unwanted
            tell("started")
            engine = _bench.engine(order.model, with_threads(order.options))
            differ = order.facts.differences(EngineFacts.of(engine))
            if differ:
                tell("refused", why="; ".join(differ))
                return
            stalls = _sweep(order, engine, part, reporter)
        tell("done", **vars(stalls))
    except Unwanted:
        tell("ended")
    except Exception as error:  # noqa: BLE001 - told to the client, who decides
        tell(
            "failed",
            cause=f"{'' if isinstance(error, TilelabError) else type(error).__name__ + ': '}{error}",
            trace=traceback.format_exc(),
            unwritable=isinstance(error, OutputError),
        )


def _sweep(order: Order, engine: Engine, part: Part, reporter: _Reporter) -> Stalls:
    job, axis = _bench.job(order, engine), order.plan.frame.sweep_axis
    box = part_of(order.plan.units[part.unit].box, axis, part.start, part.stop)
    sink = OmeZarrSink.open(order.output)
    writer = _WhileThere(sink, sink.writer(box, part.start, axis))
    return make_unit(job, engine, box).run(writer, reporter.durable, reporter.progress)


def part_of(box: Box, axis: int, start: int, stop: int) -> Box:
    """The part of a unit between two sweep positions."""
    return Box(
        tuple(start if a == axis else n for a, n in enumerate(box.start)),
        tuple(stop if a == axis else n for a, n in enumerate(box.stop)),
    )


def with_threads(options: Options) -> Options:
    """The engine gets the threads that the worker was given, unless the user said how many."""
    from dataclasses import replace

    from distributed import get_worker

    return options if options.threads is not None else replace(options, threads=get_worker().state.nthreads)


class _Reporter:
    """Tells how a unit advances, not more often than agreed."""

    def __init__(self, seconds: float, part: Part, is_wanted: Callable[[], bool], tell: Callable[..., None]) -> None:
        self._seconds, self._is_wanted, self._tell = seconds, is_wanted, tell
        self._tiles, self._position, self._eager = 0, part.start, part.eager
        self._last = time.monotonic()
        self._lock = threading.Lock()

    def progress(self, tiles: int) -> None:
        """So many more tiles; called from the blending thread."""
        if not self._is_wanted():
            raise Unwanted
        self._tiles += tiles
        self._report()

    def durable(self, position: int) -> None:
        """Rows up to `position` are on disk; called from the writing thread."""
        self._position = position
        self._report(at_once=self._eager)

    def _report(self, *, at_once: bool = False) -> None:
        with self._lock:
            now = time.monotonic()
            if at_once or now - self._last >= self._seconds:
                self._last = now
                self._tell("report", tiles=self._tiles, position=self._position)


class _WhileThere:
    """A unit's writer that stops when the result was finished or removed behind its back.

    A worker that was given up on, because it hung or lost the network, may wake up long after.
    """

    def __init__(self, sink: OmeZarrSink, writer: UnitWriter) -> None:
        self._description = sink.description
        self._pause = 1.0 if isinstance(self._description, RemotePath) else 0.0  # asking a store takes time
        self._asked = -1.0
        self._writer = writer

    def write(self, rows: Finished) -> int:
        """See `UnitWriter.write`."""
        if time.monotonic() - self._asked >= self._pause and not self._is_there():
            raise OutputError(f"{self._description.parent} was finished or removed while this worker was at it")
        return self._writer.write(rows)

    def _is_there(self) -> bool:
        try:
            return self._description.is_file()
        except OSError as error:
            raise output_error(self._description, error) from None
        finally:
            self._asked = time.monotonic()

    def close(self) -> None:
        """See `UnitWriter.close`."""
        self._writer.close()
