"""The benchmarks there are."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from benchmarks.bench.workbench import Workbench


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: its title on the page, and the function ``module:name`` that takes a workbench."""

    title: str
    function: str

    def measure(self, bench: Workbench) -> dict[str, Any]:
        """Run it; a document ready for JSON."""
        module, _, name = self.function.partition(":")
        found: dict[str, Any] = getattr(importlib.import_module(module), name)(bench)
        return found


SUITE = {  # in the order in which they are measured: what others share first
    "precision": Benchmark("Precisions and stages", "benchmarks.measure.precision:measure_precisions"),
    "efficiency": Benchmark("Against the bare engine", "benchmarks.measure.precision:measure_efficiency"),
    "limits": Benchmark("Against the machine", "benchmarks.measure.limits:measure_limits"),
    "scaling": Benchmark("Larger and larger", "benchmarks.measure.scaling:measure_scaling"),
    "peers": Benchmark("Against what users would pick instead", "benchmarks.measure.versus:measure_peers"),
    "scaleout": Benchmark("On many workers", "benchmarks.measure.scaleout:measure_scaleout"),
}
