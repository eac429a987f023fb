"""What the engines on an NVIDIA GPU share: they take and give arrays that are on the GPU, in the order of a stream."""

from __future__ import annotations

import abc
from typing import Any

import numpy as np

from tilelab.arrays import Array
from tilelab.engines.base import DeviceEngine, GpuRoom
from tilelab.engines.loading import FileEngine, LoadRequest
from tilelab.errors import EngineError, ModelError
from tilelab.kernels import device
from tilelab.kernels.reference import SIGMOID, SOFTMAX


class GpuEngine(FileEngine):
    """A loaded model on one GPU; implements `DeviceEngine`."""

    def __init__(self, request: LoadRequest) -> None:
        super().__init__(request)
        for port in (request.source, request.target):
            if port.dtype not in ("float32", "float16"):
                raise ModelError(f"{request.file.path} has {port}: GPU engines need float32 or float16")
            if not port.as_ours:
                raise ModelError(
                    f"{request.file.path} has {port}: GPU engines need (batch, channels, y, x), export it so or run it "
                    "with --device cpu"
                )
        if not request.spec.plain:
            raise ModelError(
                f"{request.file.path} gives labels, maps, several outputs or such of another size than its tile: GPU "
                "engines do not take these yet, run it with --device cpu"
            )
        self.index = device.parse_index(request.device)
        self.info = device.select(self.index)
        self.device = f"cuda:{self.index}"
        with device.faults(self.index):
            self.stream = device.stream()
        self.tiles_dtype, self.logits_dtype = np.dtype(request.source.dtype), np.dtype(request.target.dtype)
        self._buffers: tuple[Any, Any] | None = None

    def use_types(self, tiles: np.dtype[Any], logits: np.dtype[Any]) -> None:
        """Set the types of the network's tensors where the library knows them better than the file."""
        self.tiles_dtype, self.logits_dtype = tiles, logits
        self._open_streams(1, tiles, logits)

    @property
    def gpu_room(self) -> GpuRoom:
        """As it is now."""
        return GpuRoom(self.tiles_dtype, self.logits_dtype, device.select(self.index).free_bytes)

    @property
    def on_device(self) -> DeviceEngine:
        """Itself."""
        return self

    @abc.abstractmethod
    def _enqueue(self, tiles: device.DeviceArray, logits: device.DeviceArray) -> None:
        """Put one batch through the network in the order of `stream`; arrays as in `enqueue`."""

    def enqueue(self, tiles: device.DeviceArray, logits: device.DeviceArray) -> None:
        """See `DeviceEngine.enqueue`."""
        self._enqueue(tiles, logits)
        if self._undo is not None:
            from tilelab.kernels.cuda_elementwise import undo_activation

            undo_activation(logits, SOFTMAX if self._undo == "softmax" else SIGMOID, self.stream)

    def _compute(self, source: Array, targets: tuple[Array, ...], stream: int) -> None:  # noqa: ARG002 - the only one
        """Host arrays, for those who have no others: up, through the network, down."""
        (target,) = targets
        device.select(self.index)
        with device.faults(self.index):
            if self._buffers is None:
                self._buffers = device.empty(source.shape, source.dtype), device.empty(target.shape, target.dtype)
            tiles, logits = self._buffers
            device.upload(source, tiles, self.stream)
            try:
                self._enqueue(tiles, logits)
            except EngineError:
                with device.quietly():  # a library tells a fault of the GPU in its own words: from now on it is known
                    self.stream.synchronize()
                raise
            device.download(logits, target, self.stream)
            self.stream.synchronize()

    def close(self) -> None:
        """Free the GPU's memory."""
        self._buffers = None
