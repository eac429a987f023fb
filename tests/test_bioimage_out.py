"""Packages of bioimage.io that we write: valid, and read back as what they were made of."""

from __future__ import annotations

import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest

yaml = pytest.importorskip("yaml")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import tilelab  # noqa: E402
from tests.tiny_models import make_spec, save_conv, save_unet  # noqa: E402
from tilelab.cli.main import main  # noqa: E402
from tilelab.engines.packages.bioimage import read_package  # noqa: E402
from tilelab.engines.registry import read_spec  # noqa: E402
from tilelab.errors import ModelError  # noqa: E402
from tilelab.exporting.package_check import check_package  # noqa: E402
from tilelab.exporting.package_file import Credits, validate, write_package  # noqa: E402
from tilelab.exporting.parity import Sample  # noqa: E402
from tilelab.io.images.open import open_image  # noqa: E402
from tilelab.spec import Normalization  # noqa: E402

# bioimageio.spec leaves files to be closed by the collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
_IMAGE = np.random.default_rng(0).integers(0, 256, (150, 130), np.uint8)
_BY = Credits(("A. Person",), "CC-BY-4.0", "Finds what is there.")
_NORMS = {
    "constants": Normalization(mean=(120.0,), std=(40.0,), clip=(-1.5, 2.0)),
    "per channel": Normalization(mean=(120.0, 100.0), std=(40.0, 30.0)),
    "mean-std": Normalization(kind="mean-std", per="slice"),
    "percentile": Normalization(kind="percentile", low=2.0, high=98.0, per="slice"),
    "min-max": Normalization(kind="min-max", per="slice"),
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def without_ours(packed: Path, folder: Path) -> Path:
    """The package as one of somebody else: its network describes nothing."""
    import onnx

    with zipfile.ZipFile(packed) as archive:
        archive.extractall(folder)
    model = onnx.load(folder / "weights.onnx")
    del model.metadata_props[:]
    onnx.save(model, folder / "weights.onnx")
    document = yaml.safe_load((folder / "bioimageio.yaml").read_text())
    del document["weights"]["onnx"]["sha256"]
    (folder / "bioimageio.yaml").write_text(yaml.safe_dump(document))
    return folder


@pytest.mark.parametrize("name", _NORMS)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_package_says_what_the_description_says(tmp_path: Path, name: str, activation: str) -> None:
    norm = _NORMS[name]
    channels = len(norm.mean)
    sigmoid = activation == "sigmoid"
    spec = make_spec(
        (64, 64), classes=3, channels=channels, normalization=norm, activation=activation, tile_fixed=False, stride=16
    )
    net = save_unet(tmp_path / "net.onnx", ("h", "w"), classes=3 - sigmoid, channels=channels, spec=spec)
    sample = Sample("noise", open_image(_IMAGE, axes="yx"))
    write_package(net, tmp_path / "ours.zip", sample, _BY)
    assert check_package(tmp_path / "ours.zip").passed
    own = read_spec(tmp_path / "ours.zip")
    assert own == spec
    theirs = msgspec.json.decode(
        read_package(without_ours(tmp_path / "ours.zip", tmp_path / "theirs")).description or ""
    )
    assert theirs["activation"] == activation
    assert check_package(tmp_path / "theirs").passed
    assert len(theirs["classes"]) == 3
    assert theirs["overlap"] == list(spec.overlap)
    for key, value in msgspec.to_builtins(norm).items():
        if key == "clip" and value is not None:
            assert theirs["normalization"]["clip"] == pytest.approx(value)
        elif key in ("mean", "std") and norm.kind == "constants":
            assert theirs["normalization"][key] == pytest.approx(value)
        elif key in ("kind", "per") or (key in ("low", "high") and norm.kind == "percentile"):
            assert theirs["normalization"].get(key, "stack") == value


def test_its_test_tensors_are_what_the_network_gives(tmp_path: Path) -> None:
    spec = make_spec((64, 64), normalization=Normalization(kind="mean-std"), tile_fixed=False, stride=16)
    net = save_conv(tmp_path / "net.onnx", ("h", "w"), spec=spec)
    write_package(net, tmp_path / "ours.zip", Sample("noise", open_image(_IMAGE, axes="yx")), _BY)
    with zipfile.ZipFile(tmp_path / "ours.zip") as archive:
        given, expected = (np.load(archive.open(f"test_{kind}.npy")) for kind in ("input", "output"))
    import onnxruntime

    session = onnxruntime.InferenceSession(net, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"tiles": (given - given.mean()) / given.std()})
    powers = np.exp(logits)
    assert np.allclose(powers / powers.sum(axis=1, keepdims=True), expected, atol=1e-5)


def test_the_command_writes_a_package_that_runs_like_its_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = make_spec((64, 64), tile_fixed=False, stride=16)
    net = save_unet(tmp_path / "net.onnx", ("h", "w"), spec=spec)
    packed = tmp_path / "net.zip"
    assert main(["export", str(net), "-o", str(packed)]) == 2
    assert "--author NAME and --license SPDX" in capsys.readouterr().err
    words = ["export", str(net), "-o", str(packed), "--author", "A. Person", "--license", "MIT"]
    assert main(words) == 0
    assert main(words) == 2
    runs = [tilelab.infer(_IMAGE, model, tmp_path / f"{model.suffix[1:]}.ome.zarr") for model in (net, packed)]
    labels = [tilelab.read_result(run.path).labels[0][...] for run in runs]
    assert np.array_equal(*labels)


def test_bioimageio_spec_finds_it_valid(tmp_path: Path) -> None:
    pytest.importorskip("bioimageio.spec")
    spec = make_spec((64, 64), classes=3, tile_fixed=False, stride=16, pixel_size_nm=(4.0, 4.0))
    net = save_unet(tmp_path / "net.onnx", ("h", "w"), classes=3, spec=spec)
    said: list[str] = []
    write_package(net, tmp_path / "a.zip", Sample("noise", open_image(_IMAGE, axes="yx")), _BY, said.append)
    assert "is valid" in said[0]
    (tmp_path / "bioimageio.yaml").write_text("format_version: 0.5.4\ntype: model\n")
    with pytest.raises(ModelError, match="no valid package"):
        validate(tmp_path / "bioimageio.yaml", tmp_path / "b.zip")


def test_a_package_that_gives_something_else_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = make_spec((64, 64), tile_fixed=False, stride=16)
    net = save_unet(tmp_path / "net.onnx", ("h", "w"), spec=spec)
    write_package(net, tmp_path / "ours.zip", Sample("noise", open_image(_IMAGE, axes="yx")), _BY)
    assert main(["info", "--check", str(tmp_path / "ours.zip")]) == 0
    assert "as its makers say" in capsys.readouterr().out
    folder = without_ours(tmp_path / "ours.zip", tmp_path / "theirs")
    np.save(folder / "test_output.npy", np.load(folder / "test_output.npy") + np.float32(0.01))
    assert main(["info", "--check", str(folder)]) == 2
    assert "NOT what its makers say" in capsys.readouterr().err
    assert main(["info", "--check", str(net)]) == 2
