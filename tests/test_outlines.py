"""Outlines of objects as polygons: filled again they are the objects, and no ring passes a corner twice."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from result_files import make_result

from tilelab.cli import main
from tilelab.geometry import Box
from tilelab.measure import outlines
from tilelab.measure.components import ArrayPlanes, find_objects
from tilelab.measure.outlines import find_outlines


def fill(rings: list[Any], shape: tuple[int, int]) -> Any:
    """Pixels within rings by counting how often a row crosses them before each pixel's centre."""
    crossings = np.zeros((shape[0], shape[1] + 1), np.int64)
    for ring in rings:
        for (x, y), (u, v) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if x == u:
                crossings[min(y, v) : max(y, v), x] += 1
    return np.cumsum(crossings, axis=1)[:, :-1] % 2 == 1


@settings(max_examples=25)
@given(st.data())
def test_outlines_filled_are_the_objects(data: st.DataObject) -> None:
    depth = data.draw(st.sampled_from([1, 1, 3]))
    shape = (depth, data.draw(st.integers(1, 14)), data.draw(st.integers(1, 14)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    classes = ((rng.random(shape) < data.draw(st.sampled_from([0.4, 0.7]))) * rng.integers(1, 3, shape)).astype(
        np.uint8
    )
    connectivity = data.draw(st.integers(1, 2 if depth == 1 else 3))
    grid = (data.draw(st.integers(1, depth)), data.draw(st.integers(1, shape[1])))
    objects = find_objects(ArrayPlanes(classes), connectivity=connectivity, grid=grid)
    numbers = objects.read(Box.whole(shape))
    painted = np.zeros_like(numbers)
    said = []
    for outline in find_outlines(objects):
        said.append((outline.number, outline.plane))
        for polygon in outline.polygons:
            for ring in polygon:
                assert len(np.unique(ring, axis=0)) == len(ring)
            outer, *holes = (fill([ring], shape[1:]) for ring in polygon)
            assert all((hole <= outer).all() for hole in holes)
            painted[outline.plane][fill(polygon, shape[1:])] += outline.number
    np.testing.assert_array_equal(painted, numbers)
    assert said == sorted({(int(n), int(z)) for z, plane in enumerate(numbers) for n in np.unique(plane[plane > 0])})


def test_a_ring_and_what_touches_itself_at_a_corner() -> None:
    classes = np.array([[1, 1, 1, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 1, 1], [0, 0, 0, 1, 1]], np.uint8)
    (outline,) = find_outlines(find_objects(ArrayPlanes(classes), connectivity=2))
    assert sorted(len(polygon) for polygon in outline.polygons) == [1, 2]
    square = min(outline.polygons, key=len)[0]
    assert sorted(map(tuple, square.tolist())) == [(3, 2), (3, 4), (5, 2), (5, 4)]


def test_few_files_give_the_same(monkeypatch: Any) -> None:
    classes = (np.random.default_rng(3).random((60, 70)) < 0.4).astype(np.uint8)
    objects = find_objects(ArrayPlanes(classes), grid=(1, 7))
    once = [(o.number, o.plane, [[r.tolist() for r in p] for p in o.polygons]) for o in find_outlines(objects)]
    monkeypatch.setattr(outlines, "_FILES", 3)
    assert [(o.number, o.plane, [[r.tolist() for r in p] for p in o.polygons]) for o in find_outlines(objects)] == once


def test_measure_writes_what_qupath_reads(tmp_path: Path) -> None:
    result = make_result(tmp_path / "r.ome.zarr", (80, 90))
    table, path = tmp_path / "t.csv", tmp_path / "o.geojson"
    assert main(["measure", str(result.path), "--geojson", str(path), "-o", str(table), "--min-size", "30px"]) == 0
    found = json.loads(path.read_text())["features"]
    assert len(found) == len(table.read_text().splitlines()) - 1 > 3
    for i, feature in enumerate(found, 1):
        properties = feature["properties"]
        assert properties["name"] == str(i)
        assert properties["objectType"] == "detection"
        known = {info.name: list(bytes.fromhex(info.color[1:])) for info in result.info.classes}
        assert properties["classification"]["color"] == known[properties["classification"]["name"]]
        assert feature["geometry"]["type"] == "Polygon"
        outer = feature["geometry"]["coordinates"][0]
        assert outer[0] == outer[-1]
        area = sum(
            abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(ring))) / 2 * (1 if not j else -1)
            for j, ring in enumerate(feature["geometry"]["coordinates"])
        )
        assert area == properties["measurements"]["area_px"]


def test_several_images_have_a_file_each_and_one_without_objects_none_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    folder.mkdir()
    some = np.zeros((3, 30, 20), np.uint8)
    some[1:, 4:9, 5:9] = 1
    for name, labels in (("some", some), ("none", np.zeros((2, 20, 20), np.uint8))):
        tifffile.imwrite(folder / f"{name}.tif", labels, photometric="minisblack", metadata={"axes": "ZYX"})
    assert main(["measure", str(folder), "--geojson", str(tmp_path / "out"), "--classes", "a,b"]) == 0
    assert json.loads((tmp_path / "out" / "none.geojson").read_text())["features"] == []
    found = json.loads((tmp_path / "out" / "some.geojson").read_text())["features"]
    assert [one["geometry"]["plane"]["z"] for one in found] == [1, 2]
    assert sorted(map(tuple, found[0]["geometry"]["coordinates"][0][:4])) == [(5, 4), (5, 9), (9, 4), (9, 9)]
