"""Zarr in zip files, OME-Zarr 0.6, and Berkeley's EMD."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr

from tests.fuzzing import FORMATS
from tests.image_files import check_reads, pixels
from tilelab.errors import InputError
from tilelab.io import describe, open_image

SIX = {
    "version": "0.6",
    "multiscales": [
        {
            "name": "drawn",
            "coordinateSystems": [
                {"name": "world", "axes": [{"name": a, "type": "space", "unit": "micrometer"} for a in "yx"]},
                {"name": "image", "axes": [{"name": a, "type": "space", "unit": "nanometer"} for a in "yx"]},
            ],
            "datasets": [
                {
                    "path": "0",
                    "coordinateTransformations": [
                        {
                            "type": "sequence",
                            "input": {"path": "0"},
                            "output": {"name": "image"},
                            "transformations": [
                                {"type": "scale", "scale": [4, 5]},
                                {"type": "translation", "translation": [40, 0]},
                            ],
                        }
                    ],
                }
            ],
            "coordinateTransformations": [
                {"type": "scale", "scale": [0.001, 0.001], "input": {"name": "image"}, "output": {"name": "world"}}
            ],
        }
    ],
}


def draw_six(path: Path, values: Any) -> None:
    group = zarr.create_group(path, zarr_format=3)
    group.create_array("0", shape=values.shape, dtype=values.dtype, chunks=(16, 32))[...] = values
    group.attrs["ome"] = SIX


def pack(folder: Path, target: Path, compression: int, lead: str) -> None:
    with zipfile.ZipFile(target, "w", compression) as packed:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                packed.write(file, lead + str(file.relative_to(folder)))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("lead", ["", "a.zarr/", "out/.er/a.zarr/"])
@pytest.mark.parametrize("form", ["zarr2", "zarr3", "ome-zarr"])
def test_zipped(tmp_path: Path, form: str, lead: str, compression: int) -> None:
    drawn = FORMATS[form]
    values = pixels(drawn.shape, "uint16")
    drawn.draw(tmp_path / drawn.file, values)
    pack(tmp_path / drawn.file, tmp_path / "a.ozx", compression, lead)
    with open_image(tmp_path / drawn.file) as plain, open_image(tmp_path / "a.ozx") as image:
        assert (image.axes, image.pixel_size_nm) == (plain.axes, plain.pixel_size_nm)
        check_reads(image, values, examples=3)
        first = image.fingerprint()
    facts = describe(tmp_path / "a.ozx")
    assert facts["stored"] == describe(tmp_path / drawn.file)["stored"]
    drawn.draw(tmp_path / f"b{drawn.file}", pixels(drawn.shape, "uint16", seed=1))
    pack(tmp_path / f"b{drawn.file}", tmp_path / "a.ozx", compression, lead)
    with open_image(tmp_path / "a.ozx") as changed:
        assert changed.fingerprint() != first


def test_a_zip_file_called_after_its_folder(tmp_path: Path) -> None:
    """As `zip -r a.ome.zarr.zip a.ome.zarr` makes it, and a Mac, which adds a folder of its own."""
    drawn = FORMATS["ome-zarr"]
    values = pixels(drawn.shape, "uint16")
    drawn.draw(tmp_path / "a.ome.zarr", values)
    target = tmp_path / "a.ome.zarr.zip"
    pack(tmp_path / "a.ome.zarr", target, zipfile.ZIP_DEFLATED, "a.ome.zarr/")
    check_reads(open_image(target), values, examples=3)
    with zipfile.ZipFile(target, "a") as packed:
        packed.writestr("__MACOSX/._a.ome.zarr", "of a Mac")
    check_reads(open_image(target), values, examples=3)


def test_what_is_absent_in_a_zip_file_is_counted(tmp_path: Path) -> None:
    values = pixels((40, 50))
    FORMATS["zarr3"].draw(tmp_path / "a.zarr", pixels(FORMATS["zarr3"].shape))
    group = zarr.create_array(tmp_path / "b.zarr", shape=(40, 50), chunks=(10, 50), dtype="uint8", fill_value=7)
    group[:20] = values[:20]
    pack(tmp_path / "b.zarr", tmp_path / "b.zip", zipfile.ZIP_STORED, "")
    with open_image(tmp_path / "b.zip") as image:
        assert any("2 of 4 chunks are stored" in line for line in image.warnings)
        np.testing.assert_array_equal(image[...], np.vstack([values[:20], np.full((20, 50), 7)]))


def test_damaged_and_other_zip_files(tmp_path: Path) -> None:
    drawn = FORMATS["ome-zarr"]
    drawn.draw(tmp_path / "a.zarr", pixels(drawn.shape))
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        pack(tmp_path / "a.zarr", tmp_path / "a.zip", compression, "")
        whole = (tmp_path / "a.zip").read_bytes()
        (tmp_path / "a.zip").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError, match=r"a\.zip is a damaged zip file"):
            open_image(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as packed:
        packed.writestr("notes.txt", "of the day")
    with pytest.raises(InputError, match="is a zip file: unpack it first"):
        open_image(tmp_path / "b.zip")


def test_ome_zarr_of_version_6(tmp_path: Path) -> None:
    values = pixels((40, 60))
    draw_six(tmp_path / "a.ome.zarr", values)
    with open_image(tmp_path / "a.ome.zarr") as image:
        assert (image.axes, image.pixel_size_nm, image.origin_px) == ("yx", (4, 5), (10, 0))
        assert not any("unit" in line for line in image.warnings)
        np.testing.assert_array_equal(image[...], values)
    assert describe(tmp_path / "a.ome.zarr")["format"] == "OME-Zarr 0.6"


def write_emd(path: Path, values: Any, names: tuple[str, ...], units: tuple[str, ...], step: float = 0.5) -> None:
    with h5py.File(path, "w") as file:
        group = file.create_group("data/a")
        group.attrs["emd_group_type"] = 1
        group.create_dataset("data", data=values)
        for i, (name, unit) in enumerate(zip(names, units, strict=True)):
            vector = group.create_dataset(f"dim{i + 1}", data=np.arange(values.shape[i]) * step)
            vector.attrs["name"], vector.attrs["units"] = np.bytes_(name), np.bytes_(unit)


def test_emd_by_the_names_of_its_axes(tmp_path: Path) -> None:
    values = pixels((20, 30, 7), "float32")
    write_emd(tmp_path / "a.emd", values, ("R_x", "R_y", "R_z"), ("[n_m]", "[n_m]", "[n_m]"))
    with open_image(tmp_path / "a.emd") as image:
        assert (image.axes, image.pixel_size_nm, image.assumptions) == ("zyx", (0.5, 0.5, 0.5), ())
        np.testing.assert_array_equal(image[...], values.transpose())
    write_emd(tmp_path / "a.emd", values, ("x", "y", "bin_outer_angle"), ("nm", "nm", "mrad"))
    with open_image(tmp_path / "a.emd", channel=2) as image:
        np.testing.assert_array_equal(image[...], values[..., 2].transpose())
    for names, units, what in (
        (("R_x", "R_y", "Q_x"), ("nm", "nm", "1/nm"), "diffraction patterns"),
        (("x", "y", "loss"), ("nm", "nm", "eV"), "spectra"),
    ):
        write_emd(tmp_path / "a.emd", values, names, units)
        with pytest.raises(InputError, match=f"holds {what}: tilelab segments images"):
            open_image(tmp_path / "a.emd")
    write_emd(tmp_path / "a.emd", values, ("", "", ""), ("", "", ""))
    with open_image(tmp_path / "a.emd") as image:  # nothing is named: guessed, and said
        assert image.assumptions
