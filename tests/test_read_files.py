"""PNG, JPEG, .npy, folders of slices, arrays in Python, and what is none of that."""

from __future__ import annotations

import io
import json
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import dask.array as da
import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr
from image_files import check_reads, pixels
from PIL import Image as Pillow

import tilelab.io
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io import describe, open_image
from tilelab.io.images.view import luma

SHAPE = (61, 83)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_png(tmp_path: Path, dtype: str, samples: int) -> None:
    planes = [pixels(SHAPE, dtype, seed) for seed in range(samples)]
    path = tmp_path / "image.png"
    path.write_bytes(imagecodecs.png_encode(np.stack(planes, -1) if samples > 1 else planes[0]))
    red, green, blue = (plane.astype(np.int64) for plane in (planes * 3)[:3])
    luma = ((299 * red + 587 * green + 114 * blue + 500) // 1000).astype(dtype)
    with open_image(path) as image:
        assert image.axes == "yx"
        assert image.chunks == SHAPE
        check_reads(image, luma if samples >= 3 else planes[0])
    with open_image(path, channel=samples - 1) as image:
        check_reads(image, planes[-1], examples=3)


def test_png_of_few_bits_palette_and_transparency(tmp_path: Path) -> None:
    grey = pixels(SHAPE)
    for mode, expected in (("1", (grey > 127) * np.uint8(255)), ("P", grey), ("LA", grey), ("RGBA", grey)):
        path = tmp_path / f"{mode}.png"
        source = Pillow.fromarray(grey)
        source = source.point(lambda v: 255 * (v > 127)) if mode == "1" else source
        source.convert(mode).save(path)
        check_reads(open_image(path), expected, examples=3)
    path = tmp_path / "transparent.png"
    Pillow.fromarray(np.stack([grey] * 3, -1)).save(path, transparency=(5, 5, 5))
    check_reads(open_image(path), grey, examples=3)
    Pillow.fromarray(grey).convert("P").save(path, transparency=3)
    check_reads(open_image(path), grey, examples=3)


def test_png_pixel_size(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    for dpi, expected in (((25.4e6 / 8, 25.4e6 / 4), (4, 8)), ((300, 300), None), (None, None)):
        Pillow.fromarray(pixels(SHAPE)).save(path, **({"dpi": dpi} if dpi else {}))
        assert open_image(path).pixel_size_nm == (None if expected is None else pytest.approx(expected, rel=1e-3))


def test_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    Pillow.fromarray(pixels(SHAPE)).save(path, quality=90)
    check_reads(open_image(path), np.asarray(Pillow.open(path)))
    Pillow.fromarray(np.stack([pixels(SHAPE)] * 3, -1)).save(path, quality=90, progressive=True)
    check_reads(open_image(path, channel=1), np.asarray(Pillow.open(path))[..., 1])
    Pillow.fromarray(pixels((*SHAPE, 4)), "CMYK").save(path)
    with pytest.raises(InputError, match="CMYK"):
        open_image(path)


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_truncated_and_corrupt_rasters(tmp_path: Path, kind: str) -> None:
    buffer = io.BytesIO()
    thumbnail = io.BytesIO()
    Pillow.fromarray(pixels((8, 8))).save(thumbnail, "jpeg")
    extra = {"exif": b"Exif\0\0" + thumbnail.getvalue()} if kind == "jpeg" else {}  # holds an end-of-image marker
    Pillow.fromarray(pixels((200, 300))).save(buffer, kind, **extra)
    whole = buffer.getvalue()
    path = tmp_path / f"image.{kind}"
    for kept in (4, 9, 40, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:kept])
        with pytest.raises(InputError, match=r"truncated|damaged|unknown format") as caught:
            open_image(path)[...]
        assert "\n" not in str(caught.value)
    if kind == "png":
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + b"\0\1\2\3" + whole[middle + 4 :])
        with pytest.raises(InputError, match="corrupt"):
            open_image(path)[...]


def test_what_png_carries_beside_its_pixels(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "image.png"
    data = imagecodecs.png_encode(pixels(SHAPE))
    profile = b"iCCPbroken\0\0" + zlib.compress(bytes(200))  # libpng warns of such
    chunk = struct.pack(">I", len(profile) - 4) + profile + struct.pack(">I", zlib.crc32(profile))
    path.write_bytes(data[:33] + chunk + data[33:] + b"trailing bytes")
    check_reads(open_image(path), pixels(SHAPE), examples=2)
    path.write_bytes(data[:33] + chunk[:-1] + b"?" + data[33:])  # its checksum does not matter
    check_reads(open_image(path), pixels(SHAPE), examples=2)
    path.write_bytes(data.replace(b"IDAT", b"iDAT"))
    with pytest.raises(InputError, match="corrupt or truncated PNG"):
        open_image(path)[...]
    assert capfd.readouterr() == ("", "")


def test_headers_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    data = bytearray(imagecodecs.png_encode(pixels(SHAPE)))
    data[16:20] = struct.pack(">I", 2**30)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    with pytest.raises(InputError, match="corrupt"):
        open_image(path).read(Box((0, 0), (1, 1)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(60))
    with pytest.raises(InputError, match="no image header"):
        open_image(path)
    path.write_bytes(b"\xff\xd8\xff\xe0\0\x04ab\xff\xda\0\x04ab" + bytes(20))
    with pytest.raises(InputError, match="no frame header"):
        open_image(path)


def test_beyond_pillows_pixel_limit(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    stored = np.zeros((9_500, 9_500), np.uint8)
    stored[7000] = 9
    path.write_bytes(imagecodecs.png_encode(stored, level=1))
    with open_image(path) as image:
        assert any("tilelab convert" in line for line in image.warnings)
        np.testing.assert_array_equal(image[6999:7002], stored[6999:7002])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["|u1", "<u2", ">u2", "<f4", "<f8", "|b1", "<i2"])
@pytest.mark.parametrize("shape", [SHAPE, (5, 31, 40), (2, 3, 17, 19)])
def test_npy(tmp_path: Path, shape: tuple[int, ...], dtype: str, order: Any) -> None:
    path = tmp_path / "image.npy"
    stored = pixels(shape, np.dtype(dtype).newbyteorder("=")).astype(dtype, order=order)
    np.save(path, stored)
    native = stored.astype(stored.dtype.newbyteorder("="))
    expected = {"b": native * np.uint8(255), "u": native}.get(native.dtype.kind, native.astype(np.float32))
    with open_image(path) as image:
        assert image.axes == "czyx"[-len(shape) :]
        assert image.chunks == (1,) * len(shape)
        check_reads(image, expected, examples=6)


def test_npy_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "image.npy"
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(InputError, match=r"no readable \.npy"):
        open_image(path)
    np.save(path, pixels(SHAPE))
    whole = path.read_bytes()
    for kept in (7, 60, 200, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(InputError, match=r"no readable \.npy|truncated"):
            open_image(path)
    np.save(path, np.zeros((3, 0), np.uint8))
    with pytest.raises(InputError, match=r"empty"):
        open_image(path)
    np.save(path, np.zeros(9, np.uint8))
    with pytest.raises(InputError, match="an image needs y and x"):
        open_image(path)
    np.save(path, np.zeros((4, 4), [("a", "u1"), ("b", "f4")]))
    with pytest.raises(InputError, match="pixels of type"):
        open_image(path)


def test_whole_numbers_beyond_float32(tmp_path: Path) -> None:
    path = tmp_path / "image.npy"
    stored = pixels(SHAPE, "int32") >> 8
    stored[50, 70] = 2**24
    np.save(path, stored)
    check_reads(open_image(path), stored.astype(np.float32), examples=3)
    stored[50, 70] = -(2**24) - 1
    np.save(path, stored)
    with open_image(path) as image:
        np.testing.assert_array_equal(image[:50], stored[:50])
        with pytest.raises(InputError, match=r"region 50:61,0:83 holds -16777217 as int32.*scale it to uint16"):
            image[50:]


def test_float64_beyond_float32_is_refused_where_it_is_read(tmp_path: Path) -> None:
    """It became infinite in silence; 3.4e38 is held, and what was infinite or no number before stays that."""
    path = tmp_path / "image.npy"
    stored = pixels(SHAPE, "float64")
    stored[:2, :2] = [[np.inf, -np.inf], [np.nan, float(np.finfo(np.float32).max)]]
    np.save(path, stored)
    check_reads(open_image(path), stored.astype(np.float32), examples=3)
    stored[50, 70] = -np.finfo(np.float64).max  # GDAL's, of no value
    np.save(path, stored)
    with open_image(path) as image:
        np.testing.assert_array_equal(image[:50], stored[:50].astype(np.float32))
        with pytest.raises(InputError, match=r"region 50:61,0:83 holds -1.79769e\+308 as float64, float32 reaches to"):
            image[50:]
    with open_image(path, infinite=True, region="50:61,60:83") as image:  # who looks for such pixels
        assert image[0, 10] == -np.inf
    assert describe(path)["shape"] == [*SHAPE]


def write_slices(folder: Path, stored: Any, kind: str) -> None:
    folder.mkdir()
    for i, plane in enumerate(stored):
        path = folder / f"slice_{i + 1}.{kind}"
        if kind == "npy":
            np.save(path, plane)
        elif kind == "png":
            path.write_bytes(imagecodecs.png_encode(plane))
        else:
            tifffile.imwrite(path, plane, compression="zlib", rowsperstrip=16)


@pytest.mark.parametrize("kind", ["tif", "png", "npy"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_folder_of_slices(tmp_path: Path, kind: str, dtype: str) -> None:
    stored = pixels((12, 40, 50), dtype)
    write_slices(tmp_path / "stack", stored, kind)
    (tmp_path / "stack" / "notes.txt").write_text("ignored")
    (tmp_path / "stack" / ".hidden.tif").write_text("ignored")
    with open_image(tmp_path / "stack") as image:
        assert image.axes == "zyx"
        assert image.chunks[0] == 1
        check_reads(image, stored)
        first = image.fingerprint()
    assert first == open_image(tmp_path / "stack").fingerprint()
    facts = describe(tmp_path / "stack")
    assert facts["slices"] == 12
    assert facts["shape"] == [12, 40, 50]
    json.dumps(facts)
    with open_image(tmp_path / "stack", pixel_size_nm=(30, 4, 4)) as image:
        assert image.pixel_size_nm == (30, 4, 4)


def test_a_single_slice_is_a_plane(tmp_path: Path) -> None:
    write_slices(tmp_path / "stack", pixels((1, 40, 50)), "tif")
    with open_image(tmp_path / "stack", pixel_size_nm=4) as image:
        assert image.pixel_size_nm == (4, 4)
        check_reads(image, pixels((1, 40, 50))[0], examples=2)


def test_slices_must_agree(tmp_path: Path) -> None:
    folder = tmp_path / "stack"
    write_slices(folder, pixels((3, 40, 50)), "png")
    (folder / "slice_10.png").write_bytes(imagecodecs.png_encode(pixels((40, 51))))
    with pytest.raises(InputError, match=r"slice_10\.png is yx \(40, 51\) uint8, slice_1\.png is yx \(40, 50\) uint8"):
        open_image(folder)
    (folder / "slice_10.png").write_bytes(imagecodecs.png_encode(pixels((40, 50), "uint16")))
    with pytest.raises(InputError, match="differ: slice_10"):
        open_image(folder)
    (folder / "slice_10.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(InputError, match="slice_10"):
        open_image(folder)
    (folder / "slice_10.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"slice_10\.png is empty"):
        open_image(folder)
    (folder / "slice_10.png").unlink()
    tifffile.imwrite(folder / "slice_0.tif", pixels((2, 40, 50)), photometric="minisblack")
    with pytest.raises(InputError, match="is a stack itself"):
        open_image(folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="folder without images"):
        open_image(empty)


def test_arrays() -> None:
    stored = pixels((6, 40, 50), "uint16")
    lazy = da.from_array(stored, chunks=(2, 16, 50))
    with open_image(lazy) as image:
        assert image.chunks == (2, 16, 50)
        check_reads(image, stored, examples=5)
        assert image.fingerprint() == open_image(lazy).fingerprint()
    memory = zarr.storage.MemoryStore()
    with open_image(zarr.create_array(memory, data=stored, chunks=(3, 20, 20)), axes="czyx"[1:]) as image:
        assert image.chunks == (3, 20, 20)
        check_reads(image, stored, examples=5)
    with open_image(stored.transpose(1, 2, 0), axes="yxc", pixel_size_nm=(5, 4)) as image:
        assert image.axes == "cyx"
        assert image.pixel_size_nm == (5, 4)
        check_reads(image, stored)
    with open_image(stored[0]) as image:
        assert image.axes == "yx"
        image[...][...] = 0  # what is read belongs to the reader
        check_reads(image, pixels((6, 40, 50), "uint16")[0])
    assert open_image(stored).fingerprint() != open_image(stored + np.uint16(1)).fingerprint()
    large = da.zeros((60, 2000, 2000), dtype=np.uint8, chunks=(1, 500, 500))
    assert set(open_image(large).fingerprint()) == {"shape", "dtype", "sha256", "selection"}


def test_what_a_masked_array_hides_is_not_read() -> None:
    array = np.ma.MaskedArray(pixels((40, 50)), np.zeros((40, 50), bool))
    check_reads(open_image(array), array.data, examples=3)
    array[3, 4] = np.ma.masked
    with pytest.raises(InputError, match=r"mask leaves out: give array\.filled"):
        open_image(array)


def test_named_dimensions() -> None:
    class Named:  # as xarray's
        dims = ("x", "time", "y")
        shape = (50, 2, 40)
        dtype = np.dtype("uint8")

        def __getitem__(self, index: Any) -> Any:
            return pixels(self.shape)[index]

    with open_image(Named(), timepoint=1) as image:
        check_reads(image, pixels(Named.shape)[:, 1].T)


def test_arrays_that_fail() -> None:
    class Broken:
        shape = (20, 20)
        dtype = np.dtype("uint8")

        def __getitem__(self, index: Any) -> Any:
            raise RuntimeError("the disk is on fire")

    with pytest.raises(InputError, match="failed at region 0:20,0:20: RuntimeError: the disk is on fire"):
        open_image(Broken())[...]

    class Short(Broken):
        def __getitem__(self, index: Any) -> Any:
            return np.zeros((3, 3), np.uint8)

    with pytest.raises(InputError, match=r"gave \(3, 3\)"):
        open_image(Short())[...]
    for nothing in (None, 5, [[1, 2], [3, 4]], object()):
        with pytest.raises(InputError, match="is no image: give a path, or an array"):
            open_image(nothing)


def test_axes_and_pixel_sizes_that_cannot_be(tmp_path: Path) -> None:
    stored = pixels((4, 20, 30))
    for axes, message in (("yx", "has 3 axes"), ("czx", "needs y and x"), ("yyx", "twice"), ("xyq", "q is no axis")):
        with pytest.raises(InputError, match=message):
            open_image(stored, axes=axes)
    with pytest.raises(InputError, match="a, b is no axis, they are of t c z y x s"):
        open_image(pixels((2, 3, 4, 5)), axes="abyx")
    for size in (0, -1, float("nan"), (1, 2), (1, 2, float("inf"))):
        with pytest.raises(InputError, match="pixel size"):
            open_image(stored, pixel_size_nm=size)
    with pytest.raises(InputError, match=r"timepoint 1 was asked for.*0 only"):
        open_image(stored, timepoint=1)
    with pytest.raises(InputError, match=r"channel 1 was asked for.*0 only"):
        open_image(stored, channel=1)
    with pytest.raises(InputError, match=r"level 1 was asked for.*level 0 only"):
        open_image(stored, level=1)


def test_float_colours() -> None:
    rgb = np.stack([pixels(SHAPE, "float32", seed) for seed in range(3)], -1)
    rgb[:10] = rgb[:10, :, :1]
    grey = open_image(rgb)[...]
    np.testing.assert_array_equal(grey[:10], rgb[:10, :, 0])
    np.testing.assert_allclose(grey, rgb @ np.float32([0.299, 0.587, 0.114]), rtol=1e-5, atol=1e-4)


def test_colour_is_recognised_by_its_shape() -> None:
    for shape, axes in (((20, 30, 3), "yx"), ((5, 20, 30, 4), "zyx"), ((3, 20, 30), "zyx"), ((20, 3, 4), "zyx")):
        assert open_image(pixels(shape)).axes == axes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(b""), r"is empty \(0 bytes\)"),
        (lambda path: path.write_bytes(b"hello"), "unknown format: known are TIFF"),
        (lambda path: path.write_bytes(b"BM" + bytes(100)), "BMP file of 0 bits"),
        (lambda path: path.mkdir(), "folder without images"),
    ],
)
def test_what_is_no_image(tmp_path: Path, make: Any, message: str) -> None:
    path = tmp_path / "thing.dat"
    make(path)
    for read in (open_image, describe):
        with pytest.raises(InputError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)


def test_uris(tmp_path: Path) -> None:
    path = tmp_path / "an image.npy"
    np.save(path, pixels(SHAPE))
    check_reads(open_image(path.as_uri()), pixels(SHAPE), examples=2)
    check_reads(open_image(str(path)), pixels(SHAPE), examples=2)
    with pytest.raises(InputError, match=r"ftp://host/image\.zarr is of an unknown kind: known are file, s3, gs"):
        open_image("ftp://user:password@host/image.zarr")
    for uri, message in (("", "path is empty"), ("a\0b", "is no path"), ("x" * 5000, "cannot be read")):
        with pytest.raises(InputError, match=message):
            open_image(uri)
    with open_image(path) as image:
        assert open_image(image) is image
        with pytest.raises(InputError, match="is open already"):
            open_image(image, level=1)
    root = tmp_path / "a.zarr"
    zarr.create_array(root, data=pixels(SHAPE))
    with pytest.raises(InputError, match=r"is a part of .*: give that folder"):
        open_image(root / "zarr.json")


def test_files_are_closed(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, pixels(SHAPE))
    code = (
        "import os, sys, tilelab.io as io\n"
        "count = lambda: len(os.listdir('/proc/self/fd'))\n"
        "io.open_image(sys.argv[1])[...]\n"
        "before = count()\n"
        "for _ in range(5):\n"
        "    with io.open_image(sys.argv[1]) as image: image[...]\n"
        "    io.open_image(sys.argv[1])[...]\n"
        "assert count() == before\n"
    )
    if sys.platform == "linux":
        subprocess.run([sys.executable, "-W", "error", "-c", code, str(path)], check=True)


def test_importing_is_cheap() -> None:
    heavy = "{'tifffile', 'zarr', 'imagecodecs', 'numcodecs', 'PIL', 'dask'}"
    code = f"import sys, tilelab.io, tilelab.io.images.open; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(tilelab.io.__all__) <= set(dir(tilelab.io))
    with pytest.raises(AttributeError):
        tilelab.io.nonsense  # noqa: B018


def test_real_stack(real_data: Path) -> None:
    folder = real_data / "membrane" / "train" / "images"
    with open_image(folder) as image:
        assert image.shape == (16, 512, 512)
        names = sorted((path.name for path in folder.iterdir()), key=lambda n: [int(v) for v in re.findall(r"\d+", n)])
        np.testing.assert_array_equal(image[5], np.asarray(Pillow.open(folder / names[5])))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_bmp(mode: str, tmp_path: Path) -> None:
    stored = pixels((20, 31) if mode == "L" else (20, 31, len(mode)))
    Pillow.fromarray(stored, mode).save(tmp_path / "a.bmp")
    check_reads(open_image(tmp_path / "a.bmp"), stored if mode == "L" else luma(stored[..., :3]), examples=4)
    whole = (tmp_path / "a.bmp").read_bytes()
    if mode == "L":
        flipped = whole[:22] + (-20).to_bytes(4, "little", signed=True) + whole[26:]
        (tmp_path / "down.bmp").write_bytes(flipped)
        np.testing.assert_array_equal(open_image(tmp_path / "down.bmp")[...], stored[::-1])
        inverted = bytearray(whole)
        inverted[54 : 54 + 1024] = np.repeat(np.arange(256, dtype=np.uint8)[::-1], 4).tobytes()
        (tmp_path / "inverted.bmp").write_bytes(inverted)
        np.testing.assert_array_equal(open_image(tmp_path / "inverted.bmp")[...], 255 - stored)
        np.testing.assert_array_equal(open_image(tmp_path / "inverted.bmp", as_labels="indices")[...], stored)
    for length, why in ((len(whole) - 5, "truncated"), (40, "truncated")):
        (tmp_path / "cut.bmp").write_bytes(whole[:length])
        with pytest.raises(InputError, match=why):
            open_image(tmp_path / "cut.bmp")
    (tmp_path / "packed.bmp").write_bytes(whole[:30] + b"\1" + whole[31:])
    with pytest.raises(InputError, match="save it as PNG or TIFF"):
        open_image(tmp_path / "packed.bmp")
