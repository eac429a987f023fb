"""What a run takes beside its engine: processor seconds per 100 megapixels, by stage, with an engine that does nothing.

    python -m benchmarks.measure.host [--side 16384] [--tile 1024] [--overlap 64]

The engine's logits are those of a bundled model on a drawn micrograph, put into each buffer once: everything that is
cut, blended, finished, halved and compressed is what a real run has.  ``write`` is the sink alone.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import tilelab
from benchmarks.command import make_parser
from tilelab.arrays import Float32, UInt8
from tilelab.engines.base import BaseEngine
from tilelab.io.results.result import read_result
from tilelab.kernels.warm import warm_up
from tilelab.run.sweep.flow import Flow
from tilelab.sample import draw_superalloy
from tilelab.spec import ModelSpec

SAMPLE = 1024
OUTPUTS: dict[str, tuple[str, ...] | None] = {"labels": ("none",), "default": None}


class NothingEngine(BaseEngine):
    """Leaves in every array what it once put there."""

    name = "nothing"

    def __init__(self, spec: ModelSpec, tile: tuple[int, ...], logits: Float32) -> None:
        super().__init__(spec, tile)
        times = [-(-n // SAMPLE) for n in tile]
        self._full = np.ascontiguousarray(np.tile(logits, (1, *times))[:, : tile[0], : tile[1]])

    def run(self, tiles: Float32, out: Float32) -> None:  # noqa: ARG002
        """See `Engine.run`."""
        if out[0, 0, 0, 0] != self._full[0, 0, 0]:
            out[0] = self._full


def draw() -> tuple[UInt8, Float32, ModelSpec]:
    """A micrograph, what a model makes of it, and the model's description."""
    image, _ = draw_superalloy((SAMPLE, SAMPLE), seed=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample.ome.zarr"
        engine = tilelab.load_engine("superalloy", precision="fp32")
        try:
            tilelab.infer(image, engine, path, logits=True)
            logits = read_result(path).logits
            assert logits is not None
            return image, np.asarray(logits[...]), engine.spec
        finally:
            engine.close()


@contextmanager
def watched(spent: Counter[str]) -> Iterator[None]:
    """Count the processor seconds of each stage's thread."""
    start = Flow.start

    def timed(self: Flow, name: str, stage: Callable[[], None]) -> None:
        def run() -> None:
            began = time.thread_time()
            try:
                stage()
            finally:
                spent[name] += time.thread_time() - began

        start(self, name, run)

    Flow.start = timed  # type: ignore[method-assign]
    try:
        yield
    finally:
        Flow.start = start  # type: ignore[method-assign]


def measure(side: int, tile: int, overlap: int, rounds: int = 3) -> dict[str, dict[str, float]]:
    """Seconds per 100 megapixels of each output's stages and of the whole process: the best round of each."""
    sample, logits, spec = draw()
    warm_up()
    times = -(-side // SAMPLE)
    image = np.ascontiguousarray(np.tile(sample, (times, times))[:side, :side])
    words: dict[str, Any] = {"tile": (tile, tile), "overlap": (overlap, overlap), "tile_fixed": True, "home": None}
    engine = NothingEngine(msgspec.structs.replace(spec, **words), (tile, tile), logits)
    found = {}
    for output, probabilities in OUTPUTS.items():
        rows = []
        for _ in range(rounds):
            spent: Counter[str] = Counter()
            with tempfile.TemporaryDirectory() as folder, watched(spent):
                began = time.process_time()
                out = Path(folder) / "out.ome.zarr"
                tilelab.infer(image, engine, out, probabilities=probabilities, ignore_pixel_size=True)
                spent["all"] = time.process_time() - began
            rows.append({name: seconds * 1e8 / side**2 for name, seconds in spent.items()})
        found[output] = min(rows, key=lambda row: row["all"])
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = make_parser("benchmarks.measure.host", __doc__)
    parser.add_argument("--side", type=int, default=16384, metavar="N", help="of the image (%(default)s)")
    parser.add_argument("--tile", type=int, default=1024, metavar="N", help="%(default)s")
    parser.add_argument("--overlap", type=int, default=64, metavar="N", help="%(default)s")
    args = parser.parse_args(argv)
    for output, row in measure(args.side, args.tile, args.overlap).items():
        print(f"{output:<8} " + ", ".join(f"{name} {seconds:.2f}" for name, seconds in row.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
