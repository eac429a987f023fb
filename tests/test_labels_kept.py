"""`convert` keeps labels: their values, types, names and colours, at every level."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import zarr

from tests.image_files import Array, pixels
from tilelab.cli.main import main
from tilelab.errors import InputError, OutputError
from tilelab.io import open_image
from tilelab.io.convert import convert_image
from tilelab.io.results.image_pyramid import halve_labels
from tilelab.kernels.pyramid import reference_halve_mode

SIDE = 600  # two levels


def labels(dtype: str, values: tuple[int, ...] = (0, 2, 7)) -> Array:
    yy, xx = np.mgrid[:SIDE, :SIDE]
    return np.array(values, dtype)[(yy // 3 + xx // 5) % len(values)]


def levels(path: Path) -> list[Array]:
    if path.is_dir():
        count = len([p for p in path.iterdir() if p.name.isdecimal()])
        return [zarr.open_array(path / str(i), mode="r")[...] for i in range(count)]  # type: ignore[misc]
    with tifffile.TiffFile(path) as tiff:
        return [level.asarray() for level in tiff.series[0].levels]


@pytest.mark.parametrize("suffix", [".ome.zarr", ".ome.tif"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "uint32", "int64", "uint64"])
def test_types_and_values(tmp_path: Path, dtype: str, suffix: str) -> None:
    largest = min(np.iinfo(dtype).max, 2**40 + 1)
    stored = labels(dtype, (0, 2, largest))
    np.save(tmp_path / "a.npy", stored)
    target = tmp_path / f"b{suffix}"
    if suffix == ".ome.tif" and largest > 2**32:
        with pytest.raises(OutputError, match="OME-TIFF has 32 bits"):
            convert_image(tmp_path / "a.npy", target, labels=True)
        return
    convert_image(tmp_path / "a.npy", target, labels=True)
    found = levels(target)
    np.testing.assert_array_equal(found[0], stored)
    assert len(found) == 2
    for level in found:
        assert level.dtype == dtype
        assert {*np.unique(level)} <= {*np.unique(stored)}


def test_hardly_any_values_are_taken_for_labels_and_that_is_said(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", labels("uint8", (0, 2)), photometric="minisblack")
    said: list[str] = []
    convert_image(tmp_path / "a.tif", tmp_path / "b.ome.zarr", note=said.append)
    assert any("labels, because it has 2 values" in s for s in said)
    assert [1 in level for level in levels(tmp_path / "b.ome.zarr")] == [False, False]
    convert_image(tmp_path / "a.tif", tmp_path / "c.ome.zarr", labels=False)
    assert 1 in levels(tmp_path / "c.ome.zarr")[1]
    convert_image(pixels((SIDE, SIDE), "uint8"), tmp_path / "d.ome.zarr", note=(noted := []).append)
    assert not any("labels" in s for s in noted)


def test_an_image_of_wide_numbers_is_told(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", pixels((70, 90), "uint16").astype(np.int32))
    said: list[str] = []
    convert_image(tmp_path / "a.npy", tmp_path / "b.ome.zarr", note=said.append)
    assert any("int32 pixels become float32" in s and "--labels" in s for s in said)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32"])
@pytest.mark.parametrize("z_factor", [1, 2])
def test_modes_of_every_type_agree(dtype: str, z_factor: int) -> None:
    block = np.random.default_rng(7).integers(0, 4, (2, 3, 7, 9)).astype(np.uint8)
    np.testing.assert_array_equal(halve_labels(block.astype(dtype), z_factor), reference_halve_mode(block, z_factor))


LABEL: dict[str, Any] = {
    "colors": [{"label-value": 2, "rgba": [255, 0, 0, 255]}],
    "properties": [{"label-value": 2, "name": "membrane <&>"}],
}


def image_with_labels(path: Path) -> tuple[Array, Array]:
    image, stored = pixels((SIDE, SIDE), "uint8"), labels("int32")
    group = zarr.create_group(path, zarr_format=3)
    axes = [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    scale = [{"type": "scale", "scale": [1.0, 1.0]}]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    group.create_array("0", shape=image.shape, dtype="uint8")[...] = image
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    inner = group.create_group("labels/cells")
    group["labels"].attrs["ome"] = {"version": "0.5", "labels": ["cells"]}
    inner.create_array("0", shape=image.shape, dtype="int32")[...] = stored
    inner.attrs["ome"] = {
        "version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}], "image-label": LABEL,
    }  # fmt: skip
    return image, stored


def test_labels_beside_an_image_and_there_and_back(tmp_path: Path) -> None:
    image, stored = image_with_labels(tmp_path / "a.ome.zarr")
    convert_image(tmp_path / "a.ome.zarr", tmp_path / "b.ome.zarr")
    np.testing.assert_array_equal(levels(tmp_path / "b.ome.zarr")[0], image)
    kept = tmp_path / "b.ome.zarr" / "labels" / "cells"
    np.testing.assert_array_equal(levels(kept)[0], stored)
    said: list[str] = []
    convert_image(tmp_path / "a.ome.zarr", tmp_path / "c.ome.tif", note=said.append)
    assert any("cells" in s and "not in the TIFF" in s for s in said)
    convert_image(kept, tmp_path / "d.ome.tif")
    convert_image(tmp_path / "d.ome.tif", tmp_path / "e.ome.zarr")
    for path in (kept, tmp_path / "e.ome.zarr"):
        told = json.loads((path / "zarr.json").read_text())["attributes"]["ome"]["image-label"]
        assert {key: told[key] for key in LABEL} == LABEL
        assert all(level.dtype == np.int32 and {*np.unique(level)} <= {0, 2, 7} for level in levels(path))


def test_a_result_there_and_back(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", pixels((SIDE, SIDE), "uint8"))
    run = ["infer", str(tmp_path / "a.npy"), "-m", "identity", "--normalization", "mean-std", "--tile", "128", "-o"]
    result = tmp_path / "r.ome.zarr"
    assert main([*run, str(result)]) == 0
    classes = levels(result / "labels" / "classes")
    convert_image(result, tmp_path / "b.ome.tif")
    with open_image(tmp_path / "b.ome.tif", channel=0) as image:
        np.testing.assert_array_equal(image[...], classes[0])
    assert main(["convert", str(tmp_path / "b.ome.tif"), str(tmp_path / "c.ome.zarr")]) == 2
    convert_image(tmp_path / "b.ome.tif", tmp_path / "c.ome.zarr", channel=0)
    for found, expected in zip(levels(tmp_path / "c.ome.zarr"), classes, strict=True):
        np.testing.assert_array_equal(found, expected)
    told = json.loads((tmp_path / "c.ome.zarr" / "zarr.json").read_text())["attributes"]["ome"]["image-label"]
    own = json.loads((result / "labels" / "classes" / "zarr.json").read_text())["attributes"]["ome"]["image-label"]
    assert (told["colors"], told["properties"]) == (own["colors"], own["properties"])
    convert_image(result, tmp_path / "d.ome.zarr")
    for found, expected in zip(levels(tmp_path / "d.ome.zarr" / "labels" / "classes"), classes, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_imaris_padding_is_no_image(tmp_path: Path) -> None:
    stored = np.zeros((8, 64, 64), np.uint8)
    stored[:5, :40, :50] = pixels((5, 40, 50), "uint8")
    with h5py.File(tmp_path / "a.ims", "w") as file:
        channel = file.create_group("DataSet/ResolutionLevel 0/TimePoint 0/Channel 0")
        channel.create_dataset("Data", data=stored, chunks=(8, 32, 32))
        for axis, size in zip("ZYX", (5, 40, 50), strict=True):
            channel.attrs[f"ImageSize{axis}"] = np.array(list(str(size)), "S1")
    with open_image(tmp_path / "a.ims") as image:
        np.testing.assert_array_equal(image[...], stored[:5, :40, :50])


def test_labels_are_found_beside_the_image_wherever_that_was_found(tmp_path: Path) -> None:
    image, stored = image_with_labels(tmp_path / "a.ome.zarr")
    with zipfile.ZipFile(tmp_path / "a.ozx", "w") as packed:
        for file in sorted((tmp_path / "a.ome.zarr").rglob("*")):
            packed.write(file, file.relative_to(tmp_path / "a.ome.zarr"))
    outer = zarr.create_group(tmp_path / "outer.zarr", zarr_format=3)
    outer.create_group("b")  # written below
    shutil.rmtree(tmp_path / "outer.zarr" / "b")
    shutil.copytree(tmp_path / "a.ome.zarr", tmp_path / "outer.zarr" / "b")
    for i, source in enumerate(("a.ome.zarr", "a.ozx", "outer.zarr")):
        convert_image(tmp_path / source, tmp_path / f"{i}.ome.zarr")
        np.testing.assert_array_equal(levels(tmp_path / f"{i}.ome.zarr")[0], image)
        np.testing.assert_array_equal(levels(tmp_path / f"{i}.ome.zarr" / "labels" / "cells")[0], stored)
    said: list[str] = []
    convert_image(tmp_path / "a.ome.zarr" / "0", tmp_path / "level.ome.zarr", note=said.append)
    assert any("cells" in line and "not in what is made of one level" in line for line in said)
    assert not (tmp_path / "level.ome.zarr" / "labels").exists()


def test_labels_that_lead_elsewhere_are_neither_read_nor_written(tmp_path: Path) -> None:
    image_with_labels(tmp_path / "a.ome.zarr")
    image_with_labels(tmp_path / "other.ome.zarr")
    before = (tmp_path / "other.ome.zarr" / "zarr.json").read_bytes()
    document = tmp_path / "a.ome.zarr" / "labels" / "zarr.json"
    told = json.loads(document.read_text())
    for name in (str(tmp_path / "other.ome.zarr"), "../../other.ome.zarr"):
        told["attributes"]["ome"]["labels"] = [name]
        document.write_text(json.dumps(told))
        with pytest.raises(InputError, match="names labels outside of its own folder"):
            convert_image(tmp_path / "a.ome.zarr", tmp_path / "b.ome.zarr")
        assert not (tmp_path / "b.ome.zarr").exists()
        assert (tmp_path / "other.ome.zarr" / "zarr.json").read_bytes() == before
    for names in (5, {"cells": 1}, "cells"):
        told["attributes"]["ome"]["labels"] = names
        document.write_text(json.dumps(told))
        open_image(tmp_path / "a.ome.zarr").close()


@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64", "uint64"])
def test_precomputed_labels_are_of_a_type_that_others_read(tmp_path: Path, dtype: str) -> None:
    pytest.importorskip("tensorstore")
    stored = labels(dtype, (0, 2, 2**24))
    np.save(tmp_path / "a.npy", stored)
    convert_image(tmp_path / "a.npy", tmp_path / "a.precomputed", labels=True)
    for level in (0, 1):
        with open_image(tmp_path / "a.precomputed", as_labels="integers", level=level) as image:
            assert {*np.unique(image[...]).tolist()} == {0, 2, 2**24}
            assert level or np.array_equal(image[...], stored)
    with open_image(tmp_path / "a.precomputed", as_labels="integers") as image:
        assert image.dtype == dtype.replace("int64", "uint64").replace("uu", "u")
    np.save(tmp_path / "b.npy", stored.astype(np.int64) - 3)
    with pytest.raises(OutputError, match="no labels of 64 bits below 0"):
        convert_image(tmp_path / "b.npy", tmp_path / "b.precomputed", labels=True)
    np.save(tmp_path / "b.npy", stored.astype(np.float32))
    with pytest.raises(OutputError, match="whole numbers alone"):
        convert_image(tmp_path / "b.npy", tmp_path / "b.precomputed", labels=True)
    assert not (tmp_path / "b.precomputed").exists()
