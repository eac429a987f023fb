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


def test_a_context_is_pushed_once_in_each_thread(standin):
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
    counted = standin.run(script).counted
    assert counted["pushes"] == 4
    assert counted["deepest_stack"] == 1


def test_a_thread_may_change_its_gpu_and_other_libraries_may_change_it_meanwhile(standin):
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
    ended = standin.run(script, STANDIN_GPUS=4)
    assert ended.said == "GPU cuda:4 was asked for, but there are 4: cuda:0 to cuda:3"
    assert ended.counted["deepest_stack"] == 1


def test_a_gpu_without_the_library_that_compiles_for_it_is_not_said_to_be_missing(standin):
    script = """
from tilelab.errors import EngineError
from tilelab.kernels import device
device.cuda.is_available = lambda: False  # the driver is there, libNVVM is not
try:
    device.select(0)
except EngineError as error:
    print(error)
"""
    (line,) = standin.run(script).said.splitlines()
    assert line.startswith(
        f"there is a GPU, but {compilers()[0]} finds no libNVVM to compile kernels with: pip install "
    )
    assert line.endswith(", or name a CUDA toolkit in CUDA_HOME")


def test_a_fault_that_a_library_tells_in_its_own_words_is_known_from_then_on(picture, standin):
    """A worker on such a GPU has to be started anew."""
    work = """
from tilelab.engines.registry import load_engine
from tilelab.errors import EngineError
engine = load_engine(HERE / "net.onnx", engine="onnxruntime-cuda", device="cuda")
def fail(tiles, logits):
    os.environ["STANDIN_FAULT"] = "cuStreamSynchronize:1"
    raise EngineError("the library failed")
engine._enqueue = fail
try:
    engine.run(np.zeros((8, 1, 128, 128), np.float32), np.zeros((8, 3, 128, 128), np.float32))
except EngineError as error:
    print(error, device.has_failed())
"""
    said, _ = whole(picture, "import os\n" + work, standin)
    assert said == ["the library failed True"]


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


GONE = """
import numpy
if vars(numpy).pop("row_stack", None):
    numpy.__all__.remove("row_stack")
"""


@pytest.mark.parametrize("compiler", compilers())
def test_kernels_are_kept_between_processes_and_small_launches_give_no_warning(compiler, tmp_path):
    """With the newest NumPy, too: numba-cuda asks it for `row_stack`, which 2.5 has no more, and is lent one."""
    without = "numba_cuda_mlir" if compiler == "numba-cuda" else ""
    script = LAUNCH if not without else GONE + LAUNCH + "assert not hasattr(numpy, 'row_stack'), 'it was lent'\n"
    for _ in range(2):
        said, counted, errors = run_on_standin(script, tmp_path, without=without, NUMBA_CACHE_DIR="")
        assert said == f"{compiler} True"
        assert counted["launches"] == 1
        assert "occupancy" not in errors
        kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")}
        assert kept
        known = locals().get("known", kept)
        assert known == kept, "compiled again"


@pytest.mark.parametrize("compiler", compilers())
def test_processes_that_compile_at_the_same_time_do_not_take_each_others_kernels(compiler, tmp_path):
    """Numba numbers files by an index that it reads first: whoever has not seen the other's takes its number."""
    script = """
import numpy as np
from tilelab.kernels import compiler, cuda_elementwise, device
device.select(0)
stream = device.stream()
def launch(dtype):
    kernel = compiler.jit(cuda_elementwise._fill_zero.py_func)  # that of a process which has compiled nothing
    kernel[1, 8, stream](device.empty((5,), dtype))
    return {path: path.read_bytes() for path in compiler.cache_folder().rglob("*.nbc")}
first = launch(np.float32)
(index,) = compiler.cache_folder().rglob("*.nbi")
seen = index.read_bytes()
index.unlink()
both = launch(np.float16)
print(len(first), len(both), first.items() <= both.items())
index.write_bytes(seen)
print(launch(np.float32) == both)
"""
    without = "numba_cuda_mlir" if compiler == "numba-cuda" else ""
    said, _, _ = run_on_standin(script, tmp_path, without=without, NUMBA_CACHE_DIR="")
    assert said.splitlines() == ["1 2 True", "True"]


def test_kernels_run_where_nothing_can_be_kept():
    said, counted, _ = run_on_standin(LAUNCH, "/proc/none", NUMBA_CACHE_DIR="")
    assert said.endswith(" False")
    assert counted["launches"] == 1


def test_faults_are_told_in_one_line(standin):
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
    lines = standin.run(script, STANDIN_FAULT="launch:2").said.splitlines()
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

{work}
"""


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A folder with an image of several shards, blank areas among them, and a network of three classes."""
    return draw_picture(tmp_path_factory.mktemp("picture"), (700, 3000), np.s_[100:400, 500:2500], tile=128)


def whole(picture, work, standin, **settings):
    """What `work`, which may call `infer`, prints, and what the driver counted."""
    ended = standin.run(WHOLE.format(here=str(picture), work=work), **settings)
    return ended.said.splitlines(), ended.counted


@pytest.fixture(scope="module")
def expected(picture, standin):
    """The digest of the result on one GPU with memory for all of it, and what that took there."""
    _, counted = whole(picture, 'infer("one.ome.zarr")', standin)
    assert counted["without_context"] == counted["bad_grids"] == counted["foreign"] == counted["beyond"] == 0
    return digest(picture / "one.ome.zarr"), counted


def test_a_sweep_moves_a_byte_a_pixel_up_and_gives_everything_back(expected):
    _, counted = expected
    pixels = 700 * 3000
    # labels and two probabilities come down; flags, tables and the trial batch are little
    assert pixels <= counted["bytes_up"] < 1.1 * pixels + (1 << 20)
    assert 3 * pixels <= counted["bytes_down"] < 3.1 * pixels + (2 << 20)
    assert counted["held_bytes"] <= 2 << 20  # the trial batch of the engine, which goes with it
    assert counted["deepest_stack"] == 1


def test_the_sweep_has_the_bytes_of_the_host(picture, standin):
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
    said, _ = whole(picture, work, standin)
    assert said == ["True True True"] * 2


def test_a_unit_gives_its_memory_back_when_it_ends(picture, standin):
    """At once, not when the next one asks or Numba has collected enough of it: others use the GPU, too."""
    work = """
import ctypes, json
from sweep_parts import Collector, make_job
from tilelab.engines.registry import load_engine
from tilelab.geometry import Box
from tilelab.run.sweep.device import DeviceSweep
def held():
    text = ctypes.create_string_buffer(1 << 13)
    ctypes.CDLL("libcuda.so.1").standin_report(text, len(text))
    return json.loads(text.value)["held_bytes"]
engine = load_engine(HERE / "net.onnx", engine="onnxruntime-cuda", device="cuda")
engine.outputs, engine.channels = 3, 1
job = make_job(np.load(HERE / "image.npy")[:300, :700], "yx", (128, 128), (32, 32), engine=engine, gain=0.02)
box = Box.whole(job.image.shape)
result = {"labels": np.zeros((1, 300, 700), np.uint8), "logits": np.zeros((3, 1, 300, 700), np.float32)}
for warm in (False, True):  # what compiles kernels holds what it compiled them for
    gc.collect()
    device.give_back()
    gc.disable()
    before = held()
    DeviceSweep(job, engine, box).run(Collector(result, box, 0, 1))
    if warm:
        print(held() - before)
"""
    said, _ = whole(picture, work, standin)
    assert said == ["0"]


def test_an_engine_that_is_closed_gives_its_memory_back(picture, standin):
    work = """
import ctypes, json
from tilelab.engines.registry import load_engine
def held():
    gc.collect()
    device.give_back()
    text = ctypes.create_string_buffer(1 << 13)
    ctypes.CDLL("libcuda.so.1").standin_report(text, len(text))
    return json.loads(text.value)["held_bytes"]
engine = load_engine(HERE / "net.onnx", engine="onnxruntime-cuda", device="cuda")
before = held()
engine.close()
print(before > 1 << 20, held())
"""
    said, _ = whole(picture, work, standin)
    assert said == ["True 0"]


def less(counted):
    """Memory for a part of what a unit took."""
    return counted["most_bytes"] * 17 // 20


def test_less_memory_means_narrower_lanes_and_the_same_bytes(picture, standin, expected):
    found, roomy = expected
    work = 'print(infer("little.ome.zarr").report["units"])'
    (units,), counted = whole(picture, work, standin, STANDIN_MEMORY=less(roomy))
    assert int(units) > 1
    assert digest(picture / "little.ome.zarr") == found
    assert counted["most_bytes"] <= less(roomy)
    assert counted["held_bytes"] <= 2 << 20, "what a unit held is given back before the next one asks"


def test_a_gpu_that_fails_in_the_middle_ends_in_one_line_and_the_same_command_continues(picture, standin, expected):
    found, counted = expected
    words = ["infer", picture / "image.npy", "--model", picture / "net.onnx", "-o", picture / "failed.ome.zarr"]
    words += ["--engine", "onnxruntime-cuda", "--device", "cuda"]
    # little memory, so that the first of several units is finished when the GPU fails
    memory = less(counted)
    fault = f"launch:{counted['launches'] + 1}"
    failed = standin.tilelab(*words, STANDIN_FAULT=fault, STANDIN_MEMORY=memory)
    assert failed.code == 2, failed.errors
    said = [line for line in failed.errors.splitlines() if line.startswith("tilelab: error: ")]
    assert len(said) == 1
    assert said[0].startswith("tilelab: error: cuda:0 failed (")
    for word in ("Traceback", "Exception ignored", "Error in"):
        assert word not in failed.errors
    continued = standin.tilelab(*words, STANDIN_MEMORY=memory)
    assert continued.code == 0, continued.errors
    assert "was finished by an earlier run" in continued.errors + continued.said
    assert digest(picture / "failed.ome.zarr") == found


def test_four_and_eight_gpus_in_one_process_make_one_image(picture, standin):
    work = """
import threading
from sweep_parts import Collector, make_job
from tilelab.engines.registry import load_engine
from tilelab.geometry import Box
from tilelab.run.sweep.start import make_sweep
engines = [load_engine(HERE / "net.onnx", engine="onnxruntime-cuda", device=f"cuda:{i}") for i in range(8)]
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
lanes = [Box((0, 0, x), (1, 300, min(x + 256, 3000))) for x in range(0, 3000, 256)]
one = sweep([(engines[0], [Box.whole((1, 300, 3000))])])
for count in (4, 8):
    many = sweep([(engine, lanes[i::count]) for i, engine in enumerate(engines[:count])])
    print(count, *(np.array_equal(one[kind], many[kind]) for kind in one), many["labels"].max())
"""
    said, counted = whole(picture, work, standin, STANDIN_GPUS=8, STANDIN_MEMORY=2 << 30)
    assert said == ["4 True True 2", "8 True True 2"]
    assert counted["without_context"] == counted["foreign"] == counted["beyond"] == 0
    assert counted["deepest_stack"] <= 2


def test_host_arrays_go_through_the_engines_own_gpu_from_any_thread(picture, standin):
    work = """
import threading
from tilelab.engines.registry import load_engine
engines = [load_engine(HERE / "net.onnx", engine="onnxruntime-cuda", device=f"cuda:{i}") for i in range(2)]
tiles = np.random.default_rng(0).normal(size=(8, 1, 128, 128)).astype(np.float32)
outs = [np.zeros((8, 3, 128, 128), np.float32) for _ in engines]
threads = [threading.Thread(target=engine.run, args=(tiles, out)) for engine, out in zip(engines, outs)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(outs[0].any(), np.array_equal(*outs))
"""
    said, counted = whole(picture, work, standin, STANDIN_GPUS=2)
    assert said == ["True True"]
    assert counted["foreign"] == counted["beyond"] == 0


@pytest.mark.parametrize("count", [1, 4, 8])
def test_a_gpu_of_2_gb_is_planned_for_or_refused_in_one_line(picture, standin, count):
    """Planes of 9958 x 9959 px and larger; each of the GPUs says what it has."""
    work = """
from tilelab.engines.registry import load_engine
from tilelab.errors import PlanError
from tilelab.geometry import Box
from tilelab.io.images.open import open_image
from tilelab.run.plan.device_buffers import device_buffers
from tilelab.run.prepare import plan_image
import os
free = set()
for index in range(int(os.environ["STANDIN_GPUS"])):
    engine = load_engine(HERE / "net.onnx", engine="onnxruntime-cuda", device=f"cuda:{index}")
    free.add(engine.gpu_room.free_bytes)
(free,) = free
for shape in ((9958, 9959), (40_000, 300_000)):
    image = open_image(np.broadcast_to(np.uint8(0), shape), axes="yx")
    for batch in (1, 16, 256, 1 << 14):
        try:
            plan = plan_image(image, engine.spec, Options(), batch, gpu=engine.gpu_room)
        except PlanError as error:
            print("refused", "|".join(str(error).splitlines()))
        else:
            taken = max(device_buffers(plan.request, unit.box).device_bytes for unit in plan.units)
            print("planned", len(plan.units), taken, free)
"""
    lines, _ = whole(picture, work, standin, STANDIN_GPUS=count, STANDIN_MEMORY=2 << 30)
    planned = [list(map(int, line.split()[1:])) for line in lines if line.startswith("planned")]
    refused = [line for line in lines if line.startswith("refused")]
    assert len(planned) + len(refused) == len(lines) == 8
    assert len(planned) == 6
    for _, taken, free in planned:
        assert taken <= free <= 2 << 30
    for line in refused:
        assert "|" not in line
        assert "of GPU memory" in line
        assert "lower --batch or --tile" in line


def test_two_gpus_with_a_process_each_make_one_image(picture, standin, expected):
    pytest.importorskip("distributed")
    work = 'print(infer("two.ome.zarr", device="cuda:0,1").report["workers"]["count"])'
    preload = json.dumps([str(FOLDER / "standin_gpu.py")])
    said, _ = whole(picture, work, standin, STANDIN_GPUS=2, DASK_DISTRIBUTED__WORKER__PRELOAD=preload)
    assert said[-1] == "2"
    assert digest(picture / "two.ome.zarr") == expected[0]


@pytest.mark.slow
def test_a_worker_whose_gpu_has_failed_is_started_anew(picture, standin, expected):
    """Its GPU fails every call of the process; what it was at is done by the one that is started in its place."""
    pytest.importorskip("distributed")
    found, counted = expected
    work = 'print(infer("again.ome.zarr", device="cuda:0,1").report["workers"])'
    preload = json.dumps([str(FOLDER / "standin_gpu.py")])
    settings = {"STANDIN_GPUS": 2, "DASK_DISTRIBUTED__WORKER__PRELOAD": preload, "STANDIN_MEMORY": less(counted)}
    settings |= {"STANDIN_FAULT": "launch:21", "STANDIN_FAULT_ONCE": picture / "fault"}
    said, _ = whole(picture, work, standin, **settings)
    assert (picture / "fault").exists()
    assert "'lost': 1, 'repeated': 1" in said[-1]
    assert digest(picture / "again.ome.zarr") == found
