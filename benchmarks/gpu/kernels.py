"""Kernels: are they right, how near is their bandwidth to that of a copy, what do their launches cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.gpu.basics import Finding, Sizes, put, seconds
from tilelab.geometry import AxisTiling
from tilelab.kernels import cuda as kernels
from tilelab.kernels import device, reference
from tilelab.kernels.reference import SOFTMAX


def time_kernels(sizes: Sizes) -> Iterator[Finding]:
    """Kernels against NumPy, then their bandwidth against a copy on the device."""
    yield Finding("kernels and NumPy", check_kernels(sizes), "equal")
    stream = device.stream()
    source, target = (device.empty((sizes.copy_bytes,), np.uint8) for _ in range(2))
    took = seconds(lambda: target.copy_to_device(source, stream=stream), stream, sizes.repeats)
    copy = 2 * sizes.copy_bytes / took
    yield Finding("copy on the device", f"{copy / 1e9:.0f} GB/s, read and written")
    for classes, dtype in ((2, np.float16), (2, np.float32), (19, np.float16)):
        for name, count, work in kernel_work(sizes, classes, np.dtype(dtype), stream):
            took = seconds(work, stream, sizes.repeats)
            speed = count / took
            words = f"{speed / 1e9:.0f} GB/s, {speed / copy:.0%} of the copy, {took * 1e6:.0f} us"
            yield Finding(f"{name}, K = {classes}, {np.dtype(dtype)}", words, "70 % of the copy")


def time_launches(sizes: Sizes) -> Iterator[Finding]:
    """What the first launch of a kernel costs (again in a process that finds none on disk), and every other one."""
    stream = device.stream()
    for name, _, work in kernel_work(sizes, 3, np.dtype(np.float16), stream):
        began = time.perf_counter()
        work()
        stream.synchronize()
        first, began = time.perf_counter() - began, time.perf_counter()
        for _ in range(sizes.repeats):
            work()
        each = (time.perf_counter() - began) / sizes.repeats
        stream.synchronize()
        yield Finding(f"{name}: first launch", f"{first:.2f} s, then {each * 1e6:.0f} us of the host for each")


def kernel_work(
    sizes: Sizes, classes: int, dtype: np.dtype[Any], stream: Any
) -> Iterator[tuple[str, int, Callable[[], None]]]:
    """Each kernel at work on one batch of a tile row: name, least bytes that have to move, and the launch."""
    tile, width, batch = sizes.tile, sizes.width, sizes.batch
    axis = AxisTiling(width, tile, sizes.overlap, 1)
    batch = min(batch, len(axis))
    placement = put(np.array([[0, axis.position(j), 0, j] for j in range(batch)], np.int32), stream)
    tables = (
        put(axis.shares(0), stream),
        put(np.ones((1, 1), np.float32), stream),
        put(np.stack([axis.shares(j) for j in range(batch)]), stream),
    )
    covered = axis.position(batch - 1) + tile
    rng = np.random.default_rng(0)
    band = put(rng.integers(0, 255, (1, tile, 1, width), dtype=np.uint8), stream)
    one = put(np.ones(1, np.float32), stream)
    tiles = device.empty((batch, 1, tile, 1, tile), dtype)
    logits = put(rng.normal(size=(batch, classes, tile, 1, tile)).astype(dtype), stream)
    canvas = put(np.zeros((classes, tile, 1, width), np.float32), stream)
    labels, flag = device.empty((axis.step, 1, width), np.uint8), put(np.zeros(1, np.int32), stream)
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
    placement = put(place, stream)
    kernels.cut(
        put(raw, stream),
        (0, 0),
        (tile + 3, 1, axis.size),
        placement,
        0,
        len(axis),
        5,
        put(mean, stream),
        put(gain, stream),
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
    on_device = put(canvas, stream)
    tables = (put(shares[0], stream), put(np.ones((1, 1), np.float32), stream), put(np.stack(shares), stream))
    kernels.blend(on_device, put(logits, stream), placement, 0, len(axis), 0, tables, (0, 0), 0, tile, stream)
    for j in range(len(axis)):
        reference.blend(
            canvas, logits[j], shares[0], np.ones(1, np.float32), shares[j], 0, 0, tile, 0, axis.position(j)
        )
    blended = on_device.copy_to_host()
    labels, flag = device.empty((tile, 1, axis.size), np.uint8), put(np.zeros(1, np.int32), stream)
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
