"""A GPU that fails in any kind of call, one without memory at any allocation, and ones that are not there.

Against the stand-in for the driver; see `driver_standin`.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from driver_standin import compilers, digest, draw_picture

pytestmark = pytest.mark.skipif(not compilers(), reason="no compiler of CUDA kernels is installed")


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A folder with a small image, blank areas in it, and a network of three classes."""
    return draw_picture(tmp_path_factory.mktemp("picture"), (140, 700), np.s_[30:110, 200:500], tile=64)


def infer(standin, picture, out="failed.ome.zarr", device="cuda", **settings):
    words = ["infer", picture / "image.npy", "--model", picture / "net.onnx", "-o", picture / out]
    return standin.tilelab(*words, "--engine", "onnxruntime-cuda", "--device", device, **settings)


@pytest.fixture(scope="module")
def well(picture, standin):
    """The digest of the result, and how often each of the driver's functions was called for it."""
    infer(standin, picture, "compiled.ome.zarr")
    ended = infer(standin, picture, "well.ome.zarr")
    assert ended.code == 0, ended.errors
    return digest(picture / "well.ome.zarr"), ended.counted


def calls(counted, which):
    """CALL:N for every function that was called: the middle call, or also the first and the last."""
    for name, count in counted.items():
        if name == "launch" or name.startswith("cu"):
            for nth in sorted({1, count // 2 + 1, count} if which == "all" else {count // 2 + 1}):
                yield f"{name}:{nth}"


@pytest.mark.parametrize("which", ["middle", pytest.param("all", marks=pytest.mark.slow)])
def test_a_fault_in_any_kind_of_call_is_one_line_and_the_same_command_continues(picture, standin, well, which):
    expected, counted = well
    faults = list(calls(counted, which))
    for number, fault in enumerate(faults):
        failed = infer(standin, picture, STANDIN_FAULT=fault)
        check_fault(fault, failed, digest(picture / "failed.ome.zarr"), expected)
        if failed.code and (which == "all" or number % 5 == 0):
            again = infer(standin, picture)
            assert again.code == 0, (fault, again.errors)
            assert digest(picture / "failed.ome.zarr") == expected, fault
        for left in picture.glob("failed.ome.zarr*"):
            shutil.rmtree(left)
    kinds = {fault.partition(":")[0] for fault in faults}
    must = "MemAlloc_v2 MemHostAlloc MemFree_v2 MemcpyHtoDAsync_v2 MemcpyDtoHAsync_v2 EventRecord StreamWaitEvent"
    assert kinds >= {"launch", "cuDevicePrimaryCtxRetain", *(f"cu{name}" for name in must.split())}
    assert any("Load" in kind for kind in kinds), "kernels are loaded"


def check_fault(fault, failed, found, expected):
    """One line that names it, or, of what only frees, nothing and the whole result."""
    for word in ("Traceback", "Exception ignored", "Error in"):
        assert word not in failed.errors, (fault, failed.errors)
    if failed.code == 0 and ("Free" in fault or "Destroy" in fault):
        assert found == expected, "it failed when everything had landed"
        return
    assert failed.code == 2, (fault, failed)
    errors = [line for line in failed.errors.splitlines() if line.startswith("tilelab: error: ")]
    assert len(errors) == 1, (fault, failed.errors)
    assert errors[0].startswith("tilelab: error: cuda:0 failed ("), (fault, errors)
    assert "and the same command continues" in errors[0]
    name = fault.partition(":")[0].removesuffix("_v2")
    words = (name, "ernel", "Failed to load", "While executing")
    assert any(word in errors[0] for word in words), ("the first fault is named", fault, errors)


MEMORY = """
import ctypes, gc, json, os, shutil
from pathlib import Path
import numpy as np
import standin_gpu
standin_gpu.install()
from driver_standin import digest
import tilelab
from tilelab.errors import EngineError, PlanError
from tilelab.kernels import device
from tilelab.run.options import Options
HERE = Path({here!r})

def counts():
    gc.collect()
    device.give_back()
    text = ctypes.create_string_buffer(1 << 13)
    ctypes.CDLL("libcuda.so.1").standin_report(text, len(text))
    return json.loads(text.value)

def infer(model=HERE / "net.onnx", **options):
    for left in HERE.glob("memory.ome.zarr*"):
        shutil.rmtree(left)
    options = Options(engine="onnxruntime-cuda", device="cuda", **options)
    return tilelab.infer(HERE / "image.npy", model, HERE / "memory.ome.zarr", options=options)

"""


def on_standin(picture, standin, work, **settings):
    ended = standin.run(MEMORY.format(here=str(picture)) + work, **settings)
    assert "Exception ignored" not in ended.errors
    return ended.said.splitlines(), ended.counted


def test_no_memory_at_any_allocation_is_one_line_and_everything_is_given_back(picture, standin):
    work = """
infer()
before = counts()
infer()
after = counts()
expected = digest(HERE / "memory.ome.zarr")
taken = sum(after[name] - before[name] for name in ("allocations", "pinned"))
assert after["held_bytes"] == before["held_bytes"], "two runs of a process"
for n in range(taken):
    now = counts()
    os.environ["STANDIN_ALLOCATIONS"] = str(now["allocations"] + now["pinned"] + n)
    try:
        infer()
        print("it should have failed")
    except (EngineError, PlanError) as error:
        print(error)
    left = counts()
    assert left["held_bytes"] == before["held_bytes"], (n, left)
    assert left["pinned"] == left["pinned_frees"], (n, left)
del os.environ["STANDIN_ALLOCATIONS"]
infer()
assert digest(HERE / "memory.ome.zarr") == expected
assert not device.has_failed()
"""
    said, counted = on_standin(picture, standin, work)
    assert len(said) > 15
    for line in said:
        assert line.startswith(("GPU out of memory", "the driver cannot pin")), line
    assert any(line.startswith("the driver cannot pin") for line in said)
    assert counted["deepest_stack"] == 1


def test_a_plan_says_what_is_taken_whatever_memory_there_is(picture, standin):
    """To the byte, but for a few small tables."""
    work = """
from tilelab.engines.registry import load_engine
from tilelab.errors import PlanError
from tilelab.run.plan.device_buffers import largest_device_buffers
from tilelab.run.sweep import device as sweep
real, asked = sweep.check_device, []
sweep.check_device = lambda request, buffers, free: (real(request, buffers, free), asked.append(buffers.device_bytes))
engine = load_engine(HERE / "net.onnx", engine="onnxruntime-cuda", device="cuda")
base = counts()["held_bytes"]
infer(engine)
needed, most, expected = max(asked), counts()["most_bytes"] - base, digest(HERE / "memory.ome.zarr")
print(json.dumps([most, needed]))
for share in (0.9, 0.6, 0.4, 0.2, 0.01):
    asked.clear()
    os.environ["STANDIN_MEMORY"] = str(base + int(share * needed))
    try:
        infer(engine)
    except PlanError as error:
        print(json.dumps(str(error)))
    else:
        assert max(asked) <= share * needed
        assert digest(HERE / "memory.ome.zarr") == expected
        print(json.dumps(len(asked)))
"""
    said, _ = on_standin(picture, standin, work)
    (most, needed), *others = map(json.loads, said)
    assert needed <= most <= needed + 8192
    assert isinstance(others[-1], str)
    assert "of GPU memory" in others[-1]


@pytest.mark.parametrize("asked", ["cuda:3", "cuda:0,3", "cuda:0,0"])
def test_a_gpu_that_is_not_there_is_one_line(picture, standin, asked):
    ended = infer(standin, picture, "none.ome.zarr", asked, STANDIN_GPUS=2)
    assert ended.code == 2, ended.errors
    (line,) = (line for line in ended.errors.splitlines() if line.strip())
    assert line.startswith("tilelab: error: ")
    assert "cuda:" in line
    assert not list(picture.glob("none.*"))
