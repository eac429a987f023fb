"""ONNX Runtime's CUDA provider."""

from __future__ import annotations

from tilelab.engines.cuda import onnxruntime as ort_gpu
from tilelab.engines.cuda.onnxruntime import OrtGpuEngine, Provider
from tilelab.engines.loading import Availability, LoadRequest


def _options(engine: OrtGpuEngine) -> dict[str, str]:
    """Chosen for the same bytes on every run, then for speed; every other option keeps its default."""
    return {
        "device_id": str(engine.index),
        # timing kernels (EXHAUSTIVE, the default) may choose others the next time: a resumed run would not match
        "cudnn_conv_algo_search": "HEURISTIC",
        "cudnn_conv_use_max_workspace": "1",
        "use_tf32": "0",  # 10-bit products are no fp32
        "prefer_nhwc": "1" if engine.precision == "fp16" else "0",  # the layout of tensor cores
        "do_copy_in_default_stream": "1",
        "arena_extend_strategy": "kSameAsRequested",  # no more memory than is used
        **engine.stream_options,
    }


PROVIDER = Provider("onnxruntime-cuda", "CUDAExecutionProvider", "onnxruntime-gpu", ("fp32", "fp16"), _options)


def probe() -> Availability:
    """What it can do here."""
    return ort_gpu.probe(PROVIDER)


def load(request: LoadRequest) -> OrtGpuEngine:
    """A session for one batch shape.

    Raises:
        ModelError: ONNX Runtime cannot run the model, or it does not fit its description.
        EngineError: the provider does not load, or the GPU has too little memory.
    """
    return OrtGpuEngine(request, PROVIDER)
