"""Objects and their measures: whatever the cut, equal to what SciPy and slow, obvious code find on the whole image."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Picture
from scipy import ndimage, spatial

from tilelab.cli import main
from tilelab.errors import InputError, PlanError
from tilelab.geometry import Box
from tilelab.io import open_image
from tilelab.kernels.objects.runs import reference_label
from tilelab.kernels.pyramid import halve_mode
from tilelab.measure import Question, measure
from tilelab.measure.components import RECORD, ArrayPlanes, find_objects
from tilelab.measure.fractions import BlockCounts, student_quantile
from tilelab.measure.neighbours import nearest_distances
from tilelab.measure.shapes import measure_shapes
from tilelab.measure.sizes import parse_size
from tilelab.measure.survey import Survey


def find(classes: Any, **options: Any) -> tuple[Any, Any]:
    """Numbers and records of the objects of an array."""
    objects = find_objects(ArrayPlanes(classes), **options)
    numbers = objects.read(Box.whole(objects.labels.shape)).reshape(classes.shape)
    return numbers, np.concatenate([np.empty(0, RECORD), *objects.records()])


def label_by_scipy(classes: Any, connectivity: int) -> Any:
    """Objects of every class, numbered by their first pixels in raster order."""
    structure = ndimage.generate_binary_structure(classes.ndim, connectivity)
    found = np.zeros(classes.shape, np.int64)
    for label in np.unique(classes[classes > 0]):
        mine, _ = ndimage.label(classes == label, structure)
        found[mine > 0] = mine[mine > 0] + found.max()
    values, first, inverse = np.unique(found, return_index=True, return_inverse=True)
    order = np.empty(len(values), np.int64)
    order[np.argsort(np.where(values > 0, first, -1))] = np.arange(len(values)) + (0 if 0 in values else 1)
    return order[inverse].reshape(classes.shape)


@st.composite
def images(draw: st.DrawFn) -> Any:
    depth = draw(st.sampled_from([1, 1, 2, 5]))
    shape = (depth, draw(st.integers(1, 24)), draw(st.integers(1, 24)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    classes = (rng.random(shape) < draw(st.sampled_from([0.3, 0.6, 0.9]))) * rng.integers(1, 3, shape)
    grown = ndimage.maximum_filter(classes, size=(1, 2, 2)) if draw(st.booleans()) else classes
    return (grown[0] if depth == 1 else grown).astype(np.uint8)


@settings(max_examples=25)
@given(images(), st.integers(1, 3))
def test_objects_are_those_of_scipy_by_twelve_ways_of_cutting(classes: Any, connectivity: int) -> None:
    connectivity = min(connectivity, classes.ndim)
    truth = label_by_scipy(classes, connectivity)
    np.testing.assert_array_equal(truth, reference_label(classes, connectivity))
    image = ArrayPlanes(classes.astype(np.uint16) * 300 + np.arange(classes.shape[-1]).astype(np.uint16))
    depth, height = ArrayPlanes(classes).shape[:2]
    bytes_of = set()
    for planes, rows, threads in product((1, 2, depth), (1, 3), (1, 2)):  # 12 ways
        options: dict[str, Any] = {"grid": (planes, min(rows, height)), "threads": threads, "image": image}
        numbers, records = find(classes, connectivity=connectivity, **options)
        np.testing.assert_array_equal(numbers, truth)
        bytes_of.add(records.tobytes())
    numbers, records = find(classes, connectivity=connectivity, grid=(depth, height), image=image)
    assert {records.tobytes()} == bytes_of
    assert len(records) == truth.max()


@settings(max_examples=25)
@given(images(), st.integers(2, 9))
def test_small_objects_have_no_number(classes: Any, least: int) -> None:
    truth = label_by_scipy(classes, 1)
    sizes = np.bincount(truth.ravel())
    kept = [k for k in range(1, len(sizes)) if sizes[k] >= least]
    numbers, records = find(classes, min_pixels=least, grid=(1, 2))
    expected = np.zeros_like(truth)
    for number, old in enumerate(kept, start=1):
        expected[truth == old] = number
    np.testing.assert_array_equal(numbers, expected)
    assert len(records) == len(kept)


def crofton(mask: Any) -> float:
    """Perimeter from how often lines in four directions enter a mask."""
    padded = np.pad(mask.astype(int), 1)
    enters = [
        (np.diff(padded, axis=1) == 1).sum(),
        (np.diff(padded, axis=0) == 1).sum(),
        (padded[1:, 1:] - padded[:-1, :-1] == 1).sum() / math.sqrt(2),
        (padded[1:, :-1] - padded[:-1, 1:] == 1).sum() / math.sqrt(2),
    ]
    return float(math.pi / 4 * sum(enters))


def check_measures(classes: Any, connectivity: int) -> None:
    numbers, records = find(classes, connectivity=connectivity, grid=(1, 3), image=ArrayPlanes(classes * 7))
    found = measure_shapes(records, (1, *classes.shape), None)
    for i in range(min(len(records), 40)):
        mask = numbers == i + 1
        y, x = np.nonzero(mask)
        assert found["area_px"][i] == len(y)
        assert (found["y0"][i], found["x1"][i]) == (y.min(), x.max() + 1)
        np.testing.assert_allclose((found["y_px"][i], found["x_px"][i]), (y.mean(), x.mean()), rtol=1e-12)
        np.testing.assert_allclose(found["perimeter_px"][i], crofton(mask), rtol=1e-3)
        values, vectors = np.linalg.eigh(np.cov(np.stack([y, x]), bias=True).reshape(2, 2))
        long, short = 4 * math.sqrt(max(0, values[1])), 4 * math.sqrt(max(0, values[0]))
        np.testing.assert_allclose(found["major_axis_px"][i], long, rtol=1e-9, atol=1e-6)
        np.testing.assert_allclose(found["minor_axis_px"][i], short, rtol=1e-6, atol=1e-6)
        if long > 1.01 * short:
            tilt = math.degrees(math.atan2(-vectors[0, 1], vectors[1, 1])) % 180
            assert abs((found["orientation_deg"][i] - tilt + 90) % 180 - 90) < 1e-4
        diamonds = np.array([(v + dv, u + du) for v, u in zip(y, x, strict=True) for dv, du in _EDGES], float)
        hull = spatial.ConvexHull(diamonds)
        corners = diamonds[hull.vertices]
        np.testing.assert_allclose(found["feret_max_px"][i], spatial.distance.pdist(corners).max(), rtol=1e-9)
        widths = [np.ptp(corners @ equation[:2]) for equation in hull.equations]
        np.testing.assert_allclose(found["feret_min_px"][i], min(widths), rtol=1e-9)
        grid = np.stack(np.meshgrid(np.arange(classes.shape[0]), np.arange(classes.shape[1]), indexing="ij"), -1)
        inside = (grid @ hull.equations[:, :2].T + hull.equations[:, 2] <= 1e-9).all(axis=-1).sum()
        np.testing.assert_allclose(found["solidity"][i], len(y) / inside, rtol=1e-12)
        edges = (y.min() == 0, x.min() == 0, y.max() + 1 == classes.shape[0], x.max() + 1 == classes.shape[1])
        assert found["touches_border"][i] == any(edges)


_EDGES = ((-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5))


@settings(max_examples=25)
@given(images().filter(lambda classes: classes.ndim == 2), st.integers(1, 2))
def test_measures_are_those_of_obvious_code(classes: Any, connectivity: int) -> None:
    check_measures(classes, connectivity)


@pytest.mark.parametrize("name", ["superalloy", "axon", "coating"])
def test_measures_of_hand_drawn_masks(real_data: Path, name: str) -> None:
    mask = np.array(Picture.open(min((real_data / name / "val" / "masks").iterdir())))[200:360, 100:300]
    check_measures(np.ascontiguousarray(mask), 1)


def test_second_moments_are_exact_far_from_the_origin() -> None:
    """A bar at the end of a row of a million pixels has the axes that it has at the beginning."""
    far = np.zeros((3, 1_000_000), np.uint8)
    far[1, 999_980:999_990] = 1
    far[1, 10:20] = 1
    records = find(far)[1]
    found = measure_shapes(records, (1, *far.shape), None)
    assert found["major_axis_px"][0] == found["major_axis_px"][1]
    with pytest.raises(PlanError, match="at most 1,500,000"):
        find(np.zeros((1, 1_600_000), np.uint8))


def test_surface_and_axes_of_an_ellipsoid_whatever_the_voxel() -> None:
    for size in ((1.0, 1.0, 1.0), (2.0, 1.0, 1.0)):
        a, b, c = 24.0, 30.0, 36.0  # in nm
        extent = [round(2 * r / s) + 6 for r, s in zip((a, b, c), size, strict=True)]
        z, y, x = np.ogrid[tuple(slice(n) for n in extent)]
        scaled = [(v - (n - 1) / 2) * s / r for v, n, s, r in zip((z, y, x), extent, size, (a, b, c), strict=True)]
        ball = (sum(v**2 for v in scaled) <= 1).astype(np.uint8)
        records = find(ball, connectivity=3, grid=(3, 7), pixel_size=size[1:])[1]
        found = measure_shapes(records, ball.shape, size)
        p = 1.6075  # Knud Thomsen's formula, good to 1.1 %
        surface = 4 * math.pi * (((a * b) ** p + (a * c) ** p + (b * c) ** p) / 3) ** (1 / p)
        assert found["volume_nm3"][0] == pytest.approx(4 / 3 * math.pi * a * b * c, rel=0.01)
        assert found["surface_nm2"][0] == pytest.approx(surface, rel=0.02)
        for name, axis in (("major", c), ("middle", b), ("minor", a)):
            assert found[f"{name}_axis_nm"][0] == pytest.approx(2 * axis, rel=0.01)


@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.sampled_from(["cloud", "line", "pile"]))
def test_nearest_distances_are_those_of_all_pairs(seed: int, count: int, form: str) -> None:
    rng = np.random.default_rng(seed)
    points = rng.random((count, 3)) * {"cloud": (9, 90, 90), "line": (0, 0, 1e6), "pile": (0, 2, 2)}[form]
    if form == "pile":
        points = np.floor(points)
    classes = rng.integers(1, 3, count).astype(np.uint8)
    apart = np.where(classes[:, None] == classes, spatial.distance.cdist(points, points), np.inf)
    np.fill_diagonal(apart, np.inf)
    expected = apart.min(axis=1) if count else np.empty(0)
    np.testing.assert_allclose(nearest_distances(points, classes), expected, rtol=1e-12)


@given(images())
def test_shares_are_counted_whatever_the_pieces(classes: Any) -> None:
    planes = ArrayPlanes(classes)
    counts = BlockCounts(planes.shape)
    for y in range(0, planes.shape[1], 5):
        for z in range(planes.shape[0]):
            box = Box((z, y, 0), (z + 1, min(planes.shape[1], y + 5), planes.shape[2]))
            counts.add(box, planes.read(box))
    np.testing.assert_array_equal(counts.totals, np.bincount(classes.ravel()))


def test_the_interval_holds_the_true_share_as_often_as_it_says() -> None:
    """Discs of 20 pixels thrown at random: of 60 images 95 % have the share of all within their interval."""
    rng = np.random.default_rng(0)
    held, shares = [], []
    for _ in range(60):
        seeds = rng.random((512, 512)) < 0.0004
        classes = (ndimage.distance_transform_edt(~seeds) < 20).astype(np.uint8)[32:-32, 32:-32]
        counts = BlockCounts((1, *classes.shape))
        counts.add(Box.whole((1, *classes.shape)), np.ascontiguousarray(classes)[None])
        held.append(counts.fractions()[1])
        shares.append(held[-1].share)
    true = float(np.mean(shares))
    inside = sum(one.low <= true <= one.high for one in held)
    assert 51 <= inside <= 60
    assert student_quantile(3) == pytest.approx(3.182, rel=0.01)
    assert student_quantile(30) == pytest.approx(2.042, rel=1e-3)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("z_factor", [1, 2])
def test_wide_labels_are_halved_as_narrow_ones(dtype: Any, z_factor: int) -> None:
    block = np.random.default_rng(3).integers(0, 4, (1, 4, 7, 9)).astype(np.uint8)
    wide = block.astype(dtype) * 250
    np.testing.assert_array_equal(halve_mode(wide, z_factor), halve_mode(block, z_factor).astype(dtype) * 250)


def test_sizes_have_units() -> None:
    assert parse_size("50", None, 2) == parse_size("50px", None, 2) == 50
    assert parse_size("200nm2", (1.0, 2.0, 5.0), 2) == 20
    assert parse_size("0.001um3", (10.0, 10.0, 10.0), 3) == 1000
    with pytest.raises(InputError, match="--pixel-size"):
        parse_size("200nm2", None, 2)
    with pytest.raises(InputError, match="is no size"):
        parse_size("large", None, 2)


@pytest.fixture
def discs(tmp_path: Path) -> Path:
    """Four discs of two classes in a TIFF with a pixel size, their micrograph beside."""
    y, x = np.mgrid[:300, :400]
    labels = np.zeros((300, 400), np.uint8)
    for cy, cx, radius, label in ((60, 60, 30, 1), (60, 200, 20, 2), (200, 100, 25, 1), (290, 300, 20, 2)):
        labels[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = label
    tifffile.imwrite(tmp_path / "discs.tif", labels, tile=(64, 64), resolution=(2e6, 2e6), resolutionunit="CENTIMETER")
    tifffile.imwrite(tmp_path / "grey.tif", (labels * 50 + 10).astype(np.uint8))
    return tmp_path / "discs.tif"


def table_of(path: Path) -> dict[str, list[str]]:
    lines = [line.split(",") for line in path.read_text().splitlines()]
    return {name: [line[i] for line in lines[1:]] for i, name in enumerate(lines[0])}


def test_the_command_writes_table_objects_and_pictures(discs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = discs.parent
    command = ["measure", str(discs), "--image", str(folder / "grey.tif"), "-o", str(folder / "t.csv")]
    command += ["--objects", str(folder / "o.ome.zarr"), "--json", str(folder / "s.json")]
    assert main([*command, "--pictures", str(folder / "p")]) == 0
    table = table_of(folder / "t.csv")
    assert table["class"] == ["class 1", "class 2", "class 1", "class 2"]
    assert table["touches_border"] == ["0", "0", "0", "1"]
    assert table["mean_intensity"] == ["60", "110", "60", "110"]
    for found, radius in zip(table["equivalent_diameter_nm"], (30, 20, 25), strict=False):
        assert float(found) == pytest.approx(2 * radius * 5, rel=0.01)  # 5 nm a pixel
    assert float(table["circularity"][0]) == pytest.approx(1, abs=0.03)
    assert float(table["nearest_nm"][0]) == pytest.approx(5 * math.hypot(140, 40), rel=1e-3)
    with open_image(folder / "o.ome.zarr", as_labels="integers") as image:
        assert image.dtype == np.uint32
        labels = tifffile.imread(discs)
        np.testing.assert_array_equal(image[:, :], label_by_scipy(labels, 1))
        assert image.pixel_size_nm == (5.0, 5.0)
    document = json.loads((folder / "s.json").read_text())
    assert document["objects"]["class 1"]["count"] == 2
    assert document["fractions"]["class 1"]["pixels"] == int((labels == 1).sum())
    assert (folder / "p" / "class_1.equivalent_diameter.png").is_file()
    assert "95 % interval" in capsys.readouterr().out


def test_the_command_says_what_it_does_not_know(discs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grey = str(discs.parent / "grey.tif")
    assert main(["measure", grey, "--label-map", "10:0,60:1,110:2"]) == 0
    assert "lengths are in pixels" in capsys.readouterr().err
    assert main(["measure", grey, "--label-map", "10:0,60:1,110:2", "--strict"]) == 2
    assert "--pixel-size" in capsys.readouterr().err
    assert main(["measure", grey]) == 2
    assert "--label-map" in capsys.readouterr().err
    assert main(["measure", str(discs), "-o", str(discs)]) == 2
    assert main(["measure", str(discs), "--objects", str(discs.parent / "o.png")]) == 2
    assert main(["measure", str(discs), "-o", str(discs.parent / "o.xls")]) == 2
    assert main(["measure", str(discs), "--connectivity", "3"]) == 2
    assert main(["measure", str(discs), "--class", "7"]) == 0
    assert main(["measure", str(discs), "--class", "disc"]) == 2


def test_a_folder_is_measured_together(discs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = discs.parent / "many"
    folder.mkdir()
    labels = tifffile.imread(discs)
    for name, part in (("a", labels[:150]), ("b", labels[150:])):
        tifffile.imwrite(folder / f"{name}.tif", part)
    assert main(["measure", str(folder), "-o", str(folder.parent / "t.csv"), "--pixel-size", "5"]) == 0
    assert table_of(folder.parent / "t.csv")["image"] == ["a", "a", "b", "b"]
    assert "spread between 2 images" in capsys.readouterr().out


def test_from_python(discs: Path) -> None:
    survey: Survey = measure(discs, Question(only=("1",), min_size="50000nm2"))
    assert survey.size_nm == (1.0, 5.0, 5.0)
    assert survey.table()["area_px"].min() >= 2000
    assert len(survey.fractions) == 3
    assert sum(one.share for one in survey.fractions) == pytest.approx(1)
    assert survey.density(survey.objects.count) == pytest.approx(survey.objects.count / (1.5 * 2))
    survey.close()
