"""Results as OME-TIFF and PNG: the same pixels, streamed, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from PIL import Image as Picture
from result_files import CLASSES, make_result

from tilelab.errors import InputError, OutputError
from tilelab.evaluation.labels import open_labels
from tilelab.geometry import Box
from tilelab.io.results import tiff as tiff_out
from tilelab.io.results.png import check_png, read_png_info, write_png
from tilelab.io.results.tiff import read_tiff_info, write_tiff
from tilelab.kernels.pyramid import reference_halve_mean, reference_halve_mode


def test_a_plane_is_one_page_with_its_pyramid(tmp_path: Path) -> None:
    result = make_result(tmp_path / "r.ome.zarr", (1300, 1101))
    out = write_tiff(result.path, tmp_path / "r.ome.tif")
    with tifffile.TiffFile(out) as tiff:
        assert tiff.is_ome
        assert not tiff.is_bigtiff
        (series,) = tiff.series
        assert series.axes == "YX"
        assert len(series.levels) == 3
        for level, expected in zip(series.levels, result.labels, strict=True):
            np.testing.assert_array_equal(level.asarray(), expected[...])
        page = tiff.pages[0]
        assert (page.tilelength, page.tilewidth) == (512, 512)
        assert page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
        assert page.photometric == tifffile.PHOTOMETRIC.PALETTE
        assert len(page.subifds) == 2
        assert page.resolution == pytest.approx((1e7 / 5, 1e7 / 4))
        assert series.levels[1].pages[0].resolution == pytest.approx((5e6 / 5, 5e6 / 4))
        assert series.levels[1].pages[0].subfiletype == 1


def test_labels_are_seen_in_the_colours_of_their_classes(tmp_path: Path) -> None:
    """As numbers they stay indices; probabilities beside them leave no room for a colour table."""
    result = make_result(tmp_path / "r.ome.zarr", (90, 80))
    labels = result.labels[0][...]
    out = write_tiff(result.path, tmp_path / "r.ome.tif")
    with Picture.open(out) as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), labels)
        colours = np.array([[int(c.color[i : i + 2], 16) for i in (1, 3, 5)] for c in CLASSES], np.uint8)
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), colours[labels])
    opened = open_labels(out)
    np.testing.assert_array_equal(opened.read(Box.whole(opened.shape))[0], labels)
    opened.close()
    with tifffile.TiffFile(write_tiff(result.path, tmp_path / "p.ome.tif", probabilities=True)) as tiff:
        assert tiff.pages[0].photometric == tifffile.PHOTOMETRIC.MINISBLACK


def test_the_description_says_what_the_pixels_are(tmp_path: Path) -> None:
    result = make_result(tmp_path / "r.ome.zarr", (3, 70, 90))
    out = write_tiff(result.path, tmp_path / "r.ome.tif", probabilities=True)
    with tifffile.TiffFile(out) as tiff:
        root = ElementTree.fromstring(tiff.ome_metadata)  # noqa: S314
    space = {"o": "http://www.openmicroscopy.org/Schemas/OME/2016-06"}
    pixels = root.find(".//o:Pixels", space)
    assert pixels is not None
    sizes = [(pixels.get(f"PhysicalSize{a}"), pixels.get(f"PhysicalSize{a}Unit")) for a in "ZYX"]
    assert sizes == [("0.03", "µm"), ("0.004", "µm"), ("0.005", "µm")]
    channels = [(c.get("Name"), c.get("Color")) for c in pixels.findall("o:Channel", space)]
    assert [name for name, _ in channels] == ["classes", "a < b & ü", "tertiary"]
    assert int(channels[1][1] or 0) & 0xFFFFFFFF == 0x1F77B4FF
    classes = {m.get("K"): m.text for m in root.findall(".//o:MapAnnotation//o:M", space)}
    assert classes == {"0": "matrix #101010", "1": "a < b & ü #1f77b4", "2": "tertiary #d62728"}


@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_stacks_and_volumes_with_probabilities(tmp_path: Path, kind: Literal["2d", "3d"]) -> None:
    """z is never halved in the file, as OME-TIFF wants, even where the OME-Zarr halves it."""
    result = make_result(tmp_path / "r.ome.zarr", (5, 60, 1030), kind)
    assert result.info.layout.z_factor == 1  # pixels of 30 x 4 x 5 nm
    isotropic = make_result(tmp_path / "i.ome.zarr", (5, 60, 1030), kind, pixel_size_nm=None)
    for opened in (result, isotropic):
        out = write_tiff(opened.path, tmp_path / "r.ome.tif", probabilities=True)
        with tifffile.TiffFile(out) as tiff:
            (series,) = tiff.series
            assert series.axes == "CZYX"
            labels = opened.labels[0][...][np.newaxis]
            probabilities = opened.probabilities[0][...]
            for i, level in enumerate(series.levels):
                if i:
                    labels, probabilities = reference_halve_mode(labels, 1), reference_halve_mean(probabilities, 1)
                np.testing.assert_array_equal(level.asarray(), np.concatenate([labels, probabilities]))


def test_halving_in_portions_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = make_result(tmp_path / "r.ome.zarr", (3, 1030, 33), "3d", pixel_size_nm=None)
    assert result.info.layout.z_factor == 2
    once = write_tiff(result.path, tmp_path / "a.tif").read_bytes()
    monkeypatch.setattr(tiff_out, "_ROWS_AT_ONCE", 8)
    assert write_tiff(result.path, tmp_path / "b.tif").read_bytes() == once


def test_the_bytes_depend_on_the_result_alone(tmp_path: Path) -> None:
    result = make_result(tmp_path / "r.ome.zarr", (700, 600))
    once = write_tiff(result.path, tmp_path / "a.ome.tif").read_bytes()
    assert write_tiff(result.path, tmp_path / "b.ome.tif", threads=3).read_bytes() == once
    assert (
        write_png(result.path, tmp_path / "a.png").read_bytes()
        == write_png(result.path, tmp_path / "b.png").read_bytes()
    )


def test_a_large_file_is_a_bigtiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff_out, "_CLASSIC_LIMIT", 1000)
    result = make_result(tmp_path / "r.ome.zarr", (50, 40))
    out = write_tiff(result.path, tmp_path / "r.ome.tif")
    with tifffile.TiffFile(out) as tiff:
        assert tiff.is_bigtiff
        np.testing.assert_array_equal(tiff.asarray(), result.labels[0][...])


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (512, 512), (513, 511)])
def test_sizes_at_the_edge(tmp_path: Path, shape: tuple[int, int]) -> None:
    result = make_result(tmp_path / "r.ome.zarr", shape)
    labels = result.labels[0][...]
    np.testing.assert_array_equal(tifffile.imread(write_tiff(result.path, tmp_path / "r.tif")), labels)
    with Picture.open(write_png(result.path, tmp_path / "r.png")) as picture:
        np.testing.assert_array_equal(np.asarray(picture), labels)


def test_a_png_shows_the_classes_in_their_colours(tmp_path: Path) -> None:
    result = make_result(tmp_path / "r.ome.zarr", (300, 600))
    with Picture.open(write_png(result.path, tmp_path / "r.png")) as picture:
        assert picture.mode == "P"
        assert picture.info["dpi"] == pytest.approx((25.4e6 / 5, 25.4e6 / 4))
        labels = result.labels[0][...]
        np.testing.assert_array_equal(np.asarray(picture), labels)
        colors = np.array([list(bytes.fromhex(c.color[1:])) for c in CLASSES], np.uint8)
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), colors[labels])


@pytest.mark.parametrize("read", [read_tiff_info, read_png_info])
def test_files_of_others_are_told_apart(tmp_path: Path, read: Any) -> None:
    tifffile.imwrite(tmp_path / "other.tif", np.zeros((5, 5), np.uint8))
    Picture.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "other.png")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("other.tif", "other.png", "empty", "missing", "."):
        with pytest.raises(InputError, match=r"not made by tilelab|cannot read"):
            read(tmp_path / name)


def test_without_labels_the_probabilities_are_written(tmp_path: Path) -> None:
    result = make_result(tmp_path / "r.ome.zarr", (50, 40), labels=False)
    np.testing.assert_array_equal(
        tifffile.imread(write_tiff(result.path, tmp_path / "r.tif")), result.probabilities[0][...]
    )
    with pytest.raises(OutputError, match="no labels"):
        write_png(result.path, tmp_path / "r.png")


def test_a_png_of_what_it_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"o.png: a PNG of 30000 x 9 px is too large.*use .ome.zarr or .tif"):
        check_png((9, 30000), "o.png")
    result = make_result(tmp_path / "r.ome.zarr", (2, 9, 9))
    with pytest.raises(OutputError, match=r"holds one plane, the result has 2 slices: use .ome.zarr or .tif"):
        write_png(result.path, tmp_path / "r.png")
    assert not list(tmp_path.glob("r.png*"))
    single = make_result(tmp_path / "s.ome.zarr", (1, 9, 9))
    with Picture.open(write_png(single.path, tmp_path / "s.png")) as picture:
        np.testing.assert_array_equal(np.asarray(picture), single.labels[0][0])


@pytest.mark.parametrize("write", [write_tiff, write_png])
def test_a_failure_leaves_what_was_there(tmp_path: Path, write: Any) -> None:
    resource = pytest.importorskip("resource")
    result = make_result(tmp_path / "r.ome.zarr", (800, 900))
    out = tmp_path / "out"
    out.write_bytes(b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))  # a file that cannot grow, as on a full disk
    try:
        with pytest.raises(OutputError, match=r"out cannot be written: "):
            write(result.path, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert out.read_bytes() == b"before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "r.ome.zarr"]

    shard = next(p for p in (result.path / "labels/classes/0/c").rglob("*") if p.is_file())
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(InputError, match="corrupt"):
        write(result.path, out)
    assert out.read_bytes() == b"before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "r.ome.zarr"]
