"""What tests of every kind use: waiting that fails, networks on one thread, Numba's simulator."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")


def wait_for(
    condition: Callable[[], T], what: str, *, seconds: float = 120, process: subprocess.Popen[str] | None = None
) -> T:
    """Ask `condition` until what it returns is true, and return that.

    Fails the test, saying `what` was waited for, after `seconds` or when `process` ends before.
    """
    end = time.monotonic() + seconds
    while True:
        ended, late = process is not None and process.poll() is not None, time.monotonic() > end
        if found := condition():
            return found
        if process is not None and ended:
            said = (process.stdout or process.stderr).read() if process.stdout or process.stderr else ""  # type: ignore[union-attr]
            pytest.fail(f"the process ended ({process.returncode}) without {what}:\n{said}")
        if late:
            pytest.fail(f"waited {seconds:g} s for {what}, in vain")
        time.sleep(0.01)


def text_of(path: Path) -> str:
    """The file's text; nothing where there is none yet, or no more."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def run_in_simulator(file: str | Path, which: str) -> None:
    """Run those tests of a file in a process in which Numba simulates a GPU; none may skip.

    which: a part of their names, as for `pytest -k`.
    """
    if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
        pytest.skip("this is the simulator")
    pytest.importorskip("numba_cuda")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", which, str(file)],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "NUMBA_DISABLE_JIT": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "skipped" not in result.stdout
    assert "passed" in result.stdout
