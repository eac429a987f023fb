"""The front between blocks that have come and blocks that will: objects that may go on, and nothing else.

    blocks come in raster order, as wide as the image        kept of what has come:
      slab 0   band 0, band 1, ...                           the last row of each plane of the band before
      slab 1   band 0, ...                                   the last plane of the slab before
                                                             sums and hulls of the objects that reach these

A piece that touches no open face of its block is an object at once.  Any other gets a handle; handles that meet across
the front are joined.  An object is finished when no run of the front belongs to it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tilelab.arrays import Array, Bool, Float64, Int64
from tilelab.kernels.jit import jit
from tilelab.kernels.objects.hulls import measure_corners, piece_corners, reduce_corners
from tilelab.kernels.objects.runs import Runs, find_pieces, join_rows, stack_runs
from tilelab.kernels.objects.solids import measure_solids, piece_planes, reduce_planes, reduce_solids
from tilelab.kernels.objects.sums import (
    COLUMNS,
    PAIRS,
    merge_sums,
    pair_rows,
    resolve,
    sum_intensities,
    sum_runs,
)  # fmt: skip

_jit = jit()
_MOST_CORNERS = 256
"""Corners of planes that an object may gather before they are reduced to those of its hull."""


class Pieces(NamedTuple):
    """What is known of a block by itself.

    origin, extent: (z, y) of the block.
    closed: int64 rows of sums of the pieces that are objects.
    closed_intensities: float64 ``(closed, 3)``, or ``(0, 3)`` without an image.
    closed_shapes: float64 ``(closed, 3)``: Feret diameters, and pixels of the hull.
    rows, intensities: the same of those that may go on.
    corners_begin, corners: of their hulls, (y, x) in a plane; of the hulls of their planes, (z, y, x) in a volume.
    apart: rows of piece, piece, direction, number, of pieces that may go on.
    top, bottom: runs of the first and last row of each plane.
    front, back: runs of the first and last plane.
    """

    origin: tuple[int, int]
    extent: tuple[int, int]
    closed: Int64
    closed_intensities: Float64
    closed_shapes: Float64
    rows: Int64
    intensities: Float64
    corners_begin: Int64
    corners: Int64
    apart: Int64
    top: Runs
    bottom: Runs
    front: Runs
    back: Runs


def open_pieces(runs: Runs, pieces: int, origin: tuple[int, int], height: int, shape: tuple[int, int, int]) -> Bool:
    """Which pieces of a block touch a face behind which the image goes on, bool ``(pieces,)``."""
    depth = (len(runs.rows) - 1) // height
    touches = np.zeros(pieces, np.bool_)
    for faces, first, count, step in (
        (origin[1] > 0, 0, depth, height),
        (origin[1] + height < shape[1], height - 1, depth, height),
        (origin[0] > 0, 0, height, 1),
        (origin[0] + depth < shape[0], (depth - 1) * height, height, 1),
    ):
        if faces:
            touches[runs.take(first, count, step).owners] = True
    return touches


def take_pieces(
    block: Array,
    origin: tuple[int, int],
    shape: tuple[int, int, int],
    connectivity: int,
    size: tuple[float, ...],
    image: Array | None = None,
) -> Pieces:
    """Find and sum up the pieces of a block; releases the GIL most of the time.

    Args:
        block: classes ``(z, y, x)``, as wide as the image; whole numbers of any type.
        origin: of the block, (z, y).
        shape: of the image, (z, y, x).
        connectivity: in how many axes neighbours may differ.
        size: of a pixel (y, x), of a voxel (z, y, x), for the hulls' measures.
        image: intensities under it.
    """
    depth, height, _ = block.shape
    runs, count = find_pieces(block, connectivity)
    table, apart = sum_runs(runs, count, origin, height, shape)
    intensities = np.empty((0, 3)) if image is None else sum_intensities(runs, count, image)
    may_go_on = open_pieces(runs, count, origin, height, shape)
    kept, closed = np.flatnonzero(may_go_on), np.flatnonzero(~may_go_on)
    number = np.cumsum(may_go_on) - 1
    flat = shape[0] == 1
    first, points = piece_corners(runs, count, origin[1]) if flat else piece_planes(runs, count, origin, height)
    shapes = _measure_hulls(*choose_points(first, points, closed), size)
    begins, corners = choose_points(first, points, kept)
    apart = apart[may_go_on[apart[:, 0]] & may_go_on[apart[:, 1]]]
    apart[:, :2] = number[apart[:, :2]]
    faces = [
        runs.take(0, depth, height),
        runs.take(height - 1, depth, height),
        runs.take(0, height),
        runs.take((depth - 1) * height, height),
    ]
    faces = [face._replace(owners=number[face.owners]) for face in faces]
    there = image is not None
    return Pieces(
        origin, (depth, height), table[closed], intensities[closed] if there else intensities, shapes,
        table[kept], intensities[kept] if there else intensities, begins, corners, apart, *faces,
    )  # fmt: skip


def choose_points(begins: Int64, points: Int64, groups: Int64) -> tuple[Int64, Int64]:
    """The points of some groups."""
    counts = begins[groups + 1] - begins[groups]
    first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return first, points[np.repeat(begins[groups] - first[:-1], counts) + np.arange(first[-1])]


def _measure_hulls(begins: Int64, points: Int64, size: tuple[float, ...]) -> Float64:
    """Feret diameters and pixels of hulls, by the number of their axes."""
    if points.shape[1] == 2:
        return measure_corners(begins, points, (size[0], size[1]))
    return measure_solids(begins, points, size)


class Finished(NamedTuple):
    """Objects that are finished: rows of sums, of intensities and of shapes as in `Pieces`, and a handle of each."""

    rows: Int64
    intensities: Float64
    shapes: Float64
    handles: Int64


class Front:
    """Joins the pieces of blocks that come in raster order.

    Attributes:
        count: handles so far.
    """

    def __init__(self, shape: tuple[int, int, int], connectivity: int, size: tuple[float, ...], image: bool) -> None:
        self._shape = shape
        self._near = connectivity
        self._size = size
        self._parents = np.empty(1024, np.int64)
        self.count = 0
        self._handles = np.empty(0, np.int64)
        self._table = np.empty((0, COLUMNS), np.int64)
        self._intensities = np.empty((0, 3))
        self._with_image = image
        self._corners: list[tuple[Int64, Int64]] = []  # handle of each point, points
        self._settled = np.empty(0, np.int64)  # points of each when they were last reduced to the corners of a solid
        self._apart = np.empty((0, 4), np.int64)
        self._row: Runs | None = None  # the last row of each plane of the band before
        self._plane: Runs | None = None  # the last plane of the slab before
        self._next: list[Runs] = []

    def roots(self) -> Int64:
        """The handle that each handle has become one with."""
        roots: Int64 = resolve(self._parents, np.arange(self.count))
        return roots

    def push(self, pieces: Pieces) -> tuple[int, Finished]:
        """Take the next block.

        Returns:
            The handle of the first of its pieces that may go on (the others follow), and the objects that it finishes,
            its own closed pieces not among them.
        """
        base = self._add(pieces)
        z, y = pieces.origin
        depth, height = pieces.extent
        top, bottom, front, back = (
            face._replace(owners=face.owners + base) for face in (pieces.top, pieces.bottom, pieces.front, pieces.back)
        )
        if y > 0 and self._row is not None:
            _join_band(*top, *self._row, self._near, self._parents)
        if z > 0 and self._plane is not None:
            _join_slab(*front, *self._plane, y, self._near, self._parents)
        self._gather()
        if y > 0 and self._row is not None:
            self._pair(_pair_band, top, self._row, 0)
        if z > 0 and self._plane is not None:
            self._pair(_pair_slab, front, self._plane, y)
        last_band, last_slab = y + height == self._shape[1], z + depth == self._shape[0]
        self._row = None if last_band else bottom
        if not last_slab:
            self._next.append(back)
        if last_band:
            self._plane = None if last_slab else stack_runs(self._next)
            self._next = []
        if self._shape[0] == 1 or last_band:
            return base, self._finish()
        return base, self._nothing()

    def _add(self, pieces: Pieces) -> int:
        """Give handles to the pieces that may go on; returns the first."""
        base, count = self.count, len(pieces.rows)
        if base + count > len(self._parents):
            self._parents = np.concatenate([self._parents, np.empty(max(count, base), np.int64)])
        fresh = np.arange(base, base + count)
        self._parents[base : base + count] = fresh
        self.count += count
        self._handles = np.concatenate([self._handles, fresh])
        self._table = np.concatenate([self._table, pieces.rows])
        self._settled = np.concatenate([self._settled, np.zeros(count, np.int64)])
        if self._with_image:
            self._intensities = np.concatenate([self._intensities, pieces.intensities])
        self._corners.append((np.repeat(fresh, np.diff(pieces.corners_begin)), pieces.corners))
        moved = pieces.apart.copy()
        moved[:, :2] += base
        self._apart = np.concatenate([self._apart, moved])
        return base

    def _gather(self) -> None:
        """Add the sums of what was joined to those of its root, which is its least handle."""
        roots = resolve(self._parents, self._handles)
        into = np.searchsorted(self._handles, roots)
        merge_sums(self._table, self._intensities, into)
        kept = into == np.arange(len(into))
        settled = np.zeros(len(into), np.int64)
        np.add.at(settled, into, self._settled)
        self._handles, self._table, self._settled = self._handles[kept], self._table[kept], settled[kept]
        if self._with_image:
            self._intensities = self._intensities[kept]

    def _pair(self, count_pairs: Any, here: Runs, there: Runs, y: int) -> None:
        """Count pairs across the front into the sums; those of two objects wait."""
        here, there = (
            runs._replace(owners=np.searchsorted(self._handles, resolve(self._parents, runs.owners)))
            for runs in (here, there)
        )
        apart = np.empty((1024, 4), np.int64)
        while True:
            pairs = self._table[:, PAIRS:].copy()
            count = count_pairs(*here, *there, y, pairs, apart)
            if count <= len(apart):
                break
            apart = np.empty((count, 4), np.int64)
        self._table[:, PAIRS:] = pairs
        apart = apart[:count]
        apart[:, :2] = self._handles[apart[:, :2]]
        self._apart = np.concatenate([self._apart, apart])

    def _finish(self) -> Finished:
        """Take out the objects that nothing of the front belongs to."""
        self._settle()
        front = [runs.owners for runs in (self._row, self._plane, *self._next) if runs is not None]
        live = np.unique(resolve(self._parents, np.concatenate([*front, np.empty(0, np.int64)])))
        stays = np.isin(self._handles, live, assume_unique=True)
        done = ~stays
        owners = np.concatenate([of for of, _ in self._corners])
        points = np.concatenate([at for _, at in self._corners])
        at = np.searchsorted(self._handles, resolve(self._parents, owners))
        order = np.lexsort((*points.T[::-1], at))
        begins = np.searchsorted(at[order], np.arange(len(self._handles) + 1))
        reduce = reduce_corners if self._shape[0] == 1 else reduce_planes
        begins, points = reduce(begins, points[order])
        if self._shape[0] > 1:
            begins, points = self._reduce_solids(begins, points)
        shapes = _measure_hulls(*choose_points(begins, points, np.flatnonzero(done)), self._size)
        begins, points = choose_points(begins, points, np.flatnonzero(stays))
        intensities = self._intensities[done] if self._with_image else self._intensities
        finished = Finished(self._table[done], intensities, shapes, self._handles[done])
        self._handles, self._table, self._settled = self._handles[stays], self._table[stays], self._settled[stays]
        if self._with_image:
            self._intensities = self._intensities[stays]
        self._corners = [(np.repeat(self._handles, np.diff(begins)), points)]
        self._apart = self._apart[np.isin(self._apart[:, :2], live).all(axis=1)]
        return finished

    def _reduce_solids(self, begins: Int64, points: Int64) -> tuple[Int64, Int64]:
        """Keep the corners of whole hulls alone of objects that have gathered many since that was last done.

        An object that runs through thousands of planes then takes memory for its hull, not for each plane.
        """
        large = np.diff(begins) > 2 * self._settled + _MOST_CORNERS
        begins, points = reduce_solids(begins, points, large)
        self._settled[large] = np.diff(begins)[large]
        return begins, points

    def _settle(self) -> None:
        """Count the pairs of what has become one object; the others wait."""
        roots = resolve(self._parents, self._apart[:, :2].ravel()).reshape(-1, 2)
        one = roots[:, 0] == roots[:, 1]
        at = np.searchsorted(self._handles, roots[one, 0])
        np.add.at(self._table, (at, PAIRS + self._apart[one, 2]), self._apart[one, 3])
        self._apart[:, :2] = roots
        self._apart = self._apart[~one]

    def _nothing(self) -> Finished:
        none = np.empty(0, np.int64)
        return Finished(np.empty((0, COLUMNS), np.int64), np.empty((0, 3)), np.empty((0, 3)), none)


@_jit
def _join_band(
    rows: Any, starts: Any, stops: Any, classes: Any, owners: Any,
    rows_: Any, starts_: Any, stops_: Any, classes_: Any, owners_: Any, near: int, parents: Any,
) -> None:  # fmt: skip
    """Join the first row of each plane with the last rows of the band before."""
    depth = len(rows) - 1
    for z in range(depth):
        for dz in range(-1, 2):
            if 0 <= z + dz < depth and 1 + abs(dz) <= near:
                join_rows(
                    rows, starts, stops, classes, owners, z,
                    rows_, starts_, stops_, classes_, owners_, z + dz, 1 + abs(dz) < near, parents,
                )  # fmt: skip


@_jit
def _join_slab(
    rows: Any, starts: Any, stops: Any, classes: Any, owners: Any,
    rows_: Any, starts_: Any, stops_: Any, classes_: Any, owners_: Any, y0: int, near: int, parents: Any,
) -> None:  # fmt: skip
    """Join the rows of the first plane, from row `y0` of the image on, with the plane before."""
    for y in range(len(rows) - 1):
        for dy in range(-1, 2):
            if 0 <= y0 + y + dy < len(rows_) - 1 and 1 + abs(dy) <= near:
                join_rows(
                    rows, starts, stops, classes, owners, y,
                    rows_, starts_, stops_, classes_, owners_, y0 + y + dy, 1 + abs(dy) < near, parents,
                )  # fmt: skip


@_jit
def _pair_band(
    rows: Any, starts: Any, stops: Any, classes: Any, owners: Any,
    rows_: Any, starts_: Any, stops_: Any, classes_: Any, owners_: Any, y0: int, pairs: Any, apart: Any,  # noqa: ARG001
) -> int:  # fmt: skip
    """Count the pairs between the first row of each plane and the last rows of the band before."""
    depth, count = len(rows) - 1, 0
    for z in range(depth):
        for dz in range(-1, 2):
            if not 0 <= z + dz < depth:
                continue
            # seen from the later plane: the row before lies at dy = -1 of this one, or this one at +1 of that
            first = 1 if dz == 0 else 4 if dz < 0 else 10
            count = pair_rows(
                rows, starts, stops, classes, owners, z,
                rows_, starts_, stops_, classes_, owners_, z + dz, first, -1 if dz > 0 else 1, pairs, apart, count,
            )  # fmt: skip
    return count


@_jit
def _pair_slab(
    rows: Any, starts: Any, stops: Any, classes: Any, owners: Any,
    rows_: Any, starts_: Any, stops_: Any, classes_: Any, owners_: Any, y0: int, pairs: Any, apart: Any,
) -> int:  # fmt: skip
    """Count the pairs between the first plane, from row `y0` of the image on, and the plane before."""
    count = 0
    for y in range(len(rows) - 1):
        for dy in range(-1, 2):
            if 0 <= y0 + y + dy < len(rows_) - 1:
                count = pair_rows(
                    rows, starts, stops, classes, owners, y,
                    rows_, starts_, stops_, classes_, owners_, y0 + y + dy, 7 + 3 * dy, 1, pairs, apart, count,
                )  # fmt: skip
    return count
