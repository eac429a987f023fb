"""The GPU benchmark says plainly that there is no GPU, and runs at toy size on what a bare machine has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.__main__ import Findings, main
from benchmarks.gpu.cost import cost_table
from benchmarks.gpu.cost import main as cost
from tilelab.machine.nvidia import driver_problem

ROOT = Path(__file__).parents[1]
# A bare GPU machine has torch, torchvision, numba-cuda, numpy and tifffile; nothing of these.
BARE = """
import importlib.abc, runpy, sys
missing = {"msgspec", "zarr", "numcodecs", "imagecodecs", "rich", "PIL", "onnxruntime", "openvino", "dask"}
class Bare(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Bare())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in missing else real(name, package)
sys.argv = ["gpu", "--toy", "--batch", "2", *sys.argv[1:]]
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_without_a_gpu_it_says_so_in_one_line():
    pytest.importorskip("torch")
    pytest.importorskip("numba_cuda")
    if not driver_problem():
        pytest.skip("there is a GPU")
    result = run("-m", "benchmarks.gpu")
    assert result.returncode == 2, result.stderr
    assert result.stdout.startswith("benchmarks.gpu: nothing was measured: no NVIDIA GPU is usable here (")
    assert result.stdout.count("\n") == 1
    assert not result.stderr


def test_it_runs_at_toy_size_on_what_a_bare_machine_has(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("numba_cuda")
    kept = tmp_path / "gpu.json"
    result = run("-c", BARE, "--json", str(kept), NUMBA_ENABLE_CUDASIM="1")
    assert result.returncode == 0, result.stdout + result.stderr
    table = result.stdout
    for row in ("kernels and NumPy", "small fp32 torch: sweeps agree"):
        (line,) = (line for line in table.splitlines() if line.startswith(row))
        assert line.removeprefix(row).split() == ["equal", "equal"]
    assert "the same bytes twice" in table
    assert "left out" not in table
    for words in (
        "copy on the device",
        "cut, K = 2",
        "blend, K = 19",
        "finish, K = 2",
        "bare engine",
        "1.0 up",
        "one plane",
    ):
        assert words in table, table
    measured = json.loads(kept.read_text())
    rows = [f"{f['what']:<46}  {f['value']:<60}  {f['goal']}".rstrip() for f in measured["findings"]]
    assert rows == table.splitlines()
    assert not cost_table(measured, 2.0), "one plane at toy size is no speed of a terabyte"


def test_a_step_that_fails_is_told_and_the_others_go_on(tmp_path, capsys):
    pytest.importorskip("numba_cuda")
    from benchmarks.gpu.basics import Finding

    def broken():
        yield Finding("half", "1 GB/s")
        raise RuntimeError("the driver\nsays no")

    findings = Findings(tmp_path / "gpu.json", "a GPU")
    findings.step("first", broken)
    findings.step("second", lambda: [Finding("whole", "2 GB/s", "3", 4.0)])
    assert findings.failed == 1
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert said == ["half 1 GB/s", "first left out: RuntimeError: the driver says no", "whole 2 GB/s 3"]
    assert json.loads((tmp_path / "gpu.json").read_text())["findings"][-1]["figure"] == 4.0


def test_unknown_steps_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["kernel"])
    assert "there is no step kernel: choose among launches, bus, kernels, networks, product" in capsys.readouterr().err


def test_cost_needs_measured_figures(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    findings = [
        {"what": "copy on the device", "value": "2600 GB/s", "goal": "", "figure": None},
        {"what": "n fp16 torch: one plane", "value": "", "goal": "", "figure": 500.0},
    ]
    path.write_text(json.dumps({"gpu": "a GPU", "findings": findings}))
    assert cost([str(path), "--price", "2"]) == 2
    assert not capsys.readouterr().out
    findings.append({"what": "n fp16 torch: sustained", "value": "", "goal": "", "figure": 1e6 / 3600})
    path.write_text(json.dumps({"gpu": "a GPU", "findings": findings}))
    assert cost([str(path), "--price", "2.5", "--currency", "EUR"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Measured on a GPU, at 2.5 EUR for an hour of it.\n")
    assert out.splitlines()[-1] == "| n fp16 torch: sustained | 278 | 1.00 | 2.50 EUR |"
