"""ONNX Runtime's GPU providers and AOTInductor, as far as they can be driven without a GPU.

The device is host memory (`fake_gpu`).  ONNX Runtime is the real library, made to compute on the CPU under the names of
the GPU providers, so that bindings, shapes, types and options are really used; AOTInductor compiles for the CPU.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
import zipfile
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import fake_gpu
import msgspec
import numpy as np
import pytest
from tiny_models import make_spec, save_conv, save_half, save_nan, save_unet

from tilelab.engines import aotinductor
from tilelab.engines.builders import aotinductor as aotinductor_build
from tilelab.engines.cuda import aotinductor as aotinductor_cuda
from tilelab.engines.cuda import onnxruntime as ort_gpu
from tilelab.engines.cuda import onnxruntime_cuda as ort_cuda
from tilelab.engines.cuda import onnxruntime_rtx as ort_rtx
from tilelab.engines.cuda import onnxruntime_tensorrt as ort_tensorrt
from tilelab.engines.files.aotinductor_package import Compiled, read_compiled
from tilelab.engines.registry import choose, load_engine, read_model, read_spec
from tilelab.errors import EngineError, ModelError, OutputError
from tilelab.exporting.source import CheckpointSource
from tilelab.exporting.write import Request, Writing
from tilelab.machine import nvidia
from tilelab.machine.cpu import cpu_features

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture
def gpu(monkeypatch):
    return fake_gpu.install(monkeypatch, count=2)


class Session:
    """A session on the CPU that says it runs on the provider that was asked for.

    Of options that the real one refuses, the reason is printed and the session is the CPU's, unless `enable_fallback`
    is 0.
    """

    def __init__(self, library, model, options, providers=None, enable_fallback=1):
        self._library = library
        asked = providers if providers is not None else library.added
        library.asked.append(asked)
        refused = library.refusal or next(
            (
                f"[ERROR] [TensorRT] The value for the key '{key}' should be 'True' or 'False'."
                for key in TENSORRT_SWITCHES
                if asked[0][1].get(key, "True") not in ("True", "true", "False", "false")
            ),
            "",
        )
        if refused and not enable_fallback:
            raise RuntimeError(refused)
        if refused:
            print(f"EP Error {refused} when using {asked}")
        self._real = onnxruntime.InferenceSession(model, options.real, providers=["CPUExecutionProvider"])
        self._provider = "CPUExecutionProvider" if library.broken or refused else asked[0][0]

    def get_providers(self):
        return [self._provider, "CPUExecutionProvider"]

    def get_outputs(self):
        return self._real.get_outputs()

    def io_binding(self):
        real, library = self._real.io_binding(), self._library
        self._binding = real

        def bind(kind):
            def on_cuda(name, device_type, device_id, element_type, shape, pointer):
                assert device_type == "cuda"
                library.bound.append((kind, name, device_id, pointer))
                getattr(real, f"bind_{kind}")(name, "cpu", 0, element_type, shape, pointer)

            return on_cuda

        return SimpleNamespace(bind_input=bind("input"), bind_output=bind("output"), real=real)

    def run_with_iobinding(self, binding, run_options):
        assert run_options.entries == {"disable_synchronize_execution_providers": "1"}
        if "out of memory" in self._library.failures:
            raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : BFCArena failed to allocate 123 bytes")
        self._real.run_with_iobinding(binding.real)


# Python's bindings take words for these, and no numbers (1.31: onnxruntime_pybind_state.cc)
TENSORRT_SWITCHES = ("trt_engine_cache_enable", "trt_timing_cache_enable", "trt_fp16_enable")


class Options:
    """Session options that remember plug-in devices."""

    def __init__(self, library):
        object.__setattr__(self, "real", onnxruntime.SessionOptions())
        object.__setattr__(self, "library", library)

    def __setattr__(self, name, value):
        setattr(self.real, name, value)

    def add_free_dimension_override_by_name(self, name, value):
        self.real.add_free_dimension_override_by_name(name, value)

    def add_provider_for_devices(self, devices, options):
        self.library.added = [(devices[0].ep_name, options)]


class RunOptions:
    def __init__(self):
        self.entries = {}

    def add_run_config_entry(self, key, value):
        self.entries[key] = value


class Library(SimpleNamespace):
    """onnxruntime-gpu as far as we use it."""

    def __init__(self, names):
        super().__init__(
            __version__="1.31.0",
            asked=[],
            bound=[],
            failures=set(),
            refusal="",
            broken=False,
            preloaded=0,
            names=names,
            devices=[],
            RunOptions=RunOptions,
        )

    def SessionOptions(self):  # noqa: N802
        return Options(self)

    def InferenceSession(self, model, options, providers=None, enable_fallback=1):  # noqa: N802
        return Session(self, model, options, providers, enable_fallback)

    def preload_dlls(self):
        self.preloaded += 1

    def get_available_providers(self):
        return self.names

    def get_ep_devices(self):
        return self.devices

    def register_execution_provider_library(self, name, path):
        assert path == "/plugin.so"
        self.devices += [SimpleNamespace(ep_name=name)] * 2


@pytest.fixture
def library(monkeypatch, gpu, tmp_path):
    found = Library(["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"])
    plugin = SimpleNamespace(
        get_ep_name=lambda: "NvTensorRTRTXExecutionProvider", get_library_path=lambda: "/plugin.so"
    )
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", plugin)
    monkeypatch.setattr(ort_gpu, "import_onnxruntime", lambda: found)
    monkeypatch.setattr(ort_gpu, "version", lambda package: {"tensorrt": "10.16.0"}.get(package, "1.31.0"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "")
    ort_gpu.probe.cache_clear()
    yield found
    ort_gpu.probe.cache_clear()


def run(engine, seed=0):
    rng = np.random.default_rng(seed)
    tiles = rng.normal(size=(engine.batch, engine.spec.channels, *engine.tile)).astype(np.float32)
    out = np.full((engine.batch, engine.spec.values, *engine.tile), np.nan, np.float32)
    engine.run(tiles, out)
    return tiles, out


def test_the_extra_brings_a_compiler_and_the_libraries_that_onnx_runtime_loads():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    brought = {re.split(r"[><=; ]", line)[0] for line in project["optional-dependencies"]["gpu"]}
    assert brought >= {"numba-cuda-mlir[cu13]", "onnxruntime-gpu[cuda,cudnn]"}
    assert "onnxruntime" not in brought, "both are one folder"


NAMES = ["onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-rtx"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_provider_computes_on_arrays_of_the_device(library, gpu, tmp_path, name, device):
    path = save_unet(tmp_path / "u.onnx", spec=make_spec(stride=4))
    engine = load_engine(path, engine=name, device=device, batch=2)
    index = 1 if device == "cuda:1" else 0
    assert (engine.name, engine.device, engine.precision) == (name, f"cuda:{index}", "fp32")
    assert index in gpu.selected
    tiles, out = run(engine)
    expected = np.empty_like(out)
    load_engine(path, engine="onnxruntime", device="cpu", batch=2).run(tiles, expected)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert library.preloaded == 1
    assert {(kind, port, at) for kind, port, at, _ in library.bound} == {
        ("input", "tiles", index),
        ("output", "logits0", index),
    } or {kind for kind, *_ in library.bound} == {"input", "output"}
    # arrays that are on the device already are used where they are
    on_device = np.empty_like(out)
    engine.enqueue(tiles, on_device)
    np.testing.assert_array_equal(on_device, out)
    assert library.bound[-2][3] == tiles.ctypes.data
    assert library.bound[-1][3] == on_device.ctypes.data
    assert engine.versions()["gpu"] == "Fake H100"
    engine.close()


def test_options_of_the_cuda_provider_are_chosen(library, tmp_path):
    path = save_unet(tmp_path / "u.onnx", spec=make_spec(stride=4, precisions=("fp32", "fp16")))
    load_engine(path, engine="onnxruntime-cuda", precision="fp32")
    ((provider, options),) = library.asked[-1]
    assert provider == "CUDAExecutionProvider"
    assert options["use_tf32"] == "0"
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert options["prefer_nhwc"] == "0"
    assert options["user_compute_stream"] == "1000"
    assert all(isinstance(value, str) for value in options.values())
    load_engine(path, engine="onnxruntime-cuda", precision="fp16")
    assert library.asked[-1][0][1]["prefer_nhwc"] == "1"


@pytest.mark.parametrize(
    ("module", "key"), [(ort_tensorrt, "trt_engine_cache_path"), (ort_rtx, "nv_runtime_cache_path")]
)
def test_compiled_engines_are_kept_per_model_version_gpu_and_shape(library, tmp_path, monkeypatch, module, key):
    name = module.PROVIDER.engine
    path = save_unet(tmp_path / "u.onnx", spec=make_spec(stride=4, precisions=("fp32", "fp16")))
    other = save_unet(tmp_path / "v.onnx", classes=3, spec=make_spec(stride=4, classes=3))

    def folder(path=path, **more):
        load_engine(path, engine=name, **({"precision": "fp32"} | more))
        found = library.asked[-1][0][1][key]
        assert (tmp_path / "cache") in type(tmp_path)(found).parents
        return found

    first = folder()
    assert folder() == first
    assert folder(other) != first
    assert folder(batch=2) != first
    assert folder(precision="fp16") != first
    library.__version__ = "1.32.0"
    assert folder() != first
    library.__version__ = "1.31.0"
    fake_gpu.install(monkeypatch, (8, 6), "Fake A10", count=2)
    assert folder() != first


def test_half_precision_is_made_from_an_fp32_model(library, tmp_path):
    path = save_unet(tmp_path / "u.onnx", spec=make_spec(stride=4, precisions=("fp32", "fp16")))
    file = read_model(path)
    assert choose(file, file.spec, "onnxruntime-cuda")[2] == "fp16"
    half, full = (load_engine(path, engine="onnxruntime-cuda", precision=p) for p in ("fp16", "fp32"))
    assert half.tiles_dtype == np.float32
    (_, a), (_, b) = run(half), run(full)
    assert 0 < np.abs(a - b).max() < 0.02 * np.abs(b).max()


def test_a_half_precision_model_takes_half_precision_tiles(library, tmp_path):
    path = save_half(tmp_path / "h.onnx", spec=make_spec(precisions=("fp32", "fp16")))
    engine = load_engine(path, engine="onnxruntime-cuda", precision="fp16")
    assert engine.tiles_dtype == engine.logits_dtype == np.float16
    assert np.isfinite(run(engine)[1]).all()
    with pytest.raises(EngineError, match=r"holds fp16 arithmetic, which CUDAExecutionProvider cannot turn into fp32"):
        load_engine(path, engine="onnxruntime-cuda", precision="fp32")


def test_an_activation_is_undone_on_host_arrays(library, tmp_path):
    path = save_conv(tmp_path / "s.onnx", end="Softmax", spec=make_spec())
    engine = load_engine(path, engine="onnxruntime-cuda")
    expected = load_engine(path, engine="onnxruntime", device="cpu", batch=engine.batch)
    tiles, out = run(engine)
    want = np.empty_like(out)
    expected.run(tiles, want)
    np.testing.assert_allclose(out, want, atol=1e-4)


def test_an_activation_is_undone_on_arrays_of_the_device(library, tmp_path, monkeypatch):
    pytest.importorskip("numba_cuda")
    from tilelab.kernels import cuda_elementwise
    from tilelab.kernels.reference import SOFTMAX

    seen = []
    monkeypatch.setattr(cuda_elementwise, "undo_activation", lambda values, *how: seen.append((values, *how)))
    engine = load_engine(save_conv(tmp_path / "s.onnx", end="Softmax", spec=make_spec()), engine="onnxruntime-cuda")
    logits = np.zeros((engine.batch, engine.spec.values, *engine.tile), np.float32)
    engine.enqueue(np.zeros((engine.batch, 1, *engine.tile), np.float32), logits)
    ((values, *how),) = seen
    assert values is logits
    assert how == [SOFTMAX, engine.stream]


def test_each_port_is_bound_with_its_own_type(library, tmp_path):
    engine = load_engine(save_conv(tmp_path / "c.onnx", spec=make_spec()), engine="onnxruntime-cuda")
    seen = []
    engine._binding = SimpleNamespace(
        bind_input=lambda *words: seen.append(words[3]), bind_output=lambda *words: seen.append(words[3])
    )
    engine._session = SimpleNamespace(run_with_iobinding=lambda *_: None)
    engine.logits_dtype = np.dtype(np.float16)
    engine.enqueue(np.zeros(1, np.float32), np.zeros(1, np.float16))
    assert seen == [np.float32, np.float16]


def test_a_provider_that_does_not_load_is_an_error(library, tmp_path):
    library.broken = True
    path = save_conv(tmp_path / "c.onnx", spec=make_spec())
    with pytest.raises(EngineError, match=r"chose CPUExecutionProvider, not CUDAExecutionProvider: its CUDA, cuDNN or"):
        load_engine(path, engine="onnxruntime-cuda")


@pytest.mark.parametrize("name", NAMES)
def test_options_that_a_provider_refuses_are_told_and_nothing_is_printed(library, tmp_path, capsys, name):
    """By itself ONNX Runtime prints the reason, makes a session for the CPU and forgets it."""
    library.refusal = "no such option: trt_speed"
    path = save_conv(tmp_path / "c.onnx", spec=make_spec())
    with pytest.raises(ModelError, match=r"ONNX Runtime cannot load .*c\.onnx: no such option: trt_speed"):
        load_engine(path, engine=name)
    assert not capsys.readouterr().out


def test_failures_name_the_sizes(library, tmp_path):
    engine = load_engine(save_conv(tmp_path / "c.onnx", spec=make_spec()), engine="onnxruntime-cuda")
    library.failures.add("out of memory")
    with pytest.raises(EngineError, match=r"failed on a batch of 8 x 1 x 32 x 32: .*BFCArena failed"):
        run(engine)
    library.failures.clear()
    with pytest.raises(ModelError, match=r"gives NaN or infinite values .* with onnxruntime-cuda fp32"):
        load_engine(save_nan(tmp_path / "n.onnx", spec=make_spec()), engine="onnxruntime-cuda")


def test_a_provider_that_supports_some_of_the_gpus_is_not_asked_for_one_of_them(library, gpu, tmp_path, monkeypatch):
    monkeypatch.setattr("tilelab.engines.cuda.onnxruntime.gpu_count", lambda: 3)
    path = save_unet(tmp_path / "u.onnx", spec=make_spec(stride=4))
    with pytest.raises(EngineError, match="supports 2 of the 3 GPUs here and does not say which"):
        load_engine(path, engine="onnxruntime-rtx", device="cuda:1")


@pytest.mark.parametrize("module", [ort_cuda, ort_tensorrt, ort_rtx])
def test_probes_say_what_works(library, monkeypatch, module):
    found = module.probe()
    assert not found.reason
    works = {(t.device, t.precision) for t in found.targets if not t.reason}
    assert works == {(f"cuda:{i}", p) for i in range(2) for p in ("fp32", "fp16")}
    assert all("use the tensorrt engine" in t.reason for t in found.targets if t.precision == "int8")
    ort_gpu.probe.cache_clear()
    library.names, library.devices = ["CPUExecutionProvider"], []
    if module is ort_rtx:
        monkeypatch.setattr(library, "register_execution_provider_library", lambda name, path: None)
        assert module.probe().reason.startswith("NvTensorRTRTXExecutionProvider finds no GPU here that it supports")
        ort_gpu.probe.cache_clear()
        monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", None)
        assert "NvTensorRTRTXExecutionProvider does not load" in module.probe().reason
    else:
        assert f"has no {module.PROVIDER.provider}: reinstall it" in module.probe().reason


@pytest.mark.parametrize("module", [ort_cuda, ort_tensorrt, ort_rtx])
def test_probes_are_quick_and_plain_without_a_gpu(module, monkeypatch):
    """Here for real: no package or no driver, and no library is imported to find that out."""
    if not nvidia.driver_problem():
        pytest.skip("there is a GPU")
    ort_gpu.probe.cache_clear()
    monkeypatch.setattr(ort_gpu, "import_onnxruntime", lambda: pytest.fail("imported"))
    reason = module.probe().reason
    assert "not installed" in reason or "no NVIDIA driver" in reason
    assert nvidia.gpu_count() == 0


# --- AOTInductor


def make_network():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 3, padding=1)
    )


def write_package(path, **changes):
    """A package as torch lays it out, with our description but without code."""
    torch = pytest.importorskip("torch")
    facts = {"torch": str(torch.__version__), "device": "cuda", "capability": (9, 0), "batch": 2, "precision": "fp32"}
    compiled = Compiled(**(facts | {"dtype": "float32"} | changes))
    fields = {"tilelab": make_spec().to_json(), "tilelab_compiled": msgspec.json.encode(compiled).decode()}
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("n/data/aotinductor/model/c_metadata.json", json.dumps(fields))
        out.writestr("n/version", "0")
    return path


@pytest.fixture
def loader(monkeypatch, gpu):
    """torch's loader of compiled code gives the network itself; the fake GPU's arrays are torch's."""
    inductor = pytest.importorskip("torch._inductor")
    import torch

    engine = aotinductor_cuda.AotInductorCudaEngine
    aotinductor.probe.cache_clear()
    seen = SimpleNamespace(runners=[], tf32=[])

    def load(path, run_single_threaded, device_index):
        seen.runners.append((device_index, run_single_threaded))
        network = make_network()
        network.register_forward_hook(lambda *_: seen.tf32.append(torch.backends.cudnn.allow_tf32))
        return network

    monkeypatch.setattr(inductor, "aoti_load_package", load)
    monkeypatch.setattr(engine, "_tensor", lambda self, array: torch.from_numpy(array))
    monkeypatch.setattr(engine, "_in_order", lambda self: nullcontext())
    yield seen
    aotinductor.probe.cache_clear()


def check_package(path, device):
    import torch

    assert read_spec(path) == make_spec()
    file = read_model(path)
    assert (file.format, file.precision, file.inputs[0].shape) == ("aotinductor", "fp32", (2, 1, 32, 32))
    engine = load_engine(path)
    assert (engine.name, engine.batch, engine.device) == ("aotinductor", 2, device)
    tiles, out = run(engine)
    with torch.no_grad():
        expected = make_network()(torch.from_numpy(tiles)).numpy()
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert engine.versions()["torch"] == torch.__version__
    engine.close()


def test_a_package_describes_itself_and_computes(loader, tmp_path):
    import torch

    before = torch.backends.cudnn.allow_tf32
    check_package(write_package(tmp_path / "n.pt2"), "cuda:0")
    assert loader.runners == [(0, True)], "the other runner waits for its previous run at every call"
    assert loader.tf32
    assert not any(loader.tf32), "fp32 is no TF32"
    assert torch.backends.cudnn.allow_tf32 is before


def test_a_fault_is_told_and_not_how_torch_would_have_it_debugged(loader, tmp_path, monkeypatch):
    engine = load_engine(write_package(tmp_path / "n.pt2"))
    words = """CUDA error: an illegal memory access was encountered
Search for `cudaErrorIllegalAddress' in https://docs.nvidia.com/cuda/cuda-runtime-api for more information.
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""

    def fail(tiles):
        raise RuntimeError(words)

    monkeypatch.setattr(engine, "_network", fail)
    reason = r"failed on a batch of 2 x 1 x 32 x 32: CUDA error: an illegal memory access was encountered$"
    with pytest.raises(EngineError, match=reason):
        run(engine)


def test_a_package_for_the_cpu_runs_there_and_nowhere_else(loader, tmp_path):
    path = write_package(tmp_path / "n.pt2", device="cpu", capability=None, cpu=cpu_features())
    check_package(path, "cpu")
    frozen = np.zeros((2, 1, 32, 32), np.float32)
    frozen.flags.writeable = False
    load_engine(path).run(frozen, np.empty((2, 2, 32, 32), np.float32))
    with pytest.raises(EngineError, match="it was compiled for cpu"):
        load_engine(path, device="cuda")
    with pytest.raises(EngineError, match="it was compiled for cuda"):
        load_engine(write_package(tmp_path / "g.pt2"), device="cpu")
    with pytest.raises(EngineError, match=r"was compiled for a CPU with avx9000, this one has .*: export it again"):
        load_engine(write_package(tmp_path / "c.pt2", device="cpu", capability=None, cpu="avx9000"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::Warning")
def test_a_network_is_compiled_for_real(tmp_path):
    if aotinductor_build.find_compiler() is None:
        pytest.skip("AOTInductor needs a C++ compiler")
    path = tmp_path / "n.pt2"
    aotinductor_build.compile_package(make_network(), make_spec(), path, batch=2, target="cpu")
    check_package(path, "cpu")
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            assert b"site-packages" not in archive.read(name)
            assert str(Path.home()).encode() not in archive.read(name)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (
            """device_utils.h:14:10: fatal error: cuda.h: No such file or directory
   14 | #include <cuda.h>
      |          ^~~~~~~~
compilation terminated.""",
            "cuda.h: No such file or directory: it needs a CUDA toolkit, which torch does not bring: .* CUDA_HOME",
        ),
        (
            """/usr/bin/ld: cannot find -lcuda: No such file or directory
collect2: error: ld returned 1 exit status""",
            "cannot find -lcuda: No such file or directory: it needs a CUDA toolkit, .*",
        ),
        (
            """n.cpp:7:3: error: 'x' was not declared
    7 |   x;
n.cpp:8:1: error: expected""",
            "'x' was not declared",
        ),
    ],
    ids=["header", "library", "code"],
)
def test_what_a_compiler_said_is_told(monkeypatch, tmp_path, output, reason):
    """Not its last line, which says that it has stopped."""
    inductor = pytest.importorskip("torch._inductor")

    def fail(*_, **__):
        command = "g++ n.cpp -o n.so"
        raise RuntimeError(f"CppCompileError: C++ compile error\n\nCommand:\n{command}\n\nOutput:\n{output}\n")

    monkeypatch.setattr(aotinductor_build, "find_compiler", lambda: "g++")
    monkeypatch.setattr(inductor, "aoti_compile_and_package", fail)
    with pytest.raises(ModelError, match=rf"^AOTInductor cannot compile tiny: {reason}$"):
        aotinductor_build.compile_package(make_network(), make_spec(), tmp_path / "n.pt2", batch=2, target="cpu")


@pytest.fixture
def two_gpus(monkeypatch):
    """Torch as where there are two GPUs of different kinds; what was made on which, and which was current."""
    torch = pytest.importorskip("torch")
    current, seen = [0], []

    @contextmanager
    def device(index):
        current.append(index)
        yield
        current.pop()

    def package(program, package_path, inductor_configs):
        seen.append(("compiled", current[-1]))
        with zipfile.ZipFile(package_path, "w") as archive:
            archive.writestr("n/n_metadata.json", json.dumps(inductor_configs["aot_inductor.metadata"]))

    monkeypatch.setattr(aotinductor_build, "find_compiler", lambda: "g++")
    monkeypatch.setattr(aotinductor_build, "driver_problem", lambda: "")
    monkeypatch.setattr("tilelab.machine.nvidia.driver_problem", lambda: "")
    monkeypatch.setattr("tilelab.machine.nvidia.gpu_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: ((8, 0), (9, 0))[index])
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, place, _: seen.append(("network", place)) or self)
    monkeypatch.setattr(torch, "zeros", lambda *_, device, **__: seen.append(("tiles", device)))
    monkeypatch.setattr(torch.export, "export", lambda *_: seen.append(("exported", current[-1])))
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", package)
    return seen


@pytest.mark.parametrize(("target", "index"), [("cuda:1", 1), ("cuda:0", 0), ("cuda", 0)])
def test_a_network_is_compiled_on_the_gpu_that_was_named(two_gpus, tmp_path, target, index):
    path = tmp_path / "n.pt2"
    aotinductor_build.compile_package(make_network(), make_spec(), path, batch=2, target=target)
    place = f"cuda:{index}"
    assert two_gpus == [("network", place), ("tiles", place), ("exported", index), ("compiled", index)]
    compiled = read_compiled(path)
    assert (compiled.device, compiled.capability) == ("cuda", ((8, 0), (9, 0))[index])


@pytest.mark.parametrize(
    ("device", "asked"), [("cuda:1", ("cuda:1", 8)), ("cuda", ("cuda", 8)), ("auto", ("cuda", 8)), ("cpu", ("cpu", 1))]
)
def test_an_export_asks_for_the_device_that_was_named(two_gpus, tmp_path, monkeypatch, device, asked):
    source = CheckpointSource.__new__(CheckpointSource)
    source.network = make_network()
    found = []
    monkeypatch.setattr(
        aotinductor_build, "compile_package", lambda *_, target, batch, **__: found.append((target, batch))
    )
    Writing(source, make_spec(), "fp32", tmp_path / "n.pt2", Request(device=device), tmp_path).write()
    assert found == [asked]


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_compiled(two_gpus, tmp_path, monkeypatch):
    def compile_for(target):
        aotinductor_build.compile_package(make_network(), make_spec(), tmp_path / "n.pt2", batch=2, target=target)

    with pytest.raises(EngineError, match=r"^a \.pt2 cannot be compiled for cuda:2: the driver shows 2 GPUs here"):
        compile_for("cuda:2")
    with pytest.raises(EngineError, match=r"^device 'cuda:1,2' is neither a GPU nor the CPU"):
        compile_for("cuda:1,2")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(EngineError, match=r"for cuda:1: torch .* finds 0 GPUs"):
        compile_for("cuda:1")
    monkeypatch.setattr(aotinductor_build, "driver_problem", lambda: "no NVIDIA driver is installed: use --device cpu")
    with pytest.raises(EngineError, match=r"for cuda: no NVIDIA driver is installed: use --device cpu"):
        compile_for("cuda")
    assert two_gpus == []


def test_compiling_needs_a_compiler(monkeypatch, tmp_path):
    pytest.importorskip("torch")
    monkeypatch.setattr(aotinductor_build.shutil, "which", lambda name: None)
    with pytest.raises(EngineError, match=r"needs a C\+\+ compiler and finds none: install g\+\+"):
        aotinductor_build.compile_package(make_network(), make_spec(), tmp_path / "n.pt2", batch=2, target="cpu")


def test_a_package_for_something_else_is_refused(loader, tmp_path):
    with pytest.raises(EngineError, match=r"was compiled by torch 1.2.3, here is .*: export it again"):
        load_engine(write_package(tmp_path / "a.pt2", torch="1.2.3"))
    with pytest.raises(EngineError, match=r"was compiled for compute capability 8.6, Fake H100 has 9.0"):
        load_engine(write_package(tmp_path / "b.pt2", capability=(8, 6)))
    path = write_package(tmp_path / "n.pt2")
    with pytest.raises(EngineError, match=r"was built for fp32: build another for fp16"):
        load_engine(path, precision="fp16")
    (tmp_path / "c.pt2").write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match="is not a PyTorch package, or it is truncated"):
        load_engine(tmp_path / "c.pt2")
    with zipfile.ZipFile(tmp_path / "d.pt2", "w") as archive:
        archive.writestr("data/x", b"y")
    with pytest.raises(ModelError, match="does not describe its model"):
        load_engine(tmp_path / "d.pt2")


def test_a_package_must_be_named_so(tmp_path):
    pytest.importorskip("torch")
    with pytest.raises(OutputError, match=r"needs a name that ends with .pt2"):
        aotinductor_build.compile_package(None, make_spec(), tmp_path / "m.onnx", batch=1, target="cpu")
    with pytest.raises(EngineError, match="compiles for fp32, fp16, bf16, not int8"):
        aotinductor_build.compile_package(
            None, make_spec(), tmp_path / "m.pt2", batch=1, precision="int8", target="cpu"
        )


def test_a_package_keeps_no_place_of_this_machine(tmp_path):
    with zipfile.ZipFile(tmp_path / "n.pt2", "w") as made:
        for name in ("n/k.cpp", "n/k.so", "n/k.cubin"):
            made.writestr(name, f"1{Path.cwd()}2{Path.home()}3")
    aotinductor_build._forget_machine(tmp_path / "n.pt2")
    with zipfile.ZipFile(tmp_path / "n.pt2") as cleaned:
        found = {name: cleaned.read(name).decode() for name in cleaned.namelist()}
    assert found["n/k.cpp"] == ""
    for name in ("n/k.so", "n/k.cubin"):
        assert str(Path.cwd()) not in found[name]
        assert len(found[name]) == 3 + len(str(Path.cwd())) + len(str(Path.home()))
