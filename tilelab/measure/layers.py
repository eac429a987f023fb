"""How thick a layer is along its way through an image: oxides, coatings, films."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tilelab.arrays import Array, Bool, Float64
from tilelab.errors import InputError
from tilelab.geometry import boxes
from tilelab.measure.components import Components, find_objects
from tilelab.measure.opening import Opened
from tilelab.measure.piecework import ClassPlanes
from tilelab.measure.shapes import measure_shapes

_LEAST_SHARE = 0.05
"""Parts of the layer are objects of at least so much of the largest one's area; smaller ones are no layer."""
_PIECE = 1000  # columns


@dataclass(frozen=True)
class Layer:
    """A layer along x or y.

    Lengths are in nm, or in pixels where the pixel size is not known.

    Attributes:
        axis: along which it runs, ``x`` or ``y``.
        unit: ``nm`` or ``px``.
        length: of its middle line.
        area: of the layer.
        mean: area over length, which is the mean of `thickness` over the length.
        spread: standard deviation of `thickness` over the length.
        position: of each column along the axis in pixels, where the layer is whole.
        thickness: along the normal there.
        lengths: of the middle line there.
        covered: share of the columns that hold some of the layer.
        cut: share of these in which it reaches the edge of the image that it does not run along: what is beyond is not
            known, so they are left out; if all but 5 % are so, they are taken as they are seen.
        parts: number of objects that it consists of.
    """

    axis: str
    unit: str
    length: float
    area: float
    mean: float
    spread: float
    position: Float64
    thickness: Float64
    lengths: Float64
    covered: float
    cut: float
    parts: int

    def percentile(self, share: float) -> float:
        """The thickness that so many percent of the length do not exceed."""
        order = np.argsort(self.thickness, kind="stable")
        lengths = self.lengths[order]
        middle = np.cumsum(lengths) - lengths / 2
        return float(np.interp(share / 100 * lengths.sum(), middle, self.thickness[order])) if len(order) else math.nan


def measure_layer(
    labels: ClassPlanes,
    classes: Sequence[int],
    *,
    opening: int = 0,
    size_nm: tuple[float, float] | None = None,
    grid: tuple[int, int] | None = None,
    threads: int | None = None,
) -> Layer:
    """Measure the layer that some classes form together (an oxide and the cracks in it, say), in two streamed passes.

    The layer is opened by a square of ``2 * opening + 1`` pixels, which removes what is thinner (beyond the frame it is
    taken to go on as at the frame), and reduced to objects of at least 5 % of the largest.  It runs along x if the
    largest object does so more than along y.  In every column across it, t pixels belong to the layer and m is their
    middle; the slope of m, by a line fitted over as many columns as the layer is thick on average, makes of t the
    thickness along the normal, ``t cos(slope)``, and of the column the length ``1 / cos(slope)``.  The mean over the
    length then is the area over the length of the middle line, exactly; a layer that folds back over itself is measured
    through all its folds.

    Args:
        labels: a plane.
        classes: that belong to the layer.
        opening: in pixels.
        size_nm: of a pixel (y, x).
        grid, threads: as for `find_objects`.

    Raises:
        InputError: it is no plane, or there is no layer.
    """
    if labels.shape[0] != 1:
        raise InputError("a layer is measured in a plane: choose one slice")
    opened = Opened(labels, classes, opening)
    objects = find_objects(opened, grid=grid, threads=threads)
    records = list(objects.records())
    if not records:
        after = f" after an opening by {opening} px" if opening else ""
        raise InputError(f"there is no layer of {' + '.join(map(str, classes))}{after}")
    found = measure_shapes(np.concatenate(records), labels.shape, None)
    kept = found["area_px"] >= _LEAST_SHARE * found["area_px"].max()
    largest = int(np.argmax(found["area_px"]))
    tilt = float(found["orientation_deg"][largest])
    axis = "y" if 45 < tilt < 135 else "x"
    return _walk(*_profile(objects, kept, axis), axis, size_nm, int(kept.sum()))


def _profile(objects: Components, kept: Array, axis: str) -> tuple[Array, Array, Bool]:
    """Pixels of the layer in each column (or row), the sum of their positions across, and where the edge cuts it."""
    chosen = np.concatenate([[False], kept])
    _, height, width = objects.labels.shape
    size = width if axis == "x" else height
    count, total, cut = np.zeros(size, np.int64), np.zeros(size, np.int64), np.zeros(size, np.bool_)
    for box in boxes(objects.labels.shape, (1, objects.grid[1], width)):
        layer = chosen[objects.read(box)[0]]
        if axis == "x":
            count += layer.sum(axis=0)
            total += (layer * np.arange(box.start[1], box.stop[1])[:, None]).sum(axis=0)
            cut |= (layer[0] & (box.start[1] == 0)) | (layer[-1] & (box.stop[1] == height))
        else:
            rows = slice(box.start[1], box.stop[1])
            count[rows] = layer.sum(axis=1)
            total[rows] = layer @ np.arange(width)
            cut[rows] = layer[:, 0] | layer[:, -1]
    return count, total, cut


def _walk(count: Array, total: Array, cut: Bool, axis: str, size_nm: tuple[float, float] | None, parts: int) -> Layer:
    """From columns to thickness along the normal."""
    sy, sx = size_nm or (1.0, 1.0)
    along, across = (sx, sy) if axis == "x" else (sy, sx)
    there = np.flatnonzero(count)
    whole = np.flatnonzero((count > 0) & ~cut)
    at = whole if len(whole) > _LEAST_SHARE * len(there) else there
    middle: Float64 = total[at] / count[at] * across
    half = max(1, round(float(count[at].mean()) * across / along / 2))
    slope = _slopes(np.asarray(at * along, np.float64), middle, half * along)
    cosine = 1 / np.hypot(1, slope)
    thickness, step = count[at] * across * cosine, along / cosine
    length, area = float(step.sum()), float(count[at].sum() * along * across)
    mean = area / length
    spread = math.sqrt(float((step * (thickness - mean) ** 2).sum()) / length)
    unit = "px" if size_nm is None else "nm"
    covered, lost = len(there) / len(count), 1 - len(whole) / len(there)
    return Layer(axis, unit, length, area, mean, spread, at.astype(float), thickness, step, covered, lost, parts)


def _slopes(x: Float64, y: Float64, reach: float) -> Float64:
    """Slope at each point of the line that is fitted to the points within `reach`, by running sums.

    Sums run over pieces of x, each about its own middle: over all of a wide plane the squares would leave no digits.
    """
    first, last = np.searchsorted(x, x - reach - 1e-9), np.searchsorted(x, x + reach + 1e-9)
    slope = np.zeros_like(x)
    length = max(reach, _PIECE * float(np.diff(x).min(initial=reach)))
    start = 0
    while start < len(x):
        stop = int(np.searchsorted(x, x[start] + length, "right"))
        begin, end = int(first[start]), int(last[stop - 1])
        x0, y0 = (values[begin:end] - (values[begin] + values[end - 1]) / 2 for values in (x, y))
        sums = [np.concatenate([[0.0], np.cumsum(v)]) for v in (x0, y0, x0 * x0, x0 * y0)]
        here, there = first[start:stop] - begin, last[start:stop] - begin
        n, (sx, sy, sxx, sxy) = there - here, (s[there] - s[here] for s in sums)
        several = n > 1  # a line through one point has any slope
        np.divide(n * sxy - sx * sy, n * sxx - sx * sx, out=slope[start:stop], where=several)
        start = stop
    return slope
