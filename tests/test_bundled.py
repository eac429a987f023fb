"""The models that come along: the fastest precision that was proved runs, what was begun in another goes on in that."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from tiny_models import make_spec, save_unet

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

import tilelab
from tilelab.cli import main
from tilelab.engines.bundled import QUANTISED, bundled_models, quantised_file
from tilelab.engines.registry import choose_file, load_engine, read_model, read_spec
from tilelab.errors import EngineError
from tilelab.io.images.open import open_image
from tilelab.run.batch.many import infer_many
from tilelab.sample import draw_superalloy

NAMES = [name for name in bundled_models() if quantised_file(name) is not None]


def test_superalloy_has_a_quantised_file() -> None:
    assert "superalloy" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_quantised_file_belongs_to_its_model(name: str) -> None:
    """Proved, described alike, and of the same network: a stale one would answer otherwise."""
    beside = quantised_file(name)
    assert beside is not None
    own, spec = read_model(beside).spec, read_spec(name)
    assert own is not None
    assert spec is not None
    assert own.precisions == ("int8",)
    assert "int8" in own.training["proved"]
    for field in ("classes", "normalization", "tile", "overlap", "stride", "tile_min", "activation", "axes"):
        assert getattr(own, field) == getattr(spec, field)
    assert (own.seams is None, own.home is None) == (spec.seams is None, spec.home is None)
    side = spec.tile[0] if spec.tile_fixed else 256
    tile = ((draw_superalloy((side, side), seed=3)[0].astype(np.float32) - 150) / 20)[None, None]
    answers = []
    for precision in ("fp32", "int8"):
        engine = load_engine(name, engine="openvino", precision=precision, tile=(side, side), threads=1)
        assert engine.precision == precision
        answers.append(np.empty((1, spec.values, side, side), np.float32))
        engine.run(np.ascontiguousarray(tile), answers[-1])
        engine.close()
    assert (answers[0].argmax(axis=1) == answers[1].argmax(axis=1)).mean() > 0.97  # an image of another kind


def test_what_is_asked_for_is_what_runs() -> None:
    name = "superalloy"
    path = bundled_models()[name]
    file, spec = read_model(name), read_spec(name)
    assert spec is not None
    assert choose_file(name, file, spec, device="cpu").precision == "int8"
    assert choose_file(name, file, spec, device="cpu", precision="int8").file.path.name == f"{name}{QUANTISED}"
    assert choose_file(name, file, spec, device="cpu", precision="fp32").file is file
    assert choose_file(path, file, spec, device="cpu").file is file  # by its path it is that file
    assert choose_file(name, file, spec, "onnxruntime", "cpu").precision == "fp32"
    with pytest.raises(EngineError, match="not quantised"):
        choose_file(name, file, spec, "onnxruntime", "cpu", "int8")


def test_info_says_what_runs_and_what_was_proved(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "superalloy"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "runs here in int8 by openvino on cpu" in said
    assert "those of the network" in said


def test_the_list_of_models_names_int8_where_it_was_proved(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    said = {entry["name"]: entry["precisions"] for entry in json.loads(capsys.readouterr().out)}
    assert {name for name, precisions in said.items() if "int8" in precisions} == set(NAMES)
    assert main(["models", "superalloy"]) == 0
    assert "int8 in a file of its own (at least 99." in capsys.readouterr().out


def test_what_was_begun_in_another_precision_goes_on_in_that(tmp_path: Path) -> None:
    image, out = tmp_path / "a.tif", tmp_path / "a.ome.zarr"
    tifffile.imwrite(image, draw_superalloy((200, 210))[0])
    first = tilelab.infer(image, "superalloy", out, precision="fp32")
    again = tilelab.infer(image, "superalloy", out)
    assert again.already_finished
    assert [run.report["engine"]["precision"] for run in (first, again)] == ["fp32", "fp32"]
    anew = tilelab.infer(image, "superalloy", out, restart=True)
    assert anew.report["engine"]["precision"] == "int8"


def test_of_a_batch_each_goes_on_as_it_was_begun(tmp_path: Path) -> None:
    for name in "abc":
        tifffile.imwrite(tmp_path / f"{name}.tif", draw_superalloy((200, 210), seed=ord(name))[0])
    options = tilelab.Options(model=tilelab.SpecOverrides(tile=(256,), overlap=(64,)))
    tilelab.infer(tmp_path / "b.tif", "superalloy", tmp_path / "out" / "b.ome.zarr", options=options, precision="fp32")
    done = list(infer_many(sorted(tmp_path.glob("*.tif")), "superalloy", tmp_path / "out", options=options))
    found = {outcome.name: outcome.run for outcome in done}
    assert {name: run and run.report["engine"]["precision"] for name, run in found.items()} == {
        "a": "int8",
        "b": "fp32",
        "c": "int8",
    }
    assert found["b"] is not None
    assert found["b"].already_finished


def test_files_of_a_model_are_built_by_one_command(tmp_path: Path) -> None:
    """A network that int8 spoils comes without it, and what lay there of an older one goes."""
    pytest.importorskip("nncf")
    from tilelab.exporting import bundle
    from tilelab.exporting.parity import Sample
    from tilelab.exporting.source import open_network

    source = save_unet(tmp_path / "net.onnx", classes=3, spec=make_spec((32, 32), classes=3, stride=4))
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "net.md").write_text("# net\n| precisions | ? |\n| licence | MIT |\n")
    image, truth = draw_superalloy((128, 128), seed=2)
    planes = [open_image(draw_superalloy((96, 96), seed=5)[0], axes="yx")]
    material = bundle.Material([Sample("drawn", open_image(image, axes="yx"), truth)], planes)
    said: list[str] = []
    network = open_network(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle, "MOST_CHANGED", 1.0)
        files = bundle.build_bundle(network, "net", material, folder, said.append)
    names = {path.name for path in files}
    if len(files) == 1:  # random weights: the gate itself may refuse
        assert "no int8" in said[-1]
    else:
        assert names == {"net.onnx", "net.int8.xml", "net.int8.bin"}
        assert "int8 in a file of its own" in (folder / "net.md").read_text()
    _assert_rounded(folder / "net.onnx", source)
    (folder / "net.int8.xml").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle, "MOST_CHANGED", -1.0)
        assert bundle.build_bundle(network, "net", material, folder, said.append) == (folder / "net.onnx",)
    assert not list(folder.glob("net.int8.*"))
    assert "int8" not in (folder / "net.md").read_text()
    assert bundle.packed_bytes(folder) < 100_000


def _assert_rounded(path: Path, source: Path) -> None:
    """Weights of eleven bits, each the nearest to its own; all else of the file is as it was."""
    import onnx

    got, before = onnx.load(path), onnx.load(source)
    for new, old in zip(got.graph.initializer, before.graph.initializer, strict=True):
        weights, own = onnx.numpy_helper.to_array(new), onnx.numpy_helper.to_array(old)
        if weights.dtype == np.float32 and weights.ndim > 1:
            assert not np.any(weights.view(np.uint32) & 0x1FFF)
            assert np.all(np.abs(weights - own) <= np.abs(own) * 2.0**-11)
            assert np.array_equal(weights, own) == (not np.any(own.view(np.uint32) & 0x1FFF))
        else:
            np.testing.assert_array_equal(weights, own)
        new.CopyFrom(old)
    assert got == before
