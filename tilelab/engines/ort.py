"""ONNX Runtime on the CPU; the only module that imports onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from tilelab.engines.loading import (
    Array,
    Availability,
    FileEngine,
    LoadRequest,
    Target,
    check_output,
    explain,
    refuse,
    size_text,
)
from tilelab.engines.machine import cpu_features
from tilelab.errors import EngineError

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
        return Availability("", f"onnxruntime cannot be imported ({explain(error)}): pip install tilelab[cpu]")
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
    """A model in ONNX Runtime."""

    name = "onnxruntime"

    def __init__(self, request: LoadRequest) -> None:
        super().__init__(request)
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL
        options.use_deterministic_compute = True
        if request.threads is not None:
            options.intra_op_num_threads = request.threads
        # Threads that spin between runs would take the cores from reading and blending.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
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
        self._binding: Any = session.io_binding()
        self._version: str = onnxruntime.__version__
        self._check_shape()

    def _check_shape(self) -> None:
        """Bound to a buffer of another shape the session would only give an obscure message."""
        request = self._request
        outputs = {port.name: port.shape for port in self._session.get_outputs()}
        shape = outputs[request.target.name]
        if not all(isinstance(n, int) for n in shape):  # known only by running
            feed = {request.source.name: np.zeros(request.input_shape, request.source.dtype)}
            try:
                (result,) = self._session.run([request.target.name], feed)
            except Exception as error:
                raise refuse("ONNX Runtime", request, error) from error
            shape = result.shape
        check_output(request, tuple(shape))

    def _compute(self, source: Array, target: Array) -> None:
        names = self._request
        self._binding.bind_input(names.source.name, "cpu", 0, source.dtype, source.shape, source.ctypes.data)
        self._binding.bind_output(names.target.name, "cpu", 0, target.dtype, target.shape, target.ctypes.data)
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise EngineError(
                f"ONNX Runtime failed on a batch of {size_text(source.shape)}: {explain(error)}"
            ) from error

    def versions(self) -> Mapping[str, str]:
        """Of ONNX Runtime, and the instruction sets that choose its kernels."""
        return {"onnxruntime": self._version, "cpu": cpu_features()}

    def close(self) -> None:
        """Drop the session."""
        self._binding = self._session = None
