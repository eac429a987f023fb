"""Objects that a network tells apart itself: centres and the way to them, or numbers in a label image."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilelab.arrays import Array, Float64, Int64
from tilelab.errors import InputError
from tilelab.geometry import Box, boxes
from tilelab.io.images.image import Image
from tilelab.io.images.volume import Volume
from tilelab.kernels.jit import jit
from tilelab.measure.components import block_grid
from tilelab.measure.piecework import ClassPlanes
from tilelab.text import sides_text

_jit = jit()
WINDOW, LEAST = 7, 0.1
"""A centre is the largest value of so many pixels a side, and no less than this, as MitoNet takes them."""


class Voted:
    """Labels in which pixels of one class belong together if they vote for the same centre: `ClassPlanes` of a plane.

    Panoptic-DeepLab's grouping (Cheng et al., CVPR 2020), by which MitoNet works: centres are the maxima of a heat map,
    and every pixel of a class belongs to the centre that is nearest to where its offset points.  Of equal maxima in one
    window the first in raster order is the centre; of equally near centres, the first.  Values are
    ``256 * centre + class``, int64.  Parts of an object that are not connected are objects of their own.
    """

    def __init__(self, labels: ClassPlanes, heat: Image, offsets: Image, *, least: float = LEAST) -> None:
        """Find the centres, in one streamed pass.

        Args:
            labels: classes.
            heat: one channel, large at the centres.
            offsets: two channels, from a pixel to its centre along y and x in pixels.
            least: value of a centre.

        Raises:
            InputError: the maps have other channels or another size, or the labels are a volume.
        """
        self._heat, self._offsets, self._labels = Volume(heat), Volume(offsets), labels
        self.shape, self.chunks = labels.shape, labels.chunks
        if labels.shape[0] != 1:
            raise InputError("centres are looked for in planes alone: measure a slice")
        for name, volume, channels in (("heat map", self._heat, 1), ("offsets", self._offsets, 2)):
            if volume.channels != channels or volume.shape != labels.shape:
                sizes = [sides_text(one.shape) for one in (volume, labels)]
                raise InputError(
                    f"{volume.image.uri} has {volume.channels} channels of {sizes[0]} pixels: the {name} of {sizes[1]} "
                    f"pixels has {channels}"
                )
        self.centres = self._find(least)
        self._grid = _Grid(self.centres, labels.shape[1:])

    def read(self, box: Box) -> Int64:
        """Region (z, y, x)."""
        classes = self._labels.read(box)
        values = np.zeros(classes.shape, np.int64)
        if len(self.centres):
            offsets = np.ascontiguousarray(self._offsets.read(box)[:, 0], np.float64)
            grid = self._grid
            _vote(classes[0], offsets, *box.start[1:], grid.points, grid.begins, grid.cells, grid.side, values[0])
        return values

    def _find(self, least: float) -> Float64:
        """The centres (y, x) in raster order."""
        _, height, width = self.shape
        reach = WINDOW // 2
        found = []
        for box in boxes(self.shape, (*block_grid(self._labels), width)):
            top, bottom = max(0, box.start[1] - 2 * reach), min(height, box.stop[1] + 2 * reach)
            heat = np.ascontiguousarray(self._heat.read(Box((0, top, 0), (1, bottom, width)))[0, 0], np.float64)
            peaks = np.zeros(heat.shape, np.bool_)
            _find_peaks(heat, reach, least, peaks)
            rows = peaks[box.start[1] - top : box.stop[1] - top]
            found.append(np.argwhere(rows) + np.array([box.start[1], 0.0]))
        return np.concatenate(found)


class Numbered:
    """A label image whose values are objects already: `ClassPlanes` of class 1, with values ``256 * number + 1``."""

    def __init__(self, image: Image) -> None:
        """Of whole numbers of any type.

        Raises:
            InputError: it has channels, or other than whole numbers.
        """
        self._volume = Volume(image)
        if self._volume.channels != 1 or image.dtype.kind not in "iu":
            raise InputError(f"{image.uri} ({image.axes}, {image.dtype}) holds no numbers of objects")
        self.shape, self.chunks = self._volume.shape, self._volume.chunks

    def read(self, box: Box) -> Int64:
        """Region (z, y, x)."""
        stored = self._volume.read(box)[0].astype(np.int64)
        if stored.size and (stored.min() < 0 or stored.max() >= 2**54):
            raise InputError(f"{self._volume.image.uri} holds numbers below 0 or beyond 2**54, which are no objects")
        return np.where(stored > 0, 256 * stored + 1, 0)


class _Grid:
    """Points in cells of a grid, so that the nearest one is found among few."""

    def __init__(self, points: Float64, extent: tuple[int, ...]) -> None:
        self.side = max(8.0, float(np.sqrt(np.prod(extent, dtype=float) / max(1, len(points)))))
        self.cells = np.array([int(n / self.side) + 1 for n in extent], np.int64)
        at = (points / self.side).astype(np.int64)
        flat = at[:, 0] * self.cells[1] + at[:, 1]
        order = np.argsort(flat, kind="stable")
        self.begins = np.searchsorted(flat[order], np.arange(int(self.cells.prod()) + 1))
        self.points: Array = np.column_stack([points[order], order.astype(np.float64)])


@_jit
def _find_peaks(heat: Any, reach: int, least: float, peaks: Any) -> None:
    """The largest of their windows; of equal ones in a window the first."""
    height, width = heat.shape
    largest = np.zeros(heat.shape, np.bool_)
    for y in range(height):
        for x in range(width):
            value = heat[y, x]
            if not value >= least:
                continue
            most = True
            for v in range(max(0, y - reach), min(height, y + reach + 1)):
                for u in range(max(0, x - reach), min(width, x + reach + 1)):
                    most &= not heat[v, u] > value
            largest[y, x] = most
    for y in range(height):
        for x in range(width):
            if not largest[y, x]:
                continue
            first = True
            for v in range(max(0, y - reach), y + 1):
                for u in range(max(0, x - reach), min(width, x + reach + 1)):
                    first &= not (largest[v, u] and (v < y or u < x))
            peaks[y, x] = first


@_jit
def _vote(
    classes: Any, offsets: Any, y0: int, x0: int, points: Any, begins: Any, cells: Any, side: float, values: Any
) -> None:
    height, width = classes.shape
    most = max(cells[0], cells[1])
    for y in range(height):
        for x in range(width):
            if classes[y, x] == 0:
                continue
            ty, tx = y0 + y + offsets[0, y, x], x0 + x + offsets[1, y, x]
            cy = min(max(int(np.floor(ty / side)), 0), cells[0] - 1)
            cx = min(max(int(np.floor(tx / side)), 0), cells[1] - 1)
            best, owner = np.inf, -1.0
            # beyond the grid every ring is farther by what the target lies outside of it
            ring = 0
            while ring <= most:
                if owner >= 0:
                    near = min(ty - (cy - ring + 1) * side, (cy + ring) * side - ty)
                    near = min(near, min(tx - (cx - ring + 1) * side, (cx + ring) * side - tx))
                    if near > 0 and near * near > best:
                        break
                for gy in range(max(0, cy - ring), min(cells[0], cy + ring + 1)):
                    edge = abs(gy - cy) == ring
                    for gx in range(max(0, cx - ring), min(cells[1], cx + ring + 1)):
                        if not edge and abs(gx - cx) != ring:
                            continue
                        c = gy * cells[1] + gx
                        for i in range(begins[c], begins[c + 1]):
                            d = (points[i, 0] - ty) ** 2 + (points[i, 1] - tx) ** 2
                            if d < best or (d == best and points[i, 2] < owner):
                                best, owner = d, points[i, 2]
                ring += 1
            values[y, x] = 256 * (np.int64(owner) + 1) + classes[y, x]
