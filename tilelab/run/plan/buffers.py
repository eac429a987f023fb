"""What one unit of the host's sweep holds: shapes, from which the plan sums and the sweep allocates.

Arrays have the sweep axis first; a leading axis counts pieces that are made and go round one by one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from tilelab.engines.combined import combined_planes, is_combined
from tilelab.engines.streams import batches_ahead
from tilelab.geometry import AxisTiling, Box
from tilelab.io.storage.decode import LARGE_BYTES, MOST_THREADS
from tilelab.run.plan.request import Request, Written

BATCHES_AHEAD = 3  # cut batches waiting for the engine
BATCHES_BEHIND = 3  # batches of logits: one being computed, one being blended, one between
_LARGE = 1 << 20  # pixels of a batch that takes long enough that none need wait between: it would be much memory
BLANKS = 4  # different values of blank tiles whose logits are remembered
BLOCKS_AHEAD = 2  # raw rows waiting to be cut
FINISHED_ROWS = 256  # at most in a group: those of large tiles leave one after the other
GROUPS_BEHIND = 2  # of finished rows, beside those of a row of tiles: one waiting, one being written
GROUPS = 3  # on a GPU, which fills one at a time
STRIP_BYTES = 2 << 20  # of sums that are blended and finished at a time: they stay in a core's cache

Shape = tuple[int, ...]
_F32, _U8 = np.dtype(np.float32), np.dtype(np.uint8)


class Buffer(NamedTuple):
    """An array before it is made."""

    shape: Shape
    dtype: np.dtype[np.generic]

    @property
    def bytes(self) -> int:
        """Of all its values."""
        return math.prod(self.shape) * self.dtype.itemsize


def sizes(buffers: Mapping[str, Buffer]) -> dict[str, int]:
    """Bytes by name."""
    return {name: buffer.bytes for name, buffer in buffers.items()}


@dataclass(frozen=True)
class HostBuffers:
    """Every array of one unit, by name.

    made: by the sweep when it begins; they go with it.
    passing: made by readers, and on their way through the sweep: at most so much at a time.
    """

    made: dict[str, Buffer]
    passing: dict[str, Buffer]

    @property
    def bytes(self) -> dict[str, int]:
        """By name."""
        return sizes(self.made | self.passing)


def host_buffers(request: Request, unit: Box) -> HostBuffers:
    """Those of one unit."""
    axes = request.frame.sweep_first(request.lattice.axes)
    ranges = request.frame.sweep_first(tuple(zip(unit.start, unit.stop, strict=True)))
    seen = [seen_range(axis, axis.covering(*r)) for axis, r in zip(axes, ranges, strict=True)]
    return _host_buffers(request, [b - a for a, b in ranges], [b - a for a, b in seen])


def largest_host_buffers(request: Request, extent: tuple[int, ...]) -> HostBuffers:
    """At least those of any unit of at most this extent (z, y, x), wherever it lies."""
    axes = request.frame.sweep_first(request.lattice.axes)
    ranges = request.frame.sweep_first(extent)
    seen = [min(axis.size, n + 2 * (axis.read - 1)) for axis, n in zip(axes, ranges, strict=True)]
    return _host_buffers(request, [min(axis.size, n) for axis, n in zip(axes, ranges, strict=True)], seen)


def further_stream_bytes(request: Request) -> int:
    """What an engine of several streams takes beyond one of a single stream."""
    many, one = (
        sum(sizes(_batches(each) | _combined(each)).values()) for each in (request, replace(request, streams=1))
    )
    return many - one


def seen_range(axis: AxisTiling, tiles: range) -> tuple[int, int]:
    """The range of image pixels that `tiles` look at, reflection included."""
    first, last = axis.indices(tiles[0]), axis.indices(tiles[-1])
    return int(min(first.min(), last.min())), int(max(first.max(), last.max())) + 1


def block_rows(step: int, chunk: int) -> int:
    """Rows that are read at a time: whole chunks, about one step of tiles; strips of a row or two are gathered."""
    return -(-min(step, max(chunk, 64)) // chunk) * chunk


def finished_rows(written: Written, groups: int, area: int) -> dict[str, Buffer]:
    """Groups of finished rows of at most `area` pixels; labels are always found, written or not."""
    found = {"labels": Buffer((groups, area), _U8)}
    if written.probabilities:
        found["probabilities"] = Buffer((groups, len(written.probabilities) * area), _U8)
    if written.logits:
        found["finished logits"] = Buffer((groups, written.logits * area), _F32)
    for name, count in written.maps:
        found[map_rows(name)] = Buffer((groups, count * area), _F32)
    return found


def map_rows(name: str) -> str:
    """The name of the buffer of a map's finished rows."""
    return f"map {name}"


def _host_buffers(request: Request, extent: list[int], seen: list[int]) -> HostBuffers:
    """Of a unit of this extent whose tiles look at so many pixels, both on (sweep, cross, x)."""
    image, frame = request.image, request.frame
    axes = frame.sweep_first(request.lattice.axes)
    sweep = axes[0]
    tile = frame.sweep_first(request.lattice.tile)
    most = [min(n, t) for n, t in zip(extent, tile, strict=True)]  # of a tile, in the unit
    rows = min(most[0], -(-tile[0] // -(-tile[0] // FINISHED_ROWS)))
    groups = -(-most[0] // rows) + GROUPS_BEHIND
    plane = extent[1] * extent[2]
    waiting = [min(n, axis.shared) for n, axis in zip(extent, axes, strict=True)]
    values = request.spec.values
    strip = max(1, min(most[0], STRIP_BYTES // (values * tile[1] * tile[2] * _F32.itemsize)))
    block = min(block_rows(sweep.step, frame.sweep_first(image.chunks)[0]), seen[0])
    made = {
        "raw rows": Buffer((image.channels, min(sweep.read, sweep.size), *seen[1:]), image.dtype),
        **_batches(request),
        "blank tiles": Buffer((_blanks(math.prod(tile)), request.spec.values, *tile), _F32),
        "sums": Buffer((values, strip, *most[1:]), _F32),
        "waiting rows": Buffer((values, waiting[0], *extent[1:]), _F32),
        "waiting lines": Buffer((values, most[0], waiting[1], extent[2]), _F32),
        "waiting columns": Buffer((values, *most[:2], waiting[2]), _F32),
        **finished_rows(request.written, groups, rows * plane),
    }
    # one being read, one being cut, and those between
    passing = {"raw blocks": Buffer((BLOCKS_AHEAD + 2, image.channels, block, *seen[1:]), image.dtype)}
    if n := request.spec.neighbours:
        passing["neighbouring slices"] = Buffer((seen[1] + 2 * n, block, seen[2]), image.dtype)
    if combined := _combined(request):
        passing |= combined
    elif not request.spec.plain:
        batches = 4 * request.streams * request.batch  # as the network gives them, as float32, enlarged
        passing["placed outputs"] = Buffer((batches, request.spec.values, *request.spec.tile), _F32)
    passing["decoded chunks"] = Buffer((_decoded_bytes(request, extent, seen, block),), _U8)
    if request.masked:
        # read for a tile and for a group of rows, of a type that is not known yet, and compared with 0
        passing["mask"] = Buffer((math.prod(tile) + rows * plane, _F32.itemsize + 1), _U8)
    return HostBuffers(made, passing)


def _blanks(pixels: int) -> int:
    """Blank tiles that are remembered: of large ones, which are rarely blank, fewer."""
    return min(BLANKS, max(1, (1 << 20) // pixels))


def _batches(request: Request) -> dict[str, Buffer]:
    """Tiles and logits on their way to and from the engine; each stream has one more of them."""
    spec, ahead = request.spec, batches_ahead(request.streams)
    tiles, logits = (request.batch, spec.channels, *spec.tile), (request.batch, spec.values, *spec.core)
    large = request.batch * math.prod(spec.tile) > _LARGE
    found = {
        "tiles": Buffer(((1 if large else BATCHES_AHEAD) + 2 + ahead, *tiles), _F32),
        "logits": Buffer((BATCHES_BEHIND - large + ahead, *logits), _F32),
    }
    if request.symmetries > 1:
        found["turned tiles"] = Buffer((request.streams, *tiles), _F32)
        found["summed logits"] = Buffer((request.streams, *logits), _F32)
    return found


def _combined(request: Request) -> dict[str, Buffer]:
    """What several models, or a map of uncertainty, take of each stream beside what the models hold."""
    if not is_combined(request.spec):
        return {}
    batches = request.streams * request.batch
    return {"combined outputs": Buffer((batches, combined_planes(request.spec), *request.spec.tile), _F32)}


def _decoded_bytes(request: Request, extent: list[int], seen: list[int], block: int) -> int:
    """Chunks that are being decoded, and those at the edges of a lane, which readers keep for its neighbour."""
    image, frame = request.image, request.frame
    chunk, size = frame.sweep_first(image.chunks), frame.sweep_first(image.shape)
    whole = [-(-n // c) * c for n, c in zip(seen, chunk, strict=True)]
    channels = 1 if request.spec.neighbours else image.channels
    pixel = channels * image.dtype.itemsize
    edges = sum(2 * chunk[a] * math.prod(whole) // whole[a] for a in (1, 2) if extent[a] < size[a])
    at_once = min(MOST_THREADS, math.prod(-(-n // c) for n, c in zip([block, *seen[1:]], chunk, strict=True)))
    kept, decoding = pixel * edges, pixel * at_once * math.prod(chunk)
    return int(min(LARGE_BYTES, kept) + min(LARGE_BYTES, decoding))
