"""The GPU benchmark says plainly that there is no GPU, and runs at toy size on what a bare machine has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from driver_standin import compilers, environment

from benchmarks.gpu import bare
from benchmarks.gpu.__main__ import STEPS, Findings, main
from benchmarks.gpu.bare import LIMIT, Bare, Step, steps, together
from benchmarks.gpu.carry import packages, slim
from benchmarks.gpu.cost import cost_table
from benchmarks.gpu.cost import main as cost
from tilelab.engines.builders.aotinductor import find_compiler
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
import tilelab.kernels.compiler  # which brings the simulator
import tests.simulated
import numba.cuda.simulator.kernel
numba.cuda.simulator.kernel.BlockManager = tests.simulated.Block
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
    kept = json.loads((tmp_path / "gpu.json").read_text())
    assert [failure["what"] for failure in kept["failures"]] == ["first"]
    assert kept["failures"][0]["trace"].endswith("RuntimeError: the driver\nsays no\n")
    assert "in broken" in kept["failures"][0]["trace"]
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]
    assert findings.failed == 1
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert said == ["half 1 GB/s", "first left out: RuntimeError: the driver says no", "whole 2 GB/s 3"]
    assert json.loads((tmp_path / "gpu.json").read_text())["findings"][-1]["figure"] == 4.0


def test_on_a_bare_machine_what_fails_and_what_hangs_are_told_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bare, "LEAST", 2)
    run = Bare(tmp_path, limit=2 * LIMIT, environment=dict(os.environ))
    found = run.found / "good.json"
    write = f'open({str(found)!r}, \'w\').write(\'{{"gpu": "a GPU", "findings": [{{"what": "x"}}]}}\')'
    run.run(Step("good", 30, [sys.executable, "-c", write]))
    run.run(Step("bad", 30, [sys.executable, "-c", "print('why'); raise SystemExit(3)"]))
    run.run(Step("absent", 30, ["/nowhere/compute-sanitizer"]))
    run.run(Step("hangs", 1, [sys.executable, "-c", "import time; time.sleep(300)"]))
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


def test_on_a_bare_machine_a_step_killed_while_it_writes_spoils_no_other(tmp_path):
    """What it had written is half a document; the others' figures are kept, and three files are left."""
    run = Bare(tmp_path, limit=2 * LIMIT, environment=dict(os.environ))

    def writes(name, text):
        path = run.found / f"{name}.json"
        return Step(name, 30, [sys.executable, "-c", f"open({str(path)!r}, 'w').write({text!r}); print('said')"])

    finding = {"what": "a speed", "value": "", "goal": "", "figure": 1.0}
    run.run(writes("killed", '{"gpu": "a G'))
    run.run(writes("well", json.dumps({"gpu": "a GPU", "findings": [finding]})))
    run.run(writes("broken", json.dumps({"gpu": "a GPU", "findings": [], "failures": [{"what": "x", "trace": "T"}]})))
    assert [(step["step"], step["ended"]) for step in run.ended] == [("killed", 0), ("well", 0), ("broken", 0)]
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["gpu"] == "a GPU"
    assert kept["findings"] == [finding]
    assert kept["failures"] == [{"what": "x", "trace": "T"}]
    assert run.keep() == kept
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "log.txt"}


def test_the_sanitizer_looks_at_memory_alone(tmp_path):
    """NVIDIA's bindings ask the driver for functions that it may not have: each answer would be an error."""
    found = [step for step in steps(tmp_path, tmp_path, toy=False) if "--tool" in step.command]
    assert [step.name for step in found] == ["memcheck", "initcheck"]
    for step in found:
        assert step.command[step.command.index("--report-api-errors") + 1] == "no"


def test_a_toolkit_is_found_by_its_compiler(tmp_path, monkeypatch):
    """The kernels' compiler and AOTInductor look for it by CUDA_HOME alone."""
    tool = tmp_path / "cuda-13" / "bin" / "nvcc"
    tool.parent.mkdir(parents=True)
    tool.touch(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").symlink_to(tool)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(bare, "TOOLKIT", tmp_path / "none")
    given = bare.environment(tmp_path, toy=False)
    assert given["CUDA_HOME"] == given["CUDA_PATH"] == str(tmp_path / "cuda-13")
    monkeypatch.setenv("CUDA_HOME", "/mine")
    assert bare.environment(tmp_path, toy=False)["CUDA_HOME"] == "/mine"


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


def test_a_price_makes_a_table_of_what_was_measured(tmp_path, monkeypatch, capsys):
    finding = {"what": "product fp16: warm again", "value": "", "goal": "", "figure": 1e6 / 3600}
    kept = json.dumps({"gpu": "a GPU", "findings": [finding]})
    write = f"open({str(tmp_path / 'found' / 'product.json')!r}, 'w').write({kept!r})"
    monkeypatch.setattr(bare, "steps", lambda *_, toy: [Step("product", 60, [sys.executable, "-c", write])])
    words = ["--wheels", str(tmp_path), "--out", str(tmp_path), "--price", "2.5", "--currency", "EUR"]
    assert bare.main(words) == 0
    row = "| product fp16: warm again | 278 | 1.00 | 2.50 EUR |"
    assert (tmp_path / "cost.md").read_text().splitlines()[-1] == row
    assert row in capsys.readouterr().out


KIT = """
import contextlib, json, sys, zipfile
import standin_gpu
standin_gpu.install()
import torch, torch._inductor
torch.set_num_threads(1)
from benchmarks.gpu import __main__ as command, networks, product
from benchmarks.gpu.basics import Sizes
from tilelab.engines.builders import aotinductor as builder
from tilelab.engines.cuda.aotinductor import AotInductorCudaEngine
from tilelab.engines.files.aotinductor_package import COMPILED_KEY

# torch's GPU is the CPU
load, compile_package, train = torch._inductor.aoti_load_package, builder.compile_package, product._train
torch._inductor.aoti_load_package = lambda path, *, run_single_threaded, device_index: load(path)
torch.cuda.ExternalStream = lambda handle, device: handle
torch.cuda.stream = lambda stream: contextlib.nullcontext()
torch.cuda.synchronize = lambda: None
AotInductorCudaEngine._tensor = lambda self, array: torch.from_numpy(standin_gpu.view(array))
product.PLACE = "cpu"

def compiled_for_the_gpu(network, spec, path, **how):
    compile_package(network, spec, path, **how)
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, data in entries.items():
            fields = json.loads(data) if name.endswith("_metadata.json") else {}
            if COMPILED_KEY in fields:
                said = json.loads(fields[COMPILED_KEY]) | {"device": "cuda", "capability": [9, 0], "cpu": ""}
                data = json.dumps(fields | {COMPILED_KEY: json.dumps(said)}).encode()
            new.writestr(name, data)

builder.compile_package = compiled_for_the_gpu
product.build_network = lambda name, *of: networks.build_network("small", *of)
product._train = lambda network, steps, side: train(network, 2, 16)
Sizes.full = classmethod(lambda cls, batch, planes: cls(64, 16, 2, 300, 280, 300, 2, 1 << 12))
sys.argv = ["gpu", "make", "product", "agreement", "baselines", "--files", HERE, "--json", HERE + "/kit.json"]
sys.exit(command.main())
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::Warning")
def test_steps_with_compiled_networks_run_as_on_a_gpu(tmp_path):
    """All that they do there but what torch computes on a GPU: the driver is the stand-in."""
    pytest.importorskip("torch")
    if find_compiler() is None or not compilers():
        pytest.skip("AOTInductor needs a C++ compiler, the launches one for CUDA kernels")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"HERE = {str(tmp_path)!r}\n{KIT}"],
        env=environment(tmp_path / "kernels"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left out" not in done.stdout
    found = {one["what"]: one for one in json.loads((tmp_path / "kit.json").read_text())["findings"]}
    for precision in ("fp16", "fp32"):
        assert found[f"product {precision}: bytes run to run"]["value"] == "the same"
        assert found[f"agreement {precision}"]["value"].startswith("passed: ")
        assert (
            "; 0.0000% differ between the sweep on the GPU and on the CPU" in found[f"agreement {precision}"]["value"]
        )
        assert f"torch {precision}: torch.compile, channels last" in found
        assert f"product {precision}: GPU memory" in found
    assert len(cost_table({"gpu": "none", "findings": list(found.values())}, 2.0)) == 6
