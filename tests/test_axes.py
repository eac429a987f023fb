"""Axes that nothing names are guessed, said, refused by --strict, and named with --axes wherever an image is opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from image_files import pixels

from tilelab import Options, infer
from tilelab.cli.main import main
from tilelab.errors import InputError
from tilelab.evaluation.labels import open_labels
from tilelab.io.images.image import Image
from tilelab.io.images.open import describe, open_image
from tilelab.io.images.view import luma

Array = np.ndarray[Any, Any]
Y, X = 64, 80


def npy(path: Path, array: Array) -> str:
    np.save(path / "a.npy", array)
    return str(path / "a.npy")


def hdf5(path: Path, array: Array) -> str:
    with pytest.importorskip("h5py").File(path / "a.h5", "w") as file:
        file["raw"] = array
    return str(path / "a.h5")


def zarr2(path: Path, array: Array) -> str:
    zarr.save_array(path / "a.zarr", array, zarr_format=2)
    return str(path / "a.zarr")


def tiff(path: Path, array: Array) -> str:
    tifffile.imwrite(path / "a.tif", array, photometric="minisblack")
    return str(path / "a.tif")


def n5(path: Path, array: Array) -> str:
    tensorstore = pytest.importorskip("tensorstore")
    spec = {
        "driver": "n5",
        "kvstore": {"driver": "file", "path": f"{path / 'a.n5'}/"},
        "metadata": {
            "dimensions": array.shape[::-1],
            "dataType": str(array.dtype),
            "blockSize": [16] * array.ndim,
            "compression": {"type": "raw"},
        },
    }
    tensorstore.open(spec, create=True).result().write(array.T).result()
    return str(path / "a.n5")


def in_memory(path: Path, array: Array) -> Array:
    return array


WRITERS = [npy, hdf5, zarr2, tiff, n5, in_memory]
# stored shape, axes of the image, its shape, whether that is a guess
SHAPES = [
    ((Y, X), "yx", (Y, X), False),
    ((1, Y, X), "yx", (Y, X), False),
    ((Y, X, 1), "yx", (Y, X), True),
    ((Y, X, 2), "cyx", (2, Y, X), True),
    ((2, Y, X), "zyx", (2, Y, X), True),
    ((5, Y, X), "zyx", (5, Y, X), True),
    ((5, Y, X, 1), "zyx", (5, Y, X), True),
    ((5, Y, X, 2), "czyx", (2, 5, Y, X), True),
    ((5, 1, Y, X), "zyx", (5, Y, X), True),
    ((1, 5, Y, X), "zyx", (5, Y, X), True),
    ((1, Y, X, 1), "yx", (Y, X), True),
    ((1, 1, Y, X), "yx", (Y, X), False),
    ((2, 5, Y, X), "czyx", (2, 5, Y, X), True),
]


@pytest.mark.parametrize("write", WRITERS)
def test_a_narrow_last_axis_is_never_x(write: Any, tmp_path: Path) -> None:
    for i, (shape, axes, seen, guessed) in enumerate(SHAPES):
        (folder := tmp_path / str(i)).mkdir()
        stored = pixels(shape)
        with open_image(write(folder, stored)) as image:
            assert (image.axes, image.shape) == (axes, seen), shape
            # tifffile drops axes of one entry, or says what they are
            assert bool(image.assumptions) == guessed or (write is tiff and 1 in shape), shape
            assert all(a.flag == "--axes" for a in image.assumptions)
            moved = np.moveaxis(stored, -1, 0) if shape[-1] == 2 else stored
            np.testing.assert_array_equal(image[...], moved.reshape(seen))


@pytest.mark.parametrize("write", WRITERS)
def test_given_axes_are_no_guess(write: Any, tmp_path: Path) -> None:
    stored = pixels((4, Y, X))
    path = write(tmp_path, stored)
    with open_image(path, axes="zyx") as image:
        assert image.assumptions == ()
    with open_image(path, axes="XZY") as image:
        assert (image.axes, image.assumptions) == ("zyx", ())
        np.testing.assert_array_equal(image[...], stored.transpose(1, 2, 0))
    with open_image(write(tmp_path / "..", stored[:, None]) if write is in_memory else path, axes="cyx") as image:
        assert image.axes == "cyx"


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("samples", [2, 3, 4])
def test_s_says_that_they_are_colours(write: Any, samples: int, tmp_path: Path) -> None:
    stored = pixels((samples, Y, X))
    path = write(tmp_path, stored)
    with open_image(path, axes="syx") as image:
        if samples == 2:
            assert (image.axes, image.rgb) == ("cyx", False)
        else:
            assert (image.axes, image.shape) == ("yx", (Y, X))
            np.testing.assert_array_equal(image[...], luma(np.moveaxis(stored[:3], 0, -1)))
    with open_image(path, axes="syx", channel=1) as image:
        np.testing.assert_array_equal(image[...], stored[1])
    several = pixels((2, 3, Y, X))
    with open_image(several, axes="csyx") as image:
        assert (image.axes, image.shape) == ("cyx", (2, Y, X))


@pytest.mark.parametrize(
    ("axes", "why"),
    [
        ("yx", "has 3 axes: 4 x 64 x 80"),
        ("tczyx", "has 3 axes"),
        ("zyy", "y is there twice"),
        ("qyx", "q is no axis, they are of t c z y x s"),
        ("", "has 3 axes"),
        ("zcx", "an image needs y and x, name them with --axes"),
    ],
)
def test_axes_that_cannot_be_are_one_line(
    axes: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = npy(tmp_path, pixels((4, Y, X)))
    model = ["-m", "identity"]
    for command in (["info"], ["infer", *model, "-o", str(tmp_path / "o.ome.zarr")], ["plan", *model]):
        assert main([*command, path, "--axes", axes]) == 2
        said = capsys.readouterr()
        assert why in said.err + said.out
        assert len(said.err.splitlines()) <= 1
    with pytest.raises(InputError, match="has 3 axes" if axes in ("", "yx", "tczyx") else why):
        open_image(path, axes=axes)


def test_more_axes_than_can_be_guessed_ask_for_their_names(tmp_path: Path) -> None:
    path = npy(tmp_path, pixels((2, 2, 2, 2, 8, 8)))
    with pytest.raises(InputError, match="say what they are with --axes"):
        open_image(path)


def test_known_axes_are_no_assumption(tmp_path: Path) -> None:
    stored = pixels((3, Y, X))
    tifffile.imwrite(tmp_path / "a.ome.tif", stored, metadata={"axes": "ZYX"}, photometric="minisblack")
    tifffile.imwrite(tmp_path / "j.tif", stored, imagej=True, metadata={"axes": "ZYX"})
    tifffile.imwrite(tmp_path / "h.tif", pixels((2, 3, Y, X)), imagej=True, metadata={"axes": "ZCYX"})
    zarr.create_array(tmp_path / "n.zarr", data=stored, dimension_names=("z", "y", "x"))
    for name in ("a.ome.tif", "j.tif", "h.tif", "n.zarr"):
        with open_image(tmp_path / name) as image:
            assert image.assumptions == (), name
    mrcfile = pytest.importorskip("mrcfile")
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(stored.astype(np.int16))
    with open_image(tmp_path / "a.mrc") as image:
        assert image.assumptions == ()


def test_velox_images_are_planes_of_the_size_that_they_say(tmp_path: Path) -> None:
    stored = pixels((Y, X, 1), np.uint16)
    said = {"BinaryResult": {"PixelSize": {"width": "2e-9", "height": "2e-9"}, "PixelUnitX": "m", "PixelUnitY": "m"}}
    text = np.frombuffer(json.dumps(said).encode() + b"\0" * 9, np.uint8)
    with pytest.importorskip("h5py").File(tmp_path / "a.emd", "w") as file:
        group = file.create_group("Data/Image/0123")
        group["Data"], group["Metadata"] = stored, text[:, None]
    with open_image(tmp_path / "a.emd") as image:
        assert (image.axes, image.pixel_size_nm, image.assumptions) == ("yx", (2, 2), ())
        np.testing.assert_array_equal(image[...], stored[..., 0])
    with pytest.importorskip("h5py").File(tmp_path / "b.emd", "w") as file:
        group = file.create_group("Data/Image/0123")
        group["Data"], group["Metadata"] = np.repeat(stored, 3, axis=2), np.repeat(text[:, None], 3, axis=1)
    with pytest.raises(InputError, match="3 time points: choose one with --timepoint"):
        open_image(tmp_path / "b.emd")
    with open_image(tmp_path / "b.emd", axes="yxz") as image:
        assert image.shape == (3, Y, X)


def save_as_channels(path: Path, stored: Array) -> str:
    tifffile.imwrite(path / "c.tif", stored, imagej=True)  # without axes, tifffile writes channels
    return str(path / "c.tif")


def test_channels_of_colours_are_a_guess(tmp_path: Path) -> None:
    stored = pixels((5, Y, X, 3))
    tifffile.imwrite(tmp_path / "c.tif", stored, imagej=True)
    with open_image(tmp_path / "c.tif") as image:
        assert (image.axes, [a.taken for a in image.assumptions]) == ("cyx", ["cyxs"])
    with open_image(tmp_path / "c.tif", axes="zyxs") as image:
        assert (image.axes, image.assumptions) == ("zyx", ())
        np.testing.assert_array_equal(image[...], luma(stored))


def test_channels_and_frames_that_are_slices_can_be_named_so(tmp_path: Path) -> None:
    stored = pixels((5, Y, X))
    path = save_as_channels(tmp_path, stored)
    options = Options(axes="zyx")
    run = infer(path, "identity", tmp_path / "o.ome.zarr", options=options)
    assert run.report["axes"] == "zyx"
    assert not [a for a in run.report["assumptions"] if a["flag"] == "--axes"]
    with pytest.raises(Exception, match="--channel, or say with --axes"):
        infer(path, "identity", tmp_path / "p.ome.zarr")
    tifffile.imwrite(tmp_path / "t.tif", stored, imagej=True, metadata={"axes": "TYX"})
    with pytest.raises(InputError, match=r"5 time points.*--axes"):
        open_image(tmp_path / "t.tif")
    with open_image(tmp_path / "t.tif", axes="zyx") as image:
        np.testing.assert_array_equal(image[...], stored)


def test_pixel_sizes_follow_their_axes(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = pixels((20, 30, 40))
        file["raw"].attrs["element_size_um"] = (0.03, 0.004, 0.005)
    with open_image(tmp_path / "a.h5", axes="yzx") as image:
        assert image.pixel_size_nm == pytest.approx((4, 30, 5))


def test_axes_of_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A stack stored as (y, x, z): every command that opens an image is told with --axes."""
    stored = pixels((Y, X, 6))
    path, out = npy(tmp_path, stored), str(tmp_path / "o.ome.zarr")
    np.save(tmp_path / "mask.npy", (stored > 100).astype(np.uint8))
    mask = ["--mask", str(tmp_path / "mask.npy"), "--mask-axes", "yxz"]
    base = [path, "-m", "identity", "--axes", "yxz", "--tile", "32", "--overlap", "8"]
    assert main(["info", path, "--axes", "yxz"]) == 0
    assert "6 x 64 x 80 (z, y, x)" in capsys.readouterr().out
    assert main(["plan", *base, "--speed", "5"]) == 0
    assert "6 x 64 x 80 (z, y, x)" in capsys.readouterr().out
    assert main(["infer", *base, *mask, "-o", out, "--strict", "-q"]) == 0
    assert main(["convert", path, str(tmp_path / "c.ome.zarr"), "--axes", "yxz", "-q"]) == 0
    with open_image(tmp_path / "c.ome.zarr") as image:
        np.testing.assert_array_equal(image[...], np.moveaxis(stored, -1, 0))
    capsys.readouterr()
    labels = npy(tmp_path, (stored > 100).astype(np.uint8))
    shown = ["--pictures", str(tmp_path / "p"), "--image", path]
    assert main(["eval", labels, labels, "--axes", "yxz", *shown]) == 0
    assert "assumed" not in capsys.readouterr().out
    assert main(["eval", out, labels, "--truth-axes", "yxz", "--classes", "a,b"]) == 0
    assert main(["eval", labels, labels]) == 0
    assert f"assumed: the axes of {labels}" in capsys.readouterr().out
    assert main(["infer", *base, *mask[:2], "-o", str(tmp_path / "q.ome.zarr")]) == 2
    assert "--mask-axes" in capsys.readouterr().err


def test_guesses_about_a_mask_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels((Y, X)))
    np.save(tmp_path / "mask.npy", np.ones((Y, X, 1), np.uint8))
    run = ["infer", str(tmp_path / "a.tif"), "-m", "identity", "--mask", str(tmp_path / "mask.npy"), "--tile", "32"]
    assert main([*run, "-o", str(tmp_path / "o.ome.zarr")]) == 0
    assert "yxc, because an axis of 1 is no x (say otherwise with --mask-axes)" in capsys.readouterr().err
    assert main([*run, "-o", str(tmp_path / "p.ome.zarr"), "--strict"]) == 2


def test_an_open_image_has_its_axes(tmp_path: Path) -> None:
    opened: Image = open_image(npy(tmp_path, pixels((Y, X))))
    with pytest.raises(InputError, match="is open already"):
        infer(opened, "identity", tmp_path / "o.ome.zarr", options=Options(axes="yx"))


def test_folders_of_slices_take_axes(tmp_path: Path) -> None:
    for i in range(3):
        np.save(tmp_path / f"s{i}.npy", pixels((Y, X, 3), seed=i))
    with open_image(tmp_path, axes="zyxc") as image:
        assert (image.axes, image.shape, image.assumptions) == ("czyx", (3, 3, Y, X), ())
    assert describe(tmp_path, axes="zyxs")["image"]["shape"] == [3, Y, X]
    with pytest.raises(InputError, match="z stands for its files"):
        open_image(tmp_path, axes="yxc")


def test_labels_take_axes(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 3, (Y, X, 6), np.uint8)
    labels = open_labels(npy(tmp_path, stored), axes="yxz")
    assert labels.shape == (6, Y, X)
