"""The processor: what it is called and which of its instruction sets change an engine's choice of kernels."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import lru_cache
from pathlib import Path

from tilelab.machine.container import cpu_quota

# In the order of generations; each changes the kernels that the engines pick, and with them the last bits of a result.
_X86 = (
    "avx",
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "amx_int8",
)
_ARM = ("asimd", "asimddp", "bf16", "i8mm", "sve")


@lru_cache(maxsize=1)
def _cpu() -> tuple[str, tuple[str, ...]]:
    """Name and instruction sets, from the system; either may be empty."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        if platform.system() == "Darwin":
            name = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True).stdout
            return name.strip(), ()
        return platform.processor(), ()
    fields: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return fields.get("model name", platform.machine()), tuple(f for f in (*_X86, *_ARM) if f in flags)


def cpu_name() -> str:
    """What the processor calls itself."""
    return _cpu()[0]


def cpu_features() -> str:
    """The instruction sets that matter here, or the machine type where the system does not tell."""
    return " ".join(_cpu()[1]) or platform.machine()


def has_cpu_feature(*names: str) -> bool | None:
    """Whether the processor has one of `names`; None where the system does not tell."""
    known = _cpu()[1]
    return any(name in known for name in names) if known else None


def core_count() -> int:
    """Cores that this process may use, hyper-threads counted one by one, within the quota of its container."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:
        count = os.cpu_count() or 1
    return max(1, min(count, _quota()))


@lru_cache(maxsize=1)
def _quota() -> int:
    """Cores' worth of time that the process's container has, rounded up; more than any machine where it has all."""
    return cpu_quota() or 1 << 20


def physical_core_count() -> int:
    """Cores that this process may use: a second hyper-thread of one has no arithmetic of its own."""
    cores = set()
    for cpu in getattr(os, "sched_getaffinity", lambda _: ())(0):
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            cores.add(tuple((topology / name).read_text() for name in ("physical_package_id", "core_id")))
        except OSError:
            return core_count()
    return min(len(cores) or core_count(), core_count())
