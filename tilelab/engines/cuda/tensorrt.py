"""TensorRT engine files on an NVIDIA GPU, through the calls that TensorRT 10.x and 11 have in common."""

from __future__ import annotations

import math
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from tilelab.engines.base import EngineMemory
from tilelab.engines.builders.tensorrt import import_tensorrt, make_log
from tilelab.engines.cuda.gpu_engine import GpuEngine
from tilelab.engines.files.tensorrt_plan import check_header, open_plan, read_header
from tilelab.engines.loading import Availability, LoadRequest, Target, check_output
from tilelab.errors import EngineError, ModelError, TilelabError
from tilelab.kernels import device
from tilelab.machine.nvidia import driver_problem, gpu_count
from tilelab.spec import PRECISIONS
from tilelab.text import explain, size_text

_ITEM_BYTES = {"FLOAT": 4, "INT32": 4, "HALF": 2, "BF16": 2, "INT8": 1, "UINT8": 1, "BOOL": 1, "FP8": 1}


@lru_cache(maxsize=1)
def probe() -> Availability:
    """What TensorRT can do here."""
    if find_spec("tensorrt") is None:
        return Availability("", "TensorRT is not installed: pip install tensorrt (it comes from NVIDIA's own index)")
    problem = driver_problem()
    try:
        version = str(import_tensorrt().__version__)
    except TilelabError as error:
        return Availability("", explain(error))
    if int(version.partition(".")[0]) < 10:
        problem = f"TensorRT {version} is too old: 10.1 or later is needed"
    targets = tuple(Target(f"cuda:{i}", precision) for i in range(gpu_count()) for precision in PRECISIONS)
    return Availability(version, problem, targets)


def load(request: LoadRequest) -> TensorRtEngine:
    """An engine file, ready to run.

    Raises:
        ModelError: the file is damaged or does not fit its description.
        EngineError: it was built for another GPU, TensorRT or system, or the device has too little memory.
    """
    return TensorRtEngine(request)


class TensorRtEngine(GpuEngine):
    """A plan and its execution context."""

    name = "tensorrt"

    def __init__(self, request: LoadRequest) -> None:
        super().__init__(request)
        path = request.file.path
        trt = import_tensorrt()
        self._version = str(trt.__version__)
        header, _, _ = read_header(path)
        if header is not None:
            check_header(path, header, self._version, self.info.capability, self.info.name)
        if request.file.precision != request.precision:
            raise EngineError(
                f"{path} was built for {request.file.precision}: it cannot run in {request.precision}, build another"
            )
        self._log = make_log(trt)
        self._runtime = trt.Runtime(self._log)
        with open_plan(path) as plan, device.memory_errors(len(plan)):
            self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            built = "" if header is None else f", built with {header.tensorrt} on {header.gpu}"
            raise EngineError(
                f"TensorRT {self._version} on {self.info.name} cannot load {path}{built}: {self._log.tell()}"
            )
        self._tiles_name, self._logits_name = self._tensors(trt)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(
                f"GPU out of memory: {path} needs {int(self._engine.device_memory_size_v2) / 2**30:.2f} GiB of scratch "
                f"memory ({self._log.tell()}): lower --batch when building it"
            )
        self.memory = EngineMemory(device_bytes=int(self._engine.device_memory_size_v2))
        self._fix_shape()
        self._unused = self._address_unused(trt)

    def _tensors(self, trt: Any) -> tuple[str, str]:
        """Names of the input and of the output used; their types become the engine's."""
        engine, request = self._engine, self._request
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        outputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.OUTPUT]
        target = request.target.name if request.target.name in outputs else outputs[0] if len(outputs) == 1 else None
        if len(inputs) != 1 or target is None:
            raise ModelError(
                f"{request.file.path} has inputs {', '.join(inputs)} and outputs {', '.join(outputs)}: "
                "tilelab needs one of each"
            )
        self.use_types(self._numpy_type(trt, inputs[0]), self._numpy_type(trt, target))
        return inputs[0], target

    def _numpy_type(self, trt: Any, name: str) -> np.dtype[Any]:
        kind = self._engine.get_tensor_dtype(name)
        if kind == trt.DataType.FLOAT:
            return np.dtype(np.float32)
        if kind == trt.DataType.HALF:
            return np.dtype(np.float16)
        raise ModelError(f"{self._request.file.path} has {name} of type {kind}: tilelab needs float32 or float16")

    def _fix_shape(self) -> None:
        """Set the batch's shape and check what comes out of it."""
        shape = self._request.input_shape
        path, context = self._request.file.path, self._context
        if not context.set_input_shape(self._tiles_name, shape):
            least, _, most = self._engine.get_tensor_profile_shape(self._tiles_name, 0)
            raise ModelError(
                f"{path} takes batches from {size_text(tuple(least))} to {size_text(tuple(most))}, not "
                f"{size_text(shape)}: change --batch or --tile, or build it for that"
            )
        missing = context.infer_shapes()
        if missing:
            raise ModelError(f"{path} needs more inputs than tiles: {', '.join(missing)}")
        check_output(self._request, tuple(context.get_tensor_shape(self._logits_name)))

    def _address_unused(self, trt: Any) -> list[Any]:
        """Memory for the outputs that nobody asked for: TensorRT writes them all, and refuses to run without."""
        engine, context, kept = self._engine, self._context, []
        for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)):
            if name == self._logits_name or engine.get_tensor_mode(name) != trt.TensorIOMode.OUTPUT:
                continue
            shape, kind = tuple(context.get_tensor_shape(name)), engine.get_tensor_dtype(name).name
            if min(shape, default=0) < 0:
                raise ModelError(f"{self._request.file.path} has an output {name} whose size depends on its values")
            kept.append(device.empty((max(1, math.prod(shape)) * _ITEM_BYTES.get(kind, 8),), np.uint8))
            context.set_tensor_address(name, device.pointer(kept[-1]))
        return kept

    def _enqueue(self, tiles: device.DeviceArray, logits: device.DeviceArray) -> None:
        context = self._context
        addressed = context.set_tensor_address(self._tiles_name, device.pointer(tiles)) and context.set_tensor_address(
            self._logits_name, device.pointer(logits)
        )
        if not addressed or not context.execute_async_v3(device.stream_handle(self.stream)):
            raise EngineError(
                f"TensorRT failed on a batch of {size_text(self._request.input_shape)}: {self._log.tell()}"
            )

    def versions(self) -> dict[str, str]:
        """Of TensorRT, and the GPU and driver that choose its kernels."""
        return {"tensorrt": self._version, "gpu": self.info.name, "driver": self.info.driver}

    def close(self) -> None:
        """Free the GPU's memory."""
        super().close()
        self._context = self._engine = self._runtime = None
        self._unused = []
