"""The GPU benchmark says plainly that there is no GPU, and runs at toy size on what a bare machine has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tilelab.engines.cuda.nvidia import driver_problem

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
sys.argv = ["gpu", "--toy", "--batch", "2"]
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


def test_it_runs_at_toy_size_on_what_a_bare_machine_has():
    pytest.importorskip("torch")
    pytest.importorskip("numba_cuda")
    result = run("-c", BARE, NUMBA_ENABLE_CUDASIM="1")
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
