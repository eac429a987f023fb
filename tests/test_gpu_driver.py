"""The GPU path against a stand-in for NVIDIA's driver: what is compiled, launched, copied, waited for and given back.

The simulator shows the arithmetic, these tests everything else but speed.  Every script has a process of its own, in
which the stand-in is the driver.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from driver_standin import FOLDER, build, compilers, digest, draw_picture, environment, run_on_standin

pytestmark = pytest.mark.skipif(not compilers(), reason="no compiler of CUDA kernels is installed")


@pytest.mark.parametrize("compiler", compilers())
def test_every_launch_compiles_to_machine_code_that_spills_nothing(compiler, tmp_path):
    result = subprocess.run(
        [sys.executable, FOLDER / "compile_kernels.py", compiler],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.startswith(f"{compiler} compiled ")


def test_a_context_is_pushed_once_in_each_thread(kernels):
    script = """
import threading
from tilelab.kernels import device
def select():
    for _ in range(50):
        device.select(0)
select()
threads = [threading.Thread(target=select) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
    _, counted, _ = run_on_standin(script, kernels)
    assert counted["pushes"] == 4
    assert counted["deepest_stack"] == 1


def test_a_thread_may_change_its_gpu_and_other_libraries_may_change_it_meanwhile(kernels):
    script = """
import ctypes
from tilelab.kernels import device
for index in (0, 1, 1, 0, 3):
    assert device.select(index).index == index
    assert device.cuda.get_current_device().id == index
driver, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 2)
driver.cuCtxSetCurrent(context)
device.select(3)
assert device.cuda.get_current_device().id == 3
try:
    device.select(4)
except Exception as error:
    print(error)
"""
    said, counted, _ = run_on_standin(script, kernels, STANDIN_GPUS=4)
    assert said == "GPU cuda:4 was asked for, but there are 4: cuda:0 to cuda:3"
    assert counted["deepest_stack"] == 1


LAUNCH = """
import sys
import numpy as np
from tilelab.kernels import compiler, cuda_elementwise, device
device.select(0)
array = device.empty((5,), np.float32)
cuda_elementwise.clear(array, device.stream())
print(compiler.COMPILER, compiler.cache_folder() is not None)
assert "torch" not in sys.modules, "nothing that infers imports it"
"""


@pytest.mark.parametrize("compiler", compilers())
def test_kernels_are_kept_between_processes_and_small_launches_give_no_warning(compiler, tmp_path):
    without = "numba_cuda_mlir" if compiler == "numba-cuda" else ""
    for _ in range(2):
        said, counted, errors = run_on_standin(LAUNCH, tmp_path, without=without)
        assert said == f"{compiler} True"
        assert counted["launches"] == 1
        assert "occupancy" not in errors
        kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")}
        assert kept
        known = locals().get("known", kept)
        assert known == kept, "compiled again"


def test_kernels_run_where_nothing_can_be_kept():
    said, counted, _ = run_on_standin(LAUNCH, "/proc/none")
    assert said.endswith(" False")
    assert counted["launches"] == 1


GONE = """
import numpy
if vars(numpy).pop("row_stack", None):
    numpy.__all__.remove("row_stack")
"""


def test_the_newest_numpy_is_no_obstacle(kernels):
    """numba-cuda asks NumPy for `row_stack`, which 2.5 has no more; it is lent for the import and then gone."""
    if "numba-cuda" not in compilers():
        pytest.skip("numba-cuda is not installed")
    script = GONE + LAUNCH + "print(hasattr(numpy, 'row_stack'))\n"
    said, _, _ = run_on_standin(script, kernels, without="numba_cuda_mlir")
    assert said == "numba-cuda True\nFalse"


def test_faults_are_told_in_one_line(kernels):
    script = """
import numpy as np
from tilelab.errors import EngineError
from tilelab.kernels import cuda_elementwise, device
device.select(0)
array, stream = device.empty((5,), np.float32), device.stream()
cuda_elementwise.clear(array, stream)
for call in (lambda: cuda_elementwise.clear(array, stream), stream.synchronize, lambda: device.pinned((3,), np.uint8)):
    try:
        with device.faults(0):
            call()
    except EngineError as error:
        print(error)
with device.quietly():
    stream.synchronize()
"""
    said, _, _ = run_on_standin(script, kernels, STANDIN_FAULT="launch:2")
    lines = said.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert line.startswith("cuda:0 failed (")
        assert "ILLEGAL_ADDRESS" in line
        assert "the same command continues" in line


def test_the_standin_is_what_is_loaded():
    assert (build() / "libcuda.so.1").is_file()
    assert str(build()) in environment("/tmp")["LD_LIBRARY_PATH"].split(os.pathsep)  # noqa: S108


# --- the whole path; NumPy does what kernels would do, in the stand-in's memory

WHOLE = """
import gc
from pathlib import Path
import numpy as np
import standin_gpu
standin_gpu.install()
from tiny_models import make_spec, save_conv
import tilelab
from tilelab.kernels import device
from tilelab.run.options import Options

HERE = Path({here!r})

def infer(out, **options):
    asked = Options(**{{"engine": "onnxruntime-cuda", "device": "cuda"}} | options)
    run = tilelab.infer(HERE / "image.npy", HERE / "net.onnx", HERE / out, options=asked)
    gc.collect()
    if asked.device == "cuda":
        device.give_back()
    return run

if __name__ == "__main__":
{work}
"""


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A folder with an image of several shards, blank areas among them, and a network of three classes."""
    return draw_picture(tmp_path_factory.mktemp("picture"), (700, 3000), np.s_[100:400, 500:2500], tile=128)


def whole(picture, work, kernels, **settings):
    """What `work`, which may call `infer`, prints, and what the driver counted."""
    script = WHOLE.format(here=str(picture), work="\n".join(f"    {line}" for line in work.strip().splitlines()))
    said, counted, _ = run_on_standin(script, kernels, **settings)
    return said.splitlines(), counted


@pytest.fixture(scope="module")
def expected(picture, kernels):
    """The digest of the result on one GPU with memory for all of it, and what that took there."""
    _, counted = whole(picture, 'infer("one.ome.zarr")', kernels)
    assert counted["without_context"] == counted["bad_grids"] == 0
    return digest(picture / "one.ome.zarr"), counted


def test_a_sweep_moves_a_byte_a_pixel_up_and_gives_everything_back(expected):
    _, counted = expected
    pixels = 700 * 3000
    # labels and two probabilities come down; flags, tables and the trial batch are little
    assert pixels <= counted["bytes_up"] < 1.1 * pixels + (1 << 20)
    assert 3 * pixels <= counted["bytes_down"] < 3.1 * pixels + (2 << 20)
    assert counted["held_bytes"] <= 2 << 20  # the trial batch of the engine, which goes with it
    assert counted["deepest_stack"] == 1


def test_the_sweep_has_the_bytes_of_the_host(picture, kernels):
    work = """
from sweep_parts import Collector, make_job
from tilelab.engines.registry import load_engine
from tilelab.geometry import Box
from tilelab.run.sweep.device import DeviceSweep
from tilelab.run.sweep.host import HostSweep
engine = load_engine(HERE / "net.onnx", engine="onnxruntime-cuda", device="cuda")
image = np.load(HERE / "image.npy")[:300, :700]
for symmetries in (1, 8):
    engine.outputs, engine.channels = 3, 1
    job = make_job(image, "yx", (128, 128), (32, 32), engine=engine, gain=0.02, symmetries=symmetries)
    box, found = Box.whole(job.image.shape), []
    for sweep in (DeviceSweep, HostSweep):
        result = {"labels": np.zeros((1, 300, 700), np.uint8), "logits": np.zeros((3, 1, 300, 700), np.float32)}
        stalls = sweep(job, engine, box).run(Collector(result, box, 0, 1))
        found.append((result, stalls.tiles, stalls.blank))
    (a, *counts), (b, *others) = found
    print(counts == others, *(np.array_equal(a[kind], b[kind]) for kind in a))
"""
    said, _ = whole(picture, work, kernels)
    assert said == ["True True True"] * 2


def less(counted):
    """Memory for a part of what a unit took."""
    return counted["most_bytes"] * 17 // 20


def test_less_memory_means_narrower_lanes_and_the_same_bytes(picture, kernels, expected):
    found, roomy = expected
    work = 'print(infer("little.ome.zarr").report["units"])'
    (units,), counted = whole(picture, work, kernels, STANDIN_MEMORY=less(roomy))
    assert int(units) > 1
    assert digest(picture / "little.ome.zarr") == found
    assert counted["most_bytes"] <= less(roomy)
    assert counted["held_bytes"] <= 2 << 20, "what a unit held is given back before the next one asks"


def test_a_gpu_that_fails_in_the_middle_ends_in_one_line_and_the_same_command_continues(picture, kernels, expected):
    found, counted = expected
    command = """
import sys
import standin_gpu
standin_gpu.install()
from tilelab.cli import main
sys.exit(main(sys.argv[1:]))
"""
    given = ["infer", picture / "image.npy", "--model", picture / "net.onnx", "-o", picture / "failed.ome.zarr"]
    given += ["--engine", "onnxruntime-cuda", "--device", "cuda"]

    def run(**settings):
        return subprocess.run(
            [sys.executable, "-c", command, *given],
            env=environment(kernels, **settings),
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )

    # little memory, so that the first of several units is finished when the GPU fails
    memory = less(counted)
    failed = run(STANDIN_FAULT=f"launch:{counted['launches'] + 1}", STANDIN_MEMORY=memory)
    assert failed.returncode == 2, failed.stderr
    said = [line for line in failed.stderr.splitlines() if line.startswith("tilelab: error: ")]
    assert len(said) == 1
    assert said[0].startswith("tilelab: error: cuda:0 failed (")
    for word in ("Traceback", "Exception ignored", "Error in"):
        assert word not in failed.stderr
    continued = run(STANDIN_MEMORY=memory)
    assert continued.returncode == 0, continued.stderr
    assert "was finished by an earlier run" in continued.stderr + continued.stdout
    assert digest(picture / "failed.ome.zarr") == found


def test_four_gpus_in_one_process_make_one_image(picture, kernels):
    work = """
import threading
from sweep_parts import Collector, make_job
from tilelab.engines.registry import load_engine
from tilelab.geometry import Box
from tilelab.run.sweep.start import make_sweep
engines = [load_engine(HERE / "net.onnx", engine="onnxruntime-cuda", device=f"cuda:{i}") for i in range(4)]
image = np.load(HERE / "image.npy")[:300]
engines[0].outputs, engines[0].channels = 3, 1
job = make_job(image, "yx", (128, 128), (32, 32), engine=engines[0], gain=0.02)
def sweep(boxes_of):
    result = {"labels": np.zeros((1, 300, 3000), np.uint8), "logits": np.zeros((3, 1, 300, 3000), np.float32)}
    def run(engine, boxes):
        for box in boxes:
            make_sweep(job, engine, box).run(Collector(result, box, 0, 1))
    threads = [threading.Thread(target=run, args=of) for of in boxes_of]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return result
lanes = [Box((0, 0, x), (1, 300, min(x + 512, 3000))) for x in range(0, 3000, 512)]
one = sweep([(engines[0], [Box.whole((1, 300, 3000))])])
four = sweep([(engine, lanes[i::4]) for i, engine in enumerate(engines)])
print(*(np.array_equal(one[kind], four[kind]) for kind in one), one["labels"].max())
"""
    said, counted = whole(picture, work, kernels, STANDIN_GPUS=4)
    assert said == ["True True 2"]
    assert counted["without_context"] == 0
    assert counted["deepest_stack"] <= 2


def test_two_gpus_with_a_process_each_make_one_image(picture, kernels, expected):
    pytest.importorskip("distributed")
    work = 'print(infer("two.ome.zarr", device="cuda:0,1").report["workers"]["count"])'
    preload = json.dumps([str(FOLDER / "standin_gpu.py")])
    said, _ = whole(picture, work, kernels, STANDIN_GPUS=2, DASK_DISTRIBUTED__WORKER__PRELOAD=preload)
    assert said[-1] == "2"
    assert digest(picture / "two.ome.zarr") == expected[0]


@pytest.mark.slow
def test_a_worker_whose_gpu_has_failed_is_started_anew(picture, kernels, expected):
    """Its GPU fails every call of the process; what it was at is done by the one that is started in its place."""
    pytest.importorskip("distributed")
    found, counted = expected
    work = 'print(infer("again.ome.zarr", device="cuda:0,1").report["workers"])'
    preload = json.dumps([str(FOLDER / "standin_gpu.py")])
    settings = {"STANDIN_GPUS": 2, "DASK_DISTRIBUTED__WORKER__PRELOAD": preload, "STANDIN_MEMORY": less(counted)}
    settings |= {"STANDIN_FAULT": "launch:21", "STANDIN_FAULT_ONCE": picture / "fault"}
    said, _ = whole(picture, work, kernels, **settings)
    assert (picture / "fault").exists()
    assert "'lost': 1, 'repeated': 1" in said[-1]
    assert digest(picture / "again.ome.zarr") == found
