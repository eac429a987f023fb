"""TIFF in all its kinds, against the arrays that were stored."""

from __future__ import annotations

import logging
import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tifffile
from image_files import check_reads, pixels

from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io import describe, open_image

LAYOUTS: dict[str, dict[str, Any]] = {
    "tiles": {"tile": (48, 64)},
    "strips": {"rowsperstrip": 13},
    "one strip": {"rowsperstrip": 10**6},
}
PLANE, STACK = (157, 203), (4, 61, 83)


@pytest.mark.parametrize("shape", [PLANE, STACK], ids=["plane", "stack"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "zstd"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_reads_what_was_stored(
    tmp_path: Path, dtype: str, compression: str | None, layout: str, shape: tuple[int, ...]
) -> None:
    stored = pixels(shape, dtype)
    path = tmp_path / "image.tif"
    options = dict(LAYOUTS[layout])
    if compression and layout != "tiles":
        options["predictor"] = True
    tifffile.imwrite(path, stored, compression=compression, photometric="minisblack", **options)
    with open_image(path) as image:
        assert image.axes == "zyx"[-len(shape) :]
        assert image.warnings == ()
        check_reads(image, stored)
        bare = compression is None and layout != "tiles"
        if bare:
            assert image.chunks == (1,) * len(shape)
        elif layout == "tiles":
            assert image.chunks[-2:] == (48, 64)
        else:
            assert image.chunks[-2:] == (min(options["rowsperstrip"], shape[-2]), shape[-1])


@pytest.mark.parametrize("kind", ["bigtiff", "big-endian", "ome", "imagej", "no description", "separate pages"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_kinds_of_tiff(tmp_path: Path, kind: str, compression: str | None, dtype: str) -> None:
    stored = pixels(STACK, dtype)
    path = tmp_path / ("image.ome.tif" if kind == "ome" else "image.tif")
    options: dict[str, dict[str, Any]] = {
        "bigtiff": {"bigtiff": True},
        "big-endian": {"byteorder": ">"},
        "ome": {"ome": True, "metadata": {"axes": "ZYX"}},
        "imagej": {"imagej": True, "metadata": {"axes": "ZYX"}},
        "no description": {"metadata": None},
    }
    if kind == "separate pages":
        with tifffile.TiffWriter(path) as writer:
            for plane in stored:
                writer.write(plane, compression=compression, contiguous=False, metadata=None)
    else:
        tifffile.imwrite(path, stored, compression=compression, photometric="minisblack", **options[kind])
    with open_image(path) as image:
        assert image.axes == "zyx"
        check_reads(image, stored)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(160, 208), (160, 208, 3), (3, 64, 80)], ids=["grey", "rgb", "stack"])
def test_jpeg_inside(tmp_path: Path, layout: str, shape: tuple[int, ...]) -> None:
    path = tmp_path / "image.tif"
    color = shape[-1] == 3
    plane = pixels(shape)
    tifffile.imwrite(path, plane, compression="jpeg", photometric="rgb" if color else "minisblack", **LAYOUTS[layout])
    decoded = tifffile.imread(path)
    with open_image(path, channel=1 if color else None) as image:
        check_reads(image, decoded[..., 1] if color else decoded)


@pytest.mark.parametrize("compression", ["packbits", "lzma", "jpeg2000", "jpegxl", "lerc", "webp", "png"])
def test_other_compressions(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "image.tif"
    stored = pixels((64, 80, 3) if compression == "webp" else (64, 80))
    lossless = {"webp": {"level": 101}, "jpegxl": {"level": 101}, "jpeg2000": {"reversible": True}}
    tifffile.imwrite(
        path,
        stored,
        compression=compression,
        compressionargs=lossless.get(compression, {}),
        tile=(32, 32),
        photometric="rgb" if stored.ndim == 3 else "minisblack",
    )
    with open_image(path, channel=0 if stored.ndim == 3 else None) as image:
        check_reads(image, stored[..., 0] if stored.ndim == 3 else stored, examples=5)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_rgb_becomes_luma(tmp_path: Path, planar: str, layout: str, compression: str | None, dtype: str) -> None:
    rgb = np.stack([pixels((70, 90), dtype, seed) for seed in range(3)], axis=-1)
    red, green, blue = np.moveaxis(rgb.astype(np.int64), -1, 0)
    luma = ((299 * red + 587 * green + 114 * blue + 500) // 1000).astype(dtype)
    path = tmp_path / "image.tif"
    stored = rgb if planar == "contig" else np.moveaxis(rgb, -1, 0)
    tifffile.imwrite(path, stored, photometric="rgb", planarconfig=planar, compression=compression, **LAYOUTS[layout])
    with open_image(path) as image:
        assert image.axes == "yx"
        check_reads(image, luma)
    with open_image(path, channel=2) as image:
        check_reads(image, rgb[..., 2], examples=5)


def test_equal_colours_stay_as_they_are_and_alpha_is_ignored(tmp_path: Path) -> None:
    grey = pixels((40, 50), "uint16")
    alpha = pixels((40, 50), "uint16", 1)
    path = tmp_path / "rgba.tif"
    tifffile.imwrite(path, np.stack([grey, grey, grey, alpha], -1), photometric="rgb", extrasamples=["unassalpha"])
    check_reads(open_image(path), grey)
    tifffile.imwrite(
        path, np.stack([grey, alpha], -1), photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"]
    )
    check_reads(open_image(path), grey)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "jpeg"])
def test_the_brightness_of_ycbcr_is_grey(tmp_path: Path, compression: str | None, planar: str) -> None:
    """Codecs of bytes leave brightness and differences of colour; only JPEG makes red, green and blue of them."""
    grey = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8)
    stored = np.stack([grey, np.full_like(grey, 90), np.full_like(grey, 170)], -1)
    path = tmp_path / "a.tif"
    if compression == "jpeg":
        tifffile.imwrite(path, np.stack([grey] * 3, -1), photometric="rgb", compression=compression)
        with open_image(path) as image:
            assert np.abs(image[...].astype(int) - grey).max() < 12
        return
    stored = stored if planar == "contig" else np.moveaxis(stored, -1, 0)
    tifffile.imwrite(path, stored, photometric="ycbcr", planarconfig=planar, compression=compression)
    with open_image(path) as image:
        assert any("YCbCr" in line for line in image.warnings)
        check_reads(image, grey, examples=3)
    with open_image(path, channel=1) as image:
        assert (image[...] == 90).all()


def test_stack_of_rgb_pages(tmp_path: Path) -> None:
    grey = pixels((3, 40, 50))
    path = tmp_path / "rgb.tif"
    tifffile.imwrite(path, np.stack([grey] * 3, -1), photometric="rgb", compression="zlib", tile=(16, 16))
    with open_image(path) as image:
        assert image.axes == "zyx"
        check_reads(image, grey)


def test_palette_and_white_is_zero(tmp_path: Path) -> None:
    indices = pixels((30, 40)) // 64
    ramp = np.zeros((3, 256), np.uint16)
    ramp[:, :4] = np.array([0, 10, 100, 255], np.uint16) * 257
    path = tmp_path / "palette.tif"
    tifffile.imwrite(path, indices, photometric="palette", colormap=ramp)
    with open_image(path) as image:
        assert any("palette" in line for line in image.warnings)
        check_reads(image, np.array([0, 10, 100, 255], np.uint8)[indices])
    for dtype in ("uint8", "uint16"):
        stored = pixels((30, 40), dtype)
        tifffile.imwrite(path, stored, photometric="miniswhite")
        check_reads(open_image(path), np.iinfo(dtype).max - stored)
    mask = pixels((33, 45), bool)
    tifffile.imwrite(path, mask, photometric="miniswhite")
    check_reads(open_image(path), ~mask * np.uint8(255))


def test_bits_per_sample_other_than_the_dtypes(tmp_path: Path) -> None:
    path = tmp_path / "bits.tif"
    mask = pixels((33, 45), bool)
    tifffile.imwrite(path, mask, photometric="minisblack")
    check_reads(open_image(path), mask.astype(np.uint8) * 255)
    # 12 bits in 16, written as they come out of some cameras
    values = pixels((32, 48), "uint16") >> 4
    try:
        tifffile.imwrite(path, values, bitspersample=12, compression=None)
    except NotImplementedError:
        pytest.skip("this imagecodecs unpacks 12 bits, and does not pack them")
    check_reads(open_image(path), values)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("tile", [None, (16, 32, 32)])
def test_volumes_in_one_page(tmp_path: Path, tile: tuple[int, ...] | None, compression: str | None) -> None:
    stored = pixels((20, 50, 60), "uint16")
    path = tmp_path / "volume.tif"
    tifffile.imwrite(path, stored, volumetric=True, tile=tile, compression=compression, photometric="minisblack")
    with open_image(path) as image:
        assert image.axes == "zyx"
        check_reads(image, stored)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_levels(tmp_path: Path, compression: str | None) -> None:
    fine = pixels((256, 320))
    levels = [fine, fine[::2, ::2], fine[::4, ::4]]
    path = tmp_path / "pyramid.ome.tif"
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        options = {"tile": (64, 64), "compression": compression, "photometric": "minisblack"}
        meta = {"axes": "YX", "PhysicalSizeX": 4, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.004}
        writer.write(levels[0], subifds=2, metadata=meta, **options)
        for level in levels[1:]:
            writer.write(level, subfiletype=1, metadata=None, **options)
    for i, expected in enumerate(levels):
        with open_image(path, level=i) as image:
            assert image.pixel_size_nm == pytest.approx((4 * 2**i, 4 * 2**i))
            check_reads(image, expected)
    with pytest.raises(InputError, match=r"level 3 was asked for.*levels 0 to 2"):
        open_image(path, level=3)
    facts = describe(path)
    assert facts["format"] == "OME-BigTIFF"
    assert facts["levels"] == [[256, 320], [128, 160], [64, 80]]
    assert facts["layout"] == "tiles"


def test_time_and_channels_are_chosen(tmp_path: Path) -> None:
    stored = pixels((2, 3, 4, 20, 30), "uint16")  # t z c y x
    path = tmp_path / "hyper.tif"
    tifffile.imwrite(path, stored, imagej=True, metadata={"axes": "TZCYX"})
    with pytest.raises(InputError, match="has 2 time points: choose one with --timepoint"):
        open_image(path)
    with open_image(path, timepoint=1) as image:
        assert image.axes == "czyx"
        check_reads(image, stored[1].transpose(1, 0, 2, 3))
    with open_image(path, timepoint=0, channel=3) as image:
        assert image.axes == "zyx"
        check_reads(image, stored[0, :, 3])
    with pytest.raises(InputError, match=r"channel 4 was asked for.*0 to 3"):
        open_image(path, timepoint=0, channel=4)


@pytest.mark.parametrize("name", ["nm", "um", "µm", "micron", "A", "mm", "default"])
def test_ome_units(tmp_path: Path, name: str) -> None:
    factor = {"nm": 1, "um": 1e3, "µm": 1e3, "micron": 1e3, "A": 0.1, "mm": 1e6, "default": 1e3}[name]
    unit = {} if name == "default" else {f"PhysicalSize{a}Unit": name for a in "XYZ"}
    unit = {key: {"um": "µm", "micron": "µm", "A": "Å"}.get(value, value) for key, value in unit.items()}
    path = tmp_path / "sized.ome.tif"
    size = 1e-3 if name == "mm" else 1  # a pixel of more than a millimetre would not be believed
    meta = {
        "axes": "ZYX",
        "PhysicalSizeX": 2.5 * size,
        "PhysicalSizeY": 5.0 * size,
        "PhysicalSizeZ": 30.0 * size,
        **unit,
    }
    factor *= size
    tifffile.imwrite(path, pixels((2, 16, 16)), metadata=meta)
    assert open_image(path).pixel_size_nm == pytest.approx((30.0 * factor, 5.0 * factor, 2.5 * factor))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"imagej": True, "resolution": (250, 500), "metadata": {"unit": "um", "spacing": 0.05}}, (50, 2, 4)),
        ({"imagej": True, "resolution": (0.25, 0.25), "metadata": {"unit": "nm"}}, (4, 4, 4)),
        ({"imagej": True, "resolution": (250, 250), "metadata": {"unit": "\\u00B5m", "spacing": 1}}, (1000, 4, 4)),
        ({"imagej": True, "resolution": (1, 1), "metadata": {"unit": "pixel"}}, None),
        ({"imagej": True, "resolution": (72, 72), "metadata": {"unit": "inch"}}, None),
        ({"resolution": (2.5e6, 2.5e6), "resolutionunit": "CENTIMETER"}, (4, 4, 4)),
        ({"resolution": (6.35e6, 6.35e6), "resolutionunit": "INCH"}, (4, 4, 4)),
        ({"resolution": (300, 300), "resolutionunit": "INCH"}, None),
        ({"resolution": (1200, 1200), "resolutionunit": "INCH"}, None),
        ({"resolution": (2.5e6, 2.5e6), "resolutionunit": "NONE"}, None),
        ({}, None),
    ],
)
def test_pixel_size_from_tags(tmp_path: Path, options: dict[str, Any], expected: tuple[float, ...] | None) -> None:
    path = tmp_path / "sized.tif"
    options.setdefault("metadata", {})["axes"] = "ZYX"
    tifffile.imwrite(path, pixels((2, 16, 16)), photometric="minisblack", **options)
    with open_image(path) as image:
        assert image.pixel_size_nm == (None if expected is None else pytest.approx(expected))
        assumed = expected is not None and "spacing" not in options.get("metadata", {})
        assert any("thick" in str(guess) for guess in image.assumptions) == assumed
    with open_image(path, pixel_size_nm=7) as image:
        assert image.pixel_size_nm == (7, 7, 7)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (34682, "[User]\r\nDate=1\r\n[Scan]\r\nPixelWidth=3e-9\r\nPixelHeight=2e-9\r\n"),
        (34118, "\r\n1\r\nAP_IMAGE_PIXEL_SIZE\r\nImage Pixel Size = 3.000 nm\r\nAP_MAG\r\nMag = 10 K X\r\n"),
    ],
    ids=["FEI", "Zeiss"],
)
def test_pixel_size_from_microscopes(tmp_path: Path, code: int, text: str) -> None:
    path = tmp_path / "sem.tif"
    tifffile.imwrite(path, pixels((16, 16)), metadata=None, extratags=[(code, 2, None, text, True)])
    assert open_image(path).pixel_size_nm == pytest.approx((2 if code == 34682 else 3, 3))


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "zstd", "jpeg"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_truncated_anywhere(tmp_path: Path, compression: str | None, layout: str) -> None:
    path = tmp_path / "image.tif"
    stored = pixels((160, 176))
    tifffile.imwrite(path, stored, compression=compression, photometric="minisblack", **LAYOUTS[layout])
    whole = path.read_bytes()
    for kept in (1, 5, 8, 100, len(whole) // 3, len(whole) * 9 // 10, len(whole) - 20):
        path.write_bytes(whole[:kept])
        with pytest.raises(InputError, match=r"truncated|damaged|unknown format") as caught:
            open_image(path).read(Box.whole(stored.shape))
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)


def test_truncated_stack_is_not_a_shorter_one(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    stored = pixels((12, 32, 32))
    for imagej, compressed, options in product((False, True), (False, True), ({}, {"metadata": None})):
        compression = "zlib" if compressed else None
        tifffile.imwrite(path, stored, imagej=imagej, photometric="minisblack", compression=compression, **options)
        whole = path.read_bytes()
        for share in (0.3, 0.5, 0.7, 0.9, 0.99):
            path.write_bytes(whole[: int(len(whole) * share)])
            try:
                read = open_image(path)[...]
            except InputError as error:
                assert re.search("truncated|damaged", str(error))  # noqa: PT017 - either outcome is right
            else:  # all pixels are there, something behind them is not
                assert share >= 0.9
                assert not compressed
                np.testing.assert_array_equal(read, stored)


@pytest.mark.parametrize("compression", ["zlib", "zstd", "lzma"])
def test_corrupt_tile_is_named_and_the_others_are_read(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "image.tif"
    stored = pixels((192, 256))
    tifffile.imwrite(path, stored, compression=compression, tile=(64, 64), photometric="minisblack")
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages.first.dataoffsets[6], tiff.pages.first.databytecounts[6]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(count))
    with open_image(path) as image:
        np.testing.assert_array_equal(image[:64], stored[:64])
        np.testing.assert_array_equal(image[64:128, :128], stored[64:128, :128])
        with pytest.raises(InputError, match=r"corrupt: page 1, the piece at rows 64:128, columns 128:192") as caught:
            image.read(Box((0, 0), stored.shape))
        assert "\n" not in str(caught.value)


def test_file_cut_short_while_open(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    stored = pixels((400, 300))
    tifffile.imwrite(path, stored)
    with open_image(path) as image:
        with path.open("r+b") as file:
            file.truncate(40_000)
        with pytest.raises(InputError, match="truncated"):
            image.read(Box.whole(stored.shape))


def test_jpeg_tile_that_ends_early(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, pixels((128, 128)), compression="jpeg", tile=(64, 64), photometric="minisblack")
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        end = page.dataoffsets[1] + page.databytecounts[1]
        data[page.dataoffsets[1] + page.databytecounts[1] // 2 : end] = bytes(
            page.databytecounts[1] - page.databytecounts[1] // 2
        )
    path.write_bytes(data)
    with open_image(path) as image, pytest.raises(InputError, match="rows 0:64, columns 64:128"):
        image.read(Box.whole(image.shape))


def test_absent_tile_is_zero(tmp_path: Path) -> None:
    path = tmp_path / "sparse.tif"
    stored = pixels((128, 128))
    stored[64:, :64] = 0

    def tiles() -> Any:
        yield stored[:64, :64]
        yield stored[:64, 64:]
        yield None
        yield stored[64:, 64:]

    tifffile.imwrite(path, tiles(), shape=stored.shape, dtype=stored.dtype, tile=(64, 64), compression="zlib")
    check_reads(open_image(path), stored)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"II*\0", "damaged|truncated"),
        (b"II*\0\x08\0\0\0", "damaged"),
        (b"II*\0\x08\0\0\0\0\0\0\0\0\0", "no pixels"),
        (b"MM\0*" + b"\xff" * 60, "damaged"),
        (b"II+\0\x08\0\0\0" + b"\x10" * 60, "damaged"),
    ],
)
def test_no_tiff_at_all(tmp_path: Path, data: bytes, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "broken.tif"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        open_image(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_absurd_header(tmp_path: Path) -> None:
    path = tmp_path / "absurd.tif"
    tifffile.imwrite(path, pixels((32, 32)), metadata=None)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages.first.tags["ImageLength"].overwrite(2**31)
        tiff.pages.first.tags["RowsPerStrip"].overwrite(2**31)
    with pytest.raises(InputError, match="truncated"):
        open_image(path)


def test_missing_file_of_a_set(tmp_path: Path) -> None:
    first, second = tmp_path / "a.ome.tif", tmp_path / "b.ome.tif"
    tifffile.imwrite(second, pixels((20, 30)), metadata=None)
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="30" SizeY="20" SizeZ="2" SizeC="1" SizeT="1">'
        '<TiffData IFD="0" FirstZ="0" PlaneCount="1"><UUID FileName="a.ome.tif">urn:uuid:1</UUID></TiffData>'
        '<TiffData IFD="0" FirstZ="1" PlaneCount="1"><UUID FileName="b.ome.tif">urn:uuid:2</UUID></TiffData>'
        "</Pixels></Image></OME>"
    )
    tifffile.imwrite(first, pixels((20, 30), seed=1), metadata=None, description=xml)
    with open_image(first) as image:
        check_reads(image, np.stack([pixels((20, 30), seed=1), pixels((20, 30))]))
        assert "0.bytes" in image.fingerprint()
    second.unlink()
    with pytest.raises(InputError, match="incomplete: plane 1 of 2"):
        open_image(first)


def test_colours_without_a_rule(tmp_path: Path) -> None:
    path = tmp_path / "cmyk.tif"
    tifffile.imwrite(path, pixels((16, 16, 4)), photometric="separated")
    with pytest.raises(InputError, match="CMYK"):
        open_image(path)
    tifffile.imwrite(path, np.zeros((16, 16), np.complex64))
    with pytest.raises(InputError, match="pixels of type complex64"):
        open_image(path)


def test_terminal_stays_quiet_and_logging_is_left_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "odd.tif"
    tifffile.imwrite(path, pixels((32, 32)), description="x", metadata=None)
    data = path.read_bytes()
    # a stale description, as programs leave it that crop
    tifffile.imwrite(path, pixels((32, 32)), metadata=None, description='{"shape": [7, 5, 9]}')
    before = list(logging.getLogger("tifffile").handlers)
    with open_image(path) as image:
        check_reads(image, pixels((32, 32)))
        assert any("describes itself wrongly" in line for line in image.warnings)
    path.write_bytes(data[: len(data) - 200])
    with pytest.raises(InputError):
        open_image(path)
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("tifffile").handlers == before


def test_several_images_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "two.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(pixels((64, 64)), metadata=None)
        writer.write(pixels((30, 70)), metadata=None)
    with open_image(path) as image:
        check_reads(image, pixels((64, 64)))
        assert any("which of the 2 images" in guess.what for guess in image.assumptions)


def test_one_large_compressed_strip_is_told(tmp_path: Path) -> None:
    path = tmp_path / "strip.tif"
    stored = np.zeros((9000, 8000), np.uint8)
    stored[4000:4100] = 7
    tifffile.imwrite(path, stored, compression="zlib", compressionargs={"level": 1}, rowsperstrip=9000)
    with open_image(path) as image:
        assert any("tilelab convert" in line and "68.7 MiB" in line for line in image.warnings)
        np.testing.assert_array_equal(image[3990:4010, ::1], stored[3990:4010])


def test_uncompressed_strip_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "bare.tif"
    rows, columns = 16_384, 16_384
    with path.open("wb") as file:  # 256 MiB, sparse on disk
        tifffile.imwrite(file, shape=(rows, columns), dtype=np.uint8, rowsperstrip=rows)
    assert path.stat().st_size > rows * columns
    process = psutil.Process()
    with open_image(path) as image:
        image.read(Box((0, 0), (512, columns)))
        before, peak = process.memory_info().rss, 0
        for y in range(0, rows, 512):
            band = image.read(Box((y, 0), (y + 512, columns)))
            peak = max(peak, process.memory_info().rss)
            assert band.shape == (512, columns)
            del band
    assert peak - before < 32 * 2**20, f"{(peak - before) / 2**20:.0f} MiB for bands of 8 MiB"


def test_fingerprint_tells_files_apart(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, pixels((64, 64)))
    first = open_image(path).fingerprint()
    assert first == open_image(path).fingerprint()
    assert first != open_image(path, pixel_size_nm=3, channel=0).fingerprint()
    tifffile.imwrite(path, pixels((64, 64), seed=3))
    assert first["ends_sha256"] != open_image(path).fingerprint()["ends_sha256"]


def test_native_micrographs(real_data: Path) -> None:
    path = next((real_data / "superalloy_native" / "train").glob("*.tif"))
    with open_image(path) as image:
        assert image.axes == "yx"
        np.testing.assert_array_equal(image[...], tifffile.imread(path)[..., 0])  # R = G = B


@pytest.mark.parametrize(
    ("written", "chosen", "said"),
    [
        ([((30, 40), 1), ((120, 160), 0)], 1, "previews or labels"),
        ([((30, 40), 0), ((120, 160), 0)], 1, "image 0 is a smaller picture of the same shape"),
        ([((15, 20), 0), ((30, 40), 0), ((120, 161), 0)], 2, "which of the 3 images"),
        ([((120, 160), 0), ((30, 40), 1)], 0, ""),
        ([((40, 40), 0), ((120, 160), 0)], 0, "because it is the first"),
    ],
)
def test_previews_are_not_the_image(
    written: list[tuple[tuple[int, int], int]], chosen: int, said: str, tmp_path: Path
) -> None:
    planes = [pixels(shape, np.uint16, seed=i) for i, (shape, _) in enumerate(written)]
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for plane, (_, kind) in zip(planes, written, strict=True):
            file.write(plane, subfiletype=kind, metadata=None)
    with open_image(tmp_path / "a.tif") as image:
        np.testing.assert_array_equal(image[...], planes[chosen])
        everything = "\n".join([*image.warnings, *map(str, image.assumptions)])
        assert said in everything
        assert bool(said) == bool(everything)
