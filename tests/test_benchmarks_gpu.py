"""The GPU benchmark says plainly that there is no GPU, and runs at toy size on what a bare machine has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.__main__ import STEPS, Findings, main
from benchmarks.gpu.bare import LIMIT, Bare, Step, steps, together
from benchmarks.gpu.carry import packages, slim
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


def test_on_a_bare_machine_what_fails_and_what_hangs_are_told_and_the_others_go_on(tmp_path, capsys):
    run = Bare(tmp_path, limit=2 * LIMIT, environment=dict(os.environ))
    found = tmp_path / "good.json"
    write = f'open({str(found)!r}, \'w\').write(\'{{"gpu": "a GPU", "findings": [{{"what": "x"}}]}}\')'
    run.run(Step("good", 30, [sys.executable, "-c", write]))
    run.run(Step("bad", 30, [sys.executable, "-c", "print('why'); raise SystemExit(3)"]))
    run.run(Step("absent", 30, ["/nowhere/compute-sanitizer"]))
    run.run(Step("hangs", 6, [sys.executable, "-c", "import time; time.sleep(300)"]))
    kept = json.loads((tmp_path / "results.json").read_text())
    assert [(step["step"], step["ended"]) for step in kept["steps"][:2]] == [("good", 0), ("bad", 3)]
    assert "No such file" in kept["steps"][2]["ended"]
    assert kept["steps"][3]["ended"] == "took too long"
    assert kept["gpu"] == "a GPU"
    assert kept["findings"] == [{"what": "x"}]
    assert "why" in capsys.readouterr().out
    assert "why" in (tmp_path / "log.txt").read_text()
    late = Bare(tmp_path, limit=1, environment={})
    late.run(Step("late", 30, [sys.executable, "-c", ""]))
    assert late.ended[0]["ended"] == "no time left"


def test_steps_of_a_bare_machine_exist(tmp_path):
    every = steps(tmp_path, tmp_path, toy=False)
    for step in every:
        for word in step.command:
            assert not word.startswith("tests/") or (ROOT / word).is_file(), word
        if "benchmarks.gpu" in step.command:
            asked = step.command[step.command.index("benchmarks.gpu") + 1 :]
            assert set(asked[: next(i for i, w in enumerate(asked) if w.startswith("--"))]) <= set(STEPS)
    alone = [s.seconds for s in every if not s.beside]
    assert sum(alone) + max(s.seconds for s in every if s.beside) < 2 * LIMIT, "none takes all it may"
    assert [len(group) for group in together(every)] == [1, 4, *[1] * (len(every) - 5)]


def test_what_is_carried_is_what_such_a_machine_lacks():
    assert {"zarr", "msgspec", "imagecodecs", "google-crc32c", "donfig"} <= set(packages())
    assert not {"numpy", "numba", "tifffile"} & set(packages())


def test_a_slim_wheel_has_the_codecs_that_are_used(tmp_path):
    """Built from the one that is installed here; what it leaves out is not missed by results and images."""
    import zipfile

    import imagecodecs

    folder = Path(imagecodecs.__file__).parent
    whole, small = tmp_path / "imagecodecs-1.whl", tmp_path / "imagecodecs-2.whl"
    with zipfile.ZipFile(whole, "w") as wheel:
        for part in (folder, *folder.parent.glob("imagecodecs*.libs"), *folder.parent.glob("imagecodecs-*.dist-info")):
            for path in part.rglob("*"):
                if path.is_file() and "__pycache__" not in path.parts:
                    wheel.write(path, path.relative_to(folder.parent).as_posix())
    slim(whole, small)
    assert small.stat().st_size < 6e6
    with zipfile.ZipFile(small) as wheel:
        wheel.extractall(tmp_path / "site")
    code = """
import imagecodecs, numpy as np
assert imagecodecs.__file__.startswith(PLACE), imagecodecs.__file__
data = bytes(range(256)) * 9
for name in ("zstd", "zlib", "gzip", "blosc"):
    decode, encode = (getattr(imagecodecs, f"{name}_{way}") for way in ("decode", "encode"))
    assert bytes(decode(encode(data))) == data, name
image = np.arange(64, dtype=np.uint8).reshape(8, 8)
assert (imagecodecs.png_decode(imagecodecs.png_encode(image)) == image).all()
import tilelab.run.infer, tilelab.io.images.open, tilelab.io.results.ome_zarr
"""
    place = str(tmp_path / "site")
    result = run("-c", f"PLACE = {place!r}\n{code}", PYTHONPATH=os.pathsep.join((place, str(ROOT))))
    assert result.returncode == 0, result.stderr


def test_unknown_steps_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["kernel"])
    assert "there is no step kernel: choose among launches, bus, kernels, networks, make" in capsys.readouterr().err


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
