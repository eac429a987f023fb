"""Amounts of memory: how much there is, how it is written and read."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from tilelab.errors import PlanError

DEFAULT_LIMIT = 2 << 30


def default_memory_limit() -> int:
    """Half of the memory that is free now, and at most 2 GiB: more would only save a per cent of tiles."""
    return min(DEFAULT_LIMIT, available_memory() // 2)


def available_memory() -> int:
    """Bytes that programs can still have: of the machine, or of the container or job that this process is in."""
    free = 8 << 30
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free = int(fields.get("MemAvailable", "8388608 kB").split()[0]) * 1024
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    with contextlib.suppress(OSError, ValueError):
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return max(free, 64 << 20)


def resident_memory() -> int:
    """Bytes of memory that this process has now; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def peak_memory() -> int:
    """Most bytes of memory that this process has had; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the process that this one was forked from
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(fields.get("VmHWM", "0 kB").split()[0]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def format_bytes(count: float) -> str:
    """``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} PiB"


def parse_bytes(text: str) -> int:
    """``4GB``, ``512 MiB``, ``2g`` or plain bytes.

    Raises:
        PlanError: it is none of these.
    """
    units = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
    cleaned = text.strip().lower().removesuffix("b")
    binary = cleaned.endswith("i")
    cleaned = cleaned.removesuffix("i")
    number, unit = (cleaned[:-1], cleaned[-1:]) if cleaned[-1:] in "kmgt" and cleaned else (cleaned, "")
    try:
        value = float(number)
    except ValueError:
        raise PlanError(f"{text!r} is not an amount of memory: write 4GB, 512MiB or bytes") from None
    power = "kmgt".find(unit) + 1 if unit else 0
    count = int(value * (1024**power if binary else units[unit]))
    if count <= 0:
        raise PlanError(f"{text!r} is not an amount of memory: write 4GB, 512MiB or bytes")
    return count
