"""Several models in one sweep, and maps of uncertainty: what they say, and that no cut changes them."""

from __future__ import annotations

import contextlib
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from result_files import make_result
from tiny_models import make_spec, save_conv, save_unet

import tilelab
from tilelab.engines.base import BaseEngine
from tilelab.engines.combined import CombinedEngine, combined_planes, combined_spec, is_combined
from tilelab.engines.overrides import SpecOverrides
from tilelab.engines.registry import load_engine, read_spec
from tilelab.errors import ModelError
from tilelab.io.results.result import Result, read_result
from tilelab.measure.doubt import find_doubt
from tilelab.run.plan.choice import exact_overlap
from tilelab.spec import Normalization

IMAGE = np.random.default_rng(5).integers(0, 256, (152, 172)).astype(np.uint8)
WORDS: dict[str, Any] = {"tile": 64, "overlap": 16, "probabilities": ("all",), "device": "cpu", "engine": "onnxruntime"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two networks of other weights, the second of which takes intensities normalised otherwise."""
    folder = tmp_path_factory.mktemp("models")
    a = save_conv(folder / "a.onnx", (64, 64), classes=3, spec=make_spec((64, 64), classes=3))
    b = save_unet(
        folder / "b.onnx",
        (64, 64),
        classes=3,
        spec=make_spec((64, 64), classes=3, stride=4, normalization=Normalization(mean=(100.0,), std=(50.0,))),
    )
    return str(a), str(b)


def run(model: str, out: Path, **words: Any) -> Result:
    tilelab.infer(IMAGE, model, out, **(WORDS | words))
    return read_result(out)


def tree(folder: Path) -> dict[str, bytes]:
    kept = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "zarr.json"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in kept}


def entropy(p: Any) -> Any:
    return -(p * np.log2(np.maximum(p, 1e-9))).sum(axis=0)


def test_exact_is_exact_with_a_map_of_uncertainty_too(drawn_field: str, tmp_path: Path) -> None:
    """A tile that is given needs an overlap of what the network sees; a chosen one may hold the whole image."""
    words = WORDS | {"tile": 128, "overlap": None, "exact": True, "uncertainty": "entropy"}
    done = tilelab.infer(IMAGE, drawn_field, tmp_path / "exact.ome.zarr", **words)
    spec = read_spec(drawn_field)
    assert spec is not None
    assert min(done.report["overlap"]) >= exact_overlap(spec) > max(spec.overlap)


@pytest.fixture
def drawn_field(tmp_path: Path) -> str:
    """A network that says how far it sees, of a free size."""
    spec = make_spec((64, 64), classes=3, stride=4, receptive_field=44, tile_fixed=False, tile_min=(32, 32))
    return str(save_unet(tmp_path / "free.onnx", ("h", "w"), classes=3, spec=spec))


def test_names_of_ensembles_are_their_own() -> None:
    from tilelab.run.target import model_name

    assert model_name("m/a.onnx,m/b.onnx") == "a+b"
    assert model_name("m/b.onnx") == "b"


def test_an_ensemble_has_the_mean_of_the_probabilities(models: tuple[str, str], tmp_path: Path) -> None:
    a, b = (run(model, tmp_path / f"{i}.ome.zarr", overlap=0) for i, model in enumerate(models))
    both = run(",".join(models), tmp_path / "both.ome.zarr", overlap=0, uncertainty="models")
    p, q, mean = (np.asarray(r.probabilities[0][...], float) / 255 for r in (a, b, both))
    np.testing.assert_allclose(mean, (p + q) / 2, atol=1.01 / 255)
    said = both.maps["uncertainty"][...][0]
    np.testing.assert_allclose(said, np.maximum(entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2, 0), atol=0.03)
    assert said.max() > 0.05


def test_entropy_is_of_the_probabilities_and_leaves_the_labels_alone(models: tuple[str, str], tmp_path: Path) -> None:
    plain = run(models[0], tmp_path / "plain.ome.zarr", overlap=0)
    with_map = run(models[0], tmp_path / "map.ome.zarr", overlap=0, uncertainty="entropy")
    np.testing.assert_array_equal(plain.labels[0][...], with_map.labels[0][...])
    np.testing.assert_array_equal(plain.probabilities[0][...], with_map.probabilities[0][...])
    p = np.asarray(plain.probabilities[0][...], float) / 255
    np.testing.assert_allclose(with_map.maps["uncertainty"][...][0], entropy(p), atol=0.03)


def test_symmetries_give_the_labels_of_tta(models: tuple[str, str], tmp_path: Path) -> None:
    averaged = run(models[0], tmp_path / "tta.ome.zarr", symmetries=True)
    found = run(models[0], tmp_path / "map.ome.zarr", uncertainty="symmetries")
    np.testing.assert_array_equal(averaged.labels[0][...], found.labels[0][...])
    np.testing.assert_array_equal(averaged.probabilities[0][...], found.probabilities[0][...])
    assert found.maps["uncertainty"][...].max() > 0.01


def test_no_cut_changes_the_bytes(models: tuple[str, str], tmp_path: Path) -> None:
    image = np.random.default_rng(6).integers(0, 256, (700, 600)).astype(np.uint8)
    trees = []
    for i, cut in enumerate(({}, {"lanes": 2, "spans": 2, "threads": 1})):
        tilelab.infer(image, ",".join(models), tmp_path / f"{i}.ome.zarr", uncertainty="models", **(WORDS | cut))
        trees.append(tree(tmp_path / f"{i}.ome.zarr"))
    assert trees[0] == trees[1]


def test_a_plan_counts_both(models: tuple[str, str]) -> None:
    alone = tilelab.plan(IMAGE, models[0], tile=64, overlap=16)
    both = tilelab.plan(IMAGE, ",".join(models), tile=64, overlap=16, uncertainty="models")
    assert both.request.written.maps == (("uncertainty", 1),)
    assert both.request.spec.name.count("+") == 1
    assert both.request.written.bytes_per_pixel == alone.request.written.bytes_per_pixel + 4


def test_what_does_not_go_together_is_refused(models: tuple[str, str], tmp_path: Path) -> None:
    other = save_conv(tmp_path / "c.onnx", (64, 64), spec=make_spec((64, 64)))
    for model, words, match in (
        (f"{models[0]},{other}", {}, "do not go together: classes"),
        (models[0], {"uncertainty": "models"}, "--model A,B"),
        (f"{models[0]},gone.onnx", {}, "gone.onnx"),
    ):
        with pytest.raises(ModelError, match=match):
            run(model, tmp_path / "r.ome.zarr", **words)


def test_review_goes_by_the_map(models: tuple[str, str], tmp_path: Path) -> None:
    result = run(models[0], tmp_path / "r.ome.zarr", uncertainty="entropy", probabilities=("none",))
    said = result.maps["uncertainty"][...][0]
    doubt = find_doubt(result, 50)
    assert doubt.bits[0, 1, 2] == pytest.approx(float(said[50:100, 100:150].mean()), rel=1e-4)
    blobs = make_result(tmp_path / "b.ome.zarr", (90, 80))
    assert find_doubt(blobs, 40).bits.shape == (1, 3, 2)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("uncertainty", [None, "entropy", "models", "symmetries"])
def test_a_plan_counts_what_models_take_together(activation: Any, uncertainty: Any) -> None:
    """NumPy says what is held while two networks run, one of which takes other intensities."""
    spec = make_spec((96, 96), classes=3, activation=activation)
    other = msgspec.structs.replace(spec, normalization=Normalization(mean=(100.0,), std=(50.0,)))
    members = [Far(one, (96, 96), 2) for one in (spec, other)]
    engine = CombinedEngine(members, combined_spec([spec, other], uncertainty), uncertainty)
    tiles = np.random.default_rng(0).random((2, 1, 96, 96), np.float32)
    out = np.empty((2, engine.spec.values, 96, 96), np.float32)
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of overflow, say
            engine.run(tiles, out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    planned = 4 * tiles.size * combined_planes(engine.spec)
    assert planned / 2 < peak <= planned + 20_000
    assert np.isfinite(out).all()
    assert is_combined(engine.spec)
    assert not is_combined(spec)


class Far(BaseEngine):
    """Gives logits far from 0."""

    def run(self, tiles: Any, out: Any) -> None:
        out[...] = 400 * (tiles - 0.5)


def test_the_report_tells_of_every_model(models: tuple[str, str], tmp_path: Path) -> None:
    done = tilelab.infer(IMAGE, ",".join(models), tmp_path / "r.ome.zarr", **WORDS)
    told = done.report["engine"]["members"]
    assert [(one["name"], one["device"], one["precision"]) for one in told] == [("onnxruntime", "cpu", "fp32")] * 2
    assert "combined outputs" in done.report["memory"]["planned"]
    alone = tilelab.infer(IMAGE, models[0], tmp_path / "a.ome.zarr", **WORDS)
    assert "members" not in alone.report["engine"]


def test_models_that_run_unlike_are_said() -> None:
    spec = make_spec((64, 64), classes=3)
    one, other = Far(spec, (64, 64), 1), Far(spec, (64, 64), 1)
    other.precision = "bf16"
    engine = CombinedEngine([one, other], combined_spec([spec, spec], None), None)
    assert engine.warnings == ("the models do not run alike: function fp32 on cpu, function bf16 on cpu",)
    assert CombinedEngine([one, one], combined_spec([spec, spec], None), None).warnings == ()


def test_tiles_and_overlaps_suit_all(tmp_path: Path) -> None:
    small = save_conv(tmp_path / "s.onnx", (64, 64), classes=3, spec=make_spec((64, 64), classes=3))
    large = save_conv(
        tmp_path / "l.onnx",
        ("h", "w"),
        classes=3,
        spec=make_spec((256, 256), classes=3, tile_fixed=False, overlap=(64, 64)),
    )
    spec = read_spec(f"{small},{large}")
    assert spec is not None
    assert (spec.tile, spec.overlap) == ((64, 64), (32, 32))


def test_symmetries_need_a_square(tmp_path: Path) -> None:
    oblong = make_spec((32, 128), classes=3, tile_fixed=False)
    free = str(save_conv(tmp_path / "free.onnx", ("h", "w"), classes=3, spec=oblong))
    spec = read_spec(free, SpecOverrides(uncertainty="symmetries"))
    assert spec is not None
    assert spec.tile == (32, 32)
    fixed = str(save_conv(tmp_path / "fixed.onnx", (32, 128), classes=3, spec=make_spec((32, 128), classes=3)))
    for model, words in ((fixed, {"tile": None}), (free, {"tile": (32, 128)}), (np.negative, {"tile": (32, 128)})):
        said = WORDS | words | {"overlap": 0, "uncertainty": "symmetries", "device": "auto", "engine": "auto"}
        extra = {"mean": 128, "std": 33, "activation": "sigmoid"} if callable(model) else {}
        with pytest.raises(ModelError, match="need a square tile"):
            tilelab.infer(IMAGE, model, tmp_path / "r.ome.zarr", **said, **extra)


def test_what_was_trained_on_other_pixels_is_refused(tmp_path: Path) -> None:
    sizes = {"a": None, "b": (8.0, 8.0), "c": (20.0, 20.0), "d": (8.4, 8.4)}
    path = {
        name: str(save_conv(tmp_path / f"{name}.onnx", (64, 64), spec=make_spec((64, 64), pixel_size_nm=size)))
        for name, size in sizes.items()
    }
    for names in ("bc", "abc"):
        with pytest.raises(ModelError, match="8 x 8 and 20 x 20 nm"):
            read_spec(",".join(path[name] for name in names))
    spec = read_spec(f"{path['a']},{path['b']},{path['d']}")
    assert spec is not None
    assert spec.pixel_size_nm == (8, 8)
    said = read_spec(f"{path['b']},{path['c']}", SpecOverrides(pixel_size_nm=(8.0,)))
    assert said is not None


def test_intensities_are_cut_off_alike_or_not_together(tmp_path: Path) -> None:
    path = {}
    for name, mean, std, clip in (("a", 100, 20, (-2, 3)), ("b", 100, 40, (-1, 1.5)), ("c", 100, 40, (-2, 3))):
        spec = make_spec((64, 64), normalization=Normalization(mean=(float(mean),), std=(float(std),), clip=clip))
        path[name] = str(save_conv(tmp_path / f"{name}.onnx", (64, 64), spec=spec))
    for other in "bc":
        with pytest.raises(ModelError, match="do not go together"):
            read_spec(f"{path['a']},{path[other]}")
    same = make_spec((64, 64), normalization=Normalization(mean=(100.0,), std=(20.0,), clip=(-2, 3)))
    assert read_spec(f"{path['a']},{save_conv(tmp_path / 'd.onnx', (64, 64), spec=same)}") is not None


def test_volumes_of_several_channels_go_together(tmp_path: Path) -> None:
    rng, tile = np.random.default_rng(0), (2, 32, 32)
    paths = []
    for name, mean, std in (("a", (120.0, 100.0), (30.0, 40.0)), ("b", (90.0, 70.0), (20.0, 60.0))):
        spec = make_spec(tile, channels=2, normalization=Normalization(mean=mean, std=std))
        paths.append(str(save_conv(tmp_path / f"{name}.onnx", tile, channels=2, spec=spec)))
    raw = rng.integers(0, 256, (1, 2, *tile)).astype(np.float32)
    each = (1, 2, 1, 1, 1)
    given = [
        ((raw - np.reshape(mean, each)) / np.reshape(std, each)).astype(np.float32)
        for mean, std in (((120, 100), (30, 40)), ((90, 70), (20, 60)))
    ]
    out, parts = np.empty((1, 2, *tile), np.float32), []
    for path, tiles in zip(paths, given, strict=True):
        with contextlib.closing(load_engine(path, engine="onnxruntime", device="cpu")) as engine:
            engine.run(tiles, out)
        parts.append(np.exp(out) / np.exp(out).sum(axis=1, keepdims=True))
    with contextlib.closing(load_engine(",".join(paths), engine="onnxruntime", device="cpu")) as engine:
        engine.run(given[0], out)
    both = np.exp(out) / np.exp(out).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(both, (parts[0] + parts[1]) / 2, atol=1e-4)
