"""Models that come as something else than an engine file: what runs, and how what does not becomes a file that does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tilelab
from tilelab.engines.registry import read_model
from tilelab.errors import ModelError

_IMAGE = np.random.default_rng(0).integers(0, 256, (150, 130), np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tilelab" / "models"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    pytest.importorskip("torch", reason="training extra not installed")
    pytest.importorskip("onnxscript", reason="training extra not installed")
    from tilelab.models.build import initialise
    from tilelab.training.checkpoint import Checkpoint, Header, save_checkpoint
    from tilelab.training.recipe import load_recipe
    from tilelab.training.segmentation import describe

    network = initialise(0, "unet", 1, 3, widths=[4, 6, 8]).eval()
    recipe = load_recipe(
        "superalloy", ["network.options.widths=[4, 6, 8]", "inference.tile=64", "inference.overlap=16"]
    )
    tensors = {f"model.{name}": value for name, value in network.state_dict().items()}
    spec = describe(recipe, network, recipe.normalization)
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, Checkpoint(Header(recipe=recipe, spec=spec, step=3), tensors))
    return path


def test_a_checkpoint_is_exported_once_and_runs(checkpoint: Path, tmp_path: Path, cache: Path) -> None:
    said: list[str] = []
    run = tilelab.infer(_IMAGE, checkpoint, tmp_path / "a.ome.zarr", note=said.append)
    (exported,) = cache.glob("*/best.onnx")
    assert any(line == f"{checkpoint} was exported to {exported}" for line in said)
    made = exported.stat().st_mtime_ns
    again = tilelab.infer(_IMAGE, exported, tmp_path / "b.ome.zarr")
    read = [tilelab.read_result(r.path).labels[0][...] for r in (run, again)]
    assert np.array_equal(*read)
    assert read_model(checkpoint).path == exported
    assert exported.stat().st_mtime_ns == made


def test_a_checkpoint_that_cannot_be_exported_says_why(tmp_path: Path, cache: Path) -> None:
    pytest.importorskip("torch", reason="training extra not installed")
    header = b'{"__metadata__":{"tilelab":"{}"}}'
    path = tmp_path / "broken.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ModelError, match=r"broken.safetensors cannot be exported: .*broken.safetensors"):
        read_model(path)
    assert not list(cache.glob("*"))


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("net.pth", r"net.load_state_dict\(torch.load\('net.pth'.*; torch.onnx.export"),
        ("net.pt", r"torch.onnx.export"),
        ("net.ckpt", r"load_from_checkpoint\('net.ckpt'\); torch.onnx.export"),
        ("net.keras", r"keras.models.load_model\('net.keras'.*; model.export\('net.onnx'"),
        ("net.h5", r"model.export"),
        ("net.pb", r"tf2onnx.convert --graphdef net.pb"),
        ("net.safetensors", r"no checkpoint of `tilelab train`.*load_file\('net.safetensors'\)\); torch.onnx.export"),
    ],
)
def test_files_of_frameworks_are_refused_with_the_lines_that_convert_them(tmp_path: Path, name: str, way: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"cposix\nsystem\n(S'touch pwned'\ntR.")  # a pickle that would be noticed
    with pytest.raises(ModelError, match=way) as caught:
        read_model(path)
    assert "\n" not in str(caught.value)


def test_a_saved_model_too(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ModelError, match=r"tf2onnx\.convert --saved-model net"):
        read_model(tmp_path / "net")
