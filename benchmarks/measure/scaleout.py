"""Many workers on huge volumes: simulated with costs measured here, and really run by Dask with workers that sleep."""

from __future__ import annotations

import math
import time
import tracemalloc
from dataclasses import asdict
from itertools import islice
from typing import Any

from benchmarks.bench.settings import VolumeShape
from benchmarks.bench.workbench import Workbench
from benchmarks.measure.idle_units import Sleep, many_workers, measure_costs, run_units
from benchmarks.measure.simulate import PIXELS_PER_SECOND, SPREAD, Costs, plan_for, simulate
from tilelab.run.cluster.backlog import largest_first
from tilelab.run.cluster.crew import REPORT_SECONDS, REPORTS_PER_SECOND

START_SECONDS = 60.0  # until all workers of Dask are there


def measure_scaleout(bench: Workbench) -> dict[str, Any]:
    """The costs of a unit, the curve, the same in reality as far as this machine goes, and planning itself."""
    scale = bench.scale
    costs = Costs(
        **bench.once(
            f"Dask: {scale.idle_units} units that compute nothing, on {scale.idle_workers} workers",
            lambda: measure_costs(lambda n: plan_for((n, 2048, 2048), 1), scale.idle_workers, scale.idle_units),
        )
    )
    points = [
        bench.once(
            f"{volume} on {workers} simulated workers",
            lambda v=volume, s=shape, w=workers: simulate(v, s, w, costs),  # type: ignore[misc]
        )
        for volume, shape in scale.volumes.items()
        for workers in scale.workers
    ]
    volume, shape = next(iter(scale.volumes.items()))
    real, left_out = [], []
    for workers in scale.sleeping:
        name = f"{volume} on {workers} workers of Dask that sleep"
        expected = START_SECONDS + math.prod(shape) / PIXELS_PER_SECOND / workers
        if bench.ledger.get(name) is None and expected > bench.seconds_left:
            bench.say(f"{name}: left out, it would take {expected:.0f} s")
            left_out.append(name)
        else:
            real.append(bench.once(name, lambda w=workers: sleep_through(volume, shape, w, costs)))  # type: ignore[misc]
    planning = [measure_planning(volume, shape, max(scale.workers)) for volume, shape in scale.volumes.items()]
    return {
        "pixels_per_second": PIXELS_PER_SECOND,
        "costs": asdict(costs),
        "points": points,
        "real": real,
        "planning": planning,
        "left_out": left_out,
    }


def sleep_through(volume: str, shape: VolumeShape, workers: int, costs: Costs) -> dict[str, Any]:
    """A volume through the real client and Dask's scheduler, by workers that sleep as long as a GPU would compute."""
    plan = plan_for(shape, workers)
    per_tile = plan.pixels / len(plan.lattice) / PIXELS_PER_SECOND
    with many_workers(workers) as client:
        run_units(client, plan_for((2 * workers, 2048, 2048), 1), Sleep(0))  # warm
        report_seconds = max(REPORT_SECONDS, workers / REPORTS_PER_SECOND)
        seconds, cpu = run_units(client, plan, Sleep(per_tile, costs.start, spread=SPREAD), report_seconds)
    ideal = plan.pixels / PIXELS_PER_SECOND / workers
    return {
        "volume": volume,
        "workers": workers,
        "units": len(plan.units),
        "ideal_seconds": ideal,
        "seconds": seconds,
        "efficiency": ideal / seconds,
        "client_busy": min(1.0, cpu / seconds),
    }


def measure_planning(volume: str, shape: VolumeShape, workers: int) -> dict[str, Any]:
    """Seconds and memory that planning takes, and handing out the first units and knowing the last.

    ``held`` are the bytes of the plan, ``peak`` the most while it is made: each axis's tiles are counted as an array.
    """
    plan_for(shape, workers)  # imports
    began = time.perf_counter()
    plan_for(shape, workers)
    seconds = time.perf_counter() - began
    tracemalloc.start()
    plan = plan_for(shape, workers)
    for unit in islice(largest_first(plan.units), 2 * workers):
        _ = plan.units[unit]
    _ = plan.units[len(plan.units) - 1]
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {
        "volume": volume,
        "pixels": plan.pixels,
        "workers": workers,
        "units": len(plan.units),
        "tiles": plan.tiles,
        "seconds": seconds,
        "held": held,
        "peak": peak,
    }
