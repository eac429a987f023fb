"""Describe once: the flags go into the file, and what is made of it needs none."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
import onnx

import tilelab
from tests.tiny_models import make_spec, save_conv, save_unet
from tilelab.cli.main import main
from tilelab.engines.registry import availability, read_model, read_spec

_FREE = ("h", "w")
_FLAGS = ["--classes", "background,membrane", "--mean", "128", "--std", "33", "--tile", "64", "--overlap", "16"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    rng = np.random.default_rng(0)
    smooth = rng.normal(size=(170, 190)).cumsum(0).cumsum(1)
    grey = (255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)
    Image.fromarray(grey).save(path)
    return path


def labels_of(path: Path) -> np.ndarray:
    return tilelab.read_result(path).labels[0][...]


@pytest.mark.parametrize("end", ["", "Softmax"])
def test_a_described_copy_gives_what_the_flags_give(
    tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str], end: str
) -> None:
    net = save_conv(tmp_path / "net.onnx", _FREE, end=end)
    assert main(["describe", str(net), *_FLAGS, "--name", "mine", "-o", str(tmp_path / "mine.onnx")]) == 0
    assert "background" in capsys.readouterr().out
    spec = read_spec(tmp_path / "mine.onnx")
    assert spec is not None
    assert (spec.name, [c.name for c in spec.classes]) == ("mine", ["background", "membrane"])
    assert spec.outputs[0].kind == ("probabilities" if end else "logits")
    flags = ["infer", str(image), "-q", "-m"]
    assert main([*flags, str(net), *_FLAGS, "-o", str(tmp_path / "a.ome.zarr")]) == 0
    assert main([*flags, str(tmp_path / "mine.onnx"), "-o", str(tmp_path / "b.ome.zarr")]) == 0
    assert np.array_equal(labels_of(tmp_path / "a.ome.zarr"), labels_of(tmp_path / "b.ome.zarr"))
    assert onnx.load(net).graph == onnx.load(tmp_path / "mine.onnx").graph


def test_all_that_is_missing_is_asked_for_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = save_conv(tmp_path / "net.onnx", _FREE)
    for command in (["describe"], ["export"]):
        assert main([*command, str(net), "-o", str(tmp_path / "mine.onnx")]) == 2
        error = capsys.readouterr().err
        assert "--mean" in error
        assert "--tile" in error
        assert error.count("\n") == 1
    assert not (tmp_path / "mine.onnx").exists()


def test_what_contradicts_the_network_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = save_conv(tmp_path / "net.onnx", _FREE)
    out = tmp_path / "mine.onnx"
    wrong = [*_FLAGS]
    wrong[1] = "a,b,c"
    assert main(["describe", str(net), *wrong, "-o", str(out)]) == 2
    assert "--classes" in capsys.readouterr().err
    assert main(["describe", str(net), *_FLAGS, "-o", str(net)]) == 2
    assert main(["describe", str(net), *_FLAGS, "-o", str(tmp_path / "mine.xml")]) == 2
    assert "tilelab export converts" in capsys.readouterr().err
    assert not out.exists()
    assert main(["describe", str(net), *_FLAGS, "-o", str(out)]) == 0
    assert main(["describe", str(net), *_FLAGS, "-o", str(out)]) == 2
    assert main(["describe", str(out), "--classes", "a,b", "-o", str(out), "--force"]) == 2  # it would eat itself
    assert main(["describe", str(net), *_FLAGS, "--classes", "a,b", "-o", str(out), "--force"]) == 0
    spec = read_spec(out)
    assert spec is not None
    assert spec.classes[1].name == "b"


def test_weights_in_another_file_are_put_into_the_copy(tmp_path: Path) -> None:
    net = save_unet(tmp_path / "net.onnx", _FREE, external=True)
    (tmp_path / "there").mkdir()
    assert main(["describe", str(net), *_FLAGS, "-o", str(tmp_path / "there" / "mine.onnx")]) == 0
    assert len(read_model(tmp_path / "there" / "mine.onnx").files) == 1


@pytest.mark.skipif(bool(availability("openvino").reason), reason="needs OpenVINO")
def test_a_strangers_network_becomes_int8_and_openvino(tmp_path: Path, image: Path) -> None:
    pytest.importorskip("nncf")
    net = save_unet(tmp_path / "net.onnx", _FREE)
    on = ["--calibrate", str(image), "--images", str(image)]
    assert main(["export", str(net), *_FLAGS, "-o", str(tmp_path / "net.xml")]) == 0
    assert main(["describe", str(net), *_FLAGS, "-o", str(tmp_path / "mine.onnx")]) == 0
    for source, name, flags in (("net.onnx", "a.onnx", _FLAGS), ("mine.onnx", "b.xml", [])):
        words = ["export", str(tmp_path / source), *flags, "--precision", "int8", *on, "-o", str(tmp_path / name)]
        assert main(words) == 0
        assert read_model(tmp_path / name).precision == "int8"
        assert main(["infer", str(image), "-q", "-m", str(tmp_path / name), "-o", str(tmp_path / f"{name}.zarr")]) == 0


@pytest.mark.skipif(bool(availability("openvino").reason), reason="needs OpenVINO")
def test_an_ir_is_described_too(tmp_path: Path, image: Path) -> None:
    net = save_unet(tmp_path / "net.onnx", _FREE, spec=make_spec((64, 64), stride=32))
    assert main(["export", str(net), "--images", str(image), "-o", str(tmp_path / "net.xml")]) == 0
    assert main(["describe", str(tmp_path / "net.xml"), "--classes", "a,b", "-o", str(tmp_path / "mine.xml")]) == 0
    assert main(["infer", str(image), "-q", "-m", str(tmp_path / "mine.xml"), "-o", str(tmp_path / "a.ome.zarr")]) == 0
    spec = read_spec(tmp_path / "mine.xml")
    assert spec is not None
    assert [c.name for c in spec.classes] == ["a", "b"]


def test_a_bundled_models_copy_is_described_as_the_file_that_is_copied(tmp_path: Path) -> None:
    """Where int8 runs, the name leads to another file."""
    assert main(["describe", "superalloy", "--name", "mine", "-o", str(tmp_path / "mine.onnx")]) == 0
    mine, own = read_spec(tmp_path / "mine.onnx"), read_spec("superalloy")
    assert mine is not None
    assert own is not None
    assert (mine.precisions, mine.training, mine.seams) == (own.precisions, own.training, own.seams)


def test_images_normalised_each_by_itself_are_remembered(tmp_path: Path) -> None:
    net = save_conv(tmp_path / "net.onnx", _FREE)
    (tmp_path / "like").mkdir()
    for i in range(2):
        grey = np.random.default_rng(i).integers(0, 256, (300, 280)).astype(np.uint8)
        Image.fromarray(grey).save(tmp_path / "like" / f"{i}.png")
    homes = []
    for per in ("stack", "slice"):
        out = tmp_path / f"{per}.onnx"
        said = ["--normalization", "mean-std", "--statistics", per, "--classes", "2", "--tile", "64"]
        assert main(["describe", str(net), *said, "--like", str(tmp_path / "like"), "-o", str(out)]) == 0
        spec = read_spec(out)
        assert spec is not None
        homes.append(spec.home)
    assert homes[0] == homes[1] is not None


@pytest.mark.parametrize(
    "flags", [["--clip=0,inf"], ["--model-pixel-size", "0"], ["--model-pixel-size", "nan"], ["--model-pixel-size=-4"]]
)
def test_what_no_file_can_hold_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    net = save_conv(tmp_path / "net.onnx", _FREE)
    assert main(["describe", str(net), *_FLAGS, *flags, "-o", str(tmp_path / "mine.onnx")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "mine.onnx").exists()


@pytest.mark.skipif(bool(availability("openvino").reason), reason="needs OpenVINO")
def test_a_disk_that_fills_leaves_nothing(tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = save_conv(tmp_path / "net.onnx", (64, 64), spec=make_spec((64, 64)))
    assert main(["export", str(net), "--images", str(image), "-o", str(tmp_path / "net.xml")]) == 0

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tilelab.exporting.describe.move_whole", full)
    (tmp_path / "there").mkdir()
    assert main(["describe", str(tmp_path / "net.xml"), "--name", "x", "-o", str(tmp_path / "there" / "m.xml")]) == 2
    assert not list((tmp_path / "there").iterdir())


def test_a_network_of_volumes_is_not_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = save_conv(tmp_path / "net.onnx", (16, 32, 32))
    said = ["--classes", "2", "--mean", "128", "--std", "33"]
    assert main(["export", str(net), *said, "-o", str(tmp_path / "a.xml")]) == 2
    assert "export is for 2-D networks" in capsys.readouterr().err
    assert main(["describe", str(net), *said, "-o", str(tmp_path / "a.onnx")]) == 0


def test_weights_that_a_disk_cuts_off_replace_none(tmp_path: Path, image: Path) -> None:
    """OpenVINO does not say that a file could not be written to its end."""
    pytest.importorskip("openvino")
    net, good = save_unet(tmp_path / "net.onnx", _FREE), tmp_path / "good.xml"
    assert main(["describe", str(net), *_FLAGS, "-o", str(tmp_path / "mine.onnx")]) == 0
    assert main(["export", str(tmp_path / "mine.onnx"), "--images", str(image), "-o", str(good)]) == 0
    before = {path: path.read_bytes() for path in (good, good.with_suffix(".bin"))}
    assert main(["describe", str(good), "--name", "other", "-o", str(tmp_path / "copy.xml")]) == 0
    most = len(before[good.with_suffix(".bin")]) // 2

    def cut_off() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    for place in (tmp_path / "new.xml", tmp_path / "copy.xml"):
        there = {path: path.read_bytes() for path in tmp_path.glob("copy.*")}
        words = [sys.executable, "-m", "tilelab", "describe", str(good), "--name", "third", "--force", "-o", str(place)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, preexec_fn=cut_off)
        assert done.returncode == 2
        assert "cannot be written" in done.stderr
        assert "free some space" in done.stderr
        assert {path: path.read_bytes() for path in tmp_path.glob("copy.*")} == there
        assert not list(tmp_path.glob("new.*"))
        assert not list(tmp_path.glob(".describe-*"))
    assert {path: path.read_bytes() for path in before} == before
