"""Time and memory as the image grows: time in proportion to the tiles, memory flat."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.bench.workbench import Workbench
from benchmarks.measure.precision import fast_precision


def measure_scaling(bench: Workbench) -> dict[str, Any]:
    """The same command on planes of 1, 4 and 16 times the area; in turns, so that a busy moment hits all alike."""
    scale = bench.scale
    words = ("--engine", "openvino", "--precision", fast_precision(), *bench.pinned)
    runs: dict[tuple[int, int], list[dict[str, Any]]] = {shape: [] for shape in scale.areas}
    with bench.folder() as folder:
        for turn in range(scale.repeats):
            for shape in scale.areas:
                bench.say(f"{shape[0]} x {shape[1]}, run {turn + 1} of {scale.repeats}")
                out = folder / f"{shape[0]}-{turn}.ome.zarr"
                run = bench.infer(shape, out, *words)
                runs[shape].append(run.report | {"growth": run.memory_growth, "process": run.outcome.seconds})
    rows = []
    for shape, reports in runs.items():
        tiles = reports[0]["tiles"]["inferred"]
        sweep = statistics.median(r["seconds"]["sweep"] for r in reports)
        rows.append(
            {
                "image": list(shape),
                "megapixels": reports[0]["megapixels"],
                "tiles": tiles,
                "seconds": statistics.median(r["process"] for r in reports),
                "sweep_seconds": sweep,
                "seconds_per_tile": sweep / tiles,
                "memory_growth": max(r["growth"] for r in reports),
            }
        )
    return {"words": list(words), "rows": rows}
