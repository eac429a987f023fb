"""Inputs that came out wrong somewhere, each with its right values (``shared/cases``, or ``$TILELAB_CASES``)."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilelab.cli.main import main
from tilelab.errors import InputError
from tilelab.io.images.open import open_image
from tilelab.io.results.result import read_result

_ROOT = Path(os.environ.get("TILELAB_CASES", Path(__file__).parents[1].parent / "shared" / "cases")) / "images"
_EXPECTED: dict[str, dict[str, Any]] = (
    json.loads((_ROOT / "expected.json").read_text()) if (_ROOT / "expected.json").is_file() else {}
)
_AS_LABELS = {"qupath_labels.tif", "labels02.tif"}


@pytest.fixture
def cases() -> Path:
    if not _EXPECTED:
        pytest.skip(f"no cases at {_ROOT} (set TILELAB_CASES)")
    return _ROOT


def wrong(path: Path, case: dict[str, Any]) -> list[str]:
    """What is not as it must be when `path` is opened."""
    must = case["right behaviour"]
    try:
        image = open_image(path)
    except InputError as error:
        refused = must != "read right" or "axes" in str(error) or "channel" in str(error)
        return [] if refused and "\n" not in str(error) else [f"refused: {error}"]
    if must == "refuse clearly":
        return ["opened"]
    with image:
        if image.axes == "cyx" and case["right axes"] == "zyx":  # channels until --axes says otherwise
            return [] if any(guess.flag == "--axes" for guess in image.assumptions) else ["channels without a word"]
        said = "\n".join([*image.warnings, *map(str, image.assumptions)])
        size = case["right pixel size nm (axes order)"]
        pixels = image[...].astype(np.float64)
        first = [float(v) for v in case["right first pixels"]]
        checks = {
            f"axes {image.axes}": image.axes == case["right axes"],
            f"shape {image.shape}": list(image.shape) == case["right shape"],
            f"dtype {image.dtype}": str(image.dtype) == case["right dtype"],
            f"pixel size {image.pixel_size_nm}": size is None
            or (image.pixel_size_nm is not None and np.allclose(image.pixel_size_nm, size, rtol=1e-3)),
            f"pixels {pixels.ravel()[:5]}": np.array_equal(pixels.ravel()[:5], first, equal_nan=True),
            f"sum {pixels[np.isfinite(pixels)].sum()}": np.isclose(
                pixels[np.isfinite(pixels)].sum(), float(case["right sum"])
            ),
            f"a word about {case['a word is wanted about']}": re.search(
                case["a word is wanted about"] or "", said, re.IGNORECASE
            )
            is not None,
        }
        return [name for name, right in checks.items() if not right]


@pytest.mark.parametrize(
    "name",
    [n for n in _EXPECTED if n not in _AS_LABELS],
)
def test_case(name: str, cases: Path) -> None:
    assert wrong(cases / name, _EXPECTED[name]) == []


def test_gaps_outside_the_mask(cases: Path, tmp_path: Path) -> None:
    run = ["infer", str(cases / "nan.tif"), "-m", "identity", "--normalization", "mean-std", "--tile", "32"]
    assert main([*run, "--mask", str(cases / "nan_valid.tif"), "-o", str(tmp_path / "a.ome.zarr")]) == 0
    assert main([*run, "-o", str(tmp_path / "b.ome.zarr")]) == 2
    assert main([*run, "--nan", "0", "-o", str(tmp_path / "b.ome.zarr")]) == 0


def test_channels_that_are_slices(cases: Path) -> None:
    case = _EXPECTED["imagej_z_as_c.tif"]
    with open_image(cases / "imagej_z_as_c.tif", axes="zyx") as image:
        assert (image.axes, list(image.shape)) == (case["right axes"], case["right shape"])
        assert image[...].sum() == float(case["right sum"])


def test_the_description_of_an_image_opens_it(cases: Path) -> None:
    with open_image(cases / "bdv.xml") as described, open_image(cases / "bdv.n5") as image:
        assert (described.axes, described.shape, described.dtype) == (image.axes, image.shape, image.dtype)
        assert described.pixel_size_nm is not None


_MODELS = _ROOT.parent / "models"
_STD = ("--mean", "128", "--std", "33", "--tile", "128", "--overlap", "64")
# Of each: flags, exit code, the share of class 1 where it is known, and the maps that are kept.
_RUNS: dict[str, tuple[tuple[str, ...], int, float | None, tuple[str, ...]]] = {
    "bin_logit": (_STD, 0, 0.8761, ()),
    "bin_sigmoid": (_STD, 0, 0.8761, ()),
    "bin_sigmoid_transpose": (_STD, 0, 0.8761, ()),
    "bin_mask_u8": (_STD, 0, 0.8761, ()),
    "three_argmax": (_STD, 0, 0.0006, ()),
    "three_argmax_float": (_STD, 0, 0.0006, ()),
    "valid": (_STD, 0, None, ()),
    "half_out": (_STD, 0, None, ()),
    "deepsup": (_STD, 0, None, ()),
    "mitonet": (_STD, 0, None, ("ctr_hmp", "offsets")),
    "distance": ((*_STD, "--output-is", "map"), 0, None, ("output",)),
    "three_sigmoid": ((*_STD, "--threshold", "0.5"), 0, None, ()),
    "u8_input": (("--tile", "128", "--overlap", "64"), 0, None, ()),
    "keras_like": (_STD, 2, None, ()),
    "alldyn": (_STD, 2, None, ()),
}


@pytest.mark.parametrize("name", _RUNS)
def test_a_model_runs_or_names_the_way_out(
    name: str, cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, code, share, maps = _RUNS[name]
    out = tmp_path / "x.ome.zarr"
    image, model = cases.parent / "models" / "img.png", _MODELS / f"{name}.onnx"
    assert main(["infer", str(image), "-m", str(model), *flags, "-q", "-o", str(out)]) == code
    if code:
        assert capsys.readouterr().err.count("\n") == 1
        return
    result = read_result(out)
    if result.labels:
        found = result.labels[0][...]
        assert found.shape == (300, 271)
        assert share is None or float((found == 1).mean()) == pytest.approx(share, abs=2e-4)
    assert tuple(result.maps) == maps


def test_slices_of_unlike_brightness_are_segmented_alike(cases: Path, tmp_path: Path) -> None:
    image, model = cases.parent / "models" / "bright.npy", _MODELS / "leg17_dyn.onnx"
    run = ["infer", str(image), "-m", str(model), "--normalization", "mean-std", "--statistics", "slice", *_STD[4:]]
    assert main([*run, "-q", "-o", str(tmp_path / "x.ome.zarr")]) == 0
    for plane in read_result(tmp_path / "x.ome.zarr").labels[0][...]:
        assert float((plane == 1).mean()) == pytest.approx(0.41, abs=0.005)
