"""Whether a stack of a gigabyte, cut up and killed in every way, gives one answer, and in how much memory.

    python -m benchmarks.measure.stack WORK -o benchmarks/results/stack.md
    AWS_ENDPOINT_URL=http://127.0.0.1:5000 ... python -m benchmarks.measure.stack WORK --s3 s3://BUCKET -o ...

Makes a stack of real micrographs in WORK (`benchmarks.bench.mosaic`) and segments it by one process, by 2 and 4
workers, by 4 of which one is killed every few seconds, by 4 whose client is killed half-way and started again, and with
``--s3`` from a bucket and into it (for a server of one's own: ``python -m moto.server -p 5000``).  Compares the SHA-256
of all pixels.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from benchmarks.bench.machine import commit
from benchmarks.bench.mosaic import Mosaic, data_folder, load_micrographs
from benchmarks.bench.settings import ROOT
from benchmarks.command import make_parser
from tilelab.geometry import Box

Fault = Callable[["WatchedRun"], None]
PAUSE = 3.0
"""Seconds between two kills."""


@dataclass
class WatchedRun:
    """One command: its process, and the most memory that each process of it had."""

    name: str
    process: subprocess.Popen[str]
    seconds: float = 0.0
    killed: int = 0
    peaks: dict[int, int] = field(default_factory=dict)
    digest: str = ""

    def watch(self, fault: Fault | None) -> None:
        """Wait for its end, having faults happen meanwhile."""
        began = time.monotonic()
        while self.process.poll() is None:
            for member in self.family():
                try:
                    self.peaks[member.pid] = max(self.peaks.get(member.pid, 0), member.memory_info().rss)
                except psutil.Error:
                    continue
            if fault is not None:
                fault(self)
            time.sleep(0.1)
        self.seconds = time.monotonic() - began

    def family(self) -> list[psutil.Process]:
        """The process and all that it started."""
        try:
            own = psutil.Process(self.process.pid)
            return [own, *own.children(recursive=True)]
        except psutil.Error:
            return []


class KillWorkers:
    """Kills a worker every `PAUSE` seconds, from the time on when all of them are there."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.next = float("inf")

    def __call__(self, run: WatchedRun) -> None:
        """Kill one, if it is time."""
        workers = [p for p in run.family() if _is_worker(p)]
        now = time.monotonic()
        if self.next == float("inf") and len(workers) == self.count:
            self.next = now + PAUSE
        if now >= self.next and workers:
            random.choice(workers).kill()  # noqa: S311  # nothing depends on which
            run.killed += 1
            self.next = now + PAUSE


class KillAll:
    """Kills the client and with it everything that it started, once."""

    def __init__(self, after: float) -> None:
        self.at = time.monotonic() + after

    def __call__(self, run: WatchedRun) -> None:
        """Kill, if it is time."""
        if not run.killed and time.monotonic() >= self.at:
            for member in run.family():
                try:
                    member.kill()
                except psutil.Error:
                    continue
            run.killed += 1


def _is_worker(process: psutil.Process) -> bool:
    try:
        return (
            "spawn_main" in " ".join(process.cmdline())
            and not process.children()
            and process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.Error:
        return False


def make_stack(path: Path, shape: tuple[int, int, int]) -> None:
    """A sharded Zarr array uint8 ``(z, y, x)``: a mosaic of the micrographs, moved by 8 pixels from slice to slice."""
    import zarr

    planes = [image for image, _ in load_micrographs(data_folder(), "superalloy", "val")]
    depth, height, width = shape
    wide = Mosaic((height, width + 8 * depth), planes)
    part = path.with_suffix(".partial.zarr")
    array = zarr.create_array(
        str(part), shape=shape, chunks=(1, 512, 512), shards=(8, 2048, 2048), dtype="uint8", overwrite=True
    )
    for z in range(0, depth, 8):
        slices = range(z, min(z + 8, depth))
        array[z : z + 8] = np.stack([wide.read(Box((0, 8 * s), (height, 8 * s + width))) for s in slices])
    part.rename(path)


def digest_of(result: str) -> str:
    """SHA-256 of all pixels of all levels of a finished result, labels first."""
    from tilelab.io.results.result import read_result

    found = read_result(result)
    digest = hashlib.sha256()
    for image in (*found.labels, *found.probabilities):
        axis = image.axes.index("z")
        for z in range(image.shape[axis]):
            region = [slice(None)] * len(image.shape)
            region[axis] = slice(z, z + 1)
            digest.update(np.ascontiguousarray(image[tuple(region)]).tobytes())
    return digest.hexdigest()


class Bench:
    """The runs over one stack."""

    def __init__(self, folder: Path, model: str) -> None:
        self.folder, self.model = folder, model
        self.runs: list[WatchedRun] = []

    def infer(
        self, name: str, source: str, out: str, workers: int, fault: Fault | None = None, *, finishes: bool = True
    ) -> WatchedRun:
        """Segment, and take the digest of what came out.

        Raises:
            RuntimeError: the command failed though nobody killed it.
        """
        words = ["infer", source, "--model", self.model, "-o", out, "--quiet"]
        words += ["--workers", str(workers)] if workers > 1 else []
        with (self.folder / "log.txt").open("a") as log:
            process = subprocess.Popen([sys.executable, "-m", "tilelab", *words], cwd=ROOT, stderr=log, text=True)
            run = WatchedRun(name, process)
            run.watch(fault)
        if finishes:
            if process.returncode:
                raise RuntimeError(f"{name}: exit code {process.returncode}, see {self.folder / 'log.txt'}")
            run.digest = digest_of(out)
        most = max(run.peaks.values(), default=0) / 1e6
        print(f"{name}: {run.seconds:.1f} s, {most:.0f} MB, killed {run.killed}, {run.digest[:16]}", flush=True)
        self.runs.append(run)
        return run

    def fresh(self, name: str) -> str:
        """Where a result goes; what an earlier call left is removed."""
        path = self.folder / f"{name}.ome.zarr"
        shutil.rmtree(path, ignore_errors=True)
        return str(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything and write the page; 1 when two answers differ."""
    parser = make_parser("benchmarks.measure.stack", __doc__)
    parser.add_argument("folder", type=Path, metavar="WORK", help="for the stack and the results")
    parser.add_argument("--shape", default="64x4096x4096", metavar="ZxYxX", help="of the stack (%(default)s)")
    parser.add_argument("--model", default="identity:2", help="the engine (%(default)s)")
    parser.add_argument("--s3", metavar="s3://BUCKET", help="read and write there, too; settings are those of AWS")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.md")
    args = parser.parse_args(argv)
    depth, height, width = (int(n) for n in args.shape.split("x"))
    folder: Path = args.folder
    folder.mkdir(parents=True, exist_ok=True)
    stack = folder / f"stack-{args.shape}.zarr"
    if not stack.exists():
        make_stack(stack, (depth, height, width))
    bench, source = Bench(folder, args.model), str(stack)
    single = bench.infer("one process", source, bench.fresh("one"), 1)
    bench.infer("2 workers", source, bench.fresh("two"), 2)
    bench.infer("4 workers", source, bench.fresh("four"), 4)
    bench.infer("4 workers, one killed every few seconds", source, bench.fresh("killed"), 4, KillWorkers(4))
    out = bench.fresh("client")
    bench.infer("4 workers, client killed", source, out, 4, KillAll(0.5 * single.seconds + 4), finishes=False)
    bench.infer("... the same command again", source, out, 4)
    if args.s3:
        bench.infer("2 workers, from S3 to S3", copy_up(stack, args.s3), f"{args.s3}/out.ome.zarr", 2)
    digests = {run.digest for run in bench.runs if run.digest}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(as_markdown(bench.runs, args.shape, args.model))
    return 0 if len(digests) == 1 else 1


def copy_up(stack: Path, bucket: str) -> str:
    """Copy a stack into a bucket; returns its address."""
    from obstore import put
    from obstore.store import from_url

    store = from_url(bucket, client_options={"allow_http": True})
    for path in sorted(stack.rglob("*")):
        if path.is_file():
            put(store, f"{stack.name}/{path.relative_to(stack)}", path)
    return f"{bucket}/{stack.name}"


def as_markdown(runs: Sequence[WatchedRun], shape: str, model: str) -> str:
    """The page."""
    rows = []
    for run in runs:
        most = max(run.peaks.values(), default=0) / 1e6
        rows.append(f"| {run.name} | {run.seconds:.1f} | {most:.0f} | {run.killed} | `{run.digest[:16] or '-'}` |")
    same = len({run.digest for run in runs if run.digest}) == 1
    return "\n".join(
        [
            "# One stack, one answer",
            "",
            f"{shape.replace('x', ' x ')} pixels of micrographs through `tilelab infer --model {model}`, sharded",
            "Zarr in, OME-Zarr with all levels out. SHA-256 of all pixels of labels and probabilities at every level,",
            f"its first digits: **{'all the same' if same else 'THEY DIFFER'}**.",
            "",
            f"Made by `python -m benchmarks.measure.stack`, commit {commit()}.",
            "",
            "| | s | largest process, MB | killed | SHA-256 |",
            "|---|---:|---:|---:|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
