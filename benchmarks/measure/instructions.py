"""Instructions that start-up and kernels take, counted by valgrind: a busy machine does not change them.

    python -m benchmarks guard --instructions            compare with benchmarks/instructions.json
    python -m benchmarks guard --instructions --update   keep those of this Python and these packages instead

Of start-up, what a bare Python takes is left out: it depends on what else is installed.  Kernels are compiled for one
processor with AVX2, which valgrind knows, wherever they are counted, and nothing starts threads, which count while they
wait.  Versions of Python, NumPy and Numba, and processors, count otherwise, and are kept beside the counts.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from benchmarks.bench.machine import cpu_kind
from benchmarks.bench.settings import ROOT
from tilelab.errors import InputError

KEPT = ROOT / "benchmarks" / "instructions.json"
NOISE = 0.1  # a process beside another like it differs by one in a million; compilers' small releases by more
START_NOISE = 0.25  # what is imported comes from packages, whose patch releases are not kept beside the counts
KERNELS = ("cut", "blend", "finish", "finish two", "halve", "chunks")
_SIDE, _CALLS = 128, 1000
_ALIKE = {
    "PYTHONHASHSEED": "0",
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+bmi,+bmi2",
    "NUMBA_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
_KERNELS = """
import sys
import numpy as np
from tilelab.kernels import cpu
from tilelab.kernels.pyramid import cut_chunks, halve_mean, halve_mode
n, which, calls = {side}, sys.argv[1], int(sys.argv[2])
one, share, none = np.ones(1, np.float32), np.ones(n, np.float32), np.empty((0, 0, 0, 0), np.float32)
canvas, logits = np.ones((3, n, 1, n), np.float32), np.ones((3, n, 1, n), np.float32)
labels, probabilities = np.empty((n, 1, n), np.uint8), np.empty((2, n, 1, n), np.uint8)
band, at, tile = np.ones((1, n, 1, n), np.uint8), np.arange(n), np.empty((1, n, 1, n), np.float32)
block = band.reshape(1, 1, n, n)
held, reach = np.empty((3, n, 1, 0), np.float32), (0, 0, n, n, 0)
works = {{
    "cut": lambda: cpu.cut(band, at, np.zeros(1, np.int64), at, one, one, tile),
    "blend": lambda: cpu.blend(canvas, logits, (share, one, share), (held,) * 3, (0, n), reach, (0, 0, 1, 1, 0), reach),
    "finish": lambda: cpu.finish(canvas, 0, cpu.SOFTMAX, labels, probabilities, np.arange(1, 3), none),
    "finish two": lambda: cpu.finish(canvas[:2], 0, cpu.SOFTMAX, labels, probabilities[:1], np.arange(1, 2), none),
    "halve": lambda: (halve_mean(block, 1), halve_mode(block, 1)),
    "chunks": lambda: cut_chunks(block, 0, 0, (1, n, n // 2)),
}}
for name, work in works.items():
    for _ in range(1 + calls * (name == which)):
        work()
"""


@dataclass(frozen=True)
class Count:
    """Instructions as counted, beside those that are kept."""

    name: str
    counted: float
    kept: float | None

    @property
    def holds(self) -> bool:
        """Whether it takes no more than before."""
        noise = START_NOISE if self.name.startswith("start") else NOISE
        return self.kept is None or self.counted <= self.kept * (1 + noise)

    def __str__(self) -> str:
        if self.kept is None:
            return f"{self.name:<28} {self.counted:.4g}, none kept"
        return f"{self.name:<28} {self.counted:.4g}, kept {self.kept:.4g}: {'holds' if self.holds else 'ROSE'}"


def why_not() -> str:
    """Why instructions cannot be counted here; empty when they can."""
    return "" if shutil.which("valgrind") else "valgrind is not installed"


def count(words: list[str]) -> int:
    """Instructions of a Python process that has run before: what it keeps for the next is kept.

    Raises:
        InputError: valgrind could not count them.
    """
    command = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    for prefix in ([], command):
        process = [*prefix, sys.executable, *words]
        done = subprocess.run(process, cwd=ROOT, env=os.environ | _ALIKE, capture_output=True, text=True, check=False)
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    if done.returncode or found is None:
        raise InputError(f"valgrind did not count {words[:3]}: {done.stderr.strip()[-300:]}")
    return int(found.group(1).replace(",", ""))


@cache
def _bare(*words: str) -> int:
    """Of a process that others do more than."""
    return count(list(words))


def _start(*words: str) -> float:
    """Of a process, beyond a bare Python's."""
    return float(count(list(words)) - _bare("-c", "pass"))


def _kernel(name: str) -> float:
    """Of a kernel, per pixel: what many more calls take."""
    program = _KERNELS.format(side=_SIDE)
    return (count(["-c", program, name, str(_CALLS)]) - _bare("-c", program, "none", "0")) / (_CALLS * _SIDE**2)


MEASURES: dict[str, Callable[[], float]] = {
    "start of tilelab --help": lambda: _start("-m", "tilelab", "--help"),
    "start of import tilelab": lambda: _start("-c", "import tilelab"),
    **{f"{name}, per pixel": partial(_kernel, name) for name in KERNELS},
}


def versions() -> dict[str, str]:
    """What the counts depend on."""
    packages = {name: importlib.metadata.version(name) for name in ("numpy", "numba", "llvmlite")}
    return {"python": platform.python_version(), "processor": cpu_kind(), **packages}


def check(path: Path = KEPT, say: Callable[[str], None] = print) -> list[Count]:
    """Count everything; what was counted with other versions is shown, and not compared."""
    if reason := why_not():
        say(f"no instructions are counted: {reason}")
        return []
    kept = _read(path)
    same = kept.get("versions") == versions()
    if kept and not same:
        say(f"kept with {kept['versions']}, this is {versions()}: not compared")
    found = []
    for name, measure in MEASURES.items():
        found.append(Count(name, measure(), kept["counts"].get(name) if same else None))
        say(str(found[-1]))
    return found


def update(path: Path = KEPT, say: Callable[[str], None] = print) -> None:
    """Count everything and keep it."""
    found = check(path, say)
    if found:
        counts = {one.name: float(f"{one.counted:.4g}") for one in found}
        path.write_text(json.dumps({"versions": versions(), "counts": counts}, indent=1) + "\n")


def _read(path: Path) -> Mapping[str, dict[str, float]]:
    try:
        kept: Mapping[str, dict[str, float]] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return kept
