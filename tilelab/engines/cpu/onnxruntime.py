"""ONNX Runtime on the CPU; the only module that imports onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from tilelab.arrays import Array
from tilelab.engines.loading import (
    Availability,
    FileEngine,
    LoadRequest,
    Target,
    affordable_streams,
    refuse,
)
from tilelab.errors import EngineError
from tilelab.machine.cpu import cpu_features
from tilelab.machine.memory import resident_memory
from tilelab.text import explain, install_hint, size_text

_PIECES = 1.25  # of what batches need that meet: the library's memory comes to lie in pieces that fit none
_FATAL = 4  # the only severity still logged: everything else reaches the user as an exception


def import_onnxruntime() -> Any:
    """The library, imported without its telemetry: since 1.29 that reports to Microsoft unless told not to before."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # on Windows
    onnxruntime.set_default_logger_severity(_FATAL)
    return onnxruntime


@lru_cache(maxsize=1)
def probe() -> Availability:
    """What ONNX Runtime can do here."""
    try:
        onnxruntime = import_onnxruntime()
    except ImportError as error:
        return Availability("", f"onnxruntime cannot be imported ({explain(error)}): {install_hint('cpu')}")
    lacks = "ONNX Runtime has no {} arithmetic on the CPU: use openvino"
    targets = (
        Target("cpu", "fp32"),
        Target("cpu", "int8"),
        Target("cpu", "bf16", lacks.format("bf16")),
        Target("cpu", "fp16", lacks.format("fp16")),
    )
    return Availability(onnxruntime.__version__, targets=targets)


def load(request: LoadRequest) -> OrtEngine:
    """A session for one batch shape.

    Raises:
        ModelError: ONNX Runtime cannot run the model, or it does not fit its description.
    """
    return OrtEngine(request)


class OrtEngine(FileEngine):
    """A model in ONNX Runtime: each core computes a batch of its own, in the thread that calls.

    Several cores on one would give other last bits with each number of cores (1.31: of 3-D convolutions, from 3 cores
    on).
    """

    name = "onnxruntime"

    def __init__(self, request: LoadRequest) -> None:
        super().__init__(request)
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL
        options.use_deterministic_compute = True
        options.intra_op_num_threads = 1
        # Else every batch asks for all its memory as one block, and where several are under way at a time small pieces
        # are cut off the blocks that are free just then: the next batch needs another, long after loading.
        options.enable_mem_pattern = False
        # Without it, and VNNI or AMX, products of bytes are added in 16 bits, which 2 * 255 * 127 is too large for.
        options.add_session_config_entry("session.x64quantprecision", "1")
        for name, size in zip(request.source.shape, request.input_shape, strict=False):
            if isinstance(name, str) and name:
                options.add_free_dimension_override_by_name(name, size)
        provider = "CPUExecutionProvider"
        try:
            session = onnxruntime.InferenceSession(str(request.file.path), options, providers=[provider])
        except Exception as error:  # the library's own exceptions share no base class
            raise refuse("ONNX Runtime", request, error) from error
        if session.get_providers()[0] != provider:
            raise EngineError(f"ONNX Runtime chose {session.get_providers()[0]}, not {provider}: reinstall onnxruntime")
        self._session: Any = session
        self._version: str = onnxruntime.__version__
        self._idle_bytes = resident_memory()
        self._batch_bytes = self._first_run()
        count = affordable_streams(request.threads, self._batch_bytes)
        self._bindings: list[Any] = [session.io_binding() for _ in range(count)]
        self._open_streams(count, np.dtype(request.source.dtype), np.dtype(request.target.dtype))

    def _first_run(self) -> int:
        """Bytes that one batch takes; and its shape: bound to a buffer of another, the session would not explain."""
        request = self._request
        feed = {request.source.name: np.zeros(request.native_input_shape, request.source.dtype)}
        before = resident_memory()
        try:
            results = self._session.run([target.name for target in request.targets], feed)
        except Exception as error:
            raise refuse("ONNX Runtime", request, error) from error
        self.fit_outputs([result.shape for result in results])
        return max(
            resident_memory() - before, sum(int(r.nbytes) for r in results)
        )  # memory that was there already may have been enough

    def _compute(self, source: Array, targets: tuple[Array, ...], stream: int) -> None:
        names, binding = self._request, self._bindings[stream]
        binding.bind_input(names.source.name, "cpu", 0, source.dtype, source.shape, source.ctypes.data)
        for port, target in zip(names.targets, targets, strict=True):
            binding.bind_output(port.name, "cpu", 0, target.dtype, target.shape, target.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise EngineError(
                f"ONNX Runtime failed on a batch of {size_text(source.shape)}: {explain(error)}"
            ) from error

    def measure_memory(self) -> None:
        """Set `memory`; the trial's batches need not have needed most at the same time, as any of a run may."""
        super().measure_memory()
        pieces = _PIECES if self.streams > 1 else 1.0  # one batch after the other finds what the one before it had
        more = int(pieces * self.streams * self._batch_bytes) - (resident_memory() - self._idle_bytes)
        self.memory = replace(self.memory, more_host_bytes=max(0, more))

    def versions(self) -> Mapping[str, str]:
        """Of ONNX Runtime, and the instruction sets that choose its kernels."""
        return {"onnxruntime": self._version, "cpu": cpu_features()}

    def close(self) -> None:
        """Drop the session."""
        self._bindings, self._session = [], None
