"""Pixels for a screen: levels of an image, those that are stored and those that are made of them, in chunks."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilelab.arrays import Array
from tilelab.geometry import Box
from tilelab.io.images.image import Image

Extent = tuple[int, int, int]
_SCREEN = 1024  # a level that is no larger needs no coarser one
_CACHE_BYTES = 256 << 20

asker_gone: ContextVar[Callable[[], bool]] = ContextVar("asker_gone", default=lambda: False)
"""Whether whoever asked for the chunk that is read does not want it any more."""


class NotWanted(ConnectionError):
    """What was asked for is not wanted any more."""


@dataclass(frozen=True)
class Level:
    """One resolution, on (z, y, x).

    shape: pixels.
    step: pixels of the finest level per pixel.
    read: decodes a region.
    """

    shape: Extent
    step: tuple[float, float, float]
    read: Callable[[Box], Array]


class ChunkCache:
    """Chunks that were read lately; for threads."""

    def __init__(self, limit: int = _CACHE_BYTES) -> None:
        self._limit, self._held = limit, 0
        self._kept: OrderedDict[Any, Array] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any, make: Callable[[], Array]) -> Array:
        """What is kept under `key`, made where it is not."""
        with self._lock:
            if (found := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return found
        made = make()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._held += made.nbytes
            while self._held > self._limit and len(self._kept) > 1:
                self._held -= self._kept.popitem(last=False)[1].nbytes
        return made


@dataclass
class Pyramid:
    """Levels in chunks, finest first; what is coarser than the coarsest that is stored is made of finer chunks.

    labels: values are names, so a coarse pixel takes one of them; otherwise it is a mean.
    lasting: a chunk that was read stays as it is (a result that is being written changes).
    stored: how many of the levels are, and so cost no more than their own pixels.
    """

    levels: tuple[Level, ...]
    dtype: np.dtype[Any]
    chunk: Extent
    labels: bool
    cache: ChunkCache = field(repr=False)
    lasting: bool = True
    stored: int = 1

    @classmethod
    def of(
        cls,
        stored: Sequence[Level],
        dtype: np.dtype[Any],
        cache: ChunkCache,
        *,
        labels: bool = False,
        flat: bool = False,
        lasting: bool = True,
        few: bool = False,
    ) -> Pyramid:
        """Of the levels that there are.

        Args:
            stored: levels, finest first.
            dtype, cache, labels, lasting: of the pyramid.
            flat: reading across slices is dear, so chunks are one slice thick.
            few: pixels are dear: coarser levels, which would be asked for first, are not made.
        """
        planes = flat or stored[0].shape[0] == 1
        chunk = (1, 512, 512) if planes else (64, 64, 64)
        pyramid = cls((), dtype, chunk, labels, cache, lasting, len(stored))
        levels = [
            Level(level.shape, level.step, pyramid._cached(n, level.read, level.shape))
            for n, level in enumerate(stored)
        ]
        while not few and max(levels[-1].shape[1:]) > _SCREEN:
            last = levels[-1]
            times = (1 if planes or last.shape[0] <= chunk[0] else 2, 2, 2)
            shape = tuple(-(-n // t) for n, t in zip(last.shape, times, strict=True))
            step = tuple(s * t for s, t in zip(last.step, times, strict=True))
            made = pyramid._coarser(last, times)
            levels.append(Level(shape, step, pyramid._cached(len(levels), made, shape)))  # type: ignore[arg-type]
        pyramid.levels = tuple(levels)
        return pyramid

    def read_chunk(self, level: int, index: Extent) -> Array:
        """One chunk, full size, filled up with 0 beyond the image.

        Raises:
            IndexError: there is none.
        """
        source = self.levels[level]
        start = tuple(i * c for i, c in zip(index, self.chunk, strict=True))
        if any(not 0 <= a < n for a, n in zip(start, source.shape, strict=True)):
            raise IndexError(f"no chunk {index}")
        stop = tuple(min(a + c, n) for a, c, n in zip(start, self.chunk, source.shape, strict=True))
        block = source.read(Box(start, stop))
        if block.shape == self.chunk:
            return block
        return np.pad(block, [(0, c - n) for c, n in zip(self.chunk, block.shape, strict=True)])

    def _cached(self, number: int, read: Callable[[Box], Array], shape: Extent) -> Callable[[Box], Array]:
        """`read` in whole chunks, which are kept."""

        def chunk_at(index: tuple[int, ...]) -> Array:
            start = tuple(i * c for i, c in zip(index, self.chunk, strict=True))
            stop = tuple(min(a + c, n) for a, c, n in zip(start, self.chunk, shape, strict=True))

            def make() -> Array:
                return np.ascontiguousarray(read(Box(start, stop)))

            return self.cache.get((id(self), number, index), make) if self.lasting else make()

        def read_box(box: Box) -> Array:
            cells = [range(a // c, -(-b // c)) for a, b, c in zip(box.start, box.stop, self.chunk, strict=True)]
            if all(len(cell) == 1 for cell in cells):
                one = chunk_at(tuple(cell[0] for cell in cells))
                return _inside(one, box, self.chunk)
            rows = [
                [np.concatenate([chunk_at((z, y, x)) for x in cells[2]], axis=2) for y in cells[1]] for z in cells[0]
            ]
            block = np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)
            return _inside(block, box, self.chunk)

        return read_box

    def _coarser(self, finer: Level, times: Extent) -> Callable[[Box], Array]:
        def read(box: Box) -> Array:
            start = tuple(a * t for a, t in zip(box.start, times, strict=True))
            stop = tuple(min(b * t, n) for b, t, n in zip(box.stop, times, finer.shape, strict=True))
            return self._halve(finer.read(Box(start, stop)), times)

        return read

    def _halve(self, block: Array, times: Extent) -> Array:
        if self.labels:
            from tilelab.kernels.pyramid import halve_mode

            coarse: Array = halve_mode(np.ascontiguousarray(block)[np.newaxis], times[0])[0]
            return coarse
        whole = np.pad(block, [(0, -n % t) for n, t in zip(block.shape, times, strict=True)], mode="edge")
        if self.dtype.kind != "u":
            z, y, x = (n // t for n, t in zip(whole.shape, times, strict=True))
            parts = whole.reshape(z, times[0], y, times[1], x, times[2])
            mean: Array = parts.mean(axis=(1, 3, 5), dtype=np.float32).astype(self.dtype, copy=False)
            return mean
        total: Any = math.prod(times) // 2  # so that halves are rounded up
        for start in np.ndindex(*times):  # five times as fast as the mean
            total = total + whole[tuple(slice(a, None, t) for a, t in zip(start, times, strict=True))].astype(np.uint32)
        rounded: Array = (total // math.prod(times)).astype(self.dtype)
        return rounded


def _inside(block: Array, box: Box, chunk: Extent) -> Array:
    """`box` of a block that begins with the chunk that holds its first pixel."""
    at = [a % c for a, c in zip(box.start, chunk, strict=True)]
    part: Array = block[tuple(slice(a, a + n) for a, n in zip(at, box.shape, strict=True))]
    return part


def stored_levels(images: Sequence[Image], channel: int = 0) -> list[Level]:
    """The levels that `images` are, finest first, each of one channel."""
    shapes = [_zyx(image) for image in images]
    steps = [tuple(_step(n, m) for n, m in zip(shapes[0], shape, strict=True)) for shape in shapes]
    return [
        Level(shape, step, _reader(image, channel))  # type: ignore[arg-type]
        for image, shape, step in zip(images, shapes, steps, strict=True)
    ]


def _step(fine: int, coarse: int) -> float:
    """Pixels per pixel: a whole number where levels were halved and rounded up."""
    ratio = fine / coarse
    whole = 2 ** max(0, round(np.log2(ratio)))
    return float(whole) if -(-fine // whole) == coarse or fine // whole == coarse else ratio


def _zyx(image: Image) -> Extent:
    extent = dict(zip(image.axes, image.shape, strict=True))
    return (extent.get("z", 1), extent["y"], extent["x"])


def _reader(image: Image, channel: int) -> Callable[[Box], Array]:
    def read(box: Box) -> Array:
        start = {"c": channel, **dict(zip("zyx", box.start, strict=True))}
        stop = {"c": channel + 1, **dict(zip("zyx", box.stop, strict=True))}
        found = image.read(Box(tuple(start[a] for a in image.axes), tuple(stop[a] for a in image.axes)))
        return found.reshape(box.shape)

    return read
