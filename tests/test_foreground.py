"""What is empty is found and left out; what has structure never is, drawn or real."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

import tilelab
from tests.five_runs import digest
from tilelab.cli import main
from tilelab.engines.overrides import SpecOverrides
from tilelab.geometry import Box
from tilelab.io.images.foreground import Foreground, find_foreground, keep_large
from tilelab.io.images.open import open_image
from tilelab.io.images.volume import Volume
from tilelab.run.options import Options
from tilelab.sample.superalloy import draw_superalloy

SHAPE = (1400, 1900)
FLAGS = SpecOverrides(tile=(128, 128), overlap=(32, 32))


@cache
def tissue(height: int, width: int, seed: int = 0) -> Any:
    return draw_superalloy((height, width), seed)[0]


def with_resin(kind: str, seed: int = 0) -> Any:
    """Texture on the right, 1,000 columns of resin or border on the left."""
    random = np.random.default_rng(seed)
    image = tissue(*SHAPE, seed).astype(np.float64)
    empty = np.full((SHAPE[0], 1000), {"black": 0.0, "resin": 90.0, "shaded": 60.0}[kind])
    if kind == "shaded":
        empty += np.linspace(0, 80, 1000)
    if kind != "black":
        empty += random.normal(0, 12, empty.shape)
    image[:, :1000] = empty
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def look(image: Any) -> Foreground:
    return find_foreground(Volume(open_image(image)))


@pytest.mark.parametrize("kind", ["black", "resin", "shaded"])
def test_borders_and_resin_are_left_out_and_no_texture_is(kind: str) -> None:
    found = look(with_resin(kind))
    kept = found.read(Box.whole(found.shape))[0]
    assert kept[:, 1000 - 64 :].all()
    assert not kept[:, :700].any()
    assert found.share == pytest.approx(1 - kept.mean())


def test_texture_in_the_last_pixels_alone_is_kept() -> None:
    """Cells of 64 pixels fill neither 1400 rows nor 1900 columns."""
    image = with_resin("resin")
    image[-40:, 200:500] = tissue(40, 300)
    kept = look(image).read(Box((0, 0, 0), (1, *SHAPE)))[0]
    assert kept[-40:, 200:500].all()
    assert not kept[:1000, :700].any()
    turned = look(np.ascontiguousarray(image.T)).read(Box((0, 0, 0), (1, *SHAPE[::-1])))[0]
    assert turned[200:500, -40:].all()


def test_no_texture_is_left_out_whatever_its_kind() -> None:
    random = np.random.default_rng(0)
    whole = tissue(*SHAPE)
    noise = random.integers(0, 256, SHAPE, np.uint8)
    for image in (whole, noise, np.full(SHAPE, 7, np.uint8), (whole // 16 + 100).astype(np.uint8), whole[:400, :400]):
        assert look(image).share == 0
    spots = np.where(random.random(SHAPE) < 1e-6, 255, whole)  # a few bright ones change nothing
    assert look(spots.astype(np.uint8)).share == 0


@given(st.integers(0, 2**32 - 1), st.sampled_from([np.uint8, np.uint16, np.float32]), st.floats(0.05, 1))
@settings(max_examples=5)
def test_contrast_type_and_place_make_no_difference(seed: int, dtype: Any, contrast: float) -> None:
    image = with_resin("resin", seed % 3)
    if dtype is not np.uint8:
        image = (image * contrast * (40 if dtype is np.uint16 else 1)).astype(dtype)
    kept = look(np.ascontiguousarray(image[:, ::-1])).read(Box((0, 0, 0), (1, *SHAPE)))[0]
    assert kept[:, :900].all()
    assert not kept[:, -700:].any()


def test_real_micrographs_are_left_whole(real_data: Path) -> None:
    files = [*sorted(real_data.glob("*/train/images/*"))[::4], *sorted(real_data.glob("*/val/images/*"))[::2]]
    shares = [look(file).share for file in files]
    assert len(shares) > 10
    assert np.mean(shares) < 0.01
    assert all(share == 0 for file, share in zip(files, shares, strict=True) if file.parts[-4] in ("axon", "membrane"))


def test_parts_are_read_as_the_whole_is() -> None:
    found = look(with_resin("resin"))
    whole = found.read(Box.whole(found.shape))
    for box in (Box((0, 3, 5), (1, 900, 1001)), Box((0, 1337, 1800), (1, 1400, 1900))):
        assert np.array_equal(found.read(box), whole[tuple(map(slice, box.start, box.stop))])


@given(st.integers(0, 2**32 - 1), st.integers(4, 20), st.integers(4, 20), st.integers(2, 5), st.integers(1, 2))
@settings(max_examples=40)
def test_large_squares_are_those_of_the_definition(seed: int, y: int, x: int, square: int, margin: int) -> None:
    quiet = np.random.default_rng(seed).random((y, x)) < 0.93
    large = np.zeros_like(quiet)
    for i in range(y - square + 1):
        for j in range(x - square + 1):
            if quiet[i : i + square, j : j + square].all():
                large[i : i + square, j : j + square] = True
    expected = np.zeros_like(quiet)
    for i in range(y):
        for j in range(x):
            around = large[max(0, i - margin) : i + margin + 1, max(0, j - margin) : j + margin + 1]
            expected[i, j] = around.all()
    assert np.array_equal(keep_large(quiet, square, margin), expected if min(y, x) >= square else large)


def test_a_run_leaves_it_out_says_so_and_is_another_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tifffile.imwrite(tmp_path / "a.tif", with_resin("resin"), tile=(256, 256))
    words = ["infer", str(tmp_path / "a.tif"), "-m", "identity:2", "--tile", "128", "--overlap", "32", "-q"]
    out = tmp_path / "a.ome.zarr"
    assert main([*words, "--skip-empty", "--probabilities", "all", "-o", str(out)]) == 0
    assert "--skip-empty leaves out 4" in capsys.readouterr().err
    found = np.asarray(tilelab.read_result(out).probabilities[0][:, :, :])
    assert not found[:, :, :700].any()
    assert found[:, :, 1000:].any(axis=0).all()
    assert main([*words, "--probabilities", "all", "-o", str(out)]) == 2
    assert "another job" in capsys.readouterr().err
    other = tmp_path / "b.ome.zarr"
    assert main([*words, "--skip-empty", "--probabilities", "all", "-o", str(other), "--lanes", "2"]) == 0
    assert digest(other) == digest(out)
    assert main([*words, "--probabilities", "all", "-o", str(tmp_path / "all.ome.zarr")]) == 0
    whole = np.asarray(tilelab.read_result(tmp_path / "all.ome.zarr").probabilities[0][:, :, :])
    kept = look(tmp_path / "a.tif").read(Box((0, 0, 0), (1, *SHAPE)))[0] != 0
    assert np.array_equal(found[:, kept], whole[:, kept])


def test_the_share_of_the_first_class_is_told_with_what_was_left_out(tmp_path: Path, capsys: Any) -> None:
    """Else resin would be read as matrix."""
    tifffile.imwrite(tmp_path / "a.tif", with_resin("resin")[:256, :300])
    tifffile.imwrite(tmp_path / "mask.tif", np.indices((256, 300))[1].astype(np.uint8))
    for flags, said in (([], 0), (["--mask", str(tmp_path / "mask.tif")], 1)):
        out = tmp_path / f"{said}.ome.zarr"
        assert main(["infer", str(tmp_path / "a.tif"), "-m", "identity:2", "-o", str(out), *flags]) == 0
        lines = [line for line in capsys.readouterr().err.splitlines() if "with all that was left out" in line]
        assert len(lines) == said
        assert all("found" in line for line in lines)


def test_plan_draws_what_would_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tifffile.imwrite(tmp_path / "a.tif", with_resin("resin"), tile=(256, 256))
    words = ["plan", str(tmp_path / "a.tif"), "-m", "identity", "--tile", "128", "--overlap", "32", "--speed", "1"]
    seconds = []
    for flags in ([], ["--skip-empty"]):
        picture = tmp_path / f"{len(flags)}.png"
        assert main([*words, *flags, "--json", "--overview", str(picture)]) == 0
        seconds.append(json.loads(capsys.readouterr().out)["seconds"])
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert 0.4 < seconds[1] / seconds[0] < 0.75
    assert main([*words, "--overview", str(tmp_path / "a.tif")]) == 2


def test_a_mask_and_what_is_empty_are_both_left_out(tmp_path: Path) -> None:
    mask = np.ones(SHAPE, np.uint8)
    mask[:, 1500:] = 0
    tifffile.imwrite(tmp_path / "mask.tif", mask)
    options = Options(model=FLAGS, skip_empty=True, mask=tmp_path / "mask.tif", probabilities=("all",))
    run = tilelab.infer(with_resin("black"), "identity:2", tmp_path / "r.ome.zarr", options=options)
    found = np.asarray(tilelab.read_result(run.path).probabilities[0][:, :, :]).any(axis=0)
    assert not found[:, :700].any()
    assert not found[:, 1500:].any()
    assert found[:, 1100:1500].any(axis=0).all()
    assert run.report["tiles"]["skipped"] > 20


def test_a_large_image_is_looked_at_by_a_coarser_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tilelab.io import convert_image
    from tilelab.io.images import foreground
    from tilelab.run.opening import open_source

    tifffile.imwrite(tmp_path / "a.tif", with_resin("resin"))
    convert_image(tmp_path / "a.tif", tmp_path / "a.ome.zarr")
    monkeypatch.setattr(foreground, "_ENOUGH", 10**6)
    spec = tilelab.load_engine("identity").spec
    with open_source(tmp_path / "a.ome.zarr", Options(), spec) as opened:
        found = find_foreground(Volume(opened.image))
    assert found.cell == 128
    kept = found.read(Box.whole(found.shape))[0]
    assert kept[:, 900:].all()
    assert not kept[:, :600].any()
