"""`tilelab convert`: what is written holds the same pixels, and nothing half-written is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
import zarr
from image_files import Array, pixels
from ome_zarr_models.v05 import Image as OmeImage
from result_files import make_result

from tilelab.cli.main import main
from tilelab.errors import InputError, OutputError
from tilelab.geometry import Box
from tilelab.io import convert_image, describe, open_image
from tilelab.io.results.image_pyramid import halve
from tilelab.io.results.png import read_png_info, write_png
from tilelab.io.results.precomputed import read_precomputed_info, write_precomputed
from tilelab.io.results.tiff import read_tiff_info, write_tiff

AXES = {"yx": (1300, 1100), "zyx": (5, 700, 300), "cyx": (2, 300, 600), "czyx": (2, 3, 90, 130)}


def names(folder: Path) -> list[str]:
    """What is in a folder."""
    return sorted(path.name for path in folder.iterdir())


def halve_slowly(level: Array) -> Array:
    """2 x 2 means of the last two axes, edges repeated, whole numbers rounded half up."""
    height, width = level.shape[-2:]
    edge = [(0, 0)] * (level.ndim - 2) + [(0, height % 2), (0, width % 2)]
    level = np.pad(level, edge, mode="edge").astype(np.float64)
    return (level[..., ::2, ::2] + level[..., 1::2, ::2] + level[..., ::2, 1::2] + level[..., 1::2, 1::2]) / 4


def check_levels(path: Path, stored: Array) -> None:
    """Every level of `path` is made of the one before."""
    expected = stored
    for level in range(len(describe(path)["levels"])):
        with open_image(path, level=level) as image:
            got = image[...]
        assert got.dtype == stored.dtype
        if stored.dtype.kind == "u":
            np.testing.assert_array_equal(got, np.floor(expected + 0.5).astype(stored.dtype))
        else:
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)
        expected = halve_slowly(got)
    assert max(got.shape[-2:]) <= 512


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("suffix", [".ome.zarr", ".ome.tif"])
def test_pixels_axes_and_sizes_are_kept(tmp_path: Path, axes: str, dtype: str, suffix: str) -> None:
    stored = pixels(AXES[axes], dtype)
    path = tmp_path / f"out{suffix}"
    size = {"z": 30.0, "y": 5.0, "x": 4.0}
    given = tuple(size[a] for a in axes if a != "c")
    done = convert_image(stored, path, axes=axes, pixel_size_nm=given)
    assert names(tmp_path) == [path.name]
    with open_image(path) as image:
        assert image.axes == axes
        assert image.pixel_size_nm == pytest.approx(given)
        np.testing.assert_array_equal(image[...], stored)
    check_levels(path, stored)
    assert done["levels"] == len(describe(path)["levels"])
    assert done["bytes"] > 0
    if suffix == ".ome.zarr":
        OmeImage.from_zarr(zarr.open_group(path, mode="r"))
        array: Any = zarr.open_array(path / "0", mode="r")
        assert array.shards is not None
        np.testing.assert_array_equal(array[...], stored)
    else:
        with tifffile.TiffFile(path) as tiff:
            assert tiff.is_ome
            assert tiff.pages.first.is_tiled
            np.testing.assert_array_equal(tiff.asarray(), stored)


def test_units_and_lanes_do_not_change_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = pixels((3, 500, 5000), "uint16")
    source = tmp_path / "source.zarr"
    zarr.create_array(source, data=stored, chunks=(2, 100, 700))
    convert_image(source, tmp_path / "wide.zarr")
    monkeypatch.setattr("tilelab.io.results.image_pyramid._MEMORY_BYTES", 1)
    monkeypatch.setattr("tilelab.io.results.image_pyramid._READ_BYTES", 1)
    convert_image(source, tmp_path / "narrow.zarr")
    wide = tmp_path / "wide.zarr"
    files = [path.relative_to(wide) for path in wide.rglob("*") if path.is_file()]
    assert len(files) > 12
    for name in files:
        if name.name != "zarr.json":
            assert (tmp_path / "wide.zarr" / name).read_bytes() == (tmp_path / "narrow.zarr" / name).read_bytes()
    check_levels(tmp_path / "narrow.zarr", stored)


def test_a_region_of_what_is_stored_in_large_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = pixels((1500, 70), "uint8")
    tifffile.imwrite(tmp_path / "a.tif", stored, compression="zlib", rowsperstrip=700)
    monkeypatch.setattr("tilelab.io.results.image_pyramid._READ_BYTES", 1)
    for first in (0, 300, 700, 1100):
        convert_image(tmp_path / "a.tif", tmp_path / f"{first}.zarr", region=f"{first}:1490,:")
        with open_image(tmp_path / f"{first}.zarr") as image:
            np.testing.assert_array_equal(image[...], stored[first:1490])


def test_halving_of_every_dtype_agrees() -> None:
    for z_factor in (1, 2):
        block = pixels((2, 5, 7, 9), "uint8")
        expected = halve(block, z_factor)
        for dtype in (np.uint16, np.float32):
            got = halve(block.astype(dtype), z_factor)
            assert got.dtype == dtype
            rounded = np.floor(got + 0.5) if dtype is np.float32 else got
            np.testing.assert_array_equal(rounded.astype(np.uint8), expected)
    top = np.full((1, 1, 4, 4), 65535, np.uint16)
    assert (halve(top, 1) == 65535).all()


def test_from_files(tmp_path: Path) -> None:
    stored = pixels((3, 600, 800), "uint16")
    tiff, numpy, stack = tmp_path / "a.tif", tmp_path / "a.npy", tmp_path / "stack"
    tifffile.imwrite(
        tiff, stored, imagej=True, resolution=(250, 250), metadata={"unit": "um", "spacing": 0.03, "axes": "ZYX"}
    )
    np.save(numpy, stored)
    stack.mkdir()
    for i, plane in enumerate(stored):
        tifffile.imwrite(stack / f"{i}.tif", plane, compression="zlib")
    for i, source in enumerate((tiff, numpy, stack)):
        notes: list[str] = []
        convert_image(source, tmp_path / f"{i}.zarr", note=notes.append)
        with open_image(tmp_path / f"{i}.zarr") as image:
            np.testing.assert_array_equal(image[...], stored)
            assert image.pixel_size_nm == (pytest.approx((30, 4, 4)) if source is tiff else None)
        assert all(note.startswith(f"assumed: the axes of {numpy}") for note in notes)
        assert len(notes) == (source is numpy)
    convert_image(tmp_path / "0.zarr", tmp_path / "again.tif", level=1)
    with open_image(tmp_path / "again.tif") as image, open_image(tmp_path / "0.zarr", level=1) as level:
        np.testing.assert_array_equal(image[...], level[...])
        assert image.pixel_size_nm == pytest.approx((30, 8, 8))


def test_choosing(tmp_path: Path) -> None:
    stored = pixels((2, 3, 40, 50))
    np.save(tmp_path / "a.npy", stored)
    path = str(tmp_path / "out.zarr")
    assert (
        main(["convert", str(tmp_path / "a.npy"), path, "--axes", "tcyx", "--timepoint", "1", "--channel", "2", "-q"])
        == 0
    )
    np.testing.assert_array_equal(open_image(path)[...], stored[1, 2])


def test_destinations_that_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "a.npy"
    np.save(source, pixels((40, 50)))
    (tmp_path / "folder.zarr").mkdir()
    (tmp_path / "folder.zarr" / "thesis.doc").write_text("mine")
    (tmp_path / "file.tif").write_text("old")
    convert_image(source, tmp_path / "image.zarr")
    with pytest.raises(OutputError, match="is of no kind"):
        convert_image(source, tmp_path / "out.jpg")
    for name in ("folder.zarr", "file.tif", "image.zarr"):
        with pytest.raises(OutputError, match="exists: choose another destination, or replace it with --overwrite"):
            convert_image(source, tmp_path / name)
    with pytest.raises(OutputError, match="is a folder but no Zarr"):
        convert_image(source, tmp_path / "folder.zarr", overwrite=True)
    assert (tmp_path / "folder.zarr" / "thesis.doc").read_text() == "mine"
    for name in ("image.zarr", "image.zarr/new.zarr"):
        with pytest.raises(OutputError, match="the source"):
            convert_image(tmp_path / "image.zarr", tmp_path / name, overwrite=True)
    with pytest.raises(OutputError, match="would overwrite the source"):
        convert_image(tmp_path / "image.zarr" / "0", tmp_path / "image.zarr", overwrite=True)
    convert_image(source, tmp_path / "file.tif", overwrite=True)
    np.testing.assert_array_equal(open_image(tmp_path / "file.tif")[...], pixels((40, 50)))
    np.save(source, pixels((60, 70), seed=1))
    convert_image(source, tmp_path / "image.zarr", overwrite=True)
    np.testing.assert_array_equal(open_image(tmp_path / "image.zarr")[...], pixels((60, 70), seed=1))
    assert main(["convert", str(source), str(tmp_path / "image.zarr")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "plain").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        convert_image(source, tmp_path / "plain" / "out.zarr")
    assert not [name for name in names(tmp_path) if "converting" in name]


def test_broken_source_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "a.tif"
    tifffile.imwrite(source, pixels((600, 600)), compression="zlib", tile=(64, 64))
    with tifffile.TiffFile(source) as tiff:
        at, count = tiff.pages.first.dataoffsets[-1], tiff.pages.first.databytecounts[-1]
    with source.open("r+b") as file:
        file.seek(at)
        file.write(bytes(count))
    for name in ("out.zarr", "out.tif"):
        with pytest.raises(InputError, match="corrupt"):
            convert_image(source, tmp_path / name)
    assert names(tmp_path) == ["a.tif"]
    source.write_bytes(b"")
    assert main(["convert", str(source), str(tmp_path / "out.zarr")]) == 2
    assert names(tmp_path) == ["a.tif"]


SLOW_SOURCE = """
import sys, time
import numpy as np
from tilelab.io import convert_image

class Slow:
    shape, dtype, chunks = (100_000, 512), np.dtype("uint8"), (256, 512)
    def __getitem__(self, index):
        rows = index[0].stop - index[0].start
        if index[0].start > 4096:
            print("writing", flush=True)
            time.sleep(0.5)
        return np.full((rows, 512), 7, np.uint8)

convert_image(Slow(), sys.argv[1])
"""


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("suffix", [".zarr", ".tif"])
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_killed(tmp_path: Path, stop: signal.Signals, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    command = [sys.executable, "-c", SLOW_SOURCE, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        with pytest.raises(OutputError, match="is being written by another conversion"):
            convert_image(pixels((40, 50)), path)
        process.send_signal(stop)
        process.wait()
    assert not path.exists()
    assert (list(tmp_path.iterdir()) == []) == (stop == signal.SIGINT)
    convert_image(pixels((40, 50)), path)  # clears away what was left
    assert names(tmp_path) == [path.name]
    np.testing.assert_array_equal(open_image(path)[...], pixels((40, 50)))


def test_memory_is_bounded(tmp_path: Path) -> None:
    code = """
import sys
import numpy as np
from tilelab.io import convert_image

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

convert_image(np.zeros((40, 50), np.uint8), sys.argv[1] + "/small.tif")
before = peak()
rng = np.random.default_rng(0)
class Noise:
    shape, dtype, chunks = (int(sys.argv[2]), 4096), np.dtype("uint8"), (256, 4096)
    def __getitem__(self, index):
        return rng.integers(0, 256, tuple(i.stop - i.start for i in index), np.uint8)
convert_image(Noise(), sys.argv[1] + "/large" + sys.argv[3])
print(peak() - before)
"""
    if sys.platform != "linux":
        pytest.skip("peak memory is counted otherwise")
    used = {}
    for rows in (4096, 16_384):
        for suffix in (".zarr", ".tif"):
            folder = tmp_path / f"{rows}{suffix[1:]}"
            folder.mkdir()
            command = [sys.executable, "-c", code, str(folder), str(rows), suffix]
            used[rows, suffix] = int(subprocess.run(command, check=True, capture_output=True).stdout)
    for suffix in (".zarr", ".tif"):
        assert used[16_384, suffix] < 60 * 2**20, used  # the image has 64 MiB, and a third more in its levels
        assert used[16_384, suffix] < used[4096, suffix] + 24 * 2**20, used


def test_real_micrographs(tmp_path: Path, real_data: Path) -> None:
    source = real_data / "membrane" / "train" / "images"
    assert main(["convert", str(source), str(tmp_path / "m.ome.zarr"), "--pixel-size", "50,4,4", "-q"]) == 0
    with open_image(source) as before, open_image(tmp_path / "m.ome.zarr") as after:
        assert after.pixel_size_nm == (50, 4, 4)
        box = Box((3, 100, 50), (7, 400, 512))
        np.testing.assert_array_equal(before.read(box), after.read(box))


def test_a_bucket_is_no_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="convert writes to disk alone"):
        convert_image(np.zeros((8, 8), np.uint8), "s3://lab/a.ome.zarr")
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["ome.zarr", "ome.tif"])
def test_another_image_of_the_same_name_is_not_there_already(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for seed, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        tifffile.imwrite(tmp_path / name / "x.tif", pixels((60, 70), seed=seed))
    words = ["--format", kind, "-q"]
    assert main(["convert", str(tmp_path / "a" / "x.tif"), f"{out}/", *words]) == 0
    before = describe(out / f"x.{kind}")
    for source, more in (("b", []), ("a", ["--region", "0:50,:"])):
        assert main(["convert", str(tmp_path / source / "x.tif"), f"{out}/", *words, *more]) == 2
        assert f"x.{kind} exists and was made of another image" in capsys.readouterr().err
    assert describe(out / f"x.{kind}") == before
    assert main(["convert", str(tmp_path / "a" / "x.tif"), f"{out}/", *words]) == 0
    assert "1 were there already" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "b" / "x.tif"), f"{out}/", *words, "--overwrite"]) == 0
    with open_image(out / f"x.{kind}") as image:
        np.testing.assert_array_equal(image[...], pixels((60, 70), seed=1))


@pytest.mark.parametrize("count", [0, 3, 5, 100])
def test_what_is_no_tiff_at_the_place_of_one_is_in_the_way(
    tmp_path: Path, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a file of a few bytes tifffile raises an error of its own kind."""
    tifffile.imwrite(tmp_path / "x.tif", pixels((60, 70)))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x.ome.tif").write_bytes((tmp_path / "x.tif").read_bytes()[:count])
    main(["convert", str(tmp_path / "x.tif"), f"{tmp_path / 'out'}/", "--format", "ome.tif", "-q"])
    assert "unexpected" not in capsys.readouterr().err
    command = ["infer", str(tmp_path / "x.tif"), "-m", "identity", "-o", str(tmp_path / "out" / "x.ome.tif")]
    assert main(command) == 2
    assert "x.ome.tif exists and was not made by tilelab" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["ome.zarr", "ome.tif"])
def test_a_converted_result_is_there_already(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name, shape in (("a", (90, 80)), ("b", (91, 80))):
        make_result(tmp_path / name / "r.ome.zarr", shape)
    out = f"{tmp_path / 'out'}/"
    for name, code, said in (("a", 0, "1 of 1"), ("a", 0, "were there already"), ("b", 2, "made of another image")):
        assert main(["convert", str(tmp_path / name / "r.ome.zarr"), out, "--format", kind, "-q"]) == code
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a\x07b", os.fsdecode(b"Probe_\xb5m"), 'x\n<y> & "z"', "-q", "µ 漢 %s {}"])
def test_names_that_xml_does_not_hold(tmp_path: Path, name: str) -> None:
    stored = pixels((60, 70))
    convert_image(stored, tmp_path / f"{name}.ome.tif")
    made = make_result(tmp_path / "r.ome.zarr", (60, 70), name=name, metadata={"image": {"path": name}})
    write_tiff(made.path, tmp_path / "r.ome.tif")
    for path in (tmp_path / f"{name}.ome.tif", tmp_path / "r.ome.tif"):
        with tifffile.TiffFile(path) as tiff:
            assert tiff.ome_metadata is not None
            ElementTree.fromstring(tiff.ome_metadata)  # noqa: S314 - our own
        with open_image(path, as_labels="indices") as image:
            assert not any("describes itself wrongly" in said for said in image.warnings)
            assert image.shape == (60, 70)
    told = read_tiff_info(tmp_path / "r.ome.tif")
    assert told.name == name.encode(errors="replace").decode()
    assert read_png_info(write_png(made.path, tmp_path / "r.png")) == told
    assert read_precomputed_info(write_precomputed(made.path, tmp_path / "r.precomputed")) == told


@pytest.mark.parametrize("size", [1e-30, 0.001, 0.01, 4.0, 1e6, 1e12, 1e30])
def test_sizes_that_tiff_has_no_ratio_for(tmp_path: Path, size: float) -> None:
    convert_image(pixels((600, 700)), tmp_path / "a.ome.tif", pixel_size_nm=size)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tiff:
        x, y = tiff.pages.first.resolution
        assert tiff.ome_metadata is not None
        assert f'PhysicalSizeX="{size / 1000}"' in tiff.ome_metadata
    assert x == y == pytest.approx(1e7 / size, rel=1e-3) or not 0.01 <= size <= 1e6


def test_what_an_image_does_not_keep_is_said(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "rgb.tif", pixels((60, 70, 3)), photometric="rgb")
    np.save(tmp_path / "wide.npy", pixels((60, 70), "float64"))
    for name, words in (("rgb.tif", "is in colours, which become grey"), ("wide.npy", "float64 pixels")):
        notes: list[str] = []
        convert_image(tmp_path / name, tmp_path / f"{name}.ome.zarr", note=notes.append)
        assert [words in note for note in notes] == [True]


def test_what_float32_does_not_hold_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = pixels((60, 70), "float64")
    stored[7, 9] = 1e39
    np.save(tmp_path / "far.npy", stored)
    for suffix in ("ome.zarr", "ome.tif"):
        assert main(["convert", str(tmp_path / "far.npy"), str(tmp_path / f"far.{suffix}")]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert "holds 1e+39 as float64, float32 reaches to 3.4e38: scale it first, or replace" in said
    assert [path.name for path in tmp_path.iterdir()] == ["far.npy"]


def test_a_file_address_is_a_path(tmp_path: Path) -> None:
    convert_image(pixels((60, 70)), f"file://{tmp_path}/a%20b.ome.zarr")
    assert names(tmp_path) == ["a b.ome.zarr"]
    with pytest.raises(InputError, match="unknown kind"):
        convert_image(pixels((60, 70)), "ftp://host/a.ome.zarr")
