"""Memory and cores are those of the container or job that a process is in, of either version of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from tilelab.machine import container, memory

GB = 10**9


def lay(root: Path, files: dict[str, object]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")


JOB = "sys/fs/cgroup/system.slice/slurmstepd.scope/job_7"
OLD = "sys/fs/cgroup/memory/docker/ab"
FOUND = {
    # a job's limit is that of a group above the process's own, which has none
    "job": (
        {
            "proc/self/cgroup": "0::/system.slice/slurmstepd.scope/job_7/step_0/task_0",
            f"{JOB}/memory.max": 4 * GB,
            f"{JOB}/memory.current": 3 * GB,
            f"{JOB}/memory.stat": f"anon {GB}\ninactive_file {GB}\nactive_file {GB}",
            f"{JOB}/step_0/memory.max": "max",
            f"{JOB}/cpu.max": "150000 100000",
        },
        (4 * GB, 3 * GB, 2),
    ),
    # a container sees its own group as the root
    "container": (
        {
            "proc/self/cgroup": "0::/",
            "sys/fs/cgroup/memory.max": 2 * GB,
            "sys/fs/cgroup/memory.current": GB,
            "sys/fs/cgroup/cpu.max": "max 100000",
        },
        (2 * GB, GB, None),
    ),
    # version 1: the group's own name where it is mounted whole, or the mount itself
    "old": (
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/docker/ab\n4:memory:/docker/ab\n1:name=systemd:/docker/ab",
            f"{OLD}/memory.limit_in_bytes": 3 * GB,
            f"{OLD}/memory.usage_in_bytes": 2 * GB,
            f"{OLD}/memory.stat": f"inactive_file 1\ntotal_inactive_file {GB}\ntotal_active_file 0",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": 9223372036854771712,
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": 300000,
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": 100000,
        },
        (3 * GB, 2 * GB, 3),
    ),
    "none": (
        {"proc/self/cgroup": "4:memory:/\n0::/../../x", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": -1},
        (None, None, None),
    ),
    "not Linux": ({}, (None, None, None)),
}


@pytest.mark.parametrize("kind", FOUND)
def test_limits_are_those_of_the_group_and_of_those_around_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, (limit, free, cores) = FOUND[kind]
    lay(tmp_path, files)
    monkeypatch.setattr(container, "ROOT", tmp_path)
    assert (container.memory_limit(), container.free_memory(), container.cpu_quota()) == (limit, free, cores)
    if limit is not None and free is not None:
        assert memory.total_memory() <= limit
        assert memory.available_memory() <= free


def test_what_files_are_kept_in_is_no_memory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that was read fills the group with its pages: the next run was refused for want of memory."""
    files = {
        "proc/self/cgroup": "0::/",
        "sys/fs/cgroup/memory.max": 4 * GB,
        "sys/fs/cgroup/memory.current": 4 * GB - 4096,
        "sys/fs/cgroup/memory.stat": f"inactive_file {2 * GB}\nactive_file {GB}",
    }
    lay(tmp_path, files)
    monkeypatch.setattr(container, "ROOT", tmp_path)
    assert container.free_memory() == 3 * GB + 4096
