"""All that a GPU has to show, on a machine without network, in one command: ``python3 -m benchmarks.gpu.bare``.

Run in the repository's root.  Needs the standard library alone: it installs the wheels that `benchmarks.gpu.carry` put
into a folder beside the machine's own packages, then makes every check and measurement in a process of its own, each
with its time and all within ``--limit`` seconds.  What fails or hangs is told, and the others go on.

Everything is printed as it comes and kept in ``--out``: results.json (every figure, how each step ended, and where what
failed did so), log.txt, and with ``--price`` cost.md, what a terabyte takes and costs by what was measured.
Exit code 1 when a step failed.  ``--toy``: tiny sizes in Numba's simulator, to see that it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu.cost import cost_table

ROOT = Path(__file__).parents[2]
LIMIT = 540  # seconds of all steps together, for which theirs are meant
LEAST = 12  # seconds under which no step is begun
PYTHON = sys.executable
PYTEST = [PYTHON, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rs", "--maxfail=20"]
SWEEPS = "half or blank or symmetric"
TOOLKIT = Path("/usr/local/cuda")


class Step(NamedTuple):
    """One process: `seconds` of `LIMIT` at most, `beside` others like it; `measures` are steps of `benchmarks.gpu`."""

    name: str
    seconds: int
    command: list[str]
    beside: bool = False


def steps(files: Path, found: Path, *, toy: bool) -> list[Step]:
    """All of them, the most telling first; engines are compiled while the kernels are checked.

    files: what one step makes for others; found: the folder for what each one measures.
    """

    def measure(name: str, seconds: int, *words: str, beside: bool = False) -> Step:
        more = ["--toy", "--batch", "2"] if toy else []
        command = [PYTHON, "-m", "benchmarks.gpu", *words, "--files", str(files), "--json", str(found / f"{name}.json")]
        return Step(name, seconds, [*command, *more], beside)

    def sanitize(tool: str) -> list[str]:
        # NVIDIA's bindings ask the driver for more than it has, and are answered with errors, which are none of ours
        words = ["--tool", tool, "--report-api-errors", "no", "--error-exitcode", "9", "--print-limit", "20"]
        return [] if toy else [shutil.which("compute-sanitizer") or f"{TOOLKIT}/bin/compute-sanitizer", *words]

    def tests(name: str, which: str) -> list[str]:
        return [*PYTEST, f"tests/test_{name}.py", "-k", f"({which}) and not simulator"]

    return [
        Step("doctor", 60, [PYTHON, "-m", "tilelab", "doctor"]),
        measure("make", 230, "make", beside=True),
        Step("kernels", 160, tests("cuda_kernels", "clear or turn" if toy else "equal"), beside=True),
        Step("sweeps", 160, tests("sweep_cuda", "continued" if toy else "test"), beside=True),
        Step(
            "memcheck", 200, [*sanitize("memcheck"), *tests("sweep_cuda", "continued" if toy else SWEEPS)], beside=True
        ),
        measure("basics", 90, "launches", "bus", "kernels"),
        measure("product", 150, "product"),
        measure("agreement", 60, "agreement"),
        measure("baselines", 110, "baselines"),
        measure("host", 60, "host"),
        measure("torch", 80, "networks", "--networks", "unet-resnet18", "--precisions", "fp16", "--engines", "torch"),
        Step("initcheck", 90, [*sanitize("initcheck"), *tests("sweep_cuda", "continued" if toy else "half")]),
    ]


class Bare:
    """The run: how each step ended, and where everything is kept; in `found` while a step is under way."""

    def __init__(self, out: Path, limit: float, environment: dict[str, str]) -> None:
        self.out, self.found, self.environment = out, out / "found", environment
        self.found.mkdir(parents=True, exist_ok=True)
        self.ended: list[dict[str, Any]] = []
        self._kept: dict[str, Any] = {"gpu": "", "findings": [], "failures": [], "steps": self.ended}
        self._share, self._deadline = limit / LIMIT, time.monotonic() + limit
        self._lock = threading.Lock()
        (out / "log.txt").write_text("")

    def left(self) -> float:
        """Seconds until the end."""
        return self._deadline - time.monotonic()

    def run(self, step: Step) -> None:
        """One step to its end, or to the end of its time."""
        seconds, began = min(step.seconds * self._share, self.left()), time.monotonic()
        if seconds < LEAST:
            self._end(step, "no time left", 0, "")
            return
        self._say(f"--- {step.name}: at most {seconds:.0f} s")
        self.found.mkdir(exist_ok=True)
        log = self.out / f"{step.name}.log"
        with log.open("wb") as target:
            try:
                process = subprocess.Popen(
                    step.command, cwd=ROOT, env=self.environment, stdout=target, stderr=subprocess.STDOUT,
                    start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                self._end(step, str(error), 0, "")
                return
            try:
                ended: int | str = process.wait(seconds)
            except subprocess.TimeoutExpired:
                ended = "took too long"
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        text = log.read_text(errors="replace")
        log.unlink()
        self._end(step, ended, time.monotonic() - began, text)

    def _end(self, step: Step, ended: int | str, seconds: float, text: str) -> None:
        with self._lock:
            self.ended.append({"step": step.name, "ended": ended, "seconds": round(seconds, 1)})
            with (self.out / "log.txt").open("a") as log:
                log.write(f"=== {step.name}: {ended}, {seconds:.1f} s\n{text[-200_000:]}\n")
            lines = text.splitlines() if "benchmarks.gpu" in step.command else text.splitlines()[-12:]
            print("\n".join(line[:240] for line in lines))
            self._say(f"=== {step.name}: {'done' if ended == 0 else ended}, {seconds:.0f} s; {self.left():.0f} s left")
            self._take(self.found / f"{step.name}.json")
            self.keep()

    def _take(self, path: Path) -> None:
        """What a step has measured; none of a file that it was killed over."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            found = json.loads(path.read_text())
            self._kept["gpu"] = found["gpu"]
            for what in ("findings", "failures"):
                self._kept[what] += found.get(what, [])
        path.unlink(missing_ok=True)

    def keep(self) -> dict[str, Any]:
        """Every figure so far, in one file."""
        (self.out / "results.json").write_text(json.dumps(self._kept, indent=1))
        with contextlib.suppress(OSError):  # a step is under way
            self.found.rmdir()
        return self._kept

    @staticmethod
    def _say(line: str) -> None:
        print(line, flush=True)


def install(wheels: Path, site: Path) -> str:
    """Unpack the wheels into `site`; what went wrong, or nothing."""
    found = [str(path) for path in sorted(wheels.glob("*.whl"))]
    if not found:
        return f"{wheels} holds no wheels: python -m benchmarks.gpu.carry {wheels}"
    words = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade", "--target", str(site)]
    command = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check", *words, *found]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr if done.returncode else ""


def environment(work: Path, *, toy: bool) -> dict[str, str]:
    """That of every step: our packages first, caches of its own, where the kernels' compiler finds its library."""
    given = dict(os.environ)
    given |= {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, work / "site"))), "PYTHONUNBUFFERED": "1"}
    given |= {"PYTHONDONTWRITEBYTECODE": "1", "XDG_CACHE_HOME": str(work / "cache")}
    given |= {"TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"), "TMPDIR": str(work)}
    nvcc = shutil.which("nvcc")
    cuda = TOOLKIT if TOOLKIT.is_dir() or nvcc is None else Path(nvcc).resolve().parents[1]
    if "CUDA_HOME" not in given and cuda.is_dir():
        given |= {"CUDA_HOME": str(cuda), "CUDA_PATH": str(cuda)}
    return given | ({"NUMBA_ENABLE_CUDASIM": "1"} if toy else {})


def together(chosen: Sequence[Step]) -> Iterator[list[Step]]:
    """Steps that run beside each other."""
    group: list[Step] = []
    for step in chosen:
        if group and not (step.beside and group[-1].beside):
            yield group
            group = []
        group.append(step)
    if group:
        yield group


def main(argv: Sequence[str] | None = None) -> int:
    """Everything, or the steps that are named; returns 1 when one of them failed."""
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.gpu.bare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("steps", nargs="*", metavar="STEP", help="some steps only")
    parser.add_argument("--wheels", type=Path, default=Path(".gpu"))
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-results")))
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for everything (540)")
    parser.add_argument("--price", type=float, help="of the GPU for an hour: a table of what a terabyte costs")
    parser.add_argument("--currency", default="", help="of the price")
    parser.add_argument("--toy", action="store_true", help="tiny sizes in the simulator")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="tilelab-gpu-") as name:
        work = Path(name)
        run = Bare(args.out.absolute(), args.limit, environment(work, toy=args.toy))
        every = steps(work / "files", run.found, toy=args.toy)
        if unknown := set(args.steps) - {step.name for step in every}:
            names = ", ".join(step.name for step in every)
            parser.error(f"there is no step {', '.join(sorted(unknown))}: choose among {names}")
        if problem := install(args.wheels, work / "site"):
            print(f"the wheels were not installed: {problem}", flush=True)
        for group in together([step for step in every if not args.steps or step.name in args.steps]):
            threads = [threading.Thread(target=run.run, args=[step]) for step in group]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    if args.price is not None and (table := cost_table(run.keep(), args.price, args.currency)):
        (run.out / "cost.md").write_text("\n".join(table) + "\n")
        print("\n".join(table))
    for ended in run.ended:
        print(f"{ended['step']:<12}{'done' if ended['ended'] == 0 else ended['ended']!s:<20}{ended['seconds']:>7} s")
    return int(any(ended["ended"] != 0 for ended in run.ended))


if __name__ == "__main__":
    sys.exit(main())
