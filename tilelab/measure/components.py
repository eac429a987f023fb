"""Objects of a label image of any size: one number each, the same whatever the cut.

Blocks as wide as the image are read and cut into pieces by several threads, and joined in order by one
(`tilelab.kernels.objects.front`).  In memory are a few blocks, the front, and 24 bytes an object with 8 more for each
piece that met the front; the objects' sums go to a temporary file when they are many.  A second pass finds the pieces
of a block again and paints them with their numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from tilelab.arrays import Array, Int64, UInt8
from tilelab.errors import PlanError
from tilelab.geometry import Box, boxes
from tilelab.io.images.image import Image
from tilelab.kernels.objects.front import Front, open_pieces
from tilelab.kernels.objects.runs import find_pieces, paint_runs
from tilelab.kernels.objects.sums import AREA, FIRST, MOST_PIXELS
from tilelab.machine.cpu import core_count
from tilelab.measure.fractions import BlockCounts
from tilelab.measure.piecework import ClassPlanes, Intensities, Piecework
from tilelab.measure.spool import RECORD, Spool

T = TypeVar("T")

_BLOCK = 2**22

Progress = Callable[[int], None]
"""Called with the number of pixels that were read since the last call."""


def block_grid(labels: ClassPlanes, pixels: int = _BLOCK) -> tuple[int, int]:
    """Planes and rows of a block: whole chunks, about `pixels`."""
    (depth, height, width), (planes, rows, _) = labels.shape, labels.chunks
    planes = min(depth, planes)
    rows = min(height, rows)
    return planes, min(height, max(1, pixels // (planes * rows * width)) * rows)


@dataclass
class Components:
    """The objects of a label image.

    Attributes:
        labels: what they are objects of.
        connectivity: in how many axes neighbours differ: 1 for faces alone.
        grid: planes and rows of the blocks.
        count: number of objects that are large enough.
        only: class of each class, 0 of those that no objects are wanted of; None to take all as they are.
    """

    labels: ClassPlanes
    connectivity: int
    grid: tuple[int, int]
    count: int = 0
    only: UInt8 | None = None
    _spool: Any = None
    _order: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    _numbers: Int64 = field(default_factory=lambda: np.empty(0, np.int64))  # of the objects as they were finished
    _finished: Int64 = field(default_factory=lambda: np.empty(0, np.int64))  # which of these a handle has become
    _bases: list[tuple[int, int]] = field(default_factory=list)  # of each block: first closed object, first handle

    def records(self, rows: int = 65536) -> Iterator[Any]:
        """The objects in the order of their numbers, as structured arrays (`RECORD`) of at most `rows`."""
        for first in range(0, self.count, rows):
            yield self._spool.take(self._order[first : first + rows])

    def read(self, box: Box, dtype: Any = np.int64) -> Array:
        """Object numbers in a region (z, y, x), 0 where there is none; safe to call from several threads."""
        out = np.empty(box.shape, dtype)
        planes, rows = self.grid
        depth, height, width = self.labels.shape
        bands = -(-height // rows)
        for slab in range(box.start[0] // planes, -(-box.stop[0] // planes)):
            for band in range(box.start[1] // rows, -(-box.stop[1] // rows)):
                start = (slab * planes, band * rows, 0)
                whole = Box(start, (min(depth, start[0] + planes), min(height, start[1] + rows), width))
                inner = whole.intersect(box)
                there = out[
                    tuple(slice(a - o, b - o) for a, b, o in zip(inner.start, inner.stop, box.start, strict=True))
                ]
                if inner == whole:
                    self._paint(whole, slab * bands + band, there)
                    continue
                painted = np.empty(whole.shape, dtype)
                self._paint(whole, slab * bands + band, painted)
                there[...] = painted[
                    tuple(slice(a - o, b - o) for a, b, o in zip(inner.start, inner.stop, start, strict=True))
                ]
        return out

    def close(self) -> None:
        """Release the records; the numbers can still be read."""
        self._spool = Spool()

    def choose(self, block: UInt8) -> UInt8:
        """A block without the classes that no objects are wanted of."""
        return block if self.only is None else self.only[block]

    def _paint(self, box: Box, index: int, out: Array) -> None:
        """Paint a whole block."""
        block = self.choose(self.labels.read(box))
        runs, count = find_pieces(block, self.connectivity)
        may_go_on = open_pieces(runs, count, (box.start[0], box.start[1]), block.shape[1], self.labels.shape)
        closed, handle = self._bases[index]
        finished = np.empty(count, np.int64)
        finished[~may_go_on] = closed + np.arange(count - may_go_on.sum())
        finished[may_go_on] = self._finished[handle : handle + int(may_go_on.sum())]
        paint_runs(runs, self._numbers[finished].astype(out.dtype), out)


def find_objects(
    labels: ClassPlanes,
    *,
    connectivity: int = 1,
    min_pixels: int = 0,
    only: Sequence[int] | None = None,
    image: Intensities | None = None,
    pixel_size: tuple[float, ...] = (1.0, 1.0, 1.0),
    grid: tuple[int, int] | None = None,
    threads: int | None = None,
    counts: BlockCounts | None = None,
    pool: Executor | None = None,
    progress: Progress | None = None,
) -> Components:
    """Find the connected objects of every class but 0 in one pass.

    Args:
        labels: what they are looked for in.
        connectivity: in how many axes neighbours may differ: 1 (faces) to the number of axes.
        min_pixels: smaller objects have no number and no record.
        only: classes that objects are wanted of; all but 0 by default.
        image: sums its intensities under each object.
        pixel_size: (z, y, x), or (y, x) of a plane, for Feret diameters.
        grid: planes and rows of a block; the objects do not depend on it.
        threads: that read and find pieces, or tasks that are under way in `pool`; nor on it.
        counts: gets the pixels of each class, of all classes.
        pool: whose workers read and find pieces: in other processes, if labels and image can be sent there.
        progress: called with pixels.

    Raises:
        PlanError: an axis is longer than sums are exact for.
        InputError: the labels, or the image, cannot be read.
    """
    shape = labels.shape
    if max(shape) > MOST_PIXELS:
        raise PlanError(
            f"{' x '.join(map(str, shape))} pixels: objects are found along at most {MOST_PIXELS:,} an axis"
        )
    planes, rows = grid or block_grid(labels)
    found = Components(labels, connectivity, (planes, rows))
    if only is not None:
        found.only = np.zeros(256, np.uint8)
        found.only[list(only)] = list(only)
    pixel_size = pixel_size[-2:] if shape[0] == 1 else pixel_size
    front = Front(shape, connectivity, pixel_size, image is not None)
    spool = Spool()
    firsts: list[Int64] = []
    handles: list[tuple[Int64, int]] = []  # of finished objects, and the number of the first of them
    finished = 0

    def keep(sums: Int64, intensities: Array, shapes: Array) -> None:
        nonlocal finished
        records = np.zeros(len(sums), RECORD)
        records["sums"] = sums
        if len(intensities):
            records["intensity"] = intensities
        if len(shapes):
            records["shape"] = shapes
        large = sums[:, AREA] >= min_pixels
        firsts.append(np.where(large, sums[:, FIRST], -1))
        spool.append(records[large])
        finished += len(sums)

    work = Piecework(
        labels, image, shape, connectivity, found.only, pixel_size, None if counts is None else counts.side
    )
    count = threads or core_count()
    with _workers(pool, count) as workers:
        for part in _in_order(workers, work, boxes(shape, (planes, rows, shape[2])), count + 1):
            base, done = front.push(part.pieces)
            found._bases.append((finished, base))
            keep(part.pieces.closed, part.pieces.closed_intensities, part.pieces.closed_shapes)
            handles.append((done.handles, finished))
            keep(done.rows, done.intensities, done.shapes)
            if counts is not None:
                counts.take(part.box, part.counts)
            if progress is not None:
                progress(part.box.size)
    first = np.concatenate(firsts)
    kept = first >= 0
    found._spool = spool
    found._order = np.argsort(first[kept], kind="stable")
    found.count = len(found._order)
    numbers = np.zeros(found.count, np.int64)
    numbers[found._order] = np.arange(1, found.count + 1)
    found._numbers = np.zeros(len(first), np.int64)
    found._numbers[kept] = numbers
    found._finished = np.empty(front.count, np.int64)
    for some, at in handles:
        found._finished[some] = at + np.arange(len(some))
    found._finished = found._finished[front.roots()]
    return found


@contextmanager
def _workers(pool: Executor | None, count: int) -> Iterator[Executor]:
    """The pool that is given, or one of so many threads for the while."""
    if pool is not None:
        yield pool
        return
    with ThreadPoolExecutor(count, "tilelab-objects") as threads:
        yield threads


def _in_order(pool: Executor, work: Callable[[Box], T], todo: Iterator[Box], ahead: int) -> Iterator[T]:
    """What `work` makes of each box, in order; a few of them ahead."""
    running = [pool.submit(work, box) for box in islice(todo, ahead)]
    try:
        while running:
            yield running.pop(0).result()
            running += [pool.submit(work, box) for box in islice(todo, 1)]
    finally:
        for future in running:
            future.cancel()


class ObjectsImage(Image):
    """The numbers of the objects as an image, uint32 where they fit and else uint64; axes ``yx`` or ``zyx``."""

    computed = True

    def __init__(
        self,
        objects: Components,
        uri: str,
        pixel_size_nm: tuple[float, ...] | None,
        origin_px: tuple[float, ...] = (),
    ) -> None:
        skip = int(objects.labels.shape[0] == 1)
        self._objects = objects
        self.uri = uri
        self.axes = "zyx"[skip:]
        self.shape = objects.labels.shape[skip:]
        self.chunks = (*objects.grid, objects.labels.shape[2])[skip:]
        self.dtype = np.dtype(np.uint32 if objects.count < 2**32 else np.uint64)
        self.pixel_size_nm = pixel_size_nm
        self.origin_px = origin_px

    def read(self, box: Box) -> Array:
        """Numbers in a region; see `Image.read`."""
        lead = 3 - len(self.axes)
        whole = Box((0,) * lead + box.start, (1,) * lead + box.stop)
        return self._objects.read(whole, self.dtype).reshape(box.shape)

    def fingerprint(self) -> dict[str, str]:
        """What it was made of."""
        return {"objects": self.uri, "connectivity": str(self._objects.connectivity), "count": str(self._objects.count)}


def objects_of_array(classes: UInt8, **options: Any) -> Components:
    """`find_objects` of an array ``(y, x)`` or ``(z, y, x)``."""
    return find_objects(ArrayPlanes(classes), **options)


class ArrayPlanes:
    """An array of classes as `ClassPlanes`."""

    def __init__(self, classes: Array) -> None:
        self._classes = classes if classes.ndim == 3 else classes[None]
        depth, height, width = self._classes.shape
        self.shape = (depth, height, width)
        self.chunks = (1, min(256, self.shape[1]), self.shape[2])

    def read(self, box: Box) -> Array:
        """A region (z, y, x), C-contiguous."""
        return np.ascontiguousarray(self._classes[box.slices])
