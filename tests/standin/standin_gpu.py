"""A whole GPU path on the stand-in for the driver: its memory is the host's, so NumPy can do what kernels would do.

`install` lets every launch go to the driver as always and then computes, with the reference kernels, in the arrays that
were launched on; and it adds an engine that computes in the same memory, under the name of ONNX Runtime's.  Loaded into
Dask workers (``dask_setup``) it does the same there.
"""

from __future__ import annotations

import ctypes

import numpy as np

from tilelab.engines.cuda.gpu_engine import GpuEngine
from tilelab.engines.loading import Availability, LoadRequest, Target
from tilelab.geometry.tiling import reflect
from tilelab.kernels import cuda, cuda_elementwise, device, reference
from tilelab.machine.nvidia import gpu_count


def view(array):
    """The memory of a device array as a NumPy array."""
    dtype = np.dtype(array.dtype)
    size = int(np.prod(array.shape)) * dtype.itemsize
    buffer = (ctypes.c_char * size).from_address(device.pointer(array))
    return np.frombuffer(buffer, dtype).reshape(array.shape)


def cut(band, origin, extent, placement, first, count, row, mean, gain, tiles, stream=0):
    raw, places, out = view(band), view(placement), view(tiles)
    size = out.shape[2:]
    rows = reflect(np.arange(row, row + size[0]), extent[0]) % raw.shape[1]
    for t in range(count):
        cross, x = (
            reflect(np.arange(at, at + n), of) - begin
            for at, n, of, begin in zip(places[first + t, :2].tolist(), size[1:], extent[1:], origin, strict=True)
        )
        cut_out = np.empty(out.shape[1:], np.float32)
        reference.cut(raw, rows, cross, x, view(mean), view(gain), cut_out)
        out[t] = cut_out


def blend(canvas, logits, placement, first, count, row, shares, origin, begin, end, stream=0):
    along, across, aside = map(view, shares)
    for t, (a, x, i, j) in enumerate(view(placement)[first : first + count].tolist()):
        place = (row, begin - row, end - row, a - origin[0], x - origin[1])
        reference.blend(view(canvas), view(logits)[t].astype(np.float32), along, across[i], aside[j], *place)


def finish(
    canvas, row, activation, labels, flag, probabilities=None, channels=None, logits=None, stream=0, sharpness=1.0
):
    absent = np.empty((0, *labels.shape), np.uint8)
    reference.finish(
        view(canvas),
        row,
        activation,
        view(labels),
        absent if probabilities is None else view(probabilities),
        np.empty(0, np.int64) if channels is None else view(channels).astype(np.int64),
        absent.astype(np.float32) if logits is None else view(logits),
        sharpness,
    )


def clear(array, stream=0):
    view(array)[...] = 0


def turn(source, target, turns, mirror, *, back=False, add=False, stream=0):
    planes = view(source)
    if back:
        turned = np.rot90(planes, -turns, axes=(-2, -1))
        turned = turned[..., ::-1] if mirror else turned
    else:
        turned = np.rot90(planes[..., ::-1] if mirror else planes, turns, axes=(-2, -1))
    view(target)[...] = view(target) + turned if add else turned


def install():
    """Compute after every launch, and have an engine."""
    from tilelab.engines import registry
    from tilelab.run.sweep import device_work

    def both(launch, compute):
        def call(*args, **kwargs):
            launch(*args, **kwargs)
            compute(*args, **kwargs)

        return call

    lesser = (clear, turn)
    for module, functions in ((cuda, (cut, blend, finish)), (cuda_elementwise, lesser), (device_work, lesser)):
        for function in functions:
            setattr(module, function.__name__, both(getattr(module, function.__name__), function))
    registry.ENGINES["onnxruntime-cuda"] = (__name__, ("onnx",))


def dask_setup(worker):
    """Called by Dask in each worker, before anything of ours is imported there."""
    install()


class HostMemoryEngine(GpuEngine):
    """Three outputs that differ everywhere, and within a tile."""

    name = "onnxruntime-cuda"

    def _enqueue(self, tiles, logits):
        source, target = view(tiles), view(logits)
        ramp = np.linspace(-1, 1, source.shape[-1], dtype=np.float32)
        for k in range(target.shape[1]):
            target[:, k] = source[:, 0] * (k - 1) + ramp * k

    def versions(self):
        return {"standin": "1"}


def probe():
    return Availability("1", targets=tuple(Target(f"cuda:{i}", "fp32") for i in range(gpu_count())))


def load(request: LoadRequest):
    return HostMemoryEngine(request)
