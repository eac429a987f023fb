"""What runs inside a worker: find out what it can do, then one unit after the other.

A worker opens the image and the output itself and keeps one engine.  It tells the client everything through one stream
of small messages, in order, so that no result has to be fetched:

    started -> report (tiles inferred, sweep position on disk) ... -> done | failed | refused | ended (tiles inferred)
"""

from __future__ import annotations

import pickle
import sys
import threading
import traceback
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from tilelab.arrays import Float32
from tilelab.engines.base import Engine
from tilelab.errors import OutputError
from tilelab.io.results.ome_zarr import OmeZarrSink
from tilelab.run.cluster.order import EngineAccount, EngineFacts, Errand, Order, box_of
from tilelab.run.cluster.reporting import Reporter, Unwanted, WhileThere, cause_of
from tilelab.run.options import Options, load, model_state
from tilelab.run.sweep.job import Job, Stalls
from tilelab.run.sweep.start import make_sweep

IDLE_SECONDS = 10.0
"""Without a unit, after which a worker closes image and mask: the run is over, or will open them again."""


class _Kept:
    """What a worker process keeps between units: one engine, one opened job, and the right to use them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # one unit at a time, however many threads the worker has
        self._opened = ExitStack()
        self._resting: threading.Timer | None = None
        self._loaded: Any = None
        self._engine: Engine | None = None
        self._files: Any = None
        self._orders: dict[str, Order] = {}
        self._topic = ""
        self._job: Job | None = None

    def order(self, topic: str, parcel: bytes) -> Order:
        """The order in a parcel, unpacked once."""
        if topic not in self._orders:
            self._orders = {topic: pickle.loads(parcel)}  # noqa: S301 - from the client that this worker serves
        return self._orders[topic]

    def engine(self, model: str, options: Options, *, anew: bool = False) -> Engine:
        """The engine for `model`, loaded once; where a run begins `anew`, again if its files are others now."""
        wanted = (
            model,
            options.engine,
            options.device,
            options.precision,
            options.batch,
            options.threads,
            options.model,
        )
        other = self._engine is None or self._loaded != wanted
        files = model_state(model) if anew or other else self._files
        if self._engine is None or other or files != self._files:
            if self._engine is not None:
                self._engine.close()
                self._engine = None
            self._engine = load(model, options)
            self._loaded, self._files = wanted, files
        return self._engine

    def job(self, order: Order, engine: Engine) -> Job:
        """The job of `order`, opened once."""
        if self._job is None or self._topic != order.topic:
            self.close_job()
            self._job = self._opened.enter_context(order.job(engine.spec))
            self._topic = order.topic
        return self._job

    def rest(self) -> None:
        """A unit is over: let go of the job if no other comes soon; to be called with the lock."""
        self.wake()
        self._resting = threading.Timer(IDLE_SECONDS, self._let_go)
        self._resting.daemon = True
        self._resting.start()

    def wake(self) -> None:
        """A unit comes; to be called with the lock."""
        if self._resting is not None:
            self._resting.cancel()
        self._resting = None

    def _let_go(self) -> None:
        with self.lock:
            if threading.current_thread() is self._resting:  # nothing came meanwhile
                self.close_job()

    def close_job(self) -> None:
        """Close image and mask."""
        self._job = None
        self._opened.close()


_kept = _Kept()


def load_here(model: str, options: Options, topic: str = "") -> EngineAccount:
    """Load the engine in this worker and make the kernels ready; returns what it is, its warnings and its assumptions.

    Args:
        model, options: of the run.
        topic: under which it says that kernels have to be compiled, which may take a minute; empty for nowhere.

    Raises:
        TilelabError: it cannot be loaded here.
    """
    from tilelab.kernels.jit import tell_compiling
    from tilelab.kernels.warm import warm_up

    with _kept.lock:
        engine = _kept.engine(model, with_threads(options), anew=True)
        with tell_compiling(partial(_say, topic)):
            warm_up()
        return EngineAccount(
            EngineFacts.of(engine),
            engine.streams,
            engine.warnings,
            engine.assumptions,
            engine.gpu_room,
            engine.output_is,
        )


def _say(topic: str, line: str) -> None:
    """A line for the user, by way of the client."""
    if topic:
        from distributed import get_worker

        get_worker().log_event(topic, line)


def infer_here(model: str, options: Options, tiles: Float32) -> Float32:
    """Logits of one batch, of the engine that is loaded in this worker."""
    with _kept.lock:
        engine = _kept.engine(model, with_threads(options))
        out = np.empty((len(tiles), engine.spec.values, *engine.tile), np.float32)
        engine.run(tiles, out)
        return out


def run_unit(topic: str, parcel: bytes, errand: Errand) -> None:
    """Sweep a unit of the order in `parcel`, or a part of one.  Everything is told by messages.

    Args:
        topic: of the order.
        parcel: the order, pickled by the client.
        errand: what to sweep.
    """
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def tell(what: str, **more: Any) -> None:
        worker.log_event(topic, {"what": what, "attempt": errand.number, "worker": worker.address, **more})

    def is_wanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is not None and task.state == "executing" and worker.status.name == "running"

    try:
        order = _kept.order(topic, parcel)
    except Exception as error:  # noqa: BLE001 - another version of tilelab, most likely
        tell("refused", why=f"it cannot read the job ({type(error).__name__}: {error})")
        return
    reporter = Reporter(order.report_seconds, errand, is_wanted, tell)
    try:
        with _kept.lock:
            if not is_wanted():
                raise Unwanted
            tell("started")
            _kept.wake()
            engine = _kept.engine(order.model, with_threads(order.options))
            differ = order.facts.differences(EngineFacts.of(engine))
            if differ:
                tell("refused", why="; ".join(differ))
                return
            try:
                stalls = _sweep(order, engine, errand, reporter)
            finally:
                _kept.rest()
        tell("done", stored=reporter.stored, **vars(stalls))
    except Unwanted:
        tell("ended", tiles=reporter.tiles)
    except Exception as error:  # noqa: BLE001 - told to the client, who decides
        tell(
            "failed",
            tiles=reporter.tiles,
            cause=cause_of(error),
            trace=traceback.format_exc(),
            unwritable=isinstance(error, OutputError),
        )
        gpu = sys.modules.get("tilelab.kernels.device")  # workers on CPUs have none
        if gpu is not None and gpu.has_failed():
            worker.loop.add_callback(worker.close_gracefully, restart=True)


def _sweep(order: Order, engine: Engine, errand: Errand, reporter: Reporter) -> Stalls:
    box = box_of(order.plan, errand.unit, errand.start, errand.stop)
    sink = OmeZarrSink.open(order.output)
    reporter.writer = writer = WhileThere(sink, sink.writer(box, errand.start, order.plan.frame.sweep_axis))
    return make_sweep(_kept.job(order, engine), engine, box).run(writer, reporter.durable, reporter.progress)


def with_threads(options: Options) -> Options:
    """Give the engine the threads that the worker was given, unless the user said how many."""
    from distributed import get_worker

    return options if options.threads is not None else replace(options, threads=get_worker().state.nthreads)
