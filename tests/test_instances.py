"""Objects that a network tells apart, by centres and offsets or by numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import tilelab
from tests.test_measure import table_of
from tilelab.cli import main
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io import open_image
from tilelab.io.results.ome_zarr import OmeZarrSink
from tilelab.io.results.sink import Finished
from tilelab.io.zarr.layout import Layout
from tilelab.measure import Question, measure
from tilelab.measure.components import ArrayPlanes, find_objects
from tilelab.measure.instances import Numbered, Voted
from tilelab.spec import ClassInfo


def panoptic_deeplab(classes: Any, heat: Any, offsets: Any) -> Any:
    """The grouping, pixel by pixel: number of the centre from 1, 0 where there is no class."""
    peaks = (heat >= 0.1) & (heat == ndimage.maximum_filter(heat, 7, mode="constant", cval=-1))
    centres: list[Any] = []
    for y, x in np.argwhere(peaks):  # of equal ones within a window the first
        beside = [(v, u) for v, u in np.argwhere(peaks) if (v, u) < (y, x) and max(abs(v - y), abs(u - x)) <= 3]
        if not any(heat[at] == heat[y, x] for at in beside):
            centres.append((y, x))
    owners = np.zeros(classes.shape, np.int64)
    for y, x in np.argwhere(classes > 0):
        if centres:
            target = np.array([y, x]) + offsets[:, y, x].astype(np.float64)
            owners[y, x] = 1 + int(np.argmin(((np.array(centres) - target) ** 2).sum(axis=1)))
    return owners


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.integers(1, 7))
def test_votes_are_panoptic_deeplabs(seed: int, height: int, width: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    classes = (rng.random((height, width)) < 0.8) * rng.integers(1, 3, (height, width))
    heat = np.round(ndimage.gaussian_filter(rng.random((height, width)), 2), 2).astype(np.float32)
    offsets = rng.normal(0, 6, (2, height, width)).round(1).astype(np.float32)
    expected = panoptic_deeplab(classes, heat, offsets)
    planes = ArrayPlanes(classes.astype(np.uint8))
    maps = [open_image(array, axes=axes) for array, axes in ((heat[None], "cyx"), (offsets, "cyx"))]
    voted = Voted(planes, *maps)
    parts = [voted.read(Box((0, y, 0), (1, min(height, y + rows), width)))[0] for y in range(0, height, rows)]
    found = np.concatenate(parts)
    np.testing.assert_array_equal(found, np.where(expected > 0, 256 * expected + classes, 0))
    numbers = {
        find_objects(voted, grid=grid).read(Box.whole(planes.shape)).tobytes() for grid in ((1, height), (1, rows))
    }
    assert len(numbers) == 1


def two_discs() -> tuple[Any, Any, Any]:
    """Two discs that touch, with the maps of a network that knows their centres."""
    y, x = np.mgrid[:80, :120].astype(np.float32)
    classes, heat = np.zeros((80, 120), np.uint8), np.zeros((80, 120), np.float32)
    offsets = np.zeros((2, 80, 120), np.float32)
    for cy, cx in ((40, 35), (40, 84)):
        disc = np.hypot(y - cy, x - cx) <= 25
        classes[disc] = 1
        heat = np.maximum(heat, np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 60))
        offsets[:, disc] = np.stack([cy - y, cx - x])[:, disc]
    return classes, heat, offsets


def test_a_result_with_maps_is_measured_by_its_votes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes, heat, offsets = two_discs()
    layout = Layout.fit(classes.shape)
    chosen: dict[str, Any] = {"classes": (ClassInfo("rest", "#000000"), ClassInfo("mitochondrion", "#ff8800"))}
    sink = OmeZarrSink.create(
        tmp_path / "m.ome.zarr", layout, maps=[("ctr_hmp", 1), ("offsets", 2)], pixel_size_nm=(8.0, 8.0), **chosen
    )
    rows = Finished(classes[None], None, None, {"ctr_hmp": heat[None, None], "offsets": offsets[:, None]})
    sink.writer(Box.whole(layout.shape), 0, 1).write(rows)
    sink.finalize()
    command = ["measure", str(tmp_path / "m.ome.zarr"), "-o", str(tmp_path / "t.csv")]
    assert main(command) == 0
    assert len(table_of(tmp_path / "t.csv")["object"]) == 1
    assert main([*command, "--votes", "ctr_hmp,offsets", "--objects", str(tmp_path / "o.ome.zarr")]) == 0
    table = table_of(tmp_path / "t.csv")
    assert table["class"] == ["mitochondrion"] * 2
    assert [float(d) for d in table["equivalent_diameter_nm"]] == pytest.approx([400, 400], rel=0.02)
    with open_image(tmp_path / "o.ome.zarr", as_labels="integers") as image:
        assert set(np.unique(image[:, :])) == {0, 1, 2}
    assert main([*command, "--votes", "heat,offsets"]) == 2
    assert "it has ctr_hmp, offsets" in capsys.readouterr().err
    assert main([*command, "--votes", "ctr_hmp,offsets", "--part"]) == 2
    for other in (["--affinities", "offsets=0,1;1,0"], ["--numbered"]):
        assert main([*command, "--votes", "ctr_hmp,offsets", *other]) == 2
        assert f"--votes and {other[0]} tell objects apart in different ways: give one" in capsys.readouterr().err
    for wish, words in (({"fibres": ("mitochondrion",)}, "--fibres mitochondrion: name two"),
                        ({"votes": "ctr_hmp"}, "--votes ctr_hmp: name two, two maps")):  # fmt: skip
        with pytest.raises(InputError, match=words):
            tilelab.measure(tmp_path / "m.ome.zarr", **wish)


def test_axons_that_are_told_apart_have_their_sheaths(tmp_path: Path) -> None:
    inside, heat, offsets = two_discs()
    y, x = np.mgrid[:80, :120]
    near = np.minimum(np.hypot(y - 40, x - 35), np.hypot(y - 40, x - 84))
    classes = np.where(near <= 15, 2, inside).astype(np.uint8)
    layout = Layout.fit(classes.shape)
    known = tuple(map(ClassInfo, ("rest", "myelin", "axon"), ("#000000", "#00ff00", "#ff8800")))
    sink = OmeZarrSink.create(tmp_path / "a.ome.zarr", layout, maps=[("heat", 1), ("offsets", 2)], classes=known)
    rows = Finished(classes[None], None, None, {"heat": heat[None, None], "offsets": offsets[:, None]})
    sink.writer(Box.whole(layout.shape), 0, 1).write(rows)
    sink.finalize()
    plain, voted = (
        measure(tmp_path / "a.ome.zarr", fibres=("axon", "myelin"), only="axon", votes=votes)
        for votes in (None, ("heat", "offsets"))
    )
    assert plain.objects.count == voted.objects.count == 2
    for name in ("g_ratio", "sheath_area_px2", "sheath_thickness_px"):
        np.testing.assert_array_equal(voted.table()[name], plain.table()[name])
    assert voted.table()["g_ratio"] == pytest.approx([0.6, 0.6], rel=0.03)
    plain.close()
    voted.close()


def test_numbers_of_objects_are_measured_as_they_are(tmp_path: Path) -> None:
    classes, _, _ = two_discs()
    numbers = (classes.astype(np.uint32) * 70000) * np.where(np.arange(120) < 60, 1, 2).astype(np.uint32)
    tifffile.imwrite(tmp_path / "n.tif", numbers)
    survey = measure(tmp_path / "n.tif", Question(numbered=True))
    assert survey.objects.count == 2
    assert survey.fractions[1].pixels == int((classes == 1).sum())
    assert set(survey.table()["class"]) == {"object"}
    survey.close()
    with pytest.raises(InputError, match="no numbers of objects"):
        Numbered(open_image(np.zeros((4, 4), np.float32)))
