"""What every measurement on the GPU needs: sizes, findings, times on a stream; and what the bus can do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tilelab.arrays import Array
from tilelab.kernels import device


class Finding(NamedTuple):
    """What was measured, how much in words, what was aimed at; `figure` is the speed itself, in MP/s of the image."""

    what: str
    value: str
    goal: str = ""
    figure: float | None = None


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


def put(array: Array, stream: Any) -> Any:
    """A copy of `array` on the device."""
    on_device = device.empty(array.shape, array.dtype)
    device.upload(np.ascontiguousarray(array), on_device, stream)
    stream.synchronize()
    return on_device


def time_bus(sizes: Sizes) -> Iterator[Finding]:
    """Copies between host and device."""
    size, stream = sizes.copy_bytes // 4, device.stream()
    on_device, pinned = device.empty((size,), np.uint8), device.pinned((size,), np.uint8)
    plain = np.ones(size, np.uint8)
    for name, copy in {
        "up, pinned": lambda: device.upload(pinned, on_device, stream),
        "down, pinned": lambda: device.download(on_device, pinned, stream),
        "host copy into pinned memory": lambda: np.copyto(pinned, plain),
    }.items():
        times = []
        for _ in range(3):
            began = time.perf_counter()
            copy()
            stream.synchronize()
            times.append(time.perf_counter() - began)
        yield Finding(name, f"{size / min(times) / 1e9:.1f} GB/s")
