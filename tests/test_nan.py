"""Pixels that are NaN or infinite: counted, shown, refused where they are wanted, replaced where that is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from image_files import pixels

from tilelab import Options, infer, plan
from tilelab.cli.main import main
from tilelab.errors import InputError
from tilelab.io.images import finite
from tilelab.io.images.open import open_image
from tilelab.io.images.volume import Volume
from tilelab.io.results.result import read_result

H, W = 64, 80
_FAR = 1e300  # float32 has none such
RUN = ["-m", "identity", "--normalization", "mean-std", "--tile", "32", "--overlap", "8"]


def holed(path: Path, *, where: Any = np.s_[:8], value: float = np.nan, **options: Any) -> np.ndarray[Any, Any]:
    stored = pixels((H, W), np.float64 if value == _FAR else np.float32)
    stored[where] = value
    tifffile.imwrite(path, stored, **options)
    return stored


def valid(path: Path, where: Any = np.s_[:8]) -> str:
    mask = np.ones((H, W), np.uint8)
    mask[where] = 0
    tifffile.imwrite(path, mask)
    return str(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, _FAR])
def test_wanted_pixels_must_be_numbers(value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holed(tmp_path / "a.tif", where=np.s_[3:5, 7:9], value=value, compression="zlib" if value > 0 else None)
    out = tmp_path / "o.ome.zarr"
    for more in ([], ["--dry-run"], ["--mask", valid(tmp_path / "m.tif", np.s_[:4])]):
        assert main(["infer", str(tmp_path / "a.tif"), *RUN, "-o", str(out), *more]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        wanted, first = ("2", "z 0, y 4, x 7") if "--mask" in more else ("4", "z 0, y 3, x 7")
        assert f"{wanted} of 5120 pixels (0.0" in said
        assert f"the first at {first}: give a value for them with --nan VALUE, or leave them out with --mask" in said
    assert not list(tmp_path.glob("o*"))  # found before the work


def test_gaps_of_a_mask_may_hold_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holed(tmp_path / "a.tif")
    flags = ["--mask", valid(tmp_path / "m.tif"), "--logits", "--probabilities", "all"]
    assert main(["infer", str(tmp_path / "a.tif"), *RUN, *flags, "-o", str(tmp_path / "o.ome.zarr")]) == 0
    said = capsys.readouterr().err
    assert "640 of 5120 pixels (12.50%) are NaN or infinite, the first at z 0, y 0, x 0: outside the mask" in said
    result = read_result(tmp_path / "o.ome.zarr")
    assert (result.labels[0][:8] == 0).all()
    constants = ["--normalization", "constants", "--intensity-dtype", "float32", "--mean", "0", "--std", "1"]
    assert main(["infer", str(tmp_path / "a.tif"), *RUN, *constants, *flags, "-o", str(tmp_path / "p.ome.zarr")]) == 0
    assert main(["infer", str(tmp_path / "a.tif"), *RUN, *flags, "--dry-run"]) == 0


def test_a_value_can_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = holed(tmp_path / "a.tif")
    constants = ["-m", "identity", "--intensity-dtype", "float32", "--mean", "0", "--std", "1", "--tile", "32"]
    tifffile.imwrite(tmp_path / "b.tif", np.nan_to_num(stored, nan=-3))
    for name, more in (("a", ["--nan", "-3"]), ("b", [])):
        run = ["infer", str(tmp_path / f"{name}.tif"), *constants, "--logits", "-o", str(tmp_path / f"{name}.ome.zarr")]
        assert main([*run, *more]) == 0
    assert (
        "640 of 5120 pixels (12.50%) are NaN or infinite, the first at z 0, y 0, x 0: taken as -3"
        in capsys.readouterr().err
    )
    one, other = (read_result(tmp_path / f"{name}.ome.zarr") for name in "ab")
    np.testing.assert_array_equal(one.logits[...], other.logits[...])
    np.testing.assert_array_equal(one.labels[0][...], other.labels[0][...])
    assert one.info.metadata["fingerprint"]["options"]["nan"] == "-3.0"
    assert "nan" not in other.info.metadata["fingerprint"]["options"]
    run = ["infer", str(tmp_path / "a.tif"), *constants, "--logits", "-o", str(tmp_path / "a.ome.zarr")]
    assert main([*run, "--nan", "-4"]) == 2  # another job
    assert "options.nan: -3.0 -> -4.0" in capsys.readouterr().err
    for bad in ("nan", "inf", "many"):
        with pytest.raises(SystemExit):
            main([*run, "--nan", bad])


def test_nan_of_whole_numbers_does_nothing_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels((H, W)))
    run = ["infer", str(tmp_path / "a.tif"), "-m", "identity", "--tile", "32", "-o", str(tmp_path / "o.ome.zarr")]
    assert main([*run, "--nan", "0"]) == 0
    assert "--nan does nothing" in capsys.readouterr().err


def test_what_the_look_did_not_see_is_found_during_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite, "_BLOCK", (1, 8, 8))
    monkeypatch.setattr(finite, "_BLOCKS", 2)
    stored = holed(tmp_path / "a.tif", where=np.s_[40, 50], compression="zlib", tile=(16, 16))
    with open_image(tmp_path / "a.tif") as image:
        assert finite.look_for_gaps(Volume(image), None, None) == ()
    options = Options(model=plan_options())
    with pytest.raises(
        InputError, match=r"1 pixels in 0:1,32:64,0:80 are NaN or infinite, the first at z 0, y 40, x 50: give a value"
    ):
        infer(tmp_path / "a.tif", "identity", tmp_path / "o.ome.zarr", options=options)
    stored[:] = np.nan
    tifffile.imwrite(tmp_path / "b.tif", stored, compression="zlib", tile=(16, 16))
    with open_image(tmp_path / "b.tif") as image, pytest.raises(InputError, match=r"128 of 128 pixels looked at \(100"):
        finite.look_for_gaps(Volume(image), None, None)


def plan_options() -> Any:
    from tilelab.engines.overrides import SpecOverrides

    return SpecOverrides(tile=(32,), overlap=(8,), normalization="mean-std")


def test_neighbouring_slices_are_mended_each_in_its_place(tmp_path: Path) -> None:
    stored = pixels((5, H, W), np.float32)
    stored[2, :8] = np.nan
    mask = np.ones(stored.shape, np.uint8)
    mask[2, :8] = 0
    np.save(tmp_path / "a.npy", stored)
    np.save(tmp_path / "m.npy", mask)
    run = ["infer", str(tmp_path / "a.npy"), *RUN, "--neighbours", "1", "--channels", "3", "-m", "identity:3", "-q"]
    assert main([*run, "--mask", str(tmp_path / "m.npy"), "-o", str(tmp_path / "o.ome.zarr")]) == 0
    assert main([*run, "-o", str(tmp_path / "p.ome.zarr")]) == 2


def test_a_mask_must_say_of_every_pixel_whether_it_is_wanted(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels((H, W)))
    mask = np.ones((H, W), np.float32)
    mask[5, 6] = np.nan
    tifffile.imwrite(tmp_path / "m.tif", mask)
    options = Options(mask=tmp_path / "m.tif", model=plan_options())
    with pytest.raises(InputError, match=r"mask .*m\.tif has 1 pixels that are NaN in .*, the first at z 0, y 5, x 6"):
        infer(tmp_path / "a.tif", "identity", tmp_path / "o.ome.zarr", options=options)
    assert plan(tmp_path / "a.tif", "identity", options=options)


def test_map_tiles_takes_a_value_too() -> None:
    da = pytest.importorskip("dask.array")
    from tilelab import map_tiles

    stored = pixels((H, W), np.float32)
    stored[:8] = np.nan
    array = da.from_array(stored, chunks=(32, 32))
    options = Options(model=plan_options(), nan=0.0)
    assert map_tiles(array, "identity", options=options).compute().shape == (H, W)
    with pytest.raises(InputError, match="--nan VALUE"):
        map_tiles(array, "identity", options=Options(model=plan_options())).compute()
