"""NVIDIA's TensorRT-RTX plug-in for ONNX Runtime: GeForce and RTX GPUs, compiles in seconds on the machine itself."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tilelab.engines.cuda import onnxruntime as ort_gpu
from tilelab.engines.cuda.onnxruntime import OrtGpuEngine, Provider, cache_folder, provider_names
from tilelab.engines.loading import Availability, LoadRequest

_NAME = "NvTensorRTRTXExecutionProvider"


def _options(engine: OrtGpuEngine) -> dict[str, str]:
    return {
        "nv_runtime_cache_path": str(cache_folder("onnxruntime-rtx", *engine.identity)),
        "has_user_compute_stream": "1",
        **engine.stream_options,
    }


def _register(ort: Any) -> None:
    if _NAME not in provider_names(ort):
        plugin = import_module("onnxruntime_ep_nv_tensorrt_rtx")
        ort.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())


PROVIDER = Provider(
    "onnxruntime-rtx", _NAME, "onnxruntime-ep-nv-tensorrt-rtx-cu13", ("fp32", "fp16"), _options, _register
)


def probe() -> Availability:
    """What it can do here."""
    return ort_gpu.probe(PROVIDER)


def load(request: LoadRequest) -> OrtGpuEngine:
    """A session for one batch shape.

    Raises:
        ModelError: ONNX Runtime cannot run the model, or it does not fit its description.
        EngineError: the plug-in does not load or knows no such GPU.
    """
    return OrtGpuEngine(request, PROVIDER)
