"""Packages of bioimage.io, drawn after its specification: what they say is what runs."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

yaml = pytest.importorskip("yaml")
pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

import tilelab  # noqa: E402
from tests.tiny_models import save_conv, save_unet  # noqa: E402
from tilelab.engines.registry import read_model, read_spec  # noqa: E402
from tilelab.errors import ModelError  # noqa: E402

_CASE = Path(os.environ.get("TILELAB_CASES", Path(__file__).parents[1].parent / "shared" / "cases")) / "models"
_RNG = np.random.default_rng(0)
_IMAGE = _RNG.normal(size=(150, 170)).cumsum(0).cumsum(1)
_IMAGE = (255 * (_IMAGE - _IMAGE.min()) / np.ptp(_IMAGE)).astype(np.uint8)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def tensor_04(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "axes": "bcyx", "data_type": "float32", **more}


def axes_05(halo: int = 0, channels: tuple[str, ...] = ("channel0",), **size: Any) -> list[dict[str, Any]]:
    space = [{"type": "space", "id": a, "unit": "nanometer", "scale": 4.0, **size} for a in "yx"]
    del space[1]["id"]  # x need not be said
    if halo:
        space = [axis | {"halo": halo} for axis in space]
    return [{"type": "batch"}, {"type": "channel", "channel_names": list(channels)}, *space]


def write_04(folder: Path, net: Path, steps: list[dict[str, Any]], after: list[dict[str, Any]] | None = None) -> Path:
    document = {
        "format_version": "0.4.10",
        "type": "model",
        "name": "drawn",
        "inputs": [tensor_04("raw", shape={"min": [1, 1, 32, 32], "step": [0, 0, 16, 16]}, preprocessing=steps)],
        "outputs": [
            tensor_04(
                "boundary",
                shape={"reference_tensor": "raw", "scale": [1, 1, 1, 1], "offset": [0, 0, 0, 0]},
                halo=[0, 0, 8, 8],
                postprocessing=after or [],
            )
        ],
        "weights": {"onnx": {"source": net.name, "sha256": hashlib.sha256(net.read_bytes()).hexdigest()}},
    }
    (folder / "rdf.yaml").write_text(yaml.safe_dump(document))
    return folder


def write_05(
    folder: Path, net: Path, steps: list[Any], after: list[Any], channels: tuple[str, ...], **size: Any
) -> Path:
    out = {"size": {"tensor_id": "raw", "axis_id": "y"}}
    document = {
        "format_version": "0.5.4",
        "type": "model",
        "name": "drawn",
        "inputs": [{"id": "raw", "axes": axes_05(**size), "data": {"type": "float32"}, "preprocessing": steps}],
        "outputs": [{"id": "masks", "axes": axes_05(8, channels, **out), "postprocessing": after}],
        "weights": {"onnx": {"source": net.name}},
    }
    (folder / "bioimageio.yaml").write_text(yaml.safe_dump(document))
    return folder


def whole(net: Path, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(net, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: image.astype(np.float32)[None, None]})
    return np.asarray(result)[0]


def probabilities(path: Path) -> np.ndarray:
    return np.asarray(tilelab.read_result(path).images[0][...]).astype(float) / 255


STEPS = {
    "zero_mean_unit_variance": ({"mode": "per_sample", "axes": "yx"}, lambda i: (i - i.mean()) / i.std()),
    "scale_range": (
        {"mode": "per_sample", "axes": "yx", "min_percentile": 1.0, "max_percentile": 99.0},
        lambda i: (i - np.percentile(i, 1)) / (np.percentile(i, 99) - np.percentile(i, 1)),
    ),
    "scale_linear": ({"gain": 1 / 255, "offset": -0.5}, lambda i: i / 255 - 0.5),
}


@pytest.mark.parametrize("name", STEPS)
def test_preprocessing_of_0_4_is_that_of_the_whole_image(tmp_path: Path, name: str) -> None:
    words, expected = STEPS[name]
    net = save_conv(tmp_path / "net.onnx", ("h", "w"), classes=1)
    write_04(tmp_path, net, [{"name": name, "kwargs": words}], [{"name": "sigmoid"}])
    told = {"intensity_dtype": "uint8"} if name == "scale_linear" else {}
    run = tilelab.infer(_IMAGE, tmp_path, tmp_path / "a.ome.zarr", **told)
    logits = whole(net, expected(_IMAGE.astype(float)))[0]
    inner = (slice(1, -1), slice(1, -1))  # the network pads with zeros, tilelab reflects
    labels = tilelab.read_result(run.path).labels[0][...]
    assert (labels == (logits > 0))[inner].mean() > 0.999
    spec = read_spec(tmp_path)
    assert spec is not None
    assert (spec.tile, spec.overlap, spec.stride, spec.tile_min) == ((512, 512), (16, 16), 16, (32, 32))
    assert [c.name for c in spec.classes] == ["background", "boundary"]


def test_a_zip_of_0_5_runs_with_its_classes_sizes_and_threshold(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    net = save_unet(tmp_path / "inside" / "net.onnx", (64, 64), classes=3)
    steps = [{"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}, {"id": "zero_mean_unit_variance"}]
    write_05(tmp_path / "inside", net, steps, [{"id": "softmax"}], ("resin", "cell", "nucleus"), size=64)
    packed = tmp_path / "packed.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for file in (tmp_path / "inside").iterdir():
            archive.write(file, f"inside/{file.name}")
    spec = read_spec(packed)
    assert spec is not None
    assert [c.name for c in spec.classes] == ["resin", "cell", "nucleus"]
    assert (spec.tile, spec.tile_fixed, spec.overlap, spec.pixel_size_nm) == ((64, 64), True, (16, 16), (4.0, 4.0))
    assert spec.activation == "softmax"
    run = tilelab.infer(_IMAGE, packed, tmp_path / "a.ome.zarr")
    direct = tilelab.infer(_IMAGE, net, tmp_path / "b.ome.zarr", normalization="mean-std", overlap=16, classes=3)
    read = [tilelab.read_result(r.path).labels[0][...] for r in (run, direct)]
    assert np.array_equal(*read)


def test_a_package_without_probabilities_gives_its_map(tmp_path: Path) -> None:
    net = save_conv(tmp_path / "net.onnx", (64, 64), classes=2)
    write_05(tmp_path, net, [], [], ("a", "b"), size=64)
    said: list[str] = []
    run = tilelab.infer(_IMAGE, tmp_path, tmp_path / "a.ome.zarr", note=said.append)
    assert any("a map of numbers" in line for line in said)
    assert any("units of the constants" in line for line in said)
    assert run.path.exists()


@pytest.mark.parametrize(
    ("steps", "match"),
    [
        ([{"name": "binarize", "kwargs": {"threshold": 3}}], "binarize"),
        ([{"name": "clip", "kwargs": {"min": 0, "max": 9}}, {"name": "zero_mean_unit_variance"}], "after clip"),
        ([{"name": "zero_mean_unit_variance"}, {"name": "scale_linear", "kwargs": {"gain": 2}}], "after mean-std"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(tmp_path: Path, steps: list[dict[str, Any]], match: str) -> None:
    net = save_conv(tmp_path / "net.onnx", ("h", "w"))
    with pytest.raises(ModelError, match=match):
        read_model(write_04(tmp_path, net, steps))


def test_broken_packages_are_refused(tmp_path: Path) -> None:
    net = save_conv(tmp_path / "net.onnx", ("h", "w"))
    write_04(tmp_path, net, [])
    net.write_bytes(net.read_bytes() + b"\0")
    with pytest.raises(ModelError, match="another sha256"):
        read_model(tmp_path)
    document = yaml.safe_load((tmp_path / "rdf.yaml").read_text())
    for change, match in (
        ({"weights": {"pytorch_state_dict": {}}}, "weights for pytorch_state_dict"),
        ({"weights": {"onnx": {"source": "../net.onnx"}}}, "elsewhere"),
        ({"format_version": "0.3.1"}, "reads 0.4 and 0.5"),
        ({"inputs": None}, "can be read"),
    ):
        (tmp_path / "rdf.yaml").write_text(yaml.safe_dump(document | change))
        with pytest.raises(ModelError, match=match):
            read_model(tmp_path)


def test_torchscript_gives_what_onnx_gives(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    if not (_CASE / "bioimg.zip").is_file():
        pytest.skip(f"no cases at {_CASE} (set TILELAB_CASES)")
    with zipfile.ZipFile(_CASE / "bioimg.zip") as archive:
        archive.extractall(tmp_path / "p")
    onnx_run = tilelab.infer(_IMAGE, _CASE / "bioimg.zip", tmp_path / "a.ome.zarr")
    document = yaml.safe_load((tmp_path / "p" / "rdf.yaml").read_text())
    del document["weights"]["onnx"]
    (tmp_path / "p" / "rdf.yaml").write_text(yaml.safe_dump(document))
    said: list[str] = []
    run = tilelab.infer(_IMAGE, tmp_path / "p", tmp_path / "b.ome.zarr", note=said.append)
    assert any("a program" in line for line in said)
    read = [tilelab.read_result(r.path).labels[0][...] for r in (onnx_run, run)]
    assert (read[0] == read[1]).mean() > 0.999
