"""The sweep against the bare engine, from a TIFF in memory to labels in memory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.basics import Finding, Sizes, put, seconds
from benchmarks.gpu.networks import build_network, make_engine
from tilelab.arrays import Array, UInt8
from tilelab.geometry import Box, Frame, Lattice
from tilelab.io.images.image import Image
from tilelab.io.images.volume import Volume
from tilelab.io.results.sink import Finished
from tilelab.kernels import device
from tilelab.kernels.reference import SOFTMAX
from tilelab.run.sweep.device import DeviceSweep
from tilelab.run.sweep.host import HostSweep
from tilelab.run.sweep.job import Job
from tilelab.spec import ClassInfo, ModelSpec, Normalization

TERABYTE_AN_HOUR = 278  # MP/s of 8-bit pixels


def time_network(name: str, precision: str, kind: str, sizes: Sizes) -> Iterator[Finding]:
    """The bare engine, then one plane and several from a TIFF in memory to labels in memory."""
    spec = ModelSpec(
        name=name,
        classes=(ClassInfo("background", "#000000"), ClassInfo("membrane", "#ffffff")),
        normalization=Normalization(mean=(128.0,), std=(64.0,)),
        tile=(sizes.tile, sizes.tile),
        overlap=(sizes.overlap, sizes.overlap),
        precisions=("fp32", "fp16"),
    )
    with tempfile.TemporaryDirectory() as folder:
        engine = make_engine(kind, build_network(name, 1, 2), spec, sizes.batch, precision, Path(folder))
        title = f"{name} {precision} {kind}"
        per_tile = _bare(engine, sizes)
        words = f"{sizes.tile**2 / per_tile / 1e6:.0f} MP/s of tile pixels, batch {sizes.batch}"
        if kind == "torch":
            words += ", as a CUDA graph" if engine.graphs else ", eager"
        yield Finding(f"{title}: bare engine", words)
        with _plane(sizes) as plane:
            yield from _end_to_end(engine, plane, sizes, title, per_tile)
        engine.close()


def _bare(engine: Any, sizes: Sizes) -> float:
    """Seconds per tile of the engine alone, on arrays that lie on the device."""
    shape = (sizes.batch, 1, sizes.tile, sizes.tile)
    tiles = put(np.random.default_rng(0).normal(size=shape).astype(engine.tiles_dtype), engine.stream)
    logits = device.empty((sizes.batch, 2, sizes.tile, sizes.tile), engine.logits_dtype)
    return seconds(lambda: engine.enqueue(tiles, logits), engine.stream, sizes.repeats) / sizes.batch


def _end_to_end(engine: Any, plane: UInt8, sizes: Sizes, title: str, per_tile: float) -> Iterator[Finding]:
    first = _sweep(engine, plane, sizes.height)  # compiles the kernels
    again = _sweep(engine, plane, sizes.height)
    same = "the same bytes twice" if np.array_equal(first.labels, again.labels) else "DIFFERENT BYTES"
    pixels = again.labels.size
    whole = (
        f"{again.seconds:.2f} s, {pixels / again.seconds / 1e6:.0f} MP/s, "
        f"{again.tiles * per_tile / again.seconds:.2f} of the bare engine, {same}"
    )
    moved = (
        f"{again.up / pixels:.2f} up, {again.down / pixels:.2f} down; "
        f"GPU memory {again.planned / 2**30:.2f} GiB beside the engine"
    )
    goal = "below 1 s (resnet18 fp16), 0.95 of the bare engine"
    yield Finding(f"{title}: one plane", whole, goal, pixels / again.seconds / 1e6)
    yield Finding(f"{title}: bytes per pixel", moved, "1.0 up, 1.0 down")
    yield Finding(f"{title}: sweeps agree", _compare(engine, sizes), "equal")
    if sizes.rows > sizes.height:
        long = _sweep(engine, plane, sizes.rows)
        speed = long.labels.size / long.seconds / 1e6
        yield Finding(
            f"{title}: sustained", f"{speed:.0f} MP/s over {long.seconds:.1f} s", f"{TERABYTE_AN_HOUR} MP/s", speed
        )


@dataclass
class _Swept:
    labels: UInt8
    seconds: float
    tiles: int
    up: int
    down: int
    planned: int


class _Tall(Image):
    """A plane repeated downwards, from a memory-mapped TIFF."""

    def __init__(self, plane: Array, rows: int, chunk: int) -> None:
        self.uri, self.axes, self.shape = "plane.tif", "yx", (rows, plane.shape[1])
        self.dtype, self.chunks = plane.dtype, (min(chunk, rows), plane.shape[1])
        self._plane = plane

    def read(self, box: Box) -> Array:
        height = self._plane.shape[0]
        rows = np.arange(box.start[0], box.stop[0]) % height
        if rows[0] <= rows[-1] and rows[-1] - rows[0] == len(rows) - 1:
            return self._plane[rows[0] : rows[-1] + 1, box.start[1] : box.stop[1]]
        return self._plane[rows, box.start[1] : box.stop[1]]

    def fingerprint(self) -> dict[str, str]:
        return {}


class _Labels:
    """A writer that keeps labels in memory."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.labels = np.zeros(shape, np.uint8)
        self._at = 0

    def write(self, rows: Finished, threads: int = 1) -> int:  # noqa: ARG002
        assert rows.labels is not None
        count = rows.labels.shape[1]
        self.labels[:, self._at : self._at + count] = rows.labels
        self._at += count
        return self._at

    def close(self) -> None:
        """Nothing is open."""


def _job(engine: Any, image: Image) -> Job:
    volume = Volume(image)
    tile, overlap = engine.spec.tile, engine.spec.overlap
    return Job(
        image=volume,
        lattice=Lattice.fit(volume.shape, (1, *tile), (0, *overlap), stride=(1, 1, 1)),
        frame=Frame(1),
        mean=np.float32([128]),
        gain=np.float32([1 / 64]),
        activation=SOFTMAX,
        channels=np.empty(0, np.int64),
    )


def _sweep(engine: Any, plane: Array, rows: int) -> _Swept:
    """Image to labels on the device, counting what goes over the bus."""
    job = _job(engine, _Tall(plane, rows, 4 * engine.tile[0]))
    moved = {"upload": 0, "download": 0}

    def counted(name: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(a: Any, b: Any, stream: Any) -> None:
            moved[name] += (a if name == "upload" else b).nbytes
            real(a, b, stream)

        return call

    real = {name: getattr(device, name) for name in moved}
    for name in moved:
        setattr(device, name, counted(name, real[name]))
    try:
        unit = DeviceSweep(job, engine, Box.whole(job.image.shape))
        writer = _Labels(job.image.shape)
        began = time.perf_counter()
        stalls = unit.run(writer)
        took = time.perf_counter() - began
    finally:
        for name in moved:
            setattr(device, name, real[name])
    return _Swept(writer.labels, took, stalls.tiles, moved["upload"], moved["download"], unit.buffers.device_bytes)


def _compare(engine: Any, sizes: Sizes) -> str:
    """The sweep on the GPU and on the CPU, with the same engine, on a small image."""
    rng = np.random.default_rng(3)
    small = rng.integers(0, 255, (2 * sizes.tile + 7, 2 * sizes.tile + 3), dtype=np.uint8)
    job = _job(engine, _Tall(small, small.shape[0], sizes.tile))
    box = Box.whole(job.image.shape)
    on_gpu, on_cpu = _Labels(job.image.shape), _Labels(job.image.shape)
    DeviceSweep(job, engine, box).run(on_gpu)
    HostSweep(job, engine, box).run(on_cpu)
    changed = int((on_gpu.labels != on_cpu.labels).sum())
    return "equal" if not changed else f"{changed} of {on_gpu.labels.size} labels DIFFER"


@contextmanager
def _plane(sizes: Sizes) -> Iterator[UInt8]:
    """A TIFF in memory (``/dev/shm`` where there is one), mapped."""
    import tifffile

    shared = Path("/dev/shm")  # noqa: S108
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        path = Path(folder) / "plane.tif"
        rng = np.random.default_rng(2)
        tifffile.imwrite(path, rng.integers(0, 255, (sizes.height, sizes.width), dtype=np.uint8))
        yield tifffile.memmap(path, mode="r")
