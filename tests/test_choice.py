"""The choice of tiles: fitted, within memory and tolerance, the same again, and kept by what is continued."""

from __future__ import annotations

import json
import math

import msgspec
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

import tilelab
from tilelab.cli.main import main
from tilelab.engines.overrides import SpecOverrides
from tilelab.engines.registry import read_spec
from tilelab.errors import ModelError, PlanError
from tilelab.io.images.volume import Volume
from tilelab.machine.memory import MEMORY_GOAL
from tilelab.run.kind.home import texture_distance
from tilelab.run.kind.suit import is_alike
from tilelab.run.normalize import normalization_constants
from tilelab.run.opening import open_source
from tilelab.run.options import Options
from tilelab.run.plan.choice import ALIKE, MARGIN, TOLERANCE, Machine, choose_tiling, exact_overlap, is_free
from tilelab.run.plan.plan import make_plan
from tilelab.run.plan.rates import CACHE_VARIABLE, Rates, Remembered
from tilelab.run.plan.request import ImageFacts, Request, Written
from tilelab.spec import ModelSpec, Seams

SPEC = read_spec("superalloy")
MACHINE = Machine(Rates({}), 2, 16 << 30)
WRITTEN = Written(True, (1, 2))


def plane(*shape: int) -> ImageFacts:
    """An image of this extent, kept in chunks of 256."""
    return ImageFacts((1, *shape), (1, 256, 256), 1, np.dtype(np.uint8))


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 30_000), st.integers(1, 30_000)),
    stride=st.sampled_from([1, 8, 16, 32]),
    field=st.integers(1, 400),
    cores=st.sampled_from([1, 2, 8]),
)
def test_any_image_gets_tiles_that_fit(shape, stride, field, cores):
    spec = msgspec.structs.replace(
        SPEC, stride=stride, receptive_field=field, seams=None, tile=(512, 512), tile_min=(stride, stride)
    )
    best = choose_tiling(plane(*shape), spec, WRITTEN, Machine(Rates({}), cores, 16 << 30))[0]
    used = msgspec.structs.replace(spec, tile=best.tiling.tile, overlap=best.tiling.overlap)  # checks itself
    plan = make_plan(Request.of(plane(*shape), used, WRITTEN, streams=cores))
    assert plan.memory_bytes <= MEMORY_GOAL
    assert plan.computed_per_pixel == pytest.approx(best.computed)
    assert len(plan.lattice.axes[1]) == 1 or best.wrong <= TOLERANCE or max(best.tiling.overlap) >= field - stride
    assert all(t % stride == 0 for t in best.tiling.tile)


def test_tiles_are_fitted_to_the_image():
    easy = msgspec.structs.replace(SPEC, seams=Seams(overlap=(0, 64), labels=(1.0, 0.05)))
    machine = Machine(Rates({}), 2, 16 << 30)
    best = choose_tiling(plane(9958, 9959), easy, WRITTEN, machine, memory_limit=1 << 30)[0]
    assert best.computed < 1.15
    assert best.tiling.overlap == (64, 64)


def test_small_images_are_one_tile_and_large_ones_keep_several_cores_busy():
    assert choose_tiling(plane(512, 500), SPEC, WRITTEN, MACHINE)[0].tiling.tile == (512, 512)
    tile = choose_tiling(plane(2048, 2048), SPEC, WRITTEN, MACHINE)[0].tiling.tile
    assert math.prod(tile) < 2048 * 2048 / 3


def test_slower_large_tiles_are_smaller_and_small_differences_do_not_count():
    flat, noisy = {512**2: 9.0e6, 1536**2: 9.0e6}, {512**2: 9.1e6, 1536**2: 8.95e6}
    falling = {512**2: 9.0e6, 1536**2: 4.5e6}
    tiles = [
        choose_tiling(plane(6000, 6000), SPEC, WRITTEN, Machine(Rates(rates), 2, 16 << 30))[0].tiling
        for rates in (flat, noisy, falling)
    ]
    assert tiles[0] == tiles[1]
    assert math.prod(tiles[2].tile) < math.prod(tiles[0].tile)


def test_a_model_that_never_agrees_is_no_slower_and_no_worse_than_with_its_own_tiles():
    rough = msgspec.structs.replace(SPEC, seams=Seams(overlap=(0, 64, 128, 160), labels=(8.0, 5.0, 3.0, 2.0)))
    best = choose_tiling(plane(9958, 9959), rough, WRITTEN, MACHINE)[0]
    assert best.wrong > TOLERANCE
    own = Request.of(plane(9958, 9959), rough, WRITTEN, streams=2)  # 512 and 128
    assert best.computed < make_plan(own).computed_per_pixel
    assert best.wrong < 4 * 3.0 * 2 / (512 - 128) * 1.01


def test_images_like_those_of_the_curve_need_less_overlap_where_others_keep_their_margin(tmp_path):
    """A large image's texture tells; what is changed before the network sees it does not count as alike."""
    from tilelab.run.autotile import choose_work
    from tilelab.sample import draw_superalloy

    large = np.tile(draw_superalloy((1024, 1024), seed=3)[0].astype(np.uint8), (3, 3))
    tifffile.imwrite(tmp_path / "like.tif", large)
    tifffile.imwrite(tmp_path / "unlike.tif", large // 8)
    spec = read_spec("superalloy")
    with open_source(tmp_path / "like.tif", Options(), spec) as opened:
        volume = Volume(opened.image)
        mean, gain, _ = normalization_constants(volume, spec.normalization, 1)
        far = texture_distance(volume, spec, mean, gain)
    at_home = msgspec.structs.replace(spec, home=msgspec.structs.replace(spec.home, limit=1.2 * far))
    asked = []
    for name, described in (("like.tif", at_home), ("unlike.tif", at_home), ("like.tif", spec_without_home(spec))):
        with open_source(tmp_path / name, Options(), described) as opened:
            asked.append(is_alike(Volume(opened.image), described, Options()))
    assert asked == [True, False, False]
    wide, narrow = (choose_tiling(plane(9958, 9959), SPEC, WRITTEN, MACHINE, margin=m)[0] for m in (MARGIN, ALIKE))
    assert narrow.computed <= wide.computed
    assert narrow.wrong <= TOLERANCE
    assert choose_work("superalloy", tmp_path / "unlike.tif", Options(), print, measure=False).candidates


def spec_without_home(spec: ModelSpec) -> ModelSpec:
    return msgspec.structs.replace(spec, home=None)


@pytest.mark.parametrize("kind", ["entropy", "symmetries"])
def test_a_map_of_uncertainty_leaves_the_choice(kind):
    spec = read_spec("superalloy", SpecOverrides(uncertainty=kind))
    assert is_free(spec)
    written = Written(True, (1, 2), 0, (("uncertainty", 1),))
    found = choose_tiling(plane(3000, 4000), spec, written, MACHINE, square=kind == "symmetries")
    assert found[0].tiling.tile != spec.tile
    assert kind == "entropy" or len(set(found[0].tiling.tile)) == 1


def test_symmetries_have_square_tiles():
    best = choose_tiling(plane(700, 3000), SPEC, WRITTEN, MACHINE, square=True)[0]
    assert best.tiling.tile[0] == best.tiling.tile[1]


def test_no_memory_is_an_error_that_says_so():
    with pytest.raises(PlanError, match="--memory"):
        choose_tiling(plane(4000, 4000), SPEC, WRITTEN, MACHINE, memory_limit=1 << 20)


@pytest.mark.parametrize("held", ["", "{", "[]", '{"rates": {"a": 1}}', '{"rates": {"4": -1}}', '{"rates": 3}', "\0"])
def test_a_damaged_cache_is_none(held, tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    kept = Remembered.of(model="a", precision="fp32")
    kept.write({512 * 512: 1e7})
    assert kept.read() == {512 * 512: 1e7}
    assert Remembered.of(model="b", precision="fp32").read() == {}
    kept.path.write_text(held)
    assert kept.read() == {}


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for folder in (str(tmp_path / "file"), "/proc/nowhere", ""):
        monkeypatch.setenv(CACHE_VARIABLE, folder)
        kept = Remembered.of(model="a")
        kept.write({1: 1.0})
        assert kept.read() == {}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> np.ndarray:
    from tilelab.sample import draw_superalloy

    return draw_superalloy((700, 900))[0].astype(np.uint8)


def test_a_result_is_continued_with_the_tiles_it_was_begun_with(drawn, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", drawn)
    run = {"ignore_pixel_size": True, "probabilities": ("none",)}
    given = Options(model=SpecOverrides(tile=(320, 256), overlap=(64, 32)), **run)
    first = tilelab.infer(tmp_path / "a.tif", "superalloy", tmp_path / "a.ome.zarr", options=given)
    again = tilelab.infer(tmp_path / "a.tif", "superalloy", tmp_path / "a.ome.zarr", options=Options(**run))
    assert again.already_finished
    assert tuple(first.report["tile"]) == tuple(again.report["tile"]) == (320, 256)
    fresh = tilelab.infer(tmp_path / "a.tif", "superalloy", tmp_path / "b.ome.zarr", options=Options(**run))
    plan = tilelab.plan(tmp_path / "a.tif", "superalloy", options=Options(**run))
    assert tuple(fresh.report["tile"]) == plan.spec.tile != (320, 256)


def test_exact_tiles_equal_the_whole_image(drawn, tmp_path):
    run = {"probabilities": ("all",), "precision": "fp32", "ignore_pixel_size": True}
    whole = Options(model=SpecOverrides(tile=(704, 912), overlap=(0, 0)), **run)
    a = tilelab.infer(drawn, "superalloy", tmp_path / "a.ome.zarr", options=whole)
    small = Options(model=SpecOverrides(tile=(352, 352)), exact=True, **run)
    b = tilelab.infer(drawn, "superalloy", tmp_path / "b.ome.zarr", options=small)
    assert b.report["tiles"]["inferred"] > 4
    one, two = (tilelab.read_result(run.path) for run in (a, b))
    difference = one.probabilities[0][:].astype(int) - two.probabilities[0][:].astype(int)
    assert np.abs(difference).max() <= 1  # of 255, where a value lies between two
    assert (one.labels[0][:] != two.labels[0][:]).mean() < 1e-5


@pytest.mark.parametrize("given", [{"overlap": (32,)}, {"overlap": 0.25}, {"tile": (352,), "window": "hann"}])
def test_exact_is_not_exact_in_silence(drawn, tmp_path, given):
    """The overlap that was given was taken, and the result called exact."""
    (flag,) = {"overlap", "window"} & given.keys()
    with pytest.raises(ModelError, match=f"--exact takes the overlap and the window .*: leave --{flag} out"):
        tilelab.infer(drawn, "superalloy", tmp_path / "a.ome.zarr", exact=True, ignore_pixel_size=True, **given)


def test_exact_is_refused_where_no_overlap_is_enough():
    with pytest.raises(PlanError, match="whole tile"):
        exact_overlap(msgspec.structs.replace(SPEC, receptive_field=None))


def test_curves_ascend_and_older_descriptions_stay_as_they_were():
    with pytest.raises(ValueError, match="ascend"):
        Seams(overlap=(64, 32), labels=(0.1, 0.2))
    plain = msgspec.structs.replace(SPEC, seams=None)
    assert "seams" not in plain.to_json()
    curved = msgspec.structs.replace(SPEC, seams=Seams(overlap=(0, 64), labels=(1.0, 0.1)))
    assert ModelSpec.from_json(curved.to_json()) == curved
    assert curved.seams.per_pixel(63) == 1.0


def test_a_plan_tells_what_it_chose_from_and_how_long_it_takes(drawn, tmp_path, capsys):
    tifffile.imwrite(tmp_path / "a.tif", np.tile(drawn, (2, 1)))
    words = ["plan", str(tmp_path / "a.tif"), "-m", "superalloy", "--precision", "fp32"]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    run = tilelab.infer(tmp_path / "a.tif", "superalloy", tmp_path / "a.ome.zarr", options=Options(precision="fp32"))
    assert run.report["seconds"]["wall"] / 8 < told["seconds"] < 8 * run.report["seconds"]["wall"]  # others run, too
    assert told["choices"][0]["tile"] == told["engine"]["tile"] == list(run.report["tile"])
    assert all(one["seconds"] >= 1 and one["labels_as_whole"] >= 1 - TOLERANCE for one in told["choices"])
    computed = told["tiles"] * math.prod(told["engine"]["tile"]) / (2 * drawn.size)
    assert told["computed_per_pixel"] == pytest.approx(computed)
    assert main([*words, "--no-calibration"]) == 0
    table = capsys.readouterr().out.partition("choices")[2].splitlines()
    assert table[0].split() == ["tile", "overlap", "computed", "labels", "engine", "memory", "time"]
    assert table[1].split()[0] == str(told["engine"]["tile"][0])
    assert main([*words, "--no-calibration", "--tile", "256"]) == 0
    text = capsys.readouterr().out
    assert "pixels computed for each of the image" in text
    assert "choices" not in text


def test_an_export_measures_how_far_tiles_are_from_the_whole(drawn, monkeypatch):
    pytest.importorskip("torch", reason="extra `train` is not installed")
    from tilelab.engines.registry import locate_model
    from tilelab.exporting import seams as module
    from tilelab.exporting.parity import Sample
    from tilelab.io.images.open import open_image

    monkeypatch.setattr(module, "_STEPS", (0, 64))
    samples = [Sample("a", open_image(drawn[:420, :420], axes="yx"))]
    found = module.measure_file(locate_model("superalloy"), samples)
    assert found.overlap[:2] == (0, 64)
    assert found.labels[0] > 2 * found.labels[1] > 0
    assert 1 >= found.probabilities[0] >= found.probabilities[-1] >= 0
    shifted = module.measure_file(locate_model("superalloy-pmcanet"), samples)
    assert shifted.overlap == ()
    assert 0 <= shifted.shifted < 0.2
