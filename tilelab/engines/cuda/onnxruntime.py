"""ONNX Runtime on an NVIDIA GPU: what its CUDA, TensorRT and TensorRT-RTX providers share.

A provider that does not load makes ONNX Runtime fall back to the CPU with nothing but a printed line; here that is an
error.  Tiles and logits are bound where they are on the GPU, and everything runs on the engine's own stream.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tilelab.engines.cpu.onnxruntime import import_onnxruntime
from tilelab.engines.cuda.gpu_engine import GpuEngine
from tilelab.engines.files.half import convert_to_half
from tilelab.engines.loading import Availability, LoadRequest, Target, check_output
from tilelab.errors import EngineError, ModelError
from tilelab.kernels import device
from tilelab.machine.nvidia import driver_problem, gpu_count
from tilelab.spec import PRECISIONS, Precision
from tilelab.text import explain, size_text

_FATAL = 4


@dataclass(frozen=True)
class Provider:
    """One execution provider.

    Attributes:
        engine: its name among tilelab's engines.
        provider: its name in ONNX Runtime.
        package: that has to be installed, and how.
        precisions: that it computes in.
        options: of the provider, from the engine being loaded.
        register: makes a plug-in known to ONNX Runtime; None for a built-in provider.
    """

    engine: str
    provider: str
    package: str
    precisions: tuple[Precision, ...]
    options: Callable[[OrtGpuEngine], dict[str, str]]
    register: Callable[[Any], None] | None = None


@lru_cache(maxsize=8)
def probe(provider: Provider) -> Availability:
    """What a provider can do here; libraries are imported only where there are a GPU and the package."""
    try:
        found = version(provider.package)
    except PackageNotFoundError:
        return Availability("", f"{provider.package} is not installed: {_how_to_install(provider.package)}")
    problem = driver_problem()
    if problem:
        return Availability(found, problem)
    ort = import_onnxruntime()
    try:
        if provider.register is not None:
            provider.register(ort)
        if provider.provider not in provider_names(ort):
            if provider.register is not None:  # it is there, and names the GPUs that it is for
                return Availability(
                    found, f"{provider.provider} finds no GPU here that it supports: use another engine"
                )
            return Availability(found, f"{provider.package} {found} has no {provider.provider}: reinstall it")
    except Exception as error:  # noqa: BLE001 - a plug-in's loader raises whatever it likes
        return Availability(found, f"{provider.provider} does not load: {explain(error)}")
    lacks = f"{provider.provider} has no {{}} arithmetic: use the tensorrt engine"
    return Availability(
        found,
        targets=tuple(
            Target(f"cuda:{i}", p, "" if p in provider.precisions else lacks.format(p))
            for i in range(gpu_count())
            for p in PRECISIONS
        ),
    )


def _how_to_install(package: str) -> str:
    if package != "onnxruntime-gpu":
        return f"pip install {package}"
    # both packages are one folder, so that the second to be installed or removed breaks the first
    return "pip uninstall onnxruntime, then pip install onnxruntime-gpu, never both (it runs on CPUs, too)"


def provider_names(ort: Any) -> set[str]:
    """The providers that ONNX Runtime knows, plug-ins included."""
    names = set(ort.get_available_providers())
    if hasattr(ort, "get_ep_devices"):
        names |= {d.ep_name for d in ort.get_ep_devices()}
    return names


def cache_folder(*identity: str) -> Path:
    """Where a provider keeps what it compiled, one folder per model, versions, GPU and shape."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "tilelab" / "engines" / hashlib.sha256("\n".join(identity).encode()).hexdigest()[:24]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class OrtGpuEngine(GpuEngine):
    """A session on one GPU with one provider."""

    def __init__(self, request: LoadRequest, provider: Provider) -> None:
        super().__init__(request)
        self.name = provider.engine
        ort = import_onnxruntime()
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # CUDA and cuDNN from their wheels
        if provider.register is not None:
            provider.register(ort)
        self.ort_version = str(ort.__version__)
        self.provider = provider
        self.provider_options = provider.options(self)
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL
        options.use_deterministic_compute = True
        for name, size in zip(request.source.shape, request.input_shape, strict=False):
            if isinstance(name, str) and name:
                options.add_free_dimension_override_by_name(name, size)
        with device.memory_errors(request.file.size_bytes):
            self._session: Any = self._open(ort, options)
        used = self._session.get_providers()
        if not used or used[0] != provider.provider:
            raise EngineError(
                f"ONNX Runtime {self.ort_version} chose {used[0] if used else 'nothing'}, not {provider.provider}: "
                "its CUDA, cuDNN or TensorRT libraries are missing or of another version (see tilelab doctor)"
            )
        self._binding: Any = self._session.io_binding()
        self._run_options: Any = ort.RunOptions()
        # the stream orders what follows; waiting here would only keep the next batch from being put on it
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        outputs = {port.name: tuple(port.shape) for port in self._session.get_outputs()}
        shape = outputs[request.target.name]
        if all(isinstance(n, int) for n in shape):
            check_output(request, shape)

    def _open(self, ort: Any, options: Any) -> Any:
        request, provider = self._request, self.provider
        model: str | bytes = str(request.file.path)
        if request.precision == "fp16" and request.file.precision == "fp32":
            model = convert_to_half(request.file.path)
        elif request.precision != request.file.precision:
            raise EngineError(
                f"{request.file.path} holds {request.file.precision} arithmetic, which {provider.provider} cannot "
                f"turn into {request.precision}: export the model for it"
            )
        try:
            if provider.register is not None:
                devices = [d for d in ort.get_ep_devices() if d.ep_name == provider.provider]
                if len(devices) != gpu_count():
                    raise EngineError(
                        f"{provider.provider} supports {len(devices)} of the {gpu_count()} GPUs here and does not say "
                        "which: leave it no other with CUDA_VISIBLE_DEVICES"
                    )
                options.add_provider_for_devices([devices[self.index]], self.provider_options)
                return ort.InferenceSession(model, options, enable_fallback=0)
            providers = [(provider.provider, self.provider_options)]
            # else a reason is printed, and forgotten in a session for the CPU
            return ort.InferenceSession(model, options, providers=providers, enable_fallback=0)
        except EngineError:
            raise
        except Exception as error:  # the library's own exceptions share no base class
            raise ModelError(f"ONNX Runtime cannot load {request.file.path}: {explain(error)}") from error

    def _enqueue(self, tiles: device.DeviceArray, logits: device.DeviceArray) -> None:
        request, binding = self._request, self._binding
        for bind, port, shape, dtype, array in (
            (binding.bind_input, request.source, request.input_shape, self.tiles_dtype, tiles),
            (binding.bind_output, request.target, request.output_shape, self.logits_dtype, logits),
        ):
            bind(port.name, "cuda", self.index, dtype.type, shape, device.pointer(array))
        try:
            self._session.run_with_iobinding(binding, self._run_options)
        except Exception as error:
            raise EngineError(
                f"ONNX Runtime failed on a batch of {size_text(request.input_shape)}: {explain(error)}"
            ) from error

    @property
    def stream_options(self) -> dict[str, str]:
        """Options that make a provider run on the engine's stream."""
        return {"user_compute_stream": str(device.stream_handle(self.stream))}

    @property
    def identity(self) -> tuple[str, ...]:
        """All that compiled code depends on."""
        request = self._request
        return (
            self.model_digest,
            self.ort_version,
            *self.versions().values(),
            ".".join(map(str, self.info.capability)),
            size_text(request.input_shape),
            request.precision,
        )

    def versions(self) -> dict[str, str]:
        """Of ONNX Runtime, and the GPU and driver that choose its kernels."""
        found = {"onnxruntime": self.ort_version, "gpu": self.info.name, "driver": self.info.driver}
        for package in ("nvidia-cudnn-cu13", "tensorrt", "onnxruntime-ep-nv-tensorrt-rtx-cu13"):
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                continue
        return found

    def close(self) -> None:
        """Drop the session."""
        super().close()
        self._binding = self._session = None
