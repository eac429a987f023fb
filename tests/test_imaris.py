"""Imaris files: channels and time points at full resolution are the images, sizes are those of the extent."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.image_files import Array, pixels
from tilelab.errors import InputError
from tilelab.io import describe, open_image

SHAPE = (3, 20, 30)


def chars(text: object) -> Array:
    return np.array(list(str(text)), "S1")


def draw(path: Path, channels: int) -> list[Array]:
    drawn = [pixels(SHAPE, "uint16", seed) for seed in range(channels)]
    with h5py.File(path, "w") as file:
        said = file.create_group("DataSetInfo/Image").attrs
        said["Unit"] = chars("um")
        for i, extent in enumerate((0.3, 0.1, 0.09)):
            said[f"ExtMin{i}"], said[f"ExtMax{i}"] = chars(1), chars(1 + extent)
        for level in (0, 1):
            for c, values in enumerate(drawn):
                part = values[:, :: 1 + level, :: 1 + level]
                group = file.create_group(f"DataSet/ResolutionLevel {level}/TimePoint 0/Channel {c}")
                padded = np.pad(part, ((0, 5), (0, 12), (0, 2)))
                group.create_dataset("Data", data=padded, chunks=(8, 16, 16))
                for axis, n in zip("ZYX", part.shape, strict=True):
                    group.attrs[f"ImageSize{axis}"] = chars(n)
    return drawn


def test_one_channel(tmp_path: Path) -> None:
    (values,) = draw(tmp_path / "a.ims", 1)
    with open_image(tmp_path / "a.ims") as image:
        assert (image.axes, image.pixel_size_nm) == ("zyx", pytest.approx((30, 5, 10)))
        np.testing.assert_array_equal(image[...], values)
    coarse = f"{tmp_path / 'a.ims'}::/DataSet/ResolutionLevel 1/TimePoint 0/Channel 0/Data"
    with open_image(coarse) as image:
        assert image.pixel_size_nm == pytest.approx((30, 10, 20))
        np.testing.assert_array_equal(image[...], values[:, ::2, ::2])


def test_channels_are_chosen(tmp_path: Path) -> None:
    drawn = draw(tmp_path / "a.ims", 11)
    with pytest.raises(InputError, match="--series"):
        open_image(tmp_path / "a.ims")
    for c in (0, 2, 10):  # by number, not by the order of texts
        with open_image(tmp_path / "a.ims", series=c) as image:
            np.testing.assert_array_equal(image[...], drawn[c])
    assert len(describe(tmp_path / "a.ims")["series"]) == 11
