"""Run a command as users would, from the start of its process, and watch time and memory from outside."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PATH = re.compile(r"(?<![\w.:/])/(?:[^/\s'\"]+/)+")
_POLL = 0.05  # seconds between looks at a process's memory


def without_paths(text: str) -> str:
    """`text` with the folders of absolute paths left out: what a machine's folders are called is nobody's business."""
    return _PATH.sub("", text)


@dataclass(frozen=True)
class Outcome:
    """A command that ended.

    Attributes:
        seconds: from before its process was made until it was gone.
        code: its exit code, negative for a signal.
        peak: most bytes resident at a time, of it and its children.
        stopped: why it was killed from here: ``memory``, ``time`` or ``asked``; empty when it ended by itself.
        output, errors: what it printed.
    """

    seconds: float
    code: int
    peak: int
    stopped: str
    output: str
    errors: str

    @property
    def ok(self) -> bool:
        """Whether it ended by itself, without an error."""
        return self.code == 0 and not self.stopped

    @property
    def reason(self) -> str:
        """Why it did not end well, in a few words."""
        if self.stopped == "memory":
            return f"needed more than the limit, {self.peak / 1e9:.1f} GB"
        if self.stopped == "time":
            return f"not finished after {self.seconds:.0f} s"
        if self.code == -9:
            return f"killed by the system at {self.peak / 1e9:.1f} GB"
        lines = [line for line in self.errors.splitlines() if line.strip()]
        return without_paths(lines[-1].strip())[:200] if lines else f"exit code {self.code}"


def run_process(
    command: Sequence[str | Path],
    *,
    cwd: Path,
    memory_limit: int | None = None,
    time_limit: float | None = None,
    kill_after: float | None = None,
    env: Mapping[str, str] | None = None,
) -> Outcome:
    """Run `command` to its end.

    Args:
        command: program and arguments.
        cwd: folder to run in.
        memory_limit: bytes resident, of it and its children, beyond which it is killed.
        time_limit: seconds after which it counts as not finished and is killed.
        kill_after: seconds after which it is killed on purpose (SIGKILL).
        env: added to this process's environment.
    """
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        began = time.perf_counter()
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=cwd,
            stdout=output,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        watch = _Watch(process, memory_limit, began, {"time": time_limit, "asked": kill_after})
        watch.start()
        code = process.wait()
        seconds = time.perf_counter() - began
        watch.join()
        output.seek(0)
        errors.seek(0)
        return Outcome(seconds, code, watch.peak, watch.stopped, output.read(), errors.read())


class _Watch(threading.Thread):
    """Follows the memory of a process and its children, and kills them all beyond a limit or at a time."""

    def __init__(
        self, process: subprocess.Popen[bytes], limit: int | None, began: float, ends: Mapping[str, float | None]
    ) -> None:
        super().__init__(daemon=True)
        self.process, self.limit = process, limit
        self.ends = {why: began + seconds for why, seconds in ends.items() if seconds is not None}
        self.peak, self.stopped = 0, ""

    def run(self) -> None:
        while self.process.poll() is None:
            self.peak = max(self.peak, _tree_memory(self.process.pid))
            if self.limit is not None and self.peak > self.limit:
                self._kill("memory")
            for why, end in self.ends.items():
                if time.perf_counter() >= end and not self.stopped:
                    self._kill(why)
            time.sleep(_POLL)

    def _kill(self, why: str) -> None:
        self.stopped = why
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def _tree_memory(pid: int) -> int:
    """Bytes of memory of a process and its children: the high-water mark of the first, what the others have now."""
    return _status(pid, "VmHWM") + sum(_status(child, "VmRSS") for child in _descendants(pid))


def _descendants(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *_descendants(child)]
    return found


def _status(pid: int, name: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0
