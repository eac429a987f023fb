"""What every benchmark gets: sizes, the model, images, and a way to run commands that are written down."""

from __future__ import annotations

import json
import math
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.bench.ledger import Ledger
from benchmarks.bench.machine import commit
from benchmarks.bench.model import Model, model_name, plane, prepare_model
from benchmarks.bench.processes import Outcome, run_process
from benchmarks.bench.settings import CACHE, ROOT, PlaneShape, Scale

T = TypeVar("T")


class Workbench:
    """One run of some benchmarks at one scale.

    Attributes:
        scale: how large everything is.
        cache: folder for models and images, kept from run to run.
        say: told one line for each thing that begins.
        contenders: how the names begin of those that are compared.
        ledger: what this run has measured.
    """

    def __init__(
        self,
        scale: Scale,
        cache: Path = CACHE,
        say: Callable[[str], None] = lambda _: None,
        contenders: tuple[str, ...] = ("",),
        *,
        checkpoint: Path | None = None,
        minutes: float | None = None,
        resume: bool = False,
    ) -> None:
        """Prepare nothing yet.

        Args:
            scale, cache, say, contenders: see above.
            checkpoint: weights to measure with; None for some made here.
            minutes: for everything; what would take longer is estimated or left out.
            resume: go on with what an earlier run had measured when it ended.
        """
        self.scale, self.cache, self.say, self.contenders = scale, cache, say, contenders
        self._checkpoint, self._resume = checkpoint, resume
        self._end = math.inf if minutes is None else time.monotonic() + 60 * minutes
        self._commands: list[str] = []

    @cached_property
    def model(self) -> Model:
        """The network, in full precision."""
        self.say("preparing the model")
        return prepare_model(self.scale, self.cache, self._checkpoint)

    @cached_property
    def ledger(self) -> Ledger:
        """Of this scale and this model, kept in the cache."""
        about = f"{self.scale.name} {model_name(self.scale, self.cache, self._checkpoint)}"
        path = self.cache / "ledgers" / f"{about.replace(' ', '-')}.json"
        return Ledger(path, about, commit(), resume=self._resume)

    @property
    def pinned(self) -> tuple[str, ...]:
        """The tile and overlap that all have in common, as flags of ``tilelab infer``, which would choose its own."""
        return ("--tile", str(self.scale.tile), "--overlap", str(self.scale.overlap))

    @property
    def seconds_left(self) -> float:
        """Until the time given is over."""
        return self._end - time.monotonic()

    @cached_property
    def quantized(self) -> dict[str, Path]:
        """The network in int8, by engine; an engine is missing where its quantiser is."""
        from benchmarks.bench.quantize import prepare_quantized

        return prepare_quantized(self.scale, self.cache, self.model, self.say)

    def image(self, shape: PlaneShape) -> Path:
        """A plane of micrographs."""
        return plane(self.scale, self.cache, shape)

    def truth(self, shape: PlaneShape) -> Path:
        """Its labels."""
        return plane(self.scale, self.cache, shape, truth=True)

    def prepare(self) -> None:
        """Make the model, its int8 versions and every image, so that a run has nothing to do but measure."""
        _ = self.quantized
        scale = self.scale
        tall = () if scale.tall is None else (scale.tall,)
        kill = () if scale.kill is None else (scale.kill,)
        for shape in dict.fromkeys((scale.main, *tall, *scale.areas, *scale.peers, scale.whole, *kill)):
            self.say(f"the plane of {shape[0]} x {shape[1]}")
            self.image(shape)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder for results, gone afterwards; on the disk that the images are on."""
        (self.cache / "work").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.cache / "work") as name:
            yield Path(name)

    def run(self, words: list[str | Path], **limits: Any) -> Outcome:
        """Run a command from the repository's root, see `run_process`; it is among `commands` afterwards."""
        self.note(words)
        return run_process(words, cwd=ROOT, **limits)

    def note(self, words: Sequence[str | Path]) -> None:
        """Write a command down."""
        line = shlex.join("python" if word == sys.executable else self._short(word) for word in words)
        if line not in self._commands:
            self._commands.append(line)

    def infer(
        self, shape: PlaneShape, out: Path, *words: str | Path, model: Path | None = None, **limits: Any
    ) -> Infer:
        """Run ``tilelab infer`` on a plane as users do: a process of its own, from its start to the result."""
        report = out.with_suffix(".json")
        command: list[str | Path] = [sys.executable, "-m", "tilelab", "infer", self.image(shape)]
        command += ["--model", model or self.model.onnx, "-o", out, "--report", report, "--quiet", *words]
        outcome = self.run(command, **limits)
        run = Infer(outcome, json.loads(report.read_text()) if report.exists() else None)
        name = self._infer_name(shape, words, model)
        # the first one: a later one may go on where one that was killed had come to
        if outcome.ok and not limits.get("kill_after") and self.ledger.get(name) is None:
            self.ledger.put(name, {"seconds": outcome.seconds, "peak": outcome.peak, "report": run.report})
        return run

    def recall_infer(self, shape: PlaneShape, *words: str | Path, model: Path | None = None) -> Infer | None:
        """The same run as made before, if it was, by whichever benchmark; its result is gone."""
        measured = self.ledger.get(self._infer_name(shape, words, model))
        if measured is None:
            return None
        return Infer(Outcome(measured["seconds"], 0, measured["peak"], "", "", ""), measured["report"])

    def _infer_name(self, shape: PlaneShape, words: Sequence[str | Path], model: Path | None) -> str:
        return f"infer {(model or self.model.onnx).name} {shape[0]}x{shape[1]} {' '.join(map(str, words))}"

    def once(self, name: str, make: Callable[[], T]) -> T:
        """A measurement, which JSON can hold, from the ledger or made now."""
        found: T | None = self.ledger.get(name)
        if found is None:
            self.say(name)
            found = make()
            self.ledger.put(name, found)
        return found

    def take_commands(self) -> list[str]:
        """The commands run since the last call."""
        commands, self._commands = self._commands, []
        return commands

    def _short(self, word: str | Path) -> str:
        """Without the folders of this machine."""
        text = str(word)
        work = str(self.cache / "work")
        if text.startswith(work):
            return "/".join(["WORK", *Path(text).relative_to(work).parts[1:]])
        return text.replace(str(self.cache), "benchmarks/.cache").replace(f"{ROOT}/", "")


class Infer:
    """A run of ``tilelab infer``: its process and its own report."""

    def __init__(self, outcome: Outcome, report: dict[str, Any] | None) -> None:
        self.outcome = outcome
        self._report = report

    @property
    def report(self) -> dict[str, Any]:
        """The run report.

        Raises:
            RuntimeError: the run failed; says why.
        """
        if not self.outcome.ok or self._report is None:
            raise RuntimeError(f"tilelab infer failed: {self.outcome.reason}")
        return self._report

    @property
    def memory_growth(self) -> int:
        """Bytes above the loaded engine."""
        memory = self.report["memory"]
        return int(memory["peak"] - memory["before"])
