"""`tilelab doctor` tells what works, checks it by computing, and names what is wrong."""

from __future__ import annotations

import io
import json
import sys
from importlib import metadata

import numpy as np
import pytest
from rich.console import Console

from tilelab.cli import doctor, main
from tilelab.engines import registry, selftest
from tilelab.engines.cpu import onnxruntime as ort
from tilelab.engines.cpu import openvino as ov
from tilelab.engines.loading import Availability, FileEngine
from tilelab.text import install_hint


@pytest.fixture(scope="module")
def found():
    return doctor.examine()


def test_json_lists_every_engine_and_precision(capsys):
    assert main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = {(row["engine"], row["precision"]): row for row in document["engines"]}
    assert set(rows) >= {(e, p) for e in ("openvino", "onnxruntime") for p in ("fp32", "bf16", "fp16", "int8")}
    for row in rows.values():
        assert row["works"] == (not row["reason"])
        assert row["checked"] <= row["works"]
        assert "\n" not in row["reason"]
    for engine in ("openvino", "onnxruntime"):
        assert rows[engine, "fp32"]["checked"]
        assert rows[engine, "int8"]["checked"]
    assert "no bf16 arithmetic" in rows["onnxruntime", "bf16"]["reason"]
    assert document["libraries"]["numpy"] == np.__version__
    assert document["cpu"]["cores"] >= 1
    assert document["memory_available"] > 0


def test_rows_begin_with_what_auto_would_choose(found):
    works = [row["works"] for row in found["engines"]]
    assert works == sorted(works, reverse=True)
    chosen = [(row["engine"], row["device"], row["precision"]) for row in found["engines"] if row["works"]]
    ranked = [entry for entry in registry.RANKING if entry in chosen]
    assert chosen[: len(ranked)] == ranked


@pytest.mark.parametrize("width", [80, 100])
def test_the_screen_fits_its_terminal(found, width):
    out = io.StringIO()
    doctor.show(found | {"warnings": ["two things " * 20]}, Console(file=out, width=width, force_terminal=True))
    plain = io.StringIO()
    doctor.show(found, Console(file=plain, width=width))
    lines = plain.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    text = " ".join(plain.getvalue().split())
    for word in ("openvino", "onnxruntime", "bf16", "yes", "GPU", "numpy", "Not here: "):
        assert word in text
    assert "warning: two things" in out.getvalue()


def test_wrong_numbers_are_noticed(monkeypatch):
    honest = FileEngine.run

    def lying(self, tiles, out):
        honest(self, tiles, out)
        out[0, 1, 3, 4] += 0.25

    assert selftest.selftest("onnxruntime", "cpu", "fp32") == ""
    monkeypatch.setattr(FileEngine, "run", lying)
    told = selftest.selftest("onnxruntime", "cpu", "fp32")
    assert told == "gives wrong numbers: 1 of 512 values of a test convolution"


@pytest.mark.skipif(not ov._saturates(), reason="this CPU has instructions for sums of products of bytes")
def test_sums_of_products_that_are_cut_off_at_16_bits_are_noticed(monkeypatch):
    """Those of small numbers are right all the same."""
    assert selftest.selftest("onnxruntime", "cpu", "int8") == ""
    assert selftest.selftest("openvino", "cpu", "int8") == ""
    options = ort.import_onnxruntime().SessionOptions
    monkeypatch.setattr(options, "add_session_config_entry", lambda *_: None)
    assert "gives wrong numbers" in selftest.selftest("onnxruntime", "cpu", "int8")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--engine", "a.engine", "--json"), "--json is what the machine can do, --engine checks one file"),
        (("--onnx", "a.onnx"), "--onnx is what the file of --engine was built from"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(words, said, capsys):
    assert main(["doctor", *words]) == 2
    assert said in capsys.readouterr().err


def test_without_engines_it_says_how_to_get_one(monkeypatch, capsys):
    missing = Availability("", "it cannot be imported: pip install tilelab[cpu]")
    for module in (ov, ort):
        monkeypatch.setattr(module, "probe", lambda: missing)
    monkeypatch.setattr(registry, "ENGINES", {name: registry.ENGINES[name] for name in ("openvino", "onnxruntime")})
    assert main(["doctor"]) == 2
    captured = capsys.readouterr()
    assert "it cannot be imported" in " ".join(captured.out.split())
    assert captured.err == f"tilelab: error: no engine works here: {install_hint('cpu')}\n"


def test_a_library_that_does_not_load_is_a_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    ort.probe.cache_clear()
    try:
        found = ort.probe()
    finally:
        ort.probe.cache_clear()
    assert found.version == ""
    assert "onnxruntime cannot be imported" in found.reason
    assert install_hint("cpu") in found.reason


def test_packages_that_cannot_live_together(monkeypatch, tmp_path):
    installed = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1", "tensorrt": "11.0.1"}

    def version(name):
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(doctor, "_tensorrt_of_onnxruntime", lambda: "10")
    both, mismatch = doctor.find_conflicts()
    assert "onnxruntime and onnxruntime-gpu are both installed" in both
    assert "was built for TensorRT 10, but tensorrt 11.0.1 is installed" in mismatch
    del installed["onnxruntime"]
    installed["tensorrt"] = "10.3"
    assert doctor.find_conflicts() == []


def test_the_tensorrt_that_onnxruntime_links_to(monkeypatch, tmp_path):
    (tmp_path / "capi").mkdir()
    (tmp_path / "__init__.py").touch()

    class Spec:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr(doctor, "find_spec", lambda name: Spec)
    assert doctor._tensorrt_of_onnxruntime() == ""
    provider = tmp_path / "capi" / "libonnxruntime_providers_tensorrt.so"
    provider.write_bytes(b"\0libnvonnxparser.so.10\0libnvinfer.so.10\0")
    assert doctor._tensorrt_of_onnxruntime() == "10"


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
def test_gpus_are_listed_as_their_driver_tells(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559 MiB, 580.1, 9.0'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.find_gpus() == ["NVIDIA H100 80GB HBM3, 81559 MiB, driver 580.1, compute capability 9.0"]
    tool.write_text("#!/bin/sh\necho 'No devices were found'\n")
    assert doctor.find_gpus() == ["nvidia-smi: No devices were found"]
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert doctor.find_gpus() == ["nvidia-smi is there but fails: is the driver loaded?"]
    tool.unlink()
    assert doctor.find_gpus() == []


def test_other_makers_gpus_are_said_not_to_be_supported(monkeypatch, found):
    out = io.StringIO()
    doctor.show(found | {"gpu": found["gpu"] | {"devices": []}}, Console(file=out, width=200))
    assert "no NVIDIA GPU: those of Apple and AMD are not supported, neither to infer nor to train" in out.getvalue()
