"""TorchScript on the CPU, for packages that have no other weights; needs torch.

A TorchScript file is a program: whoever loads one runs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from tilelab.arrays import Array
from tilelab.engines.loading import Availability, FileEngine, LoadRequest, Target, refuse
from tilelab.errors import EngineError, ModelError
from tilelab.machine.cpu import cpu_features
from tilelab.text import explain, size_text


@lru_cache(maxsize=1)
def probe() -> Availability:
    """What TorchScript can do here; does not import torch, which takes seconds."""
    try:
        found = version("torch")
    except PackageNotFoundError:
        return Availability("", "TorchScript needs torch, which is not installed: pip install torch")
    return Availability(found, targets=(Target("cpu", "fp32"),))


def load(request: LoadRequest) -> FileEngine:
    """A network, ready to run.

    Raises:
        ModelError: torch cannot read it.
    """
    return TorchScriptEngine(request)


class TorchScriptEngine(FileEngine):
    """A network in TorchScript."""

    name = "torchscript"

    def __init__(self, request: LoadRequest) -> None:
        super().__init__(request)
        import torch

        self._torch: Any = torch
        try:
            self._network: Any = torch.jit.load(str(request.file.path), map_location="cpu").eval()  # type: ignore[no-untyped-call,unused-ignore]
        except (RuntimeError, ValueError) as error:
            raise refuse("TorchScript", request, error) from error
        self._threads: int = request.threads or torch.get_num_threads()
        found = self._call(np.zeros(request.native_input_shape, request.source.dtype))
        self.fit_outputs([array.shape for array in found])
        self._open_streams(1, np.dtype(request.source.dtype), np.dtype(request.target.dtype))

    def _compute(self, source: Array, targets: tuple[Array, ...], stream: int) -> None:  # noqa: ARG002 - the only one
        for found, target in zip(self._call(source), targets, strict=True):
            if found.shape != target.shape:  # and would be repeated to fill it
                raise EngineError(
                    f"TorchScript gave {size_text(found.shape)} for a batch, not {size_text(target.shape)}"
                )
            np.copyto(target, found, casting="same_kind")

    def _call(self, source: Array) -> list[Array]:
        """The outputs that are used, as the network gives them."""
        torch = self._torch
        if torch.get_num_threads() != self._threads:  # a property of each thread that calls
            torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                given = self._network(torch.from_numpy(source if source.flags.writeable else source.copy()))
        except RuntimeError as error:
            raise EngineError(
                f"TorchScript failed on a batch of {size_text(self._request.input_shape)}: {explain(error)}"
            ) from error
        parts = (
            list(given.values()) if isinstance(given, dict) else given if isinstance(given, tuple | list) else [given]
        )
        names = [port.name for port in self._request.file.outputs]
        if len(parts) < len(names):
            raise ModelError(f"{self._request.file.path} gives {len(parts)} outputs, {len(names)} are described")
        return [parts[names.index(port.name)].float().numpy() for port in self._request.targets]

    def versions(self) -> Mapping[str, str]:
        """Of torch, the instruction sets that it may use, and the threads that it cuts its sums for."""
        return {"torch": str(self._torch.__version__), "cpu": cpu_features(), "threads": str(self._threads)}

    def close(self) -> None:
        """Drop the network."""
        self._network = None
