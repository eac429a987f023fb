"""What is told of several images and of odd ones: one unit a table, what is out, nothing impossible."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from result_files import CLASSES, make_result
from scipy import ndimage

from tilelab.cli import main
from tilelab.errors import InputError
from tilelab.measure import measure
from tilelab.measure.components import ArrayPlanes, find_objects
from tilelab.measure.layers import measure_layer
from tilelab.measure.shapes import boundary, measure_shapes
from tilelab.measure.sizes import parse_size


def blobs(shape: tuple[int, ...], seed: int = 0) -> Any:
    """A binary image of smooth shapes."""
    noise = np.random.default_rng(seed).normal(size=shape)
    return (ndimage.gaussian_filter(noise, 3) > 0.05).astype(np.uint8)


def test_one_table_has_one_unit_and_as_many_axes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "images"
    images.mkdir()
    known: dict[str, Any] = {"photometric": "minisblack", "resolution": (1e7 / 4, 1e7 / 4), "resolutionunit": 3}
    tifffile.imwrite(images / "a.tif", blobs((60, 70)), **known)
    tifffile.imwrite(images / "b.tif", blobs((60, 70)))
    tifffile.imwrite(images / "c.tif", blobs((60, 70), 1), **known)
    tifffile.imwrite(images / "d.tif", blobs((3, 60, 70)), metadata={"axes": "ZYX"}, **known)
    table, told = tmp_path / "out.csv", tmp_path / "out.json"
    assert main(["measure", str(images), "-o", str(table), "--json", str(told)]) == 4
    said = capsys.readouterr().err
    for word in ("failed: b", "--pixel-size", "failed: d", "a volume"):
        assert word in said
    rows = list(csv.reader(table.read_text().splitlines()))
    assert {len(row) for row in rows} == {len(rows[0])}
    assert {row[0] for row in rows[1:]} == {"a", "c"}
    document = json.loads(told.read_text())
    assert document["objects"]["class 1"]["count"] == len(rows) - 1
    assert [image["name"] for image in document["images"]] == ["a", "c"]


def test_classes_of_two_models_are_not_added_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    for name, classes in (("a", CLASSES), ("b", CLASSES[:2]), ("c", (CLASSES[0], CLASSES[2]))):
        make_result(folder / f"{name}.ome.zarr", (70, 80), classes=classes, probabilities=())
    told = tmp_path / "told.json"
    command = ["measure", str(folder), "--label-map", "1:1,2:0"]
    assert main([*command, "--json", str(told)]) == 4
    said = capsys.readouterr().err
    assert "failed: c: the classes of" in said
    assert "failed: b" not in said
    document = json.loads(told.read_text())
    assert [image["name"] for image in document["images"]] == ["a", "b"]


def test_classes_of_alike_names_have_a_picture_each(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", blobs((90, 90)) * (1 + (np.arange(90) > 45)).astype(np.uint8))
    command = ["measure", str(tmp_path / "a.tif"), "--classes", "matrix,gamma',gamma''"]
    assert main([*command, "--pictures", str(tmp_path / "look")]) == 0
    drawn = {path.name for path in (tmp_path / "look").iterdir()}
    assert {"gamma_.circularity.png", "gamma_-2.circularity.png"} <= drawn


def test_a_label_map_names_classes_that_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_result(tmp_path / "r.ome.zarr", (70, 80))
    assert main(["measure", str(tmp_path / "r.ome.zarr"), "--label-map", "1:1,2:7"]) == 2
    assert "names class 7, the classes are 0 to 2" in capsys.readouterr().err
    with pytest.raises(InputError, match="leave one of the two out"):
        measure(tmp_path / "r.ome.zarr", numbered=True, label_map="1:1")


def test_classes_and_sizes_may_be_numbers(tmp_path: Path) -> None:
    make_result(tmp_path / "r.ome.zarr", (70, 80))
    for numbers, words in (
        ({"only": 1}, {"only": "1"}),
        ({"only": [1, np.int64(2)], "min_size": np.int64(50)}, {"only": ("1", "2"), "min_size": "50px"}),
        ({"cells": 1, "min_size": 50.0}, {"cells": "1", "min_size": "50px"}),
        ({"layer": 2}, {"layer": "2"}),
        ({"fibres": (2, 1)}, {"fibres": ("2", "1")}),
    ):
        with measure(tmp_path / "r.ome.zarr", **numbers) as one, measure(tmp_path / "r.ome.zarr", **words) as other:
            assert one.objects.count == other.objects.count > 0
            for key, values in one.table().items():
                np.testing.assert_array_equal(values, other.table()[key])


def test_an_image_without_the_last_class_has_none_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, most in (("a", 1), ("b", 2)):
        tifffile.imwrite(tmp_path / f"{name}.tif", np.arange(60, dtype=np.uint8).reshape(6, 10) // 10 % (most + 1))
    assert main(["measure", str(tmp_path)]) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith(("| a ", "| b "))]
    assert [row[-2].strip() for row in rows] == ["0.00 %", "33.33 %"]


def test_what_is_left_out_is_no_room_for_objects(tmp_path: Path) -> None:
    classes = np.zeros((100, 100), np.uint8)
    classes[10:20, 10:20] = 1
    classes[50:] = 255
    with measure(classes, label_map="1:1,255:ignore") as survey:
        assert survey.objects.count == 1
        assert survey.density(1) == pytest.approx(1e6 / 5000)
        assert survey.fractions[1].share == pytest.approx(100 / 5000)
    with measure(classes, label_map="1:1,255:ignore", pixel_size_nm=(10.0, 20.0)) as survey:
        assert survey.density(1) == pytest.approx(1 / (5000 * 0.01 * 0.02))


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.2, 0.5, 0.8]), st.booleans())
def test_nothing_is_rounder_than_a_disc(seed: int, share: float, flat: bool) -> None:
    rng = np.random.default_rng(seed)
    classes = (rng.random((20, 20) if flat else (6, 9, 9)) < share).astype(np.uint8)
    size = (1.0, 1.0) if flat else (1.0, 1.0, 1.0)
    objects = find_objects(ArrayPlanes(classes), connectivity=1, pixel_size=size)
    shape = ArrayPlanes(classes).shape
    for records in objects.records():
        found = measure_shapes(records, shape, None)
        edge = boundary(records["sums"], np.ones(3), flat)
        area = records["sums"][:, 0]
        plain = 4 * np.pi * area / edge**2 if flat else np.cbrt(36 * np.pi * area**2.0) / edge
        np.testing.assert_allclose(found["circularity" if flat else "sphericity"], np.minimum(plain, 1), rtol=1e-12)


def test_digital_discs_are_round() -> None:
    """The perimeter of a disc is right on average from 50 pixels on; circularity is near 1."""
    rng = np.random.default_rng(0)
    for radius, least in ((2, 0.97), (4, 0.98), (10, 0.99)):
        edges, found = [], []
        for _ in range(60):
            y, x = np.mgrid[: 2 * radius + 5, : 2 * radius + 5] - radius - 2 - rng.random((2, 1, 1)) + 0.5
            objects = find_objects(ArrayPlanes((y**2 + x**2 <= radius**2).astype(np.uint8)))
            told = measure_shapes(next(objects.records()), objects.labels.shape, None)
            edges.append(told["perimeter_px"][0] / (2 * np.pi * radius))
            found.append(told["circularity"][0])
        assert np.mean(edges) == pytest.approx(1, abs=0.03 if radius < 4 else 0.01)
        assert least < np.mean(found) <= 1


@pytest.mark.parametrize("text", ["200nm", "200nm3", "3um", "50px3", "0.5mm3", "5nm²²"])
def test_a_length_is_no_area(text: str) -> None:
    with pytest.raises(InputError, match="50px"):
        parse_size(text, (1.0, 2.0, 2.0), 2)


@pytest.mark.parametrize(("text", "axes", "pixels"), [("8nm²", 2, 2), ("50 px2", 2, 50), ("8nm³", 3, 2), ("7", 3, 7)])
def test_powers_are_those_of_the_axes(text: str, axes: int, pixels: int) -> None:
    assert parse_size(text, (1.0, 2.0, 2.0), axes) == pixels


@pytest.mark.parametrize("size", [(1.0, 1.0), (2.0, 1.0), (1.0, 3.0)])
@pytest.mark.parametrize("degrees", [10, 30, 40, 44, 46, 60, 80])
def test_a_tilted_layer_is_as_thick_where_the_image_ends(size: tuple[float, float], degrees: float) -> None:
    y, x = (np.mgrid[:400, :600] - np.array([200, 300])[:, None, None]) * np.array(size)[:, None, None]
    tilt = np.deg2rad(degrees)
    band = (np.abs(y * np.cos(tilt) - x * np.sin(tilt)) <= 20).astype(np.uint8)
    layer = measure_layer(ArrayPlanes(band), [1], size_nm=size, grid=(1, 64))
    assert layer.mean == pytest.approx(40, rel=0.005)
    assert layer.spread < 2
    upright = measure_layer(ArrayPlanes(np.ascontiguousarray(band.T)), [1], size_nm=size[::-1])
    assert upright.mean == pytest.approx(layer.mean)
    assert upright.cut == layer.cut


@pytest.mark.parametrize("asked", [{"layer": ("1",)}, {"fibres": ("1", "2")}])
def test_what_is_of_planes_is_refused_before_a_volume_is_read(asked: dict[str, Any]) -> None:
    labels = (np.indices((4, 50, 50)).sum(axis=0) // 40).astype(np.uint8)
    done: list[Any] = []
    with pytest.raises(InputError, match=r"measured in a plane.*`tilelab convert .* slice.tif --region 2:3,:,:`"):
        measure(labels, progress=lambda *pixels: done.append(pixels), **asked)
    assert done == []


def test_percentiles_of_a_layer_are_of_its_length() -> None:
    """A steep part has few columns and much length."""
    x = np.arange(1000)
    middle = np.where(x < 600, 100.0, 100 + 1.5 * (x - 600.0))
    high = np.where(x < 600, 20.0, 30 * np.hypot(1, 1.5)) / 2
    layer = measure_layer(ArrayPlanes((np.abs(np.arange(800)[:, None] - middle) < high).astype(np.uint8)), [1])
    thin = 600 / (600 + 400 * np.hypot(1, 1.5))  # 0.45 of the length, 0.6 of the columns
    assert layer.percentile(100 * thin - 5) < 22
    assert layer.percentile(100 * thin + 5) > 28
    assert layer.lengths.sum() == pytest.approx(layer.length)


def test_a_layer_along_the_edge_is_measured_as_it_is_seen() -> None:
    band = np.zeros((60, 200), np.uint8)
    band[:12] = 1
    layer = measure_layer(ArrayPlanes(band), [1])
    assert (layer.mean, layer.cut, layer.covered, len(layer.position)) == (12, 1, 1, 200)
    band[:3, 50:] = 0
    layer = measure_layer(ArrayPlanes(band), [1])
    assert (layer.cut, layer.position[0]) == (0.25, 50)
    assert layer.mean == pytest.approx(9, rel=0.01)


def test_an_axon_without_myelin_has_no_g_ratio(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    y, x = np.ogrid[:80, :160]
    near, far = (np.hypot(y - 40, x - middle) for middle in (40, 120))
    classes = np.where((near < 15) | (far < 15), 2, np.where(near < 25, 1, 0)).astype(np.uint8)
    with measure(classes, fibres=("2", "1"), only=("2",)) as survey:
        table = survey.table()
    assert table["g_ratio"][0] == pytest.approx(0.6, rel=0.02)
    assert table["sheath_area_px2"][1] == 0
    for name in ("g_ratio", "sheath_thickness_px", "fibre_diameter_px"):
        assert np.isnan(table[name][1])
    tifffile.imwrite(tmp_path / "a.tif", classes)
    assert main(["measure", str(tmp_path / "a.tif"), "--fibres", "2,1", "--class", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["fibres"]["class 2"]
    assert (told["count"], told["without_sheath"]) == (1, 1)
    assert told["mean_g_ratio"] == pytest.approx(table["g_ratio"][0])
