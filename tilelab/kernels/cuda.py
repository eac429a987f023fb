"""The kernels on an NVIDIA GPU, compiled by Numba: what `tilelab.kernels.reference` does, a whole batch at a time.

Nothing is atomic and every output is computed by one thread in one order, so the bytes are the same run after run.
Products that are followed by a sum are rounded first, as on the CPU (no fused multiply-add): canvas, labels and logits
have the CPU's bytes, and probabilities differ by at most 1 where the exponential, which is fused, rounds otherwise.

One call does the tiles of one tile row, or some of them.  They are described by a `placement`, int32 ``(tiles, 4)`` on
the device: a tile's origin in the image (cross, x) and the rows of the two share tables that belong to it.  Rows of the
image live in rings, row `r` in slot ``r % R``: raw rows in the band, logits in the canvas.  All functions return at
once; the work is done in the stream's order.

In every kernel the 32 threads of a warp lie side by side along x, so that each access is one contiguous piece; a thread
does several pixels, so that what is computed once per line is shared and several loads are on their way together.
Arrays come in flat, and positions are unsigned 32-bit numbers within a line: Numba would spend more on 64-bit strides
and on Python's negative indices than the memory takes.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from tilelab.kernels.compiler import SIMULATED, cuda, float32, int32, jit, libdevice, uint32, uint64
from tilelab.kernels.device import DeviceArray, Stream
from tilelab.kernels.reference import SIGMOID, SOFTMAX
from tilelab.kernels.scalar import BYTE, HALF, ONE, ZERO, exp_negative

__all__ = ["SIGMOID", "SOFTMAX", "blend", "cut", "finish"]


def _rounded_apart(a: Any, b: Any) -> Any:
    return a * b


# rounded: never fused with a following sum
_product = _rounded_apart if SIMULATED else libdevice.fmul_rn
_exp_negative = cuda.jit(device=True)(exp_negative)

Block = tuple[int, int]

# threads along x, and lines; the simulator runs a Python thread for each
_CUT_BLOCK: Block = (4, 2) if SIMULATED else (32, 8)
_BLEND_BLOCK: Block = (4, 1) if SIMULATED else (128, 1)
_FINISH_BLOCK: Block = (4, 1) if SIMULATED else (128, 1)
_BLEND_ROWS = 8  # canvas rows per thread
_FINISH_COLUMNS = 4  # canvas columns per thread
_REGISTERS = 8  # classes whose sums a thread holds at once


@cuda.jit(device=True)
def _reflect(index, size):  # type: ignore[no-untyped-def]
    """`tilelab.geometry.tiling.reflect` for one position that is not negative."""
    if index < size:
        return int32(index)
    if size == 1:
        return int32(0)
    period = int32(2 * (size - 1))
    folded = int32(uint32(index) % uint32(period))
    return int32(min(folded, int32(period - folded)))


@jit
def _cut(band, shape, origin, extent, placement, first, at_row, mean, gain, tiles, size):  # type: ignore[no-untyped-def]
    # shape: of the band (C, R, A, X); size: of the tiles (channels, sweep, cross, x)
    s = int32(cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y)
    if s >= size[1]:
        return
    a = int32(uint32(cuda.blockIdx.y) % uint32(size[2]))
    c = int32(uint32(cuda.blockIdx.y) // uint32(size[2]))
    t = cuda.blockIdx.z
    place = uint32((first + t) * 4)
    left = placement[place + uint32(1)]
    row = uint32(_reflect(int32(at_row + s), extent[0])) % uint32(shape[1])
    cross = int32(_reflect(int32(placement[place] + a), extent[1]) - origin[0])
    source = (uint64(min(c, shape[0] - 1)) * uint64(shape[1]) + uint64(row)) * uint64(shape[2]) + uint64(cross)
    target = ((uint64(t) * uint64(size[0]) + uint64(c)) * uint64(size[1]) + uint64(s)) * uint64(size[2]) + uint64(a)
    line = band[source * uint64(shape[3]) :]
    out = tiles[target * uint64(size[3]) :]
    m, g = mean[uint32(c)], gain[uint32(c)]
    step = uint32(cuda.blockDim.x)
    x = uint32(cuda.threadIdx.x)
    width = uint32(size[3])
    start = uint32(left - origin[1])
    inside = uint32(min(size[3], extent[2] - left))  # from there on reflected
    while uint32(x + uint32(3) * step) < inside:
        at = uint32(start + x)
        v0 = line[at]
        v1 = line[uint32(at + step)]
        v2 = line[uint32(at + uint32(2) * step)]
        v3 = line[uint32(at + uint32(3) * step)]
        out[x] = (float32(v0) - m) * g
        out[uint32(x + step)] = (float32(v1) - m) * g
        out[uint32(x + uint32(2) * step)] = (float32(v2) - m) * g
        out[uint32(x + uint32(3) * step)] = (float32(v3) - m) * g
        x = uint32(x + uint32(4) * step)
    while x < width:
        at = uint32(_reflect(int32(left + int32(x)), extent[2]) - origin[1])
        out[x] = (float32(line[at]) - m) * g
        x = uint32(x + step)


def cut(
    band: DeviceArray,
    origin: tuple[int, int],
    extent: tuple[int, int, int],
    placement: DeviceArray,
    first: int,
    count: int,
    row: int,
    mean: DeviceArray,
    gain: DeviceArray,
    tiles: DeviceArray,
    stream: Stream = 0,
    block: Block = _CUT_BLOCK,
) -> None:
    """Gather and normalise a batch of tiles, reflected beyond the image; see `reference.cut` for one tile.

    Args:
        band: uint8, uint16 or float32 ``(C, R, A, X)``, a ring of raw rows.
        origin: image position (cross, x) of the band's first pixel.
        extent: size of the image (sweep, cross, x), at whose far edge tiles are reflected.
        placement: see above.
        first, count: the tiles of the placement to cut; they become ``tiles[:count]``.
        row: image position of their first row.
        mean, gain: float32 ``(channels,)``.
        tiles: float32 or float16 ``(B, channels, *tile)`` with tile as (sweep, cross, x), written.
    """
    if count:
        size = tiles.shape[1:]
        grid = (-(-size[1] // block[1]), size[0] * size[2], count)
        numbers = (_int32s(band.shape), _int32s(origin), _int32s(extent))
        arrays = (_flat(placement), np.int32(first), np.int32(row), mean, gain, _flat(tiles))
        _cut[grid, block, stream](_flat(band), *numbers, *arrays, _int32s(size))


@cache
def _blend_kernel(classes: int) -> Any:
    """The kernel for `classes` outputs, a constant, so that the loops over them unroll and sums stay in registers."""
    held = min(classes, _REGISTERS)

    @jit
    def kernel(  # type: ignore[no-untyped-def]
        canvas, shape, logits, size, placement, first, count, row, share_s, share_a, share_x, origin, begin, end
    ):
        # shape: of the canvas (K, R, A, X); size: of a tile (sweep, cross, x)
        x = int32(cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x)
        if x >= shape[3]:
            return
        a = int32(cuda.blockIdx.y)
        y = int32(begin + (cuda.blockIdx.z * cuda.blockDim.y + cuda.threadIdx.y) * _BLEND_ROWS)
        stop = int32(min(int32(y + _BLEND_ROWS), end))
        px, pa = int32(x + origin[1]), int32(a + origin[0])
        lowest, highest = int32(count), int32(-1)  # the tiles above this column
        for t in range(count):
            place = uint32((first + t) * 4)
            # a negative difference is a large unsigned number: one comparison says inside or not
            da, dx = uint32(pa - placement[place]), uint32(px - placement[place + uint32(1)])
            if da < uint32(size[1]) and dx < uint32(size[2]):
                lowest = int32(min(lowest, int32(t)))
                highest = int32(t)
        line = uint64(shape[2]) * uint64(shape[3])
        plane = uint64(shape[1]) * line
        area = uint32(size[1]) * uint32(size[2])
        slot = uint32(y) % uint32(shape[1])
        offset = uint64(a) * uint64(shape[3]) + uint64(x)
        total = cuda.local.array(held, float32)
        while y < stop and lowest <= highest:
            at = uint64(slot) * line + offset
            s = uint32(y - row)
            for base in range(0, classes, held):
                for k in range(held):
                    if base + k < classes:
                        total[k] = canvas[at + uint64(base + k) * plane]
                for t in range(lowest, highest + 1):
                    place = uint32((first + t) * 4)
                    da, dx = uint32(pa - placement[place]), uint32(px - placement[place + uint32(1)])
                    if da < uint32(size[1]) and dx < uint32(size[2]):
                        wa = share_a[uint32(uint32(placement[place + uint32(2)]) * uint32(size[1]) + da)]
                        wx = share_x[uint32(uint32(placement[place + uint32(3)]) * uint32(size[2]) + dx)]
                        weight = _product(_product(share_s[s], wa), wx)
                        pixel = uint32(uint32(da * uint32(size[2])) + dx)
                        for k in range(held):
                            if base + k < classes:
                                nth = uint32(uint32(t) * uint32(classes) + uint32(base + k))
                                source = uint64(uint32(nth * uint32(size[0]) + s)) * uint64(area) + uint64(pixel)
                                total[k] += _product(float32(logits[source]), weight)
                for k in range(held):
                    if base + k < classes:
                        canvas[at + uint64(base + k) * plane] = total[k]
            y = int32(y + 1)
            slot = uint32(slot + uint32(1))
            if slot == uint32(shape[1]):
                slot = uint32(0)

    return kernel


def blend(
    canvas: DeviceArray,
    logits: DeviceArray,
    placement: DeviceArray,
    first: int,
    count: int,
    row: int,
    shares: tuple[DeviceArray, DeviceArray, DeviceArray],
    origin: tuple[int, int],
    begin: int,
    end: int,
    stream: Stream = 0,
    block: Block = _BLEND_BLOCK,
) -> None:
    """Add tiles of one tile row to the canvas, in their order; see `reference.blend` for one tile.

    Args:
        canvas: float32 ``(K, R, A, X)``, a ring of rows.
        logits: float32 or float16 ``(>= count, K, *tile)``, tile as (sweep, cross, x).
        placement: see above.
        first, count: the tiles of the placement that ``logits[:count]`` belong to.
        row: image position of their first row.
        shares: float32; along the sweep ``(tile,)``, along cross and x ``(n, tile)``, one row per distinct tile.
        origin: image position (cross, x) of the canvas; what lies beyond it is dropped.
        begin, end: the rows of the image to add, all of them rows of these tiles; at most R.
    """
    if count and end > begin:
        classes, _, depth, width = canvas.shape
        grid = (-(-width // block[0]), depth, -(-(end - begin) // (block[1] * _BLEND_ROWS)))
        _blend_kernel(classes)[grid, block, stream](
            _flat(canvas),
            _int32s(canvas.shape),
            _flat(logits),
            _int32s(logits.shape[2:]),
            _flat(placement),
            np.int32(first),
            np.int32(count),
            np.int32(row),
            *(_flat(table) for table in shares),
            _int32s(origin),
            np.int32(begin),
            np.int32(end),
        )


@cache
def _finish_kernel(classes: int, activation: int, with_probabilities: bool, with_logits: bool) -> Any:
    """The kernel for what is asked; unasked parts are not compiled in."""
    offset = 1 if activation == SIGMOID else 0

    @jit
    def kernel(canvas, shape, row, labels, rows, probabilities, channels, logits, flag, sharpness):  # type: ignore[no-untyped-def]
        # shape: of the canvas (K, R, A, X)
        i = int32(cuda.blockIdx.z * cuda.blockDim.y + cuda.threadIdx.y)
        if i >= rows:
            return
        a = int32(cuda.blockIdx.y)
        width = uint32(shape[3])
        slot = uint32(row + i) % uint32(shape[1])
        plane = uint64(shape[1]) * uint64(shape[2]) * uint64(width)
        area = uint64(rows) * uint64(shape[2]) * uint64(width)
        source = (uint64(slot) * uint64(shape[2]) + uint64(a)) * uint64(width)
        target = (uint64(i) * uint64(shape[2]) + uint64(a)) * uint64(width)
        first = uint32(uint32(cuda.blockIdx.x) * uint32(cuda.blockDim.x) * uint32(_FINISH_COLUMNS))
        for column in range(_FINISH_COLUMNS):
            x = uint32(first + uint32(column) * uint32(cuda.blockDim.x) + uint32(cuda.threadIdx.x))
            if x >= width:
                return
            at, to = source + uint64(x), target + uint64(x)
            # argmax; with sigmoid the background is an output that is always 0
            best = ZERO if offset else canvas[at]
            label = uint32(0)
            bad = ZERO  # x - x is 0 for a finite x and NaN for any other
            for k in range(classes):
                value = canvas[at + uint64(k) * plane]
                bad += value - value
                if with_logits:
                    logits[to + uint64(k) * area] = value
                if value > best:
                    best = value
                    label = uint32(k + offset)
                if not with_probabilities:
                    canvas[at + uint64(k) * plane] = ZERO
            labels[to] = label
            if bad != ZERO:
                flag[0] = 1
            if with_probabilities:
                if activation == SOFTMAX:
                    total = ZERO
                    for k in range(classes):
                        e = _exp_negative(_product(canvas[at + uint64(k) * plane] - best, sharpness))
                        canvas[at + uint64(k) * plane] = e
                        total += e
                    scale = BYTE / total
                    for p in range(channels.size):
                        value = _product(canvas[at + uint64(channels[uint32(p)]) * plane], scale)
                        probabilities[to + uint64(p) * area] = int32(value + HALF)
                else:
                    highest = ZERO
                    for k in range(classes):
                        value = canvas[at + uint64(k) * plane]
                        e = _exp_negative(_product(-abs(value), sharpness))
                        p1 = ONE / (ONE + e)
                        value = p1 if value >= ZERO else _product(e, p1)
                        canvas[at + uint64(k) * plane] = value
                        highest = max(highest, value)
                    for p in range(channels.size):
                        c = int32(channels[uint32(p)])
                        value = ONE - highest if c == 0 else canvas[at + uint64(c - 1) * plane]
                        probabilities[to + uint64(p) * area] = int32(_product(value, BYTE) + HALF)
                for k in range(classes):
                    canvas[at + uint64(k) * plane] = ZERO

    return kernel


def finish(
    canvas: DeviceArray,
    row: int,
    activation: int,
    labels: DeviceArray,
    flag: DeviceArray,
    probabilities: DeviceArray | None = None,
    channels: DeviceArray | None = None,
    logits: DeviceArray | None = None,
    stream: Stream = 0,
    sharpness: float = 1.0,
    block: Block = _FINISH_BLOCK,
) -> None:
    """Turn finished rows into bytes and clear their slots; see `reference.finish`.

    Args:
        canvas: float32 ``(K, R, A, X)``.
        row: slot of the first finished row is ``row % R``.
        activation: `SOFTMAX` or `SIGMOID`.
        labels: uint8 ``(n, A, X)``, written.
        flag: int32 ``(1,)``, set to 1 where a logit is NaN or infinite, else left alone.
        probabilities: uint8 ``(P, n, A, X)``, written, or None.
        channels: int32 ``(P,)``, the class of each probability channel, or None.
        logits: float32 ``(K, n, A, X)``, written, or None.
        sharpness: logits are multiplied by it before they become probabilities.
    """
    rows, depth, width = labels.shape
    if rows:
        grid = (-(-width // (block[0] * _FINISH_COLUMNS)), depth, -(-rows // block[1]))
        kernel = _finish_kernel(canvas.shape[0], activation, probabilities is not None, logits is not None)
        # what is not asked for is not compiled in: anything of the right type stands in its place
        kernel[grid, block, stream](
            _flat(canvas),
            _int32s(canvas.shape),
            np.int32(row),
            _flat(labels),
            np.int32(rows),
            _flat(labels if probabilities is None else probabilities),
            flag if channels is None else channels,
            _flat(canvas if logits is None else logits),
            flag,
            np.float32(sharpness),
        )


def _flat(array: DeviceArray) -> DeviceArray:
    return array.reshape(math.prod(array.shape))


def _int32s(values: tuple[int, ...]) -> tuple[np.int32, ...]:
    return tuple(np.int32(v) for v in values)
