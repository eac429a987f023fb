"""Outlines of objects as polygons, and those as GeoJSON that QuPath reads.

Outlines run along the edges of pixels, so that a polygon's area is its object's.  Blocks are read once, in order; their
edges go to temporary files by ranges of numbers, and one range after the other becomes rings: in memory are a block and
the edges of some hundreds of objects, or of one that has more.  An object of a stack has a polygon in every plane.

    vertex (z, y, x)   the upper left corner of the pixel of that place, as one number
    edge               from a vertex in a direction: 0 right, 1 down, 2 left, 3 up; the object lies on its right hand
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tilelab.arrays import Array, Int64
from tilelab.geometry import boxes
from tilelab.kernels.objects.rings import join_rings
from tilelab.machine.disk import replacing
from tilelab.measure.components import Components
from tilelab.measure.survey import Survey

_EDGE = np.dtype([("number", np.int64), ("edge", np.int64)])
_FILES = 256
_TOLD = ("area", "equivalent_diameter", "circularity", "solidity", "mean_intensity")
"""Columns of the table that go with a polygon; they begin so."""

Ring = Array
"""Corners (x, y), int64 ``(n, 2)``, the first not repeated."""


class Outline(NamedTuple):
    """An object in a plane: polygons, each an outer ring and those of its holes."""

    number: int
    plane: int
    polygons: list[list[Ring]]


def write_geojson(survey: Survey, path: Path) -> int:
    """Write the objects of a survey as a FeatureCollection, one a line; returns how many polygons that are.

    Coordinates are pixels of the label image, its upper left corner at (0, 0).  Class, colour, number and some of
    what was measured go with each, as QuPath reads them.

    Raises:
        InputError: the labels cannot be read.
        OutputError: the disk is full or the file is unwritable.
    """
    rows = _rows(survey)
    told: tuple[str, dict[str, float]] = ("", {})
    number = count = 0
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for outline in find_outlines(survey.objects):
            while number < outline.number:
                number, told = number + 1, next(rows)
            file.write((",\n" if count else "\n") + json.dumps(_feature(outline, *told, survey)))
            count += 1
        file.write("\n]}\n")
    return count


def _rows(survey: Survey) -> Iterator[tuple[str, dict[str, float]]]:
    """Class and measurements of every object, in the order of the numbers."""
    for part in survey.columns():
        kept = {name: values.tolist() for name, values in part.items() if name.startswith(_TOLD)}
        for i, name in enumerate(part["class"].tolist()):
            yield name, {key: values[i] for key, values in kept.items() if np.isfinite(values[i])}


def _feature(outline: Outline, name: str, told: dict[str, float], survey: Survey) -> dict[str, Any]:
    colour = next(known.color for known in survey.classes if known.name == name)
    rings = [[[*ring.tolist(), ring[0].tolist()] for ring in polygon] for polygon in outline.polygons]
    several = len(rings) > 1
    plane = {} if survey.shape[0] == 1 else {"plane": {"c": -1, "z": outline.plane, "t": 0}}
    return {
        "type": "Feature",
        "geometry": {
            "type": "MultiPolygon" if several else "Polygon", "coordinates": rings if several else rings[0], **plane
        },
        "properties": {
            "objectType": "detection",
            "name": str(outline.number),
            "classification": {"name": name, "color": list(bytes.fromhex(colour[1:]))},
            "measurements": told,
        },
    }  # fmt: skip


def find_outlines(objects: Components) -> Iterator[Outline]:
    """The outline of every object in every plane that it has pixels in, by number, then plane.

    Raises:
        InputError: the labels cannot be read.
    """
    if not objects.count:
        return
    grid = _Grid.of(objects.labels.shape)
    most = 2**62 // (4 * grid.vertices)  # of numbers whose edges are sorted together
    span = min(most, max(1, -(-objects.count // _FILES)))
    with ExitStack() as opened:
        files = [opened.enter_context(tempfile.TemporaryFile()) for _ in range(-(-objects.count // span))]
        for numbers, edges in _find_edges(objects, grid):
            order = np.argsort(numbers, kind="stable")
            found = np.empty(len(order), _EDGE)
            found["number"], found["edge"] = numbers[order] - 1, edges[order]
            cuts = np.searchsorted(found["number"], np.arange(len(files) + 1) * span)
            for file, a, b in zip(files, cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
                if b > a:
                    file.write(found[a:b].tobytes())
        for i, file in enumerate(files):
            file.seek(0)
            yield from _outlines(np.frombuffer(file.read(), _EDGE), i * span, grid)
            file.close()


@dataclass(frozen=True)
class _Grid:
    """The corners of the pixels of an image."""

    plane: int
    row: int
    vertices: int

    @classmethod
    def of(cls, shape: tuple[int, int, int]) -> _Grid:
        depth, height, width = shape
        return cls((height + 1) * (width + 1), width + 1, depth * (height + 1) * (width + 1))

    @property
    def steps(self) -> Int64:
        """From a vertex to the next in each direction."""
        return np.array([1, self.row, -1, -self.row])


def _find_edges(objects: Components, grid: _Grid) -> Iterator[tuple[Int64, Int64]]:
    """Numbers of objects and ``4 vertex + direction`` of their edges, plane by plane of every block."""
    planes, rows = objects.grid
    depth, height, width = objects.labels.shape
    above = np.zeros((0, 1, width), np.int64)
    for box in boxes((depth, height, width), (planes, rows, width)):
        (z, y, _), (_, last, _) = box.start, box.stop
        if y == 0:
            above = np.zeros((box.shape[0], 1, width), np.int64)
        numbers = objects.read(box)
        edge = np.zeros((int(last == height), width), np.int64)  # of the image: below it there is nothing
        for i, plane in enumerate(numbers):
            yield _edges_of(
                np.concatenate([above[i], plane, edge]), len(plane), (z + i) * grid.plane + y * grid.row, grid
            )
        above = numbers[:, -1:].copy()


def _edges_of(numbers: Int64, rows: int, first: int, grid: _Grid) -> tuple[Int64, Int64]:
    """Edges between all rows of `numbers`, the first of which is that before, and within `rows` of them.

    first: vertex where the second row begins.
    """
    found: list[tuple[Int64, Int64]] = []

    def add(inner: Int64, outer: Int64, begin: int, direction: int) -> None:
        y, x = np.nonzero((inner != outer) & (inner != 0))
        found.append((inner[y, x], 4 * (first + y * grid.row + x + begin) + direction))

    add(numbers[1:], numbers[:-1], 0, 0)
    add(numbers[:-1], numbers[1:], 1, 2)
    whole = np.pad(numbers[1 : rows + 1], ((0, 0), (1, 1)))
    add(whole[:, 1:], whole[:, :-1], grid.row, 3)
    add(whole[:, :-1], whole[:, 1:], 0, 1)
    return np.concatenate([a for a, _ in found]), np.concatenate([b for _, b in found])


def _outlines(edges: Array, before: int, grid: _Grid) -> Iterator[Outline]:
    """The outlines of the objects whose edges these are; the first has the number `before` + 1."""
    if not len(edges):
        return
    keys = np.sort((edges["number"] - before) * (4 * grid.vertices) + edges["edge"])
    starts, directions = keys >> 2, keys & 3
    after = np.searchsorted(starts, starts + grid.steps[directions])
    two = np.append(starts[1:] == starts[:-1], False)[after]
    after += two & (
        directions[after] != (directions + 1) % 4
    )  # of two ways the one to the right: it keeps to the pixel
    order, ends = join_rings(starts, after)
    number, vertex = np.divmod(starts[order], grid.vertices)
    plane, place = np.divmod(vertex, grid.plane)
    y, x = np.divmod(place, grid.row)
    before_each = np.arange(len(order)) - 1
    before_each[ends[:-1]] = ends[1:] - 1
    corner = directions[order] != directions[order][before_each]
    place = np.stack([x, y], axis=1)
    gathered: dict[tuple[int, int], list[Ring]] = {}
    for a, b in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        key = (before + int(number[a]) + 1, int(plane[a]))
        gathered.setdefault(key, []).append(place[a:b][corner[a:b]])
    for (which, z), rings in sorted(gathered.items(), key=lambda item: item[0]):
        yield Outline(which, z, _nest(rings))


def _area(ring: Ring) -> int:
    """Twice the area, positive of outer rings."""
    x, y = ring[:, 0], ring[:, 1]
    return int(x[:-1] @ y[1:] - x[1:] @ y[:-1] + x[-1] * y[0] - x[0] * y[-1])


def _nest(rings: list[Ring]) -> list[list[Ring]]:
    """Polygons of rings: every hole with the outer ring that is around it."""
    outer = [[ring] for ring in rings if _area(ring) > 0]
    for hole in (ring for ring in rings if _area(ring) < 0):
        around = outer[0]
        if len(outer) > 1:
            around = min((p for p in outer if _contains(p[0], hole)), key=lambda p: _area(p[0]))
        around.append(hole)
    return outer


def _contains(outer: Ring, hole: Ring) -> bool:
    """Whether the pixel at the upper left of a hole lies in a ring."""
    x, y = hole[np.lexsort((hole[:, 0], hole[:, 1]))[0]] + 0.5
    following = np.roll(outer, -1, axis=0)
    low, high = np.minimum(outer[:, 1], following[:, 1]), np.maximum(outer[:, 1], following[:, 1])
    return bool(np.count_nonzero((low < y) & (y < high) & (outer[:, 0] < x)) % 2)
