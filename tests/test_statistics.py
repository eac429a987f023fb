"""Intensities normalised by an image's own statistics: exact, slice by slice or of the stack, cut off, and kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import save_conv

import tilelab
from tilelab.cli.main import main
from tilelab.engines.overrides import SpecOverrides
from tilelab.errors import ModelError
from tilelab.io.images.open import open_image
from tilelab.io.images.volume import Volume
from tilelab.run.infer import infer
from tilelab.run.normalize import normalization_constants
from tilelab.run.options import Options
from tilelab.run.statistics import find_statistics
from tilelab.spec import Normalization

KINDS = [
    {"kind": "mean-std"},
    {"kind": "min-max"},
    {"kind": "percentile", "low": 1.0, "high": 99.8},
    {"kind": "percentile", "low": 0.0, "high": 100.0},
]


def expected(values: np.ndarray, kind: dict[str, Any]) -> tuple[float, float]:
    """Offset and spread by NumPy."""
    if kind["kind"] == "mean-std":
        return float(values.mean()), float(values.std())
    ends = (0, 100) if kind["kind"] == "min-max" else (kind["low"], kind["high"])
    low, high = np.percentile(values.astype(np.float64), ends)
    return float(low), float(high - low)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(KINDS),
    st.sampled_from([np.uint8, np.uint16, np.float32]),
    st.sampled_from(["stack", "slice"]),
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
)
def test_statistics_are_those_of_all_pixels(
    kind: dict[str, Any], dtype: type, per: str, depth: int, width: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    image = (random.gamma(2, 40, (depth, 30, width)) * random.uniform(0.1, 3, (depth, 1, 1))).astype(dtype)
    volume = Volume(open_image(image, axes="zyx"))
    volume.chunks = (int(random.integers(1, 4)), int(random.integers(1, 31)), int(random.integers(1, width + 1)))
    found = find_statistics(volume, Normalization(**kind, per=per))
    wanted = [expected(part, kind) for part in ([image] if per == "stack" else list(image))]
    step = float(np.ptp(image)) / 65536 * 2 if dtype is np.float32 and kind["kind"] == "percentile" else 0
    close = {"rtol": 1e-5 if dtype is np.float32 else 1e-9, "atol": step + 1e-7}
    np.testing.assert_allclose(np.ravel(found.low), [low for low, _ in wanted], **close)
    np.testing.assert_allclose(np.ravel(found.spread), [spread for _, spread in wanted], **close)


def test_pixels_that_are_no_numbers_do_not_count() -> None:
    image = np.arange(60, dtype=np.float32).reshape(1, 6, 10)
    image[0, 2] = np.nan
    image[0, 3] = np.inf
    volume = Volume(open_image(np.repeat(image, 2, axis=0), axes="zyx"))
    kept = image[np.isfinite(image)]
    found = find_statistics(volume, Normalization(kind="mean-std", per="slice"))
    np.testing.assert_allclose(found.low.ravel(), [kept.mean()] * 2)
    np.testing.assert_allclose(found.spread.ravel(), [kept.std()] * 2, rtol=1e-6)


def test_a_large_image_is_counted_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = (np.arange(300 * 400).reshape(300, 400) % 251).astype(np.uint8)
    zarr.create_array(tmp_path / "i.zarr", data=image, chunks=(64, 64))
    monkeypatch.setattr("tilelab.run.normalize.SAMPLE_PIXELS", 1000)
    monkeypatch.setattr("tilelab.run.statistics._BLOCK_BYTES", 64 * 64 * 3)
    with open_image(tmp_path / "i.zarr") as opened:
        mean, gain, record = normalization_constants(Volume(opened), Normalization(kind="mean-std"), 1)
    assert record["sampled_pixels"] == image.size
    np.testing.assert_allclose([mean[0], 1 / gain[0]], [image.mean(), image.std()], rtol=1e-6)


def bright() -> np.ndarray:
    """One plane at three brightnesses."""
    plane = np.random.default_rng(2).normal(100, 20, (80, 96)) + 30 * (np.arange(96) // 24 % 2)
    return np.stack([plane * f for f in (0.3, 0.6, 1.0)]).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("neighbours", [0, 1])
@pytest.mark.parametrize("tile", [(32, 32), (3, 32, 32)])
def test_slice_by_slice_each_is_as_it_would_be_alone(tmp_path: Path, tile: tuple[int, ...], neighbours: int) -> None:
    if neighbours and len(tile) == 3:
        pytest.skip("neighbours are for 2-D networks")
    image = bright()
    model = save_conv(tmp_path / "n.onnx", tile, channels=2 * neighbours + 1)
    own: dict[str, Any] = {
        "overlap": (1, 8, 8)[-len(tile) :],
        "neighbours": neighbours,
        "stride": 1,
        "clip": (-1.5, 1.5),
    }
    given = SpecOverrides(normalization="mean-std", statistics="slice", **own)
    run = infer(image, model, tmp_path / "s.ome.zarr", options=Options(model=given, logits=True, axes="zyx"))
    mean, std = image.mean(axis=(1, 2), keepdims=True), image.std(axis=(1, 2), keepdims=True)
    ready = ((image - mean) / std).astype(np.float32)
    told = SpecOverrides(mean=(0.0,), std=(1.0,), intensity_dtype="float32", **own)
    same = infer(ready, model, tmp_path / "r.ome.zarr", options=Options(model=told, logits=True, axes="zyx"))
    a, b = (tilelab.read_result(r.path).logits for r in (run, same))
    assert a is not None
    assert b is not None
    np.testing.assert_allclose(a[...], b[...], atol=2e-4)
    kept = run.report["normalization"]
    assert (kept["per"], kept["clip"], len(kept["mean"])) == ("slice", [-1.5, 1.5], 3)
    shares = [float((plane == 1).mean()) for plane in tilelab.read_result(run.path).labels[0][...]]
    if not neighbours and len(tile) == 2:  # brightness alone makes no difference
        assert max(shares) - min(shares) < 0.05


def test_the_bytes_do_not_depend_on_how_the_work_is_cut(tmp_path: Path) -> None:
    image = np.random.default_rng(5).integers(0, 255, (3, 2100, 300), np.uint8)
    model = save_conv(tmp_path / "n.onnx", (256, 256))
    given = SpecOverrides(percentiles=(1, 99.8), statistics="slice", clip=(0, 1), overlap=(32, 32))
    found = []
    for spans in (1, 2):
        out = tmp_path / f"{spans}.ome.zarr"
        infer(image, model, out, options=Options(model=given, spans=spans, axes="zyx"))
        found.append(tilelab.read_result(out).labels[0][...])
    np.testing.assert_array_equal(*found)


def test_the_flags_say_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "i.npy", bright())
    model = str(save_conv(tmp_path / "n.onnx"))
    run = [
        "infer",
        str(tmp_path / "i.npy"),
        "-m",
        model,
        "--axes",
        "zyx",
        "--stride",
        "1",
        "-q",
        "-o",
        str(tmp_path / "r.ome.zarr"),
    ]
    assert main([*run, "--percentiles", "1,99.8", "--statistics", "slice", "--clip", "0,1"]) == 0
    kept = tilelab.read_result(tmp_path / "r.ome.zarr").info.metadata["normalization"]
    assert (kept["kind"], kept["percentiles"], kept["per"]) == ("percentile", [1.0, 99.8], "slice")
    for flags, said in [
        (["--mean", "1", "--std", "2", "--statistics", "slice"], "--statistics says whose statistics"),
        (["--percentiles", "1,99", "--normalization", "mean-std"], "--percentiles are not for"),
        (["--percentiles", "99,1"], "0 <= low < high <= 100"),
        (["--normalization", "min-max", "--clip", "1,0"], "cut off at a lower and a higher number"),
    ]:
        assert main([*run, *flags]) == 2
        assert said in capsys.readouterr().err


def test_training_statistics_stay_with_the_stack() -> None:
    with pytest.raises((ValueError, ModelError)):
        Normalization(kind="constants", per="slice")


@pytest.mark.parametrize("far", [1e4, 1e9, 3e38])
def test_a_few_far_pixels_leave_the_percentiles_of_floats_where_they_are(far: float) -> None:
    image = np.random.default_rng(0).normal(100, 20, (3, 60, 70)).astype(np.float32)
    image[0, 7, 9], image[1, 3, 3], image[2] = far, -far, 5
    volume = Volume(open_image(image, axes="zyx"))
    found = find_statistics(volume, Normalization(kind="percentile", low=1.0, high=99.0, per="slice"))
    for z in range(3):
        low, spread = expected(image[z], {"kind": "percentile", "low": 1.0, "high": 99.0})
        np.testing.assert_allclose(found.low[z], low, atol=0.02 * spread + 1e-5)
        np.testing.assert_allclose(found.spread[z], spread, rtol=0.02)


@pytest.mark.parametrize("kind", ["mean-std", "min-max", "percentile"])
def test_each_channel_is_inverted_about_its_own_intensities(tmp_path: Path, kind: Any) -> None:
    random = np.random.default_rng(3)
    image = random.normal((40, 120, 200), (5, 20, 10), (60, 70, 3)).clip(0, 255).astype(np.uint8)
    model = save_conv(tmp_path / "n.onnx", (32, 32), channels=3)
    given = SpecOverrides(normalization=kind, overlap=(8, 8), stride=1)
    options = Options(model=given, logits=True, axes="yxc")
    run = infer(image, model, tmp_path / "a.ome.zarr", options=replace(options, invert=True))
    same = infer(255 - image, model, tmp_path / "b.ome.zarr", options=options)
    a, b = (tilelab.read_result(r.path).logits for r in (run, same))
    assert a is not None
    assert b is not None
    np.testing.assert_allclose(a[...], b[...], atol=1e-3)
