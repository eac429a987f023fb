"""Units that only sleep, sent through the real client and Dask's real scheduler to real workers.

Many workers fit a small machine when many share a process: they only sleep.  The client and the scheduler share another
process, whose CPU time per unit and per message is what `benchmarks.measure.simulate` counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tilelab.engines.registry import load_engine
from tilelab.geometry import Box, Frame, Lattice
from tilelab.io.images.open import open_image
from tilelab.io.images.volume import Volume
from tilelab.io.results.ome_zarr import OmeZarrSink
from tilelab.io.zarr.layout import Layout
from tilelab.kernels.reference import SIGMOID
from tilelab.run.cluster.order import EngineFacts, Errand, Order, count_tiles
from tilelab.run.cluster.outbox import RunUnit
from tilelab.run.cluster.shared_sweep import SharedSweep
from tilelab.run.options import Options
from tilelab.run.plan.plan import Plan
from tilelab.run.sweep.host import HostSweep
from tilelab.run.sweep.job import Job, Stalls
from tilelab.spec import ClassInfo

WORKERS_PER_PROCESS = 32
TALK = 20  # reports of a talkative unit


@contextlib.contextmanager
def many_workers(count: int) -> Iterator[Any]:
    """A client with so many workers, in few processes."""
    import dask
    from distributed import Client, LocalCluster

    config = {
        "distributed.worker.profile.enabled": False,
        "distributed.scheduler.work-stealing": False,
        "distributed.scheduler.active-memory-manager.start": False,
        "distributed.diagnostics.computations.nframes": 0,
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(config))
        cluster = stack.enter_context(
            LocalCluster(n_workers=0, processes=True, dashboard_address=None, silence_logs=60, memory_limit=0)
        )
        client = stack.enter_context(Client(cluster, set_as_default=False))
        left = count
        while left:
            share = min(left, WORKERS_PER_PROCESS)
            command = [sys.executable, "-m", "benchmarks.measure.idle_units", cluster.scheduler_address, str(share)]
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
            left -= share
        client.wait_for_workers(count, timeout=300)
        yield client


async def serve(address: str, count: int) -> None:
    """So many workers in this process, until it is killed."""
    from distributed import Worker

    async with contextlib.AsyncExitStack() as stack:
        for _ in range(count):
            await stack.enter_async_context(Worker(address, nthreads=1, memory_limit=0, dashboard=False))
        await asyncio.Event().wait()


def run_units(client: Any, plan: Plan, task: RunUnit, report_seconds: float = 0.5) -> tuple[float, float]:
    """All units of `plan`, through the real client; wall seconds, and CPU seconds of this process."""
    facts = EngineFacts("idle", "cpu", "fp32", 1, plan.spec.to_json(), "", ())
    ones = np.ones(2, np.float32)
    order = Order(
        topic=f"tilelab-idle-{time.monotonic_ns()}",
        image="image.zarr",
        model="model.onnx",
        options=Options(),
        plan=plan,
        facts=facts,
        mean=ones,
        gain=ones,
        output=Path("out.ome.zarr"),
        report_seconds=report_seconds,
    )
    positions: dict[int, int] = {}
    journal = SimpleNamespace(positions=positions)
    sweep = SharedSweep(client, order, journal, progress=lambda tiles: None, note=lambda line: None, task=task)  # type: ignore[arg-type] # noqa: ARG005
    began, cpu = time.perf_counter(), time.process_time()
    sweep.run()
    return time.perf_counter() - began, time.process_time() - cpu


@lru_cache(maxsize=1)
def _order(parcel: bytes) -> Order:
    order: Order = pickle.loads(parcel)  # noqa: S301 - made above
    return order


class Sleep:
    """A unit that takes `start` seconds and `per_tile` for each tile; says how far it is every so often.

    Workers, and the units of one, differ in speed by `spread`.
    """

    def __init__(self, per_tile: float, start: float = 0.0, talk: int = 0, spread: float = 0.0) -> None:
        self.per_tile, self.start, self.talk, self.spread = per_tile, start, talk, spread

    def __call__(self, topic: str, parcel: bytes, errand: Errand) -> None:
        """See `tilelab.run.cluster.task.run_unit`."""
        from distributed import get_worker

        order = _order(parcel)
        worker, plan = get_worker(), order.plan
        key = worker.get_current_task()
        grain = plan.layout.grain[plan.frame.sweep_axis]
        tiles = count_tiles(plan, errand.unit, errand.start, errand.stop)

        def tell(what: str, **more: Any) -> None:
            worker.log_event(topic, {"what": what, "attempt": errand.number, "worker": worker.address, **more})

        tell("started")
        for _ in range(self.talk):
            tell("report", tiles=0, position=errand.start)
        began = time.perf_counter()
        slower = 1.0
        for seed in (worker.address, f"{worker.address} {errand.number}"):
            slower *= max(0.5, random.Random(seed).gauss(1, self.spread))  # noqa: S311 - a simulation
        seconds = self.start + self.per_tile * tiles * slower
        rows = errand.stop - errand.start
        pause = min(order.report_seconds, seconds * grain / rows) if errand.eager else order.report_seconds
        while (left := began + seconds - time.perf_counter()) > 0:
            time.sleep(min(left, pause))
            task = worker.state.tasks.get(key)
            if task is None or task.state != "executing":
                tell("ended")
                return
            if left > pause:
                done = (time.perf_counter() - began) / seconds
                tell("report", tiles=int(done * tiles), position=int((errand.start + done * rows) // grain * grain))
        tell("done", **vars(Stalls()))


def measure_costs(make_plan: Callable[[int], Plan], workers: int = 64, units: int = 4000) -> dict[str, float]:
    """Seconds for `benchmarks.measure.simulate.Costs`; `make_plan` gives a plan of so many units."""
    with many_workers(workers) as client:
        run_units(client, make_plan(4 * workers), Sleep(0))  # warm
        _, quiet = run_units(client, make_plan(units), Sleep(0))
        _, talk = run_units(client, make_plan(units // 4), Sleep(0, talk=TALK))
        message = max(0.0, (talk / (units // 4) - quiet / units) / TALK)
        latency = _round_trip(client) / 2
    return {
        "submit": max(0.0, quiet / units - 2 * message),
        "message": message,
        "latency": latency,
        "start": unit_seconds(),
    }


def _round_trip(client: Any, times: int = 50) -> float:
    """Seconds from the client to a worker and back, the median."""
    worker = next(iter(client.nthreads()))
    found = []
    for n in range(times):
        began = time.perf_counter()
        client.submit(abs, -1, workers=[worker], pure=False, key=f"ping-{n}").result()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def unit_seconds(times: int = 15) -> float:
    """What the smallest unit takes: the output is opened, threads start, one tile goes through, a shard is written."""
    engine = load_engine("identity")
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.ome.zarr"
        classes = (ClassInfo("background", "#000000"), ClassInfo("foreground", "#ffffff"))
        OmeZarrSink.create(path, Layout.fit(pixels.shape), classes=classes, probabilities=(1,))
        job = Job(
            image=Volume(open_image(pixels)),
            lattice=Lattice.fit((1, 256, 256), (1, 256, 256), (0, 64, 64)),
            frame=Frame(1),
            mean=np.zeros(1, np.float32),
            gain=np.ones(1, np.float32),
            activation=SIGMOID,
            channels=np.array([1], np.int64),
        )
        box = Box.whole((1, 256, 256))
        found = []
        for _ in range(times):
            began = time.perf_counter()
            HostSweep(job, engine, box).run(OmeZarrSink.open(path).writer(box, 0, 1))
            found.append(time.perf_counter() - began)
    return statistics.median(found)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
