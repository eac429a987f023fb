"""What the container or job of this process may use: its control group and those around it, of either version."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")


def memory_limit() -> int | None:
    """Bytes that all processes of the container or job may have together; None without a limit."""
    return min((limit for _, limit in _memory_limits()), default=None)


def free_memory() -> int | None:
    """Bytes of that limit that can still be had: what files are kept in is given up when it is asked for."""
    return min((limit - _held(group) for group, limit in _memory_limits()), default=None)


def cpu_quota() -> int | None:
    """Cores' worth of time, rounded up; None without a quota."""
    found = []
    for group in _groups("cpu"):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # "max 100000" where there is none
            quota, period = (group / "cpu.max").read_text().split()
            found.append(-(-int(quota) // int(period)))
        quota_us, period_us = (_number(group / f"cpu.cfs_{what}_us") for what in ("quota", "period"))
        if quota_us is not None and quota_us > 0 and period_us:
            found.append(-(-quota_us // period_us))
    return min(found, default=None)


def _memory_limits() -> Iterator[tuple[Path, int]]:
    """The groups that have one."""
    for group in _groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            if (limit := _number(group / name)) is not None:
                yield group, limit


def _held(group: Path) -> int:
    """Bytes that the processes of a group have, without those of files that could be read again."""
    used = next(
        (n for name in ("current", "usage_in_bytes") if (n := _number(group / f"memory.{name}")) is not None), 0
    )
    kept = 0
    with contextlib.suppress(OSError, ValueError):
        known = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        below = "total_" if "total_inactive_file" in known else ""  # version 1 tells a group from those below it
        kept = sum(int(known.get(f"{below}{kind}_file", 0)) for kind in ("inactive", "active"))
    return max(0, used - kept)


def _groups(controller: str) -> Iterator[Path]:
    """The folders of the groups that this process is in, its own first; some need not be there."""
    mount = ROOT / "sys/fs/cgroup"
    try:
        lines = (ROOT / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        inside = PurePosixPath("" if ".." in path else path.lstrip("/"))  # seen from a container it may lie outside
        for top in (mount / names, mount / controller) if names else (mount, mount / "unified"):
            for group in (inside, *inside.parents):
                yield top / group


def _number(path: Path) -> int | None:
    """What a file holds; None where it is no number (``max``) or cannot be read."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
