"""Amounts of memory: how much there is, how it is written and read."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tilelab.machine.container import free_memory, memory_limit

DEFAULT_LIMIT = 2 << 30
MEMORY_GOAL = 400_000_000
"""Bytes beside the engine that a run takes where nothing is said, if its tiles allow it."""


def default_memory_limit(more: int = 0) -> int:
    """Half of the memory that is free now, and at most 2 GiB: more would only save a per cent of tiles.

    more: bytes that the machine asks for beyond that, a batch for every core, say.
    """
    return min(DEFAULT_LIMIT + more, available_memory() // 2)


def available_memory() -> int:
    """Bytes that programs can still have: of the machine, or of the container or job that this process is in."""
    free = 8 << 30
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free = int(fields.get("MemAvailable", "8388608 kB").split()[0]) * 1024
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    left = free_memory()
    return max(free if left is None else min(free, left), 64 << 20)


def total_memory() -> int:
    """Bytes of memory that this machine, container or job has in all: the same at any time."""
    total = 8 << 30
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = memory_limit()
    return total if limit is None else min(total, limit)


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
