"""Objects and their measures: whatever the cut, equal to what SciPy and slow, obvious code find on the whole image."""

from __future__ import annotations

import heapq
import json
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Picture
from scipy import ndimage, spatial

import tilelab
from tests.result_files import make_result
from tilelab.cli import main
from tilelab.errors import InputError, PlanError
from tilelab.evaluation.label_map import LabelMap
from tilelab.evaluation.labels import open_labels
from tilelab.geometry import Box
from tilelab.io import convert_image, open_image
from tilelab.io.results.png import write_png
from tilelab.io.results.precomputed import write_precomputed
from tilelab.io.results.tiff import write_tiff
from tilelab.kernels.objects import front
from tilelab.kernels.objects.convex import find_hull
from tilelab.kernels.objects.parting import find_lines, squared_distances
from tilelab.kernels.objects.runs import reference_label
from tilelab.kernels.objects.solids import diameters_of
from tilelab.kernels.objects.sums import PAIRS
from tilelab.kernels.pyramid import halve_mode
from tilelab.measure import Question, measure
from tilelab.measure.components import ArrayPlanes, find_objects
from tilelab.measure.fibres import find_sheaths
from tilelab.measure.fractions import BlockCounts, student_quantile
from tilelab.measure.holes import Filled
from tilelab.measure.layers import _slopes, measure_layer
from tilelab.measure.neighbours import nearest_distances
from tilelab.measure.opening import Opened, open_square
from tilelab.measure.parting import Parted
from tilelab.measure.shapes import STEPS, measure_shapes
from tilelab.measure.sizes import parse_size
from tilelab.measure.spool import RECORD
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
        records = find(ball, connectivity=3, grid=(3, 7), pixel_size=size)[1]
        found = measure_shapes(records, ball.shape, size)
        p = 1.6075  # Knud Thomsen's formula, good to 1.1 %
        surface = 4 * math.pi * (((a * b) ** p + (a * c) ** p + (b * c) ** p) / 3) ** (1 / p)
        assert found["volume_nm3"][0] == pytest.approx(4 / 3 * math.pi * a * b * c, rel=0.01)
        assert found["surface_nm2"][0] == pytest.approx(surface, rel=0.02)
        for name, axis in (("major", c), ("middle", b), ("minor", a)):
            assert found[f"{name}_axis_nm"][0] == pytest.approx(2 * axis, rel=0.01)
        assert found["feret_max_nm"][0] == pytest.approx(2 * c, rel=0.02)
        assert found["feret_min_nm"][0] == pytest.approx(2 * a, rel=0.03)
        assert found["solidity"][0] > 0.95


@settings(max_examples=15)
@given(images().filter(lambda classes: classes.ndim == 3), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_hulls_of_volumes_are_those_of_scipy_whatever_the_cut(classes: Any, connectivity: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    numbers, whole = find(classes, connectivity=connectivity, grid=classes.shape[:2], pixel_size=(1.5, 0.5, 0.7))
    for _ in range(3):
        grid = tuple(int(rng.integers(1, n + 1)) for n in classes.shape[:2])
        with mock.patch.object(front, "_MOST_CORNERS", int(rng.integers(0, 20))):
            cut = find(classes, connectivity=connectivity, grid=grid, pixel_size=(1.5, 0.5, 0.7))[1]
        assert cut.tobytes() == whole.tobytes()
    for i in rng.permutation(len(whole))[:6]:
        voxels = np.argwhere(numbers == i + 1)
        steps = np.concatenate([np.eye(3), -np.eye(3)]) / 2
        middles = (voxels[:, None] + steps).reshape(-1, 3)
        hull = spatial.ConvexHull(middles)
        corners = middles[hull.vertices] * (1.5, 0.5, 0.7)
        most, least, pixels = whole["shape"][i]
        np.testing.assert_allclose(most, spatial.distance.pdist(corners).max(), rtol=1e-9)
        normals = spatial.ConvexHull(corners).equations[:, :3]
        assert least <= np.ptp(corners @ normals.T, axis=0).min() * (1 + 1e-9)
        ways = rng.normal(size=(2000, 3))
        assert least <= np.ptp(corners @ (ways / np.linalg.norm(ways, axis=1)[:, None]).T, axis=0).min() * (1 + 1e-9)
        at = np.stack(np.meshgrid(*map(np.arange, classes.shape), indexing="ij"), -1).reshape(-1, 3)
        assert pixels == (at @ hull.equations[:, :3].T + hull.equations[:, 3] <= 1e-9).all(axis=1).sum()


@given(st.integers(0, 2**32 - 1), st.integers(5, 200), st.integers(2, 12))
def test_a_hull_has_its_corners_and_no_other_point(seed: int, count: int, side: int) -> None:
    rng = np.random.default_rng(seed)
    points = np.unique(np.concatenate([np.eye(4, 3, dtype=np.int64), rng.integers(0, side, (count, 3))]), axis=0)
    corners, faces = find_hull(points)
    truth = spatial.ConvexHull(points)
    volume = sum(np.linalg.det((corners[face] - corners[0]).astype(float)) for face in faces) / 6
    assert abs(volume) == pytest.approx(truth.volume, rel=1e-9)
    assert len(faces) == 2 * len(corners) - 4  # Euler: it is closed
    for i in range(len(corners)):
        normals = np.unique(np.round(truth.equations[abs(truth.equations @ [*corners[i], 1]) < 1e-9], 9), axis=0)
        assert np.linalg.matrix_rank(normals[:, :3], 1e-6) == 3  # planes that meet in a point
    shuffled = find_hull(corners)
    np.testing.assert_array_equal(shuffled[1], faces)


def test_a_large_object_in_a_volume_takes_memory_for_its_hull() -> None:
    """A screw through 400 planes: of each plane's corners few are the hull's."""
    z, y, x = np.ogrid[:400, :40, :40]
    screw = ((y - 20 - 10 * np.sin(z / 9)) ** 2 + (x - 20 - 10 * np.cos(z / 9)) ** 2 < 64).astype(np.uint8)
    most = 0
    finish = front.Front._finish

    def watch(self: Any) -> Any:
        nonlocal most
        done = finish(self)
        most = max(most, sum(len(points) for _, points in self._corners))
        return done

    with mock.patch.object(front.Front, "_finish", watch):
        _, records = find(screw, grid=(8, 40))
    assert most < 4 * 256
    with mock.patch.object(front, "_MOST_CORNERS", 1 << 30):
        assert find(screw, grid=(8, 40))[1].tobytes() == records.tobytes()


def test_the_least_width_can_lie_between_two_edges() -> None:
    """A regular tetrahedron is a / sqrt(2) wide from edge to edge, 0.816 a from face to corner."""
    corners, faces = find_hull(np.array([[0, 0, 0], [0, 10, 10], [10, 0, 10], [10, 10, 0], [4, 4, 4], [5, 5, 0]]))
    assert (len(corners), len(faces)) == (4, 4)
    most, least = diameters_of(corners, faces, np.ones(3))
    assert most == pytest.approx(10 * math.sqrt(2))
    assert least == pytest.approx(10)


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


@pytest.mark.parametrize("suffix", [".ome.tif", ".png", ".precomputed"])
def test_files_made_of_a_result_keep_the_names_of_its_classes(suffix: str, tmp_path: Path) -> None:
    made = make_result(tmp_path / "r.ome.zarr", (70, 103))
    out = tmp_path / f"r{suffix}"
    {".ome.tif": write_tiff, ".png": write_png, ".precomputed": write_precomputed}[suffix](made.path, out)
    found = open_labels(out)
    assert found.classes == made.classes
    found.close()


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
    assert "blocks of up to" in capsys.readouterr().out
    (folder / "broken.tif").write_bytes(b"II*\0 and no more")
    assert main(["measure", str(folder), "--pixel-size", "5"]) == 4
    assert "failed: broken" in capsys.readouterr().err
    (folder / "broken.tif").unlink()
    for name in ("c", "d"):
        tifffile.imwrite(folder / f"{name}.tif", labels)
    assert main(["measure", str(folder), "--classes", "rest,disc,ring", "--class", "disc"]) == 0
    out = capsys.readouterr().out
    assert "spread between 4 images" in out
    assert "| disc " in out


def test_from_python(discs: Path) -> None:
    survey: Survey = tilelab.measure.measure(discs, Question(min_size="9px"), only=("1",), min_size="50000nm2")
    assert survey.size_nm == (1.0, 5.0, 5.0)
    assert survey.table()["area_px"].min() >= 2000
    assert len(survey.fractions) == 3
    assert sum(one.share for one in survey.fractions) == pytest.approx(1)
    assert survey.density(survey.objects.count) == pytest.approx(survey.objects.count / (1.5 * 2))
    survey.close()


@pytest.mark.parametrize("reach", [1.0, 4.0, 2500.0])
def test_slopes_are_those_of_fitted_lines_however_wide_the_plane(reach: float) -> None:
    rng = np.random.default_rng(3)
    x = np.arange(300_000, dtype=np.float64)
    x = x[(rng.random(len(x)) < 0.9) & ((x < 100_000) | (x > 180_000))] * 3.0  # with gaps, in nm
    y = 0.25 * x + 40 * np.sin(x / 2000) + rng.normal(0, 0.1, len(x))
    found = _slopes(x, y, 3 * reach)
    for i in (0, 1, 777, len(x) // 3, len(x) // 2, len(x) - 2, len(x) - 1):
        here = np.abs(x - x[i]) <= 3 * reach + 1e-9
        u = x[here] - x[here].mean()
        expected = (u * y[here]).sum() / (u * u).sum() if len(u) > 1 else 0.0
        assert found[i] == pytest.approx(expected, abs=1e-5)
    assert (found != 0).mean() > 0.98


def test_a_tilted_wavy_layer_has_its_thickness_along_the_normal() -> None:
    x = np.arange(900)
    for tilt, wave in ((0.0, 0.0), (0.3, 0.0), (0.2, 30.0)):
        middle = 150 + tilt * x + wave * np.sin(x / 120)
        slope = tilt + wave / 120 * np.cos(x / 120)
        half = 20 * np.hypot(1, slope)  # 40 along the normal
        y = np.arange(600)[:, None]
        plane = ((y >= middle - half) & (y < middle + half)).astype(np.uint8)
        plane[300:302, 400:402] = 2  # of another class, which belongs to it
        plane[580:583, 10:13] = 1  # and a speck that is no layer
        for grid in ((1, 600), (1, 7)):
            layer = measure_layer(ArrayPlanes(plane), (1, 2), grid=grid)
            assert layer.axis == "x"
            assert layer.mean == pytest.approx(40, rel=0.01)
            assert layer.spread < 1.0
            assert layer.mean == pytest.approx(layer.area / layer.length)
        turned = measure_layer(ArrayPlanes(np.ascontiguousarray(plane.T)), (1, 2), size_nm=(3.0, 3.0))
        assert (turned.axis, turned.unit) == ("y", "nm")
        assert turned.mean == pytest.approx(3 * layer.mean)
    plane[100:103] = 1
    opened = measure_layer(ArrayPlanes(plane), (1, 2), opening=2)
    assert opened.mean == pytest.approx(40, rel=0.02)
    with pytest.raises(InputError, match="no layer of 3"):
        measure_layer(ArrayPlanes(plane), (3,))


@given(st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_opening_is_that_of_scipy(seed: int, radius: int) -> None:
    mask = (np.random.default_rng(seed).random((19, 23)) < 0.8).astype(np.uint8)
    square = np.ones((2 * radius + 1,) * 2)
    eroded = ndimage.grey_erosion(mask, footprint=square, mode="nearest")
    truth = ndimage.grey_dilation(eroded, footprint=square, mode="nearest")
    np.testing.assert_array_equal(open_square(mask, radius), truth)
    whole = Opened(ArrayPlanes(mask), (1,), radius)
    parts = [whole.read(Box((0, y, 0), (1, min(19, y + 4), 23)))[0] for y in range(0, 19, 4)]
    np.testing.assert_array_equal(np.concatenate(parts), truth)


def test_fibres_share_their_sheaths_at_half_the_way() -> None:
    """Two rings of known radii that touch: every pixel of the sheath belongs to the axon inside it."""
    y, x = np.mgrid[:200, :300]
    plane = np.zeros((200, 300), np.uint8)
    rings = ((100, 80, 30, 50), (100, 190, 42, 60))
    for cy, cx, _, outer in rings:
        plane[np.hypot(y - cy, x - cx) <= outer] = 1
    for cy, cx, inner, _ in rings:
        plane[np.hypot(y - cy, x - cx) <= inner] = 2
    plane[5:9, 5:9] = 1  # a sheath without an axon
    found = set()
    for grid, reach in (((1, 200), 256), ((1, 50), 25), ((1, 7), 30)):
        objects = find_objects(ArrayPlanes(plane), only=(2,), grid=grid)
        fibres = find_sheaths(objects, 2, 1, reach)
        found.add((*fibres.sheath_px.tolist(), *fibres.cut.tolist(), fibres.alone_px))
        areas = np.concatenate([record["sums"][:, 0] for record in objects.records()])
        table = fibres.columns(slice(None), areas, np.ones(2, bool), (2.0, 2.0), "nm")
    assert len(found) == 1
    assert fibres.alone_px == 16
    by_number = sorted(rings, key=lambda ring: ring[0] - ring[2])
    for i, (_, _, inner, outer) in enumerate(by_number):
        assert table["g_ratio"][i] == pytest.approx(inner / outer, rel=0.01)
        assert table["sheath_thickness_nm"][i] == pytest.approx(2 * (outer - inner), rel=0.02)


def test_hand_drawn_masks_fed_as_results(real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command's numbers are those of the masks: oxide over its length, g-ratios by a slow way."""
    coating = real_data / "coating" / "val" / "masks"
    assert main(["measure", str(coating), "--layer", "1,2", "--json", str(tmp_path / "c.json")]) == 0
    for name, layer in json.loads((tmp_path / "c.json").read_text())["layers"].items():
        mask = np.array(Picture.open(coating / f"{name}.png")) > 0
        level = mask.sum() / mask.shape[1]  # per column, which a layer that lies level has for its thickness
        assert layer["mean_thickness_px"] == pytest.approx(level, rel=0.02)
    axon = min((real_data / "axon" / "val" / "masks").iterdir())
    mask = np.array(Picture.open(axon))[100:350, 100:350]
    Picture.fromarray(mask).save(tmp_path / "axon.png")
    command = ["measure", str(tmp_path / "axon.png"), "--fibres", "2,1", "--class", "2", "-o", str(tmp_path / "a.csv")]
    assert main(command) == 0
    numbers, count = ndimage.label(mask == 2)
    owners = nearest_inside(numbers, mask == 1)
    areas, sheaths = (np.bincount(n.ravel(), minlength=count + 1)[1:] for n in (numbers, owners * (mask == 1)))
    truth = np.sqrt(areas / (areas + sheaths))
    found = np.array(table_of(tmp_path / "a.csv")["g_ratio"], float)
    assert found.mean() == pytest.approx(truth.mean(), rel=0.01)
    assert np.percentile(np.abs(found / truth - 1), 90) < 0.02
    capsys.readouterr()


def nearest_inside(numbers: Any, inside: Any) -> Any:
    """Each pixel of `inside` with the number that is nearest by a way through it: Dijkstra, pixel by pixel."""
    owners = numbers.copy()
    todo = [(0.0, int(numbers[at]), at) for at in zip(*map(list, np.nonzero(numbers)), strict=True)]
    heapq.heapify(todo)
    done = np.zeros(numbers.shape, bool)
    while todo:
        length, owner, (y, x) = heapq.heappop(todo)
        if done[y, x]:
            continue
        done[y, x], owners[y, x] = True, owner
        for v, u in product((y - 1, y, y + 1), (x - 1, x, x + 1)):
            if 0 <= v < len(inside) and 0 <= u < inside.shape[1] and inside[v, u] and not done[v, u]:
                heapq.heappush(todo, (length + math.hypot(v - y, u - x), owner, (v, u)))
    return owners


@settings(max_examples=25)
@given(images(), st.integers(1, 2))
def test_holes_are_filled_by_what_encloses_them(classes: Any, connectivity: int) -> None:
    filled = Filled(ArrayPlanes(classes), connectivity, grid=(1, 3))
    found = filled.read(Box.whole(filled.shape)).reshape(classes.shape)
    faces = ndimage.generate_binary_structure(classes.ndim, 1)
    regions, count = ndimage.label(classes == 0, np.ones((3,) * classes.ndim) if connectivity == 1 else faces)
    expected, holes = classes.copy(), 0
    for i in range(1, count + 1):
        mask = regions == i
        at_edge = any(
            index.min() == 0 or index.max() + 1 == n for index, n in zip(np.nonzero(mask), mask.shape, strict=True)
        )
        around = np.unique(classes[ndimage.binary_dilation(mask, faces) & ~mask])
        if not at_edge and len(around) == 1:
            expected[mask], holes = around[0], holes + 1
    np.testing.assert_array_equal(found, expected)
    assert filled.count == holes


@settings(max_examples=25)
@given(images().filter(lambda classes: classes.ndim == 2), st.integers(1, 2), st.sampled_from([0.3, 1.0]))
def test_objects_part_along_the_same_lines_whatever_the_tile(classes: Any, connectivity: int, depth: float) -> None:
    distances = squared_distances(classes)
    for label in np.unique(classes[classes > 0]):
        if (classes != label).any():
            truth = ndimage.distance_transform_edt(classes == label) ** 2
            np.testing.assert_allclose(distances[classes == label], truth[classes == label])
    whole = find_lines(classes, depth, connectivity)
    parted = Parted(ArrayPlanes(classes), depth, connectivity, tile=(7, 9), halo=40)
    parts = [
        np.concatenate([parted.read(Box((0, y, x), (1, min(y + 5, h), min(x + 11, w))))[0] for x in range(0, w, 11)], 1)
        for h, w in [classes.shape]
        for y in range(0, h, 5)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), np.where(whole, 0, classes))
    structure = ndimage.generate_binary_structure(2, connectivity)
    for label in np.unique(classes[classes > 0]):  # no object vanishes, none is joined
        before, count = ndimage.label(classes == label, structure)
        after = ndimage.label((classes == label) & ~whole, structure)[0]
        assert set(before[after > 0]) == set(range(1, count + 1))


def test_touching_discs_part_and_walls_enclose_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    y, x = np.mgrid[:200, :300]
    discs = np.zeros((200, 300), np.uint8)
    for cy, cx, radius in ((100, 90, 50), (100, 170, 45), (60, 240, 40)):
        discs[np.hypot(y - cy, x - cx) < radius] = 1
    discs[90:110, 80:95] = 0  # and a hole
    Picture.fromarray(discs).save(tmp_path / "discs.png")
    command = ["measure", str(tmp_path / "discs.png"), "-o", str(tmp_path / "t.csv")]
    assert main(command) == 0
    assert len(table_of(tmp_path / "t.csv")["object"]) == 1
    assert main([*command, "--fill-holes", "--part", "2"]) == 0
    table = table_of(tmp_path / "t.csv")
    found = sorted(float(d) / 2 for d in table["equivalent_diameter_px"])
    assert found == pytest.approx([40, 45, 50], rel=0.05)
    assert f"{int(discs.sum()):,}" in capsys.readouterr().out  # the shares are those of what was drawn

    walls = np.zeros((120, 200), np.uint8)
    walls[:, 98:102] = walls[58:62] = 1
    walls[20:24, 98:102] = 0  # a gap
    Picture.fromarray(walls).save(tmp_path / "walls.png")
    command = ["measure", str(tmp_path / "walls.png"), "--cells", "1", "-o", str(tmp_path / "t.csv")]
    assert main(command) == 0
    assert table_of(tmp_path / "t.csv")["class"] == ["cell"] * 3
    assert main([*command, "--part", "3"]) == 0
    assert len(table_of(tmp_path / "t.csv")["class"]) == 4


def test_a_volume_of_a_region_keeps_its_place(tmp_path: Path) -> None:
    result = make_result(tmp_path / "r.ome.zarr", (5, 70, 90), "3d", origin_px=(2.0, 30.0, 40.0))
    labels = np.stack([result.labels[0][z] for z in range(5)])
    command = ["measure", str(tmp_path / "r.ome.zarr"), "-o", str(tmp_path / "t.csv"), "--connectivity", "3"]
    assert main([*command, "--objects", str(tmp_path / "o.ome.zarr")]) == 0
    truth = label_by_scipy(labels, 3)
    with open_image(tmp_path / "o.ome.zarr", as_labels="integers") as image:
        np.testing.assert_array_equal(image[:, :, :], truth)
        assert image.pixel_size_nm == (30.0, 4.0, 5.0)
        assert image.origin_px == (2.0, 30.0, 40.0)
    table = table_of(tmp_path / "t.csv")
    sizes = np.bincount(truth.ravel())[1:]
    assert [int(v) for v in table["volume_px"]] == sizes.tolist()
    np.testing.assert_allclose(np.array(table["volume_nm3"], float), sizes * 600.0)
    assert set(table["class"]) == {"a < b & ü", "tertiary"}


class _Pickling(ThreadPoolExecutor):
    """Threads that get what they do as other processes would."""

    def submit(self, work: Any, *args: Any, **_: Any) -> Any:
        return super().submit(lambda: pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(work))(*args))))  # noqa: S301


class _Client:
    """What `measure` needs of a Dask client."""

    def get_executor(self, *, pure: bool) -> Any:
        return _Pickling(2)

    def scheduler_info(self) -> Any:
        return {"workers": {"a": 0}}


def test_workers_open_the_files_themselves(discs: Path) -> None:
    question = Question(grid=(1, 37), part=1.0, pixel_size_nm=(3.0,))
    here, there = (measure(discs, question, image=discs.parent / "grey.tif", client=c) for c in (None, _Client()))
    for key, values in here.table().items():
        np.testing.assert_array_equal(there.table()[key], values)
    assert here.fractions == there.fractions
    np.testing.assert_array_equal(here.objects_image()[:, :], there.objects_image()[:, :])
    with pytest.raises(InputError, match="in one process"):
        measure(discs, Question(fill_holes=True), client=_Client())
    mapped = replace(question, label_map=LabelMap.parse("1:1,2:ignore"))
    with measure(discs, mapped) as one, measure(discs, mapped, client=_Client()) as other:
        assert one.fractions == other.fractions
        assert one.objects.count == other.objects.count
    here.close()
    there.close()


def test_workers_that_stay_read_what_is_there_now(tmp_path: Path) -> None:
    path, client = tmp_path / "labels.tif", _Client()
    for count in (1, 3):
        classes = np.zeros((60, 90), np.uint8)
        classes[10:20, [10 + 20 * i for i in range(count)]] = 1
        tifffile.imwrite(tmp_path / "new.tif", classes)
        (tmp_path / "new.tif").replace(path)
        with measure(path, Question(), client=client) as survey:
            assert survey.objects.count == count
    with pytest.raises(InputError, match="give their path"):
        measure(classes, Question(), client=client)


def test_numbers_that_are_there_cost_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "labels", tmp_path / "out"
    folder.mkdir()
    for name in ("a", "b"):
        tifffile.imwrite(folder / f"{name}.tif", np.eye(20, dtype=np.uint8))
    (out / "b.ome.zarr").mkdir(parents=True)
    assert main(["measure", str(folder), "--objects", str(out), "-o", str(tmp_path / "t.csv")]) == 2
    assert "b.ome.zarr exists" in capsys.readouterr().err
    assert not (out / "a.ome.zarr").exists()


@pytest.mark.slow
def test_two_workers_write_the_same_bytes(discs: Path) -> None:
    tables = [discs.parent / f"{n}.csv" for n in (1, 2)]
    for n, table in enumerate(tables, start=1):
        command = ["measure", str(discs), "--image", str(discs.parent / "grey.tif"), "-o", str(table)]
        assert main([*command, "--workers", str(n)]) == 0
    assert tables[0].read_bytes() == tables[1].read_bytes()


def test_objects_are_written_as_viewers_like_them(discs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = label_by_scipy(tifffile.imread(discs), 1)
    for name in ("o.ome.tif", "o.precomputed"):
        out = discs.parent / name
        command = ["measure", str(discs), "--objects", str(out)]
        assert main(command) == 0
        with open_image(out, as_labels="integers") as image:
            assert (image.dtype, image.pixel_size_nm) == (np.uint32, (5.0, 5.0))
            np.testing.assert_array_equal(image[:, :], truth)
        assert main(command) == 2
        assert main([*command, "--overwrite"]) == 0
    grey = str(discs.parent / "grey.tif")
    assert main(["convert", grey, str(discs.parent / "g.precomputed"), "--no-labels"]) == 2
    assert "--labels" in capsys.readouterr().err


def test_numbers_are_painted_side_by_side_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_result(tmp_path / "r.ome.zarr", (700, 900))
    written = []
    for cores in (1, 3):
        monkeypatch.setattr("tilelab.io.results.image_pyramid.core_count", lambda cores=cores: cores)
        with closing(measure(tmp_path / "r.ome.zarr", grid=(1, 64))) as survey:
            out = tmp_path / f"{cores}.ome.zarr"
            convert_image(survey.objects_image(), out, labels=True)
        files = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file() and "c" in path.parts)
        written.append({str(name): (out / name).read_bytes() for name in files})
    assert written[0] == written[1]
    assert len(written[0]) > 1


def test_a_result_that_lost_a_shard_is_neither_measured_nor_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "r.ome.zarr"
    make_result(result, (300, 400))
    assert main(["measure", str(result)]) == 0
    shards = [path for path in (result / "labels").rglob("*") if path.is_file() and "c" in path.parts]
    shards[0].unlink()
    capsys.readouterr()
    for command in (["measure", str(result)], ["eval", str(result), str(result)]):
        assert main(command) == 2
        assert "has lost data: 2 files with" in capsys.readouterr().err


def test_a_parquet_table_is_that_of_csv(discs: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    out = discs.parent / "t.parquet"
    for path in (out, discs.parent / "t.csv"):
        assert main(["measure", str(discs), "-o", str(path)]) == 0
    found, told = parquet.read_table(out).to_pydict(), table_of(discs.parent / "t.csv")
    assert list(found) == list(told)
    assert found["class"] == told["class"]
    np.testing.assert_allclose(found["perimeter_nm"], np.array(told["perimeter_nm"], float), rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 1, 1), (3, 20, 1)])
@pytest.mark.parametrize("value", [0, 1])
def test_the_smallest_and_the_emptiest(tmp_path: Path, shape: tuple[int, ...], value: int) -> None:
    np.save(tmp_path / "l.npy", np.full(shape, value, np.uint8))
    command = ["measure", str(tmp_path / "l.npy"), "-o", str(tmp_path / "t.csv"), "--json", str(tmp_path / "s.json")]
    command += ["--axes", "zyx"[-len(shape) :], "--pictures", str(tmp_path / "p"), "--fill-holes"]
    assert main([*command, "--objects", str(tmp_path / "o.ome.zarr")]) == 0
    table = table_of(tmp_path / "t.csv")
    assert table["object"] == ["1"] * value
    assert "touches_border" in table
    with open_image(tmp_path / "o.ome.zarr", as_labels="integers") as image:
        assert (image[...] == value).all()


@settings(max_examples=25)
@given(images(), st.integers(1, 3))
def test_pairs_are_those_of_shifted_masks(classes: Any, connectivity: int) -> None:
    """In all 13 directions, for objects that touch others of their class, and across every border of a block."""
    numbers, records = find(classes, connectivity=min(connectivity, classes.ndim), grid=(2, 3))
    numbers = numbers.reshape((-1, *classes.shape[-2:]))
    padded = np.pad(numbers, 1)
    for column, (dz, dy, dx) in enumerate(STEPS):
        partner = padded[1 + dz :, 1 + dy :, 1 + dx :][: numbers.shape[0], : numbers.shape[1], : numbers.shape[2]]
        pairs = np.bincount(numbers[(numbers == partner) & (numbers > 0)], minlength=len(records) + 1)[1:]
        np.testing.assert_array_equal(records["sums"][:, PAIRS + column], pairs)


def _stated(path: Path, classes: Any, told: dict[str, Any]) -> Path:
    """Labels as OME-Zarr whose metadata state `told`."""
    np.save(path.with_suffix(".npy"), np.asarray(classes, np.uint8))
    convert_image(path.with_suffix(".npy"), path, labels=True)
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"]["ome"]["image-label"] |= told
    (path / "zarr.json").write_text(json.dumps(document))
    return path


@pytest.mark.parametrize("key", ["name", "class"])
@pytest.mark.parametrize("suffix", ["", ".ome.tif"])
def test_names_that_the_metadata_of_labels_state_are_those_of_the_classes(
    tmp_path: Path, key: str, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = np.zeros((40, 50), np.uint8)
    classes[5:15, 5:15], classes[20:30, 5:25], classes[5:12, 30:40] = 2, 3, 40
    properties = [{"label-value": 2, key: "axon"}, {"label-value": 40, key: "nucleus"}, {"label-value": "?"}, 7]
    told = {"properties": properties, "colors": [{"label-value": 2, "rgba": [255, 0, 9, 255]}]}
    path = _stated(tmp_path / "a.ome.zarr", classes, told)
    if suffix:
        path = Path(convert_image(path, tmp_path / f"a{suffix}")["path"])
    with closing(measure(path, Question())) as survey:
        names = {value: info.name for value, info in enumerate(survey.classes)}
        assert (names[0], names[1], names[2], names[3], names[40]) == (
            "class 0", "class 1", "axon", "class 3", "nucleus",
        )  # fmt: skip
        assert survey.classes[2].color == "#ff0009"
        assert len(names) == 41
        found = {str(name) for part in survey.columns() for name in part["class"]}
    assert found == {"axon", "class 3", "nucleus"}
    for one in ("axon", "2"):
        with closing(measure(path, Question(only=(one,)))) as survey:
            assert survey.objects.count == 1
    with closing(measure(path, Question(classes=tuple("abcd"), label_map=LabelMap.parse("40:1,2:2,3:3")))) as survey:
        assert [info.name for info in survey.classes] == [*"abcd"]
    with pytest.raises(InputError, match="no class 'soma' that objects can be of: they are 2 axon, 40 nucleus, number"):
        measure(path, Question(only=("soma",)))


def test_names_of_objects_are_not_those_of_classes(tmp_path: Path) -> None:
    classes = np.zeros((40, 50), np.uint8)
    classes[5:15, 5:15], classes[20:30, 5:25] = 1, 2
    cells = [{"label-value": 1, "class": "cell"}, {"label-value": 2, "class": "cell"}]
    for number, told in enumerate((cells, [], "none", [{}], [{"label-value": 300, "name": "cell"}])):
        path = _stated(tmp_path / f"{number}.ome.zarr", classes, {"properties": told})
        with closing(measure(path, Question())) as survey:
            assert [info.name for info in survey.classes] == ["class 0", "class 1", "class 2"]
