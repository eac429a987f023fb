"""Packages of bioimage.io, drawn after its specification: what they say is what runs."""

from __future__ import annotations

import hashlib
import os
import shutil
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


def _zipped(folder: Path, packed: Path, names: dict[str, str]) -> Path:
    """Files of a folder under other names in a zip."""
    with zipfile.ZipFile(packed, "w") as archive:
        for file, name in names.items():
            archive.write(folder / file, name)
    return packed


def _name_weights(folder: Path, source: str) -> None:
    document = yaml.safe_load((folder / "bioimageio.yaml").read_text())
    document["weights"]["onnx"]["source"] = source
    (folder / "bioimageio.yaml").write_text(yaml.safe_dump(document))


def test_a_zip_may_hold_folders(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    net = save_unet(inside / "net.onnx", (64, 64), classes=3)
    other = save_conv(inside / "other.onnx", (64, 64), classes=2)
    write_05(inside, net, [], [{"id": "softmax"}], ("a", "b", "c"), size=64)
    document = "bioimageio.yaml"
    _name_weights(inside, "weights/net.onnx")
    for number, names in enumerate(
        (
            {document: "top/" + document, "net.onnx": "top/weights/net.onnx", "other.onnx": "top/old/net.onnx"},
            {document: document, "net.onnx": "weights/net.onnx", "other.onnx": "net.onnx"},
            {document: "top/" + document, "net.onnx": "net.onnx"},  # there is no other of that name
            {document: "top/" + document, "net.onnx": "top/weights/net.onnx", "other.onnx": "../top/weights/net.onnx"},
        )
    ):
        file = read_model(_zipped(inside, tmp_path / f"{number}.zip", names))
        assert file.path.read_bytes() == net.read_bytes() != other.read_bytes()
    _name_weights(inside, "net.onnx")
    two = {document: "top/" + document, "net.onnx": "top/a/net.onnx", "other.onnx": "top/b/net.onnx"}
    with pytest.raises(ModelError, match=r"keeps net\.onnx elsewhere"):
        read_model(_zipped(inside, tmp_path / "two.zip", two))
    for source in ("w/net[1].onnx", "w/"):  # no patterns
        _name_weights(inside, source)
        three = {document: "top/" + document, "net.onnx": "top/a/net[1].onnx", "other.onnx": "top/b/net1.onnx"}
        packed = _zipped(inside, tmp_path / f"named{len(source)}.zip", three)
        if source == "w/":
            with pytest.raises(ModelError, match="keeps w/ elsewhere"):
                read_model(packed)
        else:
            assert read_model(packed).path.name == "net[1].onnx"
    with zipfile.ZipFile(tmp_path / "several.zip", "w") as archive:
        for top in ("a", "b"):
            archive.write(inside / document, f"{top}/{document}")
    with pytest.raises(ModelError, match="holds several packages, in a and b: zip one package alone"):
        read_model(tmp_path / "several.zip")
    folder = tmp_path / "folder" / "weights"  # and so may a folder
    folder.mkdir(parents=True)
    _name_weights(inside, "weights/net.onnx")
    for file, place in ((document, folder.parent), ("net.onnx", folder)):
        shutil.copy(inside / file, place)
    assert read_model(folder.parent).path == folder / "net.onnx"


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


def _preprocessed(folder: Path, steps: list[Any], channels: int = 2, rank: int = 2) -> Any:
    """The description of a package of 0.5 with these steps, and what was assumed."""
    folder.mkdir()
    tile = (64, 64) if rank == 2 else (16, 64, 64)
    net = save_conv(folder / "net.onnx", tile, channels=channels, classes=1)
    write_05(folder, net, steps, [{"id": "sigmoid"}], ("mask",), size=64)
    document = yaml.safe_load((folder / "bioimageio.yaml").read_text())
    for tensor in (*document["inputs"], *document["outputs"]):
        if rank == 3:
            tensor["axes"].insert(2, {"type": "space", "id": "z", "size": 16})
    document["inputs"][0]["axes"][1]["channel_names"] = [f"c{i}" for i in range(channels)]
    (folder / "bioimageio.yaml").write_text(yaml.safe_dump(document))
    file = read_model(folder)
    return file.spec, " ".join(map(str, file.assumptions))


def test_statistics_are_of_the_axes_that_are_said(tmp_path: Path) -> None:
    """By bioimage.io's format: all axes where none is said."""
    step = {"id": "zero_mean_unit_variance"}
    for name, channels, axes, joint in (
        ("none", 2, None, True),
        ("all", 2, ["channel", "y", "x"], True),
        ("each", 2, ["y", "x"], False),
        ("one", 1, None, False),
    ):
        words = [step] if axes is None else [step | {"kwargs": {"axes": axes}}]
        _, assumed = _preprocessed(tmp_path / name, words, channels)
        assert ("all channels together" in assumed) == joint
    for name, axes, per in (("stack", ["z", "y", "x"], "stack"), ("slice", ["y", "x"], "slice")):
        spec, _ = _preprocessed(tmp_path / name, [step | {"kwargs": {"axes": axes}}], 1, 3)
        assert spec.normalization.per == per


def test_of_0_4_the_mode_with_a_mean_is_fixed(tmp_path: Path) -> None:
    net = save_conv(tmp_path / "net.onnx", ("h", "w"), classes=1)
    words = {"axes": "yx", "mean": [120.0], "std": [30.0]}
    write_04(tmp_path, net, [{"name": "zero_mean_unit_variance", "kwargs": words}], [{"name": "sigmoid"}])
    spec = read_spec(tmp_path)
    assert spec is not None
    assert (spec.normalization.kind, spec.normalization.mean, spec.normalization.std) == ("constants", (120,), (30,))


def test_what_cuts_off_does_so_in_each_channel_and_as_often_as_it_is_said(tmp_path: Path) -> None:
    clip = {"id": "clip", "kwargs": {"min": 0, "max": 200}}
    scaled = {"id": "scale_linear", "kwargs": {"gain": 0.01, "offset": -1}}
    spec, _ = _preprocessed(tmp_path / "a", [clip, scaled, {"id": "clip", "kwargs": {"min": -3, "max": 0.5}}])
    assert spec.normalization.clip == (-1, 0.5)
    for name, steps, match in (
        ("b", [clip, {"id": "scale_linear", "kwargs": {"axis": "channel", "gain": [0.01, 0.02]}}], "in each channel"),
        ("c", [{"id": "scale_linear", "kwargs": {"gain": -1}}, {"id": "zero_mean_unit_variance"}], "gain below 0"),
    ):
        with pytest.raises(ModelError, match=match):
            _preprocessed(tmp_path / name, steps)


def _script(folder: Path, network: Any, shape: dict[str, Any] | None = None, **more: Any) -> Path:
    """A package of 0.4 with a network in TorchScript."""
    torch = pytest.importorskip("torch")
    folder.mkdir()
    torch.jit.script(network.eval()).save(str(folder / "net.pt"))
    free = {"min": [1, 1, 32, 32], "step": [0, 0, 16, 16]}
    same = {"reference_tensor": "raw", "scale": [1, 1, 1, 1], "offset": [0, 0, 0, 0]}
    step = {"name": "scale_linear", "kwargs": {"gain": 1 / 255, "offset": -0.5}}
    document = {
        "format_version": "0.4.10",
        "type": "model",
        "name": "drawn",
        "inputs": [tensor_04("raw", shape=free, preprocessing=[step])],
        "outputs": [tensor_04("mask", shape=shape or same, **more)],
        "weights": {"onnx": None, "torchscript": {"source": "net.pt"}},
    }
    (folder / "rdf.yaml").write_text(yaml.safe_dump(document))
    return folder


_SIGMOID = {"postprocessing": [{"name": "sigmoid"}]}


def test_a_torchscript_may_give_another_size_than_its_tile(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    halved = {"reference_tensor": "raw", "scale": [1, 1, 0.5, 0.5], "offset": [0, 0, 0, 0]}
    for name, shape, network in (
        ("half", halved, torch.nn.Conv2d(1, 1, 4, stride=2, padding=1)),
        ("valid", None, torch.nn.Conv2d(1, 1, 5)),
    ):
        path = _script(tmp_path / name, network, shape, **_SIGMOID)
        done = tilelab.infer(_IMAGE, path, tmp_path / f"{name}.ome.zarr", intensity_dtype="uint8")
        assert tilelab.read_result(done.path).labels[0].shape == _IMAGE.shape
    many = {"reference_tensor": "raw", "scale": [1, 0, 1, 1], "offset": [0, 1.5, 0, 0]}  # three channels, it is said
    path = _script(tmp_path / "many", torch.nn.Conv2d(1, 1, 1), many, postprocessing=[{"name": "softmax"}])
    with pytest.raises(ModelError, match="--classes"):
        tilelab.infer(_IMAGE, path, tmp_path / "many.ome.zarr", intensity_dtype="uint8", classes=3)


def test_what_a_package_says_of_a_torchscript_stands_where_values_mislead(tmp_path: Path) -> None:
    """Probabilities near 0 on a made-up batch, and logits that are all between 0 and 1 there."""
    torch = pytest.importorskip("torch")

    class Rare(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(400 * x - 1000)

    class Timid(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 0.2 + 0.1 * torch.sin(x)

    for name, network, said, share in (("rare", Rare(), {"data_range": [0, 1]}, 0), ("timid", Timid(), _SIGMOID, 1)):
        path = _script(tmp_path / name, network, **said)
        done = tilelab.infer(_IMAGE, path, tmp_path / f"{name}.ome.zarr", intensity_dtype="uint8")
        assert tilelab.read_result(done.path).labels[0][...].mean() == share

    class Wide(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 5 * x

    wrong = _script(tmp_path / "wrong", Wide(), data_range=[0, 1])
    with pytest.raises(ModelError, match="no probabilities, as its description says"):
        tilelab.infer(_IMAGE, wrong, tmp_path / "wrong.ome.zarr", intensity_dtype="uint8")


def test_a_side_may_be_told_by_the_other(tmp_path: Path) -> None:
    net = save_conv(tmp_path / "net.onnx", ("h", "w"), classes=1)
    write_05(tmp_path, net, [], [{"id": "sigmoid"}], ("mask",), size={"min": 32, "step": 16})
    document = yaml.safe_load((tmp_path / "bioimageio.yaml").read_text())
    side = document["inputs"][0]["axes"][-1]
    side["size"] = {"tensor_id": "raw", "axis_id": "y"}
    (tmp_path / "bioimageio.yaml").write_text(yaml.safe_dump(document))
    spec = read_spec(tmp_path)
    assert spec is not None
    assert (spec.tile, spec.stride, spec.tile_min) == ((512, 512), 16, (32, 32))
    for change in ({"scale": 8.0}, {"size": side["size"] | {"offset": 16}}):
        document["inputs"][0]["axes"][-1] = side | change
        (tmp_path / "bioimageio.yaml").write_text(yaml.safe_dump(document))
        with pytest.raises(ModelError, match="not that of y but depends on it"):
            read_spec(tmp_path)
