"""The GPU path against a stand-in for NVIDIA's driver: what is compiled, launched, copied, waited for and given back.

The simulator shows the arithmetic, these tests everything else but speed.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from driver_standin import FOLDER, build, compilers, environment, run_on_standin

pytestmark = pytest.mark.skipif(not compilers(), reason="no compiler of CUDA kernels is installed")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """A folder for compiled kernels: what one test compiles, the next one finds."""
    return tmp_path_factory.mktemp("kernels")


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
import numpy as np
from tilelab.kernels import compiler, cuda_elementwise, device
device.select(0)
array = device.empty((5,), np.float32)
cuda_elementwise.clear(array, device.stream())
print(compiler.COMPILER, compiler.cache_folder() is not None)
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
    said, _, _ = run_on_standin(script, kernels, STANDIN_FAULT_AFTER=1)
    lines = said.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert line.startswith("cuda:0 failed (")
        assert "ILLEGAL_ADDRESS" in line
        assert "the same command continues" in line


def test_the_standin_is_what_is_loaded():
    assert (build() / "libcuda.so.1").is_file()
    assert str(build()) in environment("/tmp")["LD_LIBRARY_PATH"].split(os.pathsep)  # noqa: S108
