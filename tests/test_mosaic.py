"""Mosaics of real micrographs: mirrored at the joins, the same however they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from benchmarks.bench.mosaic import Mosaic, load_micrographs, main, write_mosaic
from tilelab.geometry import Box

sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


def planes_of(shapes):
    return [np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8) for i, shape in enumerate(shapes)]


@settings(max_examples=60)
@given(st.lists(sizes, min_size=1, max_size=5), st.tuples(st.integers(1, 60), st.integers(1, 60)), st.data())
def test_every_patch_is_its_plane_mirrored_at_every_join(shapes, shape, data):
    mosaic = Mosaic(shape, planes_of(shapes))
    whole = mosaic.read(Box.whole(shape))
    expected = np.full(shape, 0, np.uint8)
    covered = np.zeros(shape, int)
    down, across = mosaic.grid
    for row in range(down):
        for column in range(across):
            box, plane = mosaic.patch(row, column)
            covered[box.slices] += 1
            if box.size:
                extra = [(0, max(0, n - size)) for n, size in zip(box.shape, plane.shape, strict=True)]
                expected[box.slices] = np.pad(plane, extra, mode="reflect")[: box.shape[0], : box.shape[1]]
    np.testing.assert_array_equal(covered, 1)
    np.testing.assert_array_equal(whole, expected)
    y0, x0 = (data.draw(st.integers(0, n)) for n in shape)
    y1, x1 = (data.draw(st.integers(a, n)) for a, n in zip((y0, x0), shape, strict=True))
    np.testing.assert_array_equal(mosaic.read(Box((y0, x0), (y1, x1))), whole[y0:y1, x0:x1])


def test_all_planes_are_used():
    for count in range(1, 12):
        mosaic = Mosaic((400, 500), [np.full((3, 4), i, np.uint8) for i in range(count)])
        assert np.unique(mosaic.read(Box.whole(mosaic.shape))).tolist() == list(range(count))


@pytest.mark.parametrize("compression", [None, "zlib", "zstd"])
def test_written_files_hold_the_mosaic(tmp_path: Path, compression):
    mosaic = Mosaic((150, 131), planes_of([(40, 50), (33, 61), (20, 20)]))
    whole = mosaic.read(Box.whole(mosaic.shape))
    write_mosaic(mosaic, tmp_path / "m.tif", tile=64, compression=compression)
    with tifffile.TiffFile(tmp_path / "m.tif") as file:
        assert file.pages[0].tile == (64, 64)
        np.testing.assert_array_equal(file.asarray(), whole)
    write_mosaic(mosaic, tmp_path / "m.zarr", tile=64, compression=compression)
    array = zarr.open_array(str(tmp_path / "m.zarr"), mode="r")
    assert array.chunks == (64, 64)
    np.testing.assert_array_equal(array[:], whole)


def test_the_command_makes_image_and_truth(tmp_path: Path, capsys):
    for kind, low in (("images", 100), ("masks", 0)):
        (tmp_path / "alloy" / "val" / kind).mkdir(parents=True)
        for i in range(2):
            plane = np.full((20, 30), low + i, np.uint8)
            Pillow.fromarray(plane).save(tmp_path / "alloy" / "val" / kind / f"{i}.png")
    command = [str(tmp_path / "o.tif"), "--set", "alloy", "--data", str(tmp_path), "--shape", "64x200", "--tile", "16"]
    assert main([*command, "--truth", str(tmp_path / "t.tif")]) == 0
    image, truth = (tifffile.imread(tmp_path / name) for name in ("o.tif", "t.tif"))
    np.testing.assert_array_equal(image, truth + 100)
    assert image.shape == (64, 200)
    assert np.unique(image).tolist() == [100, 101]
    assert main([*command, "--images", "1"]) == 0
    assert np.unique(tifffile.imread(tmp_path / "o.tif")).tolist() == [100]
    capsys.readouterr()
    assert main([*command[:1], "--set", "nothing", "--data", str(tmp_path)]) == 2
    assert "no micrographs in" in capsys.readouterr().err
    (tmp_path / "alloy" / "val" / "masks" / "1.png").unlink()
    assert main(command) == 2
    assert "has no mask" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command[:1], "--shape", "12"])
    assert main([str(tmp_path / "o.jpg"), *command[1:], "--images", "1"]) == 2


def test_real_micrographs_have_no_edges_at_the_joins(real_data: Path):
    images = [image for image, _ in load_micrographs(real_data, "superalloy", "val", 1)]
    mosaic = Mosaic((1500, 700), images)
    plane = mosaic.read(Box.whole(mosaic.shape)).astype(float)
    step = np.abs(np.diff(plane, axis=0)).mean(axis=1)
    joins = [511, 1022]
    assert step[joins].max() < 1.5 * np.median(step)
