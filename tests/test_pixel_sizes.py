"""Pixel sizes as microscopes and programs state them: taken where they are sure, said where not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from image_files import pixels

from tilelab import Options, infer
from tilelab.cli.main import main
from tilelab.errors import InputError, ModelError
from tilelab.io.images.image import Image
from tilelab.io.images.open import open_image
from tilelab.io.images.units import length_nm

H, W = 60, 80
Expected = tuple[float, ...] | None
FIBICS = (
    '<?xml version="1.0"?><Fibics><Image><Width>{width}</Width><Height>60</Height></Image><Scan><Ux>{ux}</Ux><Uy>0</Uy>'
    '<Vx>0</Vx><Vy>-0.005</Vy><FOV_X units="um">0.32</FOV_X><FOV_Y units="um">0.3</FOV_Y></Scan></Fibics>'
)
TESCAN = b"\0\1\2[MAIN]\r\nDevice=S8000\r\nPixelSizeX=5e-09\r\nPixelSizeY=6e-09\r\nImageStripSize=8\r\n\0"
FEI = "[Scan]\nPixelWidth=1.5e-9\nPixelHeight=1.5e-9\n[Image]\nResolutionX={}\n[PrivateFei]\nDatabarHeight=8\n"
FEI_XML = (
    '<?xml version="1.0"?><Metadata><BinaryResult><PixelSize><X unit="m" unitPrefixPower="1">2.5e-9</X>'
    '<Y unit="m">3e-9</Y></PixelSize></BinaryResult></Metadata>'
)
FEI_BEAM = "[IRBeam]\nHFW=1.6e-7\nVFW=1.2e-7\n[Image]\nResolutionX=80\nResolutionY=60\n"


def zeiss(width: int, *, image: str = "", frame: str = "Pixel Size = 5.825 nm", exact: float = 0) -> dict[str, Any]:
    unnamed = [0, 0, 0, exact, 0] if exact else []
    named = [part for pair in (("AP_IMAGE_PIXEL_SIZE", image), ("AP_PIXEL_SIZE", frame)) if pair[1] for part in pair]
    text = "\r\n".join([*map(str, unnamed), *named, ""])
    return {"shape": (H, width), "extratags": [(34118, 1, len(text), text.encode("cp1252"), True)]}


def gatan(*, unit: str = "nm", scale: float = 2.5) -> dict[str, Any]:
    return {"extratags": [
        *((65003 + i, 1, 0, unit.encode("cp1252"), True) for i in range(2)),
        *((65009 + i, 12, 1, scale, True) for i in range(2)),
    ]}  # fmt: skip


def tag(code: int, text: str | bytes) -> dict[str, Any]:
    data = text.encode() if isinstance(text, str) else text
    return {
        "extratags": [
            (code, 1 if isinstance(text, bytes) else 2, len(data), data if isinstance(text, bytes) else text, True)
        ]
    }


def imagej(resolution: float, **metadata: Any) -> dict[str, Any]:
    return {
        "shape": (3, H, W),
        "imagej": True,
        "resolution": (resolution, resolution),
        "metadata": {"axes": "ZYX", **metadata},
    }


# what is written, the right size, and the beginning of what is said of it
TIFFS: dict[str, tuple[dict[str, Any], Expected, str]] = {
    "zeiss, the stored image's": (zeiss(512, image="Image Pixel Size = 11.65 nm"), (11.65, 11.65), ""),
    "zeiss, a frame's": (zeiss(512), (11.65, 11.65), ""),
    "zeiss, a frame's at 1024": (zeiss(1024), (5.825, 5.825), ""),
    "zeiss, a frame's at 2048": (zeiss(2048), (2.9125, 2.9125), ""),
    "zeiss, unrounded": (zeiss(1024, frame="Pixel Size = 5.82 nm", exact=5.8249e-9), (5.8249, 5.8249), ""),
    "zeiss, unnamed alone": (zeiss(512, frame="", exact=5.8e-9), (11.6, 11.6), ""),
    "zeiss, both and apart": (zeiss(512, image="Image Pixel Size = 3 nm", exact=9e-9), (3, 3), ""),
    "zeiss, cut": (zeiss(700), (8.5211, 8.5211), "states that of a frame 1024 pixels wide"),
    "zeiss, micrometres": (zeiss(1024, frame="Pixel Size = 1.2 µm"), (1200, 1200), ""),
    "fei": (tag(34682, FEI.format(W)), (1.5, 1.5), ""),
    "fei, xml": (tag(34683, FEI_XML), (3, 2.5), "not square"),
    "fei, ion beam": (tag(34682, FEI.format(W).replace("[Scan]", "[IScan]")), (1.5, 1.5), ""),
    "fei, resized": (tag(34682, FEI.format(160)), (1.5, 1.5), "but of an image 160 pixels wide, and this one has 80"),
    "fei, infrared": (tag(34682, FEI_BEAM), (2, 2), ""),
    "tescan": (tag(50431, TESCAN), (6, 5), "are not square: 6 nm high, 5 nm wide"),
    "fibics": (tag(51023, FIBICS.format(width=W, ux=0.005)), (5, 5), ""),
    "fibics, field of view": (tag(51023, FIBICS.format(width=W, ux=0)), (5, 4), "not square"),
    "fibics, another image": (tag(51023, FIBICS.format(width=99, ux=0.005)), (5, 5), "of an image 99 pixels wide"),
    "gatan": (gatan(), (2.5, 2.5), ""),
    "gatan, micrometres": (gatan(unit="µm", scale=0.004), (4, 4), ""),
    "gatan, a diffractogram": (gatan(unit="1/nm"), None, ""),
    "imagej, unit of z": (imagej(1 / 16.5, unit="nm", zunit="micron", spacing=0.025), (25, 16.5, 16.5), ""),
    "imagej, spacing below 0": (imagej(0.25, unit="nm", spacing=-30), (30, 4, 4), ""),
    "imagej, unit of y": (imagej(0.25, unit="nm", yunit="um", spacing=4), (4, 4000, 4), "not square"),
    "imagej, no spacing": (imagej(0.25, unit="nm"), (4, 4, 4), "how thick the slices"),
    "imagej, pixel": (imagej(1, unit="pixel", spacing=2), None, ""),
    "imagej, 72 dpi in cm": (imagej(28.35, unit="cm"), None, ""),
    "imagej, no unit": (imagej(0.25, spacing=30), None, ""),
    "imagej, too small": (imagej(1e5, unit="nm"), None, "no microscope has less than 0.01 nm or more than 1 mm"),
    "72 dpi": ({"resolution": (72, 72), "resolutionunit": "INCH"}, None, ""),
    "96 dpi": ({"resolution": (37.8, 37.8), "resolutionunit": "CENTIMETER"}, None, ""),
    "real dpi": ({"resolution": (5e6, 2.5e6), "resolutionunit": "CENTIMETER"}, (4, 2), "not square"),
}  # fmt: skip


def said_of(image: Image) -> str:
    return "\n".join([*image.warnings, *map(str, image.assumptions)])


@pytest.mark.parametrize("kind", TIFFS)
def test_tiff(kind: str, tmp_path: Path) -> None:
    written, expected, said = TIFFS[kind]
    options = dict(written)
    shape = options.pop("shape", (H, W))
    tifffile.imwrite(tmp_path / "a.tif", pixels(shape), photometric="minisblack", **options)
    with open_image(tmp_path / "a.tif") as image:
        assert image.pixel_size_nm == (None if expected is None else pytest.approx(expected, rel=1e-4))
        assert said in said_of(image)
        if not said:
            assert said_of(image) == ""
    with open_image(tmp_path / "a.tif", pixel_size_nm=7) as image:
        assert not [a for a in image.assumptions if a.flag == "--pixel-size"]


JEOL = "$$SM_MICRON_BAR {bar}\r\n$$SM_MICRON_MARKER {marker}\r\n$CM_FULL_SIZE {width} 52\r\n$$SM_DATA_BAR 8\r\n"


@pytest.mark.parametrize("suffix", ["tif", "png", "jpg", "bmp"])
def test_texts_beside(suffix: str, tmp_path: Path) -> None:
    from PIL import Image as Picture

    path = tmp_path / f"a.{suffix}"
    Picture.fromarray(pixels((H, W))).save(path)
    beside = tmp_path / "a.txt"
    for bar, marker, width, expected, said in (
        (20, "100nm", W, 5, ""),
        (50, "1um", W, 20, ""),
        (40, "0.2 um", 160, 5, "but of an image 160 pixels wide"),
        (0, "100nm", W, None, ""),
        (20, "many", W, None, ""),
    ):
        beside.write_text(JEOL.format(bar=bar, marker=marker, width=width))
        with open_image(path) as image:
            assert image.pixel_size_nm == (None if expected is None else pytest.approx((expected, expected)))
            assert said in said_of(image)
    beside.write_text("notes of the day")
    (tmp_path / f"a-{suffix}.hdr").write_bytes(TESCAN)
    with open_image(path) as image:
        assert image.pixel_size_nm == pytest.approx((6, 5))


@pytest.mark.parametrize(
    ("unit", "nm"),
    [
        *[(u, 1e3) for u in ("um", "µm", "μm", "micron", "microns", "Micrometer", "\\u00B5m", "Âµm", "micrometre")],
        *[(u, 0.1) for u in ("Å", "Å", "A", "Angstrom", "angstroms", "ångström")],
        ("nm", 1), ("Nanometers", 1), (" nm ", 1), ("m", 1e9), ("pm", 1e-3), ("inch", 2.54e7),
        *[(u, None) for u in ("pixel", "px", "", "1/nm", "nm^-1", "s", None, "unknown")],
    ],
)  # fmt: skip
def test_units(unit: str | None, nm: float | None) -> None:
    assert length_nm(1, unit) == (None if nm is None else pytest.approx(nm))


def n5(folder: Path, group: dict[str, Any], own: dict[str, Any] | None = None) -> Path:
    tensorstore = pytest.importorskip("tensorstore")
    for level, shape in enumerate(((40, 30, 3), (20, 15, 3))):
        at = folder / "setup0" / "timepoint0" / f"s{level}"
        metadata = {"dimensions": shape, "dataType": "uint8", "blockSize": [16] * 3, "compression": {"type": "raw"}}
        store = {"driver": "file", "path": f"{at}/"}
        array = tensorstore.open({"driver": "n5", "kvstore": store, "metadata": metadata}, create=True).result()
        array.write(1).result()
        document = json.loads((at / "attributes.json").read_text()) | (own or {})
        (at / "attributes.json").write_text(json.dumps(document | {"downsamplingFactors": [2**level, 2**level, 1]}))
    (at.parent / "attributes.json").write_text(json.dumps(group))
    return folder


SPIM = (
    '<SpimData><SequenceDescription><ImageLoader format="bdv"><{kind} type="relative">{name}</{kind}>'
    "</ImageLoader><ViewSetups>"
    "<ViewSetup><id>1</id><voxelSize><unit>um</unit><size>9 9 9</size></voxelSize></ViewSetup>"
    "<ViewSetup><id>0</id><voxelSize><unit>{unit}</unit><size>0.008 0.009 0.03</size></voxelSize></ViewSetup>"
    "</ViewSetups></SequenceDescription></SpimData>"
)


def test_n5_counts_in_nothing_that_it_does_not_name(tmp_path: Path) -> None:
    path = n5(tmp_path / "a.n5", {"resolution": [0.008, 0.009, 0.03], "offset": [0.08, 0, 0.3]})
    with open_image(path) as image:
        assert image.pixel_size_nm is None
        assert image.origin_px == pytest.approx((10, 0, 10))  # the same unit, whichever it is
        assert "it gives 0.03 x 0.009 x 0.008 without a unit (say otherwise with --pixel-size)" in said_of(image)
    (tmp_path / "b.xml").write_text(SPIM.format(kind="n5", name="another.n5", unit="um"))
    with open_image(path) as image:
        assert image.pixel_size_nm is None
    (tmp_path / "a.xml").write_text(SPIM.format(kind="n5", name="a.n5", unit="µm"))
    for inner in ("", "setup0/timepoint0", "setup0/timepoint0/s0"):
        with open_image(path / inner) as image:
            assert image.pixel_size_nm == pytest.approx((30, 9, 8))
            assert "unit" not in said_of(image)
    with open_image(path, level=1) as image:
        assert image.pixel_size_nm == pytest.approx((30, 18, 16))
    with pytest.raises(InputError, match=r"a\.xml has several volumes.*1: setup 0"):
        open_image(tmp_path / "a.xml")
    (tmp_path / "a.xml").write_text(SPIM.format(kind="n5", name="a.n5", unit="pixel"))
    with open_image(path) as image:
        assert image.pixel_size_nm is None
    named = n5(tmp_path / "c.n5", {"pixelResolution": {"dimensions": [4, 4, 30], "unit": "nm"}})
    with open_image(named) as image:
        assert image.pixel_size_nm == (30, 4, 4)


def test_hdf5_counts_in_nothing_that_it_does_not_name(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    stored = pixels((3, 30, 40), np.uint16)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["t00000/s00/0/cells"] = stored.view(np.int16)
        file["s00/resolutions"] = [[1, 1, 1]]
        for name in ("raw", "volumes/raw", "stated"):
            file[name] = stored
            file[name].attrs["resolution"] = (40.0, 4.0, 4.0)
            file[name].attrs["offset"] = (400.0, 0.0, 8.0)
        file["stated"].attrs["units"] = "nm"
    with open_image(f"{tmp_path / 'a.h5'}::raw") as image:
        assert (image.pixel_size_nm, image.origin_px) == (None, (10, 0, 2))
        assert "it gives 40 x 4 x 4 without a unit" in said_of(image)
    with open_image(f"{tmp_path / 'a.h5'}::volumes/raw") as image:
        assert image.pixel_size_nm == (40, 4, 4)
        assert "CREMI" in said_of(image)
    with open_image(f"{tmp_path / 'a.h5'}::stated", axes="zyx") as image:
        assert (image.pixel_size_nm, said_of(image)) == ((40, 4, 4), "")
    cells = f"{tmp_path / 'a.h5'}::t00000/s00/0/cells"
    with open_image(cells) as image:
        assert (image.dtype, image.pixel_size_nm) == (np.uint16, None)
        np.testing.assert_array_equal(image[...], stored)
        assert "unsigned, because BigDataViewer stores" in said_of(image)
    (tmp_path / "a.xml").write_text(SPIM.format(kind="hdf5", name="a.h5", unit="um"))
    with open_image(cells) as image:
        assert image.pixel_size_nm == pytest.approx((30, 9, 8))


def test_mrc_says_one_angstrom_when_it_knows_nothing(tmp_path: Path) -> None:
    mrcfile = pytest.importorskip("mrcfile")
    for size, expected, said in ((1.0, (0.1,) * 3, "1 Å"), (1.3, (0.13,) * 3, ""), (0, None, "")):
        with mrcfile.new(tmp_path / "a.mrc", overwrite=True) as file:
            file.set_data(pixels((3, H, W)).astype(np.int16))
            file.voxel_size = size
        with open_image(tmp_path / "a.mrc") as image:
            assert image.pixel_size_nm == (None if expected is None else pytest.approx(expected))
            assert said in said_of(image)


def test_implausible_thickness_alone_leaves_the_rest(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif",
        pixels((3, H, W)),
        **{k: v for k, v in imagej(0.25, unit="nm", spacing=1e-9).items() if k != "shape"},
    )
    with open_image(tmp_path / "a.tif") as image:
        assert image.pixel_size_nm == (4, 4, 4)
        assert "unknown along z" in said_of(image)


@pytest.fixture
def plane(tmp_path: Path) -> Path:
    path = tmp_path / "plane.tif"
    tifffile.imwrite(path, pixels((H, W)), resolution=(2.5e6, 2.5e6), resolutionunit="CENTIMETER")  # 4 nm
    return path


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--rescale"],
            "--rescale needs the pixel size of the model, which is not stated: give it with --model-pixel-size",
        ),
        (["--ignore-pixel-size"], "--ignore-pixel-size does nothing: the model states no pixel size"),
        (
            ["--model-pixel-size", "4.1", "--rescale"],
            "--rescale does nothing: 4 nm of the image and 4.1 nm of the model",
        ),
        (["--model-pixel-size", "4", "--ignore-pixel-size"], "--ignore-pixel-size does nothing: 4 nm"),
        (["--model-pixel-size", "8", "--rescale", "--ignore-pixel-size"], "contradict each other"),
        (["--model-pixel-size", "8", "--rescale"], "resampled from 4 to 8 nm per pixel"),
        (["--model-pixel-size", "8"], "has 4 nm per pixel, the model was trained on 8: resample with --rescale"),
        (["--model-pixel-size", "8", "--pixel-size", "4,16"], "has 4 x 16 nm per pixel, the model was trained on 8"),
    ],
)
def test_flags_that_cannot_act_say_so(
    flags: list[str], said: str, plane: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["infer", str(plane), "-m", "identity", "--tile", "32", "-o", str(tmp_path / "o.ome.zarr"), *flags])
    assert said in capsys.readouterr().err
    assert code == (2 if any(word in said for word in ("needs", "contradict", "trained on")) else 0)


def test_rescale_needs_to_know_the_image(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", pixels((H, W)))
    options = Options(rescale=True)
    from tilelab.engines.overrides import SpecOverrides

    options = Options(rescale=True, model=SpecOverrides(pixel_size_nm=(8.0,)))
    with pytest.raises(ModelError, match=r"--rescale needs the pixel size of .*a\.npy.*--pixel-size"):
        infer(tmp_path / "a.npy", "identity", tmp_path / "o.ome.zarr", options=options)
