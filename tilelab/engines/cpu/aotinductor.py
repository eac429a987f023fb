"""AOTInductor on the CPU."""

from __future__ import annotations

from collections.abc import Mapping

from tilelab.arrays import Array
from tilelab.engines.files.aotinductor_package import load_compiled, read_compiled
from tilelab.engines.loading import FileEngine, LoadRequest
from tilelab.errors import EngineError
from tilelab.machine.cpu import cpu_features
from tilelab.text import explain, size_text


class AotInductorCpuEngine(FileEngine):
    """A network compiled for the CPU."""

    name = "aotinductor"

    def __init__(self, request: LoadRequest) -> None:
        super().__init__(request)
        compiled = read_compiled(request.file.path)
        if compiled.cpu and not set(compiled.cpu.split()) <= set(cpu_features().split()):
            raise EngineError(
                f"{request.file.path} was compiled for a CPU with {compiled.cpu}, this one has {cpu_features()}: "
                "export it again here"
            )
        self._torch, self._network = load_compiled(request.file.path, request.precision, -1)
        self._threads: int = request.threads or self._torch.get_num_threads()

    def _compute(self, source: Array, targets: tuple[Array, ...], stream: int) -> None:  # noqa: ARG002 - the only one
        torch = self._torch
        if torch.get_num_threads() != self._threads:  # a property of each thread that calls
            torch.set_num_threads(self._threads)
        tiles = torch.from_numpy(source if source.flags.writeable else source.copy())
        try:
            with torch.inference_mode():
                torch.from_numpy(targets[0]).copy_(self._network(tiles))
        except Exception as error:
            raise EngineError(
                f"AOTInductor failed on a batch of {size_text(self._request.input_shape)}: {explain(error)}"
            ) from error

    def versions(self) -> Mapping[str, str]:
        """Of torch, the instruction sets that it may use, and the threads that it cuts its sums for."""
        return {"torch": str(self._torch.__version__), "cpu": cpu_features(), "threads": str(self._threads)}

    def close(self) -> None:
        """Drop the network."""
        self._network = None
