"""The measurements of `benchmarks.gpu`: kernels against a copy, the sweep against the bare engine."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.networks import build_network, make_engine
from tilelab.arrays import Array, UInt8
from tilelab.geometry import AxisTiling, Box, Frame, Lattice
from tilelab.io.images.image import Image
from tilelab.io.images.volume import Volume
from tilelab.io.results.sink import Finished
from tilelab.kernels import cuda as kernels
from tilelab.kernels import device, reference
from tilelab.kernels.reference import SOFTMAX
from tilelab.run.sweep.device import DeviceSweep
from tilelab.run.sweep.host import HostSweep
from tilelab.run.sweep.job import Job
from tilelab.spec import ClassInfo, ModelSpec, Normalization

Finding = tuple[str, str, str]  # what, how much, what was aimed at
TERABYTE_AN_HOUR = 278  # MP/s of 8-bit pixels


@dataclass(frozen=True)
class Sizes:
    """How large everything is; `rows` of the sustained run are those of several planes."""

    tile: int
    overlap: int
    batch: int
    height: int
    width: int
    rows: int
    repeats: int
    copy_bytes: int

    @classmethod
    def full(cls, batch: int, planes: int) -> Sizes:
        """A U-RISC plane, 512 px tiles."""
        return cls(512, 128, batch, 9959, 9958, 9959 * planes, 30, 1 << 30)

    @classmethod
    def toy(cls, batch: int) -> Sizes:
        """For the simulator."""
        return cls(16, 4, min(batch, 3), 41, 38, 41, 1, 1 << 10)


def seconds(work: Callable[[], None], stream: Any, repeats: int) -> float:
    """Median time of `work` on the stream, by events around it."""
    for _ in range(1 if device.SIMULATED else 3):
        work()
    stream.synchronize()
    times = []
    for _ in range(repeats):
        begin, end = device.cuda.event(), device.cuda.event()
        started = time.perf_counter()
        begin.record(stream)
        work()
        end.record(stream)
        end.synchronize()
        on_device = device.cuda.event_elapsed_time(begin, end) / 1e3 if not device.SIMULATED else 0.0
        times.append(on_device or time.perf_counter() - started)
    return statistics.median(times)


def time_kernels(sizes: Sizes) -> list[Finding]:
    """Kernels against NumPy, then their bandwidth against a copy on the device."""
    rows = [("kernels and NumPy", check_kernels(sizes), "equal")]
    stream = device.stream()
    source, target = (device.empty((sizes.copy_bytes,), np.uint8) for _ in range(2))
    took = seconds(lambda: target.copy_to_device(source, stream=stream), stream, sizes.repeats)
    copy = 2 * sizes.copy_bytes / took
    rows.append(("copy on the device", f"{copy / 1e9:.0f} GB/s, read and written", ""))
    for classes, dtype in ((2, np.float16), (2, np.float32), (19, np.float16)):
        for name, count, work in kernel_work(sizes, classes, np.dtype(dtype), stream):
            took = seconds(work, stream, sizes.repeats)
            speed = count / took
            words = f"{speed / 1e9:.0f} GB/s, {speed / copy:.0%} of the copy, {took * 1e6:.0f} us"
            rows.append((f"{name}, K = {classes}, {np.dtype(dtype)}", words, "80 % of the copy"))
    return rows


def kernel_work(
    sizes: Sizes, classes: int, dtype: np.dtype[Any], stream: Any
) -> Iterator[tuple[str, int, Callable[[], None]]]:
    """Each kernel at work on one batch of a tile row: name, least bytes that have to move, and the launch."""
    tile, width, batch = sizes.tile, sizes.width, sizes.batch
    axis = AxisTiling(width, tile, sizes.overlap, 1)
    batch = min(batch, len(axis))
    placement = _put(np.array([[0, axis.position(j), 0, j] for j in range(batch)], np.int32), stream)
    tables = (
        _put(axis.shares(0), stream),
        _put(np.ones((1, 1), np.float32), stream),
        _put(np.stack([axis.shares(j) for j in range(batch)]), stream),
    )
    covered = axis.position(batch - 1) + tile
    rng = np.random.default_rng(0)
    band = _put(rng.integers(0, 255, (1, tile, 1, width), dtype=np.uint8), stream)
    one = _put(np.ones(1, np.float32), stream)
    tiles = device.empty((batch, 1, tile, 1, tile), dtype)
    logits = _put(rng.normal(size=(batch, classes, tile, 1, tile)).astype(dtype), stream)
    canvas = _put(np.zeros((classes, tile, 1, width), np.float32), stream)
    labels, flag = device.empty((axis.step, 1, width), np.uint8), _put(np.zeros(1, np.int32), stream)
    yield (
        "cut",
        tile * covered + batch * tile * tile * dtype.itemsize,
        lambda: kernels.cut(band, (0, 0), (tile, 1, width), placement, 0, batch, 0, one, one, tiles, stream),
    )
    yield (
        "blend",
        batch * classes * tile * tile * dtype.itemsize + 8 * classes * tile * covered,
        lambda: kernels.blend(canvas, logits, placement, 0, batch, 0, tables, (0, 0), 0, tile, stream),
    )
    yield (
        "finish",
        axis.step * width * (8 * classes + 1),
        lambda: kernels.finish(canvas, 0, SOFTMAX, labels, flag, stream=stream),
    )


def check_kernels(sizes: Sizes) -> str:
    """Cut, blend and finish one batch on the device and in NumPy; the bytes must be the same."""
    rng = np.random.default_rng(1)
    tile, classes = min(sizes.tile, 64), 3
    stream = device.stream()
    axis = AxisTiling(3 * tile - 5, tile, tile // 4, 1)
    raw = rng.integers(0, 255, (1, tile + 3, 1, axis.size), dtype=np.uint8)
    place = np.array([[0, axis.position(j), 0, j] for j in range(len(axis))], np.int32)
    mean, gain = np.float32([100]), np.float32([0.02])
    tiles = device.empty((len(axis), 1, tile, 1, tile), np.float32)
    placement = _put(place, stream)
    kernels.cut(
        _put(raw, stream),
        (0, 0),
        (tile + 3, 1, axis.size),
        placement,
        0,
        len(axis),
        5,
        _put(mean, stream),
        _put(gain, stream),
        tiles,
        stream,
    )
    rows = np.abs((5 + np.arange(tile) + tile + 2) % (2 * (tile + 2)) - (tile + 2))
    cut = np.empty((len(axis), 1, tile, 1, tile), np.float32)
    for j in range(len(axis)):
        reference.cut(raw, rows, np.zeros(1, np.int64), axis.indices(j), mean, gain, cut[j])
    logits = rng.normal(size=(len(axis), classes, tile, 1, tile)).astype(np.float32)
    canvas = np.zeros((classes, tile, 1, axis.size), np.float32)
    shares = [axis.shares(j) for j in range(len(axis))]
    on_device = _put(canvas, stream)
    tables = (_put(shares[0], stream), _put(np.ones((1, 1), np.float32), stream), _put(np.stack(shares), stream))
    kernels.blend(on_device, _put(logits, stream), placement, 0, len(axis), 0, tables, (0, 0), 0, tile, stream)
    for j in range(len(axis)):
        reference.blend(
            canvas, logits[j], shares[0], np.ones(1, np.float32), shares[j], 0, 0, tile, 0, axis.position(j)
        )
    blended = on_device.copy_to_host()
    labels, flag = device.empty((tile, 1, axis.size), np.uint8), _put(np.zeros(1, np.int32), stream)
    kernels.finish(on_device, 0, SOFTMAX, labels, flag, stream=stream)
    stream.synchronize()
    expected = canvas.argmax(axis=0)
    pairs = {
        "cut": (tiles.copy_to_host(), cut),
        "blend": (blended, canvas),
        "finish": (labels.copy_to_host(), expected),
    }
    wrong = [name for name, (a, b) in pairs.items() if not np.array_equal(a, b)]
    return f"DIFFER in {', '.join(wrong)}" if wrong else "equal"


def time_network(name: str, precision: str, kind: str, sizes: Sizes) -> list[Finding]:
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
        rows = [(f"{title}: bare engine", words, "")]
        with _plane(sizes) as plane:
            rows += _end_to_end(engine, plane, sizes, title, per_tile)
        engine.close()
    return rows


def _bare(engine: Any, sizes: Sizes) -> float:
    """Seconds per tile of the engine alone, on arrays that lie on the device."""
    shape = (sizes.batch, 1, sizes.tile, sizes.tile)
    tiles = _put(np.random.default_rng(0).normal(size=shape).astype(engine.tiles_dtype), engine.stream)
    logits = device.empty((sizes.batch, 2, sizes.tile, sizes.tile), engine.logits_dtype)
    return seconds(lambda: engine.enqueue(tiles, logits), engine.stream, sizes.repeats) / sizes.batch


def _end_to_end(engine: Any, plane: UInt8, sizes: Sizes, title: str, per_tile: float) -> list[Finding]:
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
    rows = [
        (f"{title}: one plane", whole, "below 1 s (resnet18 fp16), 0.95 of the bare engine"),
        (f"{title}: bytes per pixel", moved, "1.0 up, 1.0 down"),
        (f"{title}: sweeps agree", _compare(engine, sizes), "equal"),
    ]
    if sizes.rows > sizes.height:
        long = _sweep(engine, plane, sizes.rows)
        words = f"{long.labels.size / long.seconds / 1e6:.0f} MP/s over {long.seconds:.1f} s"
        rows.append((f"{title}: sustained", words, f"{TERABYTE_AN_HOUR} MP/s"))
    return rows


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

    def write(self, rows: Finished) -> int:
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


def _put(array: Array, stream: Any) -> Any:
    on_device = device.empty(array.shape, array.dtype)
    device.upload(np.ascontiguousarray(array), on_device, stream)
    stream.synchronize()
    return on_device
