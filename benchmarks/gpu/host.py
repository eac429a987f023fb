"""What the host's stages can do without any engine: read a micrograph, write a result; on all cores, and on one thread.

A fast GPU waits for them: 1 GP/s asks that both keep pace.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.gpu.basics import Finding, Sizes
from tilelab.arrays import Array
from tilelab.geometry import Box
from tilelab.io.images.open import open_image
from tilelab.io.results.ome_zarr import OmeZarrSink
from tilelab.io.results.sink import Finished
from tilelab.io.zarr.layout import Layout
from tilelab.kernels.warm import warm_up
from tilelab.machine.cpu import core_count
from tilelab.sample.superalloy import draw_superalloy
from tilelab.spec import ClassInfo

FILES = {
    "TIFF, tiles": {"tile": (512, 512)},
    "TIFF, strips": {},
    "TIFF, tiles, zstd": {"tile": (512, 512), "compression": "zstd"},
    "TIFF, tiles, deflate": {"tile": (512, 512), "compression": "zlib"},
}


def time_host(sizes: Sizes) -> Iterator[Finding]:
    """Read by rows of tiles, write labels by steps of the sweep; files lie in memory where there is ``/dev/shm``."""
    import tifffile

    warm_up()
    shared = Path("/dev/shm")  # noqa: S108
    side = min(1536, sizes.height)
    drawn, truth = draw_superalloy((side, side), seed=1)[:2]

    def repeated(array: Array) -> Array:
        return np.tile(array, (-(-sizes.height // side), -(-sizes.width // side)))[: sizes.height, : sizes.width]

    plane, labels = repeated(drawn), repeated(truth.astype(np.uint8))
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
        folder = Path(name)
        for kind, options in FILES.items():
            path = folder / "plane.tif"
            tifffile.imwrite(path, plane, **options)  # type: ignore[arg-type]
            with open_image(path) as image:
                yield _rate(f"host: read {kind}", lambda of=image: _read(of, sizes), plane.size)  # type: ignore[misc]
            path.unlink()
        for threads in sorted({1, core_count()}):
            out = folder / f"{threads}.ome.zarr"
            title = f"host: write labels, {threads} {'thread' if threads == 1 else 'threads'}"
            yield _rate(title, lambda to=out, n=threads: _write(to, labels, sizes, n), plane.size)  # type: ignore[misc]


def _read(image: object, sizes: Sizes) -> None:
    for y in range(0, sizes.height, sizes.tile):
        image.read(Box((y, 0), (min(sizes.height, y + sizes.tile), sizes.width)))  # type: ignore[attr-defined]


def _write(out: Path, labels: Array, sizes: Sizes, threads: int) -> None:
    shape, step = (1, *labels.shape), sizes.tile - sizes.overlap
    classes = [ClassInfo(f"class {k}", color) for k, color in enumerate(("#000000", "#3b7dd8", "#f5a623"))]
    sink = OmeZarrSink.create(out, Layout.fit(shape), classes=classes)
    writer = sink.writer(Box.whole(shape), 0, 1)
    for y in range(0, sizes.height, step):
        writer.write(Finished(labels[None, y : min(sizes.height, y + step)], None, None), threads)
    writer.close()
    sink.finalize()


def _rate(name: str, work: Callable[[], None], pixels: int) -> Finding:
    began, busy = time.perf_counter(), time.process_time()
    work()
    took, busy = time.perf_counter() - began, time.process_time() - busy
    each = pixels / max(busy, 1e-9) / 1e6
    words = f"{pixels / took / 1e6:.0f} MP/s, {each:.0f} for each core that it keeps busy"
    return Finding(name, words, f"1000 MP/s of {core_count()} cores")
