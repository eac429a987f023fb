"""Files of makers' programs: what is an image opens with its axes and sizes, what is none is refused by its name."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.image_files import pixels
from tests.vendor_files import write_dm3, write_ser
from tilelab.errors import InputError
from tilelab.io import open_image


@pytest.mark.parametrize(
    ("units", "axes", "size"),
    [
        (("µm", "µm", "µm"), "zyx", (4, 4, 4)),
        (("µm", "µm", ""), "zyx", (4, 4, 4)),
        (("1/nm", "1/nm", ""), "zyx", None),
        (("", "", ""), "zyx", None),
    ],
)
def test_digitalmicrograph_units(
    tmp_path: Path, units: tuple[str, ...], axes: str, size: tuple[float, ...] | None
) -> None:
    values = pixels((3, 20, 30), "float32")
    write_dm3(tmp_path / "a.dm3", values, units=units)
    with open_image(tmp_path / "a.dm3") as image:
        assert image.axes == axes
        assert image.pixel_size_nm == (None if size is None else pytest.approx(size))
        np.testing.assert_array_equal(image[...], values)


def test_frames_in_seconds_are_time_points(tmp_path: Path) -> None:
    values = pixels((3, 20, 30), "uint16")
    write_dm3(tmp_path / "a.dm3", values, units=("nm", "nm", "s"), scale=2)
    with pytest.raises(InputError, match="3 time points"):
        open_image(tmp_path / "a.dm3")
    with open_image(tmp_path / "a.dm3", timepoint=1) as image:
        assert image.pixel_size_nm == (2, 2)
        np.testing.assert_array_equal(image[...], values[1])


def test_spectra_are_refused_as_what_they_are(tmp_path: Path) -> None:
    write_dm3(tmp_path / "line.dm3", pixels((64,), "float32"), units=("eV",), scale=0.5)
    write_dm3(tmp_path / "cube.dm3", pixels((64, 5, 5), "float32"), units=("nm", "nm", "eV"), scale=0.5)
    for name in ("line.dm3", "cube.dm3"):
        with pytest.raises(InputError, match=f"{name} holds .*: tilelab segments images") as refused:
            open_image(tmp_path / name)
        assert "\n" not in str(refused.value)


def test_rows_of_tia_are_stored_upwards(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    write_ser(tmp_path / "a_1.ser", values)
    with open_image(tmp_path / "a_1.ser") as image:
        np.testing.assert_array_equal(image[...], values)
        np.testing.assert_array_equal(image[1:, 2:], values[1:, 2:])


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dm3(tmp_path / "a.dm3", pixels((20, 30)))
    monkeypatch.setitem(sys.modules, "openreadout", None)
    with pytest.raises(InputError, match=r"\.dm3 files needs openreadout.*pip install .*\[formats\]"):
        open_image(tmp_path / "a.dm3")
