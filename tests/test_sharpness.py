"""Sharpness against its formulas, written down once more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Picture

from tilelab.cli import main
from tilelab.errors import InputError
from tilelab.io import open_image
from tilelab.measure.sharpness import MEASURES, measure_sharpness


def formulas(f: Any) -> dict[str, float]:
    """f[y, x] as float64; each over the number of pixels."""
    found = {
        "brenner": ((f[:, 2:] - f[:, :-2]) ** 2).sum(),
        "smd2": (abs(f[:-1, :-1] - f[:-1, 1:]) * abs(f[:-1, :-1] - f[1:, :-1])).sum(),
        "variance": ((f - f.mean()) ** 2).sum(),
        "vollath": (f[:, :-1] * f[:, 1:]).sum() - f.size * f.mean() ** 2,
    }
    return {name: float(value) / f.size for name, value in found.items()}


@settings(max_examples=30)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([np.uint8, np.uint16, np.float32]),
    st.integers(2, 40),
    st.sampled_from([1, 2, 3]),
)
def test_measures_are_their_formulas(seed: int, dtype: Any, block: int, shrink: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(3, 60, 2))
    pixels = (rng.random(shape) * (60000 if dtype == np.uint16 else 255)).astype(dtype)
    found = measure_sharpness(open_image(pixels), block=block, shrink=shrink)
    h, w = (n // shrink for n in shape)
    small = pixels[: h * shrink, : w * shrink].astype(float).reshape(h, shrink, w, shrink).mean(axis=(1, 3))
    for name, value in formulas(small).items():
        assert found.values[name] == pytest.approx(value, rel=1e-9, abs=1e-9 * float(pixels.max()) ** 2)
    first = small[:block, :block]
    assert found.maps["variance"][0, 0] == pytest.approx(first.var(), rel=1e-6, abs=1e-9 * float(pixels.max()) ** 2)
    assert found.maps["brenner"].shape == (-(-h // block), -(-w // block))


def test_blur_lowers_every_measure_and_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    sharp = rng.integers(0, 256, (128, 128)).astype(np.uint8)
    half = sharp.copy()
    half[:, 64:] = half[:, 64:].reshape(64, 2, 32, 2).mean(axis=(1, 3)).astype(np.uint8).repeat(2, 0).repeat(2, 1)
    for name, pixels in (("sharp", sharp), ("half", half)):
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels)
    one, other = (measure_sharpness(open_image(p), block=64) for p in (sharp, half))
    assert all(other.values[name] < one.values[name] for name in ("brenner", "smd2", "variance"))
    assert (other.maps["smd2"][:, 1] < 0.5 * other.maps["smd2"][:, 0]).all()
    table, maps = tmp_path / "t.csv", tmp_path / "maps"
    command = [
        "sharpness",
        str(tmp_path / "sharp.tif"),
        str(tmp_path / "half.tif"),
        "--shrink",
        "1,2",
        "-o",
        str(table),
    ]
    assert main([*command, "--map", str(maps), "--block", "64"]) == 0
    assert len(table.read_text().splitlines()) == 5
    assert {path.name for path in maps.iterdir()} == {f"{n}.{m}.png" for n in ("sharp", "half") for m in MEASURES}
    with Picture.open(maps / "half.smd2.png") as picture:
        assert picture.mode == "RGB"
    assert "larger is sharper" in capsys.readouterr().out
    assert main([*command[:3], "--shrink", "0"]) == 2
    assert main([*command[:2], "-o", str(tmp_path / "sharp.tif")]) == 2
    assert "overwrite" in capsys.readouterr().err


def test_images_of_one_name_have_a_map_each(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        tifffile.imwrite(tmp_path / folder / "cell.tif", np.random.default_rng(0).integers(0, 9, (40, 40), np.uint8))
    images = [str(tmp_path / folder / "cell.tif") for folder in ("a", "b")]
    assert main(["sharpness", *images, "--map", str(tmp_path / "maps")]) == 0
    assert {path.name for path in (tmp_path / "maps").iterdir()} == {
        f"{name}.{measure}.png" for name in ("cell", "cell-2") for measure in MEASURES
    }


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_pixels_that_are_no_number_take_no_part(
    wrong: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).random((96, 128)).astype(np.float32)
    pixels[5, 9] = wrong
    pixels[32:64, :32] = wrong
    found = measure_sharpness(open_image(pixels), block=32)
    assert found.left_out == 1 + 32 * 32
    assert found.pixels == pixels.size - found.left_out
    whole = measure_sharpness(open_image(np.where(np.isfinite(pixels), pixels, 0.5).astype(np.float32)), block=32)
    for name in MEASURES:
        unknown = np.zeros((3, 4), bool)
        unknown[1, 0] = True
        np.testing.assert_array_equal(np.isnan(found.maps[name]), unknown)
        np.testing.assert_allclose(found.maps[name][2, 1:], whole.maps[name][2, 1:])
    assert found.values["variance"] == pytest.approx(float(pixels[np.isfinite(pixels)].var(dtype=np.float64)))
    tifffile.imwrite(tmp_path / "holes.tif", pixels)
    assert main(["sharpness", str(tmp_path / "holes.tif"), "--block", "32", "--map", str(tmp_path / "map")]) == 0
    assert "1025 pixels that are no number (NaN or infinite) are left out" in capsys.readouterr().err
    with Picture.open(tmp_path / "map" / "holes.brenner.png") as drawn:
        colors = np.array(drawn)[44:, 20:]
    side = 760 // 4
    blocks = {tuple(colors[i * side + 9, j * side + 9].tolist()) for i in range(3) for j in range(4)}
    assert len(blocks) > 4
    assert tuple(colors[side + 9, 9].tolist()) == (190, 190, 190)


def test_nothing_but_holes_is_one_line() -> None:
    with pytest.raises(InputError, match="holds no pixel that is a number"):
        measure_sharpness(open_image(np.full((8, 8), np.nan, np.float32)))
