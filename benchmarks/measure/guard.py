"""Ratios that tell when we got slower, whatever the machine: measured in turns and compared with guard.json.

A ratio is how much of its yardstick something reaches, so higher is better; it fails when it falls below what is kept
by more than its noise.  A busy machine disturbs both sides of a ratio but not always equally, so a ratio that falls
short is measured again before it fails.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bench.settings import ROOT
from benchmarks.measure.limits import Kernels, take_turns
from tilelab.engines.streams import time_batches
from tilelab.errors import InputError

KEPT = ROOT / "benchmarks" / "guard.json"
ATTEMPTS = 3
ROUNDS = 15


@dataclass(frozen=True)
class Ratio:
    """One ratio as measured, beside what is kept: it holds while ``measured >= kept * (1 - noise)``."""

    name: str
    measured: float
    kept: float
    noise: float

    @property
    def least(self) -> float:
        """The smallest value that passes."""
        return self.kept * (1 - self.noise)

    @property
    def holds(self) -> bool:
        """Whether nothing got slower."""
        return self.measured >= self.least

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "FELL"
        return f"{self.name:<20} {self.measured:.3f}, kept {self.kept:.3f}, at least {self.least:.3f}: {verdict}"


def kernel_ratio(name: str, rounds: int = ROUNDS) -> float:
    """Bandwidth of a kernel over that of a plain copy, on one core: the best round of each, in turns.

    By the processor's time, and the best of it: on a busy machine the clock on the wall says how often the longer one
    was interrupted.
    """
    kernels = Kernels(width=4096)
    works = {key: kernels.works[key] for key in ("copy", name)}
    times = take_turns(works, 0.0, rounds, time.thread_time)
    rates = {key: kernels.moved[key] / min(taken) for key, taken in times.items()}
    return rates[name] / rates["copy"]


def sweep_ratio(rounds: int = 3) -> float:
    """Seconds of a bare loop over the seconds of `tilelab.infer`'s sweep, for as many batches of the bundled model."""
    import tilelab
    from tilelab.sample import draw_superalloy

    image, _ = draw_superalloy((640, 640), seed=0)
    engine = tilelab.load_engine("superalloy", precision="fp32", threads=1)  # a ratio that no number of cores changes
    try:
        ratios = []
        with tempfile.TemporaryDirectory() as folder:
            for turn in range(rounds + 1):
                run = tilelab.infer(image, engine, Path(folder) / f"{turn}.ome.zarr")
                batches = -(-run.report["tiles"]["inferred"] // engine.batch)
                enough = -(-batches // engine.streams)
                bare = time_batches(engine, lambda times, enough=enough: len(times) < enough)
                ratios.append(batches * statistics.mean(bare) / run.report["seconds"]["sweep"])
    finally:
        engine.close()
    return float(statistics.median(ratios[1:]))  # the first one warmed up


def start_ratio(rounds: int = 3) -> float:
    """Seconds that Python needs to import NumPy and an engine over those of a whole `tilelab infer` on a tiny image."""
    from PIL import Image as Pillow

    from tilelab.sample import draw_superalloy

    with tempfile.TemporaryDirectory() as name:
        image = Path(name) / "tiny.png"
        Pillow.fromarray(draw_superalloy((64, 64), seed=0)[0]).save(image)
        out = Path(name) / "out.ome.zarr"
        infer = [sys.executable, "-m", "tilelab", "infer", image, "--model", "identity:2", "-o", out, "--quiet"]

        def run(words: list[object]) -> None:
            subprocess.run([str(word) for word in words], check=True, cwd=ROOT, capture_output=True)

        works: dict[str, Callable[[], object]] = {
            "bare": lambda: run([sys.executable, "-c", "import numpy, numba, zarr"]),
            "infer": lambda: run([*infer, "--restart"]),
        }
        return 1 / _median_ratio(works, rounds)


MEASURES: dict[str, Callable[[], float]] = {
    "blend over copy": lambda: kernel_ratio("blend"),
    "cut over copy": lambda: kernel_ratio("cut"),
    "finish over copy": lambda: kernel_ratio("finish"),
    "bare over sweep": sweep_ratio,
    "imports over start": start_ratio,
}
QUICK = ("blend over copy", "cut over copy", "finish over copy", "bare over sweep")
"""Those that take seconds and start no process: what the tests check."""


def check(names: Collection[str] | None = None, path: Path = KEPT, say: Callable[[str], None] = print) -> list[Ratio]:
    """Measure the ratios of these names (by default all that are kept), again where one falls short; says each.

    Raises:
        InputError: the file is missing, or names a ratio that is not known.
    """
    ratios = []
    for name, entry in read_kept(path).items():
        if names is not None and name not in names:
            continue
        for _ in range(ATTEMPTS):
            ratio = Ratio(name, MEASURES[name](), entry["ratio"], entry["noise"])
            if ratio.holds:
                break
        say(str(ratio))
        ratios.append(ratio)
    return ratios


def read_kept(path: Path = KEPT) -> dict[str, dict[str, float]]:
    """The ratios kept in the repository."""
    try:
        kept: dict[str, dict[str, float]] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"no ratios to compare with in {path} ({error}): write them with --update") from error
    unknown = sorted(set(kept) - set(MEASURES))
    if unknown:
        raise InputError(f"{path} keeps {unknown[0]!r}, which is not measured: choose among {', '.join(MEASURES)}")
    return kept


def update(path: Path = KEPT, say: Callable[[str], None] = print) -> None:
    """Measure every ratio and keep it; the noise of each stays what it was."""
    known = read_kept(path) if path.exists() else {}
    kept = {}
    for name, measure in MEASURES.items():
        values = [measure() for _ in range(ATTEMPTS)]
        kept[name] = {"ratio": round(statistics.median(values), 3), "noise": known.get(name, {}).get("noise", 0.5)}
        say(f"{name:<20} {kept[name]['ratio']:.3f} (of {', '.join(f'{value:.3f}' for value in values)})")
    path.write_text(json.dumps(kept, indent=1) + "\n")


def _median_ratio(works: dict[str, Callable[[], object]], rounds: int) -> float:
    """Median over `rounds` of the second work's seconds over the first's, in turns; both warmed up before."""
    for work in works.values():
        work()
    ratios = []
    for _ in range(rounds):
        took = []
        for work in works.values():
            began = time.perf_counter()
            work()
            took.append(time.perf_counter() - began)
        ratios.append(took[1] / took[0])
    return statistics.median(ratios)
