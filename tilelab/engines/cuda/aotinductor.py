"""AOTInductor on an NVIDIA GPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tilelab.engines.cuda.gpu_engine import GpuEngine
from tilelab.engines.files.aotinductor_package import exact_fp32, load_compiled, read_compiled
from tilelab.engines.loading import LoadRequest
from tilelab.errors import EngineError
from tilelab.kernels import device
from tilelab.text import explain, size_text


class AotInductorCudaEngine(GpuEngine):
    """A network compiled for one kind of GPU."""

    name = "aotinductor"

    def __init__(self, request: LoadRequest) -> None:
        super().__init__(request)
        path = request.file.path
        compiled = read_compiled(path)
        if compiled.capability is not None and compiled.capability != self.info.capability:
            built, have = (".".join(map(str, c)) for c in (compiled.capability, self.info.capability))
            raise EngineError(
                f"{path} was compiled for compute capability {built}, {self.info.name} has {have}: export it again"
            )
        self._torch, self._network = load_compiled(path, request.precision, self.index)

    def _tensor(self, array: device.DeviceArray) -> Any:
        """Torch's view of an array that is on the GPU."""
        return self._torch.as_tensor(array, device=self._torch.device("cuda", self.index))

    def _in_order(self) -> AbstractContextManager[Any]:
        """Within it, torch puts its work on the engine's stream."""
        cuda = self._torch.cuda
        handle = device.stream_handle(self.stream)
        stream: AbstractContextManager[Any] = cuda.stream(cuda.ExternalStream(handle, device=self.index))
        return stream

    def _enqueue(self, tiles: device.DeviceArray, logits: device.DeviceArray) -> None:
        try:
            exact = exact_fp32(self._torch) if self.precision == "fp32" else nullcontext()
            with self._torch.inference_mode(), self._in_order(), exact:
                self._tensor(logits).copy_(self._network(self._tensor(tiles)))
        except Exception as error:
            raise EngineError(
                f"AOTInductor failed on a batch of {size_text(self._request.input_shape)}: {explain(error)}"
            ) from error

    def versions(self) -> dict[str, str]:
        """Of torch, and the GPU and driver it was compiled for."""
        return {"torch": str(self._torch.__version__), "gpu": self.info.name, "driver": self.info.driver}

    def close(self) -> None:
        """Drop the network."""
        super().close()
        self._network = None
