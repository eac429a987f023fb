"""TensorRT's Python surface as far as tilelab may use it: what versions 10 and 11 have in common, and nothing else.

Names, arguments and results follow NVIDIA's bindings (``python/src/infer/pyCore.cpp``, ``parsers/pyOnnx.cpp``) and the
list of APIs removed in 11.  Objects have slots, so that setting anything that does not exist raises, as pybind11's do.
A fake plan is JSON; the network it stands for gives ``(k + 1) * mean of the channels`` for output `k`.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from fake_gpu import FakeGpu, array_at

from tilelab.engines.files.onnx import read_onnx
from tilelab.errors import ModelError

Severity = enum.IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING", start=0)


class ILogger:
    Severity = Severity

    def __init__(self) -> None:
        self._alive = True


class IProgressMonitor:
    def __init__(self) -> None:
        self._alive = True


DataType = enum.Enum("DataType", "FLOAT HALF INT8 INT32", start=0)
TensorIOMode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT", start=0)
MemoryPoolType = enum.IntEnum("MemoryPoolType", "WORKSPACE", start=0)
HardwareCompatibilityLevel = enum.Enum(
    "HardwareCompatibilityLevel", "NONE AMPERE_PLUS SAME_COMPUTE_CAPABILITY", start=0
)
_DTYPES = {"float32": DataType.FLOAT, "float16": DataType.HALF, "int32": DataType.INT32}


class ITimingCache(SimpleNamespace):
    def serialize(self) -> bytes:
        return self.data


def used_names(module: FakeTensorRT) -> set[str]:
    """Every name that this stand-in answers to, its own fields left out: the real library must have them all."""
    kinds = [IOptimizationProfile, IBuilderConfig, ICudaEngine, IExecutionContext, ITimingCache]
    kinds += [module.Builder, module.OnnxParser, module.Runtime, Severity, DataType, TensorIOMode, MemoryPoolType]
    kinds += [HardwareCompatibilityLevel, module.BuilderFlag, module.NetworkDefinitionCreationFlag]
    own = {"flags", "pools", "profiles", "shapes", "name", "value"}
    return {name for kind in kinds for name in vars(kind) if not name.startswith("_")} - own


class IOptimizationProfile:
    __slots__ = ("shapes",)

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None:  # noqa: A002
        self.shapes[input] = (tuple(min), tuple(opt), tuple(max))


class IBuilderConfig:
    __slots__ = (
        "_cache",
        "_log",
        "_version",
        "builder_optimization_level",
        "flags",
        "hardware_compatibility_level",
        "pools",
        "profiles",
        "progress_monitor",
    )

    def __init__(self, version: str, log: ILogger) -> None:
        self._version, self._log, self._cache = version, log, None
        self.flags = {"TF32"}
        self.pools: dict[MemoryPoolType, int] = {}
        self.profiles: list[IOptimizationProfile] = []
        self.builder_optimization_level = 3
        self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE
        self.progress_monitor: IProgressMonitor | None = None

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag.name)

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self.pools[MemoryPoolType(pool)] = int(pool_size)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(data=bytes(serialized_timing_cache))

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        if cache.data and not cache.data.startswith(self._version.encode()):
            return False
        self._cache = ITimingCache(data=cache.data or self._version.encode())
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


class ICudaEngine:
    def __init__(self, module: FakeTensorRT, plan: dict[str, Any], log: ILogger) -> None:
        self._module, self._plan, self._log = module, plan, log
        self.num_io_tensors = len(plan["tensors"])
        self.device_memory_size_v2 = 123 << 20

    def get_tensor_name(self, index: int) -> str:
        return self._plan["tensors"][index]["name"]

    def _tensor(self, name: str) -> dict[str, Any]:
        return next(t for t in self._plan["tensors"] if t["name"] == name)

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode[self._tensor(name)["mode"]]

    def get_tensor_dtype(self, name: str) -> DataType:
        return _DTYPES[self._tensor(name)["dtype"]]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert profile_index == 0
        return [tuple(s) for s in self._plan["profile"]]

    def create_execution_context(self) -> IExecutionContext | None:
        if "context" in self._module.failures:
            self._log.log(Severity.ERROR, "[executionContext.cpp] CUDA error 2: out of memory")
            return None
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._shape: tuple[int, ...] | None = None
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        least, _, most = self._engine.get_tensor_profile_shape(name, 0)
        inside = len(shape) == len(least) and all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True))
        self._shape = tuple(shape) if inside else None
        return inside

    def infer_shapes(self) -> list[str]:
        return ["second"] if "second input" in self._engine._module.failures else []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        tensor = self._engine._tensor(name)
        if tensor["mode"] == "INPUT" or self._shape is None:
            return self._shape or (-1,)
        return (self._shape[0], tensor["shape"][1], *self._shape[2:])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert isinstance(memory, int)
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        module = self._engine._module
        module.gpu.stream_at(stream_handle)
        if "execute" in module.failures:
            self._engine._log.log(Severity.ERROR, "[enqueue.cpp] an illegal memory access was encountered")
            return False
        arrays = {}
        for tensor in self._engine._plan["tensors"]:
            name = tensor["name"]
            if name not in self._addresses:
                self._engine._log.log(Severity.ERROR, f"[enqueue.cpp] Neither address nor allocator is set for {name}")
                return False
            array = array_at(self._addresses[name], self.get_tensor_shape(name), tensor["dtype"])
            arrays.setdefault(tensor["mode"], []).append(array)
        mean = arrays["INPUT"][0].astype(np.float32).mean(axis=1)
        for output in arrays["OUTPUT"]:
            for k in range(output.shape[1]):
                output[:, k] = (k + 1) * mean
        return True


class FakeTensorRT(ModuleType):
    """The module ``tensorrt`` of one version.

    failures: what shall go wrong: ``parse``, ``build``, ``context``, ``execute``, ``second input``.
    """

    def __init__(self, version: str, gpu: FakeGpu) -> None:
        super().__init__("tensorrt")
        self.__version__ = version
        self.gpu = gpu
        self.failures: set[str] = set()
        self.configs: list[IBuilderConfig] = []
        self.networks: list[int] = []
        self.BuilderFlag = enum.IntEnum("BuilderFlag", "TF32", start=0)
        self.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", "STRONGLY_TYPED", start=1)
        for item in (ILogger, IProgressMonitor, DataType, TensorIOMode, MemoryPoolType, HardwareCompatibilityLevel):
            setattr(self, item.__name__, item)
        module = self

        class OnnxParser:
            def __init__(self, network: Any, logger: ILogger) -> None:
                assert logger._alive, "ILogger.__init__ was not called"
                self._network, self.num_errors = network, 0

            def parse_from_file(self, model: str) -> bool:
                assert isinstance(model, str)
                try:
                    self._network.file = read_onnx(Path(model))
                except ModelError:
                    self.num_errors = 1
                self.num_errors |= "parse" in module.failures
                return not self.num_errors

            def get_error(self, index: int) -> Any:
                assert index < self.num_errors
                return SimpleNamespace(desc=lambda: "Unsupported operator NonMaxSuppression")

        class Builder:
            create_optimization_profile = IOptimizationProfile

            def __init__(self, logger: ILogger) -> None:
                assert logger._alive, "ILogger.__init__ was not called"
                self._log = logger

            def create_network(self, flags: int = 0) -> Any:
                module.networks.append(flags)
                return SimpleNamespace()

            def create_builder_config(self) -> IBuilderConfig:
                module.configs.append(IBuilderConfig(version, self._log))
                return module.configs[-1]

            def build_serialized_network(self, network: Any, config: IBuilderConfig) -> bytes | None:
                if config.progress_monitor and not _report_progress(config.progress_monitor):
                    return None
                if "build" in module.failures:
                    self._log.log(Severity.WARNING, "this is only a warning")
                    self._log.log(Severity.ERROR, "[optimizer.cpp] Could not find any implementation\n for node Conv_1")
                    return None
                file = network.file
                profile = [file.inputs[0].shape] * 3
                if not all(isinstance(n, int) for n in profile[0]):
                    profile = list(config.profiles[0].shapes[file.inputs[0].name])
                tensors = [
                    {"name": p.name, "mode": mode, "dtype": p.dtype, "shape": [-1, *p.shape[1:]]}
                    for mode, ports in (("INPUT", file.inputs), ("OUTPUT", file.outputs))
                    for p in ports
                ]
                return b"ptrt" + json.dumps({"version": version, "profile": profile, "tensors": tensors}).encode()

        class Runtime:
            def __init__(self, logger: ILogger) -> None:
                assert logger._alive, "ILogger.__init__ was not called"
                self._log = logger

            def deserialize_cuda_engine(self, serialized_engine: memoryview) -> ICudaEngine | None:
                data = bytes(serialized_engine)
                plan = json.loads(data[4:]) if data.startswith(b"ptrt") else {"version": version}
                if "tensors" not in plan:
                    self._log.log(Severity.ERROR, "[runtime.cpp] Magic tag does not match")
                elif plan["version"] != version:
                    self._log.log(
                        Severity.ERROR, f"The engine plan file is not compatible: expecting library version {version}"
                    )
                else:
                    return ICudaEngine(module, plan, self._log)
                return None

        self.OnnxParser, self.Builder, self.Runtime = OnnxParser, Builder, Runtime


def _report_progress(monitor: Any) -> bool:
    """A build of two phases, one in the other; false when the monitor cancels it."""
    assert monitor._alive, "IProgressMonitor.__init__ was not called"
    monitor.phase_start("Building engine", None, 4)
    monitor.phase_start("Tactics", "Building engine", 2)
    for phase, step in (("Tactics", 0), ("Tactics", 1), ("Building engine", 0)):
        if not monitor.step_complete(phase, step):
            return False
    monitor.phase_finish("Tactics")
    monitor.phase_finish("Building engine")
    return True
