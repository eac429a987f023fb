"""The machine's limits: memory bandwidth against the kernels, decoding and encoding of every format.

Kernels and copies take turns, each on arrays far larger than the caches, and each bandwidth is of the best round: the
question is what stops a kernel, not who else is working.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numba
import numpy as np

from benchmarks.bench.workbench import Workbench
from tilelab.geometry import Box
from tilelab.kernels import cpu
from tilelab.machine.cpu import core_count

WIDTH, TILE, CLASSES = 8192, 512, 3
NONE = np.empty((0, 0, 0, 0), np.float32)

Work = Callable[[], object]


class Threads:
    """A few threads that split the rows of one kernel call among them; with one, calls run in place."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count - 1, "tilelab-kernel") if count > 1 else None

    def split(self, rows: int, kernel: Callable[[int, int], object]) -> None:
        """Call ``kernel(first, last)`` on consecutive ranges that cover ``0:rows``."""
        if self._pool is None or rows < self.count:
            kernel(0, rows)
            return
        cuts = [rows * i // self.count for i in range(self.count + 1)]
        others = [self._pool.submit(kernel, a, b) for a, b in pairwise(cuts[1:])]
        kernel(0, cuts[1])  # in the thread that would only wait
        for done in others:
            done.result()

    def close(self) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.shutdown()


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator,unused-ignore]
def _update(target, source, factor, first, last):  # type: ignore[no-untyped-def]
    here, there = target[first:last], source[first:last]
    for i in range(here.size):
        here[i] += there[i] * factor


class Kernels:
    """The blending kernels on one row of tiles, and what the memory does beside them.

    Attributes:
        works: what to call, by name.
        moved: bytes that each must read and write at least.
    """

    def __init__(self, threads: int = 1, width: int = WIDTH, tile: int = TILE) -> None:
        rng = np.random.default_rng(0)
        self.threads = Threads(threads) if threads > 1 else None
        pixels, columns = tile * width, range(0, width, tile)
        size = 3 * pixels
        big, copy = rng.random(size, np.float32), np.ones(size, np.float32)
        canvas = np.ones((CLASSES, tile, 1, width), np.float32)
        logits = [rng.random((CLASSES, tile, 1, tile), np.float32) for _ in columns]
        share, one = rng.random(tile, np.float32), np.ones(1, np.float32)
        band = rng.integers(0, 256, (1, tile, 1, width), np.uint8)
        at, zero = np.arange(tile), np.zeros(1, np.int64)
        tiles = [np.empty((1, tile, 1, tile), np.float32) for _ in columns]
        labels = np.empty((tile, 1, width), np.uint8)
        probabilities = np.empty((CLASSES - 1, tile, 1, width), np.uint8)
        channels = np.arange(1, CLASSES)
        mean, gain = np.zeros(1, np.float32), np.ones(1, np.float32)
        held, reach = (np.empty((CLASSES, tile, 1, 0), np.float32),) * 3, (0, 0, tile, tile, 0)
        sums: dict[tuple[int, int], Any] = {}

        def split(rows: int, part: Callable[[int, int], object]) -> None:
            if self.threads is None:
                part(0, rows)
            else:
                self.threads.split(rows, part)

        def cut() -> None:
            for number, tile_of in enumerate(tiles):
                cpu.cut(band, at, zero, at + number * tile, mean, gain, tile_of)

        def blend() -> None:
            for values in logits:

                def part(a: int, b: int, values: Any = values) -> None:
                    if (a, b) not in sums:
                        sums[a, b] = np.empty((CLASSES, b - a, 1, tile), np.float32)
                    cpu.blend(sums[a, b], values, (share, one, share), held, (a, b), reach, (0, 0, 1, 1, 0), reach)

                split(tile, part)

        def finish() -> None:
            split(
                tile,
                lambda a, b: cpu.finish(canvas, a, cpu.SOFTMAX, labels[a:b], probabilities[:, a:b], channels, NONE),
            )

        self.works: dict[str, Work] = {
            "copy": lambda: split(size, lambda a, b: np.copyto(copy[a:b], big[a:b])),
            "update": lambda: split(size, lambda a, b: _update(copy, big, np.float32(0.5), a, b)),
            "blend": blend,
            "cut": cut,
            "finish": finish,
        }
        self.moved = {
            "copy": 8 * size,
            "update": 12 * size,
            "blend": 8 * CLASSES * pixels,
            "cut": 5 * pixels,
            "finish": (8 * CLASSES + CLASSES) * pixels,
        }
        self.pixels = pixels

    def close(self) -> None:
        """Stop the threads."""
        if self.threads is not None:
            self.threads.close()


def take_turns(
    works: dict[str, Work], seconds: float, least: int = 3, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each call on `clock`, all in turns, for about `seconds` each and at least `least` rounds."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    until = time.perf_counter() + seconds * len(works)
    while time.perf_counter() < until or min(map(len, times.values())) < least:
        for name, work in works.items():
            began = clock()
            work()
            times[name].append(clock() - began)
    return times


def measure_limits(bench: Workbench) -> dict[str, Any]:
    """Kernels on one core and on all, and the formats."""
    scale = bench.scale
    width = WIDTH if scale.tile == TILE else 8 * scale.tile
    cores = core_count()
    kernels = []
    for threads in dict.fromkeys((1, cores)):
        bench.say(f"kernels on {threads} core{'s' * (threads > 1)}")
        made = Kernels(threads, width, scale.tile)
        times = take_turns(made.works, scale.seconds)
        made.close()
        rates = {name: made.moved[name] / min(taken) / 1e9 for name, taken in times.items()}
        kernels += [
            {
                "kernel": name,
                "threads": 1 if name == "cut" else threads,  # a tile is cut by one thread
                "gigabytes_per_s": rate,
                "megapixels_per_s": made.pixels / min(times[name]) / 1e6,
                "share_of_copy": rate / rates["copy"],
                "share_of_update": rate / rates["update"],
            }
            for name, rate in rates.items()
        ]
    return {"kernels": kernels, "formats": measure_formats(bench), "cores": cores, "classes": CLASSES}


def measure_formats(bench: Workbench) -> list[dict[str, Any]]:
    """Megapixels per second decoded from and encoded to each format, through the library's own readers and writers."""
    from benchmarks.bench.mosaic import Mosaic, write_mosaic
    from tilelab.io.convert import convert_image
    from tilelab.io.images.open import open_image

    side = min(4096, 4 * bench.scale.main[0] // 3)
    shape = (side, side)
    with open_image(bench.image(shape)) as image:
        pixels = np.asarray(image.read(Box.whole(image.shape)))
    rows: list[dict[str, Any]] = []
    plane = Mosaic(shape, [pixels])
    with bench.folder() as folder:
        makers: dict[str, Callable[[Path], object]] = {
            "TIFF, tiles.tif": lambda path: write_mosaic(plane, path, tile=256),
            "TIFF, tiles, deflate.tif": lambda path: write_mosaic(plane, path, tile=256, compression="zlib"),
            "TIFF, tiles, zstd.tif": lambda path: write_mosaic(plane, path, tile=256, compression="zstd"),
            "OME-TIFF, pyramid, deflate.ome.tif": lambda path: convert_image(pixels, path),
            "OME-Zarr, pyramid, sharded, zstd.ome.zarr": lambda path: convert_image(pixels, path),
            "NumPy.npy": lambda path: np.save(path, pixels),
        }
        for title, make in makers.items():
            name, _, suffix = title.partition(".")
            bench.say(name)
            path = folder / f"image{len(rows)}.{suffix}"
            began = time.perf_counter()
            make(path)
            encode = time.perf_counter() - began
            with open_image(path) as image:
                band = min(512, side)

                def decode(image: Any = image, band: int = band) -> None:
                    for y in range(0, side, band):
                        image.read(Box((y, 0), (min(side, y + band), side)))

                took = min(take_turns({"decode": decode}, bench.scale.seconds)["decode"])
            size = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
            rows.append(
                {
                    "format": name,
                    "decode_megapixels_per_s": side**2 / took / 1e6,
                    "encode_megapixels_per_s": side**2 / encode / 1e6,
                    "bytes_per_pixel": size / side**2,
                }
            )
    return rows
