"""A GPU made of host memory: `tilelab.kernels.device` with arrays, pointers and streams that need no driver."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

import numpy as np

from tilelab.kernels import device


@dataclass
class FakeStream:
    """Everything is done at once; counts how often the host waited."""

    waits: int = 0

    def synchronize(self) -> None:
        self.waits += 1


@dataclass
class FakeGpu:
    """What was asked of the device."""

    info: device.DeviceInfo
    selected: list[int] = field(default_factory=list)
    streams: list[FakeStream] = field(default_factory=list)

    def stream_at(self, handle: int) -> FakeStream:
        """The stream behind a handle given to another library."""
        return self.streams[handle - 1000]


def array_at(address: int, shape: tuple[int, ...], dtype) -> np.ndarray:
    """The array at an address that was handed to another library."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    buffer = (ctypes.c_char * size).from_address(address)
    return np.frombuffer(buffer, dtype).reshape(shape)


def install(monkeypatch, capability=(9, 0), name="Fake H100", count=1) -> FakeGpu:
    """Put the fake in the place of the device layer, for one test."""
    gpu = FakeGpu(device.DeviceInfo(0, name, capability, 70 << 30, 80 << 30, "13.0"))

    def select(index):
        gpu.selected.append(index)
        return gpu.info

    def stream():
        gpu.streams.append(FakeStream())
        return gpu.streams[-1]

    monkeypatch.setattr(device, "select", select)
    monkeypatch.setattr(device, "stream", stream)
    monkeypatch.setattr(device, "stream_handle", lambda value: 1000 + gpu.streams.index(value))
    monkeypatch.setattr(device, "empty", lambda shape, dtype: np.full(shape, 77, dtype))
    monkeypatch.setattr(device, "upload", lambda host, target, stream: np.copyto(target, host, casting="no"))
    monkeypatch.setattr(device, "download", lambda source, host, stream: np.copyto(host, source, casting="no"))
    monkeypatch.setattr(device, "pointer", lambda array: array.ctypes.data)
    monkeypatch.setattr("tilelab.machine.nvidia.driver_problem", lambda: "")
    for module in ("cuda.tensorrt", "cuda.onnxruntime", "aotinductor"):
        monkeypatch.setattr(f"tilelab.engines.{module}.driver_problem", lambda: "")
        monkeypatch.setattr(f"tilelab.engines.{module}.gpu_count", lambda: count)
    return gpu
