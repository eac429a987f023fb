"""Lesser kernels on an NVIDIA GPU: clear an array, turn tiles, undo an activation."""

from __future__ import annotations

import math

import numpy as np

from tilelab.kernels.compiler import SIMULATED, cuda, float32, int32, jit, uint64
from tilelab.kernels.device import DeviceArray, Stream
from tilelab.kernels.reference import SOFTMAX
from tilelab.kernels.scalar import ONE

__all__ = ["clear", "turn", "undo_activation"]

# threads along x, and lines; the simulator runs a Python thread for each
_TURN_BLOCK = (4, 2) if SIMULATED else (32, 8)
_FLAT_BLOCK = 8 if SIMULATED else 256


@jit
def _fill_zero(values):  # type: ignore[no-untyped-def]
    # loops over ranges with a step are 64-bit divisions, and an atomic for a step of 0
    i, step, size = uint64(cuda.grid(1)), uint64(cuda.gridsize(1)), uint64(values.size)
    while i < size:
        values[i] = 0
        i = uint64(i + step)


def clear(array: DeviceArray, stream: Stream = 0) -> None:
    """Set every element to zero, in the stream's order."""
    size = math.prod(array.shape)
    _fill_zero[_grid(size), _FLAT_BLOCK, stream](array.reshape(size))


@jit
def _turn(source, target, turns, mirror, back, add):  # type: ignore[no-untyped-def]
    last = source.shape[2] - 1
    j = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    i = cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y
    if i > last or j > last:
        return
    y, x = i, j
    if back:
        turns = (4 - turns) % 4
        if mirror:
            x = last - x
    if turns == 1:
        y, x = x, last - y
    elif turns == 2:
        y, x = last - y, last - x
    elif turns == 3:
        y, x = last - x, y
    if mirror and not back:
        x = last - x
    n = int32(cuda.blockIdx.z)
    while n < int32(source.shape[0]):
        if add:
            target[n, i, j] += source[n, y, x]
        else:
            target[n, i, j] = source[n, y, x]
        n = int32(n + cuda.gridDim.z)


def turn(
    source: DeviceArray,
    target: DeviceArray,
    turns: int,
    mirror: bool,
    *,
    back: bool = False,
    add: bool = False,
    stream: Stream = 0,
    block: tuple[int, int] = _TURN_BLOCK,
) -> None:
    """Turn square planes: mirror along x if `mirror`, then ``numpy.rot90(..., turns)``; with `back` undo just that.

    Args:
        source: ``(n, N, N)``.
        target: ``(n, N, N)``, written, or added to with `add`.
        turns: quarter turns, 0 to 3.
    """
    planes, size, _ = source.shape
    grid = (-(-size // block[0]), -(-size // block[1]), min(planes, 65535))
    _turn[grid, block, stream](source, target, turns, mirror, back, add)


@jit
def _undo_softmax(values, tiny):  # type: ignore[no-untyped-def]
    i, step, size = uint64(cuda.grid(1)), uint64(cuda.gridsize(1)), uint64(values.size)
    while i < size:
        values[i] = math.log(max(float32(values[i]), tiny))
        i = uint64(i + step)


@jit
def _undo_sigmoid(values, tiny, below_one):  # type: ignore[no-untyped-def]
    i, step, size = uint64(cuda.grid(1)), uint64(cuda.gridsize(1)), uint64(values.size)
    while i < size:
        p = min(max(float32(values[i]), tiny), below_one)
        values[i] = math.log(p / (ONE - p))
        i = uint64(i + step)


def undo_activation(values: DeviceArray, activation: int, stream: Stream = 0, block: int = _FLAT_BLOCK) -> None:
    """Turn probabilities into logits in place, for networks that end in their activation; `activation` as in `finish`.

    Probabilities of 0 and 1 give the nearest logits that the type of `values` (float32 or float16) can tell apart.
    """
    flat = values.reshape(math.prod(values.shape))
    limits = np.finfo(values.dtype)
    grid = _grid(flat.shape[0])
    if activation == SOFTMAX:
        _undo_softmax[grid, block, stream](flat, np.float32(limits.tiny))
    else:
        _undo_sigmoid[grid, block, stream](flat, np.float32(limits.tiny), np.float32(1 - limits.epsneg))


def _grid(size: int) -> int:
    """Enough blocks to fill any GPU; each thread does several elements."""
    return max(1, min(4096, -(-size // (4 * _FLAT_BLOCK))))
