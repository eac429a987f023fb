"""What a sweep needs, made small: an image in memory, a NumPy function as a network, arrays as the result."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tilelab.geometry import Box, Frame, Lattice
from tilelab.io.images.image import Image
from tilelab.io.images.volume import Volume
from tilelab.io.results.sink import Finished
from tilelab.kernels.reference import SIGMOID, SOFTMAX
from tilelab.run.sweep.host import HostSweep
from tilelab.run.sweep.job import Job
from tilelab.spec import ClassInfo, ModelSpec


class Memory(Image):
    """An image in memory that counts how often each pixel is read."""

    def __init__(self, array, axes, chunks=None):
        self.uri, self.axes, self.shape, self.dtype = "memory", axes, array.shape, array.dtype
        self.chunks = chunks or array.shape
        self.array = array
        self.reads = np.zeros(array.shape, int)

    def read(self, box):
        self.reads[box.slices] += 1
        return self.array[box.slices]

    def fingerprint(self):
        return {}


@dataclass
class Network:
    """An engine made of a NumPy function from (B, C, *tile) to (B, K, *tile)."""

    function: object
    tile: tuple[int, ...]
    batch: int = 1
    channels: int = 1
    outputs: int = 1
    calls: int = 0
    streams: int = 1
    device: str = "cpu"
    seen: list = field(default_factory=list)

    @property
    def spec(self):
        sigmoid = self.outputs == 1
        return ModelSpec(
            classes=tuple(ClassInfo(f"c{i}", "#000000") for i in range(self.outputs + sigmoid)),
            activation="sigmoid" if sigmoid else "softmax",
            axes="zyx"[-len(self.tile) :],
            tile=self.tile,
            overlap=(0,) * len(self.tile),
            channels=self.channels,
        )

    def run(self, tiles, out):
        assert tiles.shape == (self.batch, self.channels, *self.tile)
        assert tiles.flags.c_contiguous
        self.calls += 1
        out[...] = self.function(tiles)


class Collector:
    """A writer that puts rows where they belong in a whole array."""

    def __init__(self, result, box, start, axis, grain=1):
        self.result, self.box, self.at, self.axis, self.grain = result, box, start, axis, grain

    def write(self, rows: Finished, threads: int = 1):
        n = next(part.shape[part.ndim - 3 + self.axis] for part in rows if part is not None)
        start, stop = list(self.box.start), list(self.box.stop)
        start[self.axis], stop[self.axis] = self.at, self.at + n
        where = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        for name, part in zip(Finished._fields, rows, strict=True):
            if part is not None:
                self.result[name][(..., *where)] = part
        self.at += n
        return self.at

    def close(self):
        pass


def whole(job, engine, units=None, starts=None):
    """Sweep all units into one set of arrays."""
    shape = job.image.shape
    result = {
        "labels": np.full(shape, 255, np.uint8),
        "probabilities": np.full((len(job.channels), *shape), 255, np.uint8),
        "logits": np.full((engine.outputs, *shape), np.nan, np.float32),
    }
    tiles = 0
    for i, box in enumerate(units or [Box.whole(shape)]):
        start = box.start[job.frame.sweep_axis] if starts is None else starts[i]
        tiles += HostSweep(job, engine, box, start).run(Collector(result, box, start, job.frame.sweep_axis)).tiles
    return result, tiles


def make_job(array, axes, tile, overlap, *, stride=1, window="hann", engine=None, gain=1.0, chunks=None, **kwargs):
    image = Volume(Memory(array, axes, chunks))
    flat = len(tile) == 2
    lattice = Lattice.fit(
        image.shape,
        (1, *tile) if flat else tile,
        (0, *overlap) if flat else overlap,
        stride=(1, stride, stride) if flat else stride,
        window=window,
    )
    channels = engine.channels if engine else 1
    options = {"logits": True, "channels": np.zeros(0, np.int64)} | kwargs
    return Job(
        image=image,
        lattice=lattice,
        frame=Frame(1 if flat else 0),
        mean=np.zeros(channels, np.float32),
        gain=np.full(channels, gain, np.float32),
        activation=SIGMOID if engine is None or engine.outputs == 1 else SOFTMAX,
        **options,
    )


class DeviceNetwork(Network):
    """A NumPy function as an engine that takes arrays on the device."""

    name, precision, index, tiles_dtype, logits_dtype = "test", "fp32", 0, np.dtype(np.float32), np.dtype(np.float32)

    def on(self, device):
        self.module, self.stream = device, device.stream()
        return self

    def enqueue(self, tiles, logits):
        self.stream.synchronize()
        host = tiles.copy_to_host()
        assert host.shape == (self.batch, self.channels, *self.tile)
        self.calls += 1
        self.seen.append(host)
        result = np.ascontiguousarray(self.function(host.astype(np.float32)).astype(self.logits_dtype))
        self.module.upload(result, logits, self.stream)
        self.stream.synchronize()


def sweep_device(job, engine, units=None, starts=None, progress=lambda n: None):
    from tilelab.run.sweep.device import DeviceSweep

    shape = job.image.shape
    result = {
        "labels": np.full(shape, 255, np.uint8),
        "probabilities": np.full((len(job.channels), *shape), 255, np.uint8),
        "logits": np.full((engine.outputs, *shape), np.nan, np.float32),
    }
    stalls = []
    for i, box in enumerate(units or [Box.whole(shape)]):
        start = box.start[job.frame.sweep_axis] if starts is None else starts[i]
        collector = Collector(result, box, start, job.frame.sweep_axis)
        stalls.append(DeviceSweep(job, engine, box, start).run(collector, progress=progress))
    return result, stalls


def scramble(tiles):
    """A network that is no identity: three outputs that differ everywhere, and within a tile."""
    ramp = np.linspace(-1, 1, tiles.shape[-1], dtype=np.float32)
    return np.concatenate([tiles[:, :1] * (k - 1) + ramp * k for k in range(3)], axis=1).astype(np.float32)
