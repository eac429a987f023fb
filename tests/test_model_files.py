"""Models that come as something else than an engine file: what runs, and how what does not becomes a file that does."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilelab
from tests.tiny_models import make_spec, save_conv
from tilelab.engines.packages.kept import kept
from tilelab.engines.registry import read_model, read_spec
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


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "served").mkdir()
    handler = functools.partial(_Quiet, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def test_a_pinned_address_is_fetched_once(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = save_conv(tmp_path / "served" / "net.onnx", spec=make_spec())
    digest = hashlib.sha256(net.read_bytes()).hexdigest()
    said: list[str] = []
    address = f"{server}/net.onnx#sha256={digest}"
    run = tilelab.infer(_IMAGE, address, tmp_path / "a.ome.zarr", note=said.append)
    assert any("was fetched to" in line for line in said)
    direct = tilelab.infer(_IMAGE, net, tmp_path / "b.ome.zarr")
    assert np.array_equal(*(tilelab.read_result(r.path).labels[0][...] for r in (run, direct)))
    monkeypatch.setenv("HF_ENDPOINT", server)
    hub = tmp_path / "served" / "owner" / "net" / "resolve" / "v1"
    hub.mkdir(parents=True)
    net.rename(hub / "mine.onnx")
    assert read_model(address).notes[0].endswith("as before")  # though it is gone
    (tmp_path / "cache").rename(tmp_path / "old")
    assert read_model(f"hf://owner/net@v1/mine.onnx#sha256={digest}").path.name == "mine.onnx"


def test_what_is_not_pinned_or_not_there_is_refused(server: str, tmp_path: Path, cache: Path) -> None:
    save_conv(tmp_path / "served" / "net.onnx")
    pin = "#sha256=" + "0" * 64
    for address, match in (
        (f"{server}/net.onnx", "not encrypted: say what it must be"),
        (f"{server}/net.onnx{pin}", "is not what was pinned: its sha256 is"),
        (f"{server}/gone.onnx{pin}", "404"),
        (f"{server}/net.onnx#sha256=12", "64 hexadecimal digits"),
        ("hf://owner/net.onnx", "is not hf://OWNER"),
        ("https://127.0.0.1:1/net.pt2", "machine code"),
        ("https://127.0.0.1:1/net.onnx", "cannot be fetched"),
    ):
        with pytest.raises(ModelError, match=match):
            read_model(address)
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.parametrize("single", [False, True])
def test_a_czann_runs_as_it_says(tmp_path: Path, single: bool) -> None:
    net = save_conv(tmp_path / "net.onnx", (64, 64), classes=1 if single else 3, end="Sigmoid" if single else "Softmax")
    told = {
        "FormatVersion": "2.1.0",
        "Id": "4b3b5b6e-0000-4000-8000-000000000000",
        "Type": f"{'Single' if single else 'Multi'}ClassSemanticSegmentation",
        "InputShape": [64, 64, 1],
        "OutputShape": [64, 64, 1 if single else 3],
        "MinOverlap": [16, 16],
        "Classes": ["cell"] if single else ["resin", "cell", "nucleus"],
        "ModelName": "drawn",
        "Scaling": [4e-9, 5e-9],
    }
    packed = tmp_path / "drawn.czann"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("model.json", json.dumps(told))
        archive.write(net, "model.model")
    spec = read_spec(packed)
    assert spec is not None
    assert [c.name for c in spec.classes] == (["background", "cell"] if single else told["Classes"])
    assert (spec.name, spec.tile, spec.overlap) == ("drawn", (64, 64), (16, 16))
    assert spec.pixel_size_nm == pytest.approx((5, 4))
    run = tilelab.infer(_IMAGE, packed, tmp_path / "a.ome.zarr")
    direct = tilelab.infer(_IMAGE, net, tmp_path / "b.ome.zarr", mean=0, std=255, overlap=16)
    assert np.array_equal(*(tilelab.read_result(r.path).labels[0][...] for r in (run, direct)))
    told["Type"] = "ObjectDetection"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("model.json", json.dumps(told))
        archive.write(net, "model.model")
    with pytest.raises(ModelError, match="for ObjectDetection"):
        read_model(packed)
    packed.write_bytes(b"PK")
    with pytest.raises(ModelError, match=r"not a \.czann that can be read"):
        read_model(packed)


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_pinned_archive_is_unpacked_beside_itself(server: str, tmp_path: Path, cache: Path) -> None:
    net = save_conv(tmp_path / "net.onnx", (64, 64), classes=3, end="Softmax")
    told = {"Type": "MultiClassSemanticSegmentation", "InputShape": [64, 64, 1], "OutputShape": [64, 64, 3]}
    packed = tmp_path / "served" / "drawn.czann"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("model.json", json.dumps(told))
        archive.write(net, "model.model")
    address = f"{server}/drawn.czann#sha256={_sha(packed)}"
    for _ in range(2):
        assert read_model(address).path.read_bytes() == net.read_bytes()
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    ("stored", "asked", "name"),
    [
        ("my net.onnx", "my net.onnx", "my net.onnx"),
        ("größe.onnx", "größe.onnx", "größe.onnx"),
        ("my net.onnx", "my%20net.onnx", "my net.onnx"),
        ("nets/net.onnx", "nets%2Fnet.onnx", "net.onnx"),
        ("net.onnx", "a/..%2F..%2F..%2Fnet.onnx", "net.onnx"),
    ],
)
def test_any_name_is_fetched_and_lands_in_the_cache(
    server: str, tmp_path: Path, cache: Path, stored: str, asked: str, name: str
) -> None:
    (tmp_path / "served" / "nets").mkdir()
    net = save_conv(tmp_path / "served" / stored, spec=make_spec())
    path = read_model(f"{server}/{asked}#sha256={_sha(net)}").path
    assert path.name == name
    assert path.parent.parent == cache
    assert [p for p in tmp_path.rglob("*.onnx") if p not in (net, path)] == []


@pytest.mark.parametrize("ending", ["", "..", "%2E%2E", "nets%2F"])
def test_an_address_without_a_file_is_refused(ending: str) -> None:
    with pytest.raises(ModelError, match="names no file"):
        read_model(f"https://127.0.0.1:1/{ending}")


def test_machine_code_is_told_by_any_spelling() -> None:
    with pytest.raises(ModelError, match="machine code"):
        read_model("https://127.0.0.1:1/net.PT2")


class _Short(_Quiet):
    """Sends half of what it promises."""

    def copyfile(self, source: Any, outputfile: Any) -> None:
        data = source.read()
        outputfile.write(data[: len(data) // 2])


def test_what_breaks_off_is_not_kept(tmp_path: Path, cache: Path) -> None:
    net = save_conv(tmp_path / "net.onnx", spec=make_spec())
    handler = functools.partial(_Short, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{running.server_address[1]}/net.onnx#sha256={_sha(net)}"
        with pytest.raises(ModelError, match=r"broke off after \d+ of \d+ bytes"):
            read_model(address)
        running.shutdown()
    assert not list(cache.iterdir())


def test_of_two_who_keep_at_once_the_first_ones_stays(cache: Path) -> None:
    def late(made: Path) -> None:
        (made / "late").touch()
        assert kept("0" * 64, lambda other: (other / "first").touch())[1]

    folder, _ = kept("0" * 64, late)
    assert [path.name for path in folder.iterdir()] == ["first"]
    assert [path.name for path in cache.iterdir()] == [folder.name]


def test_damaged_archives_are_refused_in_a_line(tmp_path: Path) -> None:
    net = save_conv(tmp_path / "net.onnx", (64, 64))
    for name, document in (("a.zip", "rdf.yaml"), ("a.czann", "model.json")):
        packed = tmp_path / name
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr(document, "{}")
            archive.write(net, "net.model")
        data = bytearray(packed.read_bytes())
        data[data.find(b"tiny_models")] ^= 255
        packed.write_bytes(data)
        pytest.importorskip("yaml")
        with pytest.raises(ModelError, match="that can be read"):
            read_model(packed)
