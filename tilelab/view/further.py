"""`tilelab improve` as a process beside a viewer: it can be watched and stopped, and brings no torch along."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tilelab.errors import ModelError

_STEP = re.compile(r"step (\d+) of (\d+)")


@dataclass(frozen=True, slots=True)
class Progress:
    """A line that was said, and the share of the steps that are behind it; None where it tells of none."""

    line: str
    share: float | None


def train_further(model: str, corrections: Path, new: Path, minutes: float = 10.0) -> Iterator[Progress]:
    """Improve `model` by `corrections` and write it to `new`; an iterator that is closed stops it.

    Raises:
        ModelError: it failed or would be no better, in the words of the command.
    """
    words = [model, "--corrections", str(corrections), "-o", str(new), "--minutes", f"{minutes:g}", "--tell-steps"]
    line = "it said nothing"
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "tilelab", "improve", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None  # noqa: S101  # asked for
        try:
            for text in process.stdout:
                line = text.strip().removeprefix("tilelab: ")
                step = _STEP.search(line)
                yield Progress(line, None if step is None else int(step[1]) / int(step[2]))
        finally:
            if process.poll() is None:
                process.terminate()
    if process.returncode:
        raise ModelError(line.removeprefix("error: "))
