"""What a measurement was made on: machine, versions, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.bench.settings import ROOT
from tilelab.machine.cpu import core_count

_PACKAGES = ("tilelab", "numpy", "numba", "onnxruntime", "openvino", "nncf", "torch", "zarr", "tifffile")


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory, system and library versions."""
    return {
        "processor": _processor(),
        "cores": core_count(),
        "memory_bytes": _field(Path("/proc/meminfo"), "MemTotal"),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def cpu_kind(processor: str | None = None) -> str:
    """What kind of processor this is, or one that `describe_machine` told, for the name of a folder: ``intel-amx``."""
    words = (processor or _processor()).lower()
    maker = next((name for name in ("intel", "amd", "apple", "arm") if name in words), "other")
    found = next((name for flag, name in (("amx", "amx"), ("avx512", "avx512"), ("avx2", "avx2")) if flag in words), "")
    return "-".join(filter(None, (maker, found)))


def commit() -> str:
    """Of the working tree, with ``+`` where tracked files differ from it; empty outside a repository."""
    head = _git("rev-parse", "--short=12", "HEAD")
    # what the benchmarks write themselves is no difference
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results", ":!README.md")
    return head + "+" * bool(head and changed)


class Others:
    """What other programs take of the processors meanwhile: times are only as good as the machine is quiet."""

    def __init__(self) -> None:
        self._began = _used()

    def cores(self) -> float:
        """Cores that were busy since this was made, on average, for anything but this process and its children."""
        wall, busy, own = (now - then for now, then in zip(_used(), self._began, strict=True))
        return max(0.0, (busy - own) / wall) if wall else 0.0


def _used() -> tuple[float, float, float]:
    """Seconds on the clock, of all processors busy or taken by the machine's host, and of this process's own work."""
    own = os.times()
    busy = 0.0
    statistics = Path("/proc/stat")
    if statistics.exists():
        user, nice, system, _, _, irq, soft, steal = map(int, statistics.read_text().split("\n", 1)[0].split()[1:9])
        busy = (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")
    return own.elapsed, busy, own.user + own.system + own.children_user + own.children_system


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    """Its name, and the family and model that virtual machines hide in it."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in cpuinfo.read_text().split("\n\n")[0].splitlines() if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    name = named.get("model name", platform.machine())
    family = f" (family {named['cpu family']}, model {named['model']})" if "cpu family" in named else ""
    flags = named.get("flags", "").split()
    known = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile") if flag in flags]
    return ", ".join([name + family, *known])


def _field(path: Path, name: str) -> int:
    if not path.exists():
        return 0
    fields = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return int(fields[name].split()[0]) * 1024
