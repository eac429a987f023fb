"""Of several images in one file or folder the one that is taken is said, and `--series` takes another."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import zarr

from tests.image_files import Array, pixels
from tilelab.cli.main import main
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io import describe, open_image
from tilelab.io.images.folders import expand_word

SHAPE = (40, 60)


def pages(path: Path, *written: tuple[Array, dict[str, Any]]) -> None:
    with tifffile.TiffWriter(path) as tiff:
        for values, options in written:
            tiff.write(values, metadata=None, **options)


def check(path: Any, taken: Array, others: dict[str, Array], *, said: bool = True) -> None:
    """`taken` is read and that is said; every other by its number or name, without a word."""
    with open_image(path) as image:
        np.testing.assert_array_equal(image[...], taken)
        assert any(guess.flag == "--series" for guess in image.assumptions) == said
    for series, expected in others.items():
        with open_image(path, series=series) as image:
            np.testing.assert_array_equal(image[...], expected)
            assert not any(guess.flag == "--series" for guess in image.assumptions)
    with pytest.raises(InputError, match=r"--series 99 was asked for, .* holds 0: .*, 1: "):
        open_image(path, series=99)
    assert len(describe(path)["series"]) >= 2


def test_pages(tmp_path: Path) -> None:
    deep, eight = pixels(SHAPE, "uint16"), pixels(SHAPE, "uint8")
    picture = np.repeat(eight[..., None], 3, axis=-1)
    small = np.ascontiguousarray(deep[::4, ::4])
    plain: dict[str, Any] = {"photometric": "minisblack"}
    path = tmp_path / "a.tif"
    pages(path, (picture, {"photometric": "rgb"}), (deep, plain))
    check(path, deep, {"0": eight, "1": deep})
    pages(path, (deep, plain), (picture, {"photometric": "rgb"}))
    check(path, deep, {"1": eight})
    pages(path, (small, plain), (deep, plain))
    check(path, deep, {"0": small})
    pages(path, (eight, plain), (pixels((33, 21), "uint8"), plain))
    check(path, eight, {"1": pixels((33, 21), "uint8")})


def test_ome_images_by_name(tmp_path: Path) -> None:
    one, two = pixels(SHAPE, "uint16"), pixels((30, 50), "uint16")
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as tiff:
        tiff.write(one, photometric="minisblack", metadata={"axes": "YX", "Name": "left"})
        tiff.write(two, photometric="minisblack", metadata={"axes": "YX", "Name": "right"})
    check(tmp_path / "a.ome.tif", one, {"left": one, "right": two, "1": two})


def test_every_ome_image_has_its_own_pixel_size(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    sizes = {"left": 0.004, "right": 0.02, "third": None}
    with tifffile.TiffWriter(path, ome=True) as tiff:
        for i, (name, size) in enumerate(sizes.items()):
            stated = {} if size is None else {f"PhysicalSize{a}": size for a in "XY"}
            values = pixels((40 + i, 60), "uint16")
            tiff.write(values, photometric="minisblack", metadata={"axes": "YX", "Name": name, **stated})
    for i, (name, size) in enumerate(sizes.items()):
        for series in (name, i):
            with open_image(path, series=series) as image:
                assert image.pixel_size_nm == (None if size is None else pytest.approx((1000 * size,) * 2))


def test_multiscales_series_and_members(tmp_path: Path) -> None:
    one, two = pixels(SHAPE, "uint16"), pixels((30, 50), "uint16")
    for name in ("many", "formats", "group"):
        group = zarr.create_group(tmp_path / f"{name}.zarr", zarr_format=2)
        for child, values in (("0", one), ("1", two)):
            where = group if name != "formats" else group.create_group(child)
            array = where.create_array("a" if name == "formats" else child, shape=values.shape, dtype=values.dtype)
            array[...] = values
            scale = {"version": "0.4", "axes": [{"name": "y"}, {"name": "x"}]}
            if name == "formats":
                where.attrs["multiscales"] = [{**scale, "datasets": [{"path": "a"}]}]
        if name == "many":
            group.attrs["multiscales"] = [
                {**scale, "name": said, "datasets": [{"path": child}]} for child, said in (("0", "raw"), ("1", "other"))
            ]
        if name == "formats":
            group.attrs["bioformats2raw.layout"] = 3
    check(tmp_path / "many.zarr", one, {"raw": one, "other": two, "1": two})
    check(tmp_path / "formats.zarr", one, {"0": one, "1": two})
    with pytest.raises(InputError, match=r"several images, 0: 0 40 x 60 uint16, 1: 1 30 x 50 uint16: .*--series"):
        open_image(tmp_path / "group.zarr")
    np.testing.assert_array_equal(open_image(tmp_path / "group.zarr", series=1)[...], two)


def test_datasets(tmp_path: Path) -> None:
    one, two = pixels(SHAPE, "uint16"), pixels((30, 50), "uint16")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw/one"], file["two"] = one, two
    with pytest.raises(InputError, match="--series"):
        open_image(tmp_path / "a.h5")
    for series, expected in (("raw/one", one), ("/two", two), (1, two)):
        np.testing.assert_array_equal(open_image(tmp_path / "a.h5", series=series)[...], expected)
    np.save(tmp_path / "a.npy", one)
    assert open_image(tmp_path / "a.npy", series=0).shape == SHAPE
    with pytest.raises(InputError, match=r"--series 1 was asked for, .* holds one image"):
        open_image(tmp_path / "a.npy", series=1)


def test_a_plate_leads_to_its_fields(tmp_path: Path) -> None:
    plate = zarr.create_group(tmp_path / "p.zarr", zarr_format=2)
    well = plate.create_group("B/2")
    for field in ("0", "1"):
        image = well.create_group(field)
        image.create_array("0", shape=SHAPE, dtype="uint8", chunks=SHAPE)[...] = pixels(SHAPE, "uint8")
        image.attrs["multiscales"] = [{"axes": [{"name": "y"}, {"name": "x"}], "datasets": [{"path": "0"}]}]
    well.attrs["well"] = {"images": [{"path": "0"}, {"path": "1"}, {"path": "gone"}]}
    plate.attrs["plate"] = {"wells": [{"path": "A/1"}, {"path": "B/2"}]}
    for path in (tmp_path / "p.zarr", tmp_path / "p.zarr" / "B" / "2"):
        with pytest.raises(InputError, match="2 fields, not an image: name a field of it, ") as refusal:
            open_image(path)
        assert open_image(re.findall(r"e\.g\. (\S+)", str(refusal.value))[0]).shape == SHAPE


@pytest.mark.parametrize("version", [2, 3])
def test_the_pattern_of_a_plate_means_its_fields(tmp_path: Path, version: Any) -> None:
    plate = zarr.create_group(tmp_path / "p.zarr", zarr_format=version)
    for well in ("A/1", "B/2"):
        for field in ("0", "1"):
            plate.create_group(f"{well}/{field}").create_array("0", data=pixels(SHAPE, "uint8"))
    found = [str(tmp_path / "p.zarr" / name) for name in ("A/1/0", "A/1/1", "B/2/0", "B/2/1")]
    assert expand_word(f"{tmp_path}/p.zarr/*/*/*") == found


def test_one_image_is_the_first_of_one(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=pixels(SHAPE))
    assert open_image(tmp_path / "a.zarr", series=0).shape == SHAPE
    with pytest.raises(InputError, match=r"--series 1 was asked for, .* holds one image"):
        open_image(tmp_path / "a.zarr", series=1)


def ome_set(folder: Path, *, companion: bool) -> Array:
    """Three files of a plane each; described by a companion, or by each of them."""
    folder.mkdir()
    stored = pixels((3, *SHAPE), "uint16")
    names = [f"z{z}.ome.tif" for z in range(3)]
    data = "".join(
        f'<TiffData FirstZ="{z}" IFD="0" PlaneCount="1"><UUID FileName="{name}">urn:uuid:0-{z}</UUID></TiffData>'
        for z, name in enumerate(names)
    )
    whole = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{}"><Image ID="Image:0"><Pixels '
        'ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="60" SizeY="40" SizeZ="3" SizeC="1" SizeT="1" '
        'PhysicalSizeX="0.004" PhysicalSizeY="0.004" PhysicalSizeZ="0.04"><Channel ID="Channel:0:0" '
        f'SamplesPerPixel="1"/>{data}</Pixels></Image></OME>'
    )
    only = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{}"><BinaryOnly '
        'MetadataFile="set.companion.ome" UUID="urn:uuid:9"/></OME>'
    )
    for z, name in enumerate(names):
        text = (only if companion else whole).replace("{}", f"0-{z}")
        tifffile.imwrite(folder / name, stored[z], photometric="minisblack", description=text, metadata=None)
    if companion:
        (folder / "set.companion.ome").write_text(whole.replace("{}", "9"))
    return stored


@pytest.mark.parametrize("companion", [True, False])
def test_sets_open_whole(tmp_path: Path, companion: bool) -> None:
    stored = ome_set(tmp_path / "a", companion=companion)
    for name in ("z0.ome.tif", "z2.ome.tif", *(["set.companion.ome"] if companion else [])):
        with open_image(tmp_path / "a" / name) as image:
            assert image.axes == "zyx"
            assert image.pixel_size_nm == pytest.approx((40, 4, 4))
            np.testing.assert_array_equal(image[...], stored)
    (tmp_path / "a" / "z1.ome.tif").unlink()
    for name in ("z0.ome.tif", *(["set.companion.ome"] if companion else [])):
        with pytest.raises(InputError, match=r"z1\.ome\.tif"):
            open_image(tmp_path / "a" / name)


def test_a_set_without_its_companion(tmp_path: Path) -> None:
    ome_set(tmp_path / "a", companion=True)
    (tmp_path / "a" / "set.companion.ome").unlink()
    with pytest.raises(InputError, match=r"set\.companion\.ome describes, which is missing"):
        open_image(tmp_path / "a" / "z0.ome.tif")


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = pixels(SHAPE, "uint16"), pixels((30, 50), "uint16")
    plain: dict[str, Any] = {"photometric": "minisblack"}
    pages(tmp_path / "a.tif", (one, plain), (two, plain))
    run = [str(tmp_path / "a.tif"), "-m", "identity", "--normalization", "mean-std", "--tile", "32"]
    assert main(["infer", *run, "-o", str(tmp_path / "r.ome.zarr"), "--series", "1"]) == 0
    assert zarr.open_array(tmp_path / "r.ome.zarr" / "labels" / "classes" / "0").shape == (30, 50)
    assert main(["infer", *run, "-o", str(tmp_path / "s.ome.zarr"), "--strict"]) == 2
    assert "--series" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "a.tif"), str(tmp_path / "c.ome.tif"), "--series", "1"]) == 0
    np.testing.assert_array_equal(open_image(tmp_path / "c.ome.tif")[...], two)
    assert main(["info", str(tmp_path / "a.tif"), "--series", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["shape"] == [30, 50]


def test_of_several_masks_and_training_images(tmp_path: Path) -> None:
    from tilelab import infer, read_result
    from tilelab.training.pairs import open_pairs
    from tilelab.training.sections import Data

    image, mask = pixels(SHAPE, "uint8"), np.zeros(SHAPE, "uint8")
    mask[: SHAPE[0] // 2] = 1
    plain: dict[str, Any] = {"photometric": "minisblack"}
    pages(tmp_path / "masks.tif", (np.ones((8, 9), "uint8"), plain), (mask, plain))
    pages(tmp_path / "images.tif", (np.ones((8, 9), "uint8"), plain), (image, plain))
    words: dict[str, Any] = {"tile": 32, "overlap": 8, "normalization": "mean-std"}
    run = infer(
        tmp_path / "images.tif", "identity:3", tmp_path / "r.ome.zarr",
        series="1", mask=tmp_path / "masks.tif", mask_series="1", **words,
    )  # fmt: skip
    assert not read_result(run.path).labels[0][SHAPE[0] // 2 :].any()
    data = Data("images.tif", "masks.tif", series="1", mask_series="1")
    (pair,) = open_pairs(data, tmp_path, 2)
    np.testing.assert_array_equal(pair.mask.read(Box((0, 0), SHAPE)), mask)
    np.testing.assert_array_equal(pair.image[...], image)
