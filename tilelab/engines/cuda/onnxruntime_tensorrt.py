"""ONNX Runtime's TensorRT provider: builds an engine when a model is first loaded and keeps it."""

from __future__ import annotations

import os

from tilelab.engines.cuda import onnxruntime as ort_gpu
from tilelab.engines.cuda.onnxruntime import OrtGpuEngine, Provider, cache_folder
from tilelab.engines.loading import Availability, LoadRequest


def _options(engine: OrtGpuEngine) -> dict[str, str]:
    """Switches are words: of this provider, unlike the others, ONNX Runtime's bindings refuse 1 and 0."""
    folder = str(cache_folder("onnxruntime-tensorrt", *engine.identity))
    return {
        "device_id": str(engine.index),
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": folder,
        "trt_fp16_enable": str(engine.precision == "fp16"),
        **engine.stream_options,
    }


PROVIDER = Provider("onnxruntime-tensorrt", "TensorrtExecutionProvider", "onnxruntime-gpu", ("fp32", "fp16"), _options)


def probe() -> Availability:
    """What it can do here."""
    return ort_gpu.probe(PROVIDER)


def load(request: LoadRequest) -> OrtGpuEngine:
    """A session for one batch shape; the first one of a model builds for minutes.

    Raises:
        ModelError: ONNX Runtime cannot run the model, or it does not fit its description.
        EngineError: the provider does not load, or the GPU has too little memory.
    """
    # the provider has no option for it: without this, fp32 is computed with 10-bit products
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    return OrtGpuEngine(request, PROVIDER)
