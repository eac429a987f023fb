"""`tilelab info` tells what an image, a model or a result is, on the screen and as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from tiny_models import make_spec, save_conv, save_quantized

from tilelab import infer
from tilelab.cli import main
from tilelab.engines.bundled import bundled_models
from tilelab.spec import ModelSpec, Normalization
from tilelab.text import install_hint


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.tif"
    pixels = np.random.default_rng(0).integers(0, 256, (96, 160), np.uint8)
    # TIFF's unit is the centimetre: 2.5e6 px/cm are 4 nm
    tifffile.imwrite(path, pixels, tile=(32, 48), resolution=(2.5e6, 2.5e6), resolutionunit="CENTIMETER")
    return path


def told(capsys, *paths):
    """The documents, and the screen with its white space made single."""
    words = [str(path) for path in paths]
    assert main(["info", "--json", *words]) == 0
    documents = json.loads(capsys.readouterr().out)
    assert main(["info", *words]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return documents, " ".join(captured.out.split())


def test_an_image(image, capsys):
    (document,), screen = told(capsys, image)
    assert (document["kind"], document["shape"], document["dtype"]) == ("image", [96, 160], "uint8")
    for words in ("TIFF", "96 x 160 (y, x), 0.01536 MP, uint8", "pixel size 4 nm", "chunks 32 x 48"):
        assert words in screen


def test_a_series_of_a_folder_and_of_what_has_none(image, tmp_path, capsys):
    (folder := tmp_path / "slices").mkdir()
    for i in range(3):
        with tifffile.TiffWriter(folder / f"s{i}.tif") as file:
            file.write(np.zeros((96, 160), np.uint8))
            file.write(np.full((40, 50), i, np.uint16))
    (document,), _ = told(capsys, folder, "--series", "1")
    assert (document["shape"], document["dtype"]) == ([3, 40, 50], "uint16")
    assert main(["info", str(folder), "--series", "7"]) == 2
    assert "--series 7 was asked for" in capsys.readouterr().err
    assert main(["info", "superalloy", str(image), "--series", "0"]) == 2
    said = capsys.readouterr()
    assert "--series 0 was asked for, superalloy is no image: leave it out" in said.err
    assert "96 x 160" in said.out


def test_a_model(tmp_path, capsys):
    spec = make_spec(
        (64, 32),
        classes=3,
        stride=8,
        tile_fixed=False,
        tile_min=(16, 16),
        receptive_field=21,
        pixel_size_nm=(4.0, 8.0),
        precisions=("fp32", "bf16"),
        training={"data": "drawn", "scores": {"iou": 0.91234567, "f1": [0.5, 1]}},
    )
    path = save_conv(tmp_path / "model.onnx", ("y", "x"), classes=3, spec=spec)
    (document,), screen = told(capsys, path)
    assert document["kind"] == "model"
    assert ModelSpec.from_json(json.dumps(document["description"])) == spec
    assert document["file"]["precision"] == "fp32"
    assert document["file"]["bytes"] == path.stat().st_size
    for words in (
        "onnx, opset 18, fp32",
        "tiles float32 (batch, 1, y, x)",
        "0 class 0 (#008040) 1 class 1 (#018040) 2 class 2 (#028040)",
        "uint8 (v - 128) / 64",
        "pixel size y 4 nm, x 8 nm",
        "tile 64 x 32 (y, x), or any multiple of 8 from 16 x 16",
        "sees 21 px around each pixel",
        "precisions fp32, bf16",
        "data drawn",
        "scores f1 0.5, 1, iou 0.912346",
    ):
        assert words in screen


@pytest.mark.parametrize("kind", ["mean-std", "percentile"])
def test_statistics_of_the_image(tmp_path, capsys, kind):
    spec = make_spec(normalization=Normalization(kind=kind, low=2, high=98))
    _, screen = told(capsys, save_conv(tmp_path / "model.onnx", spec=spec))
    expected = {"mean-std": "mean and standard deviation of the whole image", "percentile": "percentiles 2 and 98"}
    assert expected[kind] in screen
    assert "tile 32 x 32 (fixed)" in screen
    assert "sees the whole tile" in screen


def test_a_model_that_does_not_describe_itself(tmp_path, capsys):
    (document,), screen = told(capsys, save_quantized(tmp_path / "bare.onnx"))
    assert document["description"] is None
    assert "int8" in screen
    assert "describes itself no: infer needs --classes, --mean and --std" in screen


def test_bundled_models_by_name(capsys):
    names = [*bundled_models(), "identity", "identity:4"]
    documents, screen = told(capsys, *names)
    assert [document["description"]["name"] for document in documents] == names
    assert "band 3" in screen


def test_a_result(image, tmp_path, capsys):
    model = save_conv(tmp_path / "model.onnx", spec=make_spec(name="tiny", pixel_size_nm=(4.0, 4.0)))
    out = tmp_path / "result.ome.zarr"
    infer(image, model, out)
    (document,), screen = told(capsys, out)
    assert (document["kind"], document["levels"][0]) == ("result", [96, 160])
    assert document["bytes"] == sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    for words in (
        "96 x 160 (y, x), 0.01536 MP",
        "pixel size 4 nm",
        "labels, probability of class 1",
        "0 class 0 (#008040) 1 class 1 (#018040)",
        "model tiny",
        "engine openvino fp32",
        "tile 32 x 32",
    ):
        assert words in screen


def test_another_zarr_is_an_image(tmp_path, capsys):
    array = zarr.create_array(tmp_path / "a.zarr", shape=(40, 50), chunks=(20, 25), dtype="uint16")
    array[:] = 1
    (document,), screen = told(capsys, tmp_path / "a.zarr")
    assert document["kind"] == "image"
    assert "40 x 50 (y, x), 0.002 MP, uint16" in screen


def test_what_cannot_be_read_is_an_error_beside_what_can(image, tmp_path, capsys):
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    assert main(["info", str(tmp_path / "missing.tif"), str(image), str(tmp_path / "broken.onnx")]) == 2
    captured = capsys.readouterr()
    assert "96 x 160" in captured.out
    errors = captured.err.splitlines()
    assert len(errors) == 2
    assert "broken.onnx is not an ONNX model" in errors[0]
    assert "missing.tif" in errors[1]
    assert main(["info", "--json", str(tmp_path / "missing.tif"), str(image)]) == 2
    missing, good = json.loads(capsys.readouterr().out)
    assert missing["kind"] == "error"
    assert good["kind"] == "image"


def test_describing_a_model_loads_no_engine(tmp_path):
    path = save_conv(tmp_path / "model.onnx", spec=make_spec())
    code = (
        f"import sys; from tilelab.cli import main; main(['info', {str(path)!r}]);"
        "print(sorted({'openvino', 'onnxruntime', 'onnx', 'torch', 'numba', 'zarr'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "[]"


# --- networks in torch


@pytest.fixture
def checkpoint(tmp_path):
    """As `tilelab train` writes it, of a small U-Net."""
    pytest.importorskip("torch", reason="training extra not installed")
    from tilelab.models.build import initialise
    from tilelab.training.checkpoint import Checkpoint, Header, save_checkpoint
    from tilelab.training.recipe import load_recipe
    from tilelab.training.segmentation import describe

    words = ["network.options.widths=[4, 6, 8]", "inference.tile=64", "inference.overlap=16", "run.steps=500"]
    recipe = load_recipe("superalloy", words)
    network = initialise(0, "unet", 1, 3, widths=[4, 6, 8])
    spec = describe(recipe, network, recipe.normalization)
    header = Header(recipe=recipe, spec=spec, step=120, scores={"mean_iou": 0.71234, "iou": {"matrix": 0.9}})
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, Checkpoint(header, {f"model.{name}": value for name, value in network.state_dict().items()}))
    return path


def test_a_checkpoint(checkpoint, capsys):
    (document,), screen = told(capsys, checkpoint)
    assert document["kind"] == "checkpoint"
    assert document["network"]["parameters"] == document["description"]["training"]["parameters"]
    assert document["network"]["stride"] == 4
    assert document["network"]["receptive_field"] == document["description"]["receptive_field"]
    for words in (
        "checkpoint, ",
        "120 of 500 steps, recipe superalloy, seed 1",
        "1 cross-entropy + 1 dice; adamw 0.002, cosine",
        "mean iou 0.7123",
        "stride 4",
        "px around each pixel",
        "kMAC per pixel",
        "tile 64 x 64",
        "data NASA",
    ):
        assert words in screen


def test_an_architecture_by_name(capsys):
    pytest.importorskip("torch", reason="training extra not installed")
    (document,), screen = told(capsys, "pmcanet:resnet18")
    assert document["kind"] == "architecture"
    assert document["network"]["receptive_field"] is None
    assert "sees the whole tile: output depends on all of it" in screen
    assert "stride 8" in screen
    assert main(["info", "unet:resnet19"]) == 2
    assert "unknown encoder 'resnet19'" in capsys.readouterr().err


def test_a_pyramid_of_poolings_is_measured_and_every_unknown_name_gets_the_nearest(capsys, monkeypatch):
    pytest.importorskip("torch", reason="training extra not installed")
    import socket

    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("asked the network"))
    monkeypatch.setattr("tilelab.models.measure._LARGEST_WIDTH", 256)  # it sees the whole of any width
    (document,), screen = told(capsys, "pan:tu-mobilenetv3_small_050")
    assert document["network"]["stride"] == 16
    assert "sees the whole tile" in screen
    for name, said in (
        ("unet:resnt18", "unknown encoder 'resnt18': the nearest are resnet18,"),
        ("unet:tu-resnet81", "unknown encoder 'tu-resnet81': the nearest are tu-resnet18,"),
        ("unet:tu-hf_hub:timm/resnet18.a1_in1k", "unknown encoder 'tu-hf_hub:timm/resnet18.a1_in1k'"),
        ("unett:resnet18", "unknown architecture 'unett:resnet18': the nearest are unet:resnet18,"),
        ("pan", "pan needs an encoder, e.g. pan:resnet18"),
        ("pan:vgg11", "pan:vgg11 cannot be built: 'VGG' models do not support dilated mode"),
        ("unet:tu-vit_tiny_patch16_224", "unet:tu-vit_tiny_patch16_224 cannot be built: "),
    ):
        assert main(["info", name]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line


def test_networks_need_torch_and_say_so(checkpoint, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in (str(checkpoint), "pmcanet:resnet50"):
        assert main(["info", name]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"is a network in torch, which is not installed: {install_hint('train')}" in line


def test_a_file_that_is_not_a_checkpoint(tmp_path, capsys):
    pytest.importorskip("torch", reason="training extra not installed")
    path = tmp_path / "c.safetensors"
    path.write_bytes(b"nothing")
    assert main(["info", str(path)]) == 2
    assert "is not a safetensors checkpoint" in capsys.readouterr().err


def test_sizes_are_width_by_height_or_name_their_axes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A terminal said 96 x 160 of what the page called 160 x 96 px."""
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 256, (96, 160), np.uint8))
    model = save_conv(tmp_path / "m.onnx", ("y", "x"), spec=make_spec((32, 64), overlap=(8, 8)))
    out, page = str(tmp_path / "a.ome.zarr"), tmp_path / "a.html"
    run = ["infer", str(tmp_path / "a.npy"), "-m", str(model), "-o", out, "--page", str(page), "--tile", "32,64"]
    assert main(run) == 0
    said = capsys.readouterr().err
    assert "96 x 160 (y, x) uint8, 0.0 MP" in said
    assert "tile 32 x 64 (y, x), overlap 8, hann window" in said
    assert "160 &times; 96 px" in page.read_text()
    assert "32 x 64 (y, x), overlap 8 x 8, hann window" in page.read_text()
    assert main(["info", out]) == 0
    assert "tile 32 x 64 (y, x), overlap 8 x 8" in " ".join(capsys.readouterr().out.split())
